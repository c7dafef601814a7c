"""MONAI bundles: their own preprocessing, inferer and way back, and a bundle that MONAI runs again.

The configuration of a bundle is code: whatever stands behind a `$` in it is run.
"""

from __future__ import annotations

import copy
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch
from nibabel.orientations import io_orientation
from torch import Tensor, nn
from torch.nn import Parameter

from medfm_rl.adapters.base import Scope, SegmenterAdapter, evaluating, parameters_in_scope
from medfm_rl.adapters.bundle_description import (
    METADATA,
    THRESHOLD,
    describe,
    find_config,
    further_steps,
    probabilities_come_first,
    read_metadata,
    takes_sigmoid,
)
from medfm_rl.adapters.checkpoints import content_bytes, first_line, read_content
from medfm_rl.adapters.grid import Sample
from medfm_rl.adapters.overlapping import (
    as_channels,
    class_logits,
    classes_of_regions,
    count_channels,
    region_logits,
)
from medfm_rl.adapters.padding import pad_to_patch
from medfm_rl.adapters.probabilities import warn_of_probabilities
from medfm_rl.adapters.state_dicts import load_weights
from medfm_rl.adapters.unused import UnusedParameters
from medfm_rl.data.files import hash_folder, leads_into, replace_folder_on_success
from medfm_rl.data.images import write_image
from medfm_rl.errors import DataError, ModelError
from medfm_rl.networks import portable_state
from medfm_rl.prelu import with_fast_prelu
from medfm_rl.types import Case, FloatArray, Geometry, GridAxes, LabelMap, Prompts

_LOG = logging.getLogger(__name__)
WEIGHTS: Final = "model.pt"
# What configurations that are not as they should be make MONAI raise.
_BROKEN = (
    KeyError,
    TypeError,
    ValueError,
    ImportError,
    AttributeError,
    RuntimeError,
    LookupError,
    OSError,
    SyntaxError,
)


@dataclass(frozen=True, eq=False)
class BundleSample(Sample):
    """A case as the bundle's preprocessing leaves it, padded to the patch; its axes are those of the bundle.

    Attributes:
        loaded: The preprocessed image with MONAI's record of what was done to it.
        content: The part of the padded grid that shows the image.
    """

    loaded: Any
    content: tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class _Tool:
    """What the bundle brings besides its weights; copies of an adapter share it."""

    preprocessing: Any
    inferer: Any
    probabilities_first: bool
    needs_spacing: bool

    def __deepcopy__(self, memo: dict[int, Any]) -> _Tool:
        return self


