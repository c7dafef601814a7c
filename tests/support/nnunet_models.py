"""nnU-Net model folders for tests: real files with small networks and random weights, no training."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, STDOUT
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from medfm_rl.data.images import read_image
from medfm_rl.types import Case

FLAT = ((37, 50), (0.7, 0.9))
VOLUME = ((18, 42, 38), (0.8, 0.9, 3.0))
LABELS = {"background": 0, "LV": 1, "MYO": 2}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
"""Structures that overlap, as those of brain tumours: label 1 is around the core, 3 enhances in it."""
ORDER = [1, 2, 3]


def plans(dimensions: int, patch: list[int], spacing: list[float], channels: int = 1, **changes: Any) -> dict[str, Any]:
    """As nnU-Net's planner writes them; `changes` go into the configuration."""
    convolution = f"torch.nn.modules.conv.Conv{dimensions}d"
    normalisation = f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d"
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    name = "2d" if dimensions == 2 else "3d_fullres"
    parent = {
        "data_identifier": f"nnUNetPlans_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": patch,
        "median_image_size_in_voxels": patch,
        "spacing": spacing,
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": {
                "n_stages": 3,
                "features_per_stage": [4, 8, 8],
                "conv_op": convolution,
                "kernel_sizes": [[3] * dimensions] * 3,
                "strides": [[1] * dimensions, [2] * dimensions, [2] * dimensions],
                "n_conv_per_stage": [1, 1, 1],
                "n_conv_per_stage_decoder": [1, 1],
                "conv_bias": True,
                "norm_op": normalisation,
                "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": True,
    }
    return {
        "dataset_name": "Dataset001_Tiny",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [1, 32, 32],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(channel): {
                "max": 1.0,
                "mean": 0.0,
                "median": 0.0,
                "min": -1.0,
                "percentile_00_5": -1.0,
                "percentile_99_5": 1.0,
                "std": 1.0,
            }
            for channel in range(channels)
        },
        "configurations": {f"{name}_parent": parent, name: {"inherits_from": f"{name}_parent", **changes}},
    }


def dataset(
    labels: dict[str, Any] | None = None, ending: str = ".nii.gz", channels: tuple[str, ...] = ("ultrasound",)
) -> dict[str, Any]:
    return {
        "channel_names": {str(index): name for index, name in enumerate(channels)},
        "labels": LABELS if labels is None else labels,
        "numTraining": 4,
        "file_ending": ending,
    }


def region_dataset() -> dict[str, Any]:
    """As that of a region-based model."""
    return dataset(REGIONS) | {"regions_class_order": ORDER}


def write_model(
    folder: Path,
    plan: dict[str, Any],
    description: dict[str, Any] | None = None,
    folds: tuple[int | str, ...] = (0,),
    trainer: str = "nnUNetTrainer",
    extra: dict[str, Any] | None = None,
    mirror: tuple[int, ...] | None = None,
    configuration: str | None = None,
) -> Path:
    """A model folder with the weights that nnU-Net's own trainer starts from, other ones in each fold."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    description = dataset() if description is None else description
    manager = PlansManager(copy.deepcopy(plan))
    name = list(plan["configurations"])[1] if configuration is None else configuration
    planned = manager.get_configuration(name)
    channels = determine_num_input_channels(manager, planned, description)
    heads = manager.get_label_manager(description).num_segmentation_heads
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plan, indent=4), encoding="utf-8")
    (folder / "dataset.json").write_text(json.dumps(description, indent=4), encoding="utf-8")
    dimensions = len(planned.patch_size)
    for index, fold in enumerate(folds):
        torch.manual_seed(index)
        network = nnUNetTrainer.build_network_architecture(
            manager, planned, channels, heads, enable_deep_supervision=False
        )
        with torch.no_grad():
            for parameter in network.parameters():
                # He's weights make hardly any difference between classes in so small a network.
                parameter.add_(0.3 * torch.randn_like(parameter))
        checkpoint = {
            "network_weights": network.state_dict(),
            "optimizer_state": {},
            "grad_scaler_state": None,
            "logging": {"mean_fg_dice": [np.float32(0.5)], "train_losses": [np.float64(0.1)]},
            "_best_ema": np.float64(0.5),
            "current_epoch": 2,
            "init_args": {
                "plans": plan,
                "configuration": name,
                "fold": fold,
                "dataset_json": description,
                "device": torch.device("cpu"),
            },
            "trainer_name": trainer,
            "inference_allowed_mirroring_axes": tuple(range(dimensions)) if mirror is None else mirror,
            **(extra or {}),
        }
        (folder / f"fold_{fold}").mkdir()
        torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def draw(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Smooth noise with an empty border: there is something to crop."""
    from scipy.ndimage import gaussian_filter

    image = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    image = (100 * image / np.abs(image).max()).astype(np.float32) + 200
    image[..., :3] = 0
    return image


