"""What calibrated rewards leave open of areas, volumes and the ejection fraction of a clip: by drawing masks.

A reward map says of each pixel how probable it is that its class is right, so how probable it is that the pixel belongs
to a structure. What it does not say is which pixels are wrong together, and on that depends how far sums over pixels
can be off: errors that are independent cancel, errors of a whole wall do not. Masks are drawn as level sets of a smooth
Gaussian field against these probabilities (a Gaussian copula): every pixel belongs to the structure as often as its
probability says, and neighbours go together over about half the length of the structure. Latent fields of this kind are
those of D. Bolin and F. Lindgren, J. R. Stat. Soc. B 77(1), 2015, and, learned by a network, of M. Monteiro et al.,
NeurIPS 2020 (arXiv 2006.06015). The length is an assumption and no measurement: shorter ones give narrower intervals.

Frames are drawn independently of each other. Errors that a segmenter repeats in each frame cancel in an ejection
fraction more than is assumed here, so its interval is rather too wide. End-diastole and end-systole stay the frames
that were found. Structures are drawn apart, and what is drawn of one does not have to fit to what is drawn of another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage, special

from medfm_rl.anatomy.clips import ClipAnatomy, with_square_pixels
from medfm_rl.anatomy.discs import Discs, measure_discs
from medfm_rl.structures import bounding_box, pixels_of
from medfm_rl.types import FloatArray, LabelMap, LabelSchema

_Probability = npt.NDArray[np.float32]
DRAWS = 200
"""Masks that are drawn of each frame; the ends of a 90 % interval then rest on ten of them each."""
LEVEL = 0.9
"""Share of the draws within an interval."""
_REACH = 0.05
"""Share of the longer side of an image within which a class can be what a wrong pixel should have been."""
_CORRELATED = 0.5
"""Of the longer side of a structure: the distance over which errors go together."""


@dataclass(frozen=True)
class ClipDraws:
    """What drawn masks of a clip measure.

    Attributes:
        areas: Of each structure the lower and upper end of the interval in every frame, `(T, 2)`, in square pixels.
        ed: The ventricle of each draw at end-diastole, cut into discs; empty without a beat.
        es: The same at end-systole, of the same draws.
    """

    areas: Mapping[str, npt.NDArray[np.float64]]
    ed: tuple[Discs, ...]
    es: tuple[Discs, ...]


def draw_clip(
    masks: LabelMap,
    rewards: FloatArray,
    schema: LabelSchema,
    anatomy: ClipAnatomy,
    spacing: tuple[float, float] | None,
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> ClipDraws:
    """Draws masks of a clip from its reward maps, and measures them.

    Args:
        masks: Class indices `(T, H, W)`.
        rewards: Calibrated probability that each pixel is right, `(T, H, W)` in [0, 1].
        schema: Structures.
        anatomy: What was measured in the masks.
        spacing: Size of a pixel in mm in array order, (y, x), or None.
        rng: Draws.
        draws: How many masks of each frame.
    """
    masks, rewards = with_square_pixels(masks, spacing), with_square_pixels(rewards, spacing)
    beat = anatomy.beat
    wanted = () if beat is None else (beat.ed, beat.es)
    areas: dict[str, npt.NDArray[np.float64]] = {}
    kept: dict[int, list[Discs | None]] = {}
    for name in schema.structures:
        classes = schema.classes_of(name)
        ends, whole = np.zeros((len(masks), 2)), pixels_of(masks, classes)
        box = bounding_box(np.asarray(whole.any(axis=0)), _reach(masks))
        if box is not None:
            fields = _fields(whole[:, *box], draws, rng)
            for frame, inside in enumerate(_belongs(masks, rewards, classes, schema.num_classes, box)):
                # The same fields in another order: drawn anew for every frame they would take longer than all else.
                drawn = fields[rng.permutation(draws)] < inside
                ends[frame] = interval_of(np.count_nonzero(drawn, axis=(1, 2)))
                if name == anatomy.ventricle and frame in wanted:
                    kept[frame] = [measure_discs(mask) for mask in drawn]
        areas[name] = ends
    if beat is None or not kept:
        return ClipDraws(areas, (), ())
    pairs = zip(kept[beat.ed], kept[beat.es], strict=True)
    both = [(ed, es) for ed, es in pairs if ed is not None and es is not None]
    return ClipDraws(areas, tuple(ed for ed, _ in both), tuple(es for _, es in both))


def interval_of(values: npt.ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """The interval that leaves out as many values below as above."""
    low, high = np.quantile(np.asarray(values, dtype=np.float64), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def membership(
    mask: LabelMap, rewards: FloatArray, classes: tuple[int, ...], num_classes: int, reach: int
) -> _Probability:
    """Probability that each pixel of an image belongs to a structure, `(H, W)`.

    A pixel of the structure does as far as it is right. A wrong pixel of another class should have been of the class
    that lies nearest, within reach; those that lie equally near have equal shares. Of structures that overlap several
    classes are of one structure, and a wrong pixel of it may still be.

    Args:
        mask: Class indices `(H, W)`.
        rewards: `(H, W)` in [0, 1].
        classes: Class indices of the structure.
        num_classes: K.
        reach: In pixels.
    """
    far = reach + 1
    distances = np.full((num_classes, *mask.shape), far, np.int32)
    for other in range(num_classes):
        away = mask != other
        if not away.all():
            steps = ndimage.distance_transform_cdt(away, metric="chessboard")
            distances[other] = np.where(away, np.minimum(steps, far), far)
    nearest = distances.min(axis=0)
    own = (distances[list(classes)] == nearest).sum(axis=0) * (nearest < far)
    instead = (1 - rewards) * (own / np.sum(distances == nearest, axis=0))
    found: _Probability = (np.where(pixels_of(mask, classes), rewards, 0) + instead).astype(np.float32)
    return found


def _belongs(
    masks: LabelMap, rewards: FloatArray, classes: tuple[int, ...], num_classes: int, box: tuple[slice, ...]
) -> Iterator[npt.NDArray[np.float32]]:
    """Of every frame how far a standard normal field has to lie below for a pixel to belong to the structure."""
    reach = _reach(masks)
    # A structure has shares of what lies within reach of its neighbours.
    wide = tuple(slice(max(0, part.start - reach), part.stop + reach) for part in box)
    inner = tuple(
        slice(part.start - far.start, part.start - far.start + part.stop - part.start)
        for part, far in zip(box, wide, strict=True)
    )
    for mask, reward in zip(masks, rewards, strict=True):
        found = membership(mask[wide], reward[wide], classes, num_classes, reach)[inner]
        yield special.ndtri(found).astype(np.float32)


def _fields(inside: npt.NDArray[np.bool_], draws: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Smooth Gaussian fields of mean 0 and variance 1 in the box of a structure, `(draws, H, W)`."""
    rows, columns = inside.any(axis=(0, 2)), inside.any(axis=(0, 1))
    longer = max(int(rows.sum()), int(columns.sum()))
    length = max(1.0, _CORRELATED * longer)
    # Drawn on a grid of a quarter of that length, and wider by two lengths, where the filter does not see the border.
    step = max(1, int(length / 4))
    shape = tuple(-(-side // step) + 1 for side in inside.shape[1:])
    margin = -(-int(2 * length) // step)
    noise = rng.standard_normal((draws, *(side + 2 * margin for side in shape)), dtype=np.float32)
    # Noise filtered with a width s is correlated as exp(-d^2 / 4 s^2): 1 / e at 2 s.
    coarse = ndimage.gaussian_filter(noise, length / 2 / step, axes=(1, 2))[:, margin:-margin, margin:-margin]
    fine = coarse
    for axis, side in enumerate(inside.shape[1:], 1):
        places = np.arange(side) / step
        lower = places.astype(np.intp)
        weight = (places - lower).astype(np.float32)
        weight = weight[:, None] if axis == 1 else weight
        fine = fine.take(lower, axis) * (1 - weight) + fine.take(lower + 1, axis) * weight
    scaled: npt.NDArray[np.float32] = fine / np.sqrt(np.mean(np.square(fine), axis=0, keepdims=True))
    return scaled


def _reach(masks: LabelMap) -> int:
    return max(1, round(_REACH * float(max(masks.shape[1:]))))
