"""What the rest of the package asks of a segmenter."""

from __future__ import annotations

import copy
import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from medfm_rl.adapters.grid import CaseGrid, Sample
from medfm_rl.adapters.lora import low_rank_parameters
from medfm_rl.adapters.probabilities import warn_of_probabilities
from medfm_rl.errors import ModelError
from medfm_rl.networks import copied_without_graphs
from medfm_rl.types import Case, Clip, GridAxes, LabelMap, Prompts

Scope = Literal["all", "norm", "decoder", "lora"]
_TOGETHER = 8
"""Frames that go through the network at once."""
_NORMALISATION = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class ModelSummary:
    """What `medfm-rl inspect` tells of a segmenter.

    Attributes:
        rows: Facts by name, in the order to show them.
        obstacles: Why it cannot be adapted; empty where it can.
        doubts: Why its masks of the given images may be worth little; empty where nothing says so, or none were given.
    """

    rows: Mapping[str, str]
    obstacles: tuple[str, ...]
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExpectedValues:
    """Values that a tool expects in a channel, in the units of the files.

    Attributes:
        low: Where what it segments begins.
        high: Where that ends.
        unit: HU for CT, or nothing.
    """

    low: float
    high: float
    unit: str = ""


@dataclass(frozen=True, eq=False)
class SegmentedFrame:
    """What a segmenter makes of a frame of a clip.

    Attributes:
        index: Place in the clip, counted from 0.
        sample: The frame as it was shown.
        logits: `(K, *S')` on the CPU; `restore` gives the mask.
    """

    index: int
    sample: Sample
    logits: Tensor


