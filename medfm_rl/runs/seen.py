"""Which images the segmenter of a run has seen or segmented, by content."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

from medfm_rl.data.files import hash_file, read_lines
from medfm_rl.data.images import hash_image
from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import DataError
from medfm_rl.runs.case_records import AUDIT_FILE
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.runs.inputs import TARGET, image_files, load_inputs


def target_patients(run: FinishedRun) -> frozenset[str] | None:
    """The patients of the run's target; None where it does not say, as in one of an older version.

    Raises:
        ConfigError: Its record of inputs cannot be read.
    """
    path = run.folder.inputs
    target = load_inputs(path).get(TARGET) if path.exists() else None
    return None if target is None or not target.cases else frozenset(target.cases.values())


def require_seen(run: FinishedRun, files: Iterable[CaseFile], masks: Path | None) -> None:
    """Refuses images that are neither among the run's target, nor segmented by it as an audit log says.

    Args:
        run: The run.
        files: The cases.
        masks: The folder of the masks that were shown; an `audit.jsonl` in there or beside it is asked.

    Raises:
        DataError: There is one.
        ConfigError: The run's record of inputs cannot be read.
    """
    path = run.folder.inputs
    target = load_inputs(path).get(TARGET) if path.exists() else None
    known = set() if target is None else set(target.files.values())
    logged = _logged_images(run, masks)
    # Frames of a clip have one file.
    hash_once, hash_image_once = cache(hash_file), cache(hash_image)
    unseen = [
        file
        for file in files
        if not {hash_once(image) for image in image_files([file])} <= known
        and tuple(hash_image_once(image) for image in file.image_paths) not in logged
    ]
    if unseen:
        more = f" (and {len(unseen) - 1} more)" if len(unseen) > 1 else ""
        raise DataError(
            f"case {unseen[0].case_id}{more}: the run {run.path} never saw this image. It is not among its target, and "
            f"no {AUDIT_FILE} beside the masks says that its segmenter made them; give the run that did and the output "
            "folder of its predict, or take the images all the same by --unseen. Nothing was added"
        )


def _logged_images(run: FinishedRun, masks: Path | None) -> set[tuple[str, ...]]:
    """Hashes of the images that audit logs at a folder of masks say the run has segmented."""
    places = () if masks is None else (masks, masks.absolute().parent)
    logs = [place / AUDIT_FILE for place in places if (place / AUDIT_FILE).is_file()]
    return {
        tuple(line["inputs"]["images"])
        for log in logs
        for line in read_lines(log, "give a folder without it, and --unseen")[0]
        if line.get("model_hash") == run.identity.model_hash and "images" in line.get("inputs", {})
    }
