"""A categorical distribution for every pixel of an image."""

from __future__ import annotations

from typing import Any, Self

import torch
from stable_baselines3.common.distributions import Distribution
from torch import Tensor, nn

from medfm_rl.networks import argmax_classes, pixel_entropy


class DenseCategorical(Distribution):
    """Independent categorical distributions over K classes, one per pixel.

    stable-baselines3 would make one `Categorical` object per pixel and add their log-probabilities up; here all pixels
    are one tensor, and log-probabilities and entropies stay maps, because the joint ratio of an image leaves PPO's clip
    in every draw.

    Args:
        logits: `(B, K, *S)`, before the softmax.
    """

    def __init__(self, logits: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.proba_distribution(logits)

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Not needed: the segmenter gives the logits."""
        raise NotImplementedError("the segmenter gives the logits of a dense policy")

    def proba_distribution(self, logits: Tensor) -> Self:
        """Takes other logits `(B, K, *S)`."""
        self.logits = logits
        self.log_probs = logits.log_softmax(dim=1)
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Log-probability of each pixel's class, `(B, *S)`, for actions `(B, *S)`: a map, not their sum."""
        return self.log_probs.gather(1, actions.long()[:, None])[:, 0]

    def entropy(self) -> Tensor:
        """Entropy of each pixel in nats, `(B, *S)`."""
        return pixel_entropy(self.log_probs)

    def mode(self) -> Tensor:
        """The most probable class of each pixel, `(B, *S)` int64."""
        return argmax_classes(self.logits, dim=1)

    def sample(self, generator: torch.Generator | None = None, correlation_length: float = 0.0) -> Tensor:
        """Draws an action.

        Each pixel's class is drawn with its own probabilities, by the Gumbel-max trick. With a correlation length the
        Gumbel noise of neighbouring pixels is similar (a Gaussian copula), so that regions change their class together,
        as a segmenter's errors do, instead of salt and pepper. The probabilities of a pixel are the same in both.

        Args:
            generator: A CPU generator; None draws from torch's own.
            correlation_length: Standard deviation in pixels of the Gaussian that smooths the noise; 0 for none.

        Returns:
            `(B, *S)` int64.
        """
        # In single precision, whatever autocast makes of the logits.
        return self.sample_by(torch.randn(self.logits.shape, generator=generator), correlation_length)

    def sample_by(self, noise: Tensor, correlation_length: float = 0.0) -> Tensor:
        """The action that standard normal noise `(B, K, *S)` makes, as in `sample`, `(B, *S)` int64."""
        noise = noise.to(self.logits.device)
        if correlation_length > 0:
            noise = _smooth(noise, correlation_length)
        gumbel = -torch.log(-torch.special.log_ndtr(noise))
        return argmax_classes(self.logits + gumbel, dim=1)

    def actions_from_params(self, logits: Tensor, deterministic: bool = False) -> Tensor:
        """Actions `(B, *S)` for logits `(B, K, *S)`."""
        self.proba_distribution(logits)
        return self.get_actions(deterministic=deterministic)

    def log_prob_from_params(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Sampled actions and their log-probabilities, each `(B, *S)`."""
        actions = self.actions_from_params(logits)
        return actions, self.log_prob(actions)


def kl_divergence(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """KL(p || reference) of each pixel in nats, `(B, *S)`, from log-probabilities `(B, K, *S)`."""
    return (log_probs.exp() * (log_probs - reference_log_probs)).sum(dim=1)


def _smooth(noise: Tensor, length: float) -> Tensor:
    """Gaussian blur of white noise `(B, K, *S)` that keeps it standard normal at every pixel.

    The noise wraps around the image borders, so that every pixel averages equally many independent values and the
    variance can be restored exactly.
    """
    axes = tuple(range(2, noise.ndim))
    spectrum = torch.fft.rfftn(noise, dim=axes)
    for axis in axes:
        size = noise.shape[axis]
        offsets = torch.arange(size, device=noise.device, dtype=noise.dtype)
        kernel = torch.exp(-0.5 * (torch.minimum(offsets, size - offsets) / length) ** 2)
        kernel = kernel / kernel.square().sum().sqrt()
        # The kernel is symmetric: its spectrum is real.
        response = (torch.fft.rfft(kernel) if axis == axes[-1] else torch.fft.fft(kernel)).real
        spectrum = spectrum * response.reshape([-1 if other == axis else 1 for other in range(noise.ndim)])
    smooth: Tensor = torch.fft.irfftn(spectrum, s=noise.shape[2:], dim=axes)
    return smooth
