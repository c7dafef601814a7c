"""What a run was started with, by content, so that it does not go on with something else under the same name."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from medfm_rl.data.files import hash_file
from medfm_rl.data.images import image_suffix
from medfm_rl.data.layouts import find_cases
from medfm_rl.errors import ConfigError
from medfm_rl.pipeline.images import Progress
from medfm_rl.settings import AdaptConfig, FilePrompts, MaskPrompts

_LOG = logging.getLogger(__name__)
_PIXELS = (".raw", ".zraw")
"""Endings of the files beside a .mhd that hold its pixels."""

Inputs = dict[str, dict[str, str]]
"""SHA-256 of every file, by the setting that names its folder and by its path in there."""


def read_inputs(config: AdaptConfig, progress: Progress) -> Inputs:
    """Hashes what the stages of a run read.

    That is the segmenter, its prompts, the anatomy profile, target images and source images with their masks. Content
    and not dates: a folder that is copied or put back is the same, and a run decodes every image anyway. Masks of the
    target are not opened.

    Raises:
        DataError: A data set cannot be found.
    """
    places = {"segmenter.folder": (config.segmenter.folder, _files_below(config.segmenter.folder))}
    prompts = getattr(config.segmenter, "prompts", None)
    if isinstance(prompts, FilePrompts | MaskPrompts):
        places["segmenter.prompts.path"] = (prompts.path, _files_below(prompts.path))
    anatomy = Path(config.anatomy)
    if anatomy.is_file():
        places["anatomy"] = (anatomy, [anatomy])
    images = [path for case in find_cases(config.target) for path in case.image_paths]
    places["target.path"] = (config.target.path, _with_pixels(images))
    if config.source is not None:
        cases = find_cases(config.source)
        labelled = [path for case in cases for path in (*case.image_paths, case.label_path) if path is not None]
        places["source.path"] = (config.source.path, _with_pixels(labelled))
    count = sum(len(paths) for _, paths in places.values())
    done = 0
    inputs: Inputs = {}
    for name, (place, paths) in places.items():
        inputs[name] = {}
        for path in paths:
            key = path.relative_to(place).as_posix() if place in path.parents else path.name
            inputs[name][key] = hash_file(path)
            done += 1
            progress("hashing the inputs", done, count)
    return inputs


def require_same_inputs(path: Path, config: AdaptConfig, progress: Progress) -> None:
    """Compares what is there with what a run was started with.

    Args:
        path: JSON of what `read_inputs` found at the start. Where it is missing, the run is of an older version, and a
            warning says so.
        config: The settings.
        progress: Told how far it is.

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
    try:
        started: Inputs = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); start a new run in another folder") from error
    changes = _changes(started, read_inputs(config, progress))
    if changes:
        raise ConfigError(
            f"{path.parent}: what the run was started with has changed ({'; '.join(changes)}), and results of before "
            "and after would be mixed; put it back, or start a new run in another folder"
        )


def _changes(started: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> list[str]:
    """By place, which files are not as they were; each with the first of them by name."""
    found = []
    for name in sorted({*started, *now}):
        before, after = started.get(name, {}), now.get(name, {})
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


def _files_below(place: Path) -> list[Path]:
    """A file, or the files in a folder; not what Python and file managers leave there."""
    if place.is_file():
        return [place]
    return sorted(
        path
        for path in place.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(place).parts)
    )


def _with_pixels(paths: Iterable[Path]) -> list[Path]:
    """The files of images: of a DICOM series its slices, of a .mhd what holds its pixels. Some may be missing."""
    found: list[Path] = []
    for path in paths:
        found += _files_below(path)
        if image_suffix(path) == ".mhd":
            found += [beside for ending in _PIXELS if (beside := path.with_suffix(ending)).is_file()]
    return found
