"""What can be said of the masks of a policy without labels, image by image: signals of different kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from medfm_rl.augmentation.appearance import randomise_appearance
from medfm_rl.data.stored_rows import MEMORY, RowsFolder
from medfm_rl.metrics.overlap import dice
from medfm_rl.networks import argmax_masks, images_at_once
from medfm_rl.reward.collection import ImageSet
from medfm_rl.reward.network import RewardNet
from medfm_rl.reward.score import compared_scores
from medfm_rl.reward.shape_prior import ShapePrior
from medfm_rl.rows import Rows, batches_of
from medfm_rl.seeding import torch_generator
from medfm_rl.structures import Structures
from medfm_rl.types import GridAxes

RULES, VIEWS, SHAPES, REWARD = "rules", "views", "shape prior", "held-out reward"
SIGNALS: Final = (RULES, VIEWS, SHAPES, REWARD)
"""Whether a mask meets the anatomy rules; how far it agrees with masks of the image in other looks; how near it is to
what the shape prior makes of it; and what a reward network that no policy learned from thinks of it."""
_BATCH: Final = 16
LOOKS: Final = 3
"""Other looks in which each image is segmented too."""
MOST_SOURCE_IMAGES: Final = 64
"""Source images on which the worth of the signals is measured."""
_STRENGTH: Final = 0.7
_SEED: Final = 0

Values = npt.NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class RatedMasks:
    """The argmax actions of a policy on some images and what the signals say of each.

    Actions and maps are in memory or on the disk, and come to the CPU.

    Attributes:
        actions: `(N, *S)` uint8, class indices.
        maps: Reward maps of the held-out reward network, `(N, *S)`.
        valid: 1 where an action meets the anatomy rules, else 0, `(N,)`.
        agreement: Mean Dice with the actions on the same image in other looks, `(N,)` in [0, 1].
        plausibility: Mean Dice with the projection on the shape prior, `(N,)` in [0, 1].
    """

    actions: Rows
    maps: Rows
    valid: Values
    agreement: Values
    plausibility: Values


@dataclass(frozen=True, eq=False)
class Raters:
    """What rates masks.

    Attributes:
        is_valid: Whether an action `(*S)` meets the anatomy rules, by how its axes run in the image.
        shape_prior: The autoencoder of masks.
        held_out: A reward network that no policy learned from.
        structures: Class indices of each structure.
        intensity_channels: How many of the first channels of an image have an appearance; all where None.
        device: Where policies and reward network are.
        place: Where masks and maps are put.
    """

    is_valid: Callable[[Tensor, GridAxes], bool]
    shape_prior: ShapePrior
    held_out: RewardNet
    structures: Structures
    intensity_channels: int | None
    device: torch.device
    place: RowsFolder = MEMORY

    @torch.no_grad()
    def rate(self, policy: nn.Module, images: ImageSet) -> RatedMasks:
        """Segments images and rates the masks.

        Every policy sees the same looks of the same image.
        """
        policy.eval()
        generator = torch_generator(_SEED, "looks")
        actions, maps, valid = self.place.new("masks"), self.place.new("maps"), list[float]()
        agreement, plausibility = list[Values](), list[Values]()
        at_once = images_at_once(images.images.shape[2:])
        # Looks are drawn for so many images together, however many of them a network is shown at once.
        for batch in batches_of(images.images, _BATCH):
            shown = batch.to(self.device)
            own = argmax_masks(policy, shown)
            parts = zip(shown.split(at_once), own.split(at_once), strict=True)
            maps.add(torch.cat([self.held_out.reward_map(*part).cpu() for part in parts]))
            masks = own.to("cpu", torch.uint8)
            actions.add(masks)
            agreement.append(np.mean([self._agreement(policy, shown, masks, generator) for _ in range(LOOKS)], 0))
            plausibility.append(mean_dice(masks, self.shape_prior.project(masks), self.structures))
            for mask in masks:
                valid.append(float(self.is_valid(mask, images.axes_of(len(valid)))))
        return RatedMasks(
            actions.rows(), maps.rows(), np.array(valid), np.concatenate(agreement), np.concatenate(plausibility)
        )

    def _agreement(self, policy: nn.Module, images: Tensor, own: Tensor, generator: torch.Generator) -> Values:
        look = randomise_appearance(images, None, _STRENGTH, generator, self.intensity_channels)
        return mean_dice(own, argmax_masks(policy, look).to("cpu", torch.uint8), self.structures)

    def compare(self, before: RatedMasks, after: RatedMasks) -> Mapping[str, tuple[Values, Values]]:
        """By signal its values `(N,)` for the masks of two policies on the same images; more is better."""
        return {
            RULES: (before.valid, after.valid),
            VIEWS: (before.agreement, after.agreement),
            SHAPES: (before.plausibility, after.plausibility),
            REWARD: paired_rewards(before, after, self.structures, self.device),
        }


def mean_dice(masks: Rows, others: Rows, structures: Structures) -> Values:
    """Dice between masks `(N, *S)`, pair by pair, as the mean over the structures, `(N,)` in [0, 1]."""
    pairs = ((masks[row].numpy(), others[row].numpy()) for row in range(len(masks)))
    return np.array([float(dice(mask, other, structures).mean()) for mask, other in pairs])


def paired_rewards(
    before: RatedMasks, after: RatedMasks, structures: Structures, device: torch.device
) -> tuple[Values, Values]:
    """Held-out rewards `(N,)` of the masks of two policies, image by image over the structures that either mask has.

    On its own a mask without a structure has no region there that could be rated. Slices and patches lack structures,
    and a false one must not score above none.
    """
    scores: tuple[list[Tensor], list[Tensor]] = ([], [])
    for rows in torch.arange(len(before.maps)).split(_BATCH):
        one, other = ((of.maps[rows].to(device), of.actions[rows].to(device)) for of in (before, after))
        for found, values in zip(scores, compared_scores(one, other, structures), strict=True):
            found.append(values.cpu())
    return torch.cat(scores[0]).numpy(), torch.cat(scores[1]).numpy()
