"""Whether what was read says the same as what an oracle reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medfm_rl.types import NOTICEABLE_SHIFT, Geometry, LabelSchema

SCHEMA = LabelSchema.from_structures({"LV": 1, "MYO": 2, "LA": 3})
"""The structures of every mask here."""


@dataclass(frozen=True, eq=False)
class Picture:
    """What an oracle says of an image.

    Attributes:
        pixels: `(C, *S)` or, where axes of one pixel are left out, anything that equals it without those.
        affines: Homogeneous matrices from indices (x, y, z) to mm, on the axes of ITK; the image lies on one of them.
            None where the file does not say, or the oracle does not.
    """

    pixels: npt.NDArray[Any]
    affines: Sequence[npt.NDArray[np.float64]] | None = None


def images_disagree(found: tuple[npt.NDArray[np.float32], Geometry], expected: Picture) -> str:
    """What differs in values or place; empty where nothing does."""
    pixels, geometry = found
    differing = arrays_disagree(pixels, expected.pixels)
    if differing or expected.affines is None or geometry.spacing is None:
        return differing
    shape = pixels.shape[1:]
    grid = geometry.volume or geometry
    apart = [
        _apart(one, other, shape)
        for one in (grid, grid.alternative, geometry.alternative)
        for other in expected.affines
        if one is not None
    ]
    if min(apart) <= 2 * NOTICEABLE_SHIFT * min(geometry.spacing):
        return ""
    return f"placed {min(apart):.3g} mm from {np.round(expected.affines[0], 4).tolist()}, at {geometry}"


def arrays_disagree(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> str:
    """What differs in size or values, axes of one pixel apart; rounding to single precision does not count."""
    ours, theirs = np.squeeze(found), np.squeeze(expected)
    if ours.shape != theirs.shape:
        return f"size {ours.shape}, and {theirs.shape} by the oracle"
    with np.errstate(over="ignore", invalid="ignore"):
        same = np.isclose(ours, theirs.astype(np.float32), rtol=1e-6, atol=0, equal_nan=True)
    if same.all():
        return ""
    place = np.unravel_index(int(np.argmin(same)), same.shape) if same.ndim else ()
    return f"{(~same).sum()} of {same.size} values differ, at {place}: {ours[place]} and {theirs[place]}"


def _apart(grid: Geometry, affine: npt.NDArray[np.float64], shape: tuple[int, ...]) -> float:
    ndim = grid.ndim
    matrix = np.eye(4)
    own = grid.affine
    matrix[:ndim, :ndim], matrix[:ndim, 3] = own[:-1, :-1], own[:-1, -1]
    sizes = (*reversed(shape), 1, 1)[:ndim]
    corners = np.array([[x, y, z, 1] for x in (0, sizes[0] - 1) for y in (0, sizes[1] - 1) for z in _ends(sizes)]).T
    return float(np.nan_to_num(np.abs((matrix - affine)[:ndim] @ corners), nan=np.inf).max())


def _ends(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return (0, sizes[2] - 1) if len(sizes) > 2 else (0,)


def given_values_disagree(found: dict[str, Any], expected: dict[str, Any]) -> str:
    """Every value that the file gives has to be there as it is given."""
    for name, value in expected.items():
        if isinstance(value, dict) and isinstance(found.get(name), dict):
            differing = given_values_disagree(found[name], value)
            if differing:
                return f"{name}: {differing}"
        elif name not in found or not _alike(found[name], value):
            return f"{name}: {str(found.get(name))[:80]}, and {str(value)[:80]} in the file"
    return ""


def _alike(found: Any, given: Any) -> bool:
    if isinstance(given, list) and isinstance(found, list):
        return len(given) == len(found) and all(map(_alike, found, given))
    return str(found) == str(given) or found == given or _as_number(found) == _as_number(given) is not None


def _as_number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
