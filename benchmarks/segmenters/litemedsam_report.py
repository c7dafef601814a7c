"""Figures and table of the benchmark on LiteMedSAM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness.assessing import patient_bootstrap
from benchmarks.harness.tables import heading, interval, table_row
from medfm_rl.metrics.bootstrap import paired_bootstrap
from medfm_rl.metrics.failure_detection import failure_auroc
from medfm_rl.quality.baselines import BoxAgreement, PredictedIoU

JITTERS = (0, 5, 10, 20)
TRAINED_WITH = 10
SCOPES = ("decoder", "lora")
TITLES = {"decoder": "decoder adapted", "lora": "low-rank parts"}
OURS = "predicted Dice, calibrated on the source"
EXPECTED, OWN = "reward networks alone", "own estimate, box of the mask"
IOU_HEAD, JITTER = PredictedIoU.name, BoxAgreement.name
SCORES = {
    OURS: "auroc_ours",
    EXPECTED: "auroc_reward_alone",
    OWN: "auroc_own_estimate",
    IOU_HEAD: "auroc_iou_head",
    JITTER: "auroc_jitter",
}
"""Ways to assess masks, with the key of their failure AUROC in the summary."""


def summarise(results: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that others quote; Dice on held-out images of the target."""
    before = results["before"]["target"]
    after = {scope: results[scope]["target"] for scope in SCOPES if scope in results}
    aurocs, low = detection(results["assessed"])
    cost = results["cost"]
    return {
        **{key: aurocs[name] for name, key in SCORES.items()},
        "auroc_gain_ci_low": low,
        "dice_before": {jitter: mean_dice(before, jitter) for jitter in before["dice"]},
        "dice_after": {
            scope: {jitter: mean_dice(found, jitter) for jitter in found["dice"]} for scope, found in after.items()
        },
        "gain_ci_low_10px": {scope: gain(before, found, TRAINED_WITH)["low"] for scope, found in after.items()},
        "decoder_update_share_of_encoder": cost["decoder_update_seconds"] / cost["encoder_seconds"],
    }


def mean_dice(domain: Mapping[str, Any], jitter: str) -> float:
    return float(np.mean(domain["dice"][jitter]))


def gain(before: Mapping[str, Any], after: Mapping[str, Any], jitter: int) -> dict[str, float]:
    """Difference of mean Dice at a jitter, paired, with its interval over patients."""
    values = [np.mean(domain["dice"][str(jitter)], axis=1) for domain in (before, after)]
    return asdict(paired_bootstrap(values[0], values[1], before["patient_ids"]))


def detection(assessed: Mapping[str, Any]) -> tuple[dict[str, float | None], float | None]:
    """Failure AUROC of each score, and the lower end of the interval of ours minus the IoU head's over patients.

    None where there are no failures, or nothing else; draws of patients without both are left out.
    """
    failed = failures_of(assessed)
    scores = {name: np.array(values) for name, values in assessed["scores"].items()}
    aurocs = {name: failure_auroc(values, failed) for name, values in scores.items()}
    if aurocs[OURS] is None:
        return aurocs, None
    known: list[float] = []

    def difference(rows: Any) -> float:
        ours, theirs = (failure_auroc(scores[name][rows], failed[rows]) for name in (OURS, IOU_HEAD))
        if ours is None or theirs is None:
            return 0.0
        known.append(ours - theirs)
        return known[-1]

    patient_bootstrap(difference, assessed["patient_ids"])
    return aurocs, float(np.quantile(known, 0.025)) if known else None


def failures_of(assessed: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Which masks are worse than their median: a limit on Dice that the model never reaches tells nothing apart."""
    values = np.array(assessed["dice"])
    return np.asarray(values < np.median(values))


def table(results: Mapping[str, Any], patients: int) -> str:
    """Markdown: Dice by jitter, then how well bad masks are found; `patients` were in each part."""
    cost, summary = results["cost"], summarise(results)
    seconds = cost["seconds_per_image_without_encoder"] + cost["encoder_seconds"] / cost["images"]
    scopes = [scope for scope in SCOPES if scope in results]
    assessed = np.array(results["assessed"]["dice"])
    lines = [
        *heading("LiteMedSAM on CAMUS and on a SIMULATED handheld", trial=False),
        f"{patients} patients in each part; mean Dice on held-out patients by jitter of the boxes' sides in",
        "pixels; intervals: 95 %, bootstrap over patients.",
        "",
        f"| domain | jitter | as it is |{''.join(f' {TITLES[scope]} | gain [interval] |' for scope in scopes)}",
        f"|---|---|---|{'---|---|' * len(scopes)}",
    ]
    for domain in ("source", "target"):
        before = results["before"][domain]
        for jitter in JITTERS:
            row = [domain, str(jitter), f"{mean_dice(before, str(jitter)):.3f}"]
            for scope in scopes:
                after = results[scope][domain]
                row += [f"{mean_dice(after, str(jitter)):.3f}", interval(gain(before, after, jitter))]
            lines.append(table_row(row))
    lines += [
        "",
        f"Failures are masks below the median of what is assessed, {np.median(assessed):.3f}: "
        f"{int(failures_of(results['assessed']).sum())} of {len(assessed)}. At .8, as first planned, "
        f"{int((assessed < 0.8).sum())} were failures.",
        "",
    ]
    lines += ["| assessed by | failure AUROC |", "|---|---|"]
    for name, key in SCORES.items():
        lines.append(table_row([name, "not defined" if summary[key] is None else f"{summary[key]:.3f}"]))
    lines += [
        "",
        f"An inner epoch of PPO on the decoder takes {summary['decoder_update_share_of_encoder']:.2f} of the encoder's "
        f"time on the same {cost['images']} images; a mask takes {seconds:.2f} s, the process "
        f"{cost['peak_memory_mib']:.0f} MiB. Chosen: "
        + ", ".join(f"{scope} {results[scope]['chosen']}" for scope in scopes)
        + ".",
    ]
    return "\n".join(lines) + "\n"
