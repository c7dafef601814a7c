"""Adaptation against everything simpler that needs no labels either, on four shifts, and on none.

    python benchmarks/adaptation.py [--shifts ...] [--methods ...] [--seeds 0 1 2] [--runs benchmarks/runs/adaptation]
    python benchmarks/adaptation.py --report-only     # table and figure from the cells that there are
    python benchmarks/adaptation.py --quick           # minutes, on a few patients: shows that it runs, measures nothing

A cell is one method on one shift with one seed. It is complete when its `cell.json` is there, and is then skipped, so a
benchmark that was killed goes on; missing cells are shown as missing. The report keeps the shifts that an earlier one
had and this one was not asked for. Source models and upper bounds are trained once for each data set and seed. All
methods start from the same source model and see the same unlabelled target images; the networks see 112 x 112 pixels,
and masks are compared on the images' own grid. The segmenter has batch normalisation, because three of the rivals work
on nothing else.

`ours` is `medfm-rl adapt` with its default settings and the source at hand, `ours-source-free` the same without it.

Intervals are 95 %, from 10 000 draws of patients. Every case is averaged over the seeds first. That is the same as
drawing patients together with their results of all seeds: a patient's results from three seeds are no three patients.
The intervals say what other patients would change; what other seeds would change stands in `dice_by_seed`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from adaptation_report import report
from cells import NONE, OURS, SOURCE_FREE, UPPER, Scores, cell_file, harm_rate, measure, read_cell, write_experts
from command_line import add_results, add_shifts, begin, each_shift, parser_of
from recording import quiet
from rivals import RIVALS, Problem
from safetensors.torch import load_file
from shifts import Shift

from medfm_rl.adapters import SegmenterAdapter, TorchModuleAdapter
from medfm_rl.anatomy.profiles import Anatomy, load_anatomy
from medfm_rl.data.files import write_json
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.metrics.overlap import dice
from medfm_rl.policies import ACTOR
from medfm_rl.settings import (
    AdaptConfig,
    DataSettings,
    NetworkSettings,
    SourceTrainingSettings,
    TorchSettings,
    TrackingSettings,
    TrainSourceConfig,
)
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.train.source import train_source
from medfm_rl.workflows.training_images import load_images, load_labelled

NETWORK = NetworkSettings(channels=(16, 32, 64, 128, 256), residual_units=2, norm="batch")
BATCH = 16
METHODS = (NONE, *RIVALS, SOURCE_FREE, OURS, UPPER)


@dataclass(frozen=True)
class Budget:
    """How much is spent.

    Attributes:
        training_steps: Of each supervised training, whatever the number of its images.
        most_patients: Of each part of a shift; None for all of them.
        adapt: Changes to the default settings of `adapt`.
    """

    training_steps: int = 700
    most_patients: int | None = None
    adapt: Mapping[str, Any] = field(default_factory=dict)


QUICK = Budget(
    training_steps=60,
    most_patients=8,
    adapt={
        "iterations": 1,
        "fine_tuning": {"steps": 4},
        "collect": {"source_images": 8, "target_images": 8, "actions_per_image": 3},
        "shape_prior": {"epochs": 1},
        "reward": {"ensemble": 1, "steps": 4, "validate_every": 2, "network": {"channels": (8, 16)}},
        "ppo": {"updates": 2, "n_envs": 4, "n_epochs": 1, "eval_every": 1},
    },
)


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
            write_json(self.path, {"seconds": self.seconds})
        quiet(stage, done, total)


class Laboratory:
    """One shift with one seed: its source model, its upper bound, and the cells of its methods.

    Args:
        shift: Whose images are there.
        seed: Of everything.
        runs: Folder of the benchmark.
        budget: How much is spent.
        started_in: The environment that cells are made in.
    """

    def __init__(self, shift: Shift, seed: int, runs: Path, budget: Budget, started_in: Mapping[str, Any]) -> None:
        self.shift = shift
        self.seed = seed
        self.runs = runs
        self.budget = budget
        self.started_in = started_in

    def cell_folder(self, method: str) -> Path:
        return cell_file(self.runs, self.shift.name, method, self.seed).parent

    def run(self, method: str) -> None:
        """Makes a cell, unless it is complete."""
        path = self.cell_folder(method) / "cell.json"
        if path.exists():
            return
        print(f"  {method}", flush=True)
        segmenter, seconds, selection = self._adapt(method)
        held_out = self._measure(segmenter, self.shift.folders.held_out)
        before = held_out if method == NONE else read_cell(self.cell_folder(NONE) / "cell.json").held_out
        write_json(
            path,
            {
                "shift": self.shift.name,
                "method": method,
                "seed": self.seed,
                "quick": self.budget.training_steps == QUICK.training_steps,
                "wall_seconds": seconds,
                "harm_rate": harm_rate(before, held_out),
                "selection": selection,
                "held_out": held_out.to_json(),
                "source_held_out": self._measure(segmenter, self.shift.folders.source_held_out).to_json(),
                "environment": dict(self.started_in),
            },
        )

    def _adapt(self, method: str) -> tuple[SegmenterAdapter, float, dict[str, Any] | None]:
        """The adapted segmenter, the seconds that it took, and what the selection chose from where there is one."""
        source_folder, _ = self.trained(self.shift.folders.source)
        match method:
            case "none":
                return TorchModuleAdapter.load(source_folder), 0.0, None
            case "upper":
                folder, seconds = self.trained(self.shift.folders.target)
                return TorchModuleAdapter.load(folder), seconds, None
            case "ours" | "ours-source-free":
                return self._ours(method, source_folder)
        rival, source_model = RIVALS[method], TorchModuleAdapter.load(source_folder)
        target = load_images(self._files(self.shift.folders.target), source_model, quiet, "target images")
        source = load_labelled(self._files(self.shift.folders.source), source_model, quiet, "source images")
        problem = Problem(
            source_model,
            target,
            None if rival.source_free else source,
            source[1],
            self._anatomy(source_model),
            self.seed,
        )
        start = time.perf_counter()
        adapted = rival.adapt(problem, quiet)
        return adapted, time.perf_counter() - start, None

    def _ours(self, method: str, source_folder: Path) -> tuple[SegmenterAdapter, float, dict[str, Any]]:
        folder = self.cell_folder(method)
        config = self.config(method, source_folder, folder / "run")
        watch = Stopwatch(folder / "elapsed.json")
        run = adapt(config, resume=True, progress=watch.progress)
        # A kill while the cell is measured must not cost what is known by now.
        seconds = watch.seconds
        write_json(folder / "elapsed.json", {"seconds": seconds})
        selection = json.loads(run.selection(config.iterations - 1).read_text())
        names = [candidate["name"] for candidate in selection["candidates"]]
        hindsight = {}
        policy = TorchModuleAdapter.load(source_folder)
        initial = {name: value.clone() for name, value in policy.state_dict().items()}
        for name in names:
            policy.load_state_dict(initial if name == "source" else load_file(run.path / name / ACTOR))
            hindsight[name] = self.mean_dice(policy)
        # The largest part of a run, and nothing that is done from here on reads it.
        shutil.rmtree(run.actions, ignore_errors=True)
        chosen = selection["chosen"]
        return (
            TorchModuleAdapter.load(run.model),
            seconds,
            {
                "chosen": chosen,
                "hindsight_dice": hindsight,
                "regret": max(hindsight.values()) - hindsight[chosen],
                "last_minus_selected": hindsight[names[-1]] - hindsight[chosen],
            },
        )

    def config(self, method: str, source_folder: Path, output: Path) -> AdaptConfig:
        """What `ours` or `ours-source-free` adapts with."""
        data = {"source": DataSettings(path=self.shift.folders.source)} if method == OURS else {}
        return AdaptConfig(
            segmenter=TorchSettings(folder=source_folder),
            target=DataSettings(path=self.shift.folders.target),
            output=output,
            anatomy=self.shift.anatomy,
            tracking=TrackingSettings(uri=None),
            seed=self.seed,
            **data,
            **self.budget.adapt,
        )

    def trained(self, data: Path) -> tuple[Path, float]:
        """A model trained on a labelled data set with this seed, and the seconds that it took."""
        folder = self.runs / "models" / f"{data.name}-seed-{self.seed}"
        record = folder.with_name(f"{folder.name}.json")
        if not folder.exists():
            unfinished = folder.with_name(f"{folder.name}-unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            config = TrainSourceConfig(
                data=DataSettings(path=data),
                structures=dict(self.shift.structures),
                output=unfinished,
                network=NETWORK,
                training=SourceTrainingSettings(
                    epochs=max(1, round(self.budget.training_steps * BATCH / len(self._files(data)))), batch_size=BATCH
                ),
                seed=self.seed,
            )
            start = time.perf_counter()
            train_source(config, quiet)
            write_json(record, {"seconds": time.perf_counter() - start})
            unfinished.rename(folder)
        return folder, float(json.loads(record.read_text())["seconds"])

    def _measure(self, segmenter: SegmenterAdapter, data: Path) -> Scores:
        return measure(segmenter.segment, self._files(data), self._anatomy(segmenter), self.shift.is_echo)

    def mean_dice(self, segmenter: SegmenterAdapter) -> float:
        """Over the held-out target cases and the structures."""
        values = []
        for file in self._files(self.shift.folders.held_out):
            labelled = file.read_labelled(segmenter.schema)
            prediction = segmenter.segment(labelled.case)
            values.append(dice(prediction, labelled.ground_truth, segmenter.schema.num_classes).mean())
        return float(np.mean(values))

    def _anatomy(self, segmenter: SegmenterAdapter) -> Anatomy:
        return load_anatomy(self.shift.anatomy, segmenter.schema)

    @staticmethod
    def _files(data: Path) -> list[CaseFile]:
        return find_cases(DataSettings(path=data))


def main() -> None:
    parser = parser_of(__doc__)
    add_shifts(parser)
    add_results(parser)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    arguments = parser.parse_args()
    name, runs, started_in = begin(arguments, "adaptation")
    if not arguments.report_only:
        budget = QUICK if arguments.quick else Budget()
        for shift, seed in each_shift(arguments, runs, budget.most_patients):
            write_experts(shift, runs)
            laboratory = Laboratory(shift, seed, runs, budget, started_in)
            # No adaptation first: harm is against it.
            for method in (NONE, *(method for method in METHODS if method in arguments.methods)):
                laboratory.run(method)
    # The report shows everything that could be there, so that what is missing is seen; one beside it what was asked.
    methods = METHODS if arguments.results is None else [method for method in METHODS if method in arguments.methods]
    report(runs, arguments.shifts, methods, arguments.seeds, started_in, arguments.quick, arguments.results or name)


if __name__ == "__main__":
    main()
