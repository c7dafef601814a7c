"""Are masks that scoring flags put right at test time, on real shifts, and by what?

    python benchmarks/correction.py [--shifts ...] [--methods ...] [--seeds 0 1 2] [--runs benchmarks/runs/adaptation]
    python benchmarks/correction.py --report-only   # table from the cells that there are
    python benchmarks/correction.py --quick         # minutes: shows that it runs, measures nothing

On the shifts, splits and models of `adaptation.py`, whose runs are gone on with: the held-out target patients,
segmented by the source model and by the adapted model, and scored by the run's `quality.json`. Flagged are the masks
with the verdict correct, which `medfm-rl correct` takes. The worst decile is that of the lowest predicted Dice, flagged
or not. Each method proposes a mask for every one of these cases; the run's judge accepts it, or the original is handed
back. Where scoring has suspended its promises for the batch, nothing is changed and what the judge accepts is only
proposed, as `medfm-rl correct` does. No target label is read before the proposals are scored.

- gain: Dice of what is handed back minus that of the original, in the worst decile and among the flagged.
- harm: what is handed back has lost more than one Dice point; among all flagged, and among the accepted.
- unjudged: the same of the proposals themselves, whatever the judge says.

A cell is one method on the masks of one model on one shift with one seed; it is complete when its file is there, and is
then skipped. Intervals are 95 %, paired, from draws of patients.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from adaptation import Budget, Laboratory, quiet
from cells import HARM, NONE, OURS
from command_line import add_shifts, begin, each_shift, parser_of
from quality_control import QUICK_HERE
from recording import write_results
from shifts import TITLES, Shift

from medfm_rl.adapters import SegmenterAdapter, TorchModuleAdapter
from medfm_rl.data.files import write_json
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.metrics.bootstrap import paired_bootstrap
from medfm_rl.metrics.scores import score_case
from medfm_rl.metrics.validity import load_anatomy
from medfm_rl.pipeline.calibrate import write_default_quality
from medfm_rl.pipeline.config_file import load_config
from medfm_rl.pipeline.correct import make_corrector
from medfm_rl.pipeline.run_folder import RunFolder
from medfm_rl.pipeline.score import load_controller
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.settings import AdaptConfig, CorrectionSettings, DataSettings
from medfm_rl.types import LabelledCase, LabelMap

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
MODELS = {NONE: "source", OURS: "adapted"}
DEFAULT = "views"
"""The method that the others are compared with: the default settings."""


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
        for model in MODELS:
            self.laboratory.run(model)
        run = RunFolder(self.laboratory.cell_folder(OURS) / "run")
        if write_default_quality(run, load_config(run.config_file, AdaptConfig), quiet) is None:
            print("  no quality.json: the run has held out too few patients")
            return
        segmenters = {
            NONE: TorchModuleAdapter.load(self.laboratory.trained(self.shift.folders.source)[0]),
            OURS: TorchModuleAdapter.load(run.model),
        }
        for model, segmenter in segmenters.items():
            if not missing[model]:
                continue
            judged = self._judged(run, model, segmenter)
            for method in missing[model]:
                print(f"  correcting masks of {model} by {method}", flush=True)
                write_json(self._cell(model, method), self._correct(run, segmenter, method, judged))

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
            predicted = [report.mean.predicted_dice for report in settled]
            # A mask that lacks a structure has no prediction: it is worse than any that has one.
            write_json(
                path,
                {
                    "state": batch.state,
                    "case_ids": [report.case_id for report in settled],
                    "verdicts": [report.verdict for report in settled],
                    "predicted": [0.0 if value is None else value for value in predicted],
                },
            )
        content: dict[str, Any] = json.loads(path.read_text())
        return content

    def _correct(
        self, run: RunFolder, segmenter: SegmenterAdapter, method: str, judged: Mapping[str, Any]
    ) -> dict[str, Any]:
        settings = CorrectionSettings.model_validate(METHODS[method])
        corrector = make_corrector(run, segmenter, RewardEnsemble.load(run.final_reward), settings)
        decile = worst_decile(judged["predicted"])
        rows = []
        for index, file in enumerate(_files(self.shift.folders.held_out)):
            if judged["verdicts"][index] != "correct" and not decile[index]:
                continue
            labelled = file.read_labelled(segmenter.schema)
            result = corrector.optimize(labelled.case)
            rows.append(
                {
                    "case_id": file.case_id,
                    "patient_id": file.patient_id,
                    "verdict": judged["verdicts"][index],
                    "worst_decile": decile[index],
                    "accepted": result.accepted,
                    "seconds": result.seconds,
                    "judge_gain": None if result.judgement is None else result.judgement.gain,
                    "before": self._measure(labelled, result.before, segmenter),
                    "after": self._measure(labelled, result.after, segmenter),
                }
            )
        return {
            "cases": len(judged["case_ids"]),
            "state": judged["state"],
            "settings": settings.model_dump(),
            "rows": rows,
            "environment": dict(self.started_in),
        }

    def _measure(self, labelled: LabelledCase, mask: LabelMap, segmenter: SegmenterAdapter) -> dict[str, Any]:
        anatomy = load_anatomy(self.shift.anatomy, segmenter.schema)
        mean = score_case(labelled.case, mask, labelled.ground_truth, segmenter.schema, anatomy)[-1]
        return {"dice": mean.dice, "hd95": mean.hd95 if np.isfinite(mean.hd95) else None, "valid": mean.valid}


def cell_file(runs: Path, shift: str, model: str, method: str, seed: int) -> Path:
    return runs / "correction-cells" / shift / model / method / f"seed-{seed}.json"


def worst_decile(predicted: Sequence[float]) -> list[bool]:
    """Which cases are the tenth with the lowest predicted Dice, at least one."""
    count = max(1, round(len(predicted) / 10))
    worst = set(np.argsort(predicted, kind="stable")[:count].tolist())
    return [row in worst for row in range(len(predicted))]


def _files(folder: Path) -> list[CaseFile]:
    return find_cases(DataSettings(path=folder))


def figures(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What is measured of one cell."""
    rows = handed_back(cell)
    flagged = [row for row in rows if row["verdict"] == "correct"]
    proposed = [row for row in cell["rows"] if row["verdict"] == "correct" and row["accepted"]]
    decile = [row for row in rows if row["worst_decile"]]
    accepted = [row for row in flagged if row["accepted"]]
    harmed = [row for row in accepted if _harmed(row)]
    found: dict[str, Any] = {
        "cases": cell["cases"],
        "state": cell["state"],
        "flagged": len(flagged),
        "judge_accepts": len(proposed),
        "judge_accepts_harmed": sum(_harmed(row) for row in proposed),
        "accepted": len(accepted),
        "accepted_harmed": len(harmed),
        "accepted_valid": sum(row["after"]["valid"] for row in accepted),
        "proposals_harmed": sum(_harmed(row) for row in flagged),
        "seconds_median": float(np.median([row["seconds"] for row in rows])) if rows else None,
        "worst_decile": _change(decile, judged=True),
        "worst_decile_unjudged": _change(decile, judged=False),
        "flagged_change": _change(flagged, judged=True),
        "flagged_unjudged": _change(flagged, judged=False),
    }
    return found


