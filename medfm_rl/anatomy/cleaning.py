"""Anatomy rules on parts and holes, carried out on a mask.

As post-processing that is common after segmentation (nnU-Net keeps the largest part of a structure), but by the rules
of the anatomy: a structure that may have two parts keeps two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.anatomy.rules import ComponentsRule, HolesRule
from medfm_rl.errors import ConfigError
from medfm_rl.types import LabelMap, LabelSchema


def require_rules_to_clean_by(anatomy: Anatomy) -> None:
    """Refuses an anatomy by which nothing would be cleaned up.

    Raises:
        ConfigError: It has no rule on parts or holes.
    """
    if not any(isinstance(rule, ComponentsRule | HolesRule) for rule in anatomy.rules):
        raise ConfigError(
            f"anatomy {anatomy.name}: no rule of kind components or holes says what to clean up; add one, or name "
            "another anatomy"
        )


def clean_up(labels: LabelMap, anatomy: Anatomy) -> LabelMap:
    """Removes all but the largest parts of a structure, and fills its holes, where the anatomy has a rule about it.

    Where no rule says how many parts a structure has, they all stay. What is removed becomes background; a hole that
    is background gets the class of the nearest structure, that of one that lies in it too.

    Where structures overlap, what is removed stays what else it is, as far as a file can hold that: without the whole
    tumour there is no core. A hole gets the structure besides what it is.

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
            mask = np.isin(tidied, anatomy.schema.classes_of(rule.structure))
            parts, count = ndimage.label(mask)
            if count > rule.most:
                sizes = np.bincount(parts.ravel())
                sizes[0] = 0
                removed = mask & ~np.isin(parts, sizes.argsort(kind="stable")[-rule.most :])
                tidied[removed] = _without(rule.structure, anatomy.schema)[tidied[removed]]
    for rule in anatomy.rules:
        if isinstance(rule, HolesRule):
            mask = np.isin(tidied, anatomy.schema.classes_of(rule.structure))
            holes = ndimage.binary_fill_holes(mask) & ~mask
            if anatomy.schema.overlaps and "+" not in rule.structure and rule.of == "anything":
                tidied[holes] = _with(rule.structure, anatomy.schema)[tidied[holes]]
                continue
            holes &= tidied == 0
            if holes.any():
                # Of all structures: what lies in this one may have the hole.
                nearest = ndimage.distance_transform_edt(tidied == 0, return_distances=False, return_indices=True)
                tidied[holes] = tidied[tuple(nearest)][holes]
    return tidied


def _without(structure: str, schema: LabelSchema) -> LabelMap:
    """By class, what is left of it without a structure, or a union of them: the most that a file can hold."""
    removed = set(structure.split("+"))
    found = [
        max((each for each in _writable(schema) if each <= own - removed), key=len) for own in _structures_of(schema)
    ]
    return _indices(found, schema)


def _with(structure: str, schema: LabelSchema) -> LabelMap:
    """By class, the least beside it that a file can hold and that is of a structure too; the class, where none is."""
    found = [
        min((each for each in _writable(schema) if each >= own | {structure}), key=len, default=own)
        for own in _structures_of(schema)
    ]
    return _indices(found, schema)


def _structures_of(schema: LabelSchema) -> list[frozenset[str]]:
    """By class index, the structures that the class is of."""
    of_structures = list(zip(schema.structures, schema.classes, strict=True))
    return [
        frozenset(name for name, classes in of_structures if index in classes) for index in range(schema.num_classes)
    ]


def _writable(schema: LabelSchema) -> list[frozenset[str]]:
    """The classes that files hold as they are, by their structures; the background, of none, is the first."""
    indices = np.arange(schema.num_classes, dtype=np.uint8)
    kept = schema.as_written(indices) == indices
    return [own for own, stays in zip(_structures_of(schema), kept, strict=True) if stays]


def _indices(classes: Sequence[frozenset[str]], schema: LabelSchema) -> LabelMap:
    index_of = {own: index for index, own in enumerate(_structures_of(schema))}
    return np.array([index_of[own] for own in classes], dtype=np.uint8)
