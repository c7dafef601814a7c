"""Rivals that change batch normalisation alone."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.pipeline.images import Progress
from medfm_rl.seeding import torch_generator
from rivals.problem import BATCH, Problem, steadiest

_RATES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch normalisations of a network.

    Raises:
        ValueError: There is none.
    """
    found = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not found:
        raise ValueError("the source model has no batch normalisation: this rival changes nothing else")
    return found


def adabn(problem: Problem, progress: Progress) -> TorchModuleAdapter:
    """Batch statistics of the target in the place of those of the source."""
    adapter = copy.deepcopy(problem.source_model)
    estimate_statistics(adapter, problem.target.images)
    progress("AdaBN", 1, 1)
    return adapter


@torch.no_grad()
def estimate_statistics(adapter: TorchModuleAdapter, images: Tensor) -> None:
    """Sets the running statistics of batch normalisation to those of some images, batches weighing the same."""
    layers = batch_norms(adapter)
    adapter.eval()
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    for batch in images.split(BATCH):
        adapter(batch)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    adapter.eval()


def tent(problem: Problem, progress: Progress) -> TorchModuleAdapter:
    """Scale and shift of batch normalisation that make the predictions on target images sure of themselves."""
    candidates = {f"learning rate {rate:g}": _minimise_entropy(problem, rate, progress) for rate in (1e-3, 1e-4)}
    return steadiest(candidates, problem)


def _minimise_entropy(problem: Problem, learning_rate: float, progress: Progress) -> TorchModuleAdapter:
    adapter = copy.deepcopy(problem.source_model).eval().requires_grad_(False)
    layers = batch_norms(adapter)
    for layer in layers:
        layer.train()
        layer.weight.requires_grad_(True)
        layer.bias.requires_grad_(True)
    parameters = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=learning_rate)
    generator = torch_generator(problem.seed, "tent")
    batches = torch.randperm(len(problem.target), generator=generator).split(BATCH)
    for done, rows in enumerate(batches, 1):
        log_probabilities = adapter(problem.target.images[rows]).log_softmax(dim=1)
        entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=1).mean()
        optimiser.zero_grad()
        entropy.backward()
        optimiser.step()
        progress("TENT", done, len(batches))
    adapter.requires_grad_(True)
    estimate_statistics(adapter, problem.target.images)
    return adapter


def intent(problem: Problem, progress: Progress) -> TorchModuleAdapter:
    """Predictions with statistics between those of the source and of the test image, weighted by their entropy."""
    progress("InTEnt", 1, 1)
    return problem.with_module(InTEnt(copy.deepcopy(problem.source_model.module)))


class InTEnt(nn.Module):
    """Gives the logarithm of averaged probabilities, image by image.

    Args:
        module: Images `(B, C, *S)` to logits `(B, K, *S)`, with batch normalisation.
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
        return torch.einsum("r,rk...->k...", weights, stacked).clamp_min(1e-12).log()[None]

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
    entropy = -(probabilities * probabilities.clamp_min(1e-12).log()).sum(dim=0)
    labels = probabilities.argmax(dim=0)
    return torch.stack([entropy[labels == label].mean() for label in labels.unique()]).mean()
