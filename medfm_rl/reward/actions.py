"""D_R, the reward data set: actions, the references they are judged by, and where each came from.

On disk it is a folder of immutable shards, one safetensors file each. A shard is written under a temporary name and
renamed, so it is there whole or not at all; nothing is ever rewritten. The index is the folder itself.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from medfm_rl.data.files import hash_file, replace_on_success
from medfm_rl.data.json_text import parse_json
from medfm_rl.errors import DataError
from medfm_rl.reward.origins import ActionOrigin, ShardKey, origins_from_json, origins_to_json

_LOSS = 0.01
"""Share of an image's range that storing may move a pixel by."""
_SUFFIX = ".safetensors"


@dataclass(frozen=True, eq=False)
class ActionRecords:
    """Images with the actions tried on them.

    Attributes:
        images: `(M, C, *S)`, preprocessed.
        actions: `(M, A, *S)` uint8, A actions for each image.
        references: `(M, *S)` uint8, what the actions should have been.
        certainty: `(M, *S)` in [0, 1]: how sure the reference is of each pixel; 0 teaches nothing.
        origins: One per image.
    """

    images: Tensor
    actions: Tensor
    references: Tensor
    certainty: Tensor
    origins: tuple[ActionOrigin, ...]

    def __post_init__(self) -> None:
        count, grid = len(self.origins), self.references.shape[1:]
        consistent = (
            self.images.shape[0]
            == self.actions.shape[0]
            == self.references.shape[0]
            == self.certainty.shape[0]
            == count
            and self.images.shape[2:] == self.actions.shape[2:] == self.certainty.shape[1:] == grid
            and all(len(origin.actions) == self.actions.shape[1] for origin in self.origins)
        )
        if not consistent:
            raise ValueError(
                f"records do not fit together: images {tuple(self.images.shape)}, actions {tuple(self.actions.shape)}, "
                f"references {tuple(self.references.shape)}, certainty {tuple(self.certainty.shape)}, {count} origins"
            )

    def __len__(self) -> int:
        return len(self.origins)

    def __getitem__(self, rows: slice) -> ActionRecords:
        return ActionRecords(
            self.images[rows], self.actions[rows], self.references[rows], self.certainty[rows], self.origins[rows]
        )

    def of_patients(self, patients: Iterable[str]) -> ActionRecords:
        """The records of these patients only."""
        wanted = set(patients)
        return self._where([origin.patient_id in wanted for origin in self.origins])

    def with_ground_truth(self) -> ActionRecords:
        """The records whose actions are judged by ground truth only."""
        return self._where([origin.reference.is_ground_truth for origin in self.origins])

    def _where(self, kept: Sequence[bool]) -> ActionRecords:
        rows = [row for row, keep in enumerate(kept) if keep]
        return ActionRecords(
            self.images[rows],
            self.actions[rows],
            self.references[rows],
            self.certainty[rows],
            tuple(self.origins[row] for row in rows),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[ActionRecords]) -> ActionRecords:
        """Joins records with the same number of actions per image, in order."""
        return cls(
            torch.cat([part.images for part in parts]),
            torch.cat([part.actions for part in parts]),
            torch.cat([part.references for part in parts]),
            torch.cat([part.certainty for part in parts]),
            tuple(origin for part in parts for origin in part.origins),
        )


class ActionDataset:
    """An append-only folder of action records.

    A shard is named by its `ShardKey`.

    Args:
        folder: Made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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

        Images and certainties are stored as float16, images that would lose by it as float32.

        Raises:
            ValueError: There is a shard of that name, and records are never changed.
            DataError: The shard cannot be written; what was there is intact.
        """
        path = self._path(key)
        if path.exists():
            raise ValueError(f"{path}: D_R is append-only and this shard exists")
        tensors = {
            "images": _compact(records.images).contiguous(),
            "actions": records.actions.to("cpu", torch.uint8).contiguous(),
            "references": records.references.to("cpu", torch.uint8).contiguous(),
            "certainty": records.certainty.to("cpu", torch.float16).contiguous(),
        }
        # One entry: safetensors writes several in an order that changes, and the hash of the file would.
        origins = json.dumps(origins_to_json(records.origins))
        with replace_on_success(path) as temporary:
            temporary.write_bytes(save(tensors, metadata={"origins": origins}))

    def read(self, key: ShardKey) -> ActionRecords:
        """Reads one shard; images and certainties come back as float32.

        Raises:
            DataError: The shard is missing, no such file, or was written by a newer version.
        """
        path = self._path(key)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                origins = parse_json(file.metadata()["origins"])
            return ActionRecords(
                tensors["images"].float(),
                tensors["actions"],
                tensors["references"],
                tensors["certainty"].float(),
                origins_from_json(path, origins, tensors["certainty"].float().numpy()),
            )
        except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path}: not a shard of an action data set ({error}); delete it and collect again"
            ) from error

    def read_all(self) -> ActionRecords:
        """All shards, in the order of their names.

        Raises:
            DataError: The data set is empty.
        """
        keys = self.shards()
        if not keys:
            raise DataError(f"{self.folder}: the action data set is empty; collect actions first")
        return ActionRecords.concatenate([self.read(key) for key in keys])

    def content_hash(self) -> str:
        """SHA-256 over the names and contents of all shards, in the order of their names."""
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
