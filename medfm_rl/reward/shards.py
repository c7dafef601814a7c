"""A file of D_R: how records are written into one, and read from it one by one.

It is a safetensors file whose tensors are packed bytes, one for each action, reference and certainty; images lie in a
store beside the shards, by their content. What is asked of many records at once, without a look at their pixels, stands
in its header: patients, references, highest labels, the names of the images. That is the index of D_R; a data base
beside the shards could only disagree with them. Shards of earlier versions hold whole tensors, images among them.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from medfm_rl.data.json_text import parse_json
from medfm_rl.data.packing import pack, unpack
from medfm_rl.data.stored_rows import ArrayStore
from medfm_rl.errors import DataError
from medfm_rl.reward.actions import ActionRecords
from medfm_rl.reward.origins import ActionOrigin, origins_from_json, origins_to_json, refuse_newer

_LOSS: Final = 0.01
"""Share of an image's range that storing may move a pixel by."""
_DAMAGED: Final = (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError)
_LABELS, _CERTAINTIES = "uint8", "float16"


class Shard(ABC):
    """The records of one file, read as they are asked for.

    Attributes:
        path: The file.
        origins: One per image.
        image_shape: `(C, *S)`.
        actions_per_image: A.
    """

    path: Path
    origins: tuple[ActionOrigin, ...]
    image_shape: tuple[int, ...]
    actions_per_image: int

    @abstractmethod
    def image(self, row: int) -> Tensor:
        """An image `(C, *S)` as it is stored."""

    @abstractmethod
    def action(self, row: int, choice: int) -> Tensor:
        """An action `(*S)` uint8."""

    @abstractmethod
    def reference(self, row: int) -> Tensor:
        """A reference `(*S)` uint8."""

    @abstractmethod
    def certainty(self, row: int) -> Tensor:
        """A certainty `(*S)` as it is stored."""

    @abstractmethod
    def highest(self, row: int) -> tuple[int, float]:
        """The highest label of an image in its actions and its reference, and its highest certainty."""

    def tensors(self) -> dict[str, Tensor]:
        """All of it as it is stored, `images, actions, references, certainty`."""
        rows = range(len(self.origins))
        every = range(self.actions_per_image)
        return {
            "images": torch.stack([self.image(row) for row in rows]),
            "actions": torch.stack([torch.stack([self.action(row, which) for which in every]) for row in rows]),
            "references": torch.stack([self.reference(row) for row in rows]),
            "certainty": torch.stack([self.certainty(row) for row in rows]),
        }

    def damaged(self, error: object) -> DataError:
        """What to say where it cannot be read."""
        return DataError(f"{self.path}: not a shard of an action data set ({error}); delete it and collect again")


def shard_bytes(records: ActionRecords, images: ArrayStore) -> bytes:
    """The content of a shard; the images are put into their store.

    Images and certainties become float16, images that would lose by it stay float32.

    Raises:
        DataError: An image cannot be written.
    """
    shown = _compact(records.images).numpy()
    actions = records.actions.to("cpu", torch.uint8).numpy()
    references = records.references.to("cpu", torch.uint8).numpy()
    certainty = records.certainty.to("cpu", torch.float16).numpy()
    packed: dict[str, Tensor] = {}
    names, highest = [], []
    for row, image in enumerate(shown):
        names.append(images.put(image))
        for which, action in enumerate(actions[row]):
            packed[_action(row, which)] = _tensor(pack(action))
        packed[_reference(row)] = _tensor(pack(references[row]))
        packed[_certainty(row)] = _tensor(pack(certainty[row]))
        highest.append((int(max(actions[row].max(), references[row].max())), float(certainty[row].max())))
    described = {
        "images": names,
        "image_dtype": shown.dtype.name,
        "image_shape": shown.shape[1:],
        "actions_per_image": actions.shape[1],
        "highest": highest,
    }
    # One entry: safetensors writes several in an order that changes, and the hash of the file would.
    content = json.dumps({**origins_to_json(records.origins), "packed": described})
    whole: bytes = save(packed, metadata={"origins": content})
    return whole


