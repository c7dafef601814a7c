"""Box prompts without a person: where they come from, and how they travel with an image.

A box is `(x_min, y_min, x_max, y_max)` in pixels of the image, both corners inside, as the MedSAM family takes it; a
structure that is not there has four NaN. On the grid of the network a box becomes a channel of the image: the share of
each pixel that it covers. So everything that moves an image (tiles, rotations, storage) moves its prompts too, and
`boxes_of` reads them back.
"""

from __future__ import annotations

import csv
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medfm_rl.data.images import hash_image
from medfm_rl.data.json_text import parse_json
from medfm_rl.data.labels import read_label_ids
from medfm_rl.data.layouts import described_labels
from medfm_rl.data.mask_files import masks_by_name
from medfm_rl.data.names import case_name
from medfm_rl.data.text_headers import pixel_files
from medfm_rl.errors import ConfigError, DataError
from medfm_rl.seeding import derive_seed
from medfm_rl.settings import FilePrompts, FixedPrompts, MaskPrompts, PromptSettings
from medfm_rl.types import Case, LabelSchema, clip_of_frame

Boxes = npt.NDArray[np.float64]
"""`(K - 1, 4)`, one row per structure."""
COLUMNS: Final = ("case", "structure", "x_min", "y_min", "x_max", "y_max")
_FULL = 0.999


class BoxSource(ABC):
    """Says where the structures of a case are."""

    @abstractmethod
    def boxes(self, case: Case) -> Boxes:
        """Boxes `(K - 1, 4)` in pixels of the case.

        Raises:
            DataError: There is nothing on this case, or it cannot be used.
        """

    @abstractmethod
    def content_hash(self, case_id: str) -> str:
        """SHA-256 of what the boxes of a case are made from.

        Raises:
            DataError: There is nothing on this case.
        """

    @abstractmethod
    def knows(self, case_id: str) -> bool:
        """Whether there is anything on this case; its structures need not have boxes."""

    @property
    @abstractmethod
    def origin(self) -> str:
        """Where boxes come from, for errors."""


@final
class FixedBoxes(BoxSource):
    """The same boxes for every image, as fractions of its width and height."""

    origin = "prompts.boxes"

    def __init__(self, settings: FixedPrompts, schema: LabelSchema) -> None:
        _refuse_strangers(settings.boxes, schema, "prompts.boxes")
        self.fractions = np.array([settings.boxes.get(name, (np.nan,) * 4) for name in schema.structures])

    def boxes(self, case: Case) -> Boxes:
        height, width = case.shape
        boxes: Boxes = self.fractions * (np.array([width, height, width, height]) - 1)
        return boxes

    def content_hash(self, case_id: str) -> str:
        del case_id
        return _hash(self.fractions.tolist())

    def knows(self, case_id: str) -> bool:
        del case_id
        return True


@final
class BoxesFromFile(BoxSource):
    """Boxes by case and structure, from a CSV or JSON file."""

    def __init__(self, settings: FilePrompts, schema: LabelSchema) -> None:
        self.path = settings.path
        self.schema = schema
        self.table = _read_boxes(settings.path)
        for name, boxes in self.table.items():
            _refuse_strangers(boxes, schema, f"{settings.path}: case {name}")

    def boxes(self, case: Case) -> Boxes:
        found = self._of(case.case_id)
        return np.array(
            [
                _checked(found[name], case, f"{self.path}: case {case.case_id}, {name}")
                if name in found
                else (np.nan,) * 4
                for name in self.schema.structures
            ]
        )

    def content_hash(self, case_id: str) -> str:
        return _hash(self._of(case_id))

    def knows(self, case_id: str) -> bool:
        return case_id in self.table

    @property
    def origin(self) -> str:
        return str(self.path)

    def _of(self, case_id: str) -> Mapping[str, tuple[float, ...]]:
        if case_id not in self.table:
            raise DataError(f"{self.path}: there is no box for case {case_id}")
        return self.table[case_id]


