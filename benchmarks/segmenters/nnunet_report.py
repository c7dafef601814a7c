"""Figures and table of the benchmark on nnU-Nets."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.nnunet_official import NnUNetSize
from benchmarks.harness.tables import heading, interval, table_row
from medfm_rl.metrics.scores import MEAN

FAILURE = 0.8
"""Mean Dice below which a mask is a failure."""


def summarise(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures that others quote, with mirroring as nnU-Net has it by default."""

    def by_shift(value: str, *path: Any) -> dict[str, float]:
        found = {}
        for shift, result in results.items():
            inner = result["mirroring"]["on"][value]
            for step in path:
                inner = inner[step]
            found[shift] = inner
        return found

    return {
        "dice_before": by_shift("before", -1, "dice"),
        "dice_after": by_shift("after", -1, "dice"),
        "gain_ci_low": by_shift("gain", MEAN, "low"),
        "cli_equals_ours": by_shift("cli_equals_ours"),
        "disagreement_with_official": by_shift("disagreement_with_official"),
        "assessing_overhead": {shift: result["assessing"]["overhead"] for shift, result in results.items()},
        "assessing_failure_auroc": {shift: result["assessing"]["failure_auroc"] for shift, result in results.items()},
    }


def table(results: dict[str, dict[str, Any]], size: NnUNetSize, width: int) -> str:
    """Markdown; `width` divides the planned feature maps."""
    lines = [
        *heading("A 2-D nnU-Net of CAMUS, adapted and exported", trial=False),
        f"A model with 1/{width} of the planned feature maps, {size.epochs} epochs of {size.iterations} iterations.",
        f"Dice of the masks that `nnUNetv2_predict_from_modelfolder` wrote for {size.held_out} held-out patients;",
        "intervals: 95 %, bootstrap over patients. `handheld` is a SIMULATED target vendor; `view` is 4CH to 2CH.",
        "Minutes: training, adaptation.",
        "",
        "| shift | mirroring | structure | before | after | gain [interval] | pixels as ours | minutes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for shift, result in results.items():
        minutes = f"{result['training_minutes']:.1f}, {result['adaptation_minutes']:.1f}"
        for mirroring, scores in result["mirroring"].items():
            for old, new in zip(scores["before"], scores["after"], strict=True):
                cells = [
                    shift,
                    mirroring,
                    old["structure"],
                    f"{old['dice']:.3f}",
                    f"{new['dice']:.3f}",
                    interval(scores["gain"][old["structure"]]),
                    f"{scores['cli_equals_ours']:.4f}",
                    minutes,
                ]
                lines.append(table_row(cells))
    lines += ["", "Assessing the adapted model's own masks, in the same process (mirroring on):", ""]
    for shift, result in results.items():
        found = result["assessing"]
        if found["overhead"] is not None:
            auroc = "none" if found["failure_auroc"] is None else f"{found['failure_auroc']:.3f}"
            lines.append(
                f"- {shift}: adds {100 * found['overhead']:.0f} % to the {found['segmenting_seconds']:.2f} s of "
                f"segmenting; failure AUROC {auroc} ({found['failures']} masks below a mean Dice of {FAILURE:g})"
            )
    return "\n".join(lines) + "\n"
