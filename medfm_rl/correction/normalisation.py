"""Adaptation through normalisation layers: on the images of a case, or of a whole domain."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.errors import ModelError
from medfm_rl.networks import argmax_classes, log_of, pixel_entropy

_RATES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def batch_norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch normalisations of a network that keep statistics.

    Raises:
        ModelError: There is none.
    """
    found = [
        layer
        for layer in network.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None
    ]
    if not found:
        raise ModelError("the segmenter has no batch normalisation, and this method changes nothing else; take another")
    return found


@torch.no_grad()
def estimate_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Sets the running statistics of batch normalisation to those of some images, batches weighing the same.

    Args:
        network: It is left in evaluation mode.
        batches: `(B, C, *S)` each.

    Raises:
        ModelError: The network has no batch normalisation.
    """
    layers = batch_norms(network)
    network.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    for batch in batches:
        network(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    network.eval()


def norm_parameters(segmenter: SegmenterAdapter) -> list[nn.Parameter]:
    """Scale and shift of the normalisation layers, which TENT changes.

    Raises:
        ModelError: No normalisation layer has a scale and a shift.
    """
    try:
        return list(segmenter.trainable("norm").values())
    except ModelError as error:
        raise ModelError(
            "the segmenter has no normalisation with a scale and a shift, and TENT changes nothing else; take another "
            "method"
        ) from error


def minimise_entropy(segmenter: SegmenterAdapter, batches: Iterable[Tensor], learning_rate: float) -> None:
    """Makes predictions sure of themselves by scale and shift of the normalisation layers (TENT, arXiv 2006.10726).

    Batch normalisation takes the statistics of each batch; those that it keeps are for the caller to set afterwards.

    Args:
        segmenter: It is changed, and left in evaluation mode.
        batches: `(B, C, *S)`; one step of Adam for each.
        learning_rate: Learning rate of Adam.

    Raises:
        ModelError: No normalisation layer has a scale and a shift.
    """
    parameters = norm_parameters(segmenter)
    segmenter.eval().requires_grad_(False)
    for layer in segmenter.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.train()
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(parameters, lr=learning_rate)
    for batch in batches:
        entropy = pixel_entropy(segmenter(batch).log_softmax(dim=1)).mean()
        optimiser.zero_grad()
        entropy.backward()
        optimiser.step()
    segmenter.eval().requires_grad_(True)


class InTEnt(nn.Module):
    """Predictions with statistics between those of the source and of the test image, weighted by their entropy.

    Dong et al., arXiv 2402.09604. Gives the logarithm of averaged probabilities, image by image.

    Args:
        module: Images `(B, C, *S)` to logits `(B, K, *S)`, with batch normalisation. Its statistics are moved and put
            back.

    Raises:
        ModelError: There is no batch normalisation.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.eval()
        self.layers = batch_norms(module)
        self.source = [self._statistics(layer) for layer in self.layers]

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([self._predict(image[None]) for image in images])

    def _predict(self, image: Tensor) -> Tensor:
        own = self._statistics_of(image)
        probabilities = []
        for rate in _RATES:
            for layer, source, test in zip(self.layers, self.source, own, strict=True):
                self._set(layer, *((1 - rate) * a + rate * b for a, b in zip(source, test, strict=True)))
            probabilities.append(self.module(image).softmax(dim=1)[0])
        for layer, source in zip(self.layers, self.source, strict=True):
            self._set(layer, *source)
        stacked = torch.stack(probabilities)
        certainty = -torch.stack([balanced_entropy(each) for each in stacked])
        spread = certainty.max() - certainty.min()
        weights = ((certainty - certainty.min()) / spread.clamp_min(1e-12)).softmax(dim=0)
        return log_of(torch.einsum("r,rk...->k...", weights, stacked))[None]

    def _statistics_of(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Statistics that each layer sees where all layers use those of the image."""
        for layer in self.layers:
            layer.train()
            layer.momentum = 1.0
        self.module(image)
        found = [self._statistics(layer) for layer in self.layers]
        for layer in self.layers:
            layer.eval()
        return found

    @staticmethod
    def _statistics(layer: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor]:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        # Means and standard deviations are mixed, as the authors do.
        return layer.running_mean.clone(), layer.running_var.sqrt()

    @staticmethod
    def _set(layer: nn.modules.batchnorm._BatchNorm, mean: Tensor, deviation: Tensor) -> None:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(mean)
        layer.running_var.copy_(deviation**2)


def balanced_entropy(probabilities: Tensor) -> Tensor:
    """Mean over the predicted classes of the mean entropy of their pixels, for `(K, *S)`."""
    entropy = -(probabilities * log_of(probabilities)).sum(dim=0)
    labels = argmax_classes(probabilities, dim=0)
    return torch.stack([entropy[labels == label].mean() for label in labels.unique()]).mean()
