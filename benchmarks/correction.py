"""Are masks that scoring flags put right at test time, on real shifts, and by what?

    python benchmarks/correction.py [--shifts ...] [--methods ...] [--seeds 0 1 2] [--runs benchmarks/runs/adaptation]
    python benchmarks/correction.py --report-only   # table from the cells that there are
    python benchmarks/correction.py --quick         # minutes: shows that it runs, measures nothing

On the shifts, splits and models of `adaptation.py`, whose runs are gone on with: the held-out target patients,
segmented by the source model and by the adapted model, and scored by the run's `quality.json`. Flagged are the masks
with the verdict correct, which `medfm-rl correct` takes. The segmenter that has made them corrects them; those of the
source model are also corrected by the adapted segmenter, as `medfm-rl correct --masks` does. The worst decile is that
of the lowest predicted Dice, flagged or not. Each method proposes a mask for every one of these cases; the run's
verifier accepts it, or the original is handed back. Where scoring has suspended its promises for the batch, nothing is
changed and what the verifier accepts is only proposed, as `medfm-rl correct` does. No target label is read before the
proposals are scored.

- gain: Dice of what is handed back minus that of the original, in the worst decile and among the flagged.
- harm: what is handed back has lost more than one Dice point; among all flagged, and among the accepted.
- unassessed: the same of the proposals themselves, whatever the verifier says.

A cell is one method on the masks of one model on one shift with one seed; it is complete when its file is there, and is
then skipped. Intervals are 95 %, paired, from draws of patients.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from adaptation import Budget, Laboratory
from cells import NONE, OURS
from command_line import add_results, add_shifts, begin, each_shift, parser_of
from correction_report import GIVEN, MODELS, cell_file, report
from medfm_rl.workflows.deploy.correctors import for_given_masks, make_corrector
from quality_control import QUICK_HERE
from quality_control_report import predicted_dice
from recording import quiet
from shifts import Shift

from medfm_rl.adapters import SegmenterAdapter, TorchModuleAdapter
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.data.files import write_json
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.metrics.scores import score_case
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.runs.folder import RunFolder
from medfm_rl.settings import AdaptConfig, CorrectionSettings, DataSettings
from medfm_rl.settings.files import load_config
from medfm_rl.types import LabelledCase, LabelMap
from medfm_rl.workflows.calibrate.from_source import write_default_quality
from medfm_rl.workflows.deploy.score import load_controller

METHODS: dict[str, dict[str, str]] = {
    "views": {"method": "views"},
    "none": {"method": "none"},
    "components": {"method": "components"},
    "shape-prior": {"method": "shape-prior"},
    "tta": {"method": "tta"},
    "tent": {"method": "tent"},
    "intent": {"method": "intent"},
    "memo": {"method": "memo"},
    "reward-logits": {"method": "optimise"},
    "reward-norm": {"method": "optimise", "optimise": "norm"},
    "ppo-norm": {"method": "optimise", "optimise": "norm", "objective": "ppo"},
}


MAKERS = {NONE: (NONE, NONE), OURS: (OURS, OURS), GIVEN: (NONE, OURS)}
"""Who has made the masks, and who corrects them."""


class Bench:
    """Cells of one shift with one seed."""

    def __init__(self, shift: Shift, seed: int, runs: Path, budget: Budget, started_in: Mapping[str, Any]) -> None:
        self.shift = shift
        self.seed = seed
        self.runs = runs
        self.laboratory = Laboratory(shift, seed, runs, budget, started_in)
        self.started_in = started_in

    def run(self, methods: Sequence[str]) -> None:
        """Makes the cells that are missing."""
        missing = {model: [method for method in methods if not self._cell(model, method).exists()] for model in MODELS}
        if not any(missing.values()):
            return
        for model in (NONE, OURS):
            self.laboratory.run(model)
        run = RunFolder(self.laboratory.cell_folder(OURS) / "run")
        if write_default_quality(run, load_config(run.config_file, AdaptConfig), quiet) is None:
            print("  no quality.json: the run has held out too few patients")
            return
        segmenters = {
            NONE: TorchModuleAdapter.load(self.laboratory.trained(self.shift.folders.source)[0]),
            OURS: TorchModuleAdapter.load(run.model),
        }
        for model, makers in MAKERS.items():
            if not missing[model]:
                continue
            maker, corrector = (segmenters[name] for name in makers)
            verified = self._judged(run, makers[0], maker)
            for method in missing[model]:
                print(f"  correcting masks of {MODELS[model]} by {method}", flush=True)
                write_json(self._cell(model, method), self._correct(run, maker, corrector, method, verified))

    def _cell(self, model: str, method: str) -> Path:
        return cell_file(self.runs, self.shift.name, model, method, self.seed)

    def _judged(self, run: RunFolder, model: str, segmenter: SegmenterAdapter) -> dict[str, Any]:
        """Verdicts and predicted Dice of the masks of a model, and which of them are to be corrected."""
        path = self._cell(model, "verdicts")
        if not path.exists():
            controller = load_controller(run.path, "cpu")
            reports = []
            for file in _files(self.shift.folders.held_out):
                case = file.read()
                reports.append(controller.assess(case, segmenter.segment(case)))
            batch = controller.settle(reports)
            settled = batch.reports
            write_json(
                path,
                {
                    "state": batch.state,
                    "case_ids": [report.case_id for report in settled],
                    "verdicts": [report.verdict for report in settled],
                    "predicted": [predicted_dice(report) for report in settled],
                },
            )
        content: dict[str, Any] = json.loads(path.read_text())
        return content

    def _correct(
        self,
        run: RunFolder,
        maker: SegmenterAdapter,
        segmenter: SegmenterAdapter,
        method: str,
        verified: Mapping[str, Any],
    ) -> dict[str, Any]:
        settings = CorrectionSettings.model_validate(METHODS[method])
        if maker is not segmenter:
            settings = for_given_masks(settings)
        corrector = make_corrector(run, segmenter, RewardEnsemble.load(run.final_reward), settings)
        decile = worst_decile(verified["predicted"])
        rows = []
        for index, file in enumerate(_files(self.shift.folders.held_out)):
            if verified["verdicts"][index] != "correct" and not decile[index]:
                continue
            labelled = file.read_labelled(segmenter.schema)
            original = None if maker is segmenter else maker.segment(labelled.case)
            result = corrector.correct(labelled.case, original=original)
            rows.append(
                {
                    "case_id": file.case_id,
                    "patient_id": file.patient_id,
                    "verdict": verified["verdicts"][index],
                    "worst_decile": decile[index],
                    "accepted": result.accepted,
                    "seconds": result.seconds,
                    "verifier_gain": None if result.verification is None else result.verification.gain,
                    "before": self._measure(labelled, result.before, segmenter),
                    "after": self._measure(labelled, result.after, segmenter),
                }
            )
        return {
            "cases": len(verified["case_ids"]),
            "state": verified["state"],
            "settings": settings.model_dump(),
            "rows": rows,
            "environment": dict(self.started_in),
        }

    def _measure(self, labelled: LabelledCase, mask: LabelMap, segmenter: SegmenterAdapter) -> dict[str, Any]:
        anatomy = load_anatomy(self.shift.anatomy, segmenter.schema)
        mean = score_case(labelled.case, mask, labelled.ground_truth, segmenter.schema, anatomy)[-1]
        return {"dice": mean.dice, "hd95": mean.hd95 if np.isfinite(mean.hd95) else None, "valid": mean.valid}


def worst_decile(predicted: Sequence[float]) -> list[bool]:
    """Which cases are the tenth with the lowest predicted Dice, at least one."""
    count = max(1, round(len(predicted) / 10))
    worst = set(np.argsort(predicted, kind="stable")[:count].tolist())
    return [row in worst for row in range(len(predicted))]


def _files(folder: Path) -> list[CaseFile]:
    return find_cases(DataSettings(path=folder))


def main() -> None:
    parser = parser_of(__doc__)
    add_shifts(parser)
    add_results(parser)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    arguments = parser.parse_args()
    name, runs, started_in = begin(arguments, "correction")
    if not arguments.report_only:
        budget = QUICK_HERE if arguments.quick else Budget()
        for shift, seed in each_shift(arguments, runs, budget.most_patients):
            Bench(shift, seed, runs, budget, started_in).run(arguments.methods)
    report(runs, list(METHODS), arguments.shifts, arguments.seeds, started_in, arguments.results or name)


if __name__ == "__main__":
    main()
