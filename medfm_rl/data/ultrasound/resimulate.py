"""Re-simulates a data set as another vendor would show it, masks kept."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from medfm_rl.data.clips.sequences import write_sequence
from medfm_rl.data.clips.tracings import TRACINGS
from medfm_rl.data.each_case import case_alone
from medfm_rl.data.files import replace_folder_on_success, replace_on_success, write_json
from medfm_rl.data.images import image_suffix, write_image
from medfm_rl.data.json_text import parse_json
from medfm_rl.data.layouts import SIMULATION_RECORD, CaseFile, whole_clips
from medfm_rl.data.locks import alone_in, is_unused
from medfm_rl.data.names import file_of_case
from medfm_rl.data.text_headers import pixel_files
from medfm_rl.data.ultrasound.engine import resimulate
from medfm_rl.data.ultrasound.resimulate_clips import resimulate_clip
from medfm_rl.data.ultrasound.vendors import VendorProfile
from medfm_rl.errors import ConfigError, DataError, UserError
from medfm_rl.seeding import numpy_generator
from medfm_rl.types import frame_id

_LOG = logging.getLogger(__name__)
# What loses grey values or needs more than one file is written as a format of its kind that does not.
_WRITTEN_AS = {".dcm": ".nii.gz", ".jpg": ".png", ".jpeg": ".png", ".mhd": ".mha"}


def resimulate_dataset(
    cases: Sequence[CaseFile],
    out: Path,
    profile: VendorProfile,
    seed: int,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Writes `images/` and, byte for byte, `labels/`; a call that was interrupted goes on where it was.

    `simulation.json` says that the data is simulated, by which profile, and whether all of it is there, and
    `dataset.json` what the integers in the masks mean, where the data that they came with said so. A case that cannot
    be simulated is left out and named; the others are simulated.

    Args:
        cases: Grey-value frames, 0 to 255, apex up; frames of a clip are simulated together, with speckle that moves
            as they do.
        out: Folder of the simulated data set: new, empty, or of an earlier call with the same vendor and seed.
        profile: The vendor.
        seed: With the case's name it seeds the case; order and workers do not matter.
        workers: Processes; one per core where None.
        progress: Called with (cases done, cases).

    Returns:
        One message per case that was left out.

    Raises:
        ConfigError: The folder holds a simulation with another vendor or seed.
        DataError: Not one frame is a B-mode image, the folder holds something else, or another process is at work
            there.
    """
    with alone_in(out):
        return _resimulate_dataset(cases, out, profile, seed, workers, progress)


