"""Cascades: the masks of one stage enter the network of the next as further channels, one for each label.

Channels are 1 where the stage before saw the label and 0 elsewhere, as nnU-Net makes them of the files that
`-prev_stage_predictions` names. They travel with the image, so that tiles, mirroring and deformations move both; what
was interpolated on the way is brought back to labels before the network sees it (`labels_again`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor

from medfm_rl.adapters.base import SegmenterAdapter
from medfm_rl.adapters.checkpoints import read_checkpoint
from medfm_rl.adapters.nnunet.folder import (
    PLANS,
    NnUNetTool,
    available_folds,
    channel_names,
    find_model_folder,
    read_json,
    read_tool,
    require_nnunet,
)
from medfm_rl.data.images import hash_image
from medfm_rl.data.labels import read_label_ids
from medfm_rl.data.mask_files import masks_by_name
from medfm_rl.errors import DataError, ModelError
from medfm_rl.networks import hash_weights
from medfm_rl.settings import NnUNetSettings
from medfm_rl.types import Case, IntArray, LabelSchema

INNER: Final = "previous_stage"
"""Folder in an exported second stage that holds the model folder of the first."""
_SETTING: Final = "segmenter.previous_stage"
_MOST_STRANGERS: Final = 5


class PreviousStage(ABC):
    """Says what the stage before saw in a case. It does not learn, and copies of an adapter share it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> PreviousStage:
        return self

    @property
    @abstractmethod
    def place(self) -> Path:
        """Where it is read from."""

    @abstractmethod
    def integers(self, case: Case, device: torch.device) -> IntArray:
        """The labels of the stage before on the case's own grid, `(*S)`.

        Args:
            case: The case.
            device: Where networks run.

        Raises:
            DataError: There is no mask of the case, or it cannot be used.
        """

    @abstractmethod
    def content_hash(self, case_id: str) -> str | None:
        """SHA-256 of the mask of a case where it is a file; None where a network makes it.

        Raises:
            DataError: There is no mask of the case.
        """

    @abstractmethod
    def identity(self) -> str:
        """What decides about its masks, in so far as it is the same for all cases."""


@final
class StageNetwork(PreviousStage):
    """The model of the stage before, which segments each case anew.

    Args:
        adapter: The model; it is frozen.
        checkpoint: File of weights within each of its folds.
        folds: Names of the folders of its folds.
    """

    def __init__(self, adapter: SegmenterAdapter, folder: Path, checkpoint: str, folds: Sequence[str]) -> None:
        self.adapter = adapter.eval().requires_grad_(False)
        self.folder = folder
        self.checkpoint = checkpoint
        self.folds = folds
        self._identity: str | None = None

    @property
    def place(self) -> Path:
        return self.folder

    def integers(self, case: Case, device: torch.device) -> IntArray:
        mask = self.adapter.to(device).segment(case)
        return self.adapter.schema.to_ids(mask).astype(np.int64)

    def content_hash(self, case_id: str) -> str | None:
        del case_id
        return None

    def identity(self) -> str:
        if self._identity is None:
            content = {"weights": hash_weights(self.adapter), **self.adapter.inference_settings()}
            self._identity = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return self._identity

    def copy_into(self, folder: Path) -> None:
        """Writes the model folder, as it is but for what was not used, into another one.

        Raises:
            ModelError: It is gone.
        """
        if not self.folder.is_dir():
            raise ModelError(f"{self.folder}: the folder of the first stage is gone; export needs its files")
        name = Path(self.checkpoint).name
        place = folder / INNER / self.folder.name
        place.mkdir(parents=True)
        for file in (path for path in self.folder.iterdir() if path.is_file()):
            shutil.copy2(file, place / file.name)
        for fold in self.folds:
            (place / fold).mkdir()
            shutil.copy2(self.folder / fold / self.checkpoint, place / fold / name)
        before = getattr(self.adapter, "previous", None)
        if isinstance(before, StageNetwork):
            before.copy_into(place)


@final
class StageMasks(PreviousStage):
    """Masks that the stage before made, as files with the names of the cases.

    Args:
        folder: The masks.
        schema: Structures of the segmenter, for files that name their segments.
        labels: The integers that they may hold.

    Raises:
        DataError: There is no such folder.
    """

    def __init__(self, folder: Path, schema: LabelSchema, labels: Iterable[int]) -> None:
        self.folder = folder
        self.schema = schema
        self.labels = sorted({0, *labels})
        self.masks = masks_by_name(folder)

    @property
    def place(self) -> Path:
        return self.folder

    def integers(self, case: Case, device: torch.device) -> IntArray:
        del device
        path = self._mask(case.case_id)
        found = read_label_ids(path, self.schema, case.shape, case.geometry)
        strangers = np.setdiff1d(found, self.labels)
        if len(strangers):
            raise DataError(
                f"{path}: holds {', '.join(map(str, strangers[:_MOST_STRANGERS]))}, and the labels of the cascade are "
                f"{', '.join(map(str, self.labels))}; give the masks that its first stage wrote"
            )
        return found

    def content_hash(self, case_id: str) -> str | None:
        return hash_image(self._mask(case_id))

    def identity(self) -> str:
        return "masks"

    def _mask(self, case_id: str) -> Path:
        if case_id not in self.masks:
            raise DataError(
                f"{self.folder}: there is no mask of case {case_id} by the first stage; add it under the name of the "
                f"case, or let the first stage segment every case: {_SETTING}.folder in place of masks"
            )
        return self.masks[case_id]


