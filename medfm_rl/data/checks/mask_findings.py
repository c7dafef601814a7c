"""What looks suspicious in masks: empty ones, labels that are missing or strange, images without one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from medfm_rl.data.checks.facts import CaseFacts, MaskFacts
from medfm_rl.data.checks.findings import Finding
from medfm_rl.data.checks.outliers import FEWEST

MOST: Final = 0.75
"""Share of masks from which on a label is one that most have. Structures that many patients lack stay below."""
RARE: Final = 0.1
"""Share of masks up to which a value without a name is rather a slip of the pen than a structure."""
Masks = Mapping[str, MaskFacts]


def find_in_masks(cases: Sequence[CaseFacts]) -> list[Finding]:
    """Masks that lack what most have, hold what hardly any has or nothing at all, and images without one."""
    masks = {case.case_id: case.mask for case in cases if case.mask is not None}
    drawn = {name: mask for name, mask in masks.items() if mask.pixels}
    found = [
        _without_mask(cases),
        _empty(masks),
        _missing(drawn),
        _rare(drawn),
        _nowhere(drawn),
    ]
    return [finding for finding in found if finding.cases or (finding.kind == "label-nowhere" and finding.what)]


def _without_mask(cases: Sequence[CaseFacts]) -> Finding:
    with_mask = [case for case in cases if case.mask_file is not None and case.images]
    without = {case.case_id: "" for case in cases if case.mask_file is None and case.images}
    return Finding(
        "no-mask",
        "have no mask, and others have one",
        "Masks are found by the name of the image. Training and evaluate need one for each image.",
        without if with_mask else {},
        len(with_mask) + len(without),
    )


def _empty(masks: Masks) -> Finding:
    return Finding(
        "empty-mask",
        "are empty",
        "All is background. Was it never drawn, or saved before it was? Where the structure is not in the image, that "
        "is as it should be.",
        {name: "" for name, mask in masks.items() if not mask.pixels},
        len(masks),
        "masks",
    )


def _missing(drawn: Masks) -> Finding:
    counts = Counter(label for mask in drawn.values() for label in mask.pixels)
    usual = [label for label, count in counts.items() if len(drawn) >= FEWEST and count >= MOST * len(drawn)]
    lacking = {name: [label for label in usual if label not in mask.pixels] for name, mask in drawn.items()}
    return Finding(
        "label-missing",
        "lack a label that most have",
        f"At least {MOST:.0%} of the masks that are not empty have it, of {FEWEST} or more.",
        {name: f"no {' and no '.join(labels)}" for name, labels in lacking.items() if labels},
        len(drawn),
        "masks",
    )


def _rare(drawn: Masks) -> Finding:
    counts = Counter(label for mask in drawn.values() for label in mask.unnamed)
    limit = max(1, RARE * len(drawn))
    rare = {label for label, count in counts.items() if len(drawn) >= FEWEST and count <= limit}
    odd = {name: [label for label in mask.unnamed if label in rare] for name, mask in drawn.items()}
    return Finding(
        "label-rare",
        "hold a value that hardly any other has, and that nothing names",
        f"In one mask, or in no more than {RARE:.0%} of them, of {FEWEST} or more. A slip of the pen, or the border "
        "of an interpolation. Names stand in dataset.json, or in masks that name their segments.",
        {name: f"{', '.join(labels)}: {_pixels(drawn[name], labels)}" for name, labels in odd.items() if labels},
        len(drawn),
        "masks",
    )


def _pixels(mask: MaskFacts, labels: Sequence[str]) -> str:
    count = sum(mask.pixels[label] for label in labels)
    return f"{count} {'pixel' if count == 1 else 'pixels'}"


def _nowhere(drawn: Masks) -> Finding:
    known = dict.fromkeys(label for mask in drawn.values() for label in mask.known)
    there = {label for mask in drawn.values() for label in mask.pixels}
    absent = [label for label in known if label not in there]
    what = f"{' and '.join(absent)}: in none of the {len(drawn)} masks that are not empty" if absent else ""
    return Finding("label-nowhere", what, "The description, the masks or the segmenter name it.")
