"""Foundation segmenters that are told where to look: one box per structure, one binary logit per box."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from medfm_rl.adapters.base import Scope, SegmenterAdapter, parameters_in_scope
from medfm_rl.adapters.checkpoints import save_state
from medfm_rl.adapters.description import DESCRIPTION, read_described, write_described
from medfm_rl.adapters.embeddings import EmbeddingCache, version_of
from medfm_rl.adapters.exclusive import exclusive_logits
from medfm_rl.adapters.grid import Sample
from medfm_rl.adapters.sam.prompts import Boxes, boxes_of, boxes_of_mask, open_prompts, render_boxes
from medfm_rl.data.files import replace_folder_on_success
from medfm_rl.errors import DataError, ModelError
from medfm_rl.networks import argmax_classes, portable_state
from medfm_rl.settings import PromptableDescription, PromptSettings
from medfm_rl.types import Case, FloatArray, LabelMap, LabelSchema, Prompts

NOT_PROMPTED: Final = -20.0
"""Logit of a structure that has no box: its probability is 2e-9."""


class PromptableAdapter(SegmenterAdapter):
    """A network from an image and a box to one binary logit, asked once for each structure.

    An image travels with its prompts: the channels after the first `channels` are the boxes of the structures
    (`adapters.sam.prompts`). The encoder runs once per image, the decoder once per box. Where no gradient of the
    encoder is asked for, what it made of the last images is kept: inner epochs of PPO on a decoder do not run it again,
    nor does a question about a mask that it has just made.

    The logits of the classes are `[0, z_1 .. z_K-1]`. With one structure their softmax is the sigmoid of the tool. With
    several the tool's masks may overlap and these may not: a pixel is background exactly where every z is negative, as
    in the tool, and belongs to the largest z where several are positive. Where a prompt takes in other structures
    (`contains`), its structure is what is in it and not in them: `min(z_outer, -z_inner)`.

    Args:
        description: Structures, prompts and preprocessing.
    """

    kind: ClassVar[str]
    frozen_prefixes: ClassVar[tuple[str, ...]]
    """Where the names of parameters start that fine-tuning leaves alone."""
    decoder_prefixes: ClassVar[tuple[str, ...]]

    def __init__(self, description: PromptableDescription) -> None:
        super().__init__()
        self.description = description
        self.schema = LabelSchema.from_structures(description.structures)
        self.in_channels = description.channels + len(description.structures)
        self.prompts = open_prompts(description.prompts, self.schema, description.contains)
        self._kept = EmbeddingCache()

    @classmethod
    def load(
        cls, folder: Path, prompts: PromptSettings | None = None, described: Mapping[str, Any] | None = None
    ) -> Self:
        """Reads a segmenter folder: `segmenter.json` and, where it names one, a checkpoint.

        Args:
            folder: The folder.
            prompts: Where boxes come from; None: as `segmenter.json` says.
            described: What the caller says in the place of other fields of `segmenter.json`, by name.

        Raises:
            MissingExtraError: The tool is not installed.
            ModelError: A file is missing, is not what its name says, or does not fit the network.
            ConfigError: The prompts name a structure that the segmenter does not have.
            DataError: The file or folder of the prompts cannot be used.
        """
        description = read_description(folder).model_copy(update=dict(described or {}))
        if description.kind != cls.kind:
            raise ModelError(f"{folder / DESCRIPTION}: kind is {description.kind}, {cls.kind} is needed")
        if prompts is not None:
            # From here on a path of the caller's: the folder that is exported to lies elsewhere.
            description = description.model_copy(update={"prompts": _placed(prompts, Path())})
        checkpoint = None if description.checkpoint is None else folder / description.checkpoint
        return cls.build(description, checkpoint).eval()

    @classmethod
    @abstractmethod
    def build(cls, description: PromptableDescription, checkpoint: Path | None) -> Self:
        """The network with the weights of a checkpoint, or with those that the tool's package brings."""

    @abstractmethod
    def normalise(self, image: Tensor, where: str) -> Tensor:
        """The tool's own intensities of an image `(C, H, W)` that has its native size."""

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """Embeddings `(B, ...)` of images `(B, channels, H, W)`."""

    @abstractmethod
    def decode(self, embeddings: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor | None]:
        """Masks of boxes `(B, K - 1, 4)`, (x_min, y_min, x_max, y_max) in input pixels.

        Returns:
            Binary logits `(B, K - 1, h, w)`, and the tool's own estimate of the IoU of each mask, `(B, K - 1)`; None
            where it makes none.
        """

    @abstractmethod
    def original_state(self) -> dict[str, Tensor]:
        """The weights under the names of the tool's own checkpoint."""

    @property
    @abstractmethod
    def checkpoint_name(self) -> str:
        """File name of an exported checkpoint."""

    @property
    def prompted(self) -> bool:
        return True

    @property
    def intensity_channels(self) -> int:
        return self.description.channels

    def prompt_hash(self, case_id: str) -> str | None:
        return self.prompts.content_hash(case_id)

    def prompt_hash_of_clip(self, frames: Sequence[str]) -> str | None:
        found = {name: self.prompts.content_hash(name) for name in frames if self.prompts.knows(name)}
        if not found:
            raise DataError(
                f"{self.prompts.origin}: there is nothing on any of the {len(frames)} frames {frames[0]} to "
                f"{frames[-1]}; their clip needs boxes, or a mask, of one of them"
            )
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()

    def inference_settings(self) -> Mapping[str, Any]:
        described = self.description.model_dump(mode="json", exclude={"prompts", "checkpoint"})
        return {**super().inference_settings(), **described}

    def preprocess(self, case: Case) -> Sample:
        """The tool's own intensities and size, the aspect not kept; then a channel per structure with its box."""
        return self.sample_with(case, self.prompts.boxes(self.conform(case)))

    def preprocess_frame(self, case: Case, labels: LabelMap) -> Sample:
        """With the boxes of the mask, where the frame's clip is segmented as a whole: it need have none of its own."""
        if case.frame is None or not self.segments_clips:
            return self.preprocess(case)
        return self.sample_with(case, boxes_of_mask(labels, self.schema, self.description.contains))

    def sample_with(self, case: Case, boxes: Boxes) -> Sample:
        """As `preprocess`, with these boxes `(K - 1, 4)` in pixels of the case."""
        case = self.conform(case)
        height, width = self.patch_size
        image = self.normalise(torch.from_numpy(np.array(case.image, dtype=np.float32)), f"case {case.case_id}")
        image = F.interpolate(image[None], size=(height, width), mode="bilinear", align_corners=False)[0]
        channels = render_boxes(boxes, case.shape, (height, width))
        return Sample(torch.cat([image, channels]), case.case_id, case.patient_id, case.shape, case.geometry)

    def preprocess_labels(self, labels: LabelMap, sample: Sample) -> Tensor:
        mask = torch.from_numpy(labels.astype(np.float32))[None, None]
        return F.interpolate(mask, size=sample.image.shape[1:], mode="nearest-exact")[0, 0].to(torch.uint8)

    def forward(self, images: Tensor, prompts: Prompts | None = None) -> Tensor:
        """Logits `(B, K, H, W)` of images with their box channels `(B, channels + K - 1, H, W)`.

        Args:
            images: Preprocessed.
            prompts: Boxes `(B, K - 1, 4)` as (y_min, x_min, y_max, x_max) in place of those in the channels; NaN where
                a structure is not there.

        Raises:
            ModelError: The prompts are none that this segmenter takes.
        """
        boxes, there = self._boxes(images, prompts)
        embeddings = self._embeddings(images).float()
        # In bfloat16 a coordinate of an image of 1024 pixels is up to 4 pixels off.
        with torch.autocast(images.device.type, enabled=False):
            z, _ = self.decode(embeddings, boxes)
        return self.logits_of(z, there, images.shape[2:])

    def logits_of(self, z: Tensor, there: Tensor, size: Sequence[int]) -> Tensor:
        """Logits `(B, K, *size)` of the classes from binary logits `(B, K - 1, h, w)` of the structures.

        Args:
            z: What the decoder gives.
            there: `(B, K - 1)`, whether there was a box.
            size: Grid of the network's input.
        """
        z = F.interpolate(z, size=tuple(size), mode="bilinear", align_corners=False)
        z = torch.where(there[..., None, None], z, NOT_PROMPTED)
        return exclusive_logits(z, self.schema, self.description.contains)

    @torch.no_grad()
    def predicted_iou(self, images: Tensor, prompts: Prompts | None = None) -> Tensor:
        """The tool's own estimate of the IoU of each mask, `(B, K - 1)`; NaN where a structure has no box.

        It is of the tool's own masks: before several become exclusive, and with what a structure contains.

        Args:
            images: As in `forward`.
            prompts: As in `forward`.

        Raises:
            ModelError: The tool makes none.
        """
        found = self._estimates(images, prompts)
        if found is None:
            raise ModelError(f"a segmenter of kind {self.kind} makes no estimate of its own masks")
        return found

    @torch.no_grad()
    def own_estimate(self, image: Tensor, action: Tensor) -> Tensor | None:
        """The Dice that the tool expects of its own mask where it is prompted by the box of each structure.

        So any mask can be asked about, without the prompts that it was made with: where the box of a bad mask holds
        nothing that looks like one object, the tool doubts its own answer. From an estimated IoU the Dice is
        2 IoU / (1 + IoU).
        """
        boxes = boxes_of_mask(action.cpu().numpy(), self.schema, self.description.contains)
        prompts = Prompts(boxes=boxes[None, :, [1, 0, 3, 2]].astype(np.float32))
        found = self._estimates(image[None].to(self.device), prompts)
        if found is None:
            return None
        iou = found[0].float().cpu().clamp(0, 1)
        return (2 * iou / (1 + iou)).nan_to_num(0.0)

    def _estimates(self, images: Tensor, prompts: Prompts | None) -> Tensor | None:
        """As `predicted_iou`; None where the tool makes none."""
        boxes, there = self._boxes(images, prompts)
        _, estimates = self.decode(self._embeddings(images), boxes)
        return None if estimates is None else torch.where(there, estimates, torch.nan)

    def _boxes(self, images: Tensor, prompts: Prompts | None) -> tuple[Tensor, Tensor]:
        """Boxes `(B, K - 1, 4)` for the decoder, and `(B, K - 1)` whether there is one."""
        if prompts is None:
            boxes, there = boxes_of(images[:, self.description.channels :])
        else:
            boxes, there = _given_boxes(prompts, images, self.schema.num_classes - 1)
        return boxes.to(images.dtype), there

    def _embeddings(self, images: Tensor) -> Tensor:
        shown = images[:, : self.description.channels]
        others = self.decoder_prefixes + self.frozen_prefixes
        encoder = [
            tensor for name, tensor in (*self.named_parameters(), *self.named_buffers()) if not name.startswith(others)
        ]
        learns = shown.requires_grad or any(tensor.requires_grad for tensor in encoder)
        if self.training or (torch.is_grad_enabled() and learns):
            return self._encode_to_learn(shown)
        return self._kept.of(shown, self.encode, version_of(encoder, shown.device))

    def _encode_to_learn(self, shown: Tensor) -> Tensor:
        """Embeddings with gradients, made image by image and once more in the backward pass (gradient checkpointing).

        The activations of the encoder are what fills the memory, and this keeps those of one image at a time. Of a
        single image nothing would be saved, and layers that take statistics of a batch have to see the batch.
        """
        of_a_batch = any(module.training and isinstance(module, _BatchNorm) for module in self.modules())
        if len(shown) == 1 or of_a_batch or not torch.is_grad_enabled():
            return self.encode(shown)
        return torch.cat([checkpoint(self.encode, image, use_reentrant=False) for image in shown.split(1)])

    def restore(self, logits: Tensor, sample: Sample) -> LabelMap:
        # The tools resample each probability and cut it at one half. Resampled logits have the same sign, up to the
        # contour's own width, and keep the order of the structures.
        labels = argmax_classes(self._to_native(logits.detach(), sample), dim=0)
        return labels.to(torch.uint8).cpu().numpy()

    def restore_map(self, values: Tensor, sample: Sample) -> FloatArray:
        return self._to_native(values.detach()[None], sample)[0].float().cpu().numpy()

    def trainable(self, scope: Scope) -> dict[str, Parameter]:
        """Parameters of a scope; the prompt encoder and what the logits do not depend on belong to none.

        Raises:
            ModelError: The segmenter has no such part.
        """
        found = parameters_in_scope(self, scope, self.decoder_prefixes)
        return {name: value for name, value in found.items() if not name.startswith(self.frozen_prefixes)}

    def export(self, folder: Path) -> None:
        description = self.description.model_copy(update={"checkpoint": self.checkpoint_name})
        with replace_folder_on_success(folder) as temporary:
            write_described(temporary, description)
            self.write_checkpoint(temporary / self.checkpoint_name)

    def write_checkpoint(self, path: Path) -> None:
        """Writes the weights in the form that the tool reads."""
        save_state(portable_state(self.original_state()), path)

    def _to_native(self, values: Tensor, sample: Sample) -> Tensor:
        return F.interpolate(values[None].float(), size=sample.native_shape, mode="bilinear", align_corners=False)[0]


def read_description(folder: Path) -> PromptableDescription:
    """Reads `segmenter.json` of a promptable segmenter; relative paths in it count from its folder.

    Raises:
        ModelError: It is missing, or a field is wrong.
    """
    description = read_described(folder, PromptableDescription)
    return description.model_copy(update={"prompts": _placed(description.prompts, folder)})


def _placed(prompts: PromptSettings, folder: Path) -> PromptSettings:
    """Prompts whose path, which counts from a folder, is absolute."""
    if prompts.kind == "fixed":
        return prompts
    return prompts.model_copy(update={"path": (folder / prompts.path).resolve()})


def _given_boxes(prompts: Prompts, images: Tensor, structures: int) -> tuple[Tensor, Tensor]:
    if prompts.boxes is None or prompts.texts is not None:
        raise ModelError("this segmenter takes boxes and no other prompts")
    expected = (len(images), structures, 4)
    if prompts.boxes.shape != expected:
        raise ModelError(f"the boxes have shape {prompts.boxes.shape}, {expected} is needed")
    boxes = torch.from_numpy(prompts.boxes).to(images)[..., [1, 0, 3, 2]]
    there = boxes.isfinite().all(dim=-1)
    return torch.where(there[..., None], boxes, 0.0), there
