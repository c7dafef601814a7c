"""Anatomy over time: what is measured in every frame of a clip, how smoothly it changes, and the beat in it.

RL4Seg3D measures length and base from landmarks of the myocardium; ours are of the discs of the ventricle, which needs
no myocardium.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medfm_rl.anatomy.discs import Discs, measure_discs
from medfm_rl.anatomy.measures import centre
from medfm_rl.anatomy.temporal_rules import (
    DISTANCE,
    Curve,
    TemporalResult,
    TemporalRules,
    absent,
    judge_curve,
    judge_distance,
)
from medfm_rl.structures import bounding_box, pixels_of
from medfm_rl.types import LabelMap, LabelSchema

S = TypeVar("S", bound=np.generic)
_BASE = 3
"""Discs of 20 that are the base. The last ones have a part of a base alone that is not at right angles to the axis."""
SMOOTH = 3
"""Frames over which the curve of the area is averaged before its beat is sought."""
_SMALLEST_BEAT = 0.1
"""Share of its largest area by which a ventricle at least contracts, in any beat that can be measured."""
_TURN = 0.25
"""Share of the swing of the whole curve by which it has to turn back for another beat."""
_STILL_CHANGING = 0.75
"""Of the mean change a frame between ED and ES; towards the end of half a cosine of five frames it is .58."""
_FEWEST_STEPS = 4
"""From ED to ES, for the curve to say whether it has flattened."""


@dataclass(frozen=True)
class FrameAttributes:
    """What is measured in one frame, in pixels of square sides of length `side` of the clip.

    Attributes:
        areas: Of each structure.
        discs: The ventricle cut into discs; None where the frame has none.
        centre: Row and column of its centre; None likewise.
    """

    areas: Mapping[str, float]
    discs: Discs | None
    centre: tuple[float, ...] | None

    @property
    def base_width(self) -> float | None:
        """Largest diameter of the lowest three of the 20 discs of the ventricle, counted from its apex down."""
        return None if self.discs is None else float(np.max(self.discs.diameters[-_BASE:]))


@dataclass(frozen=True)
class Beat:
    """End-diastole and end-systole of one beat, as places in the clip.

    Attributes:
        ed: Frame in which the ventricle is largest.
        es: Frame of that beat in which it is smallest.
        beats: Times that the area falls from a maximum to a minimum in the clip.
        cut_off: Which of the two an end of the clip seems to cut off, in words; None where neither.
    """

    ed: int
    es: int
    beats: int
    cut_off: str | None = None


@dataclass(frozen=True)
class ClipAnatomy:
    """All that is measured in the masks of a clip.

    Attributes:
        ventricle: The structure whose beat it is.
        frames: Attributes of each frame.
        side: Side of the square pixels in mm; None where the spacing is unknown.
        beat: ED and ES; None where no beat was found.
        no_beat: Why not; None where one was found.
        jitter: Mean size of the second difference of the ventricle's area, as a share of its mean area.
        rules: Findings of the rules over time.
    """

    ventricle: str
    frames: tuple[FrameAttributes, ...]
    side: float | None
    beat: Beat | None
    no_beat: str | None
    jitter: float | None
    rules: tuple[TemporalResult, ...]

    @property
    def valid(self) -> bool:
        """Whether every rule over time is met."""
        return all(rule.passed for rule in self.rules)

    @property
    def broken(self) -> tuple[str, ...]:
        """The rules over time that are not met, in words."""
        return tuple(str(rule) for rule in self.rules if not rule.passed)

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why what is measured of a beat cannot be relied on, in words: there is none, or not the whole of it."""
        found = self.no_beat if self.beat is None else self.beat.cut_off
        return () if found is None else (found,)

    def area_curve(self, structure: str) -> Curve:
        """The area of a structure in every frame, `(T,)`, in square pixels."""
        return np.array([frame.areas[structure] for frame in self.frames])


