"""`adapt` by one process and by two, on SIMULATED echo: are the results the same, and how much sooner is the second."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safetensors.torch import load_file

from benchmarks.harness.budgets import adapt_budget, trial_budget
from benchmarks.harness.laboratory import adapt_config, train_once
from benchmarks.harness.recording import BENCHMARKS
from benchmarks.harness.shifts import ECHO
from medfm_rl.data.layouts import SIMULATION_RECORD
from medfm_rl.data.ultrasound.phantom import simulate_dataset
from medfm_rl.data.ultrasound.vendors import vendor
from medfm_rl.runs.folder import RunFolder
from medfm_rl.settings import (
    DataSettings,
    NetworkSettings,
    PreprocessingSettings,
    SourceTrainingSettings,
    TrainSourceConfig,
)
from medfm_rl.settings.files import dump_config
from medfm_rl.workflows.adapt.choosing.selection import Selection

_FULL: Final = {"iterations": 1, **adapt_budget((150, 16), (160, 80), (150, 16), (12, 16, 6), {})}
_QUICK: Final = {"iterations": 1, **trial_budget(8, 4)}
_ROUNDING = 2
"""Times the difference that a second thread makes: results that differ by more are not the same but for rounding."""


def adapting(folder: Path, quick: bool) -> dict[str, Any]:
    """Seconds of the whole command by one process of one thread, by two of one thread, and by one of two threads.

    Args:
        folder: Data, the source model and the runs.
        quick: Whether a tiny run stands for the other.
    """
    side, patients = (32, 9) if quick else (96, 24)
    source, target = (
        _simulated(folder / f"{name}-{side}", name, patients, side, first)
        for name, first in (("cart", 1), ("handheld", 101))
    )
    model = folder / f"model-{side}"
    train_once(
        TrainSourceConfig(
            data=DataSettings(path=source),
            structures=dict(ECHO),
            output=model,
            network=NetworkSettings(channels=(4, 8) if quick else (16, 32, 64, 128)),
            preprocessing=PreprocessingSettings(size=(side, side)),
            training=SourceTrainingSettings(epochs=2 if quick else 10, batch_size=8),
        )
    )
    seconds, runs = {}, {}
    for name, devices, threads in (("one", 1, 1), ("two", 2, 1), ("one_with_two_threads", 1, 2)):
        out = folder / f"run-{name}"
        shutil.rmtree(out, ignore_errors=True)
        settings = {"device": "cpu", "seed": 0, **(_QUICK if quick else _FULL)}
        config = adapt_config({"kind": "torch", "folder": model}, target, source, out, "echo_apical", settings)
        file = folder / f"{name}.yaml"
        file.write_text(dump_config(config))
        start = time.perf_counter()
        command = [sys.executable, "-m", "medfm_rl", "adapt", str(file), "--devices", str(devices)]
        variables = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True, cwd=BENCHMARKS.parent, env=variables)
        seconds[name], runs[name] = time.perf_counter() - start, RunFolder(out)
    return {
        "seconds": seconds,
        "speedup": seconds["one"] / seconds["two"],
        "speedup_of_two_threads": seconds["one"] / seconds["one_with_two_threads"],
        **_compared(runs),
    }


def _compared(runs: Mapping[str, RunFolder]) -> dict[str, Any]:
    """How far the results of two processes, and of two threads, are from that of one, and what was chosen.

    Two threads add numbers in another order than one, as two processes do: what that makes of a weight is what rounding
    makes of it, which Adam's steps do not keep small.
    """
    weights = {name: load_file(next(run.model.glob("*.safetensors"))) for name, run in runs.items()}
    one = weights.pop("one")
    apart = {name: {key: (one[key] - found[key]).abs() for key in one} for name, found in weights.items()}
    count = sum(value.numel() for value in one.values())
    mean = {name: sum(float(value.sum()) for value in found.values()) / count for name, found in apart.items()}
    chosen = {name: Selection.read(run.last_selection).chosen for name, run in runs.items()}
    return {
        "mean_difference": mean,
        "largest_difference": {
            name: max(float(value.max()) for value in found.values()) for name, found in apart.items()
        },
        "largest_weight": max(float(value.abs().max()) for value in one.values()),
        "chosen": chosen,
        "same": mean["two"] <= _ROUNDING * mean["one_with_two_threads"] and chosen["one"] == chosen["two"],
    }


def _simulated(folder: Path, name: str, patients: int, side: int, first: int) -> Path:
    if not (folder / SIMULATION_RECORD).exists():
        simulate_dataset(folder, vendor(name), patients, seed=0, size=(side, side), first=first)
    return folder
