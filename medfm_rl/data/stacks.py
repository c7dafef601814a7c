"""Frames and where they lie: whether they are a volume or a clip, and the grid of a volume.

A clip is frames of one plane over time, and never a volume. Formats that hold many frames ask here what they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfm_rl.errors import DataError
from medfm_rl.types import NOTICEABLE_SHIFT, Geometry

_Vectors = npt.NDArray[np.float64]
_HUNDREDTH = 2
"""Decimals from which on the last one that a header writes is taken for rounded."""
_PARALLEL = 0.999
"""Cosine of the angle between two slices (2.6 degrees) that are still of one stack."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a file, and where it lies.

    Attributes:
        name: For messages.
        size: Columns and rows.
        spacing: Distance of its columns and of its rows in mm, or None where the file does not say.
        position: Centre of its first pixel in mm, (x, y, z), or None.
        axes: Directions of its rows and of its columns, `(2, 3)`, or None. It is known where the position is.
        decimals: Digits that the file writes after the point of the position.
    """

    name: str
    size: tuple[int, int]
    spacing: tuple[float, float] | None = None
    position: _Vectors | None = None
    axes: _Vectors | None = None
    decimals: int = 0


class Arrangement(Enum):
    """What frames are together."""

    IMAGE = "one image"
    VOLUME = "a volume"
    CLIP = "a clip"


def arrangement(frames: Sequence[Frame]) -> Arrangement:
    """What frames are together: those of one place and direction, or that say no place, are a clip."""
    if len(frames) == 1:
        return Arrangement.IMAGE
    placed = [(frame.position, frame.axes) for frame in frames if frame.position is not None and frame.axes is not None]
    if not placed:
        return Arrangement.CLIP
    moved, turned = (np.ptp(np.array(values), axis=0).max() for values in zip(*placed, strict=True))
    stays = len(placed) == len(frames) and moved <= _tolerance(frames) and turned <= 1 - _PARALLEL
    return Arrangement.CLIP if stays else Arrangement.VOLUME


def arrangement_of_axes(shape: Sequence[int]) -> Arrangement:
    """The same for a file whose pixels have axes x, y, z and time: several times are a clip, of planes or volumes."""
    if any(size > 1 for size in shape[3:]):
        return Arrangement.CLIP
    return Arrangement.VOLUME if len(shape) > 2 and shape[2] > 1 else Arrangement.IMAGE


def no_volume(path: Path, count: int, of: str = "frames") -> DataError:
    """What to raise where a clip is met and one image or volume is wanted."""
    return DataError(
        f"{path}: holds {count} {of} over time, or that say no place in space: a clip and no volume. Write those that "
        "are to be segmented (end-diastole and end-systole, for example) to files of their own"
    )


def grid_of_frames(path: Path, frames: Sequence[Frame], thickness: float) -> tuple[Geometry, list[int]]:
    """The grid (x, y, z) on which every frame lies where its header says, and the order of the frames on it.

    A place that the file does not give is 0, and directions that it does not give are those of the pixel grid.

    Args:
        path: The file or folder, for messages.
        frames: One, or those of a volume.
        thickness: Length of a pixel along z in mm where there is one frame only.

    Raises:
        DataError: They are a clip, or no grid with right angles and equal steps holds them all within 1 % of a pixel.
    """
    if arrangement(frames) is Arrangement.CLIP:
        raise no_volume(path, len(frames))
    _require_alike(path, frames)
    first = frames[0]
    if first.position is None or first.axes is None:
        unplaced = Geometry.unknown(3)
        return Geometry(
            None if first.spacing is None else (*first.spacing, thickness), unplaced.origin, unplaced.direction
        ), [0]
    axes = _right_angles(path, frames)
    normal = axes[2]
    if first.spacing is None:
        if len(frames) > 1:
            raise DataError(
                f"{path}: says where its {len(frames)} slices lie and not how large their pixels are (Pixel Spacing is "
                "missing), so nothing can be placed; export the series again with complete headers"
            )
        return Geometry(None, tuple(first.position.tolist()), tuple(axes.T.ravel().tolist())), [0]
    positions = np.array([frame.position for frame in frames])
    order = np.argsort(positions @ normal, kind="stable").tolist()
    arranged, places = [frames[index] for index in order], positions[order]
    step = thickness if len(frames) == 1 else float((places[-1] - places[0]) @ normal) / (len(frames) - 1)
    _require_distinct_places(path, arranged, places)
    grid = Geometry((*first.spacing, step), tuple(places[0].tolist()), tuple(axes.T.ravel().tolist()))
    _require_places(path, arranged, places, grid)
    return grid, order


def _tolerance(frames: Sequence[Frame], side: float | None = None) -> float:
    """How far in mm a frame may lie from its place: 1 % of a pixel, and what its header rounds."""
    sides = [size for frame in frames if frame.spacing is not None for size in frame.spacing]
    if side is not None:
        sides.append(side)
    decimals = max(frame.decimals for frame in frames)
    # Both ends of a stack are rounded, by half of the last digit each.
    rounded: float = 10.0**-decimals if decimals >= _HUNDREDTH else 0.0
    return NOTICEABLE_SHIFT * min(sides, default=1.0) + rounded


def _require_alike(path: Path, frames: Sequence[Frame]) -> None:
    first = frames[0]
    for frame in frames[1:]:
        if frame.size != first.size:
            raise DataError(
                f"{path}: {first.name} has {first.size[0]} x {first.size[1]} pixels and {frame.name} "
                f"{frame.size[0]} x {frame.size[1]}; slices of a volume are of one size. Leave out those of another"
            )
        if (frame.position is None) != (first.position is None):
            without = frame if frame.position is None else first
            raise DataError(
                f"{path}: {without.name} does not say where it lies (Image Position and Image Orientation), others do; "
                "leave it out, or export the series again with complete headers"
            )
        if (frame.spacing is None) != (first.spacing is None):
            raise DataError(f"{path}: some slices say how large their pixels are and others do not; leave those out")


def _right_angles(path: Path, frames: Sequence[Frame]) -> _Vectors:
    """Directions of rows, of columns and of the normal, `(3, 3)`, one a row.

    Raises:
        DataError: Those of the frames differ, or are not at right angles to each other.
    """
    first = frames[0]
    assert first.axes is not None
    rows, columns = first.axes
    normal = np.cross(rows, columns)
    length = float(np.linalg.norm(normal))
    skew = abs(float(rows @ columns))
    if not rows.any() or not columns.any():
        raise DataError(
            f"{path}: Image Orientation of {first.name} is {first.axes.ravel().tolist()}, which is no direction; "
            "correct it, or export the series again with complete headers"
        )
    if length < _PARALLEL or skew > NOTICEABLE_SHIFT:
        raise DataError(
            f"{path}: by Image Orientation, rows and columns of {first.name} lie at "
            f"{np.rad2deg(np.arccos(np.clip(rows @ columns, -1, 1))):.3g} degrees to each other, and not at right "
            "angles; resample it to a grid with right angles"
        )
    for frame in frames[1:]:
        assert frame.axes is not None
        cosine = float(np.cross(*frame.axes) @ normal)
        if min(cosine, *np.sum(frame.axes * first.axes, axis=1)) < _PARALLEL:
            raise DataError(
                f"{path}: {frame.name} is turned against {first.name} (their directions are "
                f"{np.array2string(frame.axes.ravel(), precision=3)} and "
                f"{np.array2string(first.axes.ravel(), precision=3)}); is it a localizer, or of another series? Leave "
                "it out, or give each orientation a folder of its own"
            )
    # The nearest directions at right angles: headers round, and writers want right angles.
    left, _, right = np.linalg.svd(np.stack([rows, columns, normal / length]))
    nearest: _Vectors = left @ right
    return nearest


def _require_distinct_places(path: Path, frames: Sequence[Frame], places: _Vectors) -> None:
    steps = np.linalg.norm(np.diff(places, axis=0), axis=1)
    same = steps <= _tolerance(frames)
    if not same.any():
        return
    first = int(np.flatnonzero(same)[0])
    names = f"{frames[first].name} and {frames[first + 1].name}"
    count = len(frames) - int(same.sum())
    if len(frames) % count:
        raise DataError(
            f"{path}: {names} lie at the same place ({len(frames)} slices at {count} places); is one a copy, or of "
            "another phase? Leave out those that are too many"
        )
    raise DataError(
        f"{path}: {len(frames)} slices lie at {count} places, {len(frames) // count} at each ({names}, for example): "
        "several phases, echoes or repetitions in one series, and no volume. Give each a folder of its own"
    )


def _require_places(path: Path, frames: Sequence[Frame], places: _Vectors, grid: Geometry) -> None:
    """Compares where the corners of every frame lie by its header and on the grid.

    Raises:
        DataError: One lies elsewhere; the message says in which way.
    """
    assert grid.spacing is not None
    tolerance = _tolerance(frames, grid.spacing[2])
    columns, rows = frames[0].size
    corners = np.array(list(itertools.product((0, columns - 1), (0, rows - 1))), dtype=np.float64)
    stated = np.empty((len(frames), len(corners), 3))
    held = np.empty_like(stated)
    for index, (frame, place) in enumerate(zip(frames, places, strict=True)):
        assert frame.axes is not None
        assert frame.spacing is not None
        stated[index] = place + (corners * frame.spacing) @ frame.axes
        indices = np.column_stack([corners, np.full(len(corners), index), np.ones(len(corners))])
        held[index] = (grid.affine @ indices.T).T[:, :3]
    apart = np.linalg.norm(stated - held, axis=-1)
    if apart.max() <= tolerance:
        return
    axes = np.reshape(grid.direction, (3, 3)).T
    steps = np.diff(places, axis=0)
    along = steps @ axes[2]
    usual = float(np.median(along)) if len(along) else grid.spacing[2]
    other = int(abs(along - usual).argmax()) if len(along) else 0
    if len(along) and abs(along[other] - usual) > tolerance:
        raise DataError(
            f"{path}: from slice {frames[other].name} to {frames[other + 1].name} it is {along[other]:.4g} mm and "
            f"usually {usual:.4g} mm, so positions and spacing would be wrong; are slices missing, or of another "
            "series? Complete the series, or resample it to equal steps"
        )
    # What is left of the way from slice to slice when the way along the normal is taken out.
    beside = steps - np.outer(along, axes[2])
    drift = beside.mean(axis=0) if len(steps) else np.zeros(3)
    worst = int(apart.max(axis=1).argmax())
    if len(steps) and np.linalg.norm(drift) * len(steps) > tolerance and _is_even(beside, tolerance):
        angle = np.rad2deg(np.arctan2(np.linalg.norm(drift), usual))
        raise DataError(
            f"{path}: each slice lies {np.linalg.norm(drift):.4g} mm beside the one before, so the stack is sheared by "
            f"{angle:.3g} degrees (a tilted gantry), and the last slice would be placed "
            f"{np.linalg.norm(drift) * len(steps):.3g} mm from where it lies. Resample it upright; dcm2niix, for one, "
            "writes such a CT a second time without the tilt"
        )
    raise DataError(
        f"{path}: slice {frames[worst].name} lies {apart.max():.3g} mm from its place on a grid with equal steps and "
        f"right angles, which is {apart.max() / min(grid.spacing):.2g} of a pixel; 0.01 is allowed. Do size, direction "
        "and position of its pixels agree with the others? Leave it out, or resample the series to such a grid"
    )


def _is_even(steps: _Vectors, tolerance: float) -> bool:
    return bool(np.linalg.norm(steps - steps.mean(axis=0), axis=1).max() <= max(tolerance, 1e-3))
