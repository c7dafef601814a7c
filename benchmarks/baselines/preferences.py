"""PPO's control by preferences: direct preference optimisation (R. Rafailov et al., NeurIPS 2023, arXiv 2305.18290).

No reward is learned: the policy itself becomes likelier to draw the better of two masks than the reference policy, the
source model, is. The likelihood of a whole mask is out of scale (a product over ten thousand pixels), so log-ratios are
means over the pixels where the two masks differ in what was compared, as PPO's ratios are of pixels.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.reward.judgements import Comparison, Judgements
from medfm_rl.reward.score import memberships
from medfm_rl.seeding import torch_generator

_BATCH = 8
"""Comparisons a step."""
_BETA = 1.0


def optimise_preferences(
    source_model: TorchModuleAdapter, judgements: Judgements, learning_rate: float, steps: int, seed: int
) -> TorchModuleAdapter:
    """A copy of a source model that has learned from preferences alone.

    Args:
        source_model: Where it starts, and the reference policy.
        judgements: Its comparisons teach, all alike whatever their trust, on images that the network sees whole;
            verdicts and grades do not.
        learning_rate: Of AdamW.
        steps: How many.
        seed: Of the order.

    Raises:
        ValueError: Nothing was compared.
    """
    said = [each for each in judgements.said if isinstance(each, Comparison)]
    if not said:
        raise ValueError("nothing was compared")
    policy = copy.deepcopy(source_model).eval()
    optimiser = torch.optim.AdamW(policy.parameters(), lr=learning_rate, weight_decay=1e-4)
    generator = torch_generator(seed, "direct preferences")
    for _ in range(steps):
        chosen = [said[row] for row in torch.randint(len(said), (_BATCH,), generator=generator).tolist()]
        better, worse = (
            torch.cat([judgements.masks[place].actions for place in places]).long()
            for places in ([each.better for each in chosen], [each.worse for each in chosen])
        )
        images = torch.cat([judgements.masks[each.better].images for each in chosen])
        with torch.no_grad():
            reference = source_model(images).log_softmax(dim=1)
        found = policy(images).log_softmax(dim=1) - reference
        margin = found.gather(1, better[:, None])[:, 0] - found.gather(1, worse[:, None])[:, 0]
        differ = memberships(better, judgements.structures) != memberships(worse, judgements.structures)
        compared = torch.stack([_of_structure(row, each.structure) for row, each in zip(differ, chosen, strict=True)])
        loss = preference_loss(margin, compared)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return policy


def preference_loss(margin: Tensor, compared: Tensor) -> Tensor:
    """-log sigmoid of beta times the mean log-ratio of better to worse, averaged over comparisons; without axes.

    Args:
        margin: By pixel, the log-ratio to the reference of the better mask's class minus that of the other's,
            `(B, *S)`.
        compared: Which pixels count, `(B, *S)`; a comparison without any says nothing.
    """
    weights = compared.to(margin).flatten(1)
    means = (weights * margin.flatten(1)).sum(dim=1) / weights.sum(dim=1).clamp_min(1)
    losses = -F.logsigmoid(_BETA * means)
    told = weights.amax(dim=1) > 0
    return (losses * told).sum() / told.sum().clamp_min(1)


def _of_structure(differ: Tensor, structure: int | None) -> Tensor:
    """Of where masks differ by structure `(R, *S)`: in one, counted from 1, or for None in any; `(*S)`."""
    return differ.any(dim=0) if structure is None else differ[structure - 1]
