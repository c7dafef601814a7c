"""The grid of networks that see a whole resampled image, or patches of one: what no tool of its own preprocesses."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Self, final

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F

from medfm_rl.adapters.grid import CaseGrid, Sample
from medfm_rl.adapters.intensity import normalise
from medfm_rl.data.files import read_versioned_json, replace_folder_on_success, versioned_json
from medfm_rl.errors import ModelError
from medfm_rl.settings import PreprocessingSettings
from medfm_rl.types import Case, FloatArray, LabelMap, LabelSchema

GRID_FILE: Final = "grid.json"
_FORMAT: Final = 1
_ADVICE: Final = "give a folder that `medfm-rl train-judge` wrote"


@final
class ImageGrid(CaseGrid):
    """The grid of a judge that has no segmenter.

    Args:
        schema: Structures of the masks.
        preprocessing: How an image becomes the input of the networks, in 2-D or 3-D.
        in_channels: Channels of an image.
    """

    def __init__(self, schema: LabelSchema, preprocessing: PreprocessingSettings, in_channels: int = 1) -> None:
        super().__init__()
        self.schema = schema
        self.preprocessing = preprocessing
        self.patch_size = preprocessing.size
        self.in_channels = in_channels

    def preprocess(self, case: Case) -> Sample:
        image = to_grid(self.conform(case), self.preprocessing)
        return Sample(image, case.case_id, case.patient_id, case.shape, case.geometry)

    def preprocess_labels(self, labels: LabelMap, sample: Sample) -> Tensor:
        return labels_to_grid(labels, sample, self.preprocessing)

    def restore_map(self, values: Tensor, sample: Sample) -> FloatArray:
        return from_grid(values.detach()[None], sample, self.preprocessing)[0].float().cpu().numpy()

    def save(self, folder: Path) -> None:
        """Writes `grid.json` into a new folder."""
        content = {
            "schema": {
                "names": self.schema.names,
                "ids": self.schema.ids,
                **({"region_ids": self.schema.region_ids} if self.schema.overlaps else {}),
            },
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "in_channels": self.in_channels,
        }
        with replace_folder_on_success(folder) as temporary:
            (temporary / GRID_FILE).write_text(versioned_json(_FORMAT, content), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            ModelError: The file is missing, damaged, or of a newer version.
        """
        path = folder / GRID_FILE
        content: dict[str, Any] = read_versioned_json(path, _FORMAT, _ADVICE, ModelError)
        try:
            described = content["schema"]
            region_ids = tuple(map(tuple, described.get("region_ids", ())))
            schema = LabelSchema(tuple(described["names"]), tuple(described["ids"]), region_ids)
            return cls(schema, PreprocessingSettings(**content["preprocessing"]), int(content["in_channels"]))
        except (KeyError, TypeError, ValueError, ValidationError) as error:
            raise ModelError(f"{path}: does not describe the grid of a judge ({error}); {_ADVICE}") from error


def to_grid(case: Case, settings: PreprocessingSettings) -> Tensor:
    """An image `(C, *S')`, resampled (grid "resize") or padded (grid "native"), with normalised intensities.

    Raises:
        DataError: It cannot be normalised (`normalise`).
        ModelError: Likewise.
    """
    # A copy: the image may be read-only, flipped or in double precision.
    image = torch.from_numpy(np.array(case.image, dtype=np.float32))[None]
    image = _resize(image, settings.size, antialias=True) if settings.grid == "resize" else _pad(image, settings.size)
    return normalise(image[0], settings, f"case {case.case_id}")


def labels_to_grid(labels: LabelMap, sample: Sample, settings: PreprocessingSettings) -> Tensor:
    """A mask `(*S)` on the grid of its sample, `(*S')` uint8; of resampled pixels the nearest counts."""
    mask = torch.from_numpy(labels.astype(np.float32))[None, None]
    if settings.grid == "resize":
        mask = F.interpolate(mask, size=sample.image.shape[1:], mode="nearest-exact")
    else:
        mask = _pad(mask, settings.size)
    return mask[0, 0].to(torch.uint8)


def from_grid(values: Tensor, sample: Sample, settings: PreprocessingSettings) -> Tensor:
    """Values `(K, *S')` on the grid of the image, `(K, *S)`."""
    if settings.grid == "resize":
        return _resize(values[None].float(), sample.native_shape, antialias=False)[0]
    return values[(slice(None), *(slice(0, side) for side in sample.native_shape))]


def _resize(image: Tensor, size: tuple[int, ...], antialias: bool) -> Tensor:
    """Linear resampling of `(1, C, *S)`; antialiased where asked for and there is such a filter (2-D)."""
    if len(size) == 2:
        return F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=antialias)
    return F.interpolate(image, size=size, mode="trilinear", align_corners=False)


def _pad(image: Tensor, least: tuple[int, ...]) -> Tensor:
    """Repeats the last pixels of `(1, C, *S)` until no side is shorter than `least`."""
    short = [max(0, size - side) for size, side in zip(least, image.shape[2:], strict=True)]
    return F.pad(image, [amount for side in reversed(short) for amount in (0, side)], mode="replicate")
