"""A record in MLflow of a call that uses a finished run, where one is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from medfm_rl.data.files import hash_file
from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import TrackingError
from medfm_rl.progress import Progress
from medfm_rl.runs.case_records import AUDIT_FILE
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.runs.inputs import common_folder, hash_images, hash_labelled
from medfm_rl.runs.judging import Judge
from medfm_rl.runs.models import Model
from medfm_rl.tracking import Tracker, open_within


@contextmanager
def tracked_call(
    wanted: bool, model: Model | Judge, command: str, files: Sequence[CaseFile], out: Path, progress: Progress
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
    with _open(model, f"{command} {out.name}") as (run, tracker):
        tracker.log_params({**asdict(run.identity), "command": command, "out": str(out.resolve())})
        tracker.log_data("images", hash_images(files, progress).record())
        yield
        # That of the scores lies in a folder of its own, and where no case was taken there is no other.
        for log in sorted(out.rglob(AUDIT_FILE)):
            tracker.log_artifact(log, None if log.parent == out else log.parent.relative_to(out).as_posix())


@contextmanager
def tracked_calibration(
    wanted: bool, run: Judge, command: str, files: Sequence[CaseFile], result: Path, progress: Progress
) -> Iterator[None]:
    """Records a calibration likewise: hashes, labelled cases, and the file that it writes into the run.

    Args:
        wanted: Whether to; else nothing is done.
        run: The finished run.
        command: Name of the call.
        files: The labelled cases.
        result: The file, which becomes an artifact with its hash when the block ends without an exception.
        progress: Told how far hashing the cases is.

    Raises:
        TrackingError: The run was not recorded, or the store cannot be reached.
    """
    if not wanted:
        yield
        return
    with _open(run, f"{command} {run.path.resolve().name}") as (_, tracker):
        identity = asdict(run.identity)
        tracker.log_params({"model_hash": identity["model_hash"], "reward_hash": identity["reward_hash"]})
        tracker.log_params({"command": command})
        tracker.log_data("labelled", hash_labelled(common_folder(files), files, progress).record())
        yield
        tracker.log_params({f"{result.stem}_hash": hash_file(result)})
        tracker.log_artifact(result)


@contextmanager
def _open(model: Model | Judge, name: str) -> Iterator[tuple[FinishedRun, Tracker]]:
    """A record within that of a finished run."""
    if not isinstance(model, FinishedRun) or model.config is None:
        raise TrackingError(
            f"{model.name}: is no run of `medfm-rl adapt`, so there is no record to add to; leave out --track"
        )
    with open_within(model.config.tracking, model.path, name) as tracker:
        yield model, tracker
