"""nnU-Net v2 model folders: their own preprocessing, differentiable logits, and a folder that nnU-Net runs again.

Preprocessing, tiles, mirroring, the way back to the image and the file format are nnU-Net's own code; only the pass
that has gradients is ours, because nnU-Net runs its network in inference mode alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from medfm_rl.adapters.base import ExpectedValues, Scope, SegmenterAdapter, evaluating, parameters_in_scope
from medfm_rl.adapters.checkpoints import load_strictly, read_checkpoint, save_state
from medfm_rl.adapters.grid import Sample
from medfm_rl.adapters.nnunet.cascade import (
    PreviousStage,
    StageMasks,
    StageNetwork,
    find_stage,
    labels_again,
    require_stage,
    with_labels,
)
from medfm_rl.adapters.nnunet.export import copy_model
from medfm_rl.adapters.nnunet.folder import (
    CHECKPOINT,
    Fold,
    available_folds,
    build_network,
    channel_names,
    expected_values,
    find_model_folder,
    read_tool,
    renamed,
    require_nnunet,
    schema_of,
    weights_of,
)
from medfm_rl.adapters.nnunet.inference import STEP, own_logits, tiled_logits
from medfm_rl.adapters.nnunet.sample import NnUNetSample, arrange
from medfm_rl.adapters.overlapping import class_logits, count_channels, region_logits, subset_logits
from medfm_rl.adapters.padding import pad_to_patch
from medfm_rl.data.files import replace_folder_on_success
from medfm_rl.errors import DataError, ModelError
from medfm_rl.networks import portable_state
from medfm_rl.settings import PreviousStageSettings
from medfm_rl.types import Case, FloatArray, GridAxes, LabelMap, Prompts
from medfm_rl.version import __version__

PROVENANCE: Final = "medfm_rl"
"""Key of an adapted checkpoint that says what made it."""


@final
class NnUNetAdapter(SegmenterAdapter):
    """A model folder of nnU-Net v2 (`dataset.json`, `plans.json`, `fold_X/checkpoint_final.pth`).

    Classes are exclusive (softmax), or the sets of regions that overlap (`adapters.overlapping`). Several folds are
    several networks, and the policy is the mean of their logits, as in nnU-Net. A 2-D configuration takes images, and
    volumes slice by slice. The second stage of a cascade has the stage before segment each case, whose labels are
    further channels of the image; that stage does not learn.

    Args:
        folder: The model folder, or the folder of a data set with one such folder in it.
        folds: Those to load; all that are there where None.
        checkpoint: File name within each fold.
        mirroring: Average over mirrored images in `predict_logits`, as `nnUNetv2_predict` does unless told not to. It
            has no part in `forward`.
        step_size: Distance of neighbouring tiles in `predict_logits`, as a share of the patch.
        canonical: Turn volumes to the axes right, front, head before anything else.
        nested: Export as `DatasetNNN_name/TRAINER__PLANS__CONFIG` within the folder, the layout of TotalSegmentator.
        trusted: Unpickle checkpoints that hold more than tensors and numbers.
        previous_stage: Where the stage before is, for the second stage of a cascade.
        names: Names of the integers 1, 2, 3, ..., in place of those in `dataset.json`.

    Raises:
        MissingExtraError: nnunetv2 is not installed.
        ModelError: The folder cannot be used; the message says why.
    """

    by_slices = True

    def __init__(
        self,
        folder: Path,
        folds: Sequence[Fold] | None = None,
        checkpoint: str = CHECKPOINT,
        mirroring: bool = True,
        step_size: float = STEP,
        canonical: bool = False,
        nested: bool = False,
        trusted: bool = False,
        previous_stage: PreviousStageSettings | None = None,
        names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        require_nnunet()
        self.folder = find_model_folder(folder)
        self.folds = available_folds(self.folder) if folds is None else tuple(folds)
        self.checkpoint = checkpoint
        self.mirroring = mirroring
        self.step_size = step_size
        self.nested = nested
        self.trusted = trusted
        if not self.folds:
            raise ModelError(f"{self.folder}: there is no fold_X with a checkpoint; give a trained nnU-Net model")
        checkpoints = {fold: self._read(fold) for fold in self.folds}
        self.tool = read_tool(self.folder, self._path(self.folds[0]), checkpoints[self.folds[0]])
        schema = schema_of(self.tool.labels, self.folder)
        self.schema = renamed(schema, names, self.folder, "the task") if names else schema
        self.patch_size = tuple(int(side) for side in self.tool.configuration.patch_size)
        self.canonical = canonical or self.tool.reader.endswith("WithReorient")
        self.previous = self._stage_before(previous_stage or PreviousStageSettings())
        labels = () if self.previous is None else self.tool.labels.foreground_labels
        self.in_channels = self.intensity_channels + len(labels)
        self.networks = nn.ModuleList()
        for fold, content in checkpoints.items():
            network = build_network(self.tool, self.in_channels, self.folder)
            load_strictly(network, weights_of(content, self._path(fold)), self._path(fold))
            self.networks.append(network)
        self.eval()

    @classmethod
    def load(cls, folder: Path) -> NnUNetAdapter:
        """All folds of a model folder."""
        return cls(folder)

    def preprocess(self, case: Case) -> NnUNetSample:
        """nnU-Net's own preprocessing: transposition, crop to what is not 0, intensities, spacing; then padding."""
        arranged = arrange(self.conform(case), self.tool, self.canonical)
        properties: dict[str, Any] = {"spacing": list(arranged.spacing)}
        before = None
        if self.previous is not None:
            # As nnU-Net's readers give masks, with an axis for one channel.
            before = arranged.mask(self.previous.integers(case, self.device))[None].astype(np.float32)
        preprocessor = self.tool.configuration.preprocessor_class(verbose=False)
        data, mask, properties = preprocessor.run_case_npy(
            arranged.image, before, properties, self.tool.plans, self.tool.configuration, self.tool.dataset
        )
        if before is not None:
            data = with_labels(data, mask[0], self.tool.labels.foreground_labels)
            # Places to draw patches from, which nnU-Net takes down wherever there is a mask.
            properties.pop("class_locations", None)
        tensor = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))
        if not bool(torch.isfinite(tensor).all()):
            raise DataError(f"case {case.case_id}: nnU-Net's preprocessing gives NaN or infinite values")
        if len(case.shape) == 2:
            tensor = tensor[:, 0]
        padded, content = pad_to_patch(tensor, self.patch_size)
        if padded.ndim - 1 > len(content):
            # Slices of a volume: none is added.
            content = (slice(0, padded.shape[1]), *content)
        return NnUNetSample(
            padded, case.case_id, case.patient_id, case.shape, case.geometry, properties, content, arranged.orientation
        )

    def preprocess_labels(self, labels: LabelMap, sample: Sample) -> Tensor:
        ours = _ours(sample)
        mask = labels[None] if labels.ndim == 2 else labels
        if ours.orientation is not None:
            mask = ours.orientation.labels_to_canonical(mask)
        mask = mask.transpose(self.tool.plans.transpose_forward)
        box = tuple(slice(low, high) for low, high in ours.properties["bbox_used_for_cropping"])
        resized = self.tool.configuration.resampling_fn_seg(
            mask[box][None].astype(np.int16), self._content_shape(ours), *self._spacings(ours)
        )
        mask = np.asarray(resized)[0, 0] if labels.ndim == 2 else np.asarray(resized)[0]
        padded = torch.zeros(ours.image.shape[1:], dtype=torch.uint8)
        padded[ours.content] = torch.from_numpy(mask.astype(np.uint8))
        return padded

    def forward(self, images: Tensor, prompts: Prompts | None = None) -> Tensor:
        """Logits `(B, K, *S')`, differentiable: mean over the folds; tiles where images are larger than the patch.

        Tiles are placed and weighted as nnU-Net does it; nothing is mirrored.
        """
        if prompts is not None:
            raise ModelError("an nnU-Net takes no prompts")
        images = labels_again(images, self.intensity_channels)
        if images.ndim - 2 == len(self.patch_size) + 1:
            # Slices of volumes are images of their own: (B, C, D, H, W) to (B * D, C, H, W) and back.
            flat = images.movedim(2, 1).flatten(0, 1)
            slices = class_logits(tiled_logits(self._mean_logits, flat, self.patch_size), self.schema)
            volumes: Tensor = slices.unflatten(0, (images.shape[0], images.shape[2])).movedim(1, 2)
            return volumes
        return class_logits(tiled_logits(self._mean_logits, images, self.patch_size), self.schema)

    def inference_settings(self) -> Mapping[str, Any]:
        return {
            **super().inference_settings(),
            "plans": self.tool.plans.plans,
            "configuration": self.tool.configuration_name,
            "dataset": self.tool.dataset,
            "folds": list(self.folds),
            "mirrored": list(self.mirror_axes),
            "step_size": self.step_size,
            "canonical": self.canonical,
            **({} if self.previous is None else {"previous_stage": self.previous.identity()}),
        }

    @property
    def intensity_channels(self) -> int:
        return len(channel_names(self.tool.dataset))

    def prompt_hash(self, case_id: str) -> str | None:
        """SHA-256 of the mask of the stage before, where it is a file."""
        return None if self.previous is None else self.previous.content_hash(case_id)

    def expected_values(self) -> tuple[ExpectedValues | None, ...]:
        return expected_values(self.tool.plans.plans, self.tool.configuration.normalization_schemes)

    @property
    def mirror_axes(self) -> tuple[int, ...]:
        return (self.tool.mirror_axes or ()) if self.mirroring else ()

    @torch.no_grad()
    def predict_logits(self, sample: Sample) -> Tensor:
        """Logits `(K, *S')` by nnU-Net's own inference, in its own precision, with mirroring where it is on."""
        with evaluating(self):
            channels = own_logits(
                list(self.networks),
                self.tool,
                labels_again(sample.image[None], self.intensity_channels)[0],
                sample.case_id,
                step_size=self.step_size,
                mirroring=self.mirroring,
                device=self.device,
            )
        # Sums of what nnU-Net keeps in half precision need more.
        return subset_logits(channels.float()[None])[0] if self.schema.overlaps else channels

    def restore(self, logits: Tensor, sample: Sample) -> LabelMap:
        from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

        ours = _ours(sample)
        channels = region_logits(logits.float()) if self.schema.overlaps else logits
        labels = convert_predicted_logits_to_segmentation_with_correct_shape(
            self._volume(channels, ours),
            self.tool.plans,
            self.tool.configuration,
            self.tool.labels,
            ours.properties,
            num_threads_torch=torch.get_num_threads(),
        )
        if self.schema.overlaps:
            labels = self.schema.to_indices(labels)
        return self._to_case(labels, ours).astype(np.uint8)

    def restore_map(self, values: Tensor, sample: Sample) -> FloatArray:
        ours = _ours(sample)
        plans, properties = self.tool.plans, ours.properties
        original, target = self._spacings(ours)
        shape = properties["shape_after_cropping_and_before_resampling"]
        resized = self.tool.configuration.resampling_fn_probabilities(
            self._volume(values[None].float(), ours), shape, target, original
        )
        # What nnU-Net crops away as empty has no value of its own: that of the nearest pixel is taken.
        box = properties["bbox_used_for_cropping"]
        border = [
            (low, side - high) for (low, high), side in zip(box, properties["shape_before_cropping"], strict=True)
        ]
        full = np.pad(np.asarray(resized, dtype=np.float32)[0], border, mode="edge")
        return self._to_case(full.transpose(plans.transpose_backward), ours)

    def grid_axes(self, sample: Sample) -> GridAxes:
        ours = _ours(sample)
        read = GridAxes.same(3) if ours.orientation is None else ours.orientation.canonical_axes
        # nnU-Net transposes what it has read.
        forward = [int(axis) for axis in self.tool.plans.transpose_forward]
        axes = GridAxes(tuple(read.order[axis] for axis in forward), tuple(read.flipped[axis] for axis in forward))
        if len(sample.native_shape) == 3:
            return axes
        return GridAxes(tuple(axis - 1 for axis in axes.order[1:]), axes.flipped[1:])

    def trainable(self, scope: Scope) -> dict[str, Parameter]:
        """Parameters by name; those of the heads for deep supervision, which inference does not use, are left out."""
        count = range(len(self.networks))
        unused = {
            id(parameter)
            for module in self.networks.modules()
            if isinstance(heads := getattr(module, "seg_layers", None), nn.ModuleList)
            for head in heads[:-1]
            for parameter in head.parameters()
        }
        found = parameters_in_scope(self, scope, tuple(f"networks.{index}.decoder." for index in count))
        return {name: parameter for name, parameter in found.items() if id(parameter) not in unused}

    def export(self, folder: Path) -> None:
        """Writes a model folder for `nnUNetv2_predict_from_modelfolder`: the one that was loaded, with these weights.

        Every other entry of a checkpoint (trainer, plans, optimiser, epoch) is kept, what was not adapted is left out
        (`copy_model`). The first stage of a cascade lies in the folder `previous_stage`, unchanged.
        """
        if not self.folder.is_dir():
            raise ModelError(
                f"{self.folder}: the folder that the model was loaded from is gone; export needs its files"
            )
        # The checkpoints may have been read from elsewhere; nnU-Net looks for them by their name in each fold.
        checkpoint = Path(self.checkpoint).name
        # Before anything is written: a checkpoint that cannot be read again leaves no folder behind.
        contents = [self._read(fold) for fold in self.folds]
        with replace_folder_on_success(folder) as temporary:
            place = temporary / self.folder.parent.name / self.folder.name if self.nested else temporary
            copy_model(self.folder, place, self.folds, checkpoint)
            if isinstance(self.previous, StageNetwork):
                self.previous.copy_into(place)
            for fold, network, content in zip(self.folds, self.networks, contents, strict=True):
                provenance = {"version": __version__, "fold": str(fold), "checkpoint": checkpoint}
                weights = portable_state(network.state_dict())
                save_state(
                    {**content, "network_weights": weights, PROVENANCE: provenance},
                    place / f"fold_{fold}" / checkpoint,
                )

    def _path(self, fold: Fold) -> Path:
        return self.folder / f"fold_{fold}" / self.checkpoint

    def _read(self, fold: Fold) -> dict[str, Any]:
        if not self._path(fold).parent.is_dir():
            there = ", ".join(map(str, available_folds(self.folder))) or "none"
            raise ModelError(f"{self.folder}: there is no fold {fold}; folds that are there: {there}")
        return read_checkpoint(self._path(fold), self.trusted, "Where you trust them: segmenter.trusted: true")

    def _stage_before(self, wanted: PreviousStageSettings) -> PreviousStage | None:
        """What tells the labels of the stage before; None where this is no second stage of a cascade."""
        name, own = self.tool.configuration.previous_stage_name, self.tool.configuration_name
        if name is None:
            if wanted != PreviousStageSettings():
                raise ModelError(
                    f"{self.folder}: {own} is no second stage of a cascade; leave out segmenter.previous_stage"
                )
            return None
        if wanted.masks is not None:
            return StageMasks(wanted.masks, self.schema, self.tool.labels.foreground_labels)
        adapter = NnUNetAdapter(
            find_stage(self.folder, own, name, wanted.folder),
            wanted.folds,
            wanted.checkpoint,
            self.mirroring,
            self.step_size,
            self.canonical,
            trusted=self.trusted,
        )
        require_stage(adapter.tool, self.tool, adapter.folder, self.folder)
        return StageNetwork(adapter, adapter.folder, adapter.checkpoint, [f"fold_{fold}" for fold in adapter.folds])

    def _mean_logits(self, images: Tensor) -> Tensor:
        """Mean of what the folds give for images that have the size of the patch."""
        logits = torch.stack([network(images) for network in self.networks]).mean(dim=0)
        expected = (len(images), count_channels(self.schema), *images.shape[2:])
        if tuple(logits.shape) != expected:
            raise ModelError(f"{self.folder}: the network gives {tuple(logits.shape)}, {expected} are needed")
        return logits

    def _content_shape(self, sample: NnUNetSample) -> tuple[int, ...]:
        """The grid after nnU-Net's resampling, three axes, without padding."""
        inner = tuple(part.stop - part.start for part in sample.content)
        return inner if len(inner) == 3 else (1, *inner)

    def _spacings(self, sample: NnUNetSample) -> tuple[list[float], list[float]]:
        """Spacing before and after nnU-Net's resampling, in the order of its transposed axes."""
        original = [sample.properties["spacing"][axis] for axis in self.tool.plans.transpose_forward]
        target = [float(value) for value in self.tool.configuration.spacing]
        return original, target if len(target) == 3 else [original[0], *target]

    def _volume(self, values: Tensor, sample: NnUNetSample) -> np.ndarray[Any, Any]:
        """Values `(N, *S')` without padding, with three axes; the precision stays."""
        inner = values.detach().cpu()[(slice(None), *sample.content)].numpy()
        return inner if inner.ndim == 4 else inner[:, None]

    def _to_case(self, values: np.ndarray[Any, Any], sample: NnUNetSample) -> np.ndarray[Any, Any]:
        if sample.orientation is not None:
            values = sample.orientation.to_native(values)
        return values[0] if len(sample.native_shape) == 2 else values


def _ours(sample: Sample) -> NnUNetSample:
    if not isinstance(sample, NnUNetSample):
        raise TypeError("this sample is not from this adapter's `preprocess`")
    return sample
