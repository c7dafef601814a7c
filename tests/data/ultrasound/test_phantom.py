from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.data.files import hash_folder
from medfm_rl.data.layouts import find_cases, is_simulated
from medfm_rl.data.ultrasound.phantom import ECHO_SCHEMA, PHASES, VIEWS, draw_heart, draw_phantom, simulate_dataset
from medfm_rl.data.ultrasound.vendors import vendor
from medfm_rl.settings import DataSettings

LV, MYO, LA = 1, 2, 3


def labels_of(seed: int, view: str, phase: str, size: tuple[int, int] = (96, 96)) -> np.ndarray:
    heart = draw_heart(np.random.default_rng(seed))
    return draw_phantom(heart, view, phase, size, np.random.default_rng(99))[1]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("phase", PHASES)
def test_drawn_hearts_obey_the_rules_of_apical_echo(view: str, phase: str) -> None:
    anatomy = load_anatomy("echo_apical", ECHO_SCHEMA)
    broken = [
        (seed, [result for result in anatomy.check(labels) if not result.passed])
        for seed in range(15)
        if not anatomy.is_valid(labels := labels_of(seed, view, phase))
    ]
    assert not broken


@pytest.mark.parametrize("size", [(32, 32), (48, 64), (96, 72)])
def test_a_phantom_fits_its_frame_and_its_sector(size: tuple[int, int]) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        echo, labels, sector = draw_phantom(draw_heart(rng), "4CH", "ED", size, rng)
        assert echo.shape == labels.shape == size
        assert labels.dtype == np.uint8
        assert set(np.unique(labels)) == {0, LV, MYO, LA}
        assert (labels[~sector.contains(size)] == 0).all()
        assert echo.min() >= -60
        assert echo.max() <= 0
        assert echo[labels == MYO].mean() > echo[labels == LV].mean() + 10


def test_the_ventricle_contracts_and_its_wall_thickens() -> None:
    for seed in range(8):
        for view in VIEWS:
            diastole, systole = labels_of(seed, view, "ED"), labels_of(seed, view, "ES")
            assert (systole == LV).sum() < 0.95 * (diastole == LV).sum()
            assert (systole == MYO).sum() / (systole == LV).sum() > (diastole == MYO).sum() / (diastole == LV).sum()


def test_patients_differ_and_the_four_chamber_view_is_broader() -> None:
    assert not np.array_equal(labels_of(0, "4CH", "ED"), labels_of(1, "4CH", "ED"))
    for seed in range(5):
        broad, narrow = (labels_of(seed, view, "ED") == LV for view in ("4CH", "2CH"))
        assert broad.sum() > narrow.sum()


def test_a_data_set_is_laid_out_named_and_marked_as_simulated(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    simulate_dataset(
        tmp_path / "a", vendor("cart"), 2, seed=5, size=(32, 40), first=7, progress=lambda *done: seen.append(done)
    )
    assert seen == [(1, 2), (2, 2)]
    cases = find_cases(DataSettings(path=tmp_path / "a"))
    assert [case.case_id for case in cases] == [
        f"sim{number:04d}_{view}_{phase}" for number in (7, 8) for view in ("2CH", "4CH") for phase in ("ED", "ES")
    ]
    assert {case.patient_id for case in cases} == {"sim0007", "sim0008"}
    labelled = cases[0].read_labelled(ECHO_SCHEMA)
    assert labelled.case.shape == (32, 40)
    # 150 mm of depth over 32 rows, square pixels.
    assert labelled.case.geometry.spacing == pytest.approx((150 / 32, 150 / 32))
    assert set(np.unique(labelled.ground_truth)) == {0, LV, MYO, LA}
    record = json.loads((tmp_path / "a" / "simulation.json").read_text())
    assert record == {"simulated": True, "vendor": "cart", "seed": 5, "patients": 2, "complete": True}


def test_the_same_seed_gives_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("second", 0), ("other", 1)):
        simulate_dataset(tmp_path / name, vendor("handheld"), 1, seed=seed, size=(32, 32))
    assert hash_folder(tmp_path / "first") == hash_folder(tmp_path / "second")
    assert hash_folder(tmp_path / "first" / "images") != hash_folder(tmp_path / "other" / "images")
    assert hash_folder(tmp_path / "first" / "labels") != hash_folder(tmp_path / "other" / "labels")


def test_a_patient_has_the_same_anatomy_for_every_vendor_and_whoever_else_is_drawn(tmp_path: Path) -> None:
    simulate_dataset(tmp_path / "cart", vendor("cart"), 2, seed=0, size=(32, 32))
    simulate_dataset(tmp_path / "vintage", vendor("vintage"), 1, seed=0, size=(32, 32), first=2)
    masks = sorted((tmp_path / "vintage" / "labels").iterdir())
    assert len(masks) == 4
    for mask in masks:
        assert mask.read_bytes() == (tmp_path / "cart" / "labels" / mask.name).read_bytes()
        frames = [
            sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / v / "images" / mask.name)) for v in ("cart", "vintage")
        ]
        assert not np.array_equal(*frames)


def test_what_an_interrupted_simulation_leaves_is_simulated(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_dataset(tmp_path / "a", vendor("cart"), 2, seed=0, size=(32, 32), progress=stop)
    assert is_simulated(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "simulation.json").read_text())["complete"] is False
    simulate_dataset(tmp_path / "a", vendor("cart"), 2, seed=0, size=(32, 32))
    assert json.loads((tmp_path / "a" / "simulation.json").read_text())["complete"] is True
