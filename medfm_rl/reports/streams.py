"""The page of `medfm-rl monitor`: how streams stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from matplotlib.figure import Figure

from medfm_rl.quality.drift import STUDIES_TO_FALSE_ALARM, DriftTest
from medfm_rl.quality.promise_state import PromiseState
from medfm_rl.quality.promises import Promise
from medfm_rl.reports.figures import encode_figure
from medfm_rl.reports.pages import render_page

VERDICTS: Final = ("accept", "correct", "refer")
_COLOURS: Final = ("#00684a", "#E69F00", "#a3123f")
_BINS: Final = 40
"""Columns of the picture of verdicts over time, at most."""
_NAMED: Final = 20
"""Open audits that are named."""


@dataclass(frozen=True)
class StreamView:
    """What is shown of a stream.

    Attributes:
        name: Name of the stream.
        scanner: Scanner.
        protocol: Protocol.
        site: Site.
        times: When each study came, ISO 8601.
        verdicts: Of the masks of each study.
        drift: The test of the stream since its last restart.
        promise: The promise that it is compared with.
        state: What that is worth now.
        audit_share: Share of the accepted masks that are drawn for review.
        drawn: How many were.
        open_audits: Names of the cases that were drawn and not yet reviewed.
        reviewed_dice: True mean Dice of reviewed masks, in the order of their first reviews.
        under_promise: Patients with reviewed masks that the promise speaks of.
        bad_under_promise: Those of them with a bad one.
        changed_at: Time of the study or review from which on the stream is most unlike before, where there is an alarm.
        cut_short: Number of a last line of the file that was cut short; None where there is none.
        simulated: Whether images in it are simulated.
    """

    name: str
    scanner: str
    protocol: str
    site: str
    times: tuple[str, ...]
    verdicts: tuple[tuple[str, ...], ...]
    drift: DriftTest
    promise: Promise | None
    state: PromiseState
    audit_share: float
    drawn: int
    open_audits: tuple[str, ...]
    reviewed_dice: tuple[float, ...]
    under_promise: int
    bad_under_promise: int
    changed_at: str | None = None
    cut_short: int | None = None
    simulated: bool = False

    def count(self, verdict: str) -> int:
        """How many masks have a verdict."""
        return sum(own.count(verdict) for own in self.verdicts)

    @property
    def evidence(self) -> float:
        """Evidence of a change after the last study; an alarm is given from 1,000 on."""
        return self.drift.evidence[-1] if self.drift.evidence else 0.0

    @property
    def drift_words(self) -> str:
        """The state of the test, in words."""
        alarm = self.drift.alarm
        if alarm is not None:
            return (
                f"changed, probably since {self.changed_at} (number {alarm.since} of those tested; noticed at number "
                f"{alarm.study}), by {alarm.signal}: {alarm.words}"
            )
        count = "1 study" if self.drift.studies == 1 else f"{self.drift.studies} studies and reviews"
        if not self.drift.knows_itself:
            return f"too short to tell: {count}"
        return f"no change found in {count}"

    @property
    def audit_words(self) -> str:
        """The state of the audit, in words."""
        text = f"{self.drawn} drawn ({self.audit_share:.0%} of the accepted), {len(self.open_audits)} open"
        if self.reviewed_dice:
            text += f"; {len(self.reviewed_dice)} reviewed, mean Dice {np.mean(self.reviewed_dice):.3f}"
        if self.under_promise:
            text += (
                f"; of {self.under_promise} patients with masks accepted under the promise {self.bad_under_promise} "
                "with a bad one"
            )
        return text


def summary_lines(view: StreamView) -> list[str]:
    """A stream in a few lines, for the terminal."""
    verdicts = ", ".join(f"{verdict} {view.count(verdict)}" for verdict in VERDICTS)
    where = f"scanner {view.scanner}, protocol {view.protocol}, site {view.site}"
    return [
        f"{view.name}{' (SIMULATED DATA)' if view.simulated else ''} ({where}): {len(view.times)} studies: {verdicts}",
        f"  drift: {view.drift_words}",
        f"  promise: {view.state.standing}: {view.state.reason}",
        f"  audit: {view.audit_words}",
    ]


def write_monitor(path: Path, views: Sequence[StreamView]) -> None:
    """Writes the page; it loads nothing from anywhere else."""
    shown = [(view, encode_figure(_picture(view)) if view.times else None) for view in views]
    render_page(
        path,
        "streams.html",
        simulated=bool(views) and all(view.simulated for view in views),
        streams=shown,
        verdicts=VERDICTS,
        scanners=_by_scanner(views),
        named=_NAMED,
        studies_to_alarm=STUDIES_TO_FALSE_ALARM,
    )


def _by_scanner(views: Sequence[StreamView]) -> list[tuple[str, int, int, dict[str, int], int]]:
    """Scanner, streams, studies, masks by verdict, and alarms."""
    rows = []
    for scanner in sorted({view.scanner for view in views}):
        own = [view for view in views if view.scanner == scanner]
        counts = {verdict: sum(view.count(verdict) for view in own) for verdict in VERDICTS}
        alarms = sum(view.drift.alarm is not None for view in own)
        rows.append((scanner, len(own), sum(len(view.times) for view in own), counts, alarms))
    return rows


def _picture(view: StreamView) -> Figure:
    """Verdicts over time, and the evidence of a change below."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    above, below = figure.subplots(2, 1)
    parts = np.array_split(np.arange(len(view.times)), min(_BINS, len(view.times)))
    base = np.zeros(len(parts))
    for verdict, colour in zip(VERDICTS, _COLOURS, strict=True):
        counts = [sum(view.verdicts[study].count(verdict) for study in part) for part in parts]
        totals = [sum(len(view.verdicts[study]) for study in part) for part in parts]
        shares = np.array(counts) / np.array(totals)
        left, width = [part[0] + 0.5 for part in parts], [len(part) for part in parts]
        above.bar(left, shares, width, base, align="edge", color=colour, label=verdict)
        base += shares
    above.set(ylabel="share of masks", xlabel="study", ylim=(0, 1))
    above.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    count = np.arange(1, view.drift.studies + 1)
    below.semilogy(count, np.maximum(view.drift.evidence, 1e-2), color="#0072B2")
    below.axhline(view.drift.limit, color="#a3123f", linestyle="--", linewidth=1)
    below.set(ylabel="evidence of a change", xlabel="study or review since the last restart")
    return figure