class SegmenterAdapter(CaseGrid):
    """A segmenter as a policy: images to differentiable logits, with the tool's own preprocessing and format.

    The adapter owns the parameters. Classes are exclusive unless an adapter says otherwise: pi(action / image) is the
    softmax of the logits, pixel by pixel. `check_adapter` tests whether an implementation keeps these promises.

    Learning happens on patches of `patch_size`, and a case is segmented as the tool itself does it: whole, or tile by
    tile. A 2-D segmenter may take volumes too: its samples then have one axis more than the patch, and each slice along
    the first of them is an image of its own.

    It is a `CaseGrid` too, whose attributes and ways from images and masks to the network and back it has.
    """

    @abstractmethod
    def forward(self, images: Tensor, prompts: Prompts | None = None) -> Tensor:
        """Logits `(B, K, *S')` before the softmax, differentiable, of preprocessed images `(B, C, *S')`.

        In evaluation mode the logits of an image do not depend on its batch-mates.
        """

    @abstractmethod
    def restore(self, logits: Tensor, sample: Sample) -> LabelMap:
        """Class indices `(*S)` on the case's own grid from the logits `(K, *S')` of its sample."""

    @abstractmethod
    def trainable(self, scope: Scope) -> dict[str, Parameter]:
        """Parameters by name that fine-tuning may change; each of them receives a gradient from the logits.

        In the scope lora these are what `add_low_rank` has added.

        Raises:
            ModelError: The segmenter has no such part.
        """

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Writes the segmenter in the tool's own format into a new folder, whole or not at all.

        Raises:
            DataError: The folder exists and is not empty, or cannot be written.
        """

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied_without_graphs(self, memo)
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    def grid_axes(self, sample: Sample) -> GridAxes:
        """How the axes of a sample's grid, and of patches of it, run in the case's own image.

        Anatomy rules name axes and directions: rows are the last axis but one, and the first row is above. An adapter
        whose tool transposes, turns or mirrors images overrides this.
        """
        return GridAxes.same(sample.image.ndim - 1)

    @torch.no_grad()
    def predict_logits(self, sample: Sample) -> Tensor:
        """Logits `(K, *S')` of a sample as the tool's own inference gives them: no gradient, on the CPU.

        Adapters whose tool does more than one pass of the network (tiles, mirrored images, several networks) override
        this; `restore` then gives the very mask that the tool writes.
        """
        with evaluating(self):
            images = sample.image[None].to(self.device)
            logits: Tensor = self(images)
            warn_of_probabilities(logits, self, self._of_patch_size(images))
        return logits[0].cpu()

    def predict_logits_of_batch(self, samples: Sequence[Sample]) -> list[Tensor]:
        """Logits `(K, *S')` of each sample, as `predict_logits` gives them but for rounding.

        Where a case takes one pass of the network, those of one size go through it together.
        """
        one_pass = type(self).predict_logits is SegmenterAdapter.predict_logits
        if not one_pass or len({sample.image.shape for sample in samples}) != 1:
            return [self.predict_logits(sample) for sample in samples]
        with evaluating(self), torch.no_grad():
            images = torch.stack([sample.image for sample in samples]).to(self.device)
            logits: Tensor = self(images)
            warn_of_probabilities(logits, self, self._of_patch_size(images))
        return list(logits.cpu())

    def _of_patch_size(self, images: Tensor) -> Tensor:
        """The first patch of images, and of volumes the first slice where the network takes images."""
        flat = images[:, :, 0] if images.ndim - 2 > len(self.patch_size) else images
        for axis, side in enumerate(self.patch_size, start=2):
            flat = flat.narrow(axis, 0, min(side, flat.shape[axis]))
        return flat

    def obstacles(self) -> tuple[str, ...]:
        """Why it cannot be adapted; empty where it can."""
        return () if any(True for _ in self.parameters()) else ("its script has no parameters: it is frozen",)

    def segment(self, case: Case) -> LabelMap:
        """Class indices `(*S)` of a case on its own grid."""
        sample = self.preprocess(case)
        return self.restore(self.predict_logits(sample), sample)

    @property
    def segments_clips(self) -> bool:
        """Whether the mask of a frame depends on other frames of its clip.

        Then masks of frames are made by `segment_clip` alone, and `segment` gives what the network says of a frame by
        itself.
        """
        return False

    def segment_clip(self, clip: Clip) -> Iterator[SegmentedFrame]:
        """Segments every frame of a clip; each is given once, in any order, and only what is needed is in memory.

        By default each frame by itself. A network that sees several frames at once (a memory, a window over time)
        overrides this and `segments_clips`.

        Raises:
            DataError: The segmenter takes volumes alone, or other channels; or it needs prompts that are not there.
        """
        count = len(clip.frames)
        for start in range(0, count, _TOGETHER):
            indices = range(start, min(start + _TOGETHER, count))
            samples = [self.preprocess(clip.frame(index)) for index in indices]
            for index, sample, logits in zip(indices, samples, self.predict_logits_of_batch(samples), strict=True):
                yield SegmentedFrame(index, sample, logits)

    def preprocess_frame(self, case: Case, labels: LabelMap) -> Sample:
        """A frame as the network sees it by itself, after its mask was made with those of the whole clip.

        That is what assesses the mask and corrects it. By default it is `preprocess`. A segmenter of whole clips whose
        frames lack something for that, such as prompts, overrides this.

        Args:
            case: The frame, or an image of its own, of which nothing is lacking.
            labels: Its mask, class indices `(*S)`.
        """
        del labels
        return self.preprocess(case)

    def prompt_hash_of_clip(self, frames: Sequence[str]) -> str | None:
        """SHA-256 of what the prompts of a clip are made from, where its frames are segmented together.

        Args:
            frames: Case ids of all of its frames, in their order.

        Raises:
            DataError: There are no prompts for the clip.
        """
        found = [self.prompt_hash(name) for name in frames]
        return None if None in found else hashlib.sha256(":".join(map(str, found)).encode()).hexdigest()

    def prompt_hash(self, case_id: str) -> str | None:
        """SHA-256 of what the prompts of a case are made from; None where the segmenter takes none.

        Raises:
            DataError: There are no prompts for the case.
        """
        del case_id
        return None

    def inference_settings(self) -> Mapping[str, Any]:
        """What besides weights and prompts decides about a mask, as JSON values.

        A mask is taken for one of this segmenter where these and the weights are the same.
        """
        return {"structures": self.schema.integers, "size": self.patch_size}

    def opinion(self, sample: Sample) -> Tensor | None:
        """Its logits, unless it would need prompts for them."""
        return None if self.prompted else self.predict_logits(sample)

    @property
    def prompted(self) -> bool:
        """Whether an image needs prompts from elsewhere before it can be segmented."""
        return False

    @property
    def stated_scaling(self) -> str | None:
        """How grey values are scaled, in the words of the settings, where what comes out can have any size.

        None where the tool scales them by itself, or by what is in each image.
        """
        return None

    def expected_values(self) -> tuple[ExpectedValues | None, ...]:
        """What the tool expects in each channel of grey values; None where it takes any, or does not say."""
        return (None,) * self.intensity_channels

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        """Axes of a patch along which the tool also looks at mirrored images when it segments.

        Whoever fine-tunes the network has to show it such images, or it forgets them and the tool's masks get worse.
        """
        return ()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """A network is in evaluation mode in the block, and all of it afterwards in the mode of its outermost layer.

    To set the mode of all layers takes a quarter of a small network's pass: it is set only where it is another one.
    """
    if not any(module.training for module in network.modules()):
        yield
        return
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def parameters_in_scope(module: nn.Module, scope: Scope, decoder_prefixes: tuple[str, ...]) -> dict[str, Parameter]:
    """The parameters of a module that belong to a scope, by name.

    Args:
        module: The adapter.
        scope: all, the normalisation layers, the decoder, or low-rank parts.
        decoder_prefixes: Where the names of the decoder's parameters start; empty where it is not known.

    Raises:
        ModelError: There are none.
    """
    parameters = dict(module.named_parameters())
    match scope:
        case "all":
            found = parameters
        case "norm":
            owners = {name for name, part in module.named_modules() if isinstance(part, _NORMALISATION)}
            found = {name: value for name, value in parameters.items() if name.rpartition(".")[0] in owners}
        case "decoder":
            found = {
                name: value
                for name, value in parameters.items()
                if decoder_prefixes and name.startswith(decoder_prefixes)
            }
        case "lora":
            found = low_rank_parameters(module)
    if not found:
        raise ModelError(f"the network has no parameters in the scope {scope!r}; use segmenter.train: all")
    return found


def noise_patch(grid: CaseGrid) -> Tensor:
    """An image `(1, C, *S)`: noise in the grey values, and in what follows them, such as boxes, a box in the middle."""
    image = torch.zeros(1, grid.in_channels, *grid.patch_size)
    grey = image[:, : grid.intensity_channels]
    grey.copy_(torch.rand(grey.shape, generator=torch.Generator().manual_seed(0)))
    middle = tuple(slice(side // 4, side - side // 4) for side in grid.patch_size)
    image[(slice(None), slice(grid.intensity_channels, None), *middle)] = 1.0
    return image


@torch.enable_grad()
def without_gradient(segmenter: nn.Module, parameters: Mapping[str, Parameter], images: Tensor) -> list[str]:
    """Names of those parameters that no gradient reaches from the logits of images `(B, C, *S')`.

    They would stay as they are, without an error: layers that the network does not use, or parameters whose place in
    the network something else has taken. A gradient of zero is one: A of a low-rank part has it while B is zero.
    Gradients that were there are removed; which parameters want one stays.
    """
    wanted = [(parameter, parameter.requires_grad) for parameter in parameters.values()]
    segmenter.zero_grad(set_to_none=True)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        logits: Tensor = segmenter(images)
        if not logits.requires_grad:
            return list(parameters)
        weights = torch.linspace(-1, 1, logits.numel(), device=logits.device).reshape(logits.shape)
        (logits.log_softmax(dim=1) * weights).sum().backward()
        return [name for name, parameter in parameters.items() if parameter.grad is None]
    finally:
        segmenter.zero_grad(set_to_none=True)
        for parameter, before in wanted:
            parameter.requires_grad_(before)