@final
class MonaiBundleAdapter(SegmenterAdapter):
    """A MONAI bundle (`configs/metadata.json`, `configs/inference.json`, `models/model.pt`).

    Classes are exclusive (softmax); one output is the logit of the only structure (sigmoid). Where the bundle's
    postprocessing takes the sigmoid of several channels, classes are the sets of structures that overlap
    (`adapters.overlapping`), and files have their bit masks. **A bundle is trusted code:** loading one runs expressions
    of its configuration.

    Args:
        folder: The bundle.
        weights: File in `models/`; a state dict, plain or within one of the usual keys.

    Raises:
        ModelError: The folder cannot be used; the message says why.
    """

    def __init__(self, folder: Path, weights: str = WEIGHTS) -> None:
        super().__init__()
        self.folder = folder
        self.weights = weights
        metadata, config = read_metadata(folder), find_config(folder)
        parser = _parse(config, folder)
        sigmoid = takes_sigmoid(parser)
        self.in_channels, self.schema = describe(metadata, folder / "configs" / METADATA, sigmoid)
        one_logit = int(metadata["network_data_format"]["outputs"]["pred"]["num_channels"]) == 1
        probabilities_first = probabilities_come_first(parser, config, sigmoid or one_logit)
        further = further_steps(parser)
        if further:
            _LOG.warning(
                "%s: its postprocessing also does %s, which masks made here do not go through; MONAI does it with the "
                "exported bundle too",
                config,
                ", ".join(further),
            )
        network = _content(parser, "network", config)
        if not isinstance(network, nn.Module):
            raise ModelError(f"{config}: network is {type(network).__name__}, a torch module is needed")
        self.network: nn.Module = with_fast_prelu(network.cpu())
        inferer = _content(parser, "inferer", config)
        if hasattr(inferer, "sw_device"):
            # Tiles go where the network is, and not where the configuration was read.
            inferer.sw_device = None
        preprocessing = _content(parser, "preprocessing", config)
        self.tool = _Tool(preprocessing, inferer, probabilities_first, _resamples_by_spacing(preprocessing))
        self.patch_size = _patch(self.tool.inferer, metadata, config)
        self._place = load_weights(self.network, self._path)
        self._unused = UnusedParameters()
        self.eval()

    @classmethod
    def load(cls, folder: Path) -> MonaiBundleAdapter:
        """Reads a bundle."""
        return cls(folder)

    def preprocess(self, case: Case) -> BundleSample:
        """The bundle's own preprocessing, of the image as NIfTI files, one per channel, in a temporary folder."""
        case, where = self.conform(case), f"case {case.case_id}"
        if self.tool.needs_spacing and case.geometry.spacing is None:
            # The NIfTI file would say 1 mm (`_told`).
            raise DataError(
                f"{where}: the file does not say its spacing in mm, and the preprocessing of {self.folder} resamples "
                "by it; convert the image to a format that holds it (.nii.gz, .mha)"
            )
        with tempfile.TemporaryDirectory() as folder:
            paths = [str(Path(folder) / f"image_{channel:04d}.nii.gz") for channel in range(self.in_channels)]
            for path, channel in zip(paths, case.image, strict=True):
                write_image(Path(path), channel, _told(case.geometry))
            try:
                # MONAI stacks a list of files as channels.
                loaded = self.tool.preprocessing({"image": paths if len(paths) > 1 else paths[0]})["image"]
            except _BROKEN as error:
                raise DataError(f"{where}: the preprocessing of {self.folder} fails ({first_line(error)})") from error
        # Some bundles have their preprocessing put the image on a GPU.
        loaded = loaded.cpu() if isinstance(loaded, Tensor) else loaded
        image = torch.as_tensor(np.asarray(loaded, dtype=np.float32))
        if not bool(torch.isfinite(image).all()):
            raise DataError(f"{where}: the preprocessing of {self.folder} gives NaN or infinite values")
        padded, content = pad_to_patch(image, self.patch_size)
        return BundleSample(padded, case.case_id, case.patient_id, case.shape, case.geometry, loaded, content)

    def preprocess_labels(self, labels: LabelMap, sample: Sample) -> Tensor:
        from monai.data import MetaTensor
        from monai.transforms import LoadImage, ResampleToMatch

        ours = _ours(sample)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "mask.nii.gz"
            write_image(path, labels, _told(sample.geometry))
            mask: Any = LoadImage(ensure_channel_first=True)(str(path))
        matched: MetaTensor = ResampleToMatch(mode="nearest", padding_mode="zeros")(mask, ours.loaded)
        padded = torch.zeros(ours.image.shape[1:], dtype=torch.uint8)
        padded[ours.content] = torch.as_tensor(np.asarray(matched)[0].round().astype(np.uint8))
        return padded

    def forward(self, images: Tensor, prompts: Prompts | None = None) -> Tensor:
        """Logits `(B, K, *S')`, differentiable; images of another size than the patch go through the inferer."""
        if prompts is not None:
            raise ModelError("this segmenter takes no prompts")
        if tuple(images.shape[2:]) == self.patch_size:
            logits = as_channels(self.network(images), self.schema)
        else:
            logits = self._infer(images)
        return self._of_classes(logits, images)

    def _of_classes(self, channels: Tensor, images: Tensor) -> Tensor:
        expected = (len(images), count_channels(self.schema), *images.shape[2:])
        if tuple(channels.shape) != expected:
            raise ModelError(f"{self.folder}: the network gives {tuple(channels.shape)}, {expected} are needed")
        return class_logits(channels, self.schema)

    @torch.no_grad()
    def predict_logits(self, sample: Sample) -> Tensor:
        """Logits `(K, *S')` through the bundle's own inferer."""
        with evaluating(self):
            images = sample.image[None].to(self.device)
            logits = self._of_classes(self._infer(images), images)
            warn_of_probabilities(logits, self, self._of_patch_size(images))
        return logits[0].cpu()

    def restore(self, logits: Tensor, sample: Sample) -> LabelMap:
        first = self.tool.probabilities_first
        if self.schema.overlaps:
            z = region_logits(logits.float())
            found = torch.from_numpy(self._to_case(z.sigmoid() if first else z, _ours(sample)))
            return classes_of_regions((found if first else found.sigmoid()) >= THRESHOLD).numpy()
        # Interpolated probabilities have another argmax than interpolated logits.
        values = logits.float().softmax(dim=0) if first else logits
        labels: LabelMap = self._to_case(values, _ours(sample)).argmax(axis=0).astype(np.uint8)
        return labels

    def restore_map(self, values: Tensor, sample: Sample) -> FloatArray:
        restored: FloatArray = self._to_case(values[None], _ours(sample))[0].astype(np.float32)
        return restored

    def grid_axes(self, sample: Sample) -> GridAxes:
        # Both in (x, y[, z]): the directions of the preprocessed image, by MONAI's record, and of the case.
        ndim = len(sample.native_shape)
        # The axes of NIfTI grow to the right and to the front, and those of a geometry to the left and to the back.
        written = np.diag([-1.0, -1.0, 1.0][:ndim]) @ _told(sample.geometry).affine[:ndim, :ndim]
        preprocessed = np.asarray(_ours(sample).loaded.affine, dtype=np.float64)[:ndim, :ndim]
        turned = np.eye(ndim + 1)
        turned[:ndim, :ndim] = np.linalg.inv(written) @ preprocessed
        nearest = io_orientation(turned)
        return GridAxes(
            tuple(ndim - 1 - int(axis) for axis, _ in nearest), tuple(bool(direction < 0) for _, direction in nearest)
        )

    def trainable(self, scope: Scope) -> dict[str, Parameter]:
        # Networks of bundles differ: where the decoder starts is not known.
        return self._unused.left_out(self, parameters_in_scope(self, scope, ()))

    def export(self, folder: Path) -> None:
        """Writes a bundle like the one that was loaded, with these weights in the form that the file had.

        TorchScript and ONNX files of the bundle hold the old weights and are left out.
        """
        if not self.folder.is_dir():
            raise ModelError(f"{self.folder}: the bundle that was loaded is gone; export needs its files")
        state = portable_state(self.network.state_dict())
        # Beside a state dict within something else that stays; tensors alone are those of the network.
        beside = read_content(self._path) if self._place.keys else {}
        weights = content_bytes(self._place.put(state, beside), self.weights)
        with replace_folder_on_success(folder) as temporary:
            stale = shutil.ignore_patterns("*.ts", "*.onnx", "__pycache__")
            shutil.copytree(self.folder, temporary, dirs_exist_ok=True, ignore=stale)
            (temporary / "models" / exported_weights(self.folder, self.weights)).write_bytes(weights)

    def inference_settings(self) -> Mapping[str, Any]:
        return {**super().inference_settings(), "configs": hash_folder(self.folder / "configs")}

    @property
    def _path(self) -> Path:
        return self.folder / "models" / self.weights

    def _infer(self, images: Tensor) -> Tensor:
        """The bundle's own inferer, wherever its configuration wants tiles and result to be."""
        logits: Tensor = self.tool.inferer(inputs=images, network=self.network)
        return as_channels(logits.to(images.device), self.schema)

    def _to_case(self, values: Tensor, sample: BundleSample) -> np.ndarray[Any, Any]:
        """Values `(N, *S')` on the grid of the case, by undoing the preprocessing."""
        from monai.data import MetaTensor
        from monai.transforms import Invertd

        inner = values.detach().cpu().float()[(slice(None), *sample.content)]
        undo = Invertd(
            keys="values", transform=self.tool.preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            restored = undo(
                {"image": sample.loaded, "values": MetaTensor(inner, meta=copy.deepcopy(sample.loaded.meta))}
            )
        # MONAI reads (x, y, z); arrays of ours are (z, y, x).
        array = np.asarray(restored["values"])
        array = array.transpose(0, *reversed(range(1, array.ndim)))
        if array.shape[1:] != sample.native_shape:
            raise ModelError(
                f"{self.folder}: its preprocessing cannot be undone: {array.shape[1:]} comes back for a case of size "
                f"{sample.native_shape}"
            )
        return array


def exported_weights(folder: Path, weights: str) -> str:
    """The name in `models/` under which the weights of a bundle are exported.

    It is the one that they have, which the configuration of the bundle may refer to, where they lie in the bundle, and
    the name of the file alone where they lie elsewhere: nothing is written outside of the new bundle.

    Args:
        folder: The bundle.
        weights: The file that they were read from, as a path from `models/` or an absolute one.
    """
    path = folder / "models" / weights
    return Path(os.path.relpath(path, folder / "models")).as_posix() if leads_into(path, folder) else path.name


def _told(geometry: Geometry) -> Geometry:
    """The grid that a bundle is told; one of unknown spacing has pixels of 1 mm, for MONAI takes no less."""
    return replace(geometry.plane, spacing=geometry.spacing or (1.0,) * geometry.ndim)


def _ours(sample: Sample) -> BundleSample:
    if not isinstance(sample, BundleSample):
        raise TypeError("this sample is not from this adapter's `preprocess`")
    return sample


def _parse(config: Path, folder: Path) -> Any:
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    try:
        parser.read_config(str(config))
        parser["bundle_root"] = str(folder)
        # Where things are put is decided by who calls the adapter.
        parser["device"] = "$__import__('torch').device('cpu')"
        parser.parse()
    except _BROKEN as error:
        raise ModelError(f"{config}: cannot be read as the configuration of a bundle ({first_line(error)})") from error
    return parser


def _content(parser: Any, name: str, config: Path) -> Any:
    if parser.get(name) is None:
        raise ModelError(f"{config}: there is no {name}; a bundle needs network, preprocessing and inferer here")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return parser.get_parsed_content(name)
    except _BROKEN as error:
        raise ModelError(f"{config}: {name} cannot be built ({first_line(error)})") from error


def _resamples_by_spacing(transform: Any) -> bool:
    """Whether one of the steps of a preprocessing brings images to a spacing in mm."""
    from monai.transforms import Spacing, Spacingd

    inner = getattr(transform, "transforms", ())
    return isinstance(transform, Spacing | Spacingd) or any(_resamples_by_spacing(step) for step in inner)


def _patch(inferer: Any, metadata: Mapping[str, Any], config: Path) -> tuple[int, ...]:
    """What the inferer shows the network at once; without a sliding window, what the metadata promises."""
    shape = getattr(inferer, "roi_size", None)
    if shape is None:
        shape = metadata["network_data_format"]["inputs"]["image"].get("spatial_shape")
    sides = tuple(shape) if isinstance(shape, list | tuple) else ()
    if len(sides) not in (2, 3) or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ModelError(
            f"{config}: the size of the network's input is not known; give the inferer a roi_size, or numbers as "
            "inputs.image.spatial_shape in metadata.json"
        )
    return sides
