"""All kinds of inputs: the one table."""

from __future__ import annotations

from benchmarks.robustness import (
    checkpoint_kinds,
    dicom_kinds,
    meta_kinds,
    name_kinds,
    nifti_kinds,
    nrrd_kinds,
    picture_kinds,
    record_kinds,
    settings_kinds,
)
from benchmarks.robustness.kind import Kind

_MODULES = (
    *(nifti_kinds, meta_kinds, nrrd_kinds, picture_kinds, dicom_kinds),
    *(name_kinds, record_kinds, settings_kinds, checkpoint_kinds),
)


def every_kind() -> list[Kind]:
    """Every kind, in the order of the table."""
    return [kind for module in _MODULES for kind in module.kinds()]
