"""The inputs of a run by content: so that it does not go on with something else, and to trace it later."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, model_validator

from medfm_rl.adapters.loading import read_beside
from medfm_rl.data.files import files_below, hash_file, hash_listing, write_versioned_json
from medfm_rl.data.json_models import read_model
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.data.text_headers import pixel_files
from medfm_rl.errors import ConfigError
from medfm_rl.progress import Progress
from medfm_rl.settings import AdaptConfig, DataSettings
from medfm_rl.tracking import DataRecord
from medfm_rl.version import __version__

_LOG = logging.getLogger(__name__)
TARGET, SOURCE = "target.path", "source.path"
"""The settings that name the data sets of a run."""
DATA_SETS = (TARGET, SOURCE)
_FORMAT: Final = 2
_ADVICE: Final = "start a new run in another folder"


@dataclass(frozen=True)
class Input:
    """A place that something is read from.

    Attributes:
        path: Where it was, absolute; None where an older version recorded it.
        files: SHA-256 of every file that is read, by its path in there.
        cases: The patient of every case by its name; empty where it is no data set, or an older version recorded it.
    """

    path: str | None
    files: dict[str, str]
    cases: dict[str, str] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """SHA-256 over names and contents of the files, as of a folder that holds these and no others."""
        return hash_listing(self.files)

    def record(self) -> DataRecord:
        """A data set without the names in it."""
        return DataRecord(str(self.path), self.hash, len(self.cases), len(set(self.cases.values())))


Inputs = dict[str, Input]
"""By the setting that names the place."""


def read_inputs(config: AdaptConfig, progress: Progress, data_sets: Collection[str] = DATA_SETS) -> Inputs:
    """Hashes what the stages of a run read.

    That is the segmenter, what it is read from besides its folder, the anatomy profile, target images and source images
    with their masks. Content and not dates: a folder that is copied or put back is the same, and a run decodes every
    image anyway. Masks of the target are not opened.

    Args:
        config: The settings.
        progress: Told how far it is.
        data_sets: Those of `DATA_SETS` to hash; everything else is hashed in any case.

    Raises:
        DataError: A data set cannot be found.
        ModelError: The folder of the segmenter has no description that can be read.
    """
    places = {"segmenter.folder": (config.segmenter.folder, _files_at(config.segmenter.folder))}
    for name, place in read_beside(config.segmenter).items():
        places[f"segmenter.{name}"] = (place, _files_at(place))
    anatomy = Path(config.anatomy)
    if anatomy.is_file():
        places["anatomy"] = (anatomy, [anatomy])
    cases = {}
    if TARGET in data_sets:
        cases[TARGET] = find_cases(config.target)
        places[TARGET] = (config.target.path, image_files(cases[TARGET]))
    if SOURCE in data_sets and config.source is not None:
        cases[SOURCE] = find_cases(config.source)
        places[SOURCE] = (config.source.path, _labelled_files(cases[SOURCE]))
    counted = _counter("hashing the inputs", sum(len(paths) for _, paths in places.values()), progress)
    return {name: _hash(place, paths, cases.get(name, ()), counted) for name, (place, paths) in places.items()}


def read_labelled(data: DataSettings, progress: Progress) -> Input:
    """Hashes a labelled data set: images and masks.

    Raises:
        DataError: It cannot be found.
    """
    return hash_labelled(data.path, find_cases(data), progress)


def hash_labelled(place: Path, files: Sequence[CaseFile], progress: Progress) -> Input:
    """Hashes images and masks of cases.

    Args:
        place: The data set that they are of.
        files: The cases.
        progress: Told how far it is.
    """
    paths = _labelled_files(files)
    return _hash(place, paths, files, _counter("hashing labelled cases", len(paths), progress))


def hash_images(files: Sequence[CaseFile], progress: Progress) -> Input:
    """Hashes the images of cases.

    Args:
        files: The cases.
        progress: Told how far it is.
    """
    paths = image_files(files)
    place = _innermost(path for file in files for path in file.image_paths)
    return _hash(place, paths, files, _counter("hashing the images", len(paths), progress))


def write_inputs(path: Path, inputs: Inputs) -> None:
    """Writes the record: places, hashes of every file, who the cases are of, and which version read them."""
    content = {name: {**asdict(place), "hash": place.hash} for name, place in inputs.items()}
    write_versioned_json(path, _FORMAT, {"medfm_rl": __version__, "inputs": content})


class _Record(BaseModel):
    inputs: Inputs
    medfm_rl: str = "of an older version"

    @model_validator(mode="before")
    @classmethod
    def _with_places(cls, content: Any) -> Any:
        """Format 1 has the hashes of files alone, by the setting that names their place."""
        if not isinstance(content, dict) or "inputs" in content:
            return content
        return {"inputs": {name: {"path": None, "files": files} for name, files in content.items()}}


def load_inputs(path: Path) -> Inputs:
    """Reads what `write_inputs` wrote, or an older version, which recorded the hashes of files alone.

    Raises:
        ConfigError: It is missing or something else.
    """
    return _read(path).inputs


def _read(path: Path) -> _Record:
    return read_model(path, _Record, _FORMAT, "a record of inputs", _ADVICE, ConfigError)


def require_same_inputs(
    path: Path, config: AdaptConfig, progress: Progress, data_sets: Collection[str] = DATA_SETS
) -> None:
    """Compares what is there with what a run was started with; another version of this package is warned of.

    Args:
        path: What `write_inputs` wrote at the start. Where it is missing, the run is of an older version, and a warning
            says so.
        config: The settings.
        progress: Told how far it is.
        data_sets: Those of `DATA_SETS` to compare: the others need not be there any more.

    Raises:
        ConfigError: Something has changed; the message says what.
        DataError: A data set cannot be found.
    """
    if not path.exists():
        _LOG.warning(
            "%s is missing, for an older version started this run: whether the segmenter and the images are still the "
            "same is not known",
            path,
        )
        return
    record, now = _read(path), read_inputs(config, progress, data_sets)
    compared = {name: found for name, found in record.inputs.items() if name in data_sets or name not in DATA_SETS}
    _warn_of_another_version(path, record.medfm_rl)
    changes = differences(compared, now)
    if changes:
        raise ConfigError(
            f"{path.parent}: what the run was started with has changed ({'; '.join(changes)}), and results of before "
            "and after would be mixed; put it back, or start a new run in another folder"
        )


def _warn_of_another_version(path: Path, version: str) -> None:
    if version != __version__:
        _LOG.warning(
            "%s: medfm-rl %s started this run and %s goes on with it; its stages may follow other rules, and the "
            "result is that of neither version: start a new run in another folder where results are compared",
            path.parent,
            version,
            __version__,
        )


def common_folder(cases: Iterable[CaseFile]) -> Path:
    """The innermost folder that holds images and masks of all cases, such as that of the data set."""
    return _innermost(_images_and_masks(cases))


def image_files(cases: Iterable[CaseFile]) -> list[Path]:
    """The files of images: of a DICOM series its slices, of a .mhd what holds its pixels. Some may be missing."""
    # Frames of a clip have one file.
    return _with_pixels(dict.fromkeys(path for case in cases for path in case.image_paths))


def _labelled_files(cases: Iterable[CaseFile]) -> list[Path]:
    return _with_pixels(dict.fromkeys(_images_and_masks(cases)))


def _images_and_masks(cases: Iterable[CaseFile]) -> Iterator[Path]:
    for case in cases:
        yield from (path for path in (*case.image_paths, case.label_path) if path is not None)


def _innermost(paths: Iterable[Path]) -> Path:
    """The innermost folder that all of the paths lie in."""
    return Path(os.path.commonpath([path.parent for path in paths]))


def _counter(stage: str, total: int, progress: Progress) -> Callable[[], None]:
    """Tells the progress of a stage by one more each time that it is called."""
    done = itertools.count(1)
    return lambda: progress(stage, next(done), total)


def _hash(place: Path, paths: Sequence[Path], cases: Iterable[CaseFile], counted: Callable[[], None]) -> Input:
    base = place.parent if place.is_file() else place
    hashes = {}
    for path in paths:
        # A data set may name files that lie elsewhere, and two of them may have one name.
        hashes[Path(os.path.relpath(path, base)).as_posix()] = hash_file(path)
        counted()
    return Input(str(place.resolve()), hashes, {case.case_id: case.patient_id for case in cases})


def differences(started: Inputs, now: Inputs) -> list[str]:
    """By place, which files are not as they were, in words; each with the first of them by name."""
    found = []
    for name in sorted({*started, *now}):
        before, after = (inputs[name].files if name in inputs else {} for inputs in (started, now))
        kinds = {
            "new": sorted(after.keys() - before.keys()),
            "gone": sorted(before.keys() - after.keys()),
            "changed": sorted(file for file in before.keys() & after.keys() if before[file] != after[file]),
        }
        found += [
            f"{name}: {len(files)} {'file' if len(files) == 1 else 'files'} {kind}, {files[0]}"
            + (" first" if len(files) > 1 else "")
            for kind, files in kinds.items()
            if files
        ]
    return found


def _files_at(place: Path) -> list[Path]:
    """A file, or the files in a folder."""
    return [place] if place.is_file() else files_below(place)


def _with_pixels(paths: Iterable[Path]) -> list[Path]:
    """The paths, in place of a folder what is in it, and beside a .mhd what holds its pixels."""
    found: list[Path] = []
    for path in paths:
        found += _files_at(path)
        if path.is_file():
            found += [beside for beside in pixel_files(path) if beside.is_file()]
    return found
