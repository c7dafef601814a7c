"""The shifts that adaptation is measured on, each as folders of images and masks, split by patient.

| shift | labelled source | source held out | target (unlabelled) | target held out |
|---|---|---|---|---|
| camus-handheld (simulated) | 100 patients, 400 frames | 30, 120 | 60, 240 | 60, 240 |
| camus-4ch-2ch | 90 patients, 180 frames of 4CH | 20, 40 | 80 others, 160 frames of 2CH | 60, 120 |
| camus-quality | 91 patients, 182 frames of 2CH graded Good | 25, 50 | 74, 148 graded Medium or Poor | 60, 120 |
| lungs-hospital | 160 of Shenzhen | 40 | 32 of Montgomery | 36 |
| fundus-cameras | 120 of REFUGE, in colour | 30 | 30 of Drishti-GS | 30 |
| acdc-sunnybrook | 40 patients, about 720 slices of ACDC | 10, 190 | 12 of Sunnybrook, about 220 slices | 11, 200 |
| no-shift | as in camus-handheld | as there | the target patients of camus-handheld, not simulated | likewise |

What decides about intervals is the number of held-out target patients, and what decides about cost is the number of
images to learn from. So 60 patients are held out wherever there are enough: with the spread of the gain seen on CAMUS
(standard deviation by patient about 0.05 against no adaptation, less than half of that between two adapted models) the
95 % interval of a difference between methods is about 0.006 wide to either side. Montgomery has 68 patients in all.

The splits are the same for every seed, so that seeds can be averaged case by case. Nothing written here may be
published: the data allow research use only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.packs import (
    acdc_patients,
    camus_qualities,
    fundus_cases,
    lung_patients,
    sunnybrook_patients,
    write_acdc,
    write_camus,
    write_fundus,
    write_lungs,
    write_sunnybrook,
)
from medfm_rl.data.layouts import SIMULATION_RECORD, find_cases
from medfm_rl.data.ultrasound.resimulate import resimulate_dataset
from medfm_rl.data.ultrasound.vendors import vendor
from medfm_rl.seeding import numpy_generator
from medfm_rl.settings import DataSettings

SOURCE, SOURCE_HELD_OUT, TARGET, HELD_OUT = "source", "source-held-out", "target", "held-out"
ECHO = {"LV": 1, "MYO": 2, "LA": 3}
HANDHELD, LUNGS, NO_SHIFT = "camus-handheld", "lungs-hospital", "no-shift"
FUNDUS, VENTRICLE = "fundus-cameras", "acdc-sunnybrook"


@dataclass(frozen=True)
class Folders:
    """Where the parts of a shift lie.

    Attributes:
        source: Labelled images that the source model learns from.
        source_held_out: Labelled images of other source patients.
        target: Images to adapt to. Their masks are for the upper bound alone.
        held_out: Labelled images of other target patients, on which every method is measured.
    """

    source: Path
    source_held_out: Path
    target: Path
    held_out: Path


@dataclass(frozen=True)
class Shift:
    """A change between labelled and unlabelled data.

    Attributes:
        name: Key in results and folders.
        title: For tables and figures.
        simulated: Whether the target images were made by a simulation.
        anatomy: Profile of the validity rules.
        structures: With their integers in the masks.
        folders: Where the images lie.
        channels: Of an image: 1 where it is grey, 3 where it is in colour.
    """

    name: str
    title: str
    simulated: bool
    anatomy: str
    structures: Mapping[str, int]
    folders: Folders
    channels: int = 1

    @property
    def is_echo(self) -> bool:
        return self.anatomy == "echo_apical"


def split_patients(patients: Sequence[str], sizes: Mapping[str, int], key: str) -> dict[str, list[str]]:
    """Draws disjoint parts of a list of patients.

    Args:
        patients: All of them; their order does not matter.
        sizes: How many go into each part.
        key: Names the draw: the same key and patients give the same parts.

    Raises:
        ValueError: A patient is named twice, or there are too few.
    """
    if len(set(patients)) != len(patients):
        raise ValueError("a patient is named twice")
    if sum(sizes.values()) > len(patients):
        raise ValueError(f"{sum(sizes.values())} patients are asked for, there are {len(patients)}")
    shuffled = [str(name) for name in numpy_generator(0, "split", key).permutation(sorted(patients))]
    parts, first = {}, 0
    for name, size in sizes.items():
        parts[name] = sorted(shuffled[first : first + size])
        first += size
    return parts


def prepare(name: str, root: Path, most_patients: int | None = None) -> Shift:
    """Writes the images of a shift below `root`, where they are not there yet.

    Args:
        name: Of the shift.
        root: Folder of the images; shifts share what they have in common.
        most_patients: Cuts every part to that many patients, for trials.
    """
    written = SHIFTS[name](root, most_patients)
    folders = Folders(written[SOURCE], written[SOURCE_HELD_OUT], written[TARGET], written[HELD_OUT])
    anatomy, structures = _SHOWN.get(name, ("echo_apical", ECHO))
    channels = 3 if name == FUNDUS else 1
    return Shift(name, TITLES[name], is_simulated(name), anatomy, structures, folders, channels)


def is_simulated(name: str) -> bool:
    """Whether a simulation made the target images of a shift."""
    return name == HANDHELD


def _handheld(root: Path, most_patients: int | None) -> dict[str, Path]:
    written = _no_shift(root, most_patients)
    for part in (TARGET, HELD_OUT):
        simulated = written[part].with_name(f"{written[part].name}-handheld")
        if not _is_simulated_whole(simulated):
            resimulate_dataset(find_cases(DataSettings(path=written[part])), simulated, vendor("handheld"), seed=0)
        written[part] = simulated
    return written


def _no_shift(root: Path, most_patients: int | None) -> dict[str, Path]:
    sizes = {SOURCE: 100, SOURCE_HELD_OUT: 30, TARGET: 60, HELD_OUT: 60}
    parts = _cut(split_patients(list(camus_qualities()), sizes, "camus"), most_patients)
    return {part: write_camus(patients, root / f"camus-{part}") for part, patients in parts.items()}


def _view(root: Path, most_patients: int | None) -> dict[str, Path]:
    sizes = {SOURCE: 90, SOURCE_HELD_OUT: 20, TARGET: 80, HELD_OUT: 60}
    parts = _cut(split_patients(list(camus_qualities()), sizes, "view"), most_patients)
    views = {SOURCE: "4CH", SOURCE_HELD_OUT: "4CH", TARGET: "2CH", HELD_OUT: "2CH"}
    return {part: write_camus(parts[part], root / f"view-{part}", (views[part],)) for part in parts}


def _quality(root: Path, most_patients: int | None) -> dict[str, Path]:
    grades = camus_qualities()
    # Grade by grade, so that target and held-out patients have the same share of poor images.
    sizes = {
        "Good": {SOURCE: 91, SOURCE_HELD_OUT: 25},
        "Medium": {TARGET: 59, HELD_OUT: 47},
        "Poor": {TARGET: 15, HELD_OUT: 13},
    }
    parts: dict[str, list[str]] = {}
    for grade, wanted in sizes.items():
        of_grade = [patient for patient, found in grades.items() if found == grade]
        for part, patients in split_patients(of_grade, wanted, f"quality/{grade}").items():
            parts.setdefault(part, []).extend(patients)
    cut = _cut(parts, most_patients)
    return {part: write_camus(cut[part], root / f"quality-{part}", ("2CH",)) for part in cut}


def _hospital(root: Path, most_patients: int | None) -> dict[str, Path]:
    parts = split_patients(lung_patients("shenzhen"), {SOURCE: 160, SOURCE_HELD_OUT: 40}, "shenzhen")
    parts |= split_patients(lung_patients("montgomery"), {TARGET: 32, HELD_OUT: 36}, "montgomery")
    cut = _cut(parts, most_patients)
    return {part: write_lungs(cut[part], root / f"lungs-{part}") for part in cut}


def _cameras(root: Path, most_patients: int | None) -> dict[str, Path]:
    parts = split_patients(fundus_cases("refuge150"), {SOURCE: 120, SOURCE_HELD_OUT: 30}, "refuge")
    of_source = set(parts)
    parts |= split_patients(fundus_cases("drishti60"), {TARGET: 30, HELD_OUT: 30}, "drishti")
    cut = _cut(parts, most_patients)
    return {
        part: write_fundus(cut[part], "refuge150" if part in of_source else "drishti60", root / f"fundus-{part}")
        for part in cut
    }


def _scanners(root: Path, most_patients: int | None) -> dict[str, Path]:
    parts = _cut(ventricle_patients(), most_patients)
    write = {SOURCE: write_acdc, SOURCE_HELD_OUT: write_acdc, TARGET: write_sunnybrook, HELD_OUT: write_sunnybrook}
    return {part: write[part](patients, root / f"ventricle-{part}") for part, patients in parts.items()}


def ventricle_patients() -> dict[str, list[str]]:
    """The patients of each part of acdc-sunnybrook: the source is ACDC, the target Sunnybrook."""
    parts = split_patients(acdc_patients(), {SOURCE: 40, SOURCE_HELD_OUT: 10}, "acdc")
    return parts | split_patients(sunnybrook_patients(), {TARGET: 12, HELD_OUT: 11}, "sunnybrook")


SHIFTS: dict[str, Callable[[Path, int | None], dict[str, Path]]] = {
    HANDHELD: _handheld,
    "camus-4ch-2ch": _view,
    "camus-quality": _quality,
    LUNGS: _hospital,
    FUNDUS: _cameras,
    VENTRICLE: _scanners,
    NO_SHIFT: _no_shift,
}
"""Functions that write the parts of a shift and return their folders."""
TITLES = {
    HANDHELD: "CAMUS to simulated handheld",
    "camus-4ch-2ch": "CAMUS 4CH to 2CH",
    "camus-quality": "CAMUS 2CH Good to Medium and Poor",
    LUNGS: "Lungs Shenzhen to Montgomery",
    FUNDUS: "Fundus REFUGE to Drishti-GS",
    VENTRICLE: "Cardiac MR ACDC to Sunnybrook",
    NO_SHIFT: "CAMUS to CAMUS (no shift)",
}
_SHOWN: Mapping[str, tuple[str, Mapping[str, int]]] = {
    LUNGS: ("lungs", {"lung": 1}),
    FUNDUS: ("optic_disc", {"rim": 1, "cup": 2}),
    VENTRICLE: ("complete", {"LV": 1}),
}
"""Anatomy profile and structures of what is no echo."""


def _cut(parts: dict[str, list[str]], most_patients: int | None) -> dict[str, list[str]]:
    return {part: patients[:most_patients] for part, patients in parts.items()}


def _is_simulated_whole(folder: Path) -> bool:
    record = folder / SIMULATION_RECORD
    return record.exists() and bool(json.loads(record.read_text())["complete"])
