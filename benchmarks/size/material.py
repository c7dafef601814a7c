"""What the sizes are measured on: SIMULATED discs and balls in noise, and networks of the sizes that users have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.data.images import write_image, write_labels
from medfm_rl.networks import build_unet, one_hot
from medfm_rl.settings import NetworkSettings, PreprocessingSettings
from medfm_rl.types import Geometry, LabelSchema

SCHEMA = LabelSchema.from_structures({"inner": 1, "wall": 2})
SMALL = NetworkSettings(channels=(4, 8), residual_units=0)
DEFAULT = NetworkSettings(channels=(16, 32, 64, 128, 256), residual_units=2)
"""The network of `train-source`."""


def disc(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A ball within a wall, somewhere in the middle, `(*S)`."""
    axes = np.meshgrid(*[np.linspace(-1, 1, side) for side in shape], indexing="ij")
    centre, stretch = generator.uniform(-0.2, 0.2, len(shape)), generator.uniform(0.8, 1.25, len(shape))
    radius = np.sqrt(sum(((axis - c) * s) ** 2 for axis, c, s in zip(axes, centre, stretch, strict=True)))
    return np.where(radius < 0.4, 1, np.where(radius < 0.6, 2, 0)).astype(np.uint8)


def write_cases(folder: Path, count: int, side: int, seed: int) -> None:
    """A data set of so many SIMULATED patients, an image of side x side pixels each, with its mask."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        mask = disc((side, side), generator)
        image = (100.0 * mask + generator.normal(0, 20, mask.shape)).astype(np.float32)
        name = f"p{number:04d}.mha"
        geometry = Geometry((1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
        write_image(folder / "images" / name, image, geometry)
        write_labels(folder / "labels" / name, mask, geometry, SCHEMA)


def write_segmenter(folder: Path, side: int, network: NetworkSettings) -> None:
    """A segmenter with random weights: what it knows does not change what it needs."""
    torch.manual_seed(0)
    TorchModuleAdapter.build_unet(network, SCHEMA, PreprocessingSettings(size=(side, side))).export(folder)


def planned_network(stages: int = 6) -> nn.Module:
    """A 3-D nnU-Net as its planner makes them for large patches: 32 to 320 features, two convolutions a stage.

    Without nnU-Net a MONAI UNet takes its place, which halves the image at once and needs a fraction.
    """
    torch.manual_seed(0)
    try:
        from dynamic_network_architectures.architectures.unet import PlainConvUNet
    except ImportError:
        return build_unet(NetworkSettings(channels=(32, 64, 128, 256, 320), residual_units=2), 3, 1, 3)
    features = [min(320, 32 * 2**stage) for stage in range(stages)]
    network: nn.Module = PlainConvUNet(
        1,
        stages,
        features,
        nn.Conv3d,
        3,
        [1, *[2] * (stages - 1)],
        2,
        3,
        2,
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=False,
    )
    return network


def smooth_logits(mask: Tensor, classes: int) -> Tensor:
    """Logits `(1, K, *S)` as of a segmenter that is unsure near the contours of a mask `(*S)`."""
    maps = one_hot(mask, classes, dim=0)[None]
    blurred = torch.nn.functional.avg_pool3d(maps, kernel_size=5, stride=1, padding=2)
    return (blurred + 0.01).log() * 3
