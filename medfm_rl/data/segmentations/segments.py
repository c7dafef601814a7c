"""Segments with names, such as DICOM SEG and 3D Slicer hold, put onto the structures and the grid of an image."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfm_rl.data.notices import warn_once
from medfm_rl.errors import DataError
from medfm_rl.types import BACKGROUND, Geometry, IntArray, LabelMap, LabelSchema

_MOST_STRUCTURES = 255
_OFF_GRID = 0.25
"""Share of a pixel by which headers round positions, as `Geometry.matches` has it; more is of another grid."""


_Box = tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class Segment:
    """One segment of a file, cut to where it is: a file may hold a hundred organs of a whole body.

    Attributes:
        name: As the file has it.
        number: The integer that stands for it in the file.
        shape: Size of the file's grid, `(D, H, W)`.
        box: The part of that grid in which the segment lies; empty where it has no pixel.
        region: Which voxels of the box belong to it.
    """

    name: str
    number: int
    shape: tuple[int, ...]
    box: _Box
    region: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, name: str, number: int, region: npt.NDArray[np.bool_]) -> Segment:
        """A segment from whether each voxel of the file belongs to it, `(D, H, W)`."""
        box = []
        for axis in range(3):
            there = np.flatnonzero(region.any(axis=tuple(other for other in range(3) if other != axis)))
            box.append(slice(int(there[0]), int(there[-1]) + 1) if len(there) else slice(0, 0))
        return cls(name, number, region.shape, tuple(box), region[tuple(box)].copy())

    @property
    def is_empty(self) -> bool:
        """Whether it has no pixel."""
        return self.region.size == 0


@dataclass(frozen=True, eq=False)
class Segmentation:
    """The segments of a file.

    Attributes:
        path: The file.
        segments: All of them, also those without a pixel.
        geometry: The grid that they lie on, 3-D, often a part of that of the image; None where the file has no place in
            space, and is compared pixel by pixel.
    """

    path: Path
    segments: Sequence[Segment]
    geometry: Geometry | None

    def label_ids(
        self,
        schema: LabelSchema,
        image_shape: tuple[int, ...],
        geometry: Geometry,
        by_number: bool = False,
        ignore_others: bool = False,
    ) -> IntArray:
        """The integers that `schema` gives to the segments, on the grid of an image `(*S)`.

        A segment belongs to the structure of its name; case, spaces and hyphens do not count. A warning names
        structures that have no segment: they are taken to be absent.

        Args:
            schema: The structures.
            image_shape: Size of the image, `(*S)`.
            geometry: Its grid.
            by_number: Whether the integers of the schema are the numbers of the segments, and their names do not count.
            ignore_others: Whether segments of no structure are left out.

        Raises:
            DataError: A segment belongs to no structure, two overlap, or one lies outside the image or off its grid.
        """
        ids = np.full((1,) * (3 - len(image_shape)) + image_shape, schema.ids[0], dtype=np.int64)
        taken = np.zeros(ids.shape, dtype=bool)
        owners = {self._number(segment, schema, by_number): segment for segment in self.segments}
        for segment in self.segments:
            number = self._number(segment, schema, by_number)
            if number in (None, schema.ids[0]) or segment.is_empty:
                continue
            box, there = self._placed(segment, ids.shape, geometry)
            if bool((taken[box] & there & (ids[box] != number)).any()):
                raise DataError(
                    f"{self.path}: segment {segment.name} overlaps another one, and a pixel belongs to one structure "
                    "alone; cut one from the other in the tool that made them"
                )
            ids[box][there] = number
            taken[box] |= there
        if not ignore_others:
            self._refuse_others(schema, by_number)
            absent = [name for name in schema.structures if schema.integers[name] not in owners]
            if absent and not by_number:
                warn_once(f"{self.path}: has no segment {' and no '.join(absent)}; taken to be absent")
        return ids.reshape(image_shape)

    def overlapping_classes(
        self, schema: LabelSchema, image_shape: tuple[int, ...], geometry: Geometry, by_number: bool = False
    ) -> LabelMap:
        """Class indices of structures that overlap, on the grid of an image `(*S)`: a pixel may be of several segments.

        Args:
            schema: The structures.
            image_shape: Size of the image, `(*S)`.
            geometry: Its grid.
            by_number: As in `label_ids`; a segment belongs to every structure that takes in its number.

        Raises:
            DataError: A segment belongs to no structure, or one lies outside the image or off its grid.
        """
        classes = np.zeros((1,) * (3 - len(image_shape)) + image_shape, dtype=np.uint8)
        for segment in self.segments:
            if not segment.is_empty and segment.name != BACKGROUND:
                bits = self._bits(segment, schema, by_number)
                if not bits:
                    raise self._stranger(segment, schema)
                box, there = self._placed(segment, classes.shape, geometry)
                classes[box][there] |= np.uint8(bits)
        return classes.reshape(image_shape)

    def _bits(self, segment: Segment, schema: LabelSchema, by_number: bool) -> int:
        """The structures that a segment belongs to, as a bit mask."""
        found = 0
        for bit, (name, labels) in enumerate(zip(schema.structures, schema.region_ids, strict=True)):
            belongs = segment.number in labels if by_number else _plain(name) == _plain(segment.name)
            found |= belongs << bit
        return found

    def own_schema(self) -> LabelSchema:
        """The structures that the segments name, numbered in their order; those that share a name are one.

        Raises:
            DataError: There is none, or more than there are labels.
        """
        names = list(dict.fromkeys(segment.name for segment in self.segments if segment.name != BACKGROUND))
        if not 1 <= len(names) <= _MOST_STRUCTURES:
            raise DataError(
                f"{self.path}: holds segments of {len(names)} names, and a mask has 1 to {_MOST_STRUCTURES} structures"
            )
        return LabelSchema.from_structures({name: number for number, name in enumerate(names, 1)})

    def _number(self, segment: Segment, schema: LabelSchema, by_number: bool) -> int | None:
        """The integer of the structure that a segment belongs to; None where there is none."""
        if by_number:
            return segment.number if segment.number in schema.labels else None
        if segment.name in schema.names:
            return schema.integers[segment.name]
        alike = [name for name in schema.names if _plain(name) == _plain(segment.name)]
        return schema.integers[alike[0]] if len(alike) == 1 else None

    def _refuse_others(self, schema: LabelSchema, by_number: bool) -> None:
        others = [
            segment
            for segment in self.segments
            if self._number(segment, schema, by_number) is None and not segment.is_empty
        ]
        if others:
            raise self._stranger(others[0], schema)

    def _stranger(self, other: Segment, schema: LabelSchema) -> DataError:
        named = ", ".join(f"{segment.number} {segment.name!r}" for segment in self.segments)
        return DataError(
            f"{self.path}: segment {other.name!r} is none of the structures ({', '.join(schema.structures)}); "
            f"its segments are {named}. Give them the names of the structures and remove the others; where masks "
            "are given by --masks, --labels can say which number is which structure, such as "
            f"{schema.structures[0]}={other.number}"
        )

    def _placed(self, segment: Segment, shape: tuple[int, ...], image: Geometry) -> tuple[_Box, npt.NDArray[np.bool_]]:
        """Where a segment lies on the grid of an image `(D, H, W)`: a box of it, and which of its voxels."""
        own, grid = self.geometry, _as_volume(image)
        if own is None or (grid.spacing is None and segment.shape == shape):
            if segment.shape != shape:
                raise DataError(
                    f"{self.path}: the mask has size {segment.shape}, its image {shape}; they must be equal"
                )
            return segment.box, segment.region
        if grid.spacing is None:
            # A picture has no place of its own: tools put it at the origin, with the pixels that the segment has.
            grid = Geometry(own.spacing, grid.origin, grid.direction)
        # In the order x, y, z; arrays have the axes the other way round.
        steps = np.linalg.solve(_axes(grid), _axes(own))
        start = np.linalg.solve(_axes(grid), np.subtract(own.origin, grid.origin))
        extent = np.array(segment.shape[::-1]) - 1
        whole = np.where(extent > 0, np.round(steps), 0).astype(int)
        corners = np.array(list(itertools.product(*((side.start, side.stop - 1) for side in segment.box[::-1]))))
        places = corners @ np.where(extent > 0, steps, 0).T + start
        drift = np.where(extent > 0, abs(steps - whole) * extent, 0).max()
        turned = _turned(segment.region.T, whole)
        if turned is None or drift > _OFF_GRID or abs(places - np.round(places)).max() > _OFF_GRID:
            raise DataError(
                f"{self.path}: the mask lies on another grid than its image (spacing {own.spacing} and {grid.spacing}, "
                f"origin {own.origin} and {grid.origin}, direction {own.direction} and {grid.direction}); resample one "
                "onto the other"
            )
        first = np.round(places).min(axis=0).astype(int)
        last = first + turned.shape
        low, high = np.maximum(first, 0), np.minimum(last, shape[::-1])
        inside = turned[tuple(map(slice, low - first, np.maximum(high - first, 0)))]
        if inside.shape != turned.shape:
            count = int(turned.sum())
            raise DataError(
                f"{self.path}: {count - int(inside.sum())} of {count} voxels of segment {segment.name} lie outside its "
                f"image of size {shape}; is it the mask of another image?"
            )
        return tuple(map(slice, first[::-1], last[::-1])), turned.T


def _turned(region: npt.NDArray[np.bool_], whole: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_] | None:
    """A region `(x, y, z)` with the axes of another grid, swapped and flipped.

    Args:
        region: The region.
        whole: Steps on the other grid along each axis of the region, as columns; 0 of an axis with one voxel.

    Returns:
        None where an axis does not run along just one of the other grid.
    """
    runs = {axis: int(abs(whole[:, axis]).argmax()) for axis in range(3) if whole[:, axis].any()}
    free = iter(sorted(set(range(3)) - set(runs.values())))
    if len(set(runs.values())) < len(runs) or any(abs(whole[:, axis]).sum() != 1 for axis in runs):
        return None
    order = {runs[axis] if axis in runs else next(free): axis for axis in range(3)}
    flips = tuple(place for place, axis in order.items() if axis in runs and whole[place, axis] < 0)
    return np.flip(region.transpose([order[place] for place in range(3)]), flips)


def _plain(name: str) -> str:
    """A name without what people write in different ways."""
    return re.sub(r"[\s_-]+", "", name.strip().casefold())


def _axes(geometry: Geometry) -> npt.NDArray[np.float64]:
    """The step in mm along each axis x, y, z, as columns."""
    columns: npt.NDArray[np.float64] = np.reshape(geometry.direction, (3, 3)) * np.array(geometry.spacing)
    return columns


def _as_volume(geometry: Geometry) -> Geometry:
    """The grid of an image in 3-D: an image of two dimensions lies at z = 0."""
    if geometry.ndim == 3:
        return geometry
    if geometry.volume is not None:
        return geometry.volume
    axes = np.eye(3)
    axes[:2, :2] = np.reshape(geometry.direction, (2, 2))
    spacing = None if geometry.spacing is None else (*geometry.spacing, 1.0)
    return Geometry(spacing, (*geometry.origin, 0.0), tuple(axes.ravel().tolist()))