def measure_clip(
    masks: LabelMap,
    schema: LabelSchema,
    ventricle: str,
    spacing: tuple[float, float] | None,
    rules: TemporalRules | None = None,
) -> ClipAnatomy:
    """Measures the masks of a clip.

    Args:
        masks: Class indices `(T, H, W)`.
        schema: Structures.
        ventricle: The structure whose beat is sought.
        spacing: Size of a pixel in mm in array order, (y, x); None where unknown, and pixels count as square.
        rules: Rules over time; those of the literature where None.
    """
    side = None if spacing is None else float(min(spacing))
    squared, corner = _cut_out(with_square_pixels(masks, spacing))
    own = schema.classes_of(ventricle)
    # Frame by frame: a long clip's worth of masks more would not be small.
    frames = tuple(_measure_frame(mask, schema, pixels_of(mask, own), corner) for mask in squared)
    areas = np.array([frame.areas[ventricle] for frame in frames])
    beat, no_beat = find_beat(areas)
    wanted = TemporalRules.of_literature(schema, ventricle) if rules is None else rules
    found = _check(wanted, frames, squared, schema, ventricle, side)
    return ClipAnatomy(ventricle, frames, side, beat, no_beat, jitter_of(areas), found)


def jitter_of(areas: Curve) -> float | None:
    """Mean size of the second difference of a curve as a share of its mean; None of fewer than 3 frames or nothing."""
    if len(areas) < 3 or not areas.any():
        return None
    return float(np.abs(np.diff(areas, 2)).mean() / areas.mean())


def find_beat(areas: Curve) -> tuple[Beat | None, str | None]:
    """ED and ES from the area of the ventricle over time, `(T,)`; or None and why there is no beat.

    ED is where the area, smoothed over three frames, is largest, and ES where it is smallest before it has grown again
    by a quarter of its swing, forwards or backwards from ED, whichever is deeper: an end of the clip may cut one off. A
    single frame that stands out is smoothed away.
    """
    if len(areas) < SMOOTH:
        return None, f"{len(areas)} frames are no beat"
    if (areas == 0).any():
        return None, f"the ventricle is missing in {int((areas == 0).sum())} of {len(areas)} frames"
    kept = ndimage.median_filter(areas.astype(np.float64), SMOOTH, mode="nearest")
    curve: Curve = ndimage.uniform_filter1d(kept, SMOOTH, mode="nearest")
    swing = float(np.ptp(curve))
    if swing < _SMALLEST_BEAT * curve.max():
        return None, (
            f"the area of the ventricle changes by {100 * swing / curve.max():.0f} %, and a beat by "
            f"{100 * _SMALLEST_BEAT:.0f} % at least: the clip is shorter than a beat, or shows none"
        )
    top = int(curve.argmax())
    after, before = top + _valley(curve[top:], _TURN * swing), top - _valley(curve[top::-1], _TURN * swing)
    bottom = after if curve[after] <= curve[before] else before
    ed, es = _extreme(areas, kept, top, 1), _extreme(areas, kept, bottom, -1)
    return Beat(ed, es, _count_falls(curve, _TURN * swing), _cut_off(kept, ed, es)), None


def _cut_off(areas: Curve, ed: int, es: int) -> str | None:
    """Which of ED and ES lies at an end of the clip towards which the area still changes as fast as between the two.

    A clip that ends where the ventricle is largest or smallest ends where it hardly changes: a half sequence does.
    """
    if abs(ed - es) < _FEWEST_STEPS:
        return None
    usual = (areas[ed] - areas[es]) / abs(ed - es)
    for place, name, change in ((ed, "end-diastole", 1.0), (es, "end-systole", -1.0)):
        inwards = {0: 1, len(areas) - 1: len(areas) - 2}.get(place)
        if inwards is not None and change * (areas[place] - areas[inwards]) > _STILL_CHANGING * usual:
            which = "first" if place == 0 else "last"
            return (
                f"{name} is the {which} frame, towards which the area of the ventricle still changes: the clip is "
                "shorter than a beat, and the ejection fraction may be too low"
            )
    return None


