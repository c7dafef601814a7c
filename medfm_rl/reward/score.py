"""From a reward map to one number per structure."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_MARGIN = 3


def structure_scores(maps: Tensor, actions: Tensor, num_classes: int) -> Tensor:
    """Mean reward in and around each structure of an action.

    The region of a structure is its pixels and those within three pixels of it: a missing rim lowers the score as an
    extra one does, and the large background, which is nearly always right, does not drown it.

    Args:
        maps: Reward maps `(B, *S)` in [0, 1].
        actions: `(B, *S)`, class indices.
        num_classes: K.

    Returns:
        `(B, K - 1)` in [0, 1]; 0 for a structure that the action lacks.
    """
    pool = F.max_pool2d if maps.ndim == 3 else F.max_pool3d
    one_hot = F.one_hot(actions.long(), num_classes).movedim(-1, 1)[:, 1:].to(maps)
    region = pool(one_hot, kernel_size=2 * _MARGIN + 1, stride=1, padding=_MARGIN).flatten(2)
    area = region.sum(dim=2)
    return torch.where(area > 0, (region * maps.flatten(1)[:, None]).sum(dim=2) / area.clamp_min(1), 0.0)
