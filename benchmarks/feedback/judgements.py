"""Reviewers and reports that say less than a mask does, made from the experts' masks and the published table.

SIMULATED reviewers see the masks of the source model. A grade and a verdict are of one structure: the grade rises at
Dice .5, .7, .8 and .9, and a structure is accepted from .85. A preference is between the mask of the image and that of
the same image in another contrast, structure by structure. An area is of the ventricle in every image; the packs have
no spacing, so a pixel stands for a millimetre. An ejection fraction is the published one of the patient.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.adaptation.ejection_fraction import agreement, patient_fractions, published_fractions
from benchmarks.harness.laboratory import files_of
from benchmarks.harness.packs import data_folder
from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.anatomy.discs import measure_discs
from medfm_rl.data.images import write_image
from medfm_rl.data.layouts import CaseFile
from medfm_rl.feedback import Feedback, FeedbackStore, Grade, Mask, Measurement, Preference, Verdict
from medfm_rl.metrics.overlap import dice
from medfm_rl.types import Case, Geometry, LabelMap, LabelSchema

GRADES, VERDICTS, PREFERENCES, AREAS, FRACTIONS = "grades", "verdicts", "preferences", "areas", "EF"
KNOWLEDGE: Final = (GRADES, VERDICTS, PREFERENCES, AREAS, FRACTIONS)
KINDS: Final = {AREAS: "measurements", FRACTIONS: "measurements"}
"""What `feedback.kinds` calls it, where that has another name."""
VENTRICLE: Final = "LV"
_REVIEWER: Final = "simulated"
_GRADES_FROM: Final = (0.5, 0.7, 0.8, 0.9)
_ACCEPTED_FROM: Final = 0.85
_CONTRAST: Final = 0.6
_SPREAD: Final = 0.05
"""Standard deviation of a reported area, as a share of it."""
_FRACTION_SPREAD: Final = 5.0
"""Standard deviation of a reported ejection fraction, in points."""


_Said = tuple[Sequence[Feedback], Sequence[Mask]]
"""Entries, and the masks that they speak of."""


@dataclass(frozen=True)
class _Seen:
    """An image as a reviewer sees it: with its true mask and a model's."""

    case: Case
    truth: LabelMap
    shown: LabelMap
    about: Mapping[str, Any]


