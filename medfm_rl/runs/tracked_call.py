"""A record in MLflow of a call that uses a finished run, where one is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import TrackingError
from medfm_rl.progress import Progress
from medfm_rl.runs.case_records import AUDIT_FILE
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.runs.inputs import hash_images
from medfm_rl.runs.models import Model
from medfm_rl.tracking import open_within


@contextmanager
def tracked_call(
    wanted: bool, model: Model, command: str, files: Sequence[CaseFile], out: Path, progress: Progress
) -> Iterator[None]:
    """Records a call as an MLflow run within that of the run that it uses: hashes, images and the audit log.

    Args:
        wanted: Whether to; else nothing is done.
        model: The finished run.
        command: Name of the call.
        files: The cases.
        out: Its output folder, whose audit logs become artifacts when the block ends without an exception.
        progress: Told how far hashing the images is.

    Raises:
        TrackingError: The run was not recorded, or the store cannot be reached.
    """
    if not wanted:
        yield
        return
    if not isinstance(model, FinishedRun) or model.config is None:
        raise TrackingError(
            f"{model.name}: is no run of `medfm-rl adapt`, so there is no record to add to; leave out --track"
        )
    with open_within(model.config.tracking, model.path, f"{command} {out.name}") as tracker:
        tracker.log_params({**asdict(model.identity), "command": command, "out": str(out.resolve())})
        tracker.log_data("images", hash_images(files, progress).record())
        yield
        # That of the scores lies in a folder of its own, and where no case was taken there is no other.
        for log in sorted(out.rglob(AUDIT_FILE)):
            tracker.log_artifact(log, None if log.parent == out else log.parent.relative_to(out).as_posix())
