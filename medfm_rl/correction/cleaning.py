"""Anatomy rules on parts and holes, carried out on a mask."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.anatomy.rules import ComponentsRule, HolesRule
from medfm_rl.types import LabelMap


def clean_up(labels: LabelMap, anatomy: Anatomy) -> LabelMap:
    """Removes all but the largest parts of a structure, and fills its holes, where the anatomy has a rule about it.

    Where no rule says how many parts a structure has, they all stay. What is removed becomes background; a hole that
    is background gets the class of the nearest structure, that of one that lies in it too.

    Args:
        labels: Class indices `(*S)`.
        anatomy: `components` says how many parts stay, `holes` whose holes are filled. Where volumes are checked plane
            by plane they are tidied plane by plane.
    """
    if labels.ndim == 3 and anatomy.profile.planes:
        return np.stack([_clean_up(plane, anatomy) for plane in labels])
    return _clean_up(labels, anatomy)


def _clean_up(labels: LabelMap, anatomy: Anatomy) -> LabelMap:
    tidied = labels.copy()
    for rule in anatomy.rules:
        if isinstance(rule, ComponentsRule):
            mask = np.isin(tidied, _classes(rule.structure, anatomy))
            parts, count = ndimage.label(mask)
            if count > rule.most:
                sizes = np.bincount(parts.ravel())
                sizes[0] = 0
                tidied[mask & ~np.isin(parts, sizes.argsort(kind="stable")[-rule.most :])] = 0
    for rule in anatomy.rules:
        if isinstance(rule, HolesRule):
            mask = np.isin(tidied, _classes(rule.structure, anatomy))
            holes = ndimage.binary_fill_holes(mask) & (tidied == 0)
            if holes.any():
                # Of all structures: what lies in this one may have the hole.
                nearest = ndimage.distance_transform_edt(tidied == 0, return_distances=False, return_indices=True)
                tidied[holes] = tidied[tuple(nearest)][holes]
    return tidied


def _classes(structure: str, anatomy: Anatomy) -> list[int]:
    return [anatomy.schema.index_of(name) for name in structure.split("+")]
