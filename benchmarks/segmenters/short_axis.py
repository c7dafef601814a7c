"""The whole loop in 3-D, on drawn hearts in short axis: adaptation between two SIMULATED MR scanners.

    python -m benchmarks.segmenters.short_axis [--seeds 0 1 2] [--runs FOLDER]
    python -m benchmarks.segmenters.short_axis --quick   # minutes: shows that it runs, measures nothing

Volumes of 16 planes of 64 x 64 voxels (6 x 2.5 x 2.5 mm), two per patient. A 3-D UNet learns from 30 labelled patients
of the first scanner, is adapted to 20 unlabelled patients of the second, and is measured on 20 others; a second UNet,
trained on the labels of those 20, is the upper bound. The run's own `quality.json` then assesses the masks of the
source and the adapted model on the same 20, without ground truth. It needs no data and no download. It says that the
loop works in 3-D and what it costs; of real scanners it says nothing.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.assessing import verdicts_of
from benchmarks.harness.budgets import Size, adapt_budget, trial_budget
from benchmarks.harness.command_line import add_quick, add_runs, add_seeds, begin, plain_parser
from benchmarks.harness.laboratory import adapt_config, files_of, read_selection, train_once
from benchmarks.harness.pictures import draw_median_case
from benchmarks.harness.recording import RESULTS, RUNS, once, print_results, quiet, write_results
from benchmarks.segmenters.short_axis_phantom import BRIGHT, FAINT, SCHEMA, SHAPE, Scanner, simulate_dataset
from benchmarks.segmenters.short_axis_report import summarise, table
from medfm_rl.adapters import SegmenterAdapter, TorchModuleAdapter
from medfm_rl.correction.acceptance import HARM
from medfm_rl.data.files import write_json
from medfm_rl.data.layouts import SIMULATION_RECORD, CaseFile
from medfm_rl.metrics.overlap import dice
from medfm_rl.metrics.scores import MEAN
from medfm_rl.runs.finished import FinishedRun, load_run
from medfm_rl.settings import (
    AdaptConfig,
    DataSettings,
    NetworkSettings,
    PreprocessingSettings,
    SourceTrainingSettings,
    TrainSourceConfig,
)
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.evaluate.comparison import compare_models

ANATOMY = "cardiac_short_axis"
# Volumes cost more than frames: all numbers are smaller than the defaults.
_CHANGES = {"collect": {"shard_images": 20}, "shape_prior": {"epochs": 10}, "reward": {"validate_every": 50}}
SIZE = Size(
    source=30,
    target=20,
    held_out=20,
    epochs=40,
    adapt=adapt_budget(fine_tuning=(200, 4), collect=(120, 60), reward=(300, 8), ppo=(12, 6, 6), changes=_CHANGES),
)
QUICK = Size(source=18, target=6, held_out=3, epochs=2, adapt=trial_budget(9, 3))


class ShortAxis:
    """One seed.

    Args:
        seed: Of hearts, training and adaptation.
        size: How much is done.
        folder: Data, models and the run.
    """

    def __init__(self, seed: int, size: Size, folder: Path) -> None:
        self.seed = seed
        self.size = size
        self.folder = folder
        self.source = self._simulated("bright", BRIGHT, 1, size.source)
        self.target = self._simulated("faint", FAINT, 1001, size.target)
        self.held_out = self._simulated("faint-held-out", FAINT, 2001, size.held_out)

    def run(self, picture: Path | None) -> dict[str, Any]:
        """Trains, adapts, measures; what was measured before is read again."""
        return once(self.folder / "result.json", lambda: self._result(picture))

    def _result(self, picture: Path | None) -> dict[str, Any]:
        source, upper = self._trained("source", self.source), self._trained("upper", self.target)
        run, minutes = self._adapted(source)
        files = files_of(self.held_out)
        models = {
            "source": TorchModuleAdapter.load(source),
            "adapted": run.segmenter,
            "upper": TorchModuleAdapter.load(upper),
        }
        comparison = compare_models(models["source"], models["adapted"], files, ANATOMY, quiet)
        bound = compare_models(models["source"], models["upper"], files, ANATOMY, quiet)
        before, after = (
            np.array([score.dice for score in evaluation.of(MEAN)])
            for evaluation in (comparison.before, comparison.after)
        )
        if picture is not None:
            draw_median_case(models["source"], run, files, comparison, picture)
        return {
            "summaries": {
                "source": [asdict(row) for row in comparison.before.summary],
                "adapted": [asdict(row) for row in comparison.after.summary],
                "upper": [asdict(row) for row in bound.after.summary],
            },
            "gain": {name: asdict(value) for name, value in comparison.differences.items()},
            "upper_gain": {name: asdict(value) for name, value in bound.differences.items()},
            "harmed": float((after < before - HARM).mean()),
            "chosen": read_selection(run.folder).chosen,
            "minutes": minutes,
            "assessed": {name: self._assessed(run, models[name], files) for name in ("source", "adapted")},
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }

    def _simulated(self, name: str, scanner: Scanner, first: int, patients: int) -> Path:
        out = self.folder / "data" / name
        if not (out / SIMULATION_RECORD).exists():
            simulate_dataset(out, scanner, patients, self.seed, first, lambda *_: None)
        return out

    def _trained(self, name: str, data: Path) -> Path:
        config = TrainSourceConfig(
            data=DataSettings(path=data),
            structures={name: SCHEMA.ids[SCHEMA.index_of(name)] for name in SCHEMA.structures},
            output=self.folder / name,
            network=NetworkSettings(),
            preprocessing=PreprocessingSettings(size=SHAPE),
            training=SourceTrainingSettings(epochs=self.size.epochs, batch_size=4),
            seed=self.seed,
        )
        train_once(config)
        return config.output

    def _adapted(self, source: Path) -> tuple[FinishedRun, float | None]:
        """The run and its minutes; None where it was interrupted, for what was done before was not timed."""
        timed, fresh = self.folder / "minutes.json", not (self.folder / "run").exists()
        start = time.perf_counter()
        run = adapt(self._config(source), resume=True, progress=quiet)
        if fresh:
            write_json(timed, {"minutes": (time.perf_counter() - start) / 60})
        return load_run(run.path, "cpu"), json.loads(timed.read_text())["minutes"] if timed.exists() else None

    def _config(self, source: Path) -> AdaptConfig:
        changes = {"iterations": 1, "seed": self.seed, **self.size.adapt}
        return adapt_config(
            {"kind": "torch", "folder": source}, self.target, self.source, self.folder / "run", ANATOMY, changes
        )

    def _assessed(self, run: FinishedRun, segmenter: SegmenterAdapter, files: Sequence[CaseFile]) -> dict[str, Any]:
        """Predicted and true mean Dice of the masks of a model, and what was said of the batch."""
        controller = run.controller()
        reports, truth, seconds = [], [], 0.0
        for file in files:
            labelled = file.read_labelled(segmenter.schema)
            mask = segmenter.segment(labelled.case)
            start = time.perf_counter()
            reports.append(controller.assess(labelled.case, mask))
            seconds += time.perf_counter() - start
            truth.append(float(dice(mask, labelled.ground_truth, segmenter.schema.classes).mean()))
        return {
            **verdicts_of(controller.settle(reports)),
            "dice": truth,
            "seconds_per_case": seconds / len(files),
        }


def main() -> None:
    parser = plain_parser(__doc__, threads=1)
    add_seeds(parser)
    add_runs(parser)
    add_quick(parser)
    arguments = parser.parse_args()
    started_in = begin(arguments)
    size = QUICK if arguments.quick else SIZE
    runs: Path = arguments.runs or RUNS / "simulated_short_axis" / ("quick" if arguments.quick else "full")
    results = []
    for seed in arguments.seeds:
        print(f"seed {seed}", flush=True)
        drawn = seed == arguments.seeds[0] and not arguments.quick
        picture = RESULTS / "simulated_short_axis.png" if drawn else None
        results.append(ShortAxis(seed, size, runs / f"seed-{seed}").run(picture))
    summary, text = summarise(results), table(arguments.seeds, results, size.held_out)
    if arguments.quick:
        print_results(summary, text)
    else:
        write_results("simulated_short_axis", started_in, arguments.seeds, results, summary, text)


if __name__ == "__main__":
    main()
