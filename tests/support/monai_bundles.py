"""MONAI bundles for tests, as those of the model zoo, with tiny random networks; and cases to show them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter

from medfm_rl.data.images import read_image
from medfm_rl.types import Case

DIRECTION = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def configuration(dimensions: int, channels: int, overlap: bool = False) -> dict[str, Any]:
    """As the bundles of the model zoo write it; with structures that overlap as that of brain tumours does."""
    activation, decision = ({"sigmoid": True}, {"threshold": 0.5}) if overlap else ({"softmax": True}, {"argmax": True})
    spatial = [
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
        {"_target_": "Spacingd", "keys": "image", "pixdim": [1.2, 1.2, 2.0], "mode": "bilinear"},
    ]
    if dimensions == 2:
        spatial = [{"_target_": "Resized", "keys": "image", "spatial_size": [32, 32]}]
    return {
        "imports": ["$import torch"],
        "bundle_root": "/somewhere/else",
        "device": "$torch.device('cuda:0')",
        "network_def": {
            "_target_": "UNet",
            "spatial_dims": dimensions,
            "in_channels": channels,
            "out_channels": 3,
            "channels": [4, 8],
            "strides": [2],
            "norm": "instance",
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                *spatial,
                {"_target_": "NormalizeIntensityd", "keys": "image"},
                {"_target_": "EnsureTyped", "keys": "image"},
            ],
        },
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": [16] * dimensions,
            "sw_batch_size": 2,
            "overlap": 0.5,
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", **activation},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                    "to_tensor": True,
                },
                {"_target_": "AsDiscreted", "keys": "pred", **decision},
            ],
        },
    }


def metadata(dimensions: int, channels: int, overlap: bool = False) -> dict[str, Any]:
    image = {"type": "image", "num_channels": channels, "spatial_shape": [16] * dimensions}
    names = ("core", "whole", "enhancing") if overlap else ("background", "liver", "tumour")
    prediction = {"num_channels": 3, "channel_def": {str(index): name for index, name in enumerate(names)}}
    return {"version": "0.1", "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": prediction}}}


def write_bundle(
    folder: Path, dimensions: int, channels: int = 1, container: str | None = None, overlap: bool = False
) -> Path:
    from monai.bundle import ConfigParser

    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    config = configuration(dimensions, channels, overlap)
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata(dimensions, channels, overlap)))
    (folder / "models" / "model.ts").write_bytes(b"old weights")
    torch.manual_seed(0)
    network = ConfigParser({"network_def": config["network_def"]}).get_parsed_content("network_def")
    state = network.state_dict()
    torch.save({container: state, "epoch": 3} if container else state, folder / "models" / "model.pt")
    return folder


def case_of(dimensions: int, channels: int, folder: Path) -> Case:
    shape = (14, 26, 22) if dimensions == 3 else (40, 52)
    folder.mkdir()
    for channel in range(channels):
        noise = np.random.default_rng(channel).normal(size=shape)
        image = sitk.GetImageFromArray((100 * gaussian_filter(noise, 1.5)).astype(np.float32))
        image.SetSpacing((0.9, 1.1, 2.5)[:dimensions])
        if dimensions == 3:
            image.SetDirection(DIRECTION)
        sitk.WriteImage(image, str(folder / f"p1_a_{channel:04d}.nii.gz"))
    return Case("p1_a", "p1", *read_image(sorted(folder.iterdir())))
