"""All kinds of inputs: the one table."""

from __future__ import annotations

from benchmarks.robustness import meta_kinds, nifti_kinds, nrrd_kinds, picture_kinds
from benchmarks.robustness.kind import Kind


def every_kind() -> list[Kind]:
    """Every kind, in the order of the table."""
    return [kind for module in (nifti_kinds, meta_kinds, nrrd_kinds, picture_kinds) for kind in module.kinds()]
