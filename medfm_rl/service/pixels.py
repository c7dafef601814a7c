"""Images, masks and reward maps as arrays of one order, checked against what was assessed, and kept while in use.

Everything is `(N, H, W[, C])`: N planes of a volume, frames of a clip, or one.
"""

from __future__ import annotations

import gzip
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from medfm_rl.data.clips.reading import find_clip, find_numbered
from medfm_rl.data.each_case import case_alone
from medfm_rl.data.images import hash_image, read_image, read_pixels
from medfm_rl.data.labels import hash_labels, read_any_labels, read_labels
from medfm_rl.data.layouts import CaseFile, is_simulated
from medfm_rl.errors import DataError
from medfm_rl.service.catalogue import View
from medfm_rl.service.errors import DeskError
from medfm_rl.service.scored import ScoredCase
from medfm_rl.types import Geometry, LabelMap, LabelSchema

Array = npt.NDArray[Any]
T = TypeVar("T")
_MOST_KEPT = 64 << 20
"""Bytes of arrays that are kept: a case is asked for in parts, one soon after the other, and hardly again."""
_MOST_ARRAYS = 80
"""Arrays that are kept, image, masks and rewards of twenty cases: of small images the bytes alone would keep hundreds
that nobody asks for any more."""
_MOST_ORDERED = 5
"""Structures whose integers are found out; of more there are too many orders to try."""
_DARKEST, _BRIGHTEST = 1.0, 99.0
"""Percentiles between which grey values are shown at first."""


