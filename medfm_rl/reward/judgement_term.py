"""The loss of judged masks in the training of a reward network: which are drawn for a step, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Final

import torch
from torch import Tensor
from torch.nn import Parameter

from medfm_rl.reward.judgements import Comparison, Judgement, JudgementLink, Judgements, SplitJudgements, scores_of
from medfm_rl.reward.network import RewardNet
from medfm_rl.reward.score import memberships
from medfm_rl.structures import Structures

LINK_RATE: Final = 0.02
"""Learning rate of the link: a handful of numbers, which have to keep up with the network."""
_MOST_TILES: Final = 4
"""Tiles of a mask that a step looks at; of a larger one, other tiles each time."""
_MOST_TO_START_FROM: Final = 256
"""Judgements that the link is fitted to before the first step."""


class JudgementTerm:
    """The term of one network.

    Args:
        judgements: What it learns from and is stopped on.
        net: The network.
        device: Where it is trained.
        batch_size: Masks of a step; preferences have two each.
        generator: A CPU generator, which draws them.

    Attributes:
        weight: Of the term in the loss.
        link: Learned with the network, and of no use after that.
    """

    def __init__(
        self,
        judgements: SplitJudgements,
        net: RewardNet,
        device: torch.device,
        batch_size: int,
        generator: torch.Generator,
    ) -> None:
        self._net, self._device, self._generator = net, device, generator
        self._training, self._validation = judgements.training, judgements.validation
        self.weight = judgements.training.weight
        self.link = JudgementLink().to(device)
        self._fit_link()
        self._batches = _batches(len(self._training), max(1, batch_size // 2), generator)

    def parameters(self) -> list[Parameter]:
        """Those of the link."""
        return list(self.link.parameters())

    def step_loss(self) -> Tensor:
        """The loss of the next few judgements, weighted: to be added to that of the pixels.

        Raises:
            FloatingPointError: It is not finite.
        """
        said = [self._training.said[row] for row in next(self._batches)]
        scores = self._scores(self._training, said)
        loss = self.weight * (self.link.mean_loss(said, scores) + self.link.penalty() / len(self._training))
        if not torch.isfinite(loss):
            raise FloatingPointError(
                "the loss of judged masks is not finite; lower reward.learning_rate or look at the images"
            )
        return loss

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The weighted loss of what was said of held-out patients; 0 where nothing was."""
        if not len(self._validation):
            return 0.0
        losses = []
        for said in self._validation.said:
            (scores,) = self._scores(self._validation, [said])
            losses.append(self.link.loss(said, scores).item())
        return self.weight * sum(losses) / len(losses)

    @torch.no_grad()
    def _scores_at_start(self, said: list[Judgement | Comparison]) -> list[tuple[Tensor, ...]]:
        self._net.eval()
        return [self._scores(self._training, [each])[0] for each in said]

    def _fit_link(self) -> None:
        """To the network as it is: a new one finds all masks good, and strict reviewers would only pull that down."""
        rows = torch.randperm(len(self._training), generator=self._generator)[:_MOST_TO_START_FROM].tolist()
        said = [self._training.said[row] for row in rows]
        self.link.fit(said, self._scores_at_start(said))

    def _scores(self, judgements: Judgements, said: list[Judgement | Comparison]) -> list[tuple[Tensor, ...]]:
        """By judgement, the scores of its masks; the tiles of all pass the network together."""
        images, actions, counts = [], [], []
        for each in said:
            places = (each.better, each.worse) if isinstance(each, Comparison) else (each.mask,)
            # Two masks of an image are compared in the same tiles.
            tiles = self._tiles(
                torch.stack([judgements.masks[place].actions for place in places]),
                each.structure,
                judgements.structures,
            )
            for place in places:
                images.append(judgements.masks[place].images[tiles])
                actions.append(judgements.masks[place].actions[tiles])
                counts.append(len(tiles))
        shown, masks = torch.cat(images).to(self._device), torch.cat(actions).to(self._device).long()
        rated = iter(self._net(shown, masks).float().split(counts))
        seen = iter(masks.split(counts))
        found = []
        for each in said:
            count = 2 if isinstance(each, Comparison) else 1
            logits, shown_masks = list(islice(rated, count)), list(islice(seen, count))
            found.append(scores_of(each, logits, shown_masks, judgements.structures))
        return found

    def _tiles(self, actions: Tensor, structure: int | None, structures: Structures) -> list[int]:
        """Drawn for a step; evenly spaced in evaluation, so that validations compare.

        Args:
            actions: `(M, T, *S)`, the masks in all tiles.
            structure: That was judged, or None for all. Tiles without it say nothing, as long as one has it.
            structures: Class indices of each structure.
        """
        count = actions.shape[1]
        if count <= _MOST_TILES:
            return list(range(count))
        looked_for = (
            actions > 0 if structure is None else memberships(actions, structures[structure - 1 : structure]).any(dim=1)
        )
        has_it = looked_for.flatten(2).any(dim=2).any(dim=0)
        found = has_it.nonzero()[:, 0].tolist() or list(range(count))
        taken = min(_MOST_TILES, len(found))
        if not self._net.training:
            return [found[place * len(found) // taken] for place in range(taken)]
        drawn = torch.randperm(len(found), generator=self._generator)[:taken].tolist()
        return sorted(found[place] for place in drawn)


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Places, without end; each once before any comes again."""
    while True:
        for rows in torch.randperm(count, generator=generator).split(size):
            yield rows.tolist()
