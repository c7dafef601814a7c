"""Correction at test time: are masks that scoring flags put right on real shifts, and by what?

    python -m benchmarks.correction.run [--shifts ...] [--methods ...] [--seeds 0 1 2] [--runs FOLDER]
    python -m benchmarks.correction.run --report-only   # table from the cells that there are
    python -m benchmarks.correction.run --quick         # minutes: shows that it runs, measures nothing

On the shifts, splits and models of `benchmarks.adaptation.run`, whose runs are gone on with: the held-out target
patients, segmented by the source model and by the adapted model, and scored by the run's `quality.json`. Flagged are
the masks with the verdict correct, which `medfm-rl correct` takes. The segmenter that has made them corrects them;
those of the source model are also corrected by the adapted segmenter, as `medfm-rl correct --masks` does. The worst
decile is that of the lowest predicted Dice, flagged or not. Each method proposes a mask for every one of these cases;
the run's verifier accepts it, or the original is handed back. Where scoring has suspended its promises for the batch,
nothing is changed and what the verifier accepts is only proposed, as `medfm-rl correct` does. No target label is read
before the proposals are scored.

- gain: Dice of what is handed back minus that of the original, in the worst decile and among the flagged.
- harm: what is handed back has lost more than one Dice point; among all flagged, and among the accepted.
- unassessed: the same of the proposals themselves, whatever the verifier says.

A cell is one method on the masks of one model on one shift with one seed; it is complete when its file is there, and is
then skipped. Intervals are 95 %, paired, from draws of patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.adaptation.cells import NONE, OURS
from benchmarks.adaptation.methods import MethodCells
from benchmarks.correction.report import GIVEN, MODELS, cell_file, report
from benchmarks.harness.assessing import controller_of, verdicts_of
from benchmarks.harness.command_line import add_results, add_shifts, begin_on_shifts, each_laboratory, parser_of
from benchmarks.harness.laboratory import Laboratory
from benchmarks.harness.recording import once
from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.correction import CaseCorrector, Verifier
from medfm_rl.correction.methods import make_corrector
from medfm_rl.data.files import write_json
from medfm_rl.metrics.scores import score_case
from medfm_rl.quality.controller import QualityController
from medfm_rl.reward.shape_prior import ShapePrior
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.settings import CorrectionSettings
from medfm_rl.types import LabelledCase, LabelMap
from medfm_rl.workflows.deploy.correction_terms import for_given_masks

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
"""Settings of `correct` by the names that the table has for them."""
MAKERS = {NONE: (NONE, NONE), OURS: (OURS, OURS), GIVEN: (NONE, OURS)}
"""Who has made the masks, and who corrects them."""


class CorrectionCells:
    """The cells of the methods in one laboratory."""

    def __init__(self, laboratory: Laboratory) -> None:
        self.laboratory = laboratory

    def make(self, methods: Sequence[str]) -> None:
        """Makes the cells that are missing."""
        missing = {model: [method for method in methods if not self._cell(model, method).exists()] for model in MODELS}
        if not any(missing.values()):
            return
        cells = MethodCells(self.laboratory)
        for model in (NONE, OURS):
            cells.make(model)
        run = cells.run_of(OURS)
        controller = controller_of(run)
        if controller is None:
            print("  no quality.json: the run has held out too few patients")
            return
        segmenters = {NONE: self.laboratory.source_model(), OURS: run.segmenter}
        for model, makers in MAKERS.items():
            if not missing[model]:
                continue
            maker, corrector = (segmenters[name] for name in makers)
            assessed = self._assessed(controller, makers[0], maker)
            for method in missing[model]:
                print(f"  correcting masks of {MODELS[model]} by {method}", flush=True)
                write_json(self._cell(model, method), self._correct(run, maker, corrector, method, assessed))

    def _cell(self, model: str, method: str) -> Path:
        return cell_file(self.laboratory.runs, self.laboratory.shift.name, model, method, self.laboratory.seed)

    def _assessed(self, controller: QualityController, model: str, segmenter: SegmenterAdapter) -> dict[str, Any]:
        """Verdicts and predicted Dice of the masks of a model, which say what is to be corrected."""

        def assess() -> dict[str, Any]:
            cases = [file.read() for file in self.laboratory.held_out()]
            batch = controller.settle([controller.assess(case, segmenter.segment(case)) for case in cases])
            return {"case_ids": [report.case_id for report in batch.reports], **verdicts_of(batch)}

        return once(self._cell(model, "verdicts"), assess)

    def _correct(
        self,
        run: FinishedRun,
        maker: SegmenterAdapter,
        segmenter: SegmenterAdapter,
        method: str,
        assessed: Mapping[str, Any],
    ) -> dict[str, Any]:
        settings = CorrectionSettings.model_validate(METHODS[method])
        if maker is not segmenter:
            settings = for_given_masks(settings)
        corrector = self._corrector(run, segmenter, settings)
        decile = worst_decile(assessed["predicted"])
        rows = []
        for index, file in enumerate(self.laboratory.held_out()):
            if assessed["verdicts"][index] != "correct" and not decile[index]:
                continue
            labelled = file.read_labelled(segmenter.schema)
            original = None if maker is segmenter else maker.segment(labelled.case)
            result = corrector.correct(labelled.case, original=original)
            rows.append(
                {
                    "case_id": file.case_id,
                    "patient_id": file.patient_id,
                    "verdict": assessed["verdicts"][index],
                    "worst_decile": decile[index],
                    "accepted": result.accepted,
                    "seconds": result.seconds,
                    "verifier_gain": None if result.verification is None else result.verification.gain,
                    "before": self._measure(labelled, result.before, segmenter),
                    "after": self._measure(labelled, result.after, segmenter),
                }
            )
        return {
            "cases": len(assessed["case_ids"]),
            "state": assessed["state"],
            "settings": settings.model_dump(),
            "rows": rows,
            "environment": dict(self.laboratory.started_in),
        }

    @staticmethod
    def _corrector(run: FinishedRun, segmenter: SegmenterAdapter, settings: CorrectionSettings) -> CaseCorrector:
        """A corrector with the rewards and the verifier of the run, for any segmenter."""
        verifier = Verifier(run.held_out_reward, run.anatomy, settings)
        return make_corrector(segmenter, run.reward, verifier, lambda: ShapePrior.load(run.folder.shape_prior))

    def _measure(self, labelled: LabelledCase, mask: LabelMap, segmenter: SegmenterAdapter) -> dict[str, Any]:
        anatomy = self.laboratory.anatomy(segmenter)
        mean = score_case(labelled.case, mask, labelled.ground_truth, segmenter.schema, anatomy)[-1]
        return {"dice": mean.dice, "hd95": mean.hd95 if np.isfinite(mean.hd95) else None, "valid": mean.valid}


def worst_decile(predicted: Sequence[float]) -> list[bool]:
    """Which cases are the tenth with the lowest predicted Dice, at least one."""
    count = max(1, round(len(predicted) / 10))
    worst = set(np.argsort(predicted, kind="stable")[:count].tolist())
    return [row in worst for row in range(len(predicted))]


def main() -> None:
    parser = parser_of(__doc__)
    add_shifts(parser)
    add_results(parser)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    arguments = parser.parse_args()
    name, runs, started_in = begin_on_shifts(arguments, "correction")
    if not arguments.report_only:
        for laboratory in each_laboratory(arguments, runs, started_in):
            CorrectionCells(laboratory).make(arguments.methods)
    report(runs, list(METHODS), arguments.shifts, arguments.seeds, started_in, arguments.results or name)


if __name__ == "__main__":
    main()