def write_case(
    path: Path, shape: tuple[int, ...], spacing: tuple[float, ...], seed: int = 0, direction: tuple[float, ...] = ()
) -> Path:
    image = sitk.GetImageFromArray(draw(shape, seed))
    image.SetSpacing(spacing)
    image.SetOrigin(tuple(range(1, len(shape) + 1)))
    if direction:
        image.SetDirection(direction)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def nnunet_predict(model: Path, images: Path, out: Path, *options: str, folds: tuple[int, ...] = (0,)) -> None:
    """Calls nnU-Net's own command line, which starts three processes: they take half a minute of a processor."""
    command = [str(Path(sys.executable).with_name("nnUNetv2_predict_from_modelfolder"))]
    command += ["-m", str(model), "-i", str(images), "-o", str(out), "-f", *map(str, folds)]
    command += ["-device", "cpu", "-npp", "1", "-nps", "1", "--disable_progress_bar", *options]
    environment = {**os.environ, "nnUNet_def_n_proc": "1"}
    done = subprocess.run(command, stdout=PIPE, stderr=STDOUT, text=True, env=environment, timeout=250, check=False)
    assert done.returncode == 0, done.stdout[-4000:]


def nnunet_masks(model: Path, images: Path, out: Path, folds: tuple[int, ...] = (0,)) -> None:
    """Has nnU-Net write the same files from this process."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    out.mkdir()
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), folds)
    predictor.predict_from_files_sequential(str(images), str(out))


def read_labels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def read(path: Path) -> Case:
    name = path.name.removesuffix("_0000.nii.gz")
    return Case(name, name.split("_")[0], *read_image(path))


def residual(dimensions: int) -> dict[str, Any]:
    plan = plans(dimensions, [32] * dimensions, [0.8] * dimensions)
    architecture = plan["configurations"]["2d_parent"]["architecture"]
    architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")
    return plan


def volumetric(**changes: Any) -> dict[str, Any]:
    plan = plans(3, [8, 32, 32], [2.0, 1.0, 1.0])
    return plan | changes


def transposed() -> dict[str, Any]:
    # The slices lie along the last axis of the file.
    plan = plans(3, [32, 8, 32], [1.0, 2.0, 1.0])
    return plan | {"transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2]}


MODELS: dict[str, tuple[Callable[[], dict[str, Any]], tuple[int, ...], str]] = {
    "2d": (lambda: plans(2, [32, 32], [0.8, 0.8]), (0,), "flat"),
    "2d, two folds": (lambda: plans(2, [32, 32], [0.8, 0.8]), (0, 1), "flat"),
    "2d, smaller than the patch": (lambda: plans(2, [64, 64], [0.8, 0.8]), (0,), "flat"),
    "2d, residual": (lambda: residual(2), (0,), "flat"),
    "2d on volumes": (lambda: plans(2, [32, 32], [1.0, 1.0]), (0,), "volume"),
    "3d": (volumetric, (0,), "volume"),
    "3d, transposed": (transposed, (0,), "volume"),
    "3d, reoriented": (lambda: volumetric(image_reader_writer="NibabelIOWithReorient"), (0,), "volume"),
}


def cascaded(**changes: Any) -> dict[str, Any]:
    """Plans of a cascade, as nnU-Net's planner writes them: all configurations in one file.

    Weights are of one of them: `write_model` is told which.
    """
    plan = volumetric(**changes)
    fullres = plan["configurations"]["3d_fullres_parent"]
    lowres = copy.deepcopy(fullres) | {
        "data_identifier": "nnUNetPlans_3d_lowres",
        "patch_size": [8, 16, 16],
        "spacing": [2.5, 2.0, 2.0],
        "next_stage": "3d_cascade_fullres",
    }
    plan["configurations"] = {
        "3d_fullres": fullres,
        "3d_lowres": lowres,
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    return plan


def write_cascade(
    results: Path, description: dict[str, Any] | None = None, folds: tuple[int | str, ...] = (0,), **changes: Any
) -> Path:
    """Both stages of a cascade in the folder of a data set, as nnU-Net lays them out; the second one is returned."""
    for name in ("3d_lowres", "3d_cascade_fullres"):
        folder = results / f"nnUNetTrainer__nnUNetPlans__{name}"
        write_model(folder, cascaded(**changes), description, folds, configuration=name)
    return folder
