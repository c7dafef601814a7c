"""MedSAM2: SAM 2's network for single images, and with its memory for clips."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor

from medfm_rl.adapters.base import SegmentedFrame, evaluating
from medfm_rl.adapters.grid import Sample
from medfm_rl.adapters.sam.checkpoints import SAM2, Prefixes, SamCheckpoint
from medfm_rl.adapters.sam.intensity import from_bytes, minmax
from medfm_rl.adapters.sam.memory import ClipMemory, Tracker, load_memory, prompted_frame
from medfm_rl.adapters.sam.network import FROZEN, SamAdapter, mask_decoder_config, prompt_encoder_config
from medfm_rl.adapters.sam.promptable import NOT_PROMPTED
from medfm_rl.errors import ModelError
from medfm_rl.settings import PromptableDescription
from medfm_rl.types import Clip

_LOG = logging.getLogger(__name__)


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
    frozen_prefixes: ClassVar[tuple[str, ...]] = (*FROZEN, "memory.")
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
            "prompt_encoder_config": prompt_encoder_config(checkpoint, "sam_prompt_encoder.", pixels, 16),
            "mask_decoder_config": mask_decoder_config(checkpoint, "sam_mask_decoder.", "layers.0"),
        }