def handed_back(cell: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows, none of them accepted where the batch is unlike the calibration: the masks stay."""
    return [{**row, "accepted": row["accepted"] and cell["state"] != "suspended"} for row in cell["rows"]]


def _harmed(row: Mapping[str, Any]) -> bool:
    return bool(row["after"]["dice"] < row["before"]["dice"] - HARM)


def _returned(row: Mapping[str, Any], judged: bool) -> Mapping[str, Any]:
    returned: Mapping[str, Any] = row["after"] if row["accepted"] or not judged else row["before"]
    return returned


def _change(rows: Sequence[Mapping[str, Any]], judged: bool) -> dict[str, Any]:
    """Dice, HD95 and validity before and after, and the gain of Dice with its interval."""
    before, after = [row["before"] for row in rows], [_returned(row, judged) for row in rows]
    found: dict[str, Any] = {"cases": len(rows)}
    for key in ("dice", "hd95", "valid"):
        # The distance of a structure that is missing is not known: such a case is left out on both sides.
        pairs = [
            (float(one[key]), float(two[key]))
            for one, two in zip(before, after, strict=True)
            if one[key] is not None and two[key] is not None
        ]
        means = np.mean(pairs, axis=0).tolist() if pairs else [None, None]
        found |= {f"{key}_before": means[0], f"{key}_after": means[1]}
    return found | _interval("gain", rows, [item["dice"] for item in before], [item["dice"] for item in after])


def _interval(
    name: str, rows: Sequence[Mapping[str, Any]], before: Sequence[float], after: Sequence[float]
) -> dict[str, Any]:
    patients = [row["patient_id"] for row in rows]
    if len(set(patients)) < 2:
        return {name: float(np.mean(np.subtract(after, before))) if rows else None}
    difference = paired_bootstrap(np.array(before), np.array(after), patients)
    return {name: difference.mean, f"{name}_low": difference.low, f"{name}_high": difference.high}


def ahead(ours: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """By how much ours is better on the worst decile, with its paired interval."""
    first, second = ([row for row in handed_back(cell) if row["worst_decile"]] for cell in (ours, other))
    if [row["case_id"] for row in first] != [row["case_id"] for row in second]:
        raise ValueError("the two methods were measured on other cases")
    dice = [[_returned(row, True)["dice"] for row in rows] for rows in (second, first)]
    return _interval("ours_minus_this", first, *dice)


def report(runs: Path, shifts: Sequence[str], seeds: Sequence[int], started_in: dict[str, Any], name: str) -> None:
    """Writes results and table from the cells that there are."""
    results: dict[str, Any] = {}
    for shift in shifts:
        for model in MODELS:
            for seed in seeds:
                paths = {method: cell_file(runs, shift, model, method, seed) for method in METHODS}
                cells = {method: json.loads(path.read_text()) for method, path in paths.items() if path.exists()}
                for method, cell in cells.items():
                    found = figures(cell)
                    if DEFAULT in cells and method != DEFAULT:
                        found |= ahead(cells[DEFAULT], cell)
                    by_method = results.setdefault(shift, {}).setdefault(model, {}).setdefault(method, {})
                    by_method[str(seed)] = found
    write_results(name, started_in, list(seeds), results, summarise(results), table(results, shifts))


def summarise(results: Mapping[str, Any]) -> dict[str, Any]:
    """Of the source and of the adapted model, by method: gains averaged over cells, rates of all their cases."""
    summary: dict[str, Any] = {}
    for model, title in MODELS.items():
        cells: dict[str, list[Mapping[str, Any]]] = {}
        for models in results.values():
            for method, seeds in models.get(model, {}).items():
                cells.setdefault(method, []).extend(seeds.values())
        gains = {method: [cell["worst_decile"]["gain"] for cell in found] for method, found in cells.items()}
        seconds = {method: [cell["seconds_median"] for cell in found] for method, found in cells.items()}
        rates = {
            "harm_rate_accepted": ("accepted_harmed", "accepted"),
            "harm_rate_all": ("accepted_harmed", "flagged"),
            "validity_accepted": ("accepted_valid", "accepted"),
            "corrected": ("accepted", "flagged"),
        }
        summary[title] = {
            name: {method: _rate(found, *parts) for method, found in cells.items()} for name, parts in rates.items()
        }
        summary[title] |= {
            "worst_decile_gain": {method: float(np.mean(values)) for method, values in gains.items()},
            "seconds_per_case_median": {method: float(np.median(values)) for method, values in seconds.items()},
        }
    return summary


def _rate(cells: Sequence[Mapping[str, Any]], part: str, whole: str) -> float | None:
    total = sum(cell[whole] for cell in cells)
    return sum(cell[part] for cell in cells) / total if total else None


def table(results: Mapping[str, Any], shifts: Sequence[str]) -> str:
    """Markdown: one row for each shift, model and method, means over the seeds."""
    lines = [
        "# Correction at test time\n",
        "Dice in points; the worst tenth is that of the lowest predicted Dice. Intervals: 95 %, first seed. Where the",
        "batch is suspended, what the judge accepts is proposed and not handed back.\n",
        "| shift | masks of | batch | method | worst tenth, Dice before | gain | without the judge | flagged | "
        "judge accepts | of these harmed | corrected | harmed of corrected | of flagged | valid of corrected | "
        "HD95 of flagged | seconds |",
        f"|{'---|' * 16}",
    ]
    for shift in shifts:
        if shift not in results:
            lines.append(f"| {TITLES[shift]} | missing |{' |' * 14}")
        for model, methods in results.get(shift, {}).items():
            for method, seeds in methods.items():
                found = list(seeds.values())
                decile, flagged = found[0]["worst_decile"], found[0]["flagged_change"]
                interval = (
                    f" [{100 * decile['gain_low']:+.1f}, {100 * decile['gain_high']:+.1f}]"
                    if "gain_low" in decile
                    else ""
                )
                row = [
                    _points([cell["worst_decile"]["dice_before"] for cell in found], "{:.1f}"),
                    _points([cell["worst_decile"]["gain"] for cell in found], "{:+.1f}") + interval,
                    _points([cell["worst_decile_unjudged"]["gain"] for cell in found], "{:+.1f}"),
                    str(sum(cell["flagged"] for cell in found)),
                    _percent(_rate(found, "judge_accepts", "flagged")),
                    _percent(_rate(found, "judge_accepts_harmed", "judge_accepts")),
                    _percent(_rate(found, "accepted", "flagged")),
                    _percent(_rate(found, "accepted_harmed", "accepted")),
                    _percent(_rate(found, "accepted_harmed", "flagged")),
                    _percent(_rate(found, "accepted_valid", "accepted")),
                    ""
                    if flagged["hd95_before"] is None
                    else f"{flagged['hd95_before']:.1f} to {flagged['hd95_after']:.1f}",
                    f"{np.median([cell['seconds_median'] or 0 for cell in found]):.1f}",
                ]
                state = " and ".join(sorted({cell["state"] for cell in found}))
                lines.append(f"| {TITLES[shift]} | {MODELS[model]} | {state} | {method} | {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def _points(values: Sequence[float], form: str) -> str:
    return form.format(100 * float(np.mean(values)))


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def main() -> None:
    parser = parser_of(__doc__)
    add_shifts(parser)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    arguments = parser.parse_args()
    name, runs, started_in = begin(arguments, "correction")
    if not arguments.report_only:
        budget = QUICK_HERE if arguments.quick else Budget()
        for shift, seed in each_shift(arguments, runs, budget.most_patients):
            Bench(shift, seed, runs, budget, started_in).run(arguments.methods)
    report(runs, arguments.shifts, arguments.seeds, started_in, name)


if __name__ == "__main__":
    main()
