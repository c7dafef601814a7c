"""Who each image shows, by its name: groups, doubts about them, and splits that keep patients whole."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

import numpy as np

from medfm_rl.errors import DataError

_SHOWN = 3
_WORDS = re.compile(r"[^\W_]+")
_LETTERS_OR_DIGITS = re.compile(r"\d+|[^\W\d_]+")


class _OfPatient(Protocol):
    @property
    def patient_id(self) -> str: ...


T = TypeVar("T", bound=_OfPatient)
BY_NAME = "the name up to the first underscore"
"""The rule of `patient_of`, in words."""


def patient_of(name: str) -> str:
    """The patient that a case name begins with, where nothing else tells: up to the first underscore."""
    return name.split("_")[0]


def name_patients(patients: Sequence[str], images: Sequence[str] = ()) -> str:
    """Which patients were found, the first with their images, and the setting that says who is who.

    It is the end of a message.

    Args:
        patients: The patient of each image.
        images: Names of the same images, where they are known.
    """
    groups: dict[str, list[str]] = {}
    for index, patient in enumerate(patients):
        groups.setdefault(patient, []).append(images[index] if images else "")
    shown = [_describe_patient(patient, sorted(groups[patient])) for patient in sorted(groups)[:_SHOWN]]
    if len(groups) > _SHOWN:
        shown.append("...")
    listed = f" ({'; '.join(shown)})" if shown else ""
    return (
        f"patients found: {len(groups)}{listed}; if there are others, set patient_pattern (--patient-pattern) to what "
        "finds them in the names of the cases"
    )


def doubt_patients(cases: Sequence[tuple[str, str]]) -> str | None:
    """Why the patients of cases are hardly those of the names; None where nothing speaks against them.

    Args:
        cases: Name and patient of each.
    """
    names, patients = [name for name, _ in cases], [patient for _, patient in cases]
    count = len(set(patients))
    if len(cases) < 2:
        return None
    if count == 1:
        return f"all {len(cases)} cases are taken for those of one patient"
    if count == len(cases):
        shared = _shared_beginning(names)
        if shared is not None:
            return f"each of the {count} cases is taken for a patient of its own, though several begin with {shared!r}"
        return None
    # A name of letters alone, and numbers after it, is rather that of a data set.
    several = {patient for patient, images in Counter(patients).items() if images > 1}
    if 2 * count <= len(cases) and all(_is_numbered(name, patient) for name, patient in cases if patient in several):
        return f"the {len(cases)} cases are taken for those of {count} patients, whose names end before a number"
    return None


def split_by_patient(
    cases: Sequence[T], fraction: float, seed: int, where: str = "the data"
) -> tuple[list[T], list[T]]:
    """Splits cases so that no patient is on both sides.

    Args:
        cases: Anything that has a `patient_id`.
        fraction: Share of patients on the second side, in (0, 1); each side gets at least one patient.
        seed: The same seed and patients give the same split.
        where: Where the cases come from, for the error message.

    Returns:
        The cases of the first side, those of the second, each in the order given.

    Raises:
        DataError: There are fewer than two patients.
    """
    patients = sorted({case.patient_id for case in cases})
    if len(patients) < 2:
        found = name_patients([case.patient_id for case in cases])
        raise DataError(f"{where}: a split by patient needs at least 2 patients; {found}")
    count = min(max(1, round(fraction * len(patients))), len(patients) - 1)
    second = {patients[index] for index in np.random.default_rng(seed).permutation(len(patients))[:count]}
    return (
        [case for case in cases if case.patient_id not in second],
        [case for case in cases if case.patient_id in second],
    )


def _describe_patient(patient: str, images: Sequence[str]) -> str:
    if not images[0]:
        return f"{patient} with {len(images)} {'image' if len(images) == 1 else 'images'}"
    more = f" and {len(images) - 1} more" if len(images) > 1 else ""
    return f"{patient}: {images[0]}{more}"


def _shared_beginning(names: Sequence[str]) -> str | None:
    """A beginning that some of the names share and others do not; None where there is none.

    Names are compared word by word, and where all are built alike also at the bounds of letters and digits.
    """
    fine = {len(_LETTERS_OR_DIGITS.findall(name)) for name in names}
    words = _LETTERS_OR_DIGITS if len(fine) == 1 else _WORDS
    ends = [[found.end() for found in words.finditer(name)] for name in names]
    for depth in range(max(map(len, ends))):
        beginnings = Counter(
            name[: end[depth]] if depth < len(end) else name for name, end in zip(names, ends, strict=True)
        )
        if 1 < len(beginnings) < len(names):
            return beginnings.most_common(1)[0][0]
    return None


def _is_numbered(name: str, patient: str) -> bool:
    """Whether a case is named by its patient, of letters alone, and a number."""
    rest = name[len(patient) :].lstrip("_- .")
    return name.startswith(patient) and not any(letter.isdigit() for letter in patient) and rest[:1].isdigit()


def patients_by(pattern: str, names: Iterable[str]) -> dict[str, str | None]:
    """The patient that a pattern finds in each name: its first group; None where it finds none."""
    found = {}
    for name in names:
        match = re.search(pattern, name)
        found[name] = match[1] if match is not None and match.groups() and match[1] else None
    return found
