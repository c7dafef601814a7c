"""Checkpoints of SAM and SAM 2, as their authors write them and as transformers does.

The names of the first kind are translated into those of the second by a table of prefixes, and back by the same table.
What a checkpoint has and a network for single images does not need, the memory of SAM 2, is kept and written again, and
has a table of its own for where it is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors.torch import load_file, save_file
from torch import Tensor

from medfm_rl.adapters.checkpoints import NO_CHECKPOINT, first_line, read_json_object, read_state, save_state
from medfm_rl.errors import ModelError

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
Prefixes = Sequence[tuple[str, str]]
"""Prefixes of names in two places; `*` is a number, and the first that fits counts."""


@dataclass(frozen=True, eq=False)
class SamCheckpoint:
    """What a file or folder holds.

    Attributes:
        path: The file or folder.
        state: Tensors under the names that they have there.
        config: Content of `config.json`; None for a file.
        container: Key that the tensors of a file are under; None where there is none.
    """

    path: Path
    state: Mapping[str, Tensor]
    config: dict[str, Any] | None
    container: str | None

    @property
    def weights(self) -> Path:
        """The file with the tensors."""
        return self.path if self.config is None else self.path / WEIGHTS

    def write(self, state: dict[str, Tensor], path: Path) -> None:
        """Writes other tensors in the same form."""
        if self.config is None:
            save_state({self.container: state} if self.container else state, path)
            return
        path.mkdir(parents=True)
        (path / CONFIG).write_text(json.dumps(self.config, indent=2) + "\n", encoding="utf-8")
        save_file(state, path / WEIGHTS, metadata={"format": "pt"})

    def size(self, name: str, axis: int) -> int:
        """Size of a tensor along an axis, from which the architecture follows.

        Raises:
            ModelError: There is no such tensor, or it has fewer axes.
        """
        if name not in self.state or axis >= self.state[name].ndim:
            raise ModelError(
                f"{self.path}: not a checkpoint of this kind: {name} is missing or has another form; its tensors are "
                f"{', '.join(sorted(self.state)[:3])} and so on"
            )
        return int(self.state[name].shape[axis])

    def count(self, prefix: str) -> int:
        """How many numbers follow a prefix in the names."""
        return len({name[len(prefix) :].split(".")[0] for name in self.state if name.startswith(prefix)})


def read_sam_checkpoint(path: Path, model_types: tuple[str, ...]) -> SamCheckpoint:
    """Reads a .pth or .pt file, or a folder of `save_pretrained`; nothing is unpickled but tensors.

    Args:
        path: The file or folder.
        model_types: Those of `config.json` that will do.

    Raises:
        ModelError: It is missing or damaged, or the folder is of another model.
    """
    if not path.is_dir():
        state, container = read_state(path)
        return SamCheckpoint(path, state, None, container)
    config = read_json_object(path / CONFIG, f"{path}: not a folder of save_pretrained, there is no {CONFIG}")
    if config.get("model_type") not in model_types:
        raise ModelError(
            f"{path / CONFIG}: model_type is {config.get('model_type')!r}, {' or '.join(model_types)} is needed"
        )
    weights = path / WEIGHTS
    if not weights.is_file():
        raise ModelError(
            f"{path}: there is no {WEIGHTS}; write the folder with save_pretrained(safe_serialization=True)"
        )
    try:
        return SamCheckpoint(path, load_file(weights), config, None)
    except NO_CHECKPOINT as error:
        raise ModelError(f"{weights}: a damaged or truncated file ({first_line(error)})") from error


def renamed(name: str, prefixes: Prefixes) -> str:
    """A name with the first prefix that fits exchanged; as it is where none does."""
    for old, new in prefixes:
        match = re.match(re.escape(old).replace(r"\*", r"(\d+)"), name)
        if match:
            numbers = iter(match.groups())
            return re.sub(r"\*", lambda _, numbers=numbers: next(numbers), new) + name[match.end() :]  # type: ignore[misc]
    return name


def backwards(prefixes: Prefixes) -> Prefixes:
    """The same table from right to left."""
    return [(new, old) for old, new in prefixes]


def _perceptron(name: str, layers: int) -> Prefixes:
    """A perceptron: numbered layers, where transformers names the first and the last."""
    return [
        (f"{name}.layers.0.", f"{name}.proj_in."),
        (f"{name}.layers.{layers - 1}.", f"{name}.proj_out."),
        *((f"{name}.layers.{index}.", f"{name}.layers.{index - 1}.") for index in range(1, layers - 1)),
    ]


def _at(old: str, new: str, prefixes: Prefixes) -> Prefixes:
    return [(old + left, new + right) for left, right in prefixes]


_PROMPT_ENCODER: Final[Prefixes] = (
    ("pe_layer.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    ("point_embeddings.", "point_embed."),
    ("mask_downscaling.0.", "mask_embed.conv1."),
    ("mask_downscaling.1.", "mask_embed.layer_norm1."),
    ("mask_downscaling.3.", "mask_embed.conv2."),
    ("mask_downscaling.4.", "mask_embed.layer_norm2."),
    ("mask_downscaling.6.", "mask_embed.conv3."),
    ("", ""),
)
_MASK_DECODER: Final[Prefixes] = (
    ("transformer.layers.*.norm", "transformer.layers.*.layer_norm"),
    ("transformer.norm_final_attn.", "transformer.layer_norm_final_attn."),
    ("output_upscaling.0.", "upscale_conv1."),
    ("output_upscaling.1.", "upscale_layer_norm."),
    ("output_upscaling.3.", "upscale_conv2."),
    *_perceptron("output_hypernetworks_mlps.*", 3),
    *_perceptron("iou_prediction_head", 3),
)
_ATTENTIONS: Final = (
    "layers.*.self_attn",
    "layers.*.cross_attn_token_to_image",
    "layers.*.cross_attn_image_to_token",
    "final_attn_token_to_image",
)
_MEMORY_LAYER: Final = ("self_attn", "cross_attn_image")

SAM: Final[Prefixes] = (
    ("image_encoder.patch_embed.proj.", "vision_encoder.patch_embed.projection."),
    ("image_encoder.blocks.*.norm", "vision_encoder.layers.*.layer_norm"),
    ("image_encoder.blocks.", "vision_encoder.layers."),
    ("image_encoder.neck.0.", "vision_encoder.neck.conv1."),
    ("image_encoder.neck.1.", "vision_encoder.neck.layer_norm1."),
    ("image_encoder.neck.2.", "vision_encoder.neck.conv2."),
    ("image_encoder.neck.3.", "vision_encoder.neck.layer_norm2."),
    ("image_encoder.", "vision_encoder."),
    *_at("prompt_encoder.", "prompt_encoder.", _PROMPT_ENCODER),
    *_at("mask_decoder.", "mask_decoder.", _MASK_DECODER),
)
"""Names of segment_anything, and of transformers' SamModel."""

