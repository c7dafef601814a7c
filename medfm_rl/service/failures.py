"""Where a rule failed: the places in a mask that a reviewer should look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medfm_rl.anatomy.profiles import RuleResult
from medfm_rl.service.catalogue import View
from medfm_rl.types import LabelMap

_MOST_POINTS = 20
Found = npt.NDArray[np.bool_]


def places_of(view: View, labels: LabelMap, names: Sequence[str]) -> list[dict[str, Any]]:
    """What each rule found, with the places where one failed.

    Args:
        view: What is shown.
        labels: Its masks, `(N, H, W)`.
        names: Names by class index.
    """
    found = []
    for place, case in enumerate(view.frames):
        number = view.numbers[place] if view.numbers else None
        for rule in case.rules:
            points = [] if rule.passed else _points(rule, labels, names, number)
            found.append(
                {
                    "rule": rule.rule,
                    "structure": rule.structure,
                    "text": str(rule),
                    "passed": rule.passed,
                    "points": points,
                    **({} if number is None else {"frame": number}),
                }
            )
    return found


def _points(rule: RuleResult, labels: LabelMap, names: Sequence[str], number: int | None) -> list[list[int]]:
    """Centres of what a rule objects to, (x, y[, z or frame]): smaller parts, holes, or else the structure itself."""
    planes = labels if number is None else labels[number : number + 1]
    whole = _union(planes, rule.structure, names)
    if rule.other is not None:
        whole = whole | _union(planes, rule.other, names)
    if rule.rule == "components":
        marked = _without_largest(whole)
    elif rule.rule == "holes":
        marked = np.stack([ndimage.binary_fill_holes(plane) & ~plane for plane in whole])
    else:
        return _centres(whole, number, len(labels) > 1, one=True)
    return _centres(marked, number, len(labels) > 1, one=False)


def _union(labels: LabelMap, structure: str, names: Sequence[str]) -> Found:
    wanted = [names.index(name) for name in structure.split("+") if name in names]
    return np.isin(labels, wanted)


def _without_largest(mask: Found) -> Found:
    parts, count = ndimage.label(mask)
    if count < 2:
        return np.zeros_like(mask)
    sizes = np.bincount(parts.ravel())[1:]
    smaller: Found = (parts > 0) & (parts != 1 + int(sizes.argmax()))
    return smaller


def _centres(mask: Found, number: int | None, several: bool, one: bool) -> list[list[int]]:
    if not mask.any():
        return []
    parts, count = (mask.astype(int), 1) if one else ndimage.label(mask)
    largest = np.argsort(np.bincount(parts.ravel(), minlength=count + 1)[1:])[::-1][:_MOST_POINTS] + 1
    points = []
    centres: Any = ndimage.center_of_mass(mask, parts, largest)
    for centre in centres:
        plane, row, column = (round(float(value)) for value in centre)
        last = [] if not several else [plane if number is None else number]
        points.append([column, row, *last])
    return points
