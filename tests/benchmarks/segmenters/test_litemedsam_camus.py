from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.promptable_models import TinyPromptable, tiny_kind

from benchmarks.harness import assessing, laboratory
from benchmarks.harness.shifts import ECHO, Folders, Shift
from benchmarks.segmenters import litemedsam_camus
from benchmarks.segmenters.litemedsam_camus import QUICK, SIZE, LiteMedSAMOnShift, largest_pieces
from benchmarks.segmenters.litemedsam_report import (
    EXPECTED,
    IOU_HEAD,
    JITTER,
    OURS,
    OWN,
    SCOPES,
    detection,
    gain,
    summarise,
    table,
)
from medfm_rl.adapters.kinds import KINDS
from medfm_rl.quality import calibration
from medfm_rl.settings import NetworkSettings


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """An AUROC of each draw of patients takes seconds."""
    monkeypatch.setattr(assessing, "_DRAWS", 200)


def domain(dice: float) -> dict[str, Any]:
    """Two images of two patients, the second .1 worse; 5 points less for each step of jitter."""
    by_jitter = {
        str(jitter): [[dice - 0.05 * step] * 3, [dice - 0.1 - 0.05 * step] * 3]
        for step, jitter in enumerate((0, 5, 10, 20))
    }
    return {"patient_ids": ["a", "b"], "dice": by_jitter}


def results() -> dict[str, Any]:
    patients = [f"p{index}" for index in range(10)]
    dice = [0.7] * 5 + [0.9] * 5
    blind = [0.5, 0.6, 0.7, 0.8, 0.9] * 2
    return {
        "before": {"source": domain(0.9), "target": domain(0.8)},
        "decoder": {"chosen": "fine-tuning", "source": domain(0.9), "target": domain(0.85)},
        "lora": {"chosen": "source", "source": domain(0.9), "target": domain(0.8)},
        "cost": {
            "images": 4,
            "encoder_seconds": 2.0,
            "decoder_update_seconds": 0.5,
            "seconds_per_image_without_encoder": 0.6,
            "peak_memory_mib": 900.0,
        },
        "assessed": {
            "patient_ids": patients,
            "dice": dice,
            "scores": dict.fromkeys((EXPECTED, OWN, IOU_HEAD), blind) | {OURS: dice, JITTER: dice[::-1]},
        },
    }


def test_the_figures_that_are_quoted() -> None:
    summary = summarise(results())
    assert (summary["auroc_ours"], summary["auroc_iou_head"], summary["auroc_jitter"]) == (1.0, 0.5, 0.0)
    assert 0 < summary["auroc_gain_ci_low"] < 0.5
    assert summary["dice_before"] == pytest.approx({"0": 0.75, "5": 0.70, "10": 0.65, "20": 0.60})
    assert summary["dice_after"]["decoder"]["10"] == pytest.approx(0.70)
    assert summary["gain_ci_low_10px"] == pytest.approx({"decoder": 0.05, "lora": 0.0})
    assert summary["decoder_update_share_of_encoder"] == 0.25


def test_the_table_holds_what_was_found() -> None:
    text = table(results(), SIZE.patients)
    assert "| target | 10 | 0.650 | 0.700 | +0.050 [+0.050, +0.050] | 0.650 | +0.000 [+0.000, +0.000] |" in text
    assert ": 5 of 10. At .8, as first planned, 5 were failures." in text
    assert "SIMULATED" in text


def test_the_gain_is_paired_by_patient() -> None:
    found = gain(domain(0.8), domain(0.85), 10)
    assert (found["mean"], found["patients"]) == (pytest.approx(0.05), 2)


def test_without_failures_nothing_is_said_of_their_detection() -> None:
    assessed = results()["assessed"]
    assessed["dice"] = [0.9] * 10
    aurocs, low = detection(assessed)
    assert low is None
    assert set(aurocs.values()) == {None}


def test_stray_pieces_widen_no_box() -> None:
    mask = np.zeros((12, 12), np.uint8)
    mask[2:6, 2:6] = 1
    mask[10, 10] = 1
    mask[6:9, 2:4] = 2
    kept = largest_pieces(mask, 4)
    assert kept[10, 10] == 0
    mask[10, 10] = 0
    assert np.array_equal(kept, mask)


@pytest.mark.slow
def test_every_part_runs_and_is_made_once(
    simulated_echo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On drawn hearts, with tiny networks in the places of LiteMedSAM and of what draws the boxes."""
    monkeypatch.setattr(laboratory, "NETWORK", NetworkSettings(channels=(4, 8), residual_units=0))
    monkeypatch.setattr(litemedsam_camus, "LiteMedSAMAdapter", TinyPromptable)
    monkeypatch.setitem(KINDS, TinyPromptable.kind, tiny_kind())
    # There are six hearts.
    monkeypatch.setattr(calibration, "FEWEST_PATIENTS", 6)
    source, target = simulated_echo / "a", simulated_echo / "b"
    shift = Shift("drawn", "drawn hearts", True, "generic", ECHO, Folders(source, source, target, target))
    size = replace(
        QUICK, every=4, coarse_steps=1, adapt={**QUICK.adapt, "collect": {"source_images": 12, "target_images": 4}}
    )
    bench = LiteMedSAMOnShift(shift, size, tmp_path, {})
    found = bench.run(SCOPES)
    assessed = found["assessed"]
    assert {len(values) for values in assessed["scores"].values()} == {len(assessed["dice"])} == {12}
    assert set(summarise(found)) == {
        "auroc_ours",
        "auroc_reward_alone",
        "auroc_own_estimate",
        "auroc_iou_head",
        "auroc_jitter",
        "auroc_gain_ci_low",
        "dice_before",
        "dice_after",
        "gain_ci_low_10px",
        "decoder_update_share_of_encoder",
    }
    assert "An inner epoch of PPO on the decoder takes" in table(found, size.patients)
    TinyPromptable.encoded.clear()
    assert bench.run(SCOPES) == found
    assert TinyPromptable.encoded == []