SAM2: Final[Prefixes] = (
    ("image_encoder.trunk.patch_embed.proj.", "vision_encoder.backbone.patch_embed.projection."),
    ("image_encoder.trunk.blocks.*.norm", "vision_encoder.backbone.blocks.*.layer_norm"),
    *_at("image_encoder.trunk.", "vision_encoder.backbone.", _perceptron("blocks.*.mlp", 2)),
    ("image_encoder.trunk.", "vision_encoder.backbone."),
    ("image_encoder.neck.convs.*.conv.", "vision_encoder.neck.convs.*."),
    *_at("sam_prompt_encoder.", "prompt_encoder.", _PROMPT_ENCODER),
    *_at("sam_mask_decoder.", "mask_decoder.", _perceptron("transformer.layers.*.mlp", 2)),
    *((f"sam_mask_decoder.transformer.{at}.out_proj.", f"mask_decoder.transformer.{at}.o_proj.") for at in _ATTENTIONS),
    *_at("sam_mask_decoder.", "mask_decoder.", _perceptron("pred_obj_score_head", 3)),
    *_at("sam_mask_decoder.", "mask_decoder.", _MASK_DECODER),
    ("sam_mask_decoder.", "mask_decoder."),
    ("no_mem_embed", "no_memory_embedding"),
)
"""Names of sam2, and of transformers' Sam2Model."""

_DOWNSAMPLED: Final = 4
"""Convolutions of the memory's mask downsampler before its last; each is followed by a norm and an activation."""

SAM2_MEMORY: Final[Prefixes] = (
    *((f"memory_attention.layers.*.{at}.out_proj.", f"memory_attention.layers.*.{at}.o_proj.") for at in _MEMORY_LAYER),
    ("memory_attention.layers.*.norm", "memory_attention.layers.*.layer_norm"),
    ("memory_attention.norm.", "memory_attention.layer_norm."),
    *_at(
        "memory_encoder.mask_downsampler.",
        "memory_encoder.mask_downsampler.",
        [
            *((f"encoder.{3 * index}.", f"layers.{index}.conv.") for index in range(_DOWNSAMPLED)),
            *((f"encoder.{3 * index + 1}.", f"layers.{index}.layer_norm.") for index in range(_DOWNSAMPLED)),
            (f"encoder.{3 * _DOWNSAMPLED}.", "final_conv."),
        ],
    ),
    ("memory_encoder.pix_feat_proj.", "memory_encoder.feature_projection."),
    ("memory_encoder.fuser.layers.*.dwconv.", "memory_encoder.memory_fuser.layers.*.depthwise_conv."),
    ("memory_encoder.fuser.layers.*.norm.", "memory_encoder.memory_fuser.layers.*.layer_norm."),
    ("memory_encoder.fuser.layers.*.pwconv", "memory_encoder.memory_fuser.layers.*.pointwise_conv"),
    ("memory_encoder.fuser.layers.*.gamma", "memory_encoder.memory_fuser.layers.*.scale"),
    ("memory_encoder.out_proj.", "memory_encoder.projection."),
    ("maskmem_tpos_enc", "memory_temporal_positional_encoding"),
    ("no_mem_pos_enc", "no_memory_positional_encoding"),
    ("no_obj_ptr", "no_object_pointer"),
    ("no_obj_embed_spatial", "occlusion_spatial_embedding_parameter"),
    ("obj_ptr_proj.layers.0.", "object_pointer_proj.proj_in."),
    ("obj_ptr_proj.layers.1.", "object_pointer_proj.layers.0."),
    ("obj_ptr_proj.layers.2.", "object_pointer_proj.proj_out."),
    ("obj_ptr_tpos_proj.", "temporal_positional_encoding_projection_layer."),
)
"""Names of the memory of sam2, and of what transformers' Sam2VideoModel has besides Sam2Model."""
