from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.harness import packs
from benchmarks.harness.shifts import NO_SHIFT, SHIFTS, TITLES, Shift, prepare, split_patients
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.data.layouts import find_cases, is_simulated
from medfm_rl.settings import DataSettings
from medfm_rl.types import LabelSchema

WHOLE = ("camus-4ch-2ch", "camus-quality", "lungs-hospital", "fundus-cameras", "acdc-sunnybrook", NO_SHIFT)
PARTS = ("source", "source_held_out", "target", "held_out")


def fan(size: int = 48) -> np.ndarray:
    """A bright sector on black with its apex up, as an echo frame shows it."""
    rows, columns = np.mgrid[:size, :size] + 0.5
    columns = columns - size / 2
    inside = (np.abs(np.arctan2(columns, rows)) < 0.6) & (np.hypot(rows, columns) < 0.95 * size)
    return np.where(inside, np.random.default_rng(0).integers(40, 255, (size, size)), 0).astype(np.uint8)


@pytest.fixture(scope="module")
def pack_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packs with the keys and names of the real ones: 250 patients of echo and 268 chest X-rays, of a few pixels."""
    folder = tmp_path_factory.mktemp("packs")
    grades = ["Good"] * 116 + ["Medium"] * 106 + ["Poor"] * 28
    frames = [
        (f"patient{number + 1:04d}_{view}_{phase}", view, phase, grades[number])
        for number in range(250)
        for view in ("2CH", "4CH")
        for phase in ("ED", "ES")
    ]
    np.savez(
        folder / "camus224_train250.npz",
        name=[frame[0] for frame in frames],
        view=[frame[1] for frame in frames],
        phase=[frame[2] for frame in frames],
        quality2ch=[frame[3] for frame in frames],
        image=np.broadcast_to(fan(), (1000, 48, 48)),
        label=np.broadcast_to((fan() > 200).astype(np.uint8), (1000, 48, 48)),
    )
    sites = ["shenzhen"] * 200 + ["montgomery"] * 68
    names = [f"CHNCXR_{i:04d}_{i % 2}.png" for i in range(200)] + [f"MCUCXR_{i:04d}_{i % 2}.png" for i in range(68)]
    np.savez(
        folder / "lung256_dev.npz",
        name=names,
        site=sites,
        image=np.random.default_rng(0).integers(0, 255, (268, 8, 8), dtype=np.uint8),
        label=np.ones((268, 8, 8), np.uint8),
    )
    disc = np.zeros((12, 12), np.uint8)
    disc[2:10, 2:10], disc[4:8, 4:8] = 1, 2
    for site, prefix, count in (("refuge150", "g", 150), ("drishti60", "gdrishtiGS_", 60)):
        cases = [{"id": f"{prefix}{number:04d}"} for number in range(count)]
        np.savez(
            folder / f"fundus_{site}.npz",
            meta=json.dumps({"cases": cases}),
            img=np.broadcast_to(disc[..., None] * 60, (count, 12, 12, 3)),
            lab=np.broadcast_to(disc, (count, 12, 12)),
        )
    heart = np.zeros((3, 12, 8), np.uint8)
    heart[1:, 4:8, 2:6] = 3
    volumes = {
        f"p{number:03d}_{frame}_{part}": heart * (40 if part == "img" else 1)
        for number in range(50)
        for frame in ("f01", "f12")
        for part in ("img", "lab")
    }
    np.savez(folder / "acdc50.npz", meta="{}", **volumes)
    patients = ["SC-N-06", "SC-HF-NI-13", *(f"SC-HF-I-{number:02d}" for number in range(23))]
    slices = {
        f"{patient}_{part}": values
        for patient in patients
        for part, values in (
            ("img", np.broadcast_to(disc * 60, (2, 12, 12))),
            ("lab", np.broadcast_to(disc > 0, (2, 12, 12)).astype(np.uint8)),
            ("im", np.array([8, 20], np.int16)),
        )
    }
    np.savez(folder / "sunnybrook25.npz", meta="{}", **slices)
    return folder


@pytest.fixture
def small_packs(pack_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDFM_RL_DATA", str(pack_folder))
    return pack_folder


@pytest.fixture(scope="module")
def whole(pack_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shift]:
    """The shifts that need no simulation; with all their patients, but for the largest, which would take long."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDFM_RL_DATA", str(pack_folder))
        return {name: prepare(name, root, 25 if name == NO_SHIFT else None) for name in WHOLE}


