"""D_R, the reward data set: an append-only folder of records.

A shard is written under a temporary name and renamed, so it is there whole or not at all; nothing is ever rewritten.
Images come before the shard that names them, each under its content: of a process that was killed between them, images
are left that the next one finds. The index is the folder itself, and the headers of the shards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self, final

import torch
from torch import Tensor

from medfm_rl.data.files import hash_file, replace_on_success
from medfm_rl.data.stored_rows import ArrayStore
from medfm_rl.errors import DataError
from medfm_rl.reward.actions import ActionRecords, Records
from medfm_rl.reward.origins import ActionOrigin, ShardKey
from medfm_rl.reward.shards import Shard, open_shard, shard_bytes, stacked

_SUFFIX: Final = ".safetensors"
_IMAGES: Final = "images"
"""Folder of the images, beside the shards."""


@final
class StoredRecords(Records):
    """Records on the disk: what is asked for is read, and nothing else is in memory.

    Args:
        places: For each record, the shard that has it and its row there.
    """

    def __init__(self, places: Sequence[tuple[Shard, int]]) -> None:
        self._places = list(places)
        self.origins = tuple(shard.origins[row] for shard, row in self._places)

    @property
    def actions_per_image(self) -> int:
        """A."""
        return self._places[0][0].actions_per_image if self._places else 0

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self.image_shape) - 1

    @property
    def image_shape(self) -> tuple[int, ...]:
        """`(C, *S)`; one axis alone where there are no records."""
        return self._places[0][0].image_shape if self._places else (0,)

    def images_of(self, rows: Sequence[int]) -> Tensor:
        """Images `(B, C, *S)` float32."""
        found = [shard.image(row) for shard, row in self._at(rows)]
        return stacked(found, self.image_shape, torch.float32)

    def actions_of(self, rows: Sequence[int], choice: Sequence[int]) -> Tensor:
        """One action of each image `(B, *S)`."""
        found = [shard.action(row, which) for (shard, row), which in zip(self._at(rows), choice, strict=True)]
        return stacked(found, self.image_shape[1:], torch.uint8)

    def references_of(self, rows: Sequence[int]) -> Tensor:
        """References `(B, *S)`."""
        return stacked([shard.reference(row) for shard, row in self._at(rows)], self.image_shape[1:], torch.uint8)

    def certainty_of(self, rows: Sequence[int]) -> Tensor:
        """Certainties `(B, *S)` float32."""
        return stacked([shard.certainty(row) for shard, row in self._at(rows)], self.image_shape[1:], torch.float32)

    def highest_labels(self) -> list[int]:
        """By image, the highest class index."""
        return [shard.highest(row)[0] for shard, row in self._places]

    def highest_certainties(self) -> list[float]:
        """By image, the highest certainty."""
        return [shard.highest(row)[1] for shard, row in self._places]

    def where(self, rows: Sequence[int]) -> Self:
        """The records of these rows, in this order."""
        return type(self)([self._places[row] for row in rows])

    def _at(self, rows: Sequence[int]) -> list[tuple[Shard, int]]:
        return [self._places[row] for row in rows]


class ActionDataset:
    """An append-only folder of action records.

    A shard is named by its `ShardKey`. Those of earlier versions are read.

    Args:
        folder: Made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._images = ArrayStore(folder / _IMAGES)
        folder.mkdir(parents=True, exist_ok=True)

    def shards(self, iteration: int | None = None) -> list[ShardKey]:
        """The shards of an iteration, or all where None, sorted by their names.

        Raises:
            DataError: A file in the folder is named otherwise.
        """
        keys = [self._key(path) for path in sorted(self.folder.glob(f"[!.]*{_SUFFIX}"))]
        return [key for key in keys if iteration is None or key.iteration == iteration]

    def append(self, key: ShardKey, records: ActionRecords) -> None:
        """Writes one shard, whole or not at all.

        Images and certainties are stored as float16, images that would lose by it as float32; images that are there
        already are not written again.

        Raises:
            ValueError: There is a shard of that name, and records are never changed.
            DataError: The shard cannot be written; what was there is intact.
        """
        path = self._path(key)
        if path.exists():
            raise ValueError(f"{path}: D_R is append-only and this shard exists")
        content = shard_bytes(records, self._images)
        with replace_on_success(path) as temporary:
            temporary.write_bytes(content)

    def records(self, iteration: int | None = None) -> StoredRecords:
        """The records of an iteration, or all where None, in the order of their shards; they stay on the disk.

        Raises:
            DataError: A shard is no such file, was written by a newer version, or has images of another size than the
                others.
        """
        opened = [open_shard(self._path(key), self._images) for key in self.shards(iteration)]
        sizes = {(shard.image_shape, shard.actions_per_image): shard.path for shard in opened}
        if len(sizes) > 1:
            listed = ", ".join(f"{path.name} {shape} with {count} actions" for (shape, count), path in sizes.items())
            raise DataError(
                f"{self.folder}: shards have images of different shapes or numbers of actions ({listed}); keep those "
                "of one run there"
            )
        return StoredRecords([(shard, row) for shard in opened for row in range(len(shard.origins))])

    def origins(self, iteration: int | None = None) -> tuple[ActionOrigin, ...]:
        """Where the records of an iteration, or all, come from; no image or action is read.

        Raises:
            DataError: A shard cannot be read.
        """
        keys = self.shards(iteration)
        return tuple(origin for key in keys for origin in open_shard(self._path(key), self._images).origins)

    def read(self, key: ShardKey) -> ActionRecords:
        """Reads one shard into memory; images and certainties come back as float32.

        Raises:
            DataError: The shard is missing, no such file, or was written by a newer version.
        """
        shard = open_shard(self._path(key), self._images)
        tensors = shard.tensors()
        return ActionRecords(
            tensors["images"].float(),
            tensors["actions"],
            tensors["references"],
            tensors["certainty"].float(),
            shard.origins,
        )

    def content_hash(self) -> str:
        """SHA-256 over the names and contents of all shards, in the order of their names.

        Images are in it by the SHA-256 of their content, which the shards name.
        """
        digest = hashlib.sha256()
        for key in self.shards():
            digest.update(f"{key}:{hash_file(self._path(key))}\n".encode())
        return digest.hexdigest()

    def _key(self, path: Path) -> ShardKey:
        try:
            return ShardKey.parse(path.name.removesuffix(_SUFFIX))
        except ValueError as error:
            raise DataError(f"{path}: {error}; put what is no part of the action data set elsewhere") from error

    def _path(self, key: ShardKey) -> Path:
        return self.folder / f"{key}{_SUFFIX}"