@final
class BoxesFromMasks(BoxSource):
    """Boxes of the masks that another segmenter made, found by the name of the case.

    The mask of a frame has its name, or is its place in a sequence that has the name of its clip.

    Args:
        settings: The folder, the margin and the jitter.
        schema: The structures, by the integers of a `dataset.json` beside the masks where there is one; other integers
            in a mask are ignored.
        contains: By structure, those that lie within its box as well: the box is that of their union.
    """

    def __init__(
        self, settings: MaskPrompts, schema: LabelSchema, contains: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        self.masks = masks_by_name(settings.path)
        self.settings = settings
        self.schema = schema
        within = contains or {}
        described = described_labels(settings.path)
        integers = (schema if described is None else described.schema_for(schema)).integers
        self.ids = [[integers[part] for part in (name, *within.get(name, ()))] for name in schema.structures]

    def boxes(self, case: Case) -> Boxes:
        path, frame = self._mask(case.case_id)
        mask = read_label_ids(path, self.schema, case.shape, case.geometry, frame, case.frames)
        generator = np.random.default_rng(derive_seed(self.settings.seed, case.case_id))
        return np.array([self._box(np.isin(mask, ids), generator) for ids in self.ids])

    def content_hash(self, case_id: str) -> str:
        settings, (path, frame) = self.settings, self._mask(case_id)
        chosen: list[object] = [settings.margin, settings.jitter, settings.seed]
        return _hash([_hash_of_mask(path), *([] if frame is None else [frame]), *chosen])

    def knows(self, case_id: str) -> bool:
        return self._find(case_id) is not None

    @property
    def origin(self) -> str:
        return str(self.settings.path)

    def _mask(self, case_id: str) -> tuple[Path, int | None]:
        found = self._find(case_id)
        if found is None:
            raise DataError(f"{self.settings.path}: there is no mask of case {case_id}")
        return found

    def _find(self, case_id: str) -> tuple[Path, int | None] | None:
        """The file with the mask of a case, and the place in it where it holds those of a clip."""
        if case_id in self.masks:
            return self.masks[case_id], None
        clip = clip_of_frame(case_id)
        return None if clip is None or clip[0] not in self.masks else (self.masks[clip[0]], clip[1])

    def _box(self, region: npt.NDArray[np.bool_], generator: np.random.Generator) -> Boxes:
        # Drawn for every structure, so that one that is missing does not move the boxes of the others.
        shift = generator.uniform(-self.settings.jitter, self.settings.jitter, size=4)
        if not region.any():
            return np.full(4, np.nan)
        box = _extent_of(region) + shift
        box += np.array([-1, -1, 1, 1]) * self.settings.margin
        low, high = np.minimum(box[:2], box[2:]), np.maximum(box[:2], box[2:])
        limit = np.array(region.shape[::-1]) - 1
        return np.concatenate([low.clip(0, limit), high.clip(0, limit)])


def open_prompts(
    settings: PromptSettings, schema: LabelSchema, contains: Mapping[str, tuple[str, ...]] | None = None
) -> BoxSource:
    """The source of boxes that settings describe.

    Raises:
        ConfigError: They name a structure that the segmenter does not have.
        DataError: Their file or folder cannot be used.
    """
    match settings:
        case FixedPrompts():
            return FixedBoxes(settings, schema)
        case FilePrompts():
            return BoxesFromFile(settings, schema)
        case MaskPrompts():
            return BoxesFromMasks(settings, schema, contains)


def render_boxes(boxes: Boxes, native_shape: tuple[int, ...], grid: tuple[int, int]) -> Tensor:
    """Boxes `(K - 1, 4)` in pixels of an image as channels `(K - 1, *grid)` in [0, 1] on the grid it is resized to.

    Corners are scaled by the ratio of the sizes, as MedSAM does. A box is at least two pixels of the grid wide and
    high; one that is not there is a channel of zeros.
    """
    height, width = native_shape
    scale = np.array([grid[1] / width, grid[0] / height] * 2)
    channels = torch.zeros(len(boxes), *grid)
    for channel, box in zip(channels, boxes * scale, strict=True):
        if np.isfinite(box).all():
            across, down = _cover(box[0], box[2], grid[1]), _cover(box[1], box[3], grid[0])
            channel.copy_(torch.from_numpy(np.outer(down, across)))
    return channels


def boxes_of(channels: Tensor) -> tuple[Tensor, Tensor]:
    """Reads boxes back from channels `(B, K - 1, H, W)`.

    Returns:
        Boxes `(B, K - 1, 4)` as (x_min, y_min, x_max, y_max) in pixels of the grid, that of the whole image where
        there is none; and `(B, K - 1)` whether there is one.
    """
    shares = channels.detach().clamp(0, 1)
    x_min, x_max = _extent(shares.amax(dim=-2))
    y_min, y_max = _extent(shares.amax(dim=-1))
    there = shares.amax(dim=(-2, -1)) >= 0.5
    height, width = channels.shape[-2:]
    everything = shares.new_tensor([0, 0, width - 1, height - 1])
    boxes = torch.stack([x_min, y_min, x_max, y_max], dim=-1)
    return torch.where(there[..., None], boxes, everything), there


def boxes_of_mask(
    labels: npt.NDArray[np.integer], schema: LabelSchema, contains: Mapping[str, tuple[str, ...]]
) -> Boxes:
    """The box of each structure of a mask, and of what its prompt takes in as well.

    Args:
        labels: Class indices `(H, W)`.
        schema: The structures.
        contains: By structure, those that lie within its box.

    Returns:
        `(K - 1, 4)`; NaN for a structure that the mask lacks, whatever lies within it.
    """
    boxes = np.full((len(schema.structures), 4), np.nan)
    for box, name in zip(boxes, schema.structures, strict=True):
        if (labels == schema.index_of(name)).any():
            parts = [schema.index_of(part) for part in (name, *contains.get(name, ()))]
            box[:] = _extent_of(np.isin(labels, parts))
    return boxes


def _extent_of(region: npt.NDArray[np.bool_]) -> Boxes:
    rows, columns = np.nonzero(region.any(axis=1))[0], np.nonzero(region.any(axis=0))[0]
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], dtype=np.float64)


