from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medfm_rl.data.images import write_labels
from medfm_rl.data.layouts import find_cases
from medfm_rl.settings import DataSettings

pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed (extra nnunet)")
from benchmarks.harness.nnunet_official import score, write_raw
from benchmarks.harness.packs import CAMUS_SCHEMA
from benchmarks.segmenters.nnunet_camus import ANATOMY, FULL, RECIPE
from benchmarks.segmenters.nnunet_report import summarise, table

pytestmark = pytest.mark.nnunet


def test_raw_data_are_copies_under_the_names_of_nnunet(simulated_echo: Path, tmp_path: Path) -> None:
    cases = find_cases(DataSettings(path=simulated_echo / "a"))[:3]
    write_raw(RECIPE, cases, tmp_path / "raw")
    assert len(list((tmp_path / "raw" / "imagesTr").iterdir())) == 3
    first = tmp_path / "raw" / "imagesTr" / f"{cases[0].case_id}_0000.png"
    assert first.read_bytes() == cases[0].image_paths[0].read_bytes()
    description = json.loads((tmp_path / "raw" / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "LV": 1, "MYO": 2, "LA": 3}


def test_masks_are_scored_from_their_files(simulated_echo: Path, tmp_path: Path) -> None:
    cases = find_cases(DataSettings(path=simulated_echo / "a"))[:3]
    for case in cases:
        labelled = case.read_labelled(CAMUS_SCHEMA)
        mask = labelled.ground_truth.copy()
        if case is cases[0]:
            mask[:] = 0
        write_labels(tmp_path / f"{case.case_id}.png", mask, labelled.case.geometry, CAMUS_SCHEMA)
    evaluation = score(RECIPE, cases, tmp_path, ANATOMY)
    assert [one.dice for one in evaluation.of("LV")] == [0.0, 1.0, 1.0]


def test_the_figures_that_are_quoted_are_those_of_the_mean_with_mirroring() -> None:
    def scores(before: float) -> dict[str, object]:
        row = {"structure": "mean", "dice": before}
        gain = {"mean": {"mean": 0.1, "low": 0.05, "high": 0.15}}
        return {
            "before": [{"structure": "LV", "dice": np.nan}, row],
            "after": [{"structure": "LV", "dice": np.nan}, {**row, "dice": before + 0.1}],
            "gain": {**gain, "LV": gain["mean"]},
            "cli_equals_ours": 1.0,
            "disagreement_with_official": 0.001,
        }

    result = {
        "mirroring": {"on": scores(0.5), "off": scores(0.25)},
        "training_minutes": 1.0,
        "adaptation_minutes": 2.0,
        "assessing": {"overhead": 0.25, "segmenting_seconds": 0.2, "failure_auroc": 0.9, "failures": 7},
    }
    summary = summarise({"handheld": result})
    assert summary == {
        "dice_before": {"handheld": 0.5},
        "dice_after": {"handheld": 0.6},
        "gain_ci_low": {"handheld": 0.05},
        "cli_equals_ours": {"handheld": 1.0},
        "disagreement_with_official": {"handheld": 0.001},
        "assessing_overhead": {"handheld": 0.25},
        "assessing_failure_auroc": {"handheld": 0.9},
    }
    text = table({"handheld": result}, FULL, RECIPE.width)
    assert "| handheld | off | mean | 0.250 | 0.350 | +0.100 [+0.050, +0.150] |" in text
    assert "- handheld: adds 25 % to the 0.20 s of segmenting; failure AUROC 0.900 (7 " in text
