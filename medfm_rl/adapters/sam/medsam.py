"""MedSAM: SAM's network for images of 1024 x 1024."""

from __future__ import annotations

from typing import Any, ClassVar, final

from torch import Tensor

from medfm_rl.adapters.sam.checkpoints import SAM, Prefixes, SamCheckpoint
from medfm_rl.adapters.sam.intensity import minmax
from medfm_rl.adapters.sam.network import SamAdapter, mask_decoder_config, prompt_encoder_config


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
            "prompt_encoder_config": prompt_encoder_config(checkpoint, "prompt_encoder.", grid * patch, patch),
            # The layer norms of segment_anything's decoder have torch's epsilon, and not that of SamConfig.
            "mask_decoder_config": {**mask_decoder_config(checkpoint, "mask_decoder.", "lin1"), "layer_norm_eps": 1e-5},
        }
