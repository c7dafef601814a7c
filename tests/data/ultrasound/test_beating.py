from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from medfm_rl.anatomy.clips import measure_clip
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.data.clips.sequences import read_sequence
from medfm_rl.data.files import hash_folder
from medfm_rl.data.layouts import find_cases, is_simulated, whole_clips
from medfm_rl.data.ultrasound.beating import Rhythm, SimulatedClip, draw_clip, draw_rhythm, simulate_clips
from medfm_rl.data.ultrasound.phantom import ECHO_SCHEMA, draw_heart, field_of_view
from medfm_rl.data.ultrasound.resimulate import resimulate_dataset
from medfm_rl.data.ultrasound.scatterers import Scatterers
from medfm_rl.data.ultrasound.vendors import vendor
from medfm_rl.settings import DataSettings

SIZE = (80, 80)
MM = 150 / 80
MYO = 2


def drawn(seed: int = 0, name: str = "cart", frames: int = 30, view: str = "4CH") -> SimulatedClip:
    rng = np.random.default_rng(seed)
    return draw_clip(draw_heart(rng), draw_rhythm(rng), view, SIZE, vendor(name), seed, frames)


def likeness(one: np.ndarray, two: np.ndarray, mask: np.ndarray) -> float:
    """Correlation of the speckle of two frames where the mask is."""
    fine = [image.astype(float) - ndimage.gaussian_filter(image.astype(float), 4) for image in (one, two)]
    return float(np.corrcoef(fine[0][mask], fine[1][mask])[0, 1])


def test_a_beat_contracts_from_end_diastole_to_end_systole_and_comes_back() -> None:
    rhythm = Rhythm(period=1.0, start=0.0)
    assert rhythm.contraction(0.0) == 0
    assert rhythm.contraction(0.4) == pytest.approx(1)
    assert rhythm.contraction(0.2) == pytest.approx(0.5)
    assert rhythm.contraction(0.7) == pytest.approx(0.5)
    assert Rhythm(0.8, 0.4).contraction(0.0) == pytest.approx(rhythm.contraction(0.4))


@pytest.mark.parametrize("seed", range(4))
def test_a_drawn_clip_is_valid_in_every_frame_and_over_time_and_beats_where_it_says(seed: int) -> None:
    clip = drawn(seed, view="2CH" if seed % 2 else "4CH")
    anatomy = load_anatomy("echo_apical", ECHO_SCHEMA)
    assert all(anatomy.is_valid(mask) for mask in clip.labels)
    found = measure_clip(clip.labels, ECHO_SCHEMA, "LV", (MM, MM))
    assert found.valid, [str(rule) for rule in found.rules if not rule.passed]
    areas = found.area_curve("LV")
    assert areas[clip.ed] == pytest.approx(areas.max(), rel=0.02)
    assert areas[clip.es] == pytest.approx(areas.min(), rel=0.02)
    assert clip.times[1] == pytest.approx(0.04)


def test_scatterers_have_mean_power_1_and_their_echo_moves_with_them() -> None:
    sector, lines = field_of_view(SIZE), 64
    scatterers = Scatterers.scattered(sector, lines, np.random.default_rng(0))
    echo = scatterers.on_lines(sector, lines)
    assert np.mean(np.abs(echo[1:-1, 1:-1]) ** 2) == pytest.approx(1, rel=0.05)
    depth, angle = sector.polar_of(scatterers.rows, scatterers.columns)
    deeper = scatterers.moved(*sector.place(depth + 3 / (len(echo) - 1), angle)).on_lines(sector, lines)
    np.testing.assert_allclose(deeper[10:-10, 1:-1], echo[7:-13, 1:-1], atol=1e-9)


def test_speckle_of_the_next_frame_is_like_that_of_this_one_and_far_from_one_drawn_anew() -> None:
    clip, same = drawn(5, frames=4), drawn(5, frames=4)
    np.testing.assert_array_equal(clip.frames, same.frames)
    rng = np.random.default_rng(5)
    anew = draw_clip(draw_heart(rng), draw_rhythm(rng), "4CH", SIZE, vendor("cart"), 6, 4)
    wall = (clip.labels[1] == MYO) & (clip.labels[2] == MYO)
    assert likeness(clip.frames[1], clip.frames[2], wall) > likeness(clip.frames[1], anew.frames[2], wall) + 0.2


def test_simulated_clips_are_found_with_their_masks_and_marked_as_simulated(tmp_path: Path) -> None:
    for name, profile in (("a", "cart"), ("again", "cart"), ("b", "vintage")):
        simulate_clips(tmp_path / name, vendor(profile), 1, seed=4, size=(40, 48), first=3, frames=5)
    assert hash_folder(tmp_path / "a") == hash_folder(tmp_path / "again")
    files = find_cases(DataSettings(path=tmp_path / "a"))
    assert [file.case_id for file in whole_clips(files)] == ["sim0003_2CH", "sim0003_4CH"]
    assert {file.patient_id for file in files} == {"sim0003"}
    assert len(files) == 10
    labelled = files[2].read_labelled(ECHO_SCHEMA)
    assert labelled.case.frame == 2
    assert set(np.unique(labelled.ground_truth)) == {0, 1, 2, 3}
    assert is_simulated(tmp_path / "a")
    truth = json.loads((tmp_path / "a" / "simulation.json").read_text())["clips"]["sim0003_4CH"]
    assert 0.7 <= truth["period_s"] <= 1.1
    assert 0 <= truth["ed_frame"] < 5
    masks = [read_sequence(tmp_path / name / "labels" / "sim0003_4CH.nii.gz")[0] for name in ("a", "b")]
    np.testing.assert_array_equal(*masks)


def test_another_vendor_shows_a_clip_with_speckle_that_moves_and_keeps_masks_and_times(tmp_path: Path) -> None:
    simulate_clips(tmp_path / "a", vendor("cart"), 1, seed=1, size=SIZE, frames=4)
    files = find_cases(DataSettings(path=tmp_path / "a"))
    for name, seed in (("b", 0), ("c", 1)):
        assert resimulate_dataset(files, tmp_path / name, vendor("vintage"), seed=seed, workers=1) == []
    before, after, anew = (whole_clips(find_cases(DataSettings(path=tmp_path / name)))[1].read_clip() for name in "abc")
    assert after.frames.shape == before.frames.shape
    assert after.times == pytest.approx(before.times)
    assert after.geometry.spacing == pytest.approx(before.geometry.spacing)
    masks = read_sequence(tmp_path / "b" / "labels" / "sim0001_4CH.nii.gz")[0][:, 0]
    np.testing.assert_array_equal(masks, read_sequence(tmp_path / "a" / "labels" / "sim0001_4CH.nii.gz")[0][:, 0])
    wall = (masks[1] == MYO) & (masks[2] == MYO)
    unlike = likeness(after.frames[1, 0], anew.frames[2, 0], wall)
    assert likeness(after.frames[1, 0], after.frames[2, 0], wall) > unlike + 0.2
