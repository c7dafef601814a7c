"""The cells of the adaptation benchmark, made: one method on one shift with one seed each."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.adaptation.cells import (
    NONE,
    OURS,
    SOURCE_FREE,
    UPPER,
    Scores,
    cell_file,
    harm_rate,
    measure,
    read_cell,
)
from benchmarks.baselines import BASELINES, Problem
from benchmarks.harness.laboratory import Laboratory, files_of, read_selection
from benchmarks.harness.recording import quiet
from medfm_rl.adapters import SegmenterAdapter, TorchModuleAdapter
from medfm_rl.data.files import write_json
from medfm_rl.policies import ACTOR
from medfm_rl.runs.finished import FinishedRun, load_run
from medfm_rl.runs.folder import SOURCE, RunFolder
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.training_images import load_images, load_labelled

_RUN = "run"
METHODS = (NONE, *BASELINES, SOURCE_FREE, OURS, UPPER)


class Stopwatch:
    """Wall time of work that may be killed and go on: what was spent is kept in a file, a few seconds apart at most.

    What a kill undoes and is done again counts twice.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before = float(json.loads(path.read_text())["seconds"]) if path.exists() else 0.0
        self.start = self.written = time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self.start

    def progress(self, stage: str, done: int, total: int) -> None:
        if time.perf_counter() - self.written > 5:
            self.written = time.perf_counter()
            self.keep()
        quiet(stage, done, total)

    def keep(self) -> float:
        """Writes down, and returns, the seconds that were spent."""
        seconds = self.seconds
        write_json(self.path, {"seconds": seconds})
        return seconds


class MethodCells:
    """The cells of the methods in one laboratory.

    Args:
        laboratory: One shift with one seed.
    """

    def __init__(self, laboratory: Laboratory) -> None:
        self.laboratory = laboratory
        self.shift = laboratory.shift

    def folder(self, method: str) -> Path:
        return cell_file(self.laboratory.runs, self.shift.name, method, self.laboratory.seed).parent

    def run_of(self, method: str) -> FinishedRun:
        """The run of `ours` or `ours-source-free` whose cell is complete."""
        return load_run(self.folder(method) / _RUN, "cpu")

    def scores(self, method: str) -> Scores:
        """The scores of a complete cell on the held-out target patients."""
        return read_cell(self.folder(method) / "cell.json").held_out

    def make(self, method: str) -> None:
        """Makes a cell, unless it is complete."""
        path = self.folder(method) / "cell.json"
        if path.exists():
            return
        print(f"  {method}", flush=True)
        segmenter, seconds, selection = self._adapt(method)
        held_out = self._measure(segmenter, self.shift.folders.held_out)
        before = held_out if method == NONE else self.scores(NONE)
        write_json(
            path,
            {
                "shift": self.shift.name,
                "method": method,
                "seed": self.laboratory.seed,
                "quick": self.laboratory.budget.trial,
                "wall_seconds": seconds,
                "harm_rate": harm_rate(before, held_out),
                "selection": selection,
                "held_out": held_out.to_json(),
                "source_held_out": self._measure(segmenter, self.shift.folders.source_held_out).to_json(),
                "environment": dict(self.laboratory.started_in),
            },
        )

    def _measure(self, segmenter: SegmenterAdapter, data: Path) -> Scores:
        anatomy = self.laboratory.anatomy(segmenter)
        return measure(segmenter.segment, files_of(data), anatomy, self.shift.is_echo)

    def _adapt(self, method: str) -> tuple[SegmenterAdapter, float, dict[str, Any] | None]:
        """The adapted segmenter, the seconds that it took, and what the selection chose from where there is one."""
        if method == NONE:
            return self.laboratory.source_model(), 0.0, None
        if method == UPPER:
            folder, seconds = self.laboratory.trained(self.shift.folders.target)
            return TorchModuleAdapter.load(folder), seconds, None
        return self._ours(method) if method in (OURS, SOURCE_FREE) else self._baseline(method)

    def _baseline(self, method: str) -> tuple[SegmenterAdapter, float, None]:
        baseline, source_model = BASELINES[method], self.laboratory.source_model()
        target = load_images(files_of(self.shift.folders.target), source_model, quiet, "target images")
        images, masks = load_labelled(files_of(self.shift.folders.source), source_model, quiet, "source images")
        problem = Problem(
            source_model,
            target,
            None if baseline.source_free else (images, masks[:]),
            masks[:],
            self.laboratory.anatomy(source_model),
            self.laboratory.seed,
        )
        start = time.perf_counter()
        adapted = baseline.adapt(problem, quiet)
        return adapted, time.perf_counter() - start, None

    def _ours(self, method: str) -> tuple[SegmenterAdapter, float, dict[str, Any]]:
        config = self.laboratory.config(self.folder(method) / _RUN, with_source=method == OURS)
        watch = Stopwatch(self.folder(method) / "elapsed.json")
        run = adapt(config, resume=True, progress=watch.progress)
        # A kill while the cell is measured must not cost what is known by now.
        seconds = watch.keep()
        selection = read_selection(run)
        hindsight = self._hindsight(run, [candidate.name for candidate in selection.candidates])
        # The largest part of a run, and nothing that is done from here on reads it.
        shutil.rmtree(run.actions, ignore_errors=True)
        chosen, last = selection.chosen, list(hindsight)[-1]
        return (
            TorchModuleAdapter.load(run.model),
            seconds,
            {
                "chosen": chosen,
                "hindsight_dice": hindsight,
                "regret": max(hindsight.values()) - hindsight[chosen],
                "last_minus_selected": hindsight[last] - hindsight[chosen],
            },
        )

    def _hindsight(self, run: RunFolder, names: list[str]) -> dict[str, float]:
        """Dice of every candidate on the held-out target patients, which the selection does not see."""
        policy = self.laboratory.source_model()
        initial = {name: value.clone() for name, value in policy.state_dict().items()}
        found = {}
        for name in names:
            policy.load_state_dict(initial if name == SOURCE else load_file(run.candidate_weights(name) / ACTOR))
            found[name] = self.laboratory.mean_dice(policy)
        return found