def find_stage(folder: Path, configuration: str, name: str, given: Path | None) -> Path:
    """The model folder of the stage before: the one that is given, one within the folder, or one beside it.

    Args:
        folder: Model folder of the second stage.
        configuration: Its configuration, for messages.
        name: Configuration of the stage before.
        given: As settings name it; None: it is looked for.

    Raises:
        ModelError: There is none, or more than one.
    """
    if given is not None:
        if given.resolve() == folder.resolve():
            raise ModelError(f"{_SETTING}.folder: {given} is the second stage itself; give the model folder of {name}")
        return given
    trainer = folder.name.rpartition("__")[0]
    exact = folder.parent / f"{trainer}__{name}"
    if not (folder / INNER).is_dir() and exact.is_dir() and exact != folder:
        return exact
    places = (folder / INNER).glob("*") if (folder / INNER).is_dir() else folder.parent.glob(f"*__{name}")
    found = sorted(path for path in places if path.is_dir() and path != folder)
    if len(found) == 1:
        return found[0]
    remedy = f"give its model folder in {_SETTING}.folder, or the masks that it made of every image in {_SETTING}.masks"
    missing = (
        f"is missing: there is no {exact.name if trainer else f'*__{name}'} beside it"
        if not found
        else f"can be any of {', '.join(path.name for path in found)}"
    )
    raise ModelError(
        f"{folder}: {configuration} is the second stage of a cascade, which takes the segmentation of {name} as input, "
        f"and this first stage {missing}; {remedy}"
    )


def stage_of(settings: NnUNetSettings) -> Path | None:
    """The model folder that settings of a second stage lead to; None where they are of no second stage.

    Raises:
        ModelError: The model cannot be read, or the stage before is missing.
    """
    if settings.previous_stage.folder is not None:
        return settings.previous_stage.folder
    folder = find_model_folder(settings.folder)
    configurations = read_json(folder / PLANS).get("configurations", {})
    if not any("previous_stage" in each for each in configurations.values()):
        # The weights need not be read to know it.
        return None
    require_nnunet()
    fold = (settings.folds or available_folds(folder))[0]
    path = folder / f"fold_{fold}" / settings.checkpoint
    tool = read_tool(folder, path, read_checkpoint(path, settings.trusted))
    name = tool.configuration.previous_stage_name
    return None if name is None else find_stage(folder, tool.configuration_name, name, None)


def require_stage(stage: NnUNetTool, second: NnUNetTool, folder: Path, where: Path) -> None:
    """Refuses a model that cannot be the stage before another one.

    Args:
        stage: What nnU-Net knows of it.
        second: What it knows of the next stage.
        folder: Folder of the stage before.
        where: Folder of the next stage.

    Raises:
        ModelError: It has another configuration, other labels, or takes other channels.
    """
    wanted = second.configuration.previous_stage_name
    remedy = f"give the first stage of {where} in {_SETTING}.folder"
    if stage.configuration_name != wanted:
        raise ModelError(f"{folder}: its configuration is {stage.configuration_name}, {wanted} is needed; {remedy}")
    labels, others = stage.dataset.get("labels"), second.dataset.get("labels")
    if labels != others:
        raise ModelError(f"{folder}: its labels are {labels}, those of the second stage {others}; {remedy}")
    channels, needed = (len(channel_names(tool.dataset)) for tool in (stage, second))
    if channels != needed:
        raise ModelError(f"{folder}: takes {channels} channels, and the second stage {needed}; {remedy}")


def with_labels(data: np.ndarray[Any, Any], mask: np.ndarray[Any, Any], labels: Sequence[int]) -> np.ndarray[Any, Any]:
    """Grey values `(C, *S')` with a channel for each label of a mask `(*S')` of the stage before."""
    from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot

    return np.vstack((data, convert_labelmap_to_one_hot(mask, labels, data.dtype)))


def labels_again(images: Tensor, grey: int) -> Tensor:
    """Images whose channels of labels hold 0 and 1 alone, whatever interpolated them.

    Interpolated channels are shares of a pixel: the label of the largest share is taken, none where that of the
    background is the largest. So nnU-Net resamples masks too. What was never interpolated stays as it is.

    Args:
        images: `(B, C, *S)`.
        grey: How many of the first channels are grey values.
    """
    shares = images[:, grey:]
    if shares.shape[1] == 0 or bool(((shares == 0) | (shares == 1)).all()):
        return images
    background = 1 - shares.sum(dim=1, keepdim=True)
    largest = torch.cat([background, shares], dim=1).argmax(dim=1, keepdim=True)
    labels = torch.arange(1, shares.shape[1] + 1, device=images.device).reshape(-1, *[1] * (images.ndim - 2))
    return torch.cat([images[:, :grey], (largest == labels).to(images.dtype)], dim=1)