def cases_of(shift: Shift) -> dict[str, set[str]]:
    return {
        part: {case.case_id for case in find_cases(DataSettings(path=getattr(shift.folders, part)))} for part in PARTS
    }


def patients_of(shift: Shift) -> dict[str, set[str]]:
    return {
        part: {case.patient_id for case in find_cases(DataSettings(path=getattr(shift.folders, part)))}
        for part in PARTS
    }


@pytest.mark.parametrize("name", WHOLE)
def test_no_patient_is_in_two_parts(whole: dict[str, Shift], name: str) -> None:
    parts = patients_of(whole[name])
    for first, second in combinations(PARTS, 2):
        assert not parts[first] & parts[second], (first, second)


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("camus-4ch-2ch", (180, 40, 160, 120)),
        ("camus-quality", (182, 50, 148, 120)),
        ("lungs-hospital", (160, 40, 32, 36)),
        ("fundus-cameras", (120, 30, 30, 30)),
        # Two slices of each of two frames show the ventricle; two slices of each patient are outlined.
        ("acdc-sunnybrook", (160, 40, 24, 22)),
        (NO_SHIFT, (100, 100, 100, 100)),
    ],
)
def test_sizes_are_those_of_the_table(whole: dict[str, Shift], name: str, images: tuple[int, int, int, int]) -> None:
    found = cases_of(whole[name])
    assert tuple(len(found[part]) for part in PARTS) == images


def test_the_view_changes_from_four_to_two_chambers(whole: dict[str, Shift]) -> None:
    cases = cases_of(whole["camus-4ch-2ch"])
    assert all("_4CH_" in case for case in cases["source"] | cases["source_held_out"])
    assert all("_2CH_" in case for case in cases["target"] | cases["held_out"])


def test_image_quality_falls_from_good_to_medium_and_poor(small_packs: Path, whole: dict[str, Shift]) -> None:
    shift = whole["camus-quality"]
    grades, patients = packs.camus_qualities(), patients_of(shift)
    assert all("_2CH_" in case for part in cases_of(shift).values() for case in part)
    assert {grades[name] for name in patients["source"] | patients["source_held_out"]} == {"Good"}
    for part in ("target", "held_out"):
        found = [grades[name] for name in patients[part]]
        assert set(found) == {"Medium", "Poor"}
        # 28 of the 134 patients are graded Poor: each part has its share.
        assert found.count("Poor") / len(found) == pytest.approx(28 / 134, abs=0.02)


def test_lungs_come_from_one_hospital_each_and_every_image_is_a_patient(whole: dict[str, Shift]) -> None:
    shift = whole["lungs-hospital"]
    patients, cases = patients_of(shift), cases_of(shift)
    assert all(name.startswith("CHNCXR") for name in patients["source"] | patients["source_held_out"])
    assert all(name.startswith("MCUCXR") for name in patients["target"] | patients["held_out"])
    assert all(len(patients[part]) == len(cases[part]) for part in PARTS)


def test_slices_of_acdc_are_square_and_show_the_ventricle_alone(whole: dict[str, Shift]) -> None:
    shift = whole["acdc-sunnybrook"]
    schema = LabelSchema.from_structures(shift.structures)
    labelled = find_cases(DataSettings(path=shift.folders.source))[0].read_labelled(schema)
    assert labelled.case.shape == (12, 12)
    assert labelled.ground_truth.sum() == 16
    assert not {"SC-N-06", "SC-HF-NI-13"} & (patients_of(shift)["target"] | patients_of(shift)["held_out"])


def test_fundus_images_are_in_colour(whole: dict[str, Shift]) -> None:
    shift = whole["fundus-cameras"]
    assert shift.channels == 3
    assert find_cases(DataSettings(path=shift.folders.target))[0].read().image.shape == (3, 12, 12)


