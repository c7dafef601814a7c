"""From the values of reports to goals of single images on the grid of the networks."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from medfm_rl.adapters import Sample, SegmenterAdapter
from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import DataError
from medfm_rl.feedback.units import QUANTITIES
from medfm_rl.reward.measurements import USUAL_UNCERTAINTY, Goal, SizeGoal, fraction_goals
from medfm_rl.reward.score import pixels_in
from medfm_rl.runs.learned_feedback import Reported
from medfm_rl.structures import pixels_of
from medfm_rl.types import Case, LabelSchema

_LOG = logging.getLogger(__name__)
_FRACTION: Final = "EF"
SIZES: Final = {"area": (2, 1.0), "volume": (3, 1000.0)}
"""By quantity, the dimensions of the images that it is of, and how many mm^2 or mm^3 its unit has."""
_MOST_NAMED: Final = 5
"""Patients that a message names."""


def goals_of_cases(
    reported: Sequence[Reported], files: Sequence[CaseFile], policy: SegmenterAdapter
) -> dict[str, list[Goal]]:
    """What reports say of each case, by its name.

    An ejection fraction is of the two frames of a view: cases of one patient whose names differ after the last
    underscore alone, such as p01_2CH_ED and p01_2CH_ES. Areas are of 2-D cases and volumes of 3-D ones; what is larger
    than a patch of the network says nothing of one patch, and is left out.

    Args:
        reported: Values of reports.
        files: The cases of the target that the policy learns on.
        policy: The source policy; its masks tell how many pixels of its grid a mm^2 or mm^3 has, and what fraction is
            ejected before anything is learned.

    Raises:
        DataError: A structure is not named and not implied.
    """
    goals: dict[str, list[Goal]] = {}
    unused: dict[str, list[str]] = {}
    by_patient: dict[str, list[CaseFile]] = {}
    for file in files:
        by_patient.setdefault(file.patient_id, []).append(file)
    compared = [value for value in reported if value.patient_id not in by_patient]
    if compared:
        _LOG.info(
            "feedback: %d of %d values of reports teach nothing: they are of patients on whose images candidates are "
            "compared, or whose masks teach (%s)",
            len(compared),
            len(reported),
            some_of([value.patient_id for value in compared]),
        )
    for value in reported:
        if value.patient_id not in by_patient:
            continue
        cases = [file for file in by_patient[value.patient_id] if value.case_id in (None, file.case_id)]
        if value.name == _FRACTION:
            found = _of_fraction(value, cases, policy)
        elif value.name in SIZES and value.case_id is not None:
            found = _of_size(value, cases, policy)
        else:
            found = {}
        if not found:
            unused.setdefault(value.name, []).append(value.patient_id)
        for case_id, goal in found.items():
            goals.setdefault(case_id, []).append(goal)
    if unused:
        listed = " and ".join(f"{len(names)} values of {name} ({some_of(names)})" for name, names in unused.items())
        _LOG.warning(
            "feedback: %s teach nothing: EF needs two frames of a view, named alike up to the last underscore, "
            "in which the segmenter finds the ventricle; area and volume the name of the case and a spacing in mm; "
            "each an image that fits into one patch; other quantities are kept in the store alone",
            listed,
        )
    return goals


def some_of(patients: Sequence[str]) -> str:
    """Names of patients for a message, each once, a few of them."""
    names = sorted(set(patients))
    more = [f"{len(names) - _MOST_NAMED} more"] if len(names) > _MOST_NAMED else []
    return ", ".join([*names[:_MOST_NAMED], *more])


def _of_fraction(value: Reported, cases: Sequence[CaseFile], policy: SegmenterAdapter) -> Mapping[str, Goal]:
    views: dict[str, list[CaseFile]] = {}
    for file in cases:
        views.setdefault(file.case_id.rpartition("_")[0], []).append(file)
    ventricle = _structure(value, policy.schema)
    goals: dict[str, Goal] = {}
    for frames in views.values():
        if len(frames) != 2:
            continue
        found = {file.case_id: _segmented(file.read(), policy) for file in frames}
        masks = {name: own.action for name, own in found.items() if own is not None}
        if len(masks) == 2:
            goals |= fraction_goals(masks, ventricle, value.value, value.uncertainty)
    return goals


def _of_size(value: Reported, cases: Sequence[CaseFile], policy: SegmenterAdapter) -> Mapping[str, Goal]:
    dimensions, factor = SIZES[value.name]
    classes = _structure(value, policy.schema)
    goals: dict[str, Goal] = {}
    for file in cases:
        case = file.read()
        spacing = case.geometry.spacing
        found = None if len(case.shape) != dimensions or spacing is None else _segmented(case, policy)
        if found is None or spacing is None:
            continue
        pixels = int(pixels_in(found.action, classes).sum())
        native = int(pixels_of(policy.restore(found.logits, found.sample), classes).sum())
        if pixels == 0 or native == 0:
            continue
        pixel_size = math.prod(spacing) / factor * native / pixels
        uncertainty = USUAL_UNCERTAINTY * value.value if value.uncertainty is None else value.uncertainty
        goals[file.case_id] = SizeGoal(classes, value.value / pixel_size, uncertainty / pixel_size)
    return goals


@dataclass(frozen=True, eq=False)
class _Segmented:
    """An image with what the source policy makes of it: logits `(K, *S)` and action `(*S)`."""

    sample: Sample
    logits: Tensor
    action: Tensor


@torch.no_grad()
def _segmented(case: Case, policy: SegmenterAdapter) -> _Segmented | None:
    """None for an image that is larger than a patch: the report is of all of it, and a reward of one patch."""
    sample = policy.preprocess(case)
    if tuple(sample.image.shape[1:]) != policy.patch_size:
        return None
    logits = policy(sample.image[None].to(next(policy.parameters()).device))[0].cpu()
    return _Segmented(sample, logits, logits.argmax(dim=0))


def measured_structure(quantity: str, named: str | None, schema: LabelSchema) -> str | None:
    """The structure of a segmenter that a value is of; None where it has none such, or nobody says which it is."""
    sole = schema.structures[0] if len(schema.structures) == 1 else None
    found = named or QUANTITIES[quantity].structure or sole
    return found if found in schema.structures else None


def _structure(value: Reported, schema: LabelSchema) -> tuple[int, ...]:
    name = measured_structure(value.name, value.structure, schema)
    if name is None:
        raise DataError(
            f"feedback: a value of {value.name} is of the structure {value.structure or '(none named)'}, and the "
            f"segmenter has {', '.join(schema.structures)}; name one of these in the table, or leave measurements out "
            "of feedback.kinds"
        )
    return schema.classes_of(name)
