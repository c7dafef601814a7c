"""Figures, table and picture of the benchmark between two hospitals in 3-D."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.harness.panels import save
from benchmarks.harness.tables import heading, interval, table_row
from benchmarks.short_axis.sizes import RECIPE, ShortAxisSize
from medfm_rl.metrics.failure_detection import failure_auroc
from medfm_rl.metrics.scores import MEAN

FAILURE = 0.8
"""Dice below which a mask is a failure."""
_GAP = 0.005
"""A model trained on target labels that is less than half a Dice point above the source model leaves no gap."""
UNREVIEWED = "0"

Result = Mapping[str, Any]


def gap_recovered(before: float, after: float, upper: float) -> float | None:
    """Share of the way from the source model to the one trained on target labels; None where there is no gap."""
    return None if upper - before < _GAP else (after - before) / (upper - before)


def detection(assessed: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Failure AUROC of the predicted Dice, the masks of all models together; None where there are not both."""
    if not all(assessed.values()):
        return None
    truth, predicted = (np.concatenate([part[key] for part in assessed.values()]) for key in ("dice", "predicted"))
    return failure_auroc(predicted, truth < FAILURE)


def figures(result: Result, reviewed: str) -> dict[str, Any]:
    """The figures of one seed and one adaptation."""
    adapted, upper = result["adapted"][reviewed], result["upper"]["summary"][-1]["dice"]
    before, after = (adapted[when][-1]["dice"] for when in ("before", "after"))
    return {
        "dice_before": before,
        "dice_after": after,
        "upper": upper,
        "gain_ci_low": adapted["gain"][MEAN]["low"],
        "gap_recovered": gap_recovered(before, after, upper),
        "harm_rate": adapted["harmed"],
        "failure_auroc": detection(adapted["assessed"]),
        "judging_overhead": adapted["assessing"]["overhead"],
        "minutes": adapted["minutes"],
    }


def summarise(results: Sequence[Result]) -> dict[str, Any]:
    """The figures that others quote, one for each seed: without feedback, then by the number of reviewed patients."""
    by_reviewed = {
        reviewed: _by_seed([figures(result, reviewed) for result in results]) for reviewed in results[0]["adapted"]
    }
    return {
        **by_reviewed.pop(UNREVIEWED),
        "source_held_out": [result["source"]["summary"][-1]["dice"] for result in results],
        "reviewed": by_reviewed,
    }


