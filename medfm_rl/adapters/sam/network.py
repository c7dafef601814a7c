"""SAM's networks as transformers has them, with the checkpoints of either side."""

from __future__ import annotations

import importlib
from abc import abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final, Self

from torch import Tensor

from medfm_rl.adapters.checkpoints import NO_CHECKPOINT, first_line, refuse_misfit
from medfm_rl.adapters.description import DESCRIPTION
from medfm_rl.adapters.sam.checkpoints import Prefixes, SamCheckpoint, backwards, read_sam_checkpoint, renamed
from medfm_rl.adapters.sam.promptable import PromptableAdapter
from medfm_rl.errors import MissingExtraError, ModelError
from medfm_rl.networks import portable_state
from medfm_rl.settings import PromptableDescription

_HEADS: Final = 8
"""Attention heads of the mask decoder in every SAM; no shape tells."""
_POSITIONS: Final = "prompt_encoder.shared_embedding.positional_embedding"
_SAME_POSITIONS: Final = "shared_image_embedding.positional_embedding"
# Only the first of the masks is asked for, and no estimate of its quality: the other heads get no gradient.
FROZEN: Final = (
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

    frozen_prefixes: ClassVar[tuple[str, ...]] = FROZEN
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

    def decode(self, embeddings: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
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


def prompt_encoder_config(checkpoint: SamCheckpoint, prefix: str, pixels: int, patch: int) -> dict[str, Any]:
    """What `config.json` would say of the prompt encoder, from the shapes in a file.

    Args:
        checkpoint: The file.
        prefix: Where the names of its tensors start.
        pixels: Side of the input.
        patch: Side of what becomes one vector.
    """
    return {
        "hidden_size": checkpoint.size(f"{prefix}no_mask_embed.weight", 1),
        "image_size": pixels,
        "patch_size": patch,
        "mask_input_channels": checkpoint.size(f"{prefix}mask_downscaling.3.weight", 0),
        "num_point_embeddings": checkpoint.count(f"{prefix}point_embeddings."),
    }


def mask_decoder_config(checkpoint: SamCheckpoint, prefix: str, first_layer: str) -> dict[str, Any]:
    """The same of the mask decoder.

    Args:
        checkpoint: The file.
        prefix: Where the names of its tensors start.
        first_layer: What the first layer of an MLP is called.
    """
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
