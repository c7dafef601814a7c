"""Masks by content: what feedback names, whatever files they came from."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medfm_rl.data.images import read_pixels, write_labels
from medfm_rl.data.labels import hash_labels
from medfm_rl.errors import DataError
from medfm_rl.feedback.errors import FeedbackError, StoreError
from medfm_rl.structures import pixels_of, regions_in
from medfm_rl.types import Geometry, LabelMap, LabelSchema


@dataclass(frozen=True, eq=False)
class Mask:
    """A label map with the names of its structures and its place in space; kept compressed, for there can be hundreds.

    Attributes:
        sha256: Over size, names, spacing, origin, direction and class indices.
        labels_sha256: `data.labels.hash_labels`, by which scores name masks: over size and class indices.
        shape: Size `(*S)`.
        names: Names by class index, "background" first; where structures overlap, those of `structures.subset_names`.
        geometry: That of the image.
        packed: The class indices, compressed by zlib.
    """

    sha256: str
    labels_sha256: str
    shape: tuple[int, ...]
    names: tuple[str, ...]
    geometry: Geometry
    packed: bytes

    @classmethod
    def of(cls, labels: LabelMap, names: Sequence[str], geometry: Geometry) -> Mask:
        """Makes one of class indices `(*S)`.

        Raises:
            ValueError: The grid has another number of axes, or a class index has no name.
        """
        if labels.ndim != geometry.ndim:
            raise ValueError(f"the mask is {labels.ndim}-D and its grid {geometry.ndim}-D")
        if labels.max(initial=0) >= len(names):
            raise ValueError(f"class index {labels.max()} has no name; there are {len(names)}")
        content = np.ascontiguousarray(labels, dtype=np.uint8).tobytes()
        described = {"shape": labels.shape, "names": list(names), "geometry": _place(geometry)}
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        digest.update(content)
        packed = zlib.compress(content)
        return cls(digest.hexdigest(), hash_labels(labels), labels.shape, tuple(names), geometry, packed)

    @classmethod
    def unpack(cls, sha256: str, shape: Sequence[int], names: Sequence[str], geometry: Geometry, packed: bytes) -> Mask:
        """Makes the one of that hash.

        Raises:
            FeedbackError: It is another.
        """
        try:
            labels = np.frombuffer(zlib.decompress(packed), dtype=np.uint8).reshape(shape)
            found = cls.of(labels, names, geometry)
        except (zlib.error, ValueError) as error:
            raise FeedbackError(f"mask {sha256}: is damaged ({error}); {RESTORE}") from error
        if found.sha256 != sha256:
            raise FeedbackError(f"mask {sha256}: its content has changed since it was added; {RESTORE}")
        return found

    @property
    def labels(self) -> LabelMap:
        """Class indices `(*S)`."""
        return np.frombuffer(zlib.decompress(self.packed), dtype=np.uint8).reshape(self.shape).copy()

    @property
    def schema(self) -> LabelSchema:
        """The structures; class indices are the integers."""
        regions = regions_in(self.names)
        return LabelSchema.of_regions(regions) if regions else LabelSchema(self.names, tuple(range(len(self.names))))

    def labels_for(self, schema: LabelSchema) -> LabelMap:
        """The class indices that another schema has for the same structures, `(*S)`.

        Raises:
            FeedbackError: The schema lacks a structure that is in the mask, or the mask knows none of its structures.
        """
        own, labels = self.schema, self.labels
        present = [name for name in own.structures if pixels_of(labels, own.classes_of(name)).any()]
        strangers = set(present) - set(schema.structures)
        if strangers or not set(own.structures) & set(schema.structures):
            raise FeedbackError(
                f"mask {self.sha256}: has {', '.join(own.structures)}, and the segmenter segments "
                f"{', '.join(schema.structures)}; feedback teaches a segmenter of the same structures, by name"
            )
        if own.overlaps and not schema.overlaps:
            raise FeedbackError(
                f"mask {self.sha256}: its structures overlap, and those of the segmenter exclude each other; feedback "
                "teaches a segmenter of the same structures"
            )
        return own.indices_in(schema)[labels]


RESTORE = "put the masks of the store back from a copy"


def write_mask(path: Path, mask: Mask) -> None:
    """Writes a mask in the format that the suffix says, in the place of its image, and reads it back.

    Raises:
        StoreError: It cannot be written.
        FeedbackError: Another comes back.
    """
    try:
        write_labels(path, mask.labels, mask.geometry, mask.schema)
    except DataError as error:
        raise StoreError(f"{error}. Make room there, or let it be written") from error
    read_mask(path, mask.sha256, mask.shape, mask.names, mask.geometry)


def read_mask(path: Path, sha256: str, shape: Sequence[int], names: Sequence[str], geometry: Geometry) -> Mask:
    """Reads a mask that `write_mask` wrote.

    Raises:
        FeedbackError: It is missing, cannot be read, or is not the one of that hash.
    """
    try:
        pixels, _ = read_pixels(path)
    except DataError as error:
        raise FeedbackError(f"{error}; {RESTORE}") from error
    return Mask.unpack(sha256, shape, names, geometry, zlib.compress(pixels.astype(np.uint8).tobytes(), 1))


def geometry_as_text(geometry: Geometry) -> str:
    """A grid as JSON, with what its image's file says of it besides."""
    kept = _place(geometry)
    if geometry.header is not None:
        kept["header"] = base64.b64encode(geometry.header).decode()
    if geometry.alternative is not None:
        kept["alternative"] = _place(geometry.alternative)
    return json.dumps(kept, sort_keys=True)


def geometry_from_text(text: str) -> Geometry:
    """Reads what `geometry_as_text` wrote."""
    kept = json.loads(text)
    header, alternative = kept.get("header"), kept.get("alternative")
    return replace(
        _grid(kept),
        header=None if header is None else base64.b64decode(header),
        alternative=None if alternative is None else _grid(alternative),
    )


def _place(geometry: Geometry) -> dict[str, Any]:
    """What identifies a grid."""
    return {
        "spacing": None if geometry.spacing is None else [float(value) for value in geometry.spacing],
        "origin": [float(value) for value in geometry.origin],
        "direction": [float(value) for value in geometry.direction],
        "volume": None if geometry.volume is None else _place(geometry.volume),
    }


def _grid(kept: dict[str, Any]) -> Geometry:
    return Geometry(
        None if kept["spacing"] is None else tuple(kept["spacing"]),
        tuple(kept["origin"]),
        tuple(kept["direction"]),
        None if kept["volume"] is None else _grid(kept["volume"]),
    )