@dataclass(frozen=True, eq=False)
class Picture:
    """An image as it is shown.

    Attributes:
        form: image, volume or clip.
        values: `(N, H, W, C)`, as uint8 or int16 where that loses nothing, else float32.
        geometry: Grid of the image, of the volume, or of each frame.
        times: Seconds of each frame; None where unknown or no clip.
        files: The case of each frame that was scored, with the hash of its image.
        simulated: Whether it is of a simulated data set.
    """

    form: str
    values: Array
    geometry: Geometry
    times: tuple[float, ...] | None
    files: tuple[tuple[CaseFile, str], ...]
    simulated: bool

    @property
    def planes(self) -> int:
        """Planes or frames."""
        return len(self.values)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size of a mask of all of it, `(N, H, W)`."""
        return self.values.shape[:3]

    @property
    def axes(self) -> list[str] | None:
        """Towards which side of the patient each index axis of a volume grows; None where it is none."""
        if self.form != "volume" or self.geometry.spacing is None:
            return None
        return list(sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(self.geometry.direction))


class Pixels:
    """Reads arrays, and keeps the last ones.

    Args:
        schema: The structures, and the integers that stand for them in the mask files.
        moved: Folder where images lie that are no longer where they were scored.
        settled: Whether the integers were said, or else are only likely.
    """

    def __init__(self, schema: LabelSchema, moved: Path | None = None, settled: bool = False) -> None:
        self.schema = schema
        self._settled = settled
        self._moved = _below(moved) if moved is not None else {}
        self._kept: OrderedDict[object, tuple[Any, int]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()
        self._making: dict[object, threading.Lock] = {}

    def picture(self, view: View) -> Picture:
        """The image of a view.

        Raises:
            DeskError: It is gone, or another than the one that was assessed.
            DataError: It cannot be read.
        """
        return self._once(("picture", view.first.images, view.name), lambda: self._read(view), _size_of_picture)

    def given(self, view: View) -> LabelMap:
        """The masks that were assessed, `(N, H, W)`; background in frames that were not.

        Raises:
            DeskError: A mask is missing, or another than the one that was assessed.
            DataError: It cannot be read.
        """
        return self._once(("given", view.id), lambda: self._labels(view), lambda made: made.nbytes)

    def corrected(self, view: View) -> LabelMap:
        """The same with what `correct` proposes, where it does.

        Raises:
            DeskError: As in `given`.
            DataError: It cannot be read.
        """
        return self._once(("corrected", view.id), lambda: self._proposals(view), lambda made: made.nbytes)

    def rewards(self, view: View) -> npt.NDArray[np.uint8] | None:
        """The reward map in 255 steps, `(N, H, W)`, 255 where a pixel is surely right; None where none was kept.

        Raises:
            DataError: It cannot be read.
        """
        if not self.has_rewards(view):
            return None
        return self._once(("rewards", view.id), lambda: self._rewards(view), lambda made: made.nbytes)

    def has_rewards(self, view: View) -> bool:
        """Whether there is a reward map of it."""
        return not view.blind and any(frame.reward_file().exists() for frame in view.frames)

    def forget(self) -> None:
        """Reads everything anew from here on: files may have been replaced."""
        with self._lock:
            self._kept.clear()
            self._size = 0

    def _read(self, view: View) -> Picture:
        files = [self._file(case, view, place) for place, case in enumerate(view.frames)]
        with case_alone(view.name):
            if files[0].clip is not None:
                clip = files[0].read_clip()
                form, times, geometry = "clip", clip.times, clip.geometry
                values = np.moveaxis(clip.frames, 1, -1)
            else:
                image, geometry = read_image(files[0].image_paths)
                form, times = ("volume" if geometry.ndim == 3 else "image"), None
                values = np.moveaxis(image if geometry.ndim == 3 else image[:, None], 0, -1)
            found = tuple((file, file.hash_images()) for file in files)
        simulated = is_simulated(files[0].image_paths[0].parent)
        return Picture(form, _smallest(values), geometry, times, found, simulated)

    def _file(self, case: ScoredCase, view: View, place: int) -> CaseFile:
        """Where the image of a case lies, after it was seen to be the one that was assessed."""
        if not case.images:
            raise DeskError(
                409, "image_missing", f"case {case.case}: nothing says where its image lies", "score the images again"
            )
        paths = tuple(self._find(path, case) for path in case.images)
        bare = CaseFile(case.case, case.patient, paths)
        if view.numbers:
            clip = find_numbered(paths[0]) if paths[0].is_dir() else find_clip(paths[0])
            if clip is None and not paths[0].is_dir():
                clip = find_clip(paths[0], planes_over_time=True)
            if clip is None:
                raise _changed(paths[0], case)
            bare = replace(bare, clip=clip, clip_id=view.name, frame=view.numbers[place])
        known = case.recorded_inputs().get("images")
        if known is not None:
            found = [bare.clip.hash()] if bare.clip is not None else [hash_image(path) for path in paths]
            if found != list(known):
                raise _changed(paths[0], case)
        return bare

    def _find(self, path: Path, case: ScoredCase) -> Path:
        found = case.find(path) or self._moved.get(path.name)
        if found is not None:
            return found
        raise DeskError(
            409,
            "image_missing",
            f"{path}: the image of case {case.case} is no longer there",
            "put it back, or open the desk with the folder that it lies in now (--images)",
        )

    def _labels(self, view: View) -> LabelMap:
        picture = self.picture(view)
        labels: LabelMap = np.zeros(picture.shape, np.uint8)
        for place, (case, (file, _)) in enumerate(zip(view.frames, picture.files, strict=True)):
            if case.mask is None:
                continue
            found = self._as_assessed(case, file, picture)
            if found is None:
                raise DeskError(
                    409,
                    "mask_changed",
                    f"{case.mask}: is not the mask of case {case.case} that was assessed, or its integers stand for "
                    f"other structures than {', '.join(f'{n} {i}' for n, i in self.schema.integers.items())}",
                    "score the masks again, or say what the integers mean (--structures)",
                )
            _put(labels, found, view, place)
        return labels

    def _as_assessed(self, case: ScoredCase, file: CaseFile, picture: Picture) -> LabelMap | None:
        """The mask of a case; None where the file holds another than the one that was assessed.

        Nothing beside the masks says which integer stands for which structure. That of the assessed mask is known by
        its hash, so that the first mask which has all structures settles it.
        """
        try:
            found = self._mask(case.mask, case, file, picture)
        except DataError:
            if self._settled or case.labels_sha256 is None:
                raise
            found = None
        if found is not None and (case.labels_sha256 is None or hash_labels(found) == case.labels_sha256):
            self._settled = self._settled or (
                case.labels_sha256 is not None and found.max() == len(self.schema.structures)
            )
            return found
        if self._settled or case.labels_sha256 is None or not self._settle(case, file, picture):
            return None
        return self._mask(case.mask, case, file, picture)

    def _settle(self, case: ScoredCase, file: CaseFile, picture: Picture) -> bool:
        """Finds the integers by which a mask is the one that was assessed; whether there are any."""
        path = None if case.mask is None else case.find(case.mask)
        if path is None or len(self.schema.structures) > _MOST_ORDERED:
            return False
        shape = picture.shape if picture.form == "volume" else picture.shape[1:]
        with case_alone(case.case):
            ids = read_any_labels(path, shape, picture.geometry, frame=file.frame).ids
        present = [int(value) for value in np.unique(ids) if value]
        if len(present) != len(self.schema.structures):
            return False
        for order in permutations(present):
            schema = LabelSchema.from_structures(dict(zip(self.schema.structures, order, strict=True)))
            if hash_labels(schema.to_indices(ids)) == case.labels_sha256:
                self.schema, self._settled = schema, True
                return True
        return False

    def _proposals(self, view: View) -> LabelMap:
        picture, labels = self.picture(view), self.given(view).copy()
        for place, (case, made, (file, _)) in enumerate(zip(view.frames, view.corrections, picture.files, strict=True)):
            if made is not None and made.mask is not None:
                if made.images and made.images[0] not in (case.recorded_inputs().get("images") or made.images):
                    raise DeskError(
                        409,
                        "image_changed",
                        f"{made.mask}: was made for another image than the one that was scored as {case.case}",
                        "correct again with these scores",
                    )
                _put(labels, self._mask(made.mask, case, file, picture), view, place)
        return labels

    def _mask(self, path: Path | None, case: ScoredCase, file: CaseFile, picture: Picture) -> LabelMap:
        found = None if path is None else case.find(path)
        if found is None:
            raise DeskError(
                409,
                "mask_missing",
                f"{path or 'case ' + case.case}: the mask of case {case.case} is not there",
                "put it back, or score again",
            )
        integers = case.recorded_inputs().get("labels")
        in_file = LabelSchema.from_integers(integers) if isinstance(integers, dict) else None
        shape = picture.shape if picture.form == "volume" else picture.shape[1:]
        with case_alone(case.case):
            frames = None if file.clip is None else file.clip.count
            return read_labels(found, self.schema, shape, picture.geometry, in_file, file.frame, frames=frames)

    def _rewards(self, view: View) -> npt.NDArray[np.uint8]:
        picture = self.picture(view)
        found = np.zeros(picture.shape, np.uint8)
        for place, case in enumerate(view.frames):
            if case.reward_file().exists():
                values, _ = read_pixels(case.reward_file())
                steps = np.rint(255 * np.clip(values[0], 0, 1)).astype(np.uint8)
                _put(found, steps, view, place)
        return found

    def _once(self, key: object, make: Callable[[], T], size_of: Callable[[T], int]) -> T:
        """Makes something once, however many ask for it at a time, and keeps it until others need its place."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key][0]  # type: ignore[no-any-return]
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._kept:
                    return self._kept[key][0]  # type: ignore[no-any-return]
            try:
                made = make()
                size = size_of(made)
            except BaseException:
                with self._lock:
                    self._making.pop(key, None)
                raise
            with self._lock:
                # At once: whoever came in between would make it again, and count it twice.
                self._making.pop(key, None)
                self._kept[key] = (made, size)
                self._size += size
                # The last one stays, however large it is: the rest of its case is asked for next.
                while len(self._kept) > 1 and (self._size > _MOST_KEPT or len(self._kept) > _MOST_ARRAYS):
                    _, (_, freed) = self._kept.popitem(last=False)
                    self._size -= freed
            return made


