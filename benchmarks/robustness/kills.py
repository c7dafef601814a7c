"""Commands that are killed by SIGKILL at random moments and called again: is the result that of one that ran through?"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.recording import once
from benchmarks.robustness.children import kill_after, run
from benchmarks.robustness.commands import COMMANDS, Command, Ground
from benchmarks.robustness.contents import contents, differences

_LEAST = 0.02
"""Seconds that a call has at least before it is killed."""
_IMPORTED_LATE = ("monai.networks.nets", "mapie.regression", "sklearn.isotonic", "PIL.JpegImagePlugin")
"""What the commands import when they need it: in each child that would take ten times as long as its work."""


def kill_commands(runs: Path, count: int, seed: int, commit: str) -> dict[str, Any]:
    """Kills each command a number of times; what was found by an earlier call is kept.

    Args:
        runs: Where data, run and findings are kept.
        count: Kills of each command.
        seed: Of the moments.
        commit: Of the code that runs.

    Returns:
        By command: kills, how many results were unequal, the seconds of an uninterrupted call, and the trials.
    """
    for module in _IMPORTED_LATE:
        import_module(module)
    ground = Ground(runs / "ground")
    ground.prepare()
    found = {}
    for name, command in COMMANDS.items():
        trial = _Trial(ground, command, runs / "trial" / name, commit)
        whole = once(runs / "kills" / f"{name}.json", trial.uninterrupted)
        trials = [
            once(
                runs / "kills" / f"{name}-{number:03d}.json",
                partial(trial.killed, whole, [seed, number, zlib.crc32(name.encode())]),
            )
            for number in range(count)
        ]
        killed = [one for one in trials if one["was_at_work"]]
        found[name] = {
            "seconds": whole["seconds"],
            "kills": len(killed),
            "commits": sorted({one["commit"] for one in killed}),
            "unequal": sum(bool(one["differing"]) for one in killed),
            "trials": trials,
        }
    return found


class _Trial:
    def __init__(self, ground: Ground, command: Command, place: Path, commit: str) -> None:
        self.ground, self.command, self.place, self.commit = ground, command, place, commit
        self.log = place.with_suffix(".log")

    def uninterrupted(self) -> dict[str, Any]:
        self._clear()
        seconds = run(self._call, self.log)
        first = contents(self.place / self.command.results)
        self._clear()
        # The first reads everything from a cold disk.
        seconds = min(seconds, run(self._call, self.log))
        again = contents(self.place / self.command.results)
        if differences(first, again):
            raise RuntimeError(f"two uninterrupted calls differ in {differences(first, again)}")
        return {"seconds": seconds, "contents": first}

    def killed(self, whole: dict[str, Any], seeds: list[int]) -> dict[str, Any]:
        moment = float(np.random.default_rng(seeds).uniform(_LEAST, max(2 * _LEAST, whole["seconds"])))
        self._clear()
        was_at_work = kill_after(self._call, self.log, moment)
        left = sum(path.is_file() for path in (self.place / self.command.results).rglob("*"))
        run(self._call, self.log)
        differing = differences(whole["contents"], contents(self.place / self.command.results))
        return {
            "moment": moment,
            "was_at_work": was_at_work,
            "files_left": left,
            "differing": differing,
            "commit": self.commit,
        }

    @property
    def _call(self) -> Callable[[], None]:
        return partial(self.command.call, self.ground.folder, self.place)

    def _clear(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        if self.command.needs_run:
            shutil.copytree(self.ground.run, self.place / "run")
