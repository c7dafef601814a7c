"""One binary logit for each of several regions that may overlap, as the logits of classes of which a pixel has one.

R independent decisions of a pixel, in region r with probability sigmoid(z_r), are one decision among the 2^R sets of
regions: the set b, a bit mask, has the probability

    prod_r sigmoid(z_r)^b_r (1 - sigmoid(z_r))^(1 - b_r) = exp(sum_r b_r z_r) / prod_r (1 + exp(z_r)),

which is the softmax of the logits sum_r b_r z_r over all b. Log-probabilities, entropies and divergences of sets are
the sums of those of the regions, the likeliest set is that of all z_r > 0, and gradients are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medfm_rl.adapters.exclusive import two_classes
from medfm_rl.types import LabelSchema


def subset_logits(z: Tensor) -> Tensor:
    """Logits `(B, 2^R, *S)` of sets of regions, class index = bit mask, from binary logits `(B, R, *S)`."""
    logits = torch.zeros_like(z[:, :1])
    for region in range(z.shape[1]):
        logits = torch.cat([logits, logits + z[:, region : region + 1]], dim=1)
    return logits


def region_logits(logits: Tensor) -> Tensor:
    """Log-odds `(R, *S)` of each region from logits `(2^R, *S)` of sets of regions, of whatever distribution.

    Of what `subset_logits` gave, they are the binary logits that it was made of, to the last bit.
    """
    count = (len(logits) - 1).bit_length()
    z = torch.stack([logits[1 << region] for region in range(count)]) - logits[0]
    if torch.equal(subset_logits(z[None])[0], logits):
        return z
    classes = torch.arange(len(logits), device=logits.device)
    inside = [(classes >> region & 1).bool() for region in range(count)]
    return torch.stack([logits[there].logsumexp(dim=0) - logits[~there].logsumexp(dim=0) for there in inside])


def classes_of_regions(inside: Tensor) -> Tensor:
    """Class indices `(*S)` uint8 from whether each pixel lies in each region, `(R, *S)` bool."""
    classes = torch.zeros(inside.shape[1:], dtype=torch.uint8, device=inside.device)
    for region, there in enumerate(inside):
        classes += there.to(torch.uint8) << region
    return classes


def count_channels(schema: LabelSchema) -> int:
    """Channels that a network gives for structures: one for each where they overlap, else one for each class."""
    return len(schema.structures) if schema.overlaps else schema.num_classes


def as_channels(output: Tensor, schema: LabelSchema) -> Tensor:
    """What a network gives as so many channels; the one logit of an only structure that no other overlaps makes two."""
    return output if schema.overlaps else two_classes(output, schema.num_classes)


def class_logits(channels: Tensor, schema: LabelSchema) -> Tensor:
    """Logits `(B, K, *S)` of the classes from the channels `(B, N, *S)` of a network, N as in `count_channels`."""
    return subset_logits(channels) if schema.overlaps else channels
