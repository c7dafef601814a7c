"""The same pixels under two names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from medfm_rl.data.checks.facts import CaseFacts
from medfm_rl.data.checks.findings import Finding


def find_twins(cases: Sequence[CaseFacts]) -> list[Finding]:
    """Images that are the same, of one patient and of several, and masks that are the same under other images."""
    images = [(case, case.image.content) for case in cases if case.image is not None]
    masks = [(case, case.mask.content) for case in cases if case.mask is not None and case.mask.pixels]
    groups = _groups(images)
    across = [group for group in groups if len({case.patient_id for case in group}) > 1]
    within = [group for group in groups if group not in across]
    # Masks of the same image are the same anyway.
    copied = [
        group for group in _groups(masks) if len({case.image.content for case in group if case.image is not None}) > 1
    ]
    found = [
        Finding(
            "same-image-two-patients",
            "are the very image of another patient",
            "The same size and pixels, whatever the file. Splits are by patient: such an image is learned from and "
            "tested on.",
            _twins_of(across),
            len(images),
        ),
        Finding(
            "same-image",
            "are there twice, under another name of the same patient",
            "The same size and pixels, whatever the file. Such an image counts twice.",
            _twins_of(within),
            len(images),
        ),
        Finding(
            "same-mask",
            "are the very mask of another image",
            "The same size and labels, and pixels of the images that differ. Was it saved under a wrong name?",
            _twins_of(copied),
            len(masks),
            "masks",
        ),
    ]
    return [finding for finding in found if finding.cases]


def _groups(contents: Iterable[tuple[CaseFacts, str]]) -> list[list[CaseFacts]]:
    of_content: dict[str, list[CaseFacts]] = {}
    for case, content in contents:
        of_content.setdefault(content, []).append(case)
    return [group for group in of_content.values() if len(group) > 1]


def _twins_of(groups: Sequence[Sequence[CaseFacts]]) -> dict[str, str]:
    """Each case of the groups, with another of its group."""
    return {
        case.case_id: f"as {group[0 if place else 1].case_id}" for group in groups for place, case in enumerate(group)
    }
