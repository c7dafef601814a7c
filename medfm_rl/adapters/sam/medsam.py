"""MedSAM and MedSAM2: SAM's networks as transformers has them, with the checkpoints of either side."""

from __future__ import annotations

import importlib
import logging
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final, Self, final

import numpy as np
import torch
from torch import Tensor

from medfm_rl.adapters.base import SegmentedFrame, evaluating
from medfm_rl.adapters.checkpoints import NO_CHECKPOINT, first_line, refuse_misfit
from medfm_rl.adapters.description import DESCRIPTION
from medfm_rl.adapters.grid import Sample
from medfm_rl.adapters.sam.checkpoints import (
    SAM,
    SAM2,
    Prefixes,
    SamCheckpoint,
    backwards,
    read_sam_checkpoint,
    renamed,
)
from medfm_rl.adapters.sam.intensity import from_bytes, minmax
from medfm_rl.adapters.sam.memory import ClipMemory, Tracker, load_memory, prompted_frame
from medfm_rl.adapters.sam.promptable import NOT_PROMPTED, PromptableAdapter
from medfm_rl.errors import MissingExtraError, ModelError
from medfm_rl.networks import portable_state
from medfm_rl.settings import PromptableDescription
from medfm_rl.types import Clip

_LOG = logging.getLogger(__name__)
_HEADS: Final = 8
"""Attention heads of the mask decoder in every SAM; no shape tells."""
_POSITIONS: Final = "prompt_encoder.shared_embedding.positional_embedding"
_SAME_POSITIONS: Final = "shared_image_embedding.positional_embedding"
# Only the first of the masks is asked for, and no estimate of its quality: the other heads get no gradient.
_FROZEN: Final = (
    "module.prompt_encoder.",
    "module.shared_image_embedding.",
    "module.mask_decoder.iou_prediction_head.",
    "module.mask_decoder.pred_obj_score_head.",
    *(f"module.mask_decoder.output_hypernetworks_mlps.{index}." for index in (1, 2, 3)),
)