def test_handheld_images_are_simulated_from_the_frames_of_no_shift(small_packs: Path, tmp_path: Path) -> None:
    handheld, still = (prepare(name, tmp_path / "data", 2) for name in ("camus-handheld", NO_SHIFT))
    assert handheld.simulated
    assert is_simulated(handheld.folders.target)
    assert is_simulated(handheld.folders.held_out)
    assert not is_simulated(still.folders.target)
    assert not still.simulated
    assert handheld.folders.source == still.folders.source
    assert cases_of(handheld) == cases_of(still)
    one = next(iter(sorted((still.folders.target / "images").iterdir())))
    assert one.read_bytes() != (handheld.folders.target / "images" / one.name).read_bytes()
    assert (still.folders.target / "labels" / one.name).read_bytes() == (
        handheld.folders.target / "labels" / one.name
    ).read_bytes()


def test_a_second_call_writes_nothing(small_packs: Path, tmp_path: Path) -> None:
    first = prepare("camus-4ch-2ch", tmp_path / "data", 3)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")}
    assert prepare("camus-4ch-2ch", tmp_path / "data", 3) == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*")} == before


def test_a_folder_with_other_patients_is_refused(small_packs: Path, tmp_path: Path) -> None:
    prepare("lungs-hospital", tmp_path / "data", 3)
    with pytest.raises(SystemExit, match="lungs-source: holds other patients"):
        prepare("lungs-hospital", tmp_path / "data", 4)


def test_an_interrupted_folder_is_completed(small_packs: Path, tmp_path: Path) -> None:
    folder = prepare("lungs-hospital", tmp_path / "data", 4).folders.target
    (folder / "complete.json").unlink()
    next((folder / "images").iterdir()).unlink()
    prepare("lungs-hospital", tmp_path / "data", 4)
    cases = find_cases(DataSettings(path=folder))
    assert len(cases) == 4
    assert all(case.label_path is not None for case in cases)


def test_every_shift_has_a_title_and_rules_that_fit_its_structures(small_packs: Path, tmp_path: Path) -> None:
    assert set(TITLES) == set(SHIFTS)
    for name in SHIFTS:
        shift = prepare(name, tmp_path / "data", 2)
        assert (shift.name, shift.title) == (name, TITLES[name])
        schema = LabelSchema.from_structures(shift.structures)
        load_anatomy(shift.anatomy, schema)
        find_cases(DataSettings(path=shift.folders.held_out))[0].read_labelled(schema)


def test_slices_of_patients_are_still_those_of_the_sorted_list(small_packs: Path, tmp_path: Path) -> None:
    folder = packs.write_camus(list(packs.camus_qualities())[248:250], tmp_path / "last")
    assert {case.patient_id for case in find_cases(DataSettings(path=folder))} == {"patient0249", "patient0250"}


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 8), min_size=1, max_size=4), st.integers(0, 3))
def test_parts_are_disjoint_of_the_wanted_size_and_do_not_depend_on_the_order(sizes: list[int], spare: int) -> None:
    patients = [f"p{number:02d}" for number in range(sum(sizes) + spare)]
    wanted = {f"part{number}": size for number, size in enumerate(sizes)}
    parts = split_patients(patients, wanted, "key")
    assert {name: len(part) for name, part in parts.items()} == wanted
    drawn = [patient for part in parts.values() for patient in part]
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(patients)
    assert split_patients(patients[::-1], wanted, "key") == parts


def test_another_key_draws_other_patients() -> None:
    patients = [f"p{number}" for number in range(40)]
    assert split_patients(patients, {"a": 20}, "one") != split_patients(patients, {"a": 20}, "two")


def test_a_split_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(ValueError, match="5 patients are asked for, there are 4"):
        split_patients(["a", "b", "c", "d"], {"x": 2, "y": 3}, "key")
    with pytest.raises(ValueError, match="named twice"):
        split_patients(["a", "a"], {"x": 1}, "key")


@pytest.mark.data
@pytest.mark.parametrize("name", WHOLE)
def test_the_real_packs_have_enough_patients_for_every_part(real_data: Path, tmp_path: Path, name: str) -> None:
    parts = patients_of(prepare(name, tmp_path, 2))
    assert all(len(patients) == 2 for patients in parts.values())