def _hash_of_mask(path: Path) -> str:
    """SHA-256 of a mask. Each frame of a clip asks for those of all others: of a file it is kept until it changes."""
    if not path.is_file():
        return hash_image(path)
    found = [file.stat() for file in (path, *pixel_files(path)) if file.exists()]
    return _hash_once(path, tuple((file.st_size, file.st_mtime_ns) for file in found))


@lru_cache(maxsize=4096)
def _hash_once(path: Path, state: tuple[tuple[int, int], ...]) -> str:
    del state
    return hash_image(path)


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _cover(low: float, high: float, size: int) -> npt.NDArray[np.float64]:
    """The share of each of `size` pixels between the left edge of pixel `low` and the right edge of pixel `high`."""
    if high - low < 1:
        low = float(np.clip((low + high - 1) / 2, 0, size - 2))
        high = low + 1
    edges = np.arange(size)
    return (np.minimum(edges + 1, high + 1) - np.maximum(edges, low)).clip(0, 1)


def _extent(profile: Tensor) -> tuple[Tensor, Tensor]:
    """First and last pixel of what a profile `(..., N)` of shares covers, with their fractions."""
    size = profile.shape[-1]
    full = profile >= _FULL * profile.amax(dim=-1, keepdim=True)
    index = torch.arange(size, device=profile.device)
    first = torch.where(full, index, size).amin(dim=-1)
    last = torch.where(full, index, -1).amax(dim=-1)
    before = (profile * (index < first[..., None])).sum(dim=-1)
    after = (profile * (index > last[..., None])).sum(dim=-1)
    return (first - before).clamp(0, size - 1), (last + after).clamp(0, size - 1)


def _refuse_strangers(boxes: Mapping[str, object], schema: LabelSchema, where: str) -> None:
    strangers = sorted(set(boxes) - set(schema.structures))
    if strangers:
        raise ConfigError(
            f"{where}: no structure {', '.join(strangers)}; the segmenter has {', '.join(schema.structures)}"
        )


def _checked(box: tuple[float, ...], case: Case, where: str) -> tuple[float, ...]:
    height, width = case.shape
    x_min, y_min, x_max, y_max = box
    if not (0 <= x_min <= x_max <= width - 1 and 0 <= y_min <= y_max <= height - 1):
        raise DataError(
            f"{where}: the box {box} is not one within an image {width} pixels wide and {height} high; it needs "
            "0 <= x_min <= x_max < width and the same for y"
        )
    return box


def _read_boxes(path: Path) -> dict[str, dict[str, tuple[float, ...]]]:
    table: dict[str, dict[str, tuple[float, ...]]] = {}
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            for case, boxes in parse_json(text).items():
                table[case_name(case)] = {name: _four(box) for name, box in boxes.items()}
            return table
        rows = csv.DictReader(text.splitlines())
        if rows.fieldnames is None or not set(COLUMNS) <= set(rows.fieldnames):
            raise DataError(f"{path}: needs a first line with the columns {', '.join(COLUMNS)}")
        for row in rows:
            boxes = table.setdefault(case_name(row["case"]), {})
            if row["structure"] in boxes:
                raise DataError(f"{path}, line {rows.line_num}: a second box for {row['case']}, {row['structure']}")
            boxes[row["structure"]] = _four([row[name] for name in COLUMNS[2:]])
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file of boxes") from error
    except (OSError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise DataError(f"{path}: not a file of boxes, CSV or JSON ({error})") from error
    return table


def _four(values: object) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) != 4:
        raise ValueError(f"a box has four numbers, not {values!r}")
    return tuple(float(value) for value in values)
