"""Segmenters that are prompted by boxes: folders of them, tiny networks of SAM, and an image to show them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medfm_rl.types import Case, Clip, Geometry

BOXES = {"LV": [0.3, 0.2, 0.6, 0.7], "MYO": [0.25, 0.1, 0.7, 0.8]}

MEMORY = {"memory_encoder.out_proj.weight": torch.ones(2, 3), "maskmem_tpos_enc": torch.zeros(7, 1, 1, 4)}
"""What a checkpoint of MedSAM2 holds besides, for videos."""


def write_folder(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "kind": "litemedsam",
        "structures": {"LV": 1, "MYO": 2},
        "prompts": {"kind": "fixed", "boxes": BOXES},
        **changes,
    }
    (folder / "segmenter.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_hub_checkpoint(folder: Path, kind: str, network: Any) -> Path:
    """A segmenter of kind medsam or medsam2 whose checkpoint is a folder of `save_pretrained`."""
    write_folder(folder, kind=kind, checkpoint="hub", size=128)
    network.save_pretrained(folder / "hub")
    return folder


def write_file_checkpoint(folder: Path, kind: str, network: Any, adapter: Any) -> Path:
    """A segmenter of kind medsam or medsam2 whose checkpoint is a file as the authors write it.

    Args:
        folder: New folder.
        kind: medsam or medsam2.
        network: The network of transformers.
        adapter: Any adapter of that kind, which knows the names of the file.
    """
    write_folder(folder, kind=kind, checkpoint="original.pth", size=128)
    state = dict(network.state_dict())
    del state["shared_image_embedding.positional_embedding"]
    state = adapter.to_file(state)
    torch.save({"model": {**state, **MEMORY}} if kind == "medsam2" else state, folder / "original.pth")
    return folder


def inside(shape: tuple[int, int]) -> np.ndarray:
    """Distance from the centre of a drawn ventricle, 1 on its contour."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.hypot((rows - shape[0] / 2) / (0.25 * shape[0]), (columns - 0.45 * shape[1]) / (0.15 * shape[1]))


def echo_like(shape: tuple[int, int] = (90, 120)) -> Case:
    distance = inside(shape)
    image = np.where(distance < 1, 20.0, np.where(distance < 1.5, 160.0, 70.0))
    image += np.random.default_rng(0).normal(scale=8, size=shape)
    return Case("p1_a", "p1", image.clip(0, 255)[None].astype(np.float32), Geometry.unknown(2))


def tiny_sam() -> Any:
    """SamModel of transformers with 128 x 128 pixels, random weights and both kinds of attention."""
    from transformers import SamConfig, SamModel

    config = SamConfig(
        vision_config={
            "hidden_size": 32, "output_channels": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "mlp_dim": 48,
            "image_size": 128, "window_size": 3, "global_attn_indexes": [2], "num_pos_feats": 16,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": 128},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 40, "iou_head_hidden_dim": 16},
    )  # fmt: skip
    return _shaken(SamModel(config))


def tiny_sam2() -> Any:
    """Sam2Model of transformers with 128 x 128 pixels, random weights and the blocks of hiera tiny."""
    from transformers import Sam2Config, Sam2Model

    return _shaken(Sam2Model(Sam2Config(**_parts_of_sam2(32))))


def _parts_of_sam2(width: int) -> dict[str, Any]:
    """Encoders and decoder for 128 x 128 pixels with the blocks of hiera tiny and features of that width."""
    widths = [16, 32, 64, 128]
    return {
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model", "hidden_size": 16, "image_size": [128, 128],
                "embed_dim_per_stage": widths,
            },
            "backbone_channel_list": widths[::-1],
            "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
            "fpn_hidden_size": width,
        },
        "prompt_encoder_config": {"hidden_size": width, "image_size": 128},
        "mask_decoder_config": {"hidden_size": width, "mlp_dim": 40, "iou_head_hidden_dim": 16},
    }  # fmt: skip


def tiny_sam2_video() -> Any:
    """Sam2VideoModel of transformers with 128 x 128 pixels, random weights, and a memory of three frames.

    It is 128 wide: transformers takes no width that is not larger than the 64 of the memory's features. Its object
    score is positive, so that objects are seen.
    """
    from transformers import Sam2VideoConfig, Sam2VideoModel

    config = Sam2VideoConfig(
        **_parts_of_sam2(128),
        image_size=128, num_maskmem=3,
        memory_attention_hidden_size=128, memory_attention_num_layers=2, memory_attention_feed_forward_hidden_size=48,
        memory_attention_rope_feat_sizes=[8, 8], memory_encoder_hidden_size=128, mask_downsampler_embed_dim=128,
        memory_fuser_embed_dim=128, memory_fuser_intermediate_dim=32,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _shaken(Sam2VideoModel(config))
    with torch.no_grad():
        model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(5.0)
        # The same in every checkpoint, and here they are not tied.
        positions = model.prompt_encoder.shared_embedding.positional_embedding
        model.shared_image_embedding.positional_embedding.copy_(positions)
    return model


def moving_echo(count: int, shape: tuple[int, int] = (90, 120), clip_id: str = "p1_4CH") -> Clip:
    """A drawn ventricle that moves to the right by two pixels a frame."""
    image = echo_like(shape).image
    frames = np.stack([np.roll(image, 2 * index, axis=2) for index in range(count)])
    return Clip(clip_id, "p1", frames, None, Geometry.unknown(2))


def _shaken(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.tie_weights()
    return model.eval()
