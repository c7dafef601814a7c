"""How streams stand, as numbers: in Prometheus' text format, and by name for MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from medfm_rl.reports.streams import VERDICTS, StreamView

_PREFIX: Final = "medfm_rl_stream_"
_HELP: Final = {
    "studies": "Studies in the stream.",
    "cases_accept": "Masks with the verdict accept.",
    "cases_correct": "Masks with the verdict correct.",
    "cases_refer": "Masks with the verdict refer.",
    "drift_evidence": "Evidence of a change; an alarm is given from 1000 on.",
    "alarm": "1 where the stream has changed.",
    "promise_in_force": "1 where a promise about accepted masks is in force.",
    "audit_drawn": "Masks drawn for review.",
    "audit_open": "Masks drawn for review and not yet reviewed.",
    "reviewed": "Reviewed masks.",
    "reviewed_mean_dice": "Mean Dice of the reviewed masks; not there before the first review.",
    "bad_under_promise": "Patients with a reviewed mask that was accepted under the promise and is bad.",
}
"""What each number is."""


def metric_values(view: StreamView) -> dict[str, float]:
    """The numbers of a stream by name."""
    values = {
        "studies": len(view.times),
        **{f"cases_{verdict}": view.count(verdict) for verdict in VERDICTS},
        "drift_evidence": view.evidence,
        "alarm": float(view.drift.alarm is not None),
        "promise_in_force": float(view.state.standing == "in force"),
        "audit_drawn": view.drawn,
        "audit_open": len(view.open_audits),
        "reviewed": len(view.reviewed_dice),
        "bad_under_promise": view.bad_under_promise,
    }
    if view.reviewed_dice:
        values["reviewed_mean_dice"] = float(np.mean(view.reviewed_dice))
    return {name: float(value) for name, value in values.items()}


def prometheus_text(views: Sequence[StreamView]) -> str:
    """The numbers of streams in Prometheus' text exposition format, labelled by stream, scanner, protocol and site."""
    values = [(view, metric_values(view)) for view in views]
    lines = []
    for name, meaning in _HELP.items():
        lines += [f"# HELP {_PREFIX}{name} {meaning}", f"# TYPE {_PREFIX}{name} gauge"]
        for view, found in values:
            if name in found:
                lines.append(f"{_PREFIX}{name}{{{_labels(view)}}} {found[name]:.10g}")
    return "\n".join(lines) + "\n"


def _labels(view: StreamView) -> str:
    named = {"stream": view.name, "scanner": view.scanner, "protocol": view.protocol, "site": view.site}
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in named.items())


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
