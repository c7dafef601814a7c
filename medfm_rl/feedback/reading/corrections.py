"""Corrected masks, of whatever tool, as entries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medfm_rl.data.each_case import each_case
from medfm_rl.data.layouts import CaseFile
from medfm_rl.feedback.entries import CorrectedMask, Verdict
from medfm_rl.feedback.masks import Mask
from medfm_rl.feedback.reading.shown import Batch, Review, ShownCases, require_no_problems
from medfm_rl.progress import Progress, silent
from medfm_rl.structures import pixels_of
from medfm_rl.types import LabelSchema


def read_corrected(
    shown: ShownCases,
    corrected: Mapping[str, Path],
    review: Review,
    in_files: LabelSchema | None = None,
    progress: Progress = silent,
) -> Batch:
    """Compares corrected masks with those that were shown: one that is the same is an acceptance of the whole.

    Args:
        shown: What the reviewer was shown; a case without a mask there was drawn from nothing.
        corrected: The masks that came back, by case.
        review: What the entries have in common.
        in_files: The meaning of the integers in the corrected masks, where it is not what the schema says.
        progress: Told how far it is.

    Raises:
        FeedbackError: Some cannot be used: they lie on another grid, have other labels, or are of no image; the message
            says which, and why.
    """

    def read(file: CaseFile) -> Batch:
        path = corrected[file.case_id]
        case = shown.look(file.case_id, str(path))
        mask = case.read_mask(path, shown.schema, in_files)
        common = review.of(case)
        if case.mask is None:
            return Batch((CorrectedMask(**common, mask_sha256=mask.sha256),), (mask,))
        if mask.sha256 == case.mask.sha256:
            return Batch((Verdict(**common, mask_sha256=mask.sha256, decision="accept"),), (mask,))
        entry = CorrectedMask(
            **common,
            mask_sha256=mask.sha256,
            replaces_sha256=case.mask.sha256,
            changed=changed_structures(case.mask, mask),
        )
        return Batch((entry,), (mask, case.mask))

    files = [shown.files[name] for name in sorted(corrected)]
    found, problems = each_case(files, read, "reading corrected masks", progress)
    require_no_problems(problems, len(files), "corrected masks")
    return sum(found.values(), Batch())


def changed_structures(before: Mask, after: Mask) -> tuple[str, ...]:
    """Structures whose pixels differ in two masks of the same schema and size."""
    old, new = before.labels, after.labels
    schema = before.schema
    of_structures = zip(schema.structures, schema.classes, strict=True)
    return tuple(
        name for name, classes in of_structures if not np.array_equal(pixels_of(old, classes), pixels_of(new, classes))
    )
