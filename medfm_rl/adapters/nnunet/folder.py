"""What the folder of a model of nnU-Net v2 holds: its files, its folds, and the network that they describe."""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from medfm_rl.adapters.base import ExpectedValues
from medfm_rl.adapters.checkpoints import first_line, read_json_object
from medfm_rl.errors import MissingExtraError, ModelError
from medfm_rl.types import BACKGROUND, LabelSchema

DATASET: Final = "dataset.json"
PLANS: Final = "plans.json"
CHECKPOINT: Final = "checkpoint_final.pth"

Fold = int | Literal["all"]

_COMPILED = "_orig_mod."
_OTHERWISE_TRAINED: Final = frozenset(
    {
        "nnUNetTrainerSkeletonRecall",
        "nnUNetTrainer_MOSAIC_1k_QuarterLR_NoMirroring",
        "nnUNetTrainerDiceTopK10Loss_2000epochs",
    }
)
"""Trainers of the package TotalSegmentator that train nnU-Net's usual network, with other losses or rates."""


@dataclass(frozen=True, eq=False)
class NnUNetTool:
    """What nnU-Net knows of a model besides its weights; copies of an adapter share it."""

    plans: Any
    configuration: Any
    configuration_name: str
    dataset: Mapping[str, Any]
    labels: Any
    trainer: type[Any]
    mirror_axes: tuple[int, ...] | None

    def __deepcopy__(self, memo: dict[int, Any]) -> NnUNetTool:
        return self

    @property
    def reader(self) -> str:
        """Name of the class of nnU-Net that reads the images of this model."""
        return str(self.plans.plans.get("image_reader_writer", ""))


def find_model_folder(folder: Path) -> Path:
    """The folder with `plans.json` and `dataset.json`: this one, or the only one up to two levels below it.

    Raises:
        ModelError: There is none, or more than one.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: there is no such folder; give an nnU-Net model folder")
    if (folder / PLANS).exists() or (folder / DATASET).exists():
        return folder
    inner = sorted(path.parent for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/{PLANS}"))
    if len(inner) == 1:
        return inner[0]
    if inner:
        raise ModelError(f"{folder}: holds {len(inner)} models; choose one: {', '.join(path.name for path in inner)}")
    raise ModelError(f"{folder}: not an nnU-Net model folder, there is no {PLANS} and no {DATASET}")


def available_folds(folder: Path) -> tuple[Fold, ...]:
    """Folds with a checkpoint, in their order; `fold_all` only where it is the only one, as in nnU-Net."""
    names = {path.parent.name.removeprefix("fold_") for path in folder.glob("fold_*/*.pth")}
    numbered = tuple(sorted(int(name) for name in names if name.isdigit()))
    return numbered or (("all",) if "all" in names else ())


def require_nnunet() -> None:
    """Raises MissingExtraError where nnunetv2 is not installed."""
    try:
        with silent():
            importlib.import_module("nnunetv2")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "an nnU-Net model needs nnunetv2; install it: pip install 'medfm-rl[nnunet]'"
        ) from error


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """nnU-Net prints what it does; what a person needs of that, the command line says."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def read_json(path: Path) -> dict[str, Any]:
    """A file of a model folder.

    Raises:
        ModelError: It is missing, or no JSON object.
    """
    return read_json_object(path, f"{path.parent}: not a complete nnU-Net model folder, there is no {path.name}")


def channel_names(dataset: Mapping[str, Any]) -> list[str]:
    """Names of the channels in `dataset.json`, which older versions call modality."""
    return [str(name) for name in (dataset.get("channel_names") or dataset.get("modality") or {}).values()]


