"""Whether a segmenter takes the images of a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from medfm_rl.data.checks import CaseFacts, Finding
from medfm_rl.data.checks.facts import Values
from medfm_rl.data.checks.result import SegmenterFit

if TYPE_CHECKING:
    from medfm_rl.adapters import SegmenterAdapter
    from medfm_rl.adapters.base import ExpectedValues

_LEAST_OVERLAP: Final = 0.5
_AIR: Final = -200.0
"""HU: lungs, fat and the air around a body lie below; only a tight crop of soft tissue has nothing there."""


def describe_segmenter(folder: Path, segmenter: SegmenterAdapter, masks: str) -> SegmenterFit:
    """What a segmenter takes, in words.

    Args:
        folder: Where it lies.
        segmenter: The segmenter.
        masks: How its structures were found in the masks; empty where there are none.
    """
    dimensions = len(segmenter.patch_size)
    slices = ", and volumes slice by slice" if segmenter.by_slices and dimensions == 2 else ""
    rows = {
        "images": f"{dimensions}-D{slices}",
        "channels": str(segmenter.intensity_channels),
        "patch": " x ".join(map(str, segmenter.patch_size)),
        "structures": ", ".join(f"{name} {label}" for name, label in segmenter.schema.integers.items()),
        "values": "; ".join(map(_in_words, segmenter.expected_values())),
    }
    if masks:
        rows["masks"] = masks
    return SegmenterFit(str(folder), rows)


def find_unexpected_values(cases: Sequence[CaseFacts], expected: Sequence[ExpectedValues | None]) -> list[Finding]:
    """Images that a segmenter takes, and whose values are hardly those that it was trained on."""
    images = {case.case_id: case.image for case in cases if case.image is not None and not case.problems}
    odd: Mapping[str, list[str]] = {
        name: [
            text
            for channel, wanted in zip(image.values, expected, strict=False)
            if (text := _unexpected(channel, wanted))
        ]
        for name, image in images.items()
    }
    found = Finding(
        "values-unexpected",
        f"have values that the segmenter hardly met ({'; '.join(map(_in_words, expected))})",
        f"The image covers less than {_LEAST_OVERLAP:.0%} of the range of the structures that the segmenter was "
        f"trained on, or is CT without a value below {_AIR:g} HU. Another unit, a window, or an offset of 1024.",
        {name: "; ".join(texts) for name, texts in odd.items() if texts},
        len(images),
    )
    return [found] if found.cases else []


def _unexpected(channel: Values, wanted: ExpectedValues | None) -> str:
    if wanted is None or wanted.high <= wanted.low:
        return ""
    overlap = min(channel.most, wanted.high) - max(channel.least, wanted.low)
    little = overlap < _LEAST_OVERLAP * (wanted.high - wanted.low)
    no_air = wanted.unit == "HU" and channel.least > _AIR
    return f"{channel.least:.4g} to {channel.most:.4g}" if little or no_air else ""


def _in_words(wanted: ExpectedValues | None) -> str:
    return "any" if wanted is None else f"{wanted.low:.4g} to {wanted.high:.4g} {wanted.unit}".strip()
