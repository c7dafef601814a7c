"""The loss against expert masks: Dice and cross-entropy, of the pixels that the masks say something of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfm_rl.types import IGNORED


class DiceAndCrossEntropy(nn.Module):
    """The sum of both, each a mean. Pixels that are `IGNORED` have no part in it: no loss, and no gradient."""

    def __init__(self) -> None:
        from monai.losses import DiceCELoss, DiceLoss

        super().__init__()
        self.whole = DiceCELoss(to_onehot_y=True, softmax=True)
        self.dice = DiceLoss()

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of logits `(B, K, *S)` and class indices `(B, *S)`, a number."""
        said = labels != IGNORED
        if bool(said.all()):
            loss: Tensor = self.whole(logits, labels[:, None])
            return loss
        if not bool(said.any()):
            return logits.sum() * 0
        wanted = F.one_hot(torch.where(said, labels, 0).long(), logits.shape[1]).movedim(-1, 1)
        counts = said[:, None].to(logits.dtype)
        overlap: Tensor = self.dice(logits.softmax(dim=1) * counts, wanted.to(logits.dtype) * counts)
        return overlap + F.cross_entropy(logits, labels.long(), ignore_index=IGNORED)