def target_in_millimetres(target: Path, folder: Path) -> Path:
    """The images of a target alone, each pixel a millimetre wide."""
    if not folder.exists():
        begun = folder.with_name(f"{folder.name}-unfinished")
        for file in files_of(target):
            case = file.read()
            geometry = Geometry((1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
            write_image(begun / "images" / f"{file.case_id}.mha", case.image[0], geometry)
        begun.rename(folder)
    return folder


def tell(
    path: Path, knowledge: str, images: Path, target: Path, patients: Sequence[str], model: SegmenterAdapter
) -> str:
    """Fills a store with what is known of some patients; returns its name.

    Args:
        path: Of the store.
        knowledge: One of `KNOWLEDGE`.
        images: The data set that `adapt` will see.
        target: The same with masks.
        patients: Who is spoken of.
        model: Made the masks that are shown.
    """
    truth = {file.case_id: file for file in files_of(target)}
    entries: list[Feedback] = []
    masks: list[Mask] = []
    if knowledge == FRACTIONS:
        entries += _reports(patients)
    else:
        for file in files_of(images):
            if file.patient_id in patients:
                case, labelled = file.read(), truth[file.case_id].read_labelled(model.schema)
                seen = _Seen(case, labelled.ground_truth, model.segment(case), _about(file))
                said, about = _SAID[knowledge](seen, model)
                entries += said
                masks += about
    with FeedbackStore.create(path) as store:
        store.add(entries, masks)
    return str(path)


def _about(file: CaseFile) -> dict[str, Any]:
    return {
        "reviewer": _REVIEWER,
        "patient": file.patient_id,
        "case": file.case_id,
        "image_sha256": file.hash_images(),
        "drawn": "informative",
    }


def _overlaps(mask: LabelMap, truth: LabelMap, schema: LabelSchema) -> dict[str, float]:
    return dict(zip(schema.structures, map(float, dice(mask, truth, schema.classes)), strict=True))


def _grades(seen: _Seen, model: SegmenterAdapter) -> _Said:
    mask = Mask.of(seen.shown, model.schema.class_names, seen.case.geometry)
    return [
        Grade(**seen.about, mask_sha256=mask.sha256, grade=bisect(_GRADES_FROM, value), structure=structure)
        for structure, value in _overlaps(seen.shown, seen.truth, model.schema).items()
    ], [mask]


def _verdicts(seen: _Seen, model: SegmenterAdapter) -> _Said:
    mask = Mask.of(seen.shown, model.schema.class_names, seen.case.geometry)
    return [
        Verdict(
            **seen.about,
            mask_sha256=mask.sha256,
            decision="accept" if value >= _ACCEPTED_FROM else "reject",
            structure=structure,
        )
        for structure, value in _overlaps(seen.shown, seen.truth, model.schema).items()
    ], [mask]


def _preferences(seen: _Seen, model: SegmenterAdapter) -> _Said:
    low, high = float(seen.case.image.min()), float(seen.case.image.max())
    image = low + (high - low) * ((seen.case.image - low) / max(high - low, 1e-6)) ** _CONTRAST
    other = model.segment(replace(seen.case, image=image.astype(np.float32)))
    first, second = (Mask.of(labels, model.schema.class_names, seen.case.geometry) for labels in (seen.shown, other))
    if first.sha256 == second.sha256:
        return [], []
    gains = {
        structure: value - _overlaps(other, seen.truth, model.schema)[structure]
        for structure, value in _overlaps(seen.shown, seen.truth, model.schema).items()
    }
    return [
        Preference(
            **seen.about,
            better_sha256=(first if gain > 0 else second).sha256,
            worse_sha256=(second if gain > 0 else first).sha256,
            structure=structure,
        )
        for structure, gain in gains.items()
        if gain != 0
    ], [first, second]


def _areas(seen: _Seen, model: SegmenterAdapter) -> _Said:
    area = float((seen.truth == model.schema.index_of(VENTRICLE)).sum())
    said = Measurement(
        **seen.about, name="area", value=area, unit="mm2", uncertainty=_SPREAD * area, structure=VENTRICLE
    )
    return [said], []


_SAID: Final[Mapping[str, Callable[[_Seen, SegmenterAdapter], _Said]]] = {
    GRADES: _grades,
    VERDICTS: _verdicts,
    PREFERENCES: _preferences,
    AREAS: _areas,
}


def _reports(patients: Sequence[str]) -> list[Feedback]:
    published = published_fractions(data_folder() / "camus_patients_info.csv")
    return [
        Measurement(
            reviewer=_REVIEWER,
            patient=patient,
            name="EF",
            value=published[patient],
            unit="%",
            uncertainty=_FRACTION_SPREAD,
        )
        for patient in patients
    ]


def ventricle_errors(
    segment: Callable[[Case], LabelMap], files: Sequence[CaseFile], schema: LabelSchema
) -> dict[str, tuple[float, ...]]:
    """How wrong the ventricle is on held-out cases.

    Returns:
        `area`: by case, |area - true area| over the true one. `EF`: mean absolute difference to the published ejection
        fraction in points, one number.
    """
    index = schema.index_of(VENTRICLE)
    areas, discs = [], []
    for file in files:
        labelled = file.read_labelled(schema)
        mask, truth = segment(labelled.case) == index, labelled.ground_truth == index
        areas.append(abs(float(mask.sum()) - float(truth.sum())) / float(truth.sum()))
        discs.append(measure_discs(mask))
    fractions = patient_fractions([file.case_id for file in files], discs)
    published = published_fractions(data_folder() / "camus_patients_info.csv")
    return {"area": tuple(round(value, 4) for value in areas), "EF": (agreement(fractions, published).mae,)}
