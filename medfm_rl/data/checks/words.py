"""Facts in words, as tables, pages and messages show them."""

from __future__ import annotations

from collections.abc import Sequence

from medfm_rl.data.checks.facts import ImageFacts, Values


def size_in_words(size: Sequence[int]) -> str:
    """Pixels along x, y[, z]."""
    return " x ".join(map(str, size))


def spacing_in_words(spacing: Sequence[float] | None) -> str:
    """Spacing along x, y[, z] in mm, or that it is unknown."""
    return "unknown" if spacing is None else f"{' x '.join(f'{value:.4g}' for value in spacing)} mm"


def values_in_words(values: Values) -> str:
    """The range of a channel."""
    return f"{values.least:.4g} to {values.most:.4g}"


def image_values_in_words(image: ImageFacts) -> str:
    """The ranges of all channels, once where they are equal."""
    return ", ".join(dict.fromkeys(values_in_words(channel) for channel in image.values))


def range_in_words(numbers: Sequence[float]) -> str:
    """Smallest and largest of some numbers, once where they are equal."""
    low, high = f"{min(numbers):.4g}", f"{max(numbers):.4g}"
    return low if low == high else f"{low} to {high}"
