"""Other ways to assess masks, behind one interface: softmax, agreement of several predictions, and reversal.

Each is given a preprocessed image and a mask of it, and returns a number that is higher for better masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from medfm_rl.adapters import PromptableAdapter
from medfm_rl.adapters.sam.prompts import boxes_of
from medfm_rl.augmentation.appearance import randomise_appearance
from medfm_rl.errors import ModelError
from medfm_rl.metrics.overlap import dice
from medfm_rl.networks import argmax_classes, pixel_entropy
from medfm_rl.quality.evidence import soft_dice
from medfm_rl.seeding import torch_generator
from medfm_rl.structures import Structures
from medfm_rl.types import Prompts

_DROPOUT = (nn.Dropout, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class QualityEstimator(Protocol):
    """Assesses a mask without ground truth."""

    @property
    def name(self) -> str:
        """Its name in tables."""

    @property
    def forward_passes(self) -> int:
        """Forward passes of a segmenter, for each mask."""

    def estimate(self, image: Tensor, action: Tensor) -> float:
        """A number that is higher for better masks.

        Args:
            image: `(C, *S)`, preprocessed for the segmenter, on its device.
            action: `(*S)` uint8, the mask that is assessed.
        """


class MeanEntropy:
    """Minus the mean entropy of the softmax, in nats.

    Args:
        segmenter: Images `(B, C, *S)` to logits `(B, K, *S)`.
    """

    name: Final = "mean entropy"
    forward_passes: Final = 1

    def __init__(self, segmenter: nn.Module) -> None:
        self.segmenter = segmenter.eval()

    def estimate(self, image: Tensor, action: Tensor) -> float:
        del action
        return -float(pixel_entropy(_logits(self.segmenter, image).log_softmax(dim=0)[None]).mean())


class MaxSoftmax:
    """Mean of the largest probability of the softmax (Hendrycks and Gimpel, ICLR 2017).

    Args:
        segmenter: Images `(B, C, *S)` to logits `(B, K, *S)`.
    """

    name: Final = "max softmax"
    forward_passes: Final = 1

    def __init__(self, segmenter: nn.Module) -> None:
        self.segmenter = segmenter.eval()

    def estimate(self, image: Tensor, action: Tensor) -> float:
        del action
        return float(_logits(self.segmenter, image).softmax(dim=0).amax(dim=0).mean())


class SoftDiceConfidence:
    """Mean over the structures of the Dice of the mask with the probabilities of the softmax; see `soft_dice`.

    Args:
        segmenter: Images `(B, C, *S)` to logits `(B, K, *S)`.
        structures: Class indices of each structure.
    """

    name: Final = "soft Dice confidence"
    forward_passes: Final = 1

    def __init__(self, segmenter: nn.Module, structures: Structures) -> None:
        self.segmenter = segmenter.eval()
        self.structures = structures

    def estimate(self, image: Tensor, action: Tensor) -> float:
        probabilities = _logits(self.segmenter, image).softmax(dim=0)
        return float(soft_dice(probabilities, action.to(image.device), self.structures).mean())


class MonteCarloDropout:
    """Mean pairwise Dice of the mask and predictions with dropout (Gal and Ghahramani, 2016; Roy et al., 2019).

    Args:
        segmenter: With dropout layers.
        structures: Class indices of each structure.
        draws: Predictions.
        seed: Seed of the draws; every mask is assessed with the same.

    Raises:
        ModelError: There is no dropout layer with a rate above 0.
    """

    name: Final = "MC dropout"

    def __init__(self, segmenter: nn.Module, structures: Structures, draws: int = 5, seed: int = 0) -> None:
        self.segmenter = segmenter.eval()
        self.layers = [module for module in segmenter.modules() if isinstance(module, _DROPOUT) and module.p > 0]
        if not self.layers:
            raise ModelError("Monte Carlo dropout needs a segmenter that was trained with dropout, this one has none")
        self.structures = structures
        self.forward_passes = draws
        self.seed = seed

    def estimate(self, image: Tensor, action: Tensor) -> float:
        for layer in self.layers:
            layer.train()
        try:
            with torch.random.fork_rng(devices=[image.device] if image.is_cuda else []):
                torch.manual_seed(self.seed)
                masks = [_mask(self.segmenter, image) for _ in range(self.forward_passes)]
        finally:
            self.segmenter.eval()
        return pairwise_dice([action, *masks], self.structures)


class EnsembleAgreement:
    """Mean pairwise Dice of the mask and the predictions of an ensemble (Lakshminarayanan et al., NeurIPS 2017).

    Args:
        segmenters: Trained apart from each other.
        structures: Class indices of each structure.
    """

    name: Final = "ensemble"

    def __init__(self, segmenters: Sequence[nn.Module], structures: Structures) -> None:
        self.segmenters = [segmenter.eval() for segmenter in segmenters]
        self.structures = structures
        self.forward_passes = len(segmenters)

    def estimate(self, image: Tensor, action: Tensor) -> float:
        masks = [_mask(segmenter, image) for segmenter in self.segmenters]
        return pairwise_dice([action, *masks], self.structures)


class AugmentationAgreement:
    """Mean pairwise Dice of the mask and predictions under test-time augmentation (Wang et al., 2019).

    Args:
        segmenter: Images `(B, C, *S)` to logits `(B, K, *S)`.
        structures: Class indices of each structure.
        draws: Predictions on images of random appearance.
        strength: Strength of the appearance.
        seed: Seed of the draws; every mask is assessed with the same.
        channels: How many of the first channels have an appearance; all where None.
    """

    name: Final = "TTA"

    def __init__(
        self,
        segmenter: nn.Module,
        structures: Structures,
        draws: int = 5,
        strength: float = 0.5,
        seed: int = 0,
        channels: int | None = None,
    ) -> None:
        self.segmenter = segmenter.eval()
        self.structures = structures
        self.forward_passes = draws
        self.strength = strength
        self.seed = seed
        self.channels = channels

    def estimate(self, image: Tensor, action: Tensor) -> float:
        generator = torch_generator(self.seed, "test-time augmentation")
        masks = []
        for _ in range(self.forward_passes):
            shown = randomise_appearance(image[None].cpu(), None, self.strength, generator, self.channels)[0]
            masks.append(_mask(self.segmenter, shown.to(image)))
        return pairwise_dice([action, *masks], self.structures)


class BoxAgreement:
    """Mean pairwise Dice of the mask and predictions from boxes whose sides are moved at random.

    Args:
        segmenter: Prompted by boxes.
        draws: Predictions.
        jitter: Each side moves by up to so many pixels of the network's input.
        seed: Seed of the draws; every mask is assessed with the same.
    """

    name: Final = "box jitter"

    def __init__(self, segmenter: PromptableAdapter, draws: int = 5, jitter: float = 10.0, seed: int = 0) -> None:
        self.segmenter = segmenter.eval()
        self.forward_passes = draws
        self.jitter = jitter
        self.seed = seed

    @torch.no_grad()
    def estimate(self, image: Tensor, action: Tensor) -> float:
        generator = np.random.default_rng(self.seed)
        boxes, there = boxes_of(image[None, self.segmenter.intensity_channels :])
        corners = torch.where(there[..., None], boxes, torch.nan)[..., [1, 0, 3, 2]].cpu().numpy()
        limit = np.array(image.shape[1:] * 2) - 1
        masks = []
        for _ in range(self.forward_passes):
            moved = corners + generator.uniform(-self.jitter, self.jitter, corners.shape)
            low, high = np.minimum(moved[..., :2], moved[..., 2:]), np.maximum(moved[..., :2], moved[..., 2:])
            drawn = np.concatenate([low, high], axis=-1).clip(0, limit).astype(np.float32)
            masks.append(argmax_classes(self.segmenter(image[None], Prompts(boxes=drawn))[0], dim=0))
        return pairwise_dice([action, *masks], self.segmenter.schema.classes)


class PredictedIoU:
    """The estimate of a promptable segmenter of its own masks: mean over the structures that have a box, 0 without any.

    Args:
        segmenter: One whose tool makes such an estimate.
    """

    name: Final = "IoU head"
    forward_passes: Final = 1

    def __init__(self, segmenter: PromptableAdapter) -> None:
        self.segmenter = segmenter.eval()

    def estimate(self, image: Tensor, action: Tensor) -> float:
        del action
        return float(self.segmenter.predicted_iou(image[None]).nanmean().nan_to_num(0.0))


class ReverseClassification:
    """Reverse classification accuracy (Valindria et al., IEEE TMI 36(8), 2017), with a forest on pixels.

    A classifier learns from the assessed mask alone, as if it were right, and segments images whose masks are known.
    What it gets right there at best is what the assessed mask is worth.

    Args:
        references: `(N, C, *S)`, preprocessed images.
        masks: `(N, *S)` uint8, their expert masks.
        structures: Class indices of each structure.
        pixels: Number of pixels of the assessed image that the classifier learns from, drawn at random.
        seed: Seed of the draws.
    """

    name: Final = "reverse classification"
    forward_passes: Final = 0

    def __init__(
        self, references: Tensor, masks: Tensor, structures: Structures, pixels: int = 3000, seed: int = 0
    ) -> None:
        self.inputs = [_pixel_features(image) for image in references]
        self.masks = masks.numpy()
        self.structures = structures
        self.pixels = pixels
        self.seed = seed

    def estimate(self, image: Tensor, action: Tensor) -> float:
        from sklearn.ensemble import RandomForestClassifier

        labels = action.cpu().numpy().ravel()
        rows = np.random.default_rng(self.seed).permutation(labels.size)[: self.pixels]
        forest = RandomForestClassifier(20, min_samples_leaf=3, random_state=self.seed)
        forest.fit(_pixel_features(image.cpu())[rows], labels[rows])
        scores = []
        for inputs, truth in zip(self.inputs, self.masks, strict=True):
            found = forest.predict(inputs).astype(np.uint8).reshape(truth.shape)
            scores.append(float(dice(found, truth, self.structures).mean()))
        return max(scores)


def pairwise_dice(masks: Sequence[Tensor], structures: Structures) -> float:
    """Mean Dice over all pairs of masks `(*S)` and all structures."""
    arrays = [mask.cpu().numpy().astype(np.uint8) for mask in masks]
    return float(np.mean([dice(one, two, structures).mean() for one, two in combinations(arrays, 2)]))


@torch.no_grad()
def _logits(segmenter: nn.Module, image: Tensor) -> Tensor:
    logits: Tensor = segmenter(image[None])[0]
    return logits


def _mask(segmenter: nn.Module, image: Tensor) -> Tensor:
    return argmax_classes(_logits(segmenter, image), dim=0)


def _pixel_features(image: Tensor) -> np.ndarray:
    """Position, grey value, and grey values smoothed at three scales, `(pixels, features)`."""
    from scipy import ndimage

    channels = image.numpy()
    grid = np.meshgrid(*(np.linspace(-1, 1, side) for side in channels.shape[1:]), indexing="ij")
    features = [*grid, *channels]
    for scale in (1, 3, 6):
        features += [ndimage.gaussian_filter(channel, scale) for channel in channels]
    return np.stack([np.ravel(feature) for feature in features], axis=1).astype(np.float32)