def open_shard(path: Path, images: ArrayStore) -> Shard:
    """Reads the header of a shard.

    Args:
        path: The file.
        images: Where the images of D_R lie.

    Raises:
        DataError: The shard is missing, no such file, or was written by a newer version.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            content = parse_json(file.metadata()["origins"])
            refuse_newer(path, content)
            if isinstance(content, dict) and "packed" in content:
                return _PackedShard(path, content, images)
            return _WholeShard(path, content, file)
    except _DAMAGED as error:
        raise DataError(f"{path}: not a shard of an action data set ({error}); delete it and collect again") from error


class _PackedShard(Shard):
    def __init__(self, path: Path, content: Mapping[str, Any], images: ArrayStore) -> None:
        described = content["packed"]
        self.path = path
        self.origins = origins_from_json(path, content, None)
        self.image_shape = tuple(int(side) for side in described["image_shape"])
        self.actions_per_image = int(described["actions_per_image"])
        self._images, self._names = images, [str(name) for name in described["images"]]
        self._dtype = str(described["image_dtype"])
        self._highest = [(int(label), float(certainty)) for label, certainty in described["highest"]]
        self._places = _places(path)
        rows = range(len(self.origins))
        wanted = {name for row in rows for name in (_reference(row), _certainty(row))}
        wanted |= {_action(row, which) for row in rows for which in range(self.actions_per_image)}
        if (
            wanted != self._places.keys()
            or not len(self.origins) == len(self._names) == len(self._highest)
            or any(len(origin.actions) != self.actions_per_image for origin in self.origins)
            or self._dtype not in ("float16", "float32")
        ):
            raise ValueError(f"its header does not fit what it holds, {len(self._places)} packed arrays")

    def image(self, row: int) -> Tensor:
        return torch.from_numpy(self._images.get(self._names[row], self._dtype, self.image_shape))

    def action(self, row: int, choice: int) -> Tensor:
        return self._read(_action(row, choice), _LABELS)

    def reference(self, row: int) -> Tensor:
        return self._read(_reference(row), _LABELS)

    def certainty(self, row: int) -> Tensor:
        return self._read(_certainty(row), _CERTAINTIES)

    def highest(self, row: int) -> tuple[int, float]:
        return self._highest[row]

    def _read(self, name: str, dtype: str) -> Tensor:
        start, end = self._places[name]
        try:
            # No memory map: pages of it would count as memory of the run, as long as the system likes.
            with self.path.open("rb") as file:
                file.seek(start)
                return torch.from_numpy(unpack(file.read(end - start), dtype, self.image_shape[1:]))
        except _DAMAGED as error:
            raise self.damaged(error) from error


class _WholeShard(Shard):
    """A shard of version 0.1 and those after it: a tensor for all images, one for all actions, and so on."""

    def __init__(self, path: Path, content: Any, file: Any) -> None:
        self.path = path
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in ("images", "actions", "references")}
        certainty = file.get_tensor("certainty")
        self.origins = origins_from_json(path, content, certainty.float().numpy())
        self.image_shape = shapes["images"][1:]
        self.actions_per_image = shapes["actions"][1]
        count, grid = len(self.origins), self.image_shape[1:]
        if (
            shapes["images"][0] != count
            or shapes["actions"] != (count, self.actions_per_image, *grid)
            or not shapes["references"] == tuple(certainty.shape) == (count, *grid)
            or any(len(origin.actions) != self.actions_per_image for origin in self.origins)
        ):
            raise ValueError(f"its tensors do not fit together: {shapes}, certainty {tuple(certainty.shape)}")

    def image(self, row: int) -> Tensor:
        return self._row("images", row)

    def action(self, row: int, choice: int) -> Tensor:
        return self._row("actions", row)[choice]

    def reference(self, row: int) -> Tensor:
        return self._row("references", row)

    def certainty(self, row: int) -> Tensor:
        return self._row("certainty", row)

    def highest(self, row: int) -> tuple[int, float]:
        labels = max(int(self._row("actions", row).max()), int(self.reference(row).max()))
        return labels, float(self.certainty(row).max())

    def _row(self, name: str, row: int) -> Tensor:
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                found: Tensor = file.get_slice(name)[row : row + 1][0].clone()
                return found
        except _DAMAGED as error:
            raise self.damaged(error) from error


def _action(row: int, which: int) -> str:
    return f"actions.{row:06d}.{which:02d}"


def _reference(row: int) -> str:
    return f"references.{row:06d}"


def _certainty(row: int) -> str:
    return f"certainty.{row:06d}"


def _tensor(packed: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(packed, dtype=np.uint8).copy())


def _places(path: Path) -> dict[str, tuple[int, int]]:
    """Where in a safetensors file each tensor begins and ends; its header is JSON after a length of eight bytes."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(length).decode("utf-8"))
    first = 8 + length
    return {
        name: (first + int(entry["data_offsets"][0]), first + int(entry["data_offsets"][1]))
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _compact(images: Tensor) -> Tensor:
    """Images `(N, C, *S)` as float16, or as float32 where that moves a pixel by a hundredth of what is seen.

    What is seen is the range of an image and channel: neither large values, nor small units, nor a small contrast on a
    large offset need be lost.
    """
    images = images.to("cpu", torch.float32)
    half = images.to(torch.float16)
    exact = images.flatten(2)
    moved = (half.float().flatten(2) - exact).abs().amax(dim=2)
    seen = exact.amax(dim=2) - exact.amin(dim=2)
    # A channel with one value, such as one without a box, has no range.
    seen = torch.where(seen > 0, seen, exact[:, :, 0].abs())
    return half if bool((moved <= _LOSS * seen).all()) else images


def stacked(rows: Sequence[Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Rows as one tensor `(N, *shape)` of that kind of number, also where there are none."""
    found = torch.empty((len(rows), *shape), dtype=dtype)
    for place, row in zip(found, rows, strict=True):
        place.copy_(row)
    return found
