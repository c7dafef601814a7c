"""A 3-D nnU-Net of ACDC (Dijon) adapted to Sunnybrook (Toronto): the left ventricle in short-axis MR of two hospitals.

    python -m benchmarks.short_axis.run [--seeds 0] [--reviewed 0 4] [--runs FOLDER]
    python -m benchmarks.short_axis.run --quick   # minutes: shows that it runs, measures nothing

nnU-Net plans, preprocesses and trains a small `3d_fullres` by its own code on the volumes of 40 patients of ACDC, four
of five for training; 10 others say how good it is at home. `adapt` sees the images of 12 patients of Sunnybrook, and
with `--reviewed 4` the experts' masks of four of them. The model is exported, and `nnUNetv2_predict_from_modelfolder`
segments the volumes of 11 other patients with the model as it was, as it is now, and as nnU-Net trains it further on
the masks of the 12: Dice is measured on the masks in those files. Then the run's own `quality.json` assesses masks
without ground truth. What a volume is, which slices and patients are left out and which spacing is assumed:
`benchmarks/short_axis/volumes.py`. A call goes on where an earlier one ended.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.adaptation.methods import Stopwatch
from benchmarks.feedback.reviewers import patients_in_order, review, target_without_masks
from benchmarks.harness.assessing import assess_own_masks, controller_of, verdicts_of
from benchmarks.harness.command_line import add_quick, add_runs, begin, plain_parser
from benchmarks.harness.laboratory import adapt_config, files_of, read_selection
from benchmarks.harness.nnunet_official import Start, Training, copy_images, predict, score, train
from benchmarks.harness.recording import RESULTS, RUNS, once, print_results, write_results
from benchmarks.harness.shifts import HELD_OUT, SOURCE, SOURCE_HELD_OUT, TARGET
from benchmarks.short_axis.report import FAILURE, draw, summarise, table
from benchmarks.short_axis.sizes import FULL, QUICK, RECIPE, ShortAxisSize
from benchmarks.short_axis.volumes import write_parts
from medfm_rl.correction.acceptance import HARM
from medfm_rl.data.files import write_json
from medfm_rl.data.labels import read_labels
from medfm_rl.metrics.overlap import dice
from medfm_rl.metrics.scores import MEAN, Evaluation, compare
from medfm_rl.runs.finished import FinishedRun, load_run
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.export import export_model

ANATOMY = "complete"
_SOURCE, _UPPER = 921, 922
"""Numbers of the nnU-Net data sets."""
NAME = "short_axis"


class ShortAxis:
    """One seed.

    Args:
        seed: Of training and adaptation; the split of the patients is the same for all.
        size: How much is done.
        folder: Data, models, runs and masks.
    """

    def __init__(self, seed: int, size: ShortAxisSize, folder: Path) -> None:
        self.seed = seed
        self.size = size
        self.folder = folder
        most = {
            SOURCE: size.source,
            SOURCE_HELD_OUT: size.source_held_out,
            TARGET: size.target,
            HELD_OUT: size.held_out,
        }
        self.parts = write_parts(folder / "data", most)
        self.held_out = files_of(self.parts[HELD_OUT])

    def run(self, reviewed: Sequence[int]) -> dict[str, Any]:
        """Trains, adapts, measures; what was measured before is read again.

        Args:
            reviewed: Numbers of target patients whose masks an adaptation is given; one adaptation for each.
        """
        result: dict[str, Any] = {"source": once(self.folder / "source.json", self._source)}
        adapted = {}
        for k in reviewed:
            run, minutes = self._adapt(k)
            result.setdefault("upper", once(self.folder / "upper.json", self._upper))
            measured = once(self.folder / f"adapted-{k}.json", partial(self._measured, run, k))
            adapted[str(k)] = {**measured, "minutes": minutes}
        return {**result, "adapted": adapted}

    def _trained(self, training: Training, part: str) -> Path:
        """A model of nnU-Net; its minutes, where nothing interrupted it, are beside it."""
        record, begun = self.folder / f"{training.title}-minutes.json", self.folder / "nnUNet_results" / training.name
        fresh, start = not begun.exists(), time.perf_counter()
        model = train(RECIPE, training, self.parts[part], self.folder)
        if fresh:
            write_json(record, {"minutes": (time.perf_counter() - start) / 60})
        return model

    def _minutes(self, title: str) -> float | None:
        record = self.folder / f"{title}-minutes.json"
        return float(json.loads(record.read_text())["minutes"]) if record.exists() else None

    def source_model(self) -> Path:
        """The source model, trained once."""
        training = Training(_SOURCE, "ACDC", self.size.epochs, self.size.iterations, seed=self.seed)
        return self._trained(training, SOURCE)

    def _source(self) -> dict[str, Any]:
        found = self._segmented("source", self.source_model(), SOURCE_HELD_OUT)
        return {"minutes": self._minutes("ACDC"), "summary": [asdict(row) for row in found.summary]}

    def _upper(self) -> dict[str, Any]:
        """The source model trained on with the labels of all target patients."""
        start = Start(_SOURCE, self.source_model() / "fold_0" / "checkpoint_final.pth")
        training = Training(
            _UPPER, "Sunnybrook", self.size.upper_epochs, self.size.iterations, fold="all", seed=self.seed, start=start
        )
        found = self._segmented("upper", self._trained(training, TARGET), HELD_OUT, training.fold)
        return {
            "minutes": self._minutes("Sunnybrook"),
            "summary": [asdict(row) for row in found.summary],
            "dice": dice_of(found),
        }

    def _segmented(self, name: str, model: Path, part: str, fold: str = "0") -> Evaluation:
        """Scores of the masks that nnU-Net's own command writes for a part; written once."""
        files = files_of(self.parts[part])
        images = copy_images(files, self.folder / "images" / part, RECIPE.ending)
        return score(RECIPE, files, predict(model, images, self._masks(name, part), True, fold), ANATOMY)

    def _masks(self, name: str, part: str = HELD_OUT) -> Path:
        return self.folder / "masks" / f"{part}-{name}"

    def _adapt(self, k: int) -> tuple[FinishedRun, float]:
        """The run with k reviewed patients, and its minutes."""
        folder = self.folder / f"adapted-{k}"
        target = target_without_masks(self.parts[TARGET], self.folder / "data" / "target-without-masks")
        changes: dict[str, Any] = {"iterations": 1, "seed": self.seed, **self.size.adapt}
        if k > 0:
            changes["feedback"] = {"store": str(self._store(folder / "feedback.sqlite", k))}
        segmenter = {"kind": "nnunet", "folder": self.source_model(), "folds": (0,)}
        config = adapt_config(segmenter, target, self.parts[SOURCE], folder / "run", ANATOMY, changes)
        watch = Stopwatch(folder / "elapsed.json")
        if not (folder / "minutes.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            adapt(config, resume=True, progress=watch.progress)
            write_json(folder / "minutes.json", {"minutes": watch.keep() / 60})
        minutes = float(json.loads((folder / "minutes.json").read_text())["minutes"])
        return load_run(folder / "run", "cpu"), minutes

    def _store(self, path: Path, k: int) -> Path:
        """The experts' masks of k target patients, in a random order that the seed decides."""
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            order = patients_in_order(files_of(self.parts[TARGET]), self.seed)
            review(path, self.parts[TARGET], order[:k], RECIPE.schema)
        return path

    def _measured(self, run: FinishedRun, k: int) -> dict[str, Any]:
        """What an adaptation brought on the held-out patients, and what its quality model says of the masks."""
        exported = self.folder / f"adapted-{k}" / "exported"
        if not exported.exists():
            export_model(run.folder.path, exported)
        name = f"adapted-{k}"
        before = self._segmented("source", self.source_model(), HELD_OUT)
        after = self._segmented(name, exported, HELD_OUT)
        upper = score(RECIPE, self.held_out, self._masks("upper"), ANATOMY)
        found = {"before": dice_of(before), "after": dice_of(after)}
        return {
            "chosen": read_selection(run.folder).chosen,
            "before": [asdict(row) for row in before.summary],
            "after": [asdict(row) for row in after.summary],
            "dice": found,
            "cases": [file.case_id for file in self.held_out],
            "gain": {structure: asdict(value) for structure, value in compare(before, after).items()},
            "against_upper": {structure: asdict(value) for structure, value in compare(upper, after).items()},
            "harmed": float((np.array(found["after"]) < np.array(found["before"]) - HARM).mean()),
            "assessed": {
                "source": self._assessed(run, self._masks("source")),
                "adapted": self._assessed(run, self._masks(name)),
            },
            "assessing": assess_own_masks(run, self.held_out, RECIPE.schema, FAILURE),
        }

    def _assessed(self, run: FinishedRun, masks: Path) -> Mapping[str, Any]:
        """Predicted and true Dice of the masks in files, and what was said of them; nothing without a controller."""
        controller = controller_of(run)
        if controller is None:
            return {}
        reports, truth = [], []
        for file in self.held_out:
            labelled = file.read_labelled(RECIPE.schema)
            path = masks / f"{file.case_id}{RECIPE.ending}"
            mask = read_labels(path, RECIPE.schema, labelled.case.shape, labelled.case.geometry)
            reports.append(controller.assess(labelled.case, mask))
            truth.append(float(dice(mask, labelled.ground_truth, RECIPE.schema.classes).mean()))
        return {**verdicts_of(controller.settle(reports)), "dice": truth}


def dice_of(evaluation: Evaluation) -> list[float]:
    """Dice of each case, in their order."""
    return [row.dice for row in evaluation.of(MEAN)]


def main() -> None:
    parser = plain_parser(__doc__, threads=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--reviewed", type=int, nargs="+", default=[0], metavar="K", help="target patients whose masks are given"
    )
    add_runs(parser)
    add_quick(parser)
    arguments = parser.parse_args()
    started_in = begin(arguments)
    # Without feedback is what the others are compared with.
    reviewed = sorted({0, *arguments.reviewed})
    size = QUICK if arguments.quick else FULL
    runs: Path = arguments.runs or RUNS / NAME / ("quick" if arguments.quick else "full")
    results = []
    for seed in arguments.seeds:
        print(f"seed {seed}", flush=True)
        results.append(ShortAxis(seed, size, runs / f"seed-{seed}").run(reviewed))
    summary, text = summarise(results), table(arguments.seeds, results, size, arguments.quick)
    if arguments.quick:
        print_results(summary, text)
    else:
        write_results(NAME, started_in, arguments.seeds, results, summary, text)
        draw(results, arguments.quick, RESULTS / f"{NAME}.png")


# nnU-Net starts processes that import this file again.
if __name__ == "__main__":
    main()
