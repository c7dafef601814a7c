"""Processes that write to a feedback store, each an interpreter of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.feedback_entries import block, ef, on

from medfm_rl.feedback import CorrectedMask, FeedbackStore
from medfm_rl.feedback import store as store_module

ROOT = Path(__file__).parents[2]
CALLS = 5
KILLED = 9


def start(task: str, place: Path | str, number: int = 0) -> subprocess.Popen[str]:
    """Starts `write` or `die` in a process of its own."""
    paths = (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", ""))
    return subprocess.Popen(
        [sys.executable, "-m", "support.feedback_writers", task, str(place), str(number)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stderr=subprocess.PIPE,
        text=True,
    )


def write(place: str, number: int) -> None:
    """Adds a mask and a measurement of a reviewer, call by call."""
    with FeedbackStore.create(place) as store:
        for index in range(CALLS):
            mask = block(slice(0, 1 + index), label=1 + number % 2)
            entry = CorrectedMask(**on(f"p{index}_a", f"r{number}"), mask_sha256=mask.sha256)
            store.add([entry, ef(40 + index, f"p{index}", reviewer=f"r{number}")], [mask])


def die(place: str, number: int) -> None:
    """Ends in the middle of a transaction, as a power cut would."""

    def end(*args: object) -> None:
        os._exit(KILLED)

    store_module.require_in_force = end  # type: ignore[assignment]
    FeedbackStore.open(place).add([ef(50, f"p{patient}") for patient in range(50)])


if __name__ == "__main__":
    {"write": write, "die": die}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
