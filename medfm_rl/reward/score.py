"""From a reward map to one number per structure."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medfm_rl.structures import Structures

MARGIN = 3
"""Pixels around a structure that belong to its region."""


def structure_scores(maps: Tensor, actions: Tensor, structures: Structures) -> Tensor:
    """Mean reward in and around each structure of an action.

    The region of a structure is its pixels and those within three pixels of it: a missing rim lowers the score as an
    extra one does, and the large background, which is nearly always right, does not drown it.

    Args:
        maps: Reward maps `(B, *S)` in [0, 1].
        actions: `(B, *S)`, class indices.
        structures: Class indices of each structure.

    Returns:
        `(B, R)` in [0, 1]; 0 for a structure that the action lacks.
    """
    return region_means(maps, structure_regions(actions, structures))


def paired_scores(
    before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], structures: Structures
) -> tuple[Tensor, Tensor]:
    """Mean rewards of two actions on one image, each structure over the same pixels for both.

    The region of a structure is where either action has it, and three pixels around: a false island costs the action
    that has it, though the other has no region there.

    Args:
        before: Reward map and action, `(B, *S)` both.
        after: The same of the other action.
        structures: Class indices of each structure.

    Returns:
        `(B, R)` for each action; 0 for both where neither has the structure.
    """
    regions = torch.maximum(structure_regions(before[1], structures), structure_regions(after[1], structures))
    return region_means(before[0], regions), region_means(after[0], regions)


def compared_scores(
    before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], structures: Structures
) -> tuple[Tensor, Tensor]:
    """One number for each of two actions on one image: the mean over the structures that either of them has.

    A structure that both have is rated as by `structure_scores`, each action in its own region. One that only one of
    them has is rated as by `paired_scores`, both in the region of that one: where it is not on the image, the action
    without it is right there and scores higher. One that neither has says nothing and is left out.

    Args:
        before: Reward map and action, `(B, *S)` both.
        after: The same of the other action.
        structures: Class indices of each structure.

    Returns:
        `(B,)` in [0, 1] for each action; 0 for both where neither has any structure.
    """
    regions = [structure_regions(action, structures) for _, action in (before, after)]
    has = [region.flatten(2).amax(dim=2) > 0 for region in regions]
    count = (has[0] | has[1]).sum(dim=1)
    scores = []
    for (maps, _), own, of_other, there in zip((before, after), regions, reversed(regions), has, strict=True):
        rated = torch.where(there.view(*there.shape, *[1] * (own.ndim - 2)), own, of_other)
        scores.append(region_means(maps, rated).sum(dim=1) / count.clamp_min(1))
    return scores[0], scores[1]


def structure_regions(actions: Tensor, structures: Structures) -> Tensor:
    """The pixels of each structure and those within three pixels of it, 0 or 1.

    Args:
        actions: `(B, *S)`, class indices.
        structures: Class indices of each structure.

    Returns:
        `(B, R, *S)`.
    """
    return dilate(memberships(actions, structures), MARGIN).float()


def memberships(actions: Tensor, structures: Structures) -> Tensor:
    """Whether each pixel of actions `(B, *S)` is of each structure, `(B, R, *S)` bool."""
    if all(len(classes) == 1 for classes in structures):
        return class_masks(actions, [classes[0] for classes in structures])
    return torch.stack([class_masks(actions, classes).any(dim=1) for classes in structures], dim=1)


def class_masks(actions: Tensor, classes: Sequence[int]) -> Tensor:
    """Whether each pixel of actions `(B, *S)` has each of some classes, `(B, len(classes), *S)` bool."""
    return actions[:, None] == torch.tensor(classes, device=actions.device).view(-1, *[1] * (actions.ndim - 1))


def pixels_in(action: Tensor, classes: Sequence[int]) -> Tensor:
    """Where an action `(*S)` has one of some classes, bool."""
    return class_masks(action[None], classes)[0].any(dim=0)


def region_means(maps: Tensor, regions: Tensor) -> Tensor:
    """Mean of maps `(B, *S)` over regions `(B, R, *S)`, `(B, R)`; 0 over an empty one."""
    flat = regions.to(maps).flatten(2)
    area = flat.sum(dim=2)
    return torch.where(area > 0, (flat * maps.flatten(1)[:, None]).sum(dim=2) / area.clamp_min(1), 0.0)


def dilate(masks: Tensor, reach: int) -> Tensor:
    """Masks `(B, C, *S)` of 0 and 1, grown by `reach` pixels along every axis, one axis after the other.

    Windows of a pixel and its neighbours at a distance double with every step, which is many times as fast as pooling.
    """
    grown = masks > 0
    for axis in range(2, masks.ndim):
        side, grown_by = masks.shape[axis], 0
        while grown_by < min(reach, side - 1):
            # No further than r + 1: there are no windows centred beyond the border, and this one must reach it.
            step = min(grown_by + 1, reach - grown_by, side - 1)
            before, grown = grown, grown.clone()
            grown.narrow(axis, step, side - step).logical_or_(before.narrow(axis, 0, side - step))
            grown.narrow(axis, 0, side - step).logical_or_(before.narrow(axis, step, side - step))
            grown_by += step
    return grown.to(masks.dtype)
