"""Whether labelled cases are new to a run: what is calibrated on cases that it learned from promises too much."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache

from medfm_rl.data.files import hash_file
from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import DataError
from medfm_rl.runs.folder import RunFolder
from medfm_rl.runs.inputs import SOURCE, TARGET, Input, common_folder, image_files, load_inputs

_LOG = logging.getLogger(__name__)
_MEANING = {TARGET: "its target", SOURCE: "its source"}


def count_known(run: RunFolder, files: Sequence[CaseFile], allow_overlap: bool) -> int:
    """Refuses cases that a run learned from, by the content of the images and by the names of patients.

    A run of an older version that recorded no inputs cannot be asked; a warning says so.

    Args:
        run: A finished run of `adapt`.
        files: Labelled cases.
        allow_overlap: Whether to take images of the target, which the run saw without labels, and patients whose name
            is one of the run's. Images that it saw with labels are refused all the same.

    Returns:
        How many of the cases are, or may be, known to the run; more than 0 with `allow_overlap` alone.

    Raises:
        DataError: The run has learned from some of them.
    """
    place, inputs = common_folder(files), load_inputs(run.inputs) if run.inputs.exists() else {}
    if not any(read.cases for read in inputs.values()):
        _LOG.warning(
            "%s does not say which patients the run learned from, for an older version started it: whether cases of %s "
            "are among them is not known",
            run.inputs,
            place,
        )
    refused: list[str] = []
    known: set[str] = set()
    # Frames of a clip have one file.
    hash_once = cache(hash_file)
    hashes = {file.case_id: {hash_once(path) for path in image_files([file])} for file in files}
    for name, meaning in _MEANING.items():
        if name not in inputs:
            continue
        images, patients = _same_images(inputs[name], hashes), _same_patients(inputs[name], files)
        known |= {*images, *patients}
        if images and not (allow_overlap and name == TARGET):
            refused.append(f"{len(images)} of {len(files)} are images of {meaning} ({images[0]} for one)")
        if patients and not allow_overlap:
            refused.append(f"{len(patients)} of {len(files)} are of patients of {meaning} ({patients[0]} for one)")
    if refused:
        raise DataError(
            f"{place}: the run {run.path} has learned from these cases: {'; '.join(refused)}. What is calibrated on "
            "them promises too much; give cases of other patients. --allow-overlap takes images of the target, where "
            "they themselves are what will be scored, and patients of the same name who are other people"
        )
    return len(known)


def _same_images(read: Input, hashes: Mapping[str, set[str]]) -> list[str]:
    """Cases all of whose files the run has read: a .mhd alone can be that of another image of its size."""
    known = set(read.files.values())
    return [case for case, found in hashes.items() if found and found <= known]


def _same_patients(read: Input, files: Sequence[CaseFile]) -> list[str]:
    known = set(read.cases.values())
    return [file.case_id for file in files if file.patient_id in known]
