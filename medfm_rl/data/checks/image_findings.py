"""What looks suspicious in images: those that are unlike most, and those that hardly are images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from medfm_rl.data.checks.facts import MOST_VALUES, CaseFacts, ImageFacts
from medfm_rl.data.checks.findings import Finding
from medfm_rl.data.checks.outliers import FEWEST, unlike_most, unlike_the_others
from medfm_rl.data.checks.words import size_in_words, spacing_in_words, values_in_words

SPACING_RATIO: Final = 1.1
"""Protocols of one scanner differ by less; a segmenter that does not resample sees the difference."""
SIZE_RATIO: Final = 1.25
"""Scans of one protocol differ in their number of slices; of a crop, or another matrix, there is more to see."""
VALUES_SHARE: Final = 0.5
"""Of the range of values that is usual: contrast and dose change less, another unit or another bit depth more."""
_RULE: Final = (
    "further from the median than 3.5 robust standard deviations (1.4826 MAD), and by {least}; said from "
    f"{FEWEST} images on"
)
Images = Mapping[str, ImageFacts]


def find_in_images(cases: Sequence[CaseFacts]) -> list[Finding]:
    """Images unlike most of the others, with a channel that says nothing, or that look like masks."""
    images = {case.case_id: case.image for case in cases if case.image is not None}
    found = [
        *_unlike_most(images),
        _unknown_spacing(images),
        _other_spacing(images),
        _other_size(images),
        _other_values(images),
        _constant_channel(images),
        _like_masks(images),
    ]
    return [finding for finding in found if finding is not None and finding.cases]


def _unlike_most(images: Images) -> list[Finding]:
    """Images of another kind than more than half of them, or all where no kind has so many."""
    turned = {name: image.orientation for name, image in images.items() if image.orientation is not None}
    kinds: list[tuple[str, str, Mapping[str, str], str]] = [
        (
            "other-dimensions",
            "number of dimensions",
            {name: f"{len(image.size)}-D" for name, image in images.items()},
            "A segmenter takes 2-D or 3-D images, and seldom both.",
        ),
        (
            "other-channels",
            "number of channels",
            {name: _channels(image) for name, image in images.items()},
            "A segmenter takes one number of channels; colours that are all equal are taken for grey.",
        ),
        (
            "other-orientation",
            "orientation",
            turned,
            "Where the axes x, y and z run in the body. Segmenters that do not turn images see some of them upside "
            "down or from the side.",
        ),
    ]
    found = []
    for kind, noun, values, why in kinds:
        odd = unlike_most(values)
        if odd is not None:
            usual, others = odd
            what, rule = f"have another {noun} than most ({usual})", f"More than half are {usual}."
            found.append(Finding(kind, what, f"{rule} {why}", others, len(values)))
        elif len(values) >= FEWEST and len(set(values.values())) > 1:
            what, rule = f"differ in {noun}, and none is that of most", "No more than half are of one kind."
            found.append(Finding(kind, what, f"{rule} {why}", values, len(values)))
    return found


def _unknown_spacing(images: Images) -> Finding:
    without = {name: "" for name, image in images.items() if image.spacing is None}
    return Finding(
        "spacing-unknown",
        "state no spacing, and others do",
        "Sizes of these are in pixels, and a segmenter that resamples by mm refuses them.",
        without if len(without) < len(images) else {},
        len(images),
    )


def _channels(image: ImageFacts) -> str:
    if image.channels == 1:
        return "grey"
    return f"{image.channels} channels, all equal" if image.grey else f"{image.channels} channels"


def _other_spacing(images: Images) -> Finding | None:
    known = {name: image.spacing for name, image in images.items() if image.spacing is not None}
    usual, others = _far_in_ratio(known, SPACING_RATIO)
    if not others:
        return None
    rule = _RULE.format(least=f"more than {SPACING_RATIO - 1:.0%} along an axis")
    return Finding(
        "other-spacing",
        f"have another spacing than most ({spacing_in_words(usual)})",
        f"Its logarithm lies {rule}. Another protocol, or a wrong unit.",
        {name: spacing_in_words(known[name]) for name in others},
        len(images),
    )


def _other_size(images: Images) -> Finding | None:
    sizes = {name: image.size for name, image in images.items()}
    usual, others = _far_in_ratio(sizes, SIZE_RATIO)
    if not others:
        return None
    rule = _RULE.format(least=f"more than {SIZE_RATIO - 1:.0%} along an axis")
    return Finding(
        "other-size",
        f"have another size than most ({size_in_words([round(side) for side in usual])})",
        f"The logarithm of a side lies {rule}. A crop, a localiser, or a series that lacks slices.",
        {name: size_in_words(sizes[name]) for name in others},
        len(images),
    )


def _far_in_ratio(rows: Mapping[str, Sequence[float]], ratio: float) -> tuple[list[float], list[str]]:
    """The median of rows with as many axes as most, and the rows that are far from it by their ratio to it."""
    if not rows:
        return [], []
    axes = sorted(len(row) for row in rows.values())[len(rows) // 2]
    alike = {name: row for name, row in rows.items() if len(row) == axes}
    logarithms = {name: [math.log(value) for value in row] for name, row in alike.items()}
    usual: list[float] = np.median(list(alike.values()), axis=0).tolist()
    return usual, list(unlike_the_others(logarithms, math.log(ratio)))


def _other_values(images: Images) -> Finding | None:
    """By the 1st and the 99th percentile of each channel: a few odd pixels do not move them. Masks are left out."""
    images = {name: image for name, image in images.items() if not _is_like_mask(image)}
    if not images:
        return None
    channels = sorted(image.channels for image in images.values())[len(images) // 2]
    rows = {
        name: [number for channel in image.values for number in (channel.low, channel.high)]
        for name, image in images.items()
        if image.channels == channels
    }
    usual = np.median(list(rows.values()), axis=0)
    ranges = np.repeat(usual[1::2] - usual[::2], 2)
    others = unlike_the_others(rows, (VALUES_SHARE * ranges).tolist())
    listed = "; ".join(f"{low:.4g} to {high:.4g}" for low, high in zip(usual[::2], usual[1::2], strict=True))
    rule = _RULE.format(least=f"more than {VALUES_SHARE:.0%} of the usual range")
    return Finding(
        "other-values",
        f"have another range of values than most ({listed})",
        f"The 1st or 99th percentile of a channel lies {rule}. Another unit (CT not in HU), bit depth or window.",
        {
            name: "; ".join(f"{channel.low:.4g} to {channel.high:.4g}" for channel in images[name].values)
            for name in others
        },
        len(images),
    )


def _constant_channel(images: Images) -> Finding:
    flat = {
        name: [place for place, channel in enumerate(image.values) if channel.least == channel.most]
        for name, image in images.items()
    }
    return Finding(
        "constant-channel",
        "have a channel with one value only",
        "It says nothing. Was a channel lost, or is it an opacity? Images that are constant as a whole are refused.",
        {
            name: ", ".join(f"channel {place}: {values_in_words(images[name].values[place])}" for place in places)
            for name, places in flat.items()
            if places
        },
        len(images),
    )


def _like_masks(images: Images) -> Finding:
    return Finding(
        "like-masks",
        "look like masks",
        f"No channel has more than {MOST_VALUES} different values. Masks are looked for in labels/ or masks/, by the "
        "names of the images, and one file holds all structures of an image: join those that have a file each.",
        {
            name: f"{max(channel.different or 0 for channel in image.values)} values"
            for name, image in images.items()
            if _is_like_mask(image)
        },
        len(images),
    )


def _is_like_mask(image: ImageFacts) -> bool:
    return all(channel.different is not None for channel in image.values)
