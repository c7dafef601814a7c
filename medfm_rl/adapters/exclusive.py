"""One binary logit for each structure, as the logits of classes of which a pixel has exactly one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from medfm_rl.types import LabelSchema


def exclusive_logits(z: Tensor, schema: LabelSchema, contains: Mapping[str, tuple[str, ...]]) -> Tensor:
    """Logits `(B, K, *S)` of exclusive classes from one binary logit for each structure, `(B, K - 1, *S)`.

    They are `[0, z_1 .. z_K-1]`; a structure whose prompt takes in others has `min(z_outer, -z_inner)`.

    Args:
        z: Binary logits.
        schema: The structures.
        contains: By structure, those that its prompt takes in.
    """
    exclusive = list(z.unbind(dim=1))
    for outer, inner in contains.items():
        row = schema.index_of(outer) - 1
        for name in inner:
            exclusive[row] = torch.minimum(exclusive[row], -z[:, schema.index_of(name) - 1])
    return torch.stack([torch.zeros_like(z[:, 0]), *exclusive], dim=1)


def two_classes(logits: Tensor, classes: int) -> Tensor:
    """Logits `(B, 2, *S)` from one logit z `(B, 1, *S)` of the only structure; any others as they are.

    They are `[0, z]`, for the softmax of (0, z) is (1 - sigmoid(z), sigmoid(z)).
    """
    if classes != 2 or logits.ndim < 2 or logits.shape[1] != 1:
        return logits
    return torch.cat([torch.zeros_like(logits), logits], dim=1)
