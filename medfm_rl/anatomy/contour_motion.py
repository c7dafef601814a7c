"""How far contours move from one frame of a clip to the next: Hausdorff distances between neighbours."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

_Masks = npt.NDArray[np.bool_]
_MOST_PIXELS = 2_000_000
"""Pixels of the frames that are compared at once: masks of noise have as many points of contours as pixels."""
_REACH = 6
"""Pixels up to which neighbouring contours are compared by looking around each point; what lies farther is rare."""


def neighbour_distances(masks: _Masks) -> npt.NDArray[np.float64]:
    """Hausdorff distance in pixels between the contours of each frame and the next.

    Contours are the pixels of a mask with a neighbour outside of it. Nearly every point of one has a point of the next
    within a few pixels, so rings of growing radius are looked up around all points of many frames at once, and a tree
    is built only for the points that find nothing there.

    Args:
        masks: `(T, H, W)`.

    Returns:
        `(T - 1,)`; NaN where either frame is empty.
    """
    at_once = max(1, _MOST_PIXELS // max(1, masks[:1].size))
    blocks = [_of_block(masks[first : first + at_once + 1]) for first in range(0, max(1, len(masks) - 1), at_once)]
    return np.concatenate(blocks)


def _of_block(masks: _Masks) -> npt.NDArray[np.float64]:
    edges = _edges(masks)
    filled: npt.NDArray[np.bool_] = np.asarray(edges.any(axis=(1, 2)))
    both = filled[:-1] & filled[1:]
    found = np.where(both, 0.0, np.nan)
    padded = np.pad(edges, ((0, 0), (_REACH, _REACH), (_REACH, _REACH)))
    flat, plane, width = padded.ravel(), padded[0].size, padded.shape[2]
    points = np.flatnonzero(flat)
    frames = points // plane
    for step in (1, -1):
        # The pair of frames t and t + 1 has the place t.
        pairs = frames if step == 1 else frames - 1
        kept = (pairs >= 0) & (pairs < len(both))
        kept[kept] &= both[pairs[kept]]
        left = _beyond_reach(points[kept] + step * plane, pairs[kept], flat, width, found)
        for pair in np.unique(left[1]):
            to = pair if step == -1 else pair + 1
            tree = cKDTree(np.argwhere(padded[to]), balanced_tree=False, compact_nodes=False)
            rows, columns = np.divmod(left[0][left[1] == pair] - to * plane, width)
            found[pair] = max(found[pair], float(np.max(tree.query(np.stack([rows, columns], axis=1))[0])))
    return found


def _beyond_reach(
    places: npt.NDArray[np.int64],
    pairs: npt.NDArray[np.int64],
    flat: _Masks,
    width: int,
    found: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Raises `found` to the distance of the farthest point of each pair; returns the points that found nothing."""
    for distance, ring in _rings():
        hit = np.zeros(len(places), bool)
        for down, across in ring:
            hit |= flat[places + (down * width + across)]
        farthest = np.unique(pairs[hit])
        found[farthest] = np.maximum(found[farthest], distance)
        places, pairs = places[~hit], pairs[~hit]
        if len(places) == 0:
            break
    return places, pairs


@lru_cache(maxsize=1)
def _rings() -> list[tuple[float, list[tuple[int, int]]]]:
    """Offsets within reach, those of equal distance together, the nearest first."""
    rings: dict[int, list[tuple[int, int]]] = {}
    for down in range(-_REACH, _REACH + 1):
        for across in range(-_REACH, _REACH + 1):
            squared = down * down + across * across
            if squared <= _REACH**2:
                rings.setdefault(squared, []).append((down, across))
    return [(float(np.sqrt(squared)), rings[squared]) for squared in sorted(rings)]


def _edges(masks: _Masks) -> _Masks:
    """Pixels of each mask `(T, H, W)` with a neighbour outside of it; what lies beyond the frame is not outside."""
    inner = masks.copy()
    inner[:, 1:] &= masks[:, :-1]
    inner[:, :-1] &= masks[:, 1:]
    inner[:, :, 1:] &= masks[:, :, :-1]
    inner[:, :, :-1] &= masks[:, :, 1:]
    edges: _Masks = masks & ~inner
    return edges
