"""The two ways through the networks of a model: nnU-Net's own inference, and tiles that have gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfm_rl.adapters.nnunet.folder import NnUNetTool, silent
from medfm_rl.adapters.padding import pad_to_patch
from medfm_rl.errors import DataError
from medfm_rl.networks import convolution_choice_kept

STEP: Final = 0.5
"""Distance of neighbouring tiles as a share of the patch."""


@torch.no_grad()
def own_logits(
    networks: Sequence[nn.Module],
    tool: NnUNetTool,
    image: Tensor,
    case_id: str,
    *,
    step_size: float,
    mirroring: bool,
    device: torch.device,
) -> Tensor:
    """Mean logits `(K, *S')` of the networks by nnU-Net's own sliding window, in its own precision, on the CPU.

    Args:
        networks: One of each fold, in evaluation mode.
        tool: The model.
        image: Preprocessed, `(C, *S')`.
        case_id: Name of the case, for errors.
        step_size: Distance of neighbouring tiles, as a share of the patch.
        mirroring: Average over mirrored images.
        device: Where the networks are.

    Raises:
        DataError: A network gives numbers that half precision cannot hold.
    """
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    data = image if image.ndim == 4 else image[:, None]
    total: Tensor | None = None
    # nnU-Net chooses for the whole process how convolutions are done. It also prints, such as where the memory of a
    # GPU does not do and it goes on with less of it.
    with convolution_choice_kept(), silent():
        predictor = nnUNetPredictor(
            tile_step_size=step_size,
            use_mirroring=mirroring,
            perform_everything_on_device=device.type == "cuda",
            device=device,
            allow_tqdm=False,
        )
        predictor.configuration_manager = tool.configuration
        predictor.label_manager = tool.labels
        predictor.allowed_mirroring_axes = tool.mirror_axes
        # Not through `predict_logits_from_preprocessed_data`: that loads the weights of the file into the network.
        for network in networks:
            predictor.network = network
            logits = _logits_of(predictor, data, case_id)
            total = logits if total is None else total + logits
    assert total is not None
    mean = total / len(networks) if len(networks) > 1 else total.clone()
    return mean if image.ndim == 4 else mean[:, 0]


def _logits_of(predictor: Any, data: Tensor, case_id: str) -> Tensor:
    """One network's logits on the CPU, by nnU-Net's own sliding window."""
    try:
        logits: Tensor = predictor.predict_sliding_window_return_logits(data)
    except RuntimeError as error:
        if "Encountered inf" not in str(error):
            raise
        raise DataError(
            f"case {case_id}: the network gives numbers that nnU-Net's half precision cannot hold; is the image of the "
            "kind that it was trained on?"
        ) from error
    return logits.to("cpu")


def tiled_logits(run: Callable[[Tensor], Tensor], images: Tensor, patch_size: tuple[int, ...]) -> Tensor:
    """Logits `(B, K, *S')` of images of as many axes as the patch, differentiable, in float32 and out of place.

    Tiles are placed and weighted as nnU-Net does it; nothing is mirrored.

    Args:
        run: Logits of images that have the size of the patch.
        images: `(B, C, *S')`.
        patch_size: Grid that the network sees at once.
    """
    if tuple(images.shape[2:]) == patch_size:
        return run(images)
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window

    padded, content = pad_to_patch(images, patch_size)
    # Weights as nnU-Net has them, rounded to half precision, and sums in single precision.
    weight = compute_gaussian(patch_size, 1 / 8, 10, torch.float16, images.device).float()
    size = padded.shape[2:]
    total = images.new_zeros(())
    count = images.new_zeros(())
    for corner in itertools.product(*compute_steps_for_sliding_window(tuple(size), patch_size, STEP)):
        box = tuple(slice(low, low + side) for low, side in zip(corner, patch_size, strict=True))
        margins = [
            margin
            for low, side, whole in reversed(list(zip(corner, patch_size, size, strict=True)))
            for margin in (low, whole - low - side)
        ]
        logits = run(padded[(slice(None), slice(None), *box)])
        total = total + F.pad(logits * weight, margins)
        count = count + F.pad(weight, margins)
    return (total / count)[(slice(None), slice(None), *content)]
