"""Other ways to correct a case: averages, entropy, and rules of thumb, behind the interface of the optimiser."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.grid import Sample
from medfm_rl.anatomy.cleaning import clean_up
from medfm_rl.correction.corrector import CaseCorrector, Original, Proposal, Stop, appearances
from medfm_rl.correction.normalisation import (
    InTEnt,
    batch_norms,
    estimate_statistics,
    minimise_entropy,
    norm_parameters,
)
from medfm_rl.correction.verifier import Verifier
from medfm_rl.errors import ModelError
from medfm_rl.networks import log_of, one_hot, pixel_entropy
from medfm_rl.reward.shape_prior import ShapePrior
from medfm_rl.tiling import over_tiles, tile_boxes

_VIEWS = 8
_TILES = 8
# Their one step for each image is one of a larger rate; a few small ones are steadier.
_MEMO_STEPS = 5


class NoCorrection(CaseCorrector):
    """Proposes the original: whatever is flagged is referred."""

    def propose(self, sample: Sample, logits: Tensor, original: Original, deadline: float) -> Proposal:
        del sample, logits, deadline
        return Proposal(original.labels)


class AugmentationAverage(CaseCorrector):
    """Mean of the probabilities on the image and in random appearances of it (Wang et al., Neurocomputing 2019)."""

    def propose(self, sample: Sample, logits: Tensor, original: Original, deadline: float) -> Proposal:
        del original
        votes = [logits]
        for view in appearances(sample, _VIEWS - 1, self.adapter.intensity_channels):
            if time.monotonic() > deadline:
                break
            votes.append(self.adapter.predict_logits(replace(sample, image=view)))
        mean = torch.stack([vote.softmax(dim=0) for vote in votes]).mean(dim=0)
        labels = self.adapter.restore(log_of(mean), sample)
        return Proposal(labels, stopped="done" if len(votes) == _VIEWS else "time", views=len(votes) - 1)


class Tent(CaseCorrector):
    """TENT (Wang et al., arXiv 2006.10726) on one case: a copy whose normalisation makes it sure of itself.

    As its authors have it, batch normalisation takes the statistics of what it is tested on: here of the case alone.

    Args:
        adapter: The deployed segmenter.
        verifier: Decides.

    Raises:
        ModelError: No normalisation layer has a scale and a shift.
    """

    def __init__(self, adapter: SegmenterAdapter, verifier: Verifier) -> None:
        super().__init__(adapter, verifier)
        norm_parameters(adapter)

    def propose(self, sample: Sample, logits: Tensor, original: Original, deadline: float) -> Proposal:
        del logits, original
        twin = copy.deepcopy(self.adapter)
        image = sample.image.to(twin.device)
        tiles = torch.stack([image[(slice(None), *box)] for box in tile_boxes(image.shape[1:], twin.patch_size)])
        batches = tiles.split(_TILES)
        begun = 0

        def each_step() -> Iterator[Tensor]:
            nonlocal begun
            while begun < self.settings.steps and time.monotonic() <= deadline:
                begun += 1
                yield batches[(begun - 1) % len(batches)]

        minimise_entropy(twin, each_step(), self.settings.weight_learning_rate)
        if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in twin.modules()):
            estimate_statistics(twin, batches)
        labels = twin.restore(twin.predict_logits(sample), sample)
        return Proposal(labels, stopped="done" if begun == self.settings.steps else "time")


class Intent(CaseCorrector):
    """InTEnt (Dong et al., arXiv 2402.09604) on one case; see `medfm_rl.correction.normalisation.InTEnt`.

    It is one step, which no deadline cuts.

    Raises:
        ModelError: There is no batch normalisation.
    """

    def __init__(self, adapter: SegmenterAdapter, verifier: Verifier) -> None:
        super().__init__(adapter, verifier)
        batch_norms(adapter)

    def propose(self, sample: Sample, logits: Tensor, original: Original, deadline: float) -> Proposal:
        del logits, original, deadline
        mixed = InTEnt(copy.deepcopy(self.adapter))
        image = sample.image.to(self.adapter.device)
        log_probabilities = over_tiles(mixed, [image], self.adapter.patch_size)
        return Proposal(self.adapter.restore(log_probabilities.cpu(), sample))


class Memo(CaseCorrector):
    """MEMO (Zhang et al., arXiv 2110.09506) on one case: a copy that agrees with itself whatever the look.

    All weights follow the entropy of the mean prediction over random appearances, pixel by pixel, at a tenth of
    `weight_learning_rate`, because all of them move. The appearances keep every pixel in its place.
    """

    def propose(self, sample: Sample, logits: Tensor, original: Original, deadline: float) -> Proposal:
        del logits, original
        twin = copy.deepcopy(self.adapter).eval().requires_grad_(False)
        parameters = list(twin.trainable("all").values())
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimiser = torch.optim.Adam(parameters, lr=self.settings.weight_learning_rate / 10)
        views = [sample.image, *appearances(sample, _VIEWS - 1, self.adapter.intensity_channels)]
        shown = [view.to(twin.device) for view in views]
        stopped: Stop = "done"
        for _ in range(_MEMO_STEPS):
            if time.monotonic() > deadline:
                stopped = "time"
                break
            mean = over_tiles(
                lambda *tiles: twin(torch.cat(tiles)).softmax(dim=1).mean(dim=0, keepdim=True), shown, twin.patch_size
            )
            entropy = pixel_entropy(log_of(mean)[None]).mean()
            optimiser.zero_grad()
            entropy.backward()
            optimiser.step()
        return Proposal(twin.restore(twin.predict_logits(sample), sample), stopped=stopped, views=len(views) - 1)


class LargestComponents(CaseCorrector):
    """Carries out the rules on parts and holes; see `clean_up`."""

    def propose(self, sample: Sample, logits: Tensor, original: Original, deadline: float) -> Proposal:
        del sample, logits, deadline
        return Proposal(clean_up(original.labels, self.verifier.anatomy))


class ShapeProjection(CaseCorrector):
    """The plausible mask nearest to the original, by the run's shape prior.

    Args:
        adapter: The deployed segmenter.
        verifier: Decides.
        prior: Learned on masks of the size of the segmenter's input.
    """

    def __init__(self, adapter: SegmenterAdapter, verifier: Verifier, prior: ShapePrior) -> None:
        super().__init__(adapter, verifier)
        self.prior = prior.eval()

    @torch.no_grad()
    def propose(self, sample: Sample, logits: Tensor, original: Original, deadline: float) -> Proposal:
        """The projection.

        Raises:
            ModelError: The image is larger than the masks that the prior knows.
        """
        del deadline
        if tuple(logits.shape[1:]) != self.prior.size:
            raise ModelError(
                f"case {sample.case_id}: the shape prior knows masks of {self.prior.size}, the segmenter sees this "
                f"image as {tuple(logits.shape[1:])}; take another method"
            )
        maps = one_hot(original.action, len(logits), dim=0)
        # The prior's logits, not its mask: on the case's own grid their contour is smooth.
        return Proposal(self.adapter.restore(self.prior(maps[None])[0], sample))