def _extreme(areas: Curve, kept: Curve, place: int, sign: int) -> int:
    """Of the frames that were smoothed together, the largest (sign 1) or smallest (-1) among its neighbours."""
    near = range(max(0, place - SMOOTH // 2), min(len(areas), place + SMOOTH // 2 + 1))
    return max(near, key=lambda index: (sign * kept[index], sign * areas[index]))


def _valley(curve: Curve, turn: float) -> int:
    """Steps from the start of a curve to its lowest value before it has grown by `turn` again."""
    lowest = 0
    for index, value in enumerate(curve):
        if value < curve[lowest]:
            lowest = index
        elif value > curve[lowest] + turn and curve[0] - curve[lowest] > turn:
            break
    return lowest


def _count_falls(curve: Curve, turn: float) -> int:
    """How often a curve falls by `turn` at least after it has risen by as much, or from its start."""
    falls, high, low, falling = 0, curve[0], curve[0], False
    for value in curve:
        if falling:
            low = min(low, value)
            if value - low > turn:
                falling, high = False, value
        else:
            high = max(high, value)
            if high - value > turn:
                falling, low, falls = True, value, falls + 1
    return falls


def _measure_frame(
    mask: LabelMap, schema: LabelSchema, inside: npt.NDArray[np.bool_], corner: tuple[int, int]
) -> FrameAttributes:
    areas = {name: float(np.count_nonzero(pixels_of(mask, schema.classes_of(name)))) for name in schema.structures}
    discs = measure_discs(inside)
    if discs is None:
        return FrameAttributes(areas, None, None)
    down, across = centre(inside)
    return FrameAttributes(areas, discs, (down + corner[0], across + corner[1]))


def with_square_pixels(masks: npt.NDArray[S], spacing: tuple[float, float] | None) -> npt.NDArray[S]:
    """Masks or maps `(T, H, W)` on pixels as large as the shorter side, where they are not square."""
    if spacing is None or np.isclose(*spacing, rtol=0.01):
        return masks
    for axis, length in enumerate(spacing, 1):
        before = masks.shape[axis]
        after = round(before * length / min(spacing))
        # The pixel in which the middle of the new one lies.
        masks = masks.take(((np.arange(after) + 0.5) * before / after).astype(np.intp), axis)
    return masks


def _cut_out(masks: LabelMap) -> tuple[LabelMap, tuple[int, int]]:
    """Masks in the box of everything that is segmented in the clip and one pixel around it, and the corner of that."""
    box = bounding_box(np.asarray(masks.any(axis=0)), margin=1)
    if box is None:
        return masks, (0, 0)
    return np.ascontiguousarray(masks[:, *box]), (box[0].start, box[1].start)


def _check(
    rules: TemporalRules,
    frames: tuple[FrameAttributes, ...],
    squared: LabelMap,
    schema: LabelSchema,
    ventricle: str,
    side: float | None,
) -> tuple[TemporalResult, ...]:
    """What the rules find: those about curves first, and nothing about them where the ventricle comes and goes."""
    missing = [index for index, frame in enumerate(frames) if frame.discs is None]
    found = [absent(ventricle, missing, len(frames))] if missing else []
    if not missing:
        curves = _curves(frames)
        for rule in rules.rules:
            if rule.measure == DISTANCE:
                continue
            curve = (
                np.array([frame.areas[rule.structure] for frame in frames])
                if rule.measure == "area"
                else curves[rule.measure]
            )
            if curve.any():
                found.append(judge_curve(rule, curve))
    found += [judge_distance(rule, squared, schema, side) for rule in rules.rules if rule.measure == DISTANCE]
    return tuple(found)


def _curves(frames: tuple[FrameAttributes, ...]) -> Mapping[str, Curve]:
    """What is measured in the ventricle of every frame, by the measure; each frame has one."""
    centres = [frame.centre for frame in frames if frame.centre is not None]
    return {
        "length": np.array([frame.discs.length for frame in frames if frame.discs is not None]),
        "base width": np.array([frame.base_width for frame in frames if frame.base_width is not None]),
        "centre down": np.array([middle[0] for middle in centres]),
        "centre across": np.array([middle[1] for middle in centres]),
    }