def _by_seed(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {key: [row[key] for row in rows] for key in rows[0]}


def table(seeds: Sequence[int], results: Sequence[Result], size: ShortAxisSize, trial: bool) -> str:
    """Markdown: what the models are, gains, then how well the masks were assessed."""
    volumes = len(results[0]["upper"]["dice"])
    spacing = " x ".join(f"{side:g}" for side in RECIPE.spacing or ())
    lines = [
        *heading("A 3-D nnU-Net of ACDC (Dijon), adapted to Sunnybrook (Toronto)", trial),
        f"Cavity of the left ventricle in short-axis MR. `3d_fullres` planned at {spacing} mm (the packs have lost the "
        f"spacing; assumed, see `benchmarks/short_axis/volumes.py`) with 1/{RECIPE.width} of the planned feature maps, "
        f"{size.epochs} epochs of {size.iterations} iterations with batches of {RECIPE.batch}. Dice of the masks that "
        f"`nnUNetv2_predict_from_modelfolder` wrote for {volumes} volumes of {size.held_out} held-out patients, with "
        "mirroring; intervals: 95 %, bootstrap over patients. Trained on target labels: the source model trained on "
        f"with the masks of the target patients, {size.upper_epochs} epochs. Reviewed: target patients whose masks the "
        "adaptation was given. Harmed: share of volumes that lost more than a point. Minutes: the adaptation alone.",
        "",
        "| seed | on ACDC held out | reviewed | before | after | gain [interval] | trained on target labels "
        "| after minus that [interval] | gap | 10th percentile before, after | valid before, after | harmed | returned "
        "| minutes |",
        "|---" * 14 + "|",
    ]
    lines += [
        _gains(seed, result, reviewed)
        for seed, result in zip(seeds, results, strict=True)
        for reviewed in result["adapted"]
    ]
    lines += [
        "",
        "Assessed without ground truth by the run's own `quality.json`, masks of the source and the adapted model; "
        f"failures: Dice below {FAILURE:g}. Overhead: what assessing its own masks adds to the time of segmenting.",
        "",
        "| seed | reviewed | failure AUROC | failures: source, adapted | batch: source, adapted "
        "| accepted: source, adapted | overhead | seconds of segmenting a volume |",
        "|---" * 8 + "|",
    ]
    lines += [
        _assessed(seed, reviewed, adapted)
        for seed, result in zip(seeds, results, strict=True)
        for reviewed, adapted in result["adapted"].items()
    ]
    return "\n".join(lines) + "\n"


def _gains(seed: int, result: Result, reviewed: str) -> str:
    adapted, found = result["adapted"][reviewed], figures(result, reviewed)
    before, after = adapted["before"][-1], adapted["after"][-1]
    gap = found["gap_recovered"]
    return table_row(
        [
            str(seed),
            f"{result['source']['summary'][-1]['dice']:.3f}",
            reviewed,
            f"{before['dice']:.3f}",
            f"{after['dice']:.3f}",
            interval(adapted["gain"][MEAN]),
            f"{found['upper']:.3f}",
            interval(adapted["against_upper"][MEAN]),
            "none" if gap is None else f"{100 * gap:.0f} %",
            f"{before['dice_p10']:.3f}, {after['dice_p10']:.3f}",
            f"{before['validity']:.2f}, {after['validity']:.2f}",
            f"{100 * adapted['harmed']:.0f} %",
            adapted["chosen"],
            f"{adapted['minutes']:.1f}",
        ]
    )


def _assessed(seed: int, reviewed: str, adapted: Mapping[str, Any]) -> str:
    parts, own = adapted["assessed"], adapted["assessing"]
    if not all(parts.values()):
        return table_row([str(seed), reviewed, *["not assessed: too few source patients"] * 6])
    auroc = detection(parts)
    failures = [str(sum(value < FAILURE for value in part["dice"])) for part in parts.values()]
    accepted = [f"{part['verdicts'].count('accept')} of {len(part['verdicts'])}" for part in parts.values()]
    return table_row(
        [
            str(seed),
            reviewed,
            "not defined" if auroc is None else f"{auroc:.3f}",
            ", ".join(failures),
            ", ".join(part["state"] for part in parts.values()),
            ", ".join(accepted),
            f"{100 * own['overhead']:.0f} %",
            f"{own['segmenting_seconds']:.2f}",
        ]
    )


def draw(results: Sequence[Result], trial: bool, path: Path) -> None:
    """Dice of every held-out volume before and after, a panel for each number of reviewed patients; no pixels."""
    adaptations = list(results[0]["adapted"])
    figure = Figure(figsize=(3.4 * len(adaptations), 3.5), layout="constrained")
    for panel, reviewed in zip(figure.subplots(1, len(adaptations), squeeze=False)[0], adaptations, strict=True):
        found = [result["adapted"][reviewed]["dice"] for result in results]
        before, after = (np.concatenate([part[when] for part in found]) for when in ("before", "after"))
        low = float(min(before.min(), after.min())) - 0.02
        panel.plot((low, 1), (low, 1), color="#555555", linewidth=0.8)
        panel.scatter(before, after, s=14, color="#0072B2", label="a volume")
        height = float(np.mean([result["upper"]["summary"][-1]["dice"] for result in results]))
        panel.axhline(height, color="#D55E00", linestyle="--", linewidth=0.8, label="trained on target labels, mean")
        panel.set_title(f"{reviewed} reviewed patients", fontsize=8)
        panel.set_ylabel("after adaptation", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.legend(fontsize=6, loc="lower right")
    save(figure, "Dice of the left ventricle on Sunnybrook, before adaptation", trial, path)
