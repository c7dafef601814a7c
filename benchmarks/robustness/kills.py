"""Commands that are killed by SIGKILL at random moments and called again: is the result the same?"""

from __future__ import annotations

import shutil
import time
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


def kill_commands(runs: Path, count: int, seed: int, commit: str, minutes: float) -> dict[str, Any]:
    """Kills each command a number of times; what an earlier call of the same commit found is kept.

    Args:
        runs: Where data, run and findings are kept.
        count: Kills of each command.
        seed: Of the moments.
        commit: Of the code that runs.
        minutes: After which no command is killed any more; what was found before counts all the same.

    Returns:
        By command: kills, how many results were unequal, the seconds of an uninterrupted call, and the trials.
    """
    for module in _IMPORTED_LATE:
        import_module(module)
    ground = Ground(runs / "ground")
    deadline = time.monotonic() + 60 * minutes
    if minutes > 0:
        ground.prepare()
    trials = {name: _Trial(ground, command, runs, name, commit) for name, command in COMMANDS.items()}
    made: dict[str, list[dict[str, Any]]] = {name: [] for name in COMMANDS}
    # Command by command within a number: a benchmark that is cut short has some of each.
    for number in range(count):
        for name, trial in trials.items():
            if trial.is_known(number) or time.monotonic() < deadline:
                made[name].append(trial.killed(seed, number))
    return {name: _summary(trials[name], found) for name, found in made.items()}


def _summary(trial: _Trial, trials: list[dict[str, Any]]) -> dict[str, Any]:
    killed = [one for one in trials if one["was_at_work"]]
    return {
        "seconds": trial.whole()["seconds"] if trials else None,
        "kills": len(killed),
        "unequal": sum(bool(one["differing"]) for one in killed),
        "commits": sorted({one["commit"] for one in killed}),
        "trials": trials,
    }


class _Trial:
    """A command that is killed, in a place of its own that is the same each time: results name their folders."""

    def __init__(self, ground: Ground, command: Command, runs: Path, name: str, commit: str) -> None:
        self.ground, self.command, self.name, self.commit = ground, command, name, commit
        self.place = runs / "trial" / name
        # What another version of the code left behind is not what this one would.
        self.kept = runs / "kills" / commit[:12]
        self.log = self.place.with_suffix(".log")

    def whole(self) -> dict[str, Any]:
        """An uninterrupted call."""
        return once(self.kept / f"{self.name}.json", self._uninterrupted)

    def is_known(self, number: int) -> bool:
        """Whether an earlier call of the benchmark has killed this one."""
        return self._cell(number).exists()

    def killed(self, seed: int, number: int) -> dict[str, Any]:
        """A call that is killed, and another that goes on."""
        return once(self._cell(number), partial(self._killed, seed, number))

    def _cell(self, number: int) -> Path:
        return self.kept / f"{self.name}-{number:03d}.json"

    def _uninterrupted(self) -> dict[str, Any]:
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

    def _killed(self, seed: int, number: int) -> dict[str, Any]:
        whole = self.whole()
        rng = np.random.default_rng([seed, number, zlib.crc32(self.name.encode())])
        moment = float(rng.uniform(_LEAST, max(2 * _LEAST, whole["seconds"])))
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
