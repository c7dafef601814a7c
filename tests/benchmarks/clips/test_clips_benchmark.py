from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.clips.dicom_clip import write_dicom_clip
from benchmarks.clips.measuring import KnownClip, average, measure_masks
from benchmarks.clips.real import EchoNet, read_dicom_files, read_rightly
from benchmarks.clips.report import summarise, table
from benchmarks.clips.simulated import QUICK
from benchmarks.clips.speed import beating_masks
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.data.clips.reading import find_clip
from medfm_rl.data.ultrasound.phantom import ECHO_SCHEMA, grid_of
from medfm_rl.types import Clip

SIZE = (80, 80)


@pytest.fixture
def known() -> KnownClip:
    truth = beating_masks(24, SIZE)
    frames = np.zeros((24, 1, *SIZE), np.float32)
    return KnownClip(Clip("c", "p", frames, None, grid_of(SIZE)), truth)


def test_the_truth_itself_has_dice_1_no_error_of_the_fraction_and_its_own_jitter(known: KnownClip) -> None:
    row = measure_masks(known, known.truth, load_anatomy("echo_apical", ECHO_SCHEMA))
    assert (row["dice"], row["worst_frame_dice"], row["valid_frames"], row["ef_error"]) == (1, 1, 1, 0)
    assert row["valid_over_time"], row["broken"]
    assert row["jitter"] == row["true_jitter"]


def test_a_frame_that_is_lost_is_the_worst_one_and_breaks_a_rule_over_time(known: KnownClip) -> None:
    masks = known.truth.copy()
    masks[7, :, 40:] = 0
    row = measure_masks(known, masks, load_anatomy("echo_apical", ECHO_SCHEMA))
    assert row["worst_frame"] == 7
    assert not row["valid_over_time"]
    assert row["jitter"] > 2 * row["true_jitter"]
    assert average([row, row])["dice"] == pytest.approx(row["dice"])


def test_files_that_are_not_there_and_folders_without_clips_are_said_to_be(tmp_path: Path) -> None:
    found = read_dicom_files(None)
    assert found["DIRW0007"] == "not there"
    assert found["examples_ybr_color.dcm"].startswith("clip of 30 frames of 320 x 240")
    assert found["examples_palette.dcm"] == "image of 800 x 350"
    assert read_rightly(found) == (2, 2)
    assert read_rightly({**found, "DIRW0007": "refused: it is cut off"}) == (2, 3)
    assert EchoNet(0, QUICK, tmp_path / "runs", tmp_path).run(()) == {"skipped": f"no 0X*.mp4 in {tmp_path.name}"}


def test_the_clip_that_is_timed_is_read_with_its_spacing_and_times(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (5, 20, 30), dtype=np.uint8)
    write_dicom_clip(tmp_path / "clip.dcm", frames)
    file = find_clip(tmp_path / "clip.dcm")
    assert file is not None
    clip = file.read("c", "p")
    np.testing.assert_array_equal(clip.frames[:, 0], frames)
    assert clip.geometry.spacing == pytest.approx((0.2, 0.2))
    assert clip.times == pytest.approx([0, 0.02, 0.04, 0.06, 0.08])


def test_summary_and_table_have_what_was_run_and_leave_out_what_was_not(known: KnownClip) -> None:
    row = measure_masks(known, known.truth, load_anatomy("echo_apical", ECHO_SCHEMA))
    cell = {"clips": [row], "mean": average([row])}
    gain = {"mean": 0.01, "low": 0.0, "high": 0.02, "probability_positive": 0.9, "patients": 2}
    correction = {"worst_frame_gain": 0.05, "harmed": 0.0, "clips_changed": 1, "clips": []}
    seed = {
        "simulated": {
            "vintage": {
                "source": cell,
                "adapted": {**cell, "dice_gain": gain},
                "adapted with temporal reward": {**cell, "dice_gain": gain},
                "correction": correction,
            },
            "handheld": {"source": cell},
        },
        "echonet": {"skipped": "no --echonet FOLDER was given"},
    }
    speed = {
        "rules_over_time_ms": 0.8,
        "static_rules_ms": 2.0,
        "neighbours_ms": 40.0,
        "read_ms": {"DICOM 800 x 600": 5.0},
        "segment_ms": 30.0,
        "threads": 1,
        "long_clip": {"frames": 200, "size": [600, 800]},
        "peak_mb": 640.0,
        "peak_mb_smoothed": 700.0,
        "smooth_ms": 150.0,
    }
    found = {
        "seeds": [seed],
        "speed": speed,
        "dicom": {"DIRW0007": "clip of 65 frames of 4 x 5", "0020.DCM": "not there"},
    }
    summary = summarise(found)
    assert summary["temporal_validity"]["vintage"]["source"] == 1
    assert summary["temporal_validity"]["handheld"]["adapted"] is None
    assert summary["jitter_ratio"]["vintage"]["adapted"] == 1
    assert summary["worst_frame_gain"] == {"vintage": 0.05}
    assert summary["files_read"] == "1 of 1 that are there"
    text = table(found, summary, trial=True)
    assert "SIMULATED" in text
    assert "these numbers mean nothing" in text
    assert "EchoNet skipped: no --echonet FOLDER was given." in text
    assert "vintage: +5.0 points where every frame is corrected by the adapted model and `neighbours`" in text