class SamAdapter(PromptableAdapter):
    """A network of the SAM family, in the architecture that its checkpoint tells.

    Args:
        description: Structures, prompts and preprocessing.
        checkpoint: The weights, in either form; exported weights have the same.

    Raises:
        MissingExtraError: transformers is not installed.
        ModelError: The checkpoint does not fit.
    """

    frozen_prefixes: ClassVar[tuple[str, ...]] = _FROZEN
    model_types: ClassVar[tuple[str, ...]]
    """Those of `config.json` that this network can be made of; the first is its own."""
    prefixes: ClassVar[Prefixes]
    unused: ClassVar[tuple[str, ...]] = ()
    """Where the names of tensors start, in either form, that a single image does not need."""
    config_class: ClassVar[str]
    model_class: ClassVar[str]

    def __init__(self, description: PromptableDescription, checkpoint: SamCheckpoint) -> None:
        super().__init__(description)
        tool = _transformers()
        config = checkpoint.config or self.architecture(checkpoint)
        parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
        if not all(isinstance(config.get(part), dict) for part in parts):
            raise ModelError(f"{checkpoint.path}: config.json lacks one of {', '.join(parts)}")
        try:
            self.module = getattr(tool, self.model_class)(
                getattr(tool, self.config_class)(**{part: dict(config[part]) for part in parts})
            )
        except (*NO_CHECKPOINT, importlib.import_module("huggingface_hub.errors").StrictDataclassError) as error:
            raise ModelError(
                f"{checkpoint.path}: not the architecture of a {self.model_class} ({first_line(error)})"
            ) from error
        size = int(self.module.config.prompt_encoder_config.image_size)
        self.patch_size = (size, size)
        self.checkpoint = checkpoint
        self.names = tuple(checkpoint.state)
        self._load()

    @classmethod
    def build(cls, description: PromptableDescription, checkpoint: Path | None) -> Self:
        if checkpoint is None:
            raise ModelError(
                f'{DESCRIPTION}: "checkpoint" is missing; {cls.kind} brings no weights: name their file, or the folder '
                "of save_pretrained"
            )
        return cls(description, read_sam_checkpoint(checkpoint, cls.model_types))

    @abstractmethod
    def architecture(self, checkpoint: SamCheckpoint) -> dict[str, Any]:
        """What `config.json` would say, from the shapes in a file.

        Raises:
            ModelError: They are those of another network.
        """

    def original_state(self) -> dict[str, Tensor]:
        own = self._own_state()
        return {name: own[name] if name in own else self.checkpoint.state[name] for name in self.names}

    def decode(self, embeddings: Tensor, boxes: Tensor) -> Tensor:
        return self.decode_with_iou(embeddings, boxes)[0]

    def decode_with_iou(self, embeddings: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """The same logits, and the network's own estimate of the IoU of each mask, `(B, K - 1)`."""
        answer = self.module(image_embeddings=self.maps(embeddings), input_boxes=boxes, multimask_output=False)
        return answer.pred_masks[:, :, 0], answer.iou_scores[:, :, 0]

    def maps(self, embeddings: Tensor) -> Any:
        """Embeddings as the network takes them."""
        return embeddings

    def write_checkpoint(self, path: Path) -> None:
        self.checkpoint.write(portable_state(self.original_state()), path)

    @property
    def checkpoint_name(self) -> str:
        return self.checkpoint.path.name

    def to_file(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state under the names of transformers under those of the authors."""
        return {renamed(name, backwards(self.prefixes)): value for name, value in state.items()}

    def from_file(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The way back."""
        return {renamed(name, self.prefixes): value for name, value in state.items()}

    def _own_state(self) -> dict[str, Tensor]:
        """The state of the network under the names of the checkpoint."""
        state = dict(self.module.state_dict())
        if self.checkpoint.config is not None:
            return state
        del state[_SAME_POSITIONS]
        return self.to_file(state)

    def _load(self) -> None:
        given = {name: value for name, value in self.checkpoint.state.items() if not name.startswith(self.unused)}
        if self.checkpoint.config is not None:
            # save_pretrained writes tensors that are the same once.
            for name, twin in ((_POSITIONS, _SAME_POSITIONS), (_SAME_POSITIONS, _POSITIONS)):
                if twin in given:
                    given.setdefault(name, given[twin])
        refuse_misfit(self._own_state(), given, self.checkpoint.weights)
        if self.checkpoint.config is None:
            given = self.from_file(given)
            given[_SAME_POSITIONS] = given[_POSITIONS]
        self.module.load_state_dict(given)
        # The network has the rest now.
        unused = {name: value for name, value in self.checkpoint.state.items() if name.startswith(self.unused)}
        self.checkpoint = replace(self.checkpoint, state=unused)


@final
class MedSAMAdapter(SamAdapter):
    """MedSAM: SamModel of transformers, from `medsam_vit_b.pth` or a folder of `save_pretrained`.

    The image is resized to 1024 x 1024 whatever its aspect and taken to [0, 1] by its smallest and largest value; there
    are no statistics of ImageNet. The logits are those of the 256 x 256 grid, resized.
    """

    kind: ClassVar[str] = "medsam"
    decoder_prefixes: ClassVar[tuple[str, ...]] = ("module.mask_decoder.",)
    model_types: ClassVar[tuple[str, ...]] = ("sam",)
    prefixes: ClassVar[Prefixes] = SAM
    config_class: ClassVar[str] = "SamConfig"
    model_class: ClassVar[str] = "SamModel"

    def normalise(self, image: Tensor, where: str) -> Tensor:
        return minmax(image, where)

    def encode(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.module.vision_encoder(images.expand(-1, 3, -1, -1)).last_hidden_state
        return embeddings

    def architecture(self, checkpoint: SamCheckpoint) -> dict[str, Any]:
        size, count = checkpoint.size, checkpoint.count
        grid, hidden = size("image_encoder.pos_embed", 1), size("image_encoder.pos_embed", 3)
        patch = size("image_encoder.patch_embed.proj.weight", 3)
        layers = count("image_encoder.blocks.")
        # Of positions relative to one another there are 2 n - 1 along a side of n: the grid's, or the window's.
        spans = [(size(f"image_encoder.blocks.{index}.attn.rel_pos_h", 0) + 1) // 2 for index in range(layers)]
        return {
            "vision_config": {
                "hidden_size": hidden,
                "output_channels": size("image_encoder.neck.0.weight", 0),
                "num_hidden_layers": layers,
                "num_attention_heads": hidden // size("image_encoder.blocks.0.attn.rel_pos_h", 1),
                "image_size": grid * patch,
                "patch_size": patch,
                "mlp_dim": size("image_encoder.blocks.0.mlp.lin1.weight", 0),
                "window_size": next((span for span in spans if span != grid), grid),
                "global_attn_indexes": [index for index, span in enumerate(spans) if span == grid],
                "num_pos_feats": size("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", 1),
            },
            "prompt_encoder_config": _prompt_encoder(checkpoint, "prompt_encoder.", grid * patch, patch),
            # The layer norms of segment_anything's decoder have torch's epsilon, and not that of SamConfig.
            "mask_decoder_config": {**_mask_decoder(checkpoint, "mask_decoder.", "lin1"), "layer_norm_eps": 1e-5},
        }


@final
class MedSAM2Adapter(SamAdapter):
    """MedSAM2: Sam2Model of transformers, from the authors' file or a folder of `save_pretrained`.

    The image is resized to 512 x 512 whatever its aspect, divided by 255, and shifted and scaled by the statistics of
    ImageNet. As in SAM 2's own predictor of images the object score does not enter: a box says that the structure is
    there. (Its predictor of videos sets masks without an object to -1024, where no gradient is left.) The first mask is
    the answer, in training and in evaluation: SAM 2 changes to another in evaluation where it finds the first unstable.

    With `memory` in its description the frames of a clip are segmented together, as Sam2VideoModel does: the boxes of
    one frame are prompts, and the memory carries them forwards and then backwards. The frame with the boxes has the
    mask that it has by itself. In the others SAM 2's own rules hold: of three masks the one that it expects most of,
    and none where its object score is negative. The memory's weights do not learn.
    """

    kind: ClassVar[str] = "medsam2"
    frozen_prefixes: ClassVar[tuple[str, ...]] = (*_FROZEN, "memory.")
    # The projections conv_s0 and conv_s1 have names of the decoder and run once per image, with the encoder.
    decoder_prefixes: ClassVar[tuple[str, ...]] = tuple(
        f"module.mask_decoder.{part}"
        for part in (
            "transformer.", "iou_token.", "mask_tokens.", "obj_score_token.", "upscale_", "output_hypernetworks_mlps."
        )
    )  # fmt: skip
    model_types: ClassVar[tuple[str, ...]] = ("sam2", "sam2_video")
    prefixes: ClassVar[Prefixes] = SAM2
    unused: ClassVar[tuple[str, ...]] = (
        "memory_", "maskmem_", "mask_downsample.", "no_mem_pos_enc", "no_obj_", "obj_ptr_",
        "object_pointer_proj.", "temporal_positional_encoding_projection_layer.", "no_memory_positional_encoding",
        "no_object_pointer", "occlusion_spatial_embedding_parameter",
    )  # fmt: skip
    config_class: ClassVar[str] = "Sam2Config"
    model_class: ClassVar[str] = "Sam2Model"
    mean: Tensor
    deviation: Tensor

    def __init__(self, description: PromptableDescription, checkpoint: SamCheckpoint) -> None:
        super().__init__(description, checkpoint)
        self.memory: ClipMemory | None = None
        if description.memory:
            config = checkpoint.config or self.architecture(checkpoint)
            grid = int(self.module.backbone_feature_sizes[-1][0])
            self.memory = load_memory(self.checkpoint, config, self.module, self.patch_size[0], grid)
        self.module.mask_decoder.dynamic_multimask_via_stability = False
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)

    def normalise(self, image: Tensor, where: str) -> Tensor:
        return (minmax if self.description.intensity == "minmax" else from_bytes)(image, where)

    def encode(self, images: Tensor) -> Tensor:
        """Embeddings `(B, N)`: the maps of three scales, one after the other."""
        maps = self.module.get_image_features(self._pixels(images), return_dict=True).fpn_hidden_states
        maps[-1] = maps[-1] + self.module.no_memory_embedding
        return torch.cat([scale.permute(1, 2, 0).flatten(1) for scale in maps], dim=1)

    def maps(self, embeddings: Tensor) -> list[Tensor]:
        """The maps `(B, C, h, w)` of three scales, the finest first."""
        width = self.module.hidden_dim
        shapes = [
            (channels, *size)
            for channels, size in zip((width // 8, width // 4, width), self.module.backbone_feature_sizes, strict=True)
        ]
        parts = embeddings.split([channels * height * across for channels, height, across in shapes], dim=1)
        return [part.reshape(len(part), *shape) for part, shape in zip(parts, shapes, strict=True)]

    def _pixels(self, images: Tensor) -> Tensor:
        """Images `(B, channels, H, W)` as the encoder takes them."""
        return (images.expand(-1, 3, -1, -1) - self.mean) / self.deviation

    @property
    def segments_clips(self) -> bool:
        return self.memory is not None

    def segment_clip(self, clip: Clip) -> Iterator[SegmentedFrame]:
        if self.memory is None:
            yield from super().segment_clip(clip)
            return
        count = len(clip.frames)
        start = prompted_frame(self.prompts, clip, self.description.prompted_frame)
        sample = self.preprocess(clip.frame(start))
        yield SegmentedFrame(start, sample, self.predict_logits(sample))
        boxes, there = self._boxes(sample.image[None].to(self.device), None)
        with evaluating(self), torch.no_grad():
            video = self.memory.with_network(self.module)
            tracker = Tracker(video, count, start, self._shown(sample), boxes[there])
        self._warn_of_unseen(tracker, there, clip.clip_id, start)
        for reverse, places in ((False, range(start + 1, count)), (True, range(start - 1, -1, -1))):
            for index in places:
                sample = self.sample_with(clip.frame(index), np.full((boxes.shape[1], 4), np.nan))
                with evaluating(self), torch.no_grad():
                    z = tracker.follow(index, self._shown(sample), reverse)
                    # Without a box there is nothing to follow.
                    every = z.new_full((1, boxes.shape[1], *z.shape[1:]), NOT_PROMPTED)
                    every[there] = z
                    logits = self.logits_of(every, there, sample.image.shape[1:])[0].cpu()
                yield SegmentedFrame(index, sample, logits)
            tracker.turn()

    def _warn_of_unseen(self, tracker: Tracker, there: Tensor, clip: str, start: int) -> None:
        prompted = [name for name, has_box in zip(self.schema.structures, there[0].tolist(), strict=True) if has_box]
        unseen = [name for name, missed in zip(prompted, tracker.unseen.tolist(), strict=True) if missed]
        if unseen:
            _LOG.warning(
                "clip %s: the network does not see %s in frame %d, where its box is (its object score is negative), so "
                "that it may be in no other frame; give boxes of another frame (prompted_frame)",
                clip,
                ", ".join(unseen),
                start,
            )

    def _shown(self, sample: Sample) -> Tensor:
        """A sample as the network of videos takes it, `(3, H, W)`."""
        return self._pixels(sample.image[None, : self.description.channels].to(self.device))[0]

    def to_file(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        # sam2 has a table of one row for each kind of point, transformers one table.
        rows = state.pop("prompt_encoder.point_embed.weight")
        state |= {f"prompt_encoder.point_embed.{index}.weight": row[None] for index, row in enumerate(rows)}
        return super().to_file(state)

    def from_file(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        found = super().from_file(state)
        names = sorted(name for name in found if name.startswith("prompt_encoder.point_embed."))
        found["prompt_encoder.point_embed.weight"] = torch.cat([found.pop(name) for name in names])
        return found

    def architecture(self, checkpoint: SamCheckpoint) -> dict[str, Any]:
        size, count = checkpoint.size, checkpoint.count
        trunk = "image_encoder.trunk."
        window = size(f"{trunk}pos_embed_window", 2)
        widths = [size(f"{trunk}blocks.{index}.norm2.weight", 0) for index in range(count(f"{trunk}blocks."))]
        stages = sorted(set(widths))
        blocks = [widths.count(width) for width in stages]
        if blocks != [1, 2, 7, 2]:
            raise ModelError(
                f"{checkpoint.path}: has {blocks} blocks at its scales, SAM 2.1 hiera tiny, which MedSAM2 is, has "
                "[1, 2, 7, 2]; write other networks with save_pretrained of transformers"
            )
        pixels = self.description.size or 512
        hidden = size("image_encoder.neck.convs.0.conv.weight", 0)
        background = [size(f"{trunk}pos_embed", axis) for axis in (2, 3)]
        return {
            "vision_config": {
                "model_type": "sam2_vision_model",
                "backbone_config": {
                    "model_type": "sam2_hiera_det_model",
                    "hidden_size": stages[0],
                    "image_size": [pixels, pixels],
                    "window_positional_embedding_background_size": background,
                    "blocks_per_stage": blocks,
                    "embed_dim_per_stage": stages,
                    "window_size_per_stage": [window, 4, 14, 7],
                },
                "backbone_channel_list": stages[::-1],
                "backbone_feature_sizes": [[pixels // stride] * 2 for stride in (4, 8, 16)],
                "fpn_hidden_size": hidden,
            },
            "prompt_encoder_config": _prompt_encoder(checkpoint, "sam_prompt_encoder.", pixels, 16),
            "mask_decoder_config": _mask_decoder(checkpoint, "sam_mask_decoder.", "layers.0"),
        }


def _prompt_encoder(checkpoint: SamCheckpoint, prefix: str, pixels: int, patch: int) -> dict[str, Any]:
    return {
        "hidden_size": checkpoint.size(f"{prefix}no_mask_embed.weight", 1),
        "image_size": pixels,
        "patch_size": patch,
        "mask_input_channels": checkpoint.size(f"{prefix}mask_downscaling.3.weight", 0),
        "num_point_embeddings": checkpoint.count(f"{prefix}point_embeddings."),
    }


def _mask_decoder(checkpoint: SamCheckpoint, prefix: str, first_layer: str) -> dict[str, Any]:
    size = checkpoint.size
    hidden = size(f"{prefix}iou_token.weight", 1)
    return {
        "hidden_size": hidden,
        "mlp_dim": size(f"{prefix}transformer.layers.0.mlp.{first_layer}.weight", 0),
        "num_hidden_layers": checkpoint.count(f"{prefix}transformer.layers."),
        "num_attention_heads": _HEADS,
        "attention_downsample_rate": hidden // size(f"{prefix}transformer.final_attn_token_to_image.q_proj.weight", 0),
        "num_multimask_outputs": size(f"{prefix}mask_tokens.weight", 0) - 1,
        "iou_head_depth": checkpoint.count(f"{prefix}iou_prediction_head.layers."),
        "iou_head_hidden_dim": size(f"{prefix}iou_prediction_head.layers.0.weight", 0),
    }


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "MedSAM and MedSAM2 need transformers; install it: pip install 'medfm-rl[medsam]'"
        ) from error