def window_of(values: Array) -> dict[str, float]:
    """Centre and width of the grey values that are shown at first."""
    low, high = np.percentile(values, (_DARKEST, _BRIGHTEST))
    width = max(float(high - low), float(np.finfo(np.float32).eps))
    return {"centre": float(low + high) / 2, "width": width}


def packed(values: Array) -> bytes:
    """Little-endian bytes in C order, compressed as `Content-Encoding: gzip` has it."""
    return gzip.compress(raw(values), 1, mtime=0)


def raw(values: Array) -> bytes:
    """Little-endian bytes in C order."""
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes()


def _smallest(values: Array) -> Array:
    """The same values in the smallest type that holds them."""
    low, high = float(values.min()), float(values.max())
    whole = bool((values == np.rint(values)).all())
    if whole and low >= 0 and high <= 255:
        return np.ascontiguousarray(values.astype(np.uint8))
    if whole and np.iinfo(np.int16).min <= low and high <= np.iinfo(np.int16).max:
        return np.ascontiguousarray(values.astype(np.int16))
    return np.ascontiguousarray(values.astype(np.float32))


def _put(whole: npt.NDArray[np.uint8], part: npt.NDArray[np.uint8], view: View, place: int) -> None:
    """Puts the values of a frame, or of all there is, into those of the view."""
    if part.ndim == 3:
        whole[:] = part
    else:
        whole[view.numbers[place] if view.numbers else 0] = part


def _changed(path: Path, case: ScoredCase) -> DeskError:
    return DeskError(
        409,
        "image_changed",
        f"{path}: is not the image of case {case.case} that was scored: its content has changed since",
        "put the image back that was scored, or score again",
    )


def _size_of_picture(picture: Picture) -> int:
    return picture.values.nbytes


def _below(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted(folder.rglob("*"))}
