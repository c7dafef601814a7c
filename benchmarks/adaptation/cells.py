"""The cells of the adaptation benchmark: scores by case, on disk and back, and how two of them compare."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.harness.laboratory import files_of
from benchmarks.harness.shifts import Shift
from medfm_rl.anatomy.discs import Discs, measure_discs
from medfm_rl.anatomy.profiles import Anatomy, load_anatomy
from medfm_rl.correction.acceptance import HARM
from medfm_rl.data.files import write_json
from medfm_rl.data.layouts import CaseFile
from medfm_rl.metrics.bootstrap import PairedDifference, paired_bootstrap
from medfm_rl.metrics.scores import MEAN, score_case
from medfm_rl.types import Case, LabelMap, LabelSchema

NONE, OURS, SOURCE_FREE, UPPER = "none", "ours", "ours-source-free", "upper"


@dataclass(frozen=True)
class Scores:
    """A method's results on some cases, one entry per case in every list.

    Attributes:
        case_ids: Sorted.
        patient_ids: Of the cases.
        dice: By structure and for their mean, in [0, 1].
        hd95: By structure and for their mean, in pixels; NaN where it is not defined.
        valid: Whether the mask obeys the anatomy rules.
        disks: The left ventricle, for the ejection fraction; empty where there is none in the anatomy.
    """

    case_ids: tuple[str, ...]
    patient_ids: tuple[str, ...]
    dice: Mapping[str, Sequence[float]]
    hd95: Mapping[str, Sequence[float]]
    valid: tuple[bool, ...]
    disks: tuple[Discs | None, ...]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Scores:
        return cls(
            tuple(content["case_ids"]),
            tuple(content["patient_ids"]),
            content["dice"],
            {
                name: [float("nan") if value is None else value for value in values]
                for name, values in content["hd95"].items()
            },
            tuple(content["valid"]),
            tuple(None if item is None else Discs(item[0], tuple(item[1])) for item in content["disks"]),
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "case_ids": self.case_ids,
            "patient_ids": self.patient_ids,
            "dice": self.dice,
            "hd95": {
                name: [value if np.isfinite(value) else None for value in values] for name, values in self.hd95.items()
            },
            "valid": self.valid,
            "disks": [None if item is None else [item.length, item.diameters] for item in self.disks],
        }

    @property
    def mean_dice(self) -> npt.NDArray[np.floating]:
        return np.asarray(self.dice[MEAN])


def measure(
    segment: Callable[[Case], LabelMap], files: Sequence[CaseFile], anatomy: Anatomy, with_disks: bool
) -> Scores:
    """Segments labelled cases and scores them."""
    overlaps: dict[str, list[float]] = {}
    distances: dict[str, list[float]] = {}
    valid, disks = [], []
    for file in files:
        labelled = file.read_labelled(anatomy.schema)
        prediction = segment(labelled.case)
        rows = score_case(labelled.case, prediction, labelled.ground_truth, anatomy.schema, anatomy)
        for row in rows:
            overlaps.setdefault(row.structure, []).append(row.dice)
            distances.setdefault(row.structure, []).append(row.hd95)
        valid.append(rows[0].valid)
        if with_disks:
            disks.append(measure_discs(prediction == anatomy.schema.index_of("LV")))
    return Scores(
        tuple(file.case_id for file in files),
        tuple(file.patient_id for file in files),
        overlaps,
        distances,
        tuple(valid),
        tuple(disks),
    )


def harm_rate(before: Scores, after: Scores) -> float:
    """Share of cases that lost more than one Dice point.

    Raises:
        ValueError: The two were measured on other cases.
    """
    if before.case_ids != after.case_ids:
        raise ValueError("the two methods were measured on other cases")
    return float((after.mean_dice < before.mean_dice - HARM).mean())


@dataclass(frozen=True)
class Cell:
    """A complete cell, as it was written."""

    held_out: Scores
    source_held_out: Scores
    harm_rate: float
    wall_seconds: float
    selection: Mapping[str, Any] | None
    commit: str


Cells = Mapping[str, Mapping[str, Mapping[int, Cell]]]
"""By shift, method and seed; what is not complete is not in it."""


def cell_file(runs: Path, shift: str, method: str, seed: int) -> Path:
    return runs / "cells" / shift / method / f"seed-{seed}" / "cell.json"


def read_cell(path: Path) -> Cell:
    content = json.loads(path.read_text())
    return Cell(
        Scores.from_json(content["held_out"]),
        Scores.from_json(content["source_held_out"]),
        float(content["harm_rate"]),
        float(content["wall_seconds"]),
        content["selection"],
        content["environment"]["commit"],
    )


def read_cells(runs: Path, shifts: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> Cells:
    """The complete cells of a benchmark."""
    return {
        shift: {
            method: {seed: read_cell(path) for seed in seeds if (path := cell_file(runs, shift, method, seed)).exists()}
            for method in methods
        }
        for shift in shifts
    }


def difference(before: Mapping[int, Cell], after: Mapping[int, Cell]) -> PairedDifference | None:
    """Difference of mean Dice on held-out target patients over the seeds that both have; None where they share none."""
    seeds = sorted(before.keys() & after.keys())
    if not seeds:
        return None
    first = before[seeds[0]].held_out
    for seed in seeds:
        if {before[seed].held_out.case_ids, after[seed].held_out.case_ids} != {first.case_ids}:
            raise ValueError("the cells were measured on other cases")
    over_seeds = [np.mean([cells[seed].held_out.mean_dice for seed in seeds], axis=0) for cells in (before, after)]
    return paired_bootstrap(over_seeds[0], over_seeds[1], first.patient_ids)


def gap_recovered(method: Mapping[int, Cell], none: Mapping[int, Cell], upper: Mapping[int, Cell]) -> float | None:
    """(method - none) / (upper - none), over the seeds that all three have; None where the upper bound is not above."""
    seeds = method.keys() & none.keys() & upper.keys()
    if not seeds:
        return None
    ours, below, above = (
        float(np.mean([cells[seed].held_out.mean_dice.mean() for seed in seeds])) for cells in (method, none, upper)
    )
    return (ours - below) / (above - below) if above > below else None


def write_experts(shift: Shift, runs: Path) -> None:
    """Keeps what a method would score that gives the experts' masks back: the floor of ejection fraction errors."""
    path = runs / "experts" / f"{shift.name}.json"
    if path.exists() or not shift.is_echo:
        return
    schema = LabelSchema.from_structures(shift.structures)
    files = files_of(shift.folders.held_out)
    masks = {file.case_id: file.read_labelled(schema).ground_truth for file in files}
    scores = measure(lambda case: masks[case.case_id], files, load_anatomy(shift.anatomy, schema), True)
    write_json(path, scores.to_json())


def read_experts(shift: str, runs: Path) -> Scores | None:
    path = runs / "experts" / f"{shift}.json"
    return Scores.from_json(json.loads(path.read_text())) if path.exists() else None