def _resimulate_dataset(
    cases: Sequence[CaseFile],
    out: Path,
    profile: VendorProfile,
    seed: int,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> list[str]:
    record = {"simulated": True, "profile": asdict(profile), "seed": seed}
    path = out / SIMULATION_RECORD
    _check_folder(out, record)
    write_json(path, record | {"complete": False})
    # Frames of a clip are simulated together, or speckle would flicker.
    cases = whole_clips(cases)
    simulate = partial(_resimulate_case, out=out, profile=profile, seed=seed)
    described = next((case.described for case in cases if case.described is not None), None)
    if described is not None:
        write_json(out / described.path.name, {"labels": described.labels})
    problems: list[str] = []
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        for done, problem in enumerate(pool.map(simulate, cases), 1):
            if problem is not None:
                _LOG.warning("left out: %s", problem)
                problems.append(problem)
            if progress:
                progress(done, len(cases))
    if len(problems) == len(cases):
        raise DataError(f"no case could be simulated; the first: {problems[0]}")
    write_json(path, record | {"complete": not problems})
    return problems


def _check_folder(out: Path, record: dict[str, object]) -> None:
    path = out / SIMULATION_RECORD
    if not path.exists():
        if not is_unused(out):
            raise DataError(f"{out}: already exists and holds no simulation; give a new folder")
        return
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete the folder or choose another") from error
    if not isinstance(found, dict) or {name: found.get(name) for name in record} != record:
        raise ConfigError(f"{path}: the folder holds a simulation with another vendor or seed; choose another folder")


def _resimulate_case(case: CaseFile, out: Path, profile: VendorProfile, seed: int) -> str | None:
    """Writes a case; returns why it could not be."""
    try:
        with case_alone(case.case_id):
            _write_case(case, out, profile, seed)
    except UserError as error:
        return str(error)
    return None


def _write_case(case: CaseFile, out: Path, profile: VendorProfile, seed: int) -> None:
    case.require_sound()
    if case.clip is not None:
        _write_clip(case, out, profile, seed)
        return
    suffix = image_suffix(case.image_paths[0]) or ".nii.gz"
    destination = file_of_case(out / "images", case.case_id, _WRITTEN_AS.get(suffix, suffix))
    if not destination.exists():
        _write_frame(case, destination, profile, seed)
    if case.label_path is not None:
        _copy_mask(case.label_path, out / "labels", case.case_id)


def _write_clip(case: CaseFile, out: Path, profile: VendorProfile, seed: int) -> None:
    """Writes a clip as a sequence with its times; its masks are a sequence already, or of single frames, and copied."""
    if case.label_path is not None and case.label_path.name == TRACINGS:
        raise DataError(
            f"{case.label_path}: masks of this clip are lines of a table, which fit its first size alone; give the "
            "clips without the table, or masks as sequences"
        )
    destination = file_of_case(out / "images", case.case_id, ".nii.gz")
    if not destination.exists():
        clip = case.read_clip()
        if clip.frames.shape[1] != 1:
            raise DataError(f"{case.image_paths[0]}: grey-value frames are needed, these have {clip.frames.shape[1:]}")
        spacing = clip.geometry.array_spacing
        try:
            frames = resimulate_clip(
                np.clip(clip.frames[:, 0], 0, 255),
                profile,
                numpy_generator(seed, case.case_id),
                None if spacing is None else spacing[0],
            )
        except DataError as error:
            raise DataError(f"{case.image_paths[0]}: {error}") from error
        write_sequence(destination, frames, clip.geometry, clip.times)
    for index, path in case.frame_masks.items():
        _copy_mask(path, out / "labels", frame_id(case.case_id, index))
    if case.label_path is not None and case.label_path not in case.frame_masks.values():
        _copy_mask(case.label_path, out / "labels", case.case_id)


def _write_frame(case: CaseFile, destination: Path, profile: VendorProfile, seed: int) -> None:
    frame = case.read()
    if frame.image.shape[0] != 1 or frame.geometry.ndim != 2:
        raise DataError(f"{case.image_paths[0]}: a grey-value frame is needed, this has shape {frame.image.shape}")
    spacing = frame.geometry.array_spacing
    row_mm = None if spacing is None else spacing[0]
    try:
        image = resimulate(np.clip(frame.image[0], 0, 255), profile, numpy_generator(seed, case.case_id), row_mm)
    except DataError as error:
        raise DataError(f"{case.image_paths[0]}: {error}") from error
    write_image(destination, image, frame.geometry)


def _copy_mask(source: Path, folder: Path, case_id: str) -> None:
    """Copies a mask, also a folder with one, and the pixel files that a header points to under the names it gives."""
    destination = file_of_case(folder, case_id, image_suffix(source) or "")
    for pixels in pixel_files(source):
        if pixels.parent != source.parent or not pixels.is_file():
            raise DataError(f"{source}: its pixel file {pixels.name} does not lie beside it")
        _copy(pixels, folder / pixels.name)
    _copy(source, destination)


def _copy(source: Path, destination: Path) -> None:
    if destination.exists():
        return
    if source.is_dir():
        with replace_folder_on_success(destination) as temporary:
            shutil.copytree(source, temporary, dirs_exist_ok=True)
        return
    with replace_on_success(destination) as temporary:
        shutil.copyfile(source, temporary)
