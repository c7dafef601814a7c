"""Advantages and the clipped loss of PPO, pixel by pixel."""

from __future__ import annotations

import torch
from torch import Tensor


def greedy_advantages(maps: Tensor, actions: Tensor, greedy_maps: Tensor, greedy: Tensor) -> Tensor:
    """Reward of each pixel minus that of the argmax action there; 0 where both actions agree.

    Args:
        maps: Reward maps `(B, *S)` of the actions.
        actions: `(B, *S)`.
        greedy_maps: Reward maps `(B, *S)` of the argmax actions.
        greedy: `(B, *S)`.
    """
    return torch.where(actions == greedy, 0.0, maps - greedy_maps)


def normalise_advantages(advantages: Tensor, mean_square: Tensor | None = None) -> Tensor:
    """Divides by the root mean square over all pixels; not centred, so that zero stays zero.

    Args:
        advantages: `(B, *S)`.
        mean_square: That of all advantages where these are a part of them.
    """
    mean_square = advantages.square().mean() if mean_square is None else mean_square
    return advantages / (mean_square.sqrt() + 1e-8)


def clipped_policy_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_range: float
) -> tuple[Tensor, float, float]:
    """PPO's clipped surrogate (Schulman et al., 2017, eq. 7) with one ratio for each pixel.

    Args:
        log_probs: Log-probabilities of the actions now, `(B, *S)`.
        old_log_probs: Log-probabilities of the actions when they were drawn, `(B, *S)`.
        advantages: `(B, *S)`.
        clip_range: Epsilon.

    Returns:
        The loss (mean over pixels), the share of clipped pixels, and the approximate KL to the old policy
        (http://joschu.net/blog/kl-approx.html, k3).
    """
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = -torch.minimum(advantages * ratio, advantages * clipped).mean()
    with torch.no_grad():
        clip_fraction = float(((ratio - 1).abs() > clip_range).float().mean())
        approx_kl = float((ratio - 1 - log_ratio).mean())
    return loss, clip_fraction, approx_kl
