"""A record in MLflow of what is made with a finished run, for who asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import TrackingError
from medfm_rl.runs.case_records import AUDIT_FILE
from medfm_rl.settings.files import load_config
from medfm_rl.runs.identity import identify
from medfm_rl.progress import Progress
from medfm_rl.runs.inputs import hash_images
from medfm_rl.runs.folder import RunFolder
from medfm_rl.settings import AdaptConfig
from medfm_rl.tracking import open_within


@contextmanager
def tracked_call(
    wanted: bool, path: Path, command: str, files: Sequence[CaseFile], out: Path, progress: Progress
) -> Iterator[None]:
    """Records a call as an MLflow run within that of the run that it uses: hashes, images and the audit log.

    Args:
        wanted: Whether to; else nothing is done.
        path: Run folder of `adapt`.
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
    run = RunFolder(path)
    if not run.config_file.exists():
        raise TrackingError(
            f"{path}: is no run of `medfm-rl adapt`, so there is no record to add to; leave out --track"
        )
    settings = load_config(run.config_file, AdaptConfig).tracking
    with open_within(settings, path, f"{command} {out.name}") as tracker:
        tracker.log_params({**asdict(identify(path)), "command": command, "out": str(out.resolve())})
        tracker.log_data("images", hash_images(files, progress).record())
        yield
        # That of the scores lies in a folder of its own, and where no case was taken there is no other.
        for log in sorted(out.rglob(AUDIT_FILE)):
            tracker.log_artifact(log, None if log.parent == out else log.parent.relative_to(out).as_posix())
