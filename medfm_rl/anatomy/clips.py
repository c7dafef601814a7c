"""Anatomy over time: what is measured in every frame of a clip, how smoothly it changes, and the beat in it.

Rules and limits are those of RL4Seg3D (arXiv 2510.14244; `attr_thresholds` in its code), after N. Painchaud et al.,
IEEE Trans. Med. Imaging 41(10), 2022: an attribute is scaled to its own range in the clip, widened by 1 % of either
end, and a frame stands out where it lies too far from the middle between its neighbours; and the Hausdorff distance to
both neighbours is, in the mean, a few mm. Theirs measure length and base from landmarks of the myocardium; ours are of
the discs of the ventricle, which needs no myocardium.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from medfm_rl.anatomy.discs import Discs, measure_discs
from medfm_rl.anatomy.measures import centre, grow
from medfm_rl.structures import pixels_of
from medfm_rl.types import FloatArray, LabelMap, LabelSchema

_Curve = npt.NDArray[np.float64]
_SOURCE = "RL4Seg3D, arXiv 2510.14244"
_MARGIN = 0.01
_AREA, _OTHER_AREA, _LENGTH, _BASE_WIDTH, _DOWN, _ACROSS = 0.2, 0.4, 0.25, 0.45, 0.2, 0.3
"""Limits of attributes, as shares of their range."""
_NEIGHBOUR_MM, _ALL_MM = 7.0, 7.5
"""Limits of the Hausdorff distance of one structure, and of ventricle and wall together."""
_MYOCARDIUM = ("myo", "myocardium", "lvmyo", "lvmyocardium", "lvepi", "lvepicardium")
_BASE = 2
"""Discs of 20 that are the base."""
SMOOTH = 3
"""Frames over which the curve of the area is averaged before its beat is sought."""
_SMALLEST_BEAT = 0.1
"""Share of its largest area by which a ventricle at least contracts, in any beat that can be measured."""
_TURN = 0.25
"""Share of the swing of the whole curve by which it has to turn back for another beat."""


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
        """Mean diameter of the lowest tenth of the ventricle, counted from its apex down."""
        return None if self.discs is None else float(np.mean(self.discs.diameters[-_BASE:]))


@dataclass(frozen=True)
class TemporalResult:
    """The finding of a rule over time.

    Attributes:
        rule: What was measured.
        structure: In what.
        measured: The largest value, in `unit`; None where nothing could be measured.
        most: The limit; infinity where none applies.
        unit: What it is measured in.
        frame: Where it is largest, counted from 0.
        source: Where the limit comes from.
        passed: Whether it is met.
    """

    rule: str
    structure: str
    measured: float | None
    most: float
    unit: str
    frame: int | None
    source: str
    passed: bool

    def __str__(self) -> str:
        if self.measured is None:
            return f"{self.rule} of {self.structure}: cannot be measured"
        at = "" if self.frame is None else f" at frame {self.frame}"
        return f"{self.rule} of {self.structure}{at}: {self.measured:.3g} {self.unit}, limit at most {self.most:.3g}"


@dataclass(frozen=True)
class Beat:
    """End-diastole and end-systole of one beat, as places in the clip.

    Attributes:
        ed: Frame in which the ventricle is largest.
        es: Frame of that beat in which it is smallest.
        beats: Times that the area falls from a maximum to a minimum in the clip.
    """

    ed: int
    es: int
    beats: int


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

    def area_curve(self, structure: str) -> _Curve:
        """The area of a structure in every frame, `(T,)`, in square pixels."""
        return np.array([frame.areas[structure] for frame in self.frames])


def measure_clip(
    masks: LabelMap, schema: LabelSchema, ventricle: str, spacing: tuple[float, float] | None
) -> ClipAnatomy:
    """Measures the masks of a clip.

    Args:
        masks: Class indices `(T, H, W)`.
        schema: Structures.
        ventricle: The structure whose beat is sought.
        spacing: Size of a pixel in mm in array order, (y, x); None where unknown, and pixels count as square.
    """
    side = None if spacing is None else float(min(spacing))
    squared = np.stack([_with_square_pixels(mask, spacing) for mask in masks])
    chosen = pixels_of(squared, schema.classes_of(ventricle))
    frames = tuple(_measure_frame(mask, schema, inside) for mask, inside in zip(squared, chosen, strict=True))
    areas = np.array([frame.areas[ventricle] for frame in frames])
    beat, no_beat = find_beat(areas)
    rules = (*_smoothness(frames, schema, ventricle), *_neighbours(squared, schema, ventricle, side))
    return ClipAnatomy(ventricle, frames, side, beat, no_beat, jitter_of(areas), rules)


def jitter_of(areas: _Curve) -> float | None:
    """Mean size of the second difference of a curve as a share of its mean; None of fewer than 3 frames or nothing."""
    if len(areas) < 3 or not areas.any():
        return None
    return float(np.abs(np.diff(areas, 2)).mean() / areas.mean())


def find_beat(areas: _Curve) -> tuple[Beat | None, str | None]:
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
    curve: _Curve = ndimage.uniform_filter1d(kept, SMOOTH, mode="nearest")
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
    return Beat(ed, es, _count_falls(curve, _TURN * swing)), None


def _extreme(areas: _Curve, kept: _Curve, place: int, sign: int) -> int:
    """Of the frames that were smoothed together, the largest (sign 1) or smallest (-1) among its neighbours."""
    near = range(max(0, place - SMOOTH // 2), min(len(areas), place + SMOOTH // 2 + 1))
    return max(near, key=lambda index: (sign * kept[index], sign * areas[index]))


def _valley(curve: _Curve, turn: float) -> int:
    """Steps from the start of a curve to its lowest value before it has grown by `turn` again."""
    lowest = 0
    for index, value in enumerate(curve):
        if value < curve[lowest]:
            lowest = index
        elif value > curve[lowest] + turn and curve[0] - curve[lowest] > turn:
            break
    return lowest


def _count_falls(curve: _Curve, turn: float) -> int:
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


def _measure_frame(mask: LabelMap, schema: LabelSchema, inside: npt.NDArray[np.bool_]) -> FrameAttributes:
    counts = np.bincount(mask.ravel(), minlength=schema.num_classes)
    areas = {name: float(counts[list(schema.classes_of(name))].sum()) for name in schema.structures}
    return FrameAttributes(areas, measure_discs(inside), centre(inside) if inside.any() else None)


def _with_square_pixels(mask: LabelMap, spacing: tuple[float, float] | None) -> LabelMap:
    """A mask on pixels as large as the shorter side, where they are not square."""
    if spacing is None or np.isclose(*spacing, rtol=0.01):
        return mask
    zoomed: LabelMap = ndimage.zoom(
        mask, [length / min(spacing) for length in spacing], order=0, grid_mode=True, mode="grid-constant"
    )
    return zoomed


def _smoothness(frames: Sequence[FrameAttributes], schema: LabelSchema, ventricle: str) -> list[TemporalResult]:
    """How far each attribute lies from the middle between its neighbours, at most."""
    missing = [index for index, frame in enumerate(frames) if frame.discs is None]
    if missing:
        share = len(missing) / len(frames)
        return [TemporalResult("absence", ventricle, share, 0.0, "of the frames", missing[0], "project", False)]
    curves = [("area", name, [frame.areas[name] for frame in frames], _OTHER_AREA) for name in schema.structures]
    curves = [(what, name, curve, _AREA if name == ventricle else limit) for what, name, curve, limit in curves]
    lengths = [frame.discs.length for frame in frames if frame.discs is not None]
    widths = [frame.base_width for frame in frames if frame.base_width is not None]
    down, across = zip(*(frame.centre for frame in frames if frame.centre is not None), strict=True)
    curves += [
        ("length", ventricle, lengths, _LENGTH),
        ("base width", ventricle, widths, _BASE_WIDTH),
        ("centre down", ventricle, list(down), _DOWN),
        ("centre across", ventricle, list(across), _ACROSS),
    ]
    return [
        _stands_out(f"jump of the {what}", name, np.array(curve), most)
        for what, name, curve, most in curves
        if any(curve)
    ]


def _stands_out(rule: str, structure: str, curve: _Curve, most: float) -> TemporalResult:
    unit = "of its range in the clip"
    if len(curve) < SMOOTH:
        return TemporalResult(rule, structure, None, most, unit, None, _SOURCE, True)
    low, high = (1 - _MARGIN) * curve.min(), (1 + _MARGIN) * curve.max()
    jumps = np.abs(np.diff((curve - low) / (high - low), 2)) / 2
    worst = int(jumps.argmax())
    measured = float(jumps[worst])
    return TemporalResult(rule, structure, measured, most, unit, worst + 1, _SOURCE, measured <= most)


def _neighbours(squared: LabelMap, schema: LabelSchema, ventricle: str, side: float | None) -> list[TemporalResult]:
    """Mean Hausdorff distance of a frame to both neighbours, at most: of the myocardium, and of ventricle and wall.

    Without a myocardium it is that of the ventricle; with unknown spacing it is in pixels, and no limit applies.
    """
    walls = [name for name in schema.structures if _plain(name) in _MYOCARDIUM]
    of = [(ventricle, [ventricle], _NEIGHBOUR_MM)]
    if walls:
        wall = walls[0]
        of = [(wall, [wall], _NEIGHBOUR_MM), (f"{ventricle}+{wall}", [ventricle, wall], _ALL_MM)]
    return [
        _distance(pixels_of(squared, [index for name in names for index in schema.classes_of(name)]), shown, most, side)
        for shown, names, most in of
    ]


def _distance(masks: npt.NDArray[np.bool_], shown: str, most: float, side: float | None) -> TemporalResult:
    rule, unit = "distance to neighbours", "px" if side is None else "mm"
    limit = np.inf if side is None else most
    edges = [_edge(mask) for mask in masks]
    steps = [
        hausdorff(one, two) * (side or 1.0) if len(one) and len(two) else np.nan
        for one, two in itertools.pairwise(edges)
    ]
    means = np.array([(before + after) / 2 for before, after in itertools.pairwise(steps)])
    if not np.isfinite(means).any():
        # That structures are missing is another rule's to say.
        return TemporalResult(rule, shown, None, limit, unit, None, _SOURCE, True)
    worst = int(np.nanargmax(means))
    return TemporalResult(
        rule, shown, float(means[worst]), limit, unit, worst + 1, _SOURCE, bool(means[worst] <= limit)
    )


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.casefold()))


def _edge(mask: npt.NDArray[np.bool_]) -> FloatArray:
    """Pixels of a mask that have a neighbour outside of it, `(N, 2)`."""
    edge: FloatArray = np.argwhere(mask & grow(~mask)).astype(np.float32)
    return edge


def hausdorff(one: FloatArray, two: FloatArray) -> float:
    """Hausdorff distance of two sets of points `(N, 2)`, neither of them empty."""
    return float(max(np.max(cKDTree(one).query(two)[0]), np.max(cKDTree(two).query(one)[0])))