def read_tool(folder: Path, path: Path, checkpoint: Mapping[str, Any]) -> NnUNetTool:
    """What the folder and a checkpoint say of a model.

    Args:
        folder: The model folder.
        path: Path of the checkpoint, for messages.
        checkpoint: Its content.

    Raises:
        ModelError: A file is not what nnU-Net writes, or the model is of a kind that cannot be adapted.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    dataset, plans = read_json(folder / DATASET), read_json(folder / PLANS)
    try:
        trainer = str(checkpoint["trainer_name"])
        name = str(checkpoint["init_args"]["configuration"])
        axes = checkpoint.get("inference_allowed_mirroring_axes")
    except (KeyError, TypeError) as error:
        raise ModelError(f"{path}: not a checkpoint of nnU-Net v2, it lacks {error}") from error
    if not channel_names(dataset):
        raise ModelError(f"{folder / DATASET}: channel_names is missing or empty")
    _require_order(dataset, folder)
    try:
        manager = PlansManager(copy.deepcopy(plans))
        with silent():
            configuration = manager.get_configuration(name)
            labels = manager.get_label_manager(dataset)
        complete = (configuration.patch_size, configuration.spacing, manager.transpose_forward)
    except (KeyError, TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as error:
        raise ModelError(f"{folder}: {PLANS} or {DATASET} is not what nnU-Net writes ({first_line(error)})") from error
    del complete
    mirror = None if axes is None else tuple(int(axis) for axis in axes)
    return NnUNetTool(manager, configuration, name, dataset, labels, _find_trainer(trainer), mirror or None)


def _require_order(dataset: Mapping[str, Any], folder: Path) -> None:
    """Raises ModelError where structures overlap, and nothing says which integer is written where they do."""
    labels = dataset.get("labels")
    values = labels.values() if isinstance(labels, Mapping) else ()
    regions = [value for value in values if isinstance(value, list | tuple) and len(value) > 1]
    order = dataset.get("regions_class_order")
    wanted = len([name for name in labels or () if name not in (BACKGROUND, "ignore")])
    if regions and (not isinstance(order, list) or len(order) != wanted):
        raise ModelError(
            f"{folder / DATASET}: labels have regions, unions such as {list(regions[0])}, and regions_class_order, the "
            f"integer that is written for each of the {wanted} structures, the later over the earlier, is "
            f"{'missing' if order is None else order}; add the one that the model was trained with"
        )


def schema_of(labels: Any, folder: Path) -> LabelSchema:
    """The structures of nnU-Net's label manager; they overlap where they are regions.

    Raises:
        ModelError: Their integers have a gap, their names are none, or too many overlap.
    """
    if labels.has_regions:
        return _schema_of_regions(labels, folder)
    names = {int(label): name for name, label in labels.label_dict.items() if name != "ignore"}
    if sorted(names) != list(range(len(names))):
        raise ModelError(f"{folder / DATASET}: labels are not 0, 1, 2, ... without a gap")
    try:
        structures = (names[label] for label in range(1, len(names)))
        return LabelSchema((BACKGROUND, *structures), tuple(range(len(names))), ignored=labels.ignore_label)
    except ValueError as error:
        raise ModelError(f"{folder / DATASET}: labels: {error}") from error


def renamed(schema: LabelSchema, names: Sequence[str], folder: Path, whose: str) -> LabelSchema:
    """Exclusive structures with other names.

    Args:
        schema: The structures.
        names: Names of the integers 1, 2, 3, ...; what has a larger one keeps its name.
        folder: The model folder, for errors.
        whose: Whose names they are, for errors.

    Raises:
        ModelError: The model has fewer structures than names, or two would have one name.
    """
    own = schema.structures
    if schema.overlaps or len(own) < len(names):
        raise ModelError(
            f"{folder / DATASET}: has {len(own)} structures ({', '.join(own[:3])}, ...) and {whose} {len(names)}; is "
            "it the folder of another task, or of another version of its weights? Without segmenter.task the names in "
            "the file are taken"
        )
    try:
        return replace(schema, names=(BACKGROUND, *names, *own[len(names) :]))
    except ValueError as error:
        raise ModelError(f"{folder / DATASET}: with the names of {whose}: {error}") from error


def _schema_of_regions(labels: Any, folder: Path) -> LabelSchema:
    regions = {
        str(name): tuple(map(int, value)) if isinstance(value, list | tuple) else (int(value),)
        for name, value in labels.label_dict.items()
        if name not in (BACKGROUND, "ignore")
    }
    try:
        schema = LabelSchema.from_regions(regions, order=tuple(map(int, labels.regions_class_order)))
        return replace(schema, ignored=labels.ignore_label)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{folder / DATASET}: labels and regions_class_order: {error}") from error


def expected_values(plans: Mapping[str, Any], schemes: Sequence[str]) -> tuple[ExpectedValues | None, ...]:
    """What a model expects in each channel, by how it normalises them.

    Those that it brings to mean and deviation of each image may have any values. In CT the range is that of 99 % of the
    foreground that it was trained on, to which it clips.

    Args:
        plans: The content of `plans.json`.
        schemes: How each channel is normalised.
    """
    properties = plans.get("foreground_intensity_properties_per_channel", {})
    found: list[ExpectedValues | None] = []
    for channel, scheme in enumerate(schemes):
        known = properties.get(str(channel), {})
        if scheme == "CTNormalization" and {"percentile_00_5", "percentile_99_5"} <= known.keys():
            found.append(ExpectedValues(float(known["percentile_00_5"]), float(known["percentile_99_5"]), "HU"))
        else:
            found.append(ExpectedValues(0.0, 255.0) if scheme == "RGBTo01Normalization" else None)
    return tuple(found)


def _find_trainer(name: str) -> type[Any]:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    if name == nnUNetTrainer.__name__:
        # Looking for any other imports all of nnU-Net's trainers, and torchvision with them.
        trainer: type[Any] = nnUNetTrainer
        return trainer
    try:
        with silent(), warnings.catch_warnings():
            # Of packages that those trainers import; nothing that the user of one can do about.
            warnings.simplefilter("ignore")
            found: type[Any] = recursive_find_trainer_class_by_name(name)
    except (ImportError, RuntimeError, AssertionError) as error:
        if name in _OTHERWISE_TRAINED:
            return nnUNetTrainer  # type: ignore[no-any-return]
        if "torchvision" in str(error):
            raise ModelError(
                f"torch {torch.__version__} and the installed torchvision are not builds of each other "
                f"({first_line(error)}); install a matching pair, see constraints.txt"
            ) from error
        raise ModelError(
            f"the trainer {name} is not in the installed nnunetv2; install the package that it comes from, or name its "
            "folder in the environment variable nnUNet_extTrainer"
        ) from error
    return found


def build_network(tool: NnUNetTool, in_channels: int, folder: Path) -> nn.Module:
    """The network that the trainer of a model builds, with random weights.

    Raises:
        ModelError: It cannot.
    """
    configuration, build = tool.configuration, tool.trainer.build_network_architecture
    described: tuple[Any, ...] = (tool.plans, configuration)
    if "plans_manager" not in inspect.signature(build).parameters:
        # Trainers of other people may have the signature of older versions, which nnU-Net still accepts.
        described = (
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
        )
    heads = tool.labels.num_segmentation_heads
    try:
        with silent():
            network: nn.Module = build(*described, in_channels, heads, enable_deep_supervision=False)
    except (KeyError, TypeError, ValueError, ImportError, AttributeError, AssertionError, RuntimeError) as error:
        raise ModelError(
            f"{folder / PLANS}: {tool.trainer.__name__} cannot build the network of {tool.configuration_name} "
            f"({first_line(error)})"
        ) from error
    return network


def weights_of(checkpoint: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The state dict without the prefix of a compiled network, on no other device than the CPU."""
    state = checkpoint.get("network_weights")
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ModelError(f"{path}: not a checkpoint of nnU-Net v2, network_weights is no state dict")
    return {str(name).removeprefix(_COMPILED): value for name, value in state.items()}
