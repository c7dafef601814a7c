"""The loss against expert masks: Dice and cross-entropy, of the pixels that the masks say something of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfm_rl.networks import one_hot
from medfm_rl.types import IGNORED


class DiceAndCrossEntropy(nn.Module):
    """The sum of both, each a mean. Pixels that are `IGNORED` have no part in it: no loss, and no gradient."""

    def __init__(self) -> None:
        from monai.losses import DiceCELoss, DiceLoss

        super().__init__()
        self.whole = DiceCELoss(to_onehot_y=True, softmax=True)
        self.dice = DiceLoss()

    def forward(self, logits: Tensor, labels: Tensor, of: Tensor | None = None) -> Tensor:
        """The loss of logits `(B, K, *S)` and class indices `(B, *S)`, a number.

        Args:
            logits: Before the softmax.
            labels: Class indices, or `IGNORED`.
            of: Labels `(N, *S)` of the whole batch where these are a part of it. By B / N, the losses of the parts then
                sum to that of the whole: Dice is a mean over images, and cross-entropy one over pixels.
        """
        said = labels != IGNORED
        more = 1.0 if of is None else _share_of_pixels(said, of)
        if bool(said.all()) and more == 1:
            loss: Tensor = self.whole(logits, labels[:, None])
            return loss
        if not bool(said.any()):
            return logits.sum() * 0
        wanted = one_hot(torch.where(said, labels, 0), logits.shape[1], dim=1)
        counts = said[:, None].to(logits.dtype)
        overlap: Tensor = self.dice(logits.softmax(dim=1) * counts, wanted.to(logits.dtype) * counts)
        return overlap + more * F.cross_entropy(logits, labels.long(), ignore_index=IGNORED)


def _share_of_pixels(said: Tensor, of: Tensor) -> float:
    """The share of the pixels of a batch that are said something of and lie in a part, by its share of the images."""
    everywhere = int((of != IGNORED).sum())
    return int(said.sum()) * len(of) / (everywhere * len(said)) if everywhere else 1.0
