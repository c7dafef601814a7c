"""The end of a run, for a person to look at: scores on held-out cases and the report."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.loading import load_segmenter
from medfm_rl.data.files import hash_folder
from medfm_rl.data.layouts import CaseFile, find_cases, is_simulated
from medfm_rl.data.locks import alone_in
from medfm_rl.metrics.calibration import ReliabilityCurve
from medfm_rl.metrics.scores import MEAN
from medfm_rl.networks import choose_device
from medfm_rl.progress import Progress, silent
from medfm_rl.reports.adaptation import ReportCase, ReportData, write_report
from medfm_rl.reward.dataset import ActionDataset
from medfm_rl.reward.training_report import RewardTrainingReport
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.runs.folder import RunFolder, current_name
from medfm_rl.runs.inputs import load_inputs, read_labelled, write_inputs
from medfm_rl.runs.learned_feedback import LearnedFeedback
from medfm_rl.runs.models import Model
from medfm_rl.settings import AdaptConfig
from medfm_rl.tracking import open_tracker
from medfm_rl.types import where_said
from medfm_rl.version import __version__
from medfm_rl.workflows.adapt.choosing.cross_fit import why_none_decide
from medfm_rl.workflows.adapt.choosing.decision import decision_in_words, table_of
from medfm_rl.workflows.adapt.choosing.selection import Selection
from medfm_rl.workflows.deploy.predict import segment_with_reward
from medfm_rl.workflows.evaluate.comparison import Comparison, compare_models
from medfm_rl.workflows.evaluate.evaluation import write_evaluation

_SHOWN_WITHOUT_TRUTH = 6
_LOG = logging.getLogger(__name__)
_CURVES = {"reward of the sampled actions": "rollout_reward_mean", "KL to where PPO started": "train_kl_reference"}


def report_run(run: RunFolder, config: AdaptConfig, progress: Progress = silent) -> Comparison | None:
    """Evaluates a finished run where there is labelled target data, and writes `report.html`.

    This is the only place of a run that reads ground truth of the target.

    Raises:
        UserError: The evaluation data cannot be used.
    """
    with alone_in(run.path):
        device = choose_device(config.device)
        adapted, source = FinishedRun(run.path, config.device), load_segmenter(config.segmenter).to(device)
        files = find_cases(config.evaluation if config.evaluation is not None else config.target)
        comparison, data = None, None
        if config.evaluation is not None:
            data = read_labelled(config.evaluation, progress)
            comparison = compare_models(source, adapted.segmenter, files, config.anatomy, progress)
            write_evaluation(
                run.evaluation, {"source": comparison.before, "adapted": comparison.after}, comparison.differences
            )
            for problem in comparison.after.problems.values():
                _LOG.warning("evaluation: left out: %s", problem)
            write_inputs(run.evaluation / run.inputs.name, {"evaluation.path": data})
        write_report(run.report, _report(run, config, source, adapted, files, comparison))
        with open_tracker(config.tracking, run.path) as tracker:
            tracker.log_artifact(run.report)
            if data is not None:
                tracker.log_data("evaluation", data.record())
            if comparison is not None:
                for row in comparison.rows():
                    tracker.log_metrics(
                        {f"dice_{row.structure}_source": row.before, f"dice_{row.structure}": row.after}, 0
                    )
                for path in sorted(run.evaluation.iterdir()):
                    tracker.log_artifact(path, "evaluation")
        return comparison


def _report(
    run: RunFolder,
    config: AdaptConfig,
    source: SegmenterAdapter,
    adapted: FinishedRun,
    files: Sequence[CaseFile],
    comparison: Comparison | None,
) -> ReportData:
    selection = _read_selection(run)
    pairs = []
    if comparison is not None:
        pairs = [
            (old.dice, new.dice) for old, new in zip(comparison.before.of(MEAN), comparison.after.of(MEAN), strict=True)
        ]
    return ReportData(
        title="Adaptation report",
        simulated=any(is_simulated(data.path) for data in (config.target, config.evaluation) if data),
        schema=source.schema,
        rows=comparison.rows() if comparison else [],
        validity=_validity(comparison),
        paired_dice=pairs,
        cases=_cases(source, adapted, files, comparison),
        curves=_curves(run),
        reliability=_reliability(run),
        chosen=_decision(run, selection),
        choice=table_of(selection),
        provenance={
            **_hashes(adapted, config),
            "mode": "source-assisted" if config.source else "source-free",
            "seed": str(config.seed),
            "medfm-rl": __version__,
        },
    )


def _hashes(run: FinishedRun, config: AdaptConfig) -> dict[str, str]:
    """SHA-256 of what the run read and made, and where it was recorded, by the names that MLflow has."""
    inputs = load_inputs(run.folder.inputs) if run.folder.inputs.exists() else {}
    data = {f"data.{name.removesuffix('.path')}.hash": place.hash for name, place in inputs.items() if place.cases}
    hashes = asdict(run.identity)
    return {
        **{name: str(hashes[name]) for name in ("model_hash", "reward_hash")},
        "segmenter_hash": hash_folder(config.segmenter.folder),
        "actions_hash": ActionDataset(run.folder.actions).content_hash(),
        **data,
        **({} if hashes["mlflow_run_id"] is None else {"mlflow_run_id": hashes["mlflow_run_id"]}),
    }


def read_decision(run: RunFolder) -> str:
    """The outcome of the last selection of a run, in words."""
    return _decision(run, _read_selection(run))


def _decision(run: RunFolder, selection: Selection) -> str:
    """What was returned and by whose word, and where feedback did not decide, why not."""
    words = decision_in_words(selection)
    if selection.patients_gain is not None or not run.feedback.exists():
        return words
    reviewed = LearnedFeedback.read(run.feedback).reviewed
    drawn = {case.patient_id for case in reviewed if case.drawn}
    reason = why_none_decide(len(drawn), len({case.patient_id for case in reviewed} - drawn)) if reviewed else None
    return words if reason is None else f"{words} {reason}"


def _read_selection(run: RunFolder) -> Selection:
    """The last selection of a run."""
    return Selection.read(run.last_selection)


def _cases(
    source: SegmenterAdapter, adapted: Model, files: Sequence[CaseFile], comparison: Comparison | None
) -> list[ReportCase]:
    """The worst cases of the adapted model, the largest loss and gain, and the best; without truth, the first ones."""
    if comparison is None:
        return [show_case(source, adapted, file, None) for file in files[:_SHOWN_WITHOUT_TRUTH]]
    old = np.array([score.dice for score in comparison.before.of(MEAN)])
    new = np.array([score.dice for score in comparison.after.of(MEAN)])
    order = np.argsort(new)
    shown = [*order[:3], int(np.argmin(new - old)), int(np.argmax(new - old)), order[-1]]
    unique = sorted(dict.fromkeys(int(index) for index in shown), key=lambda index: new[index])
    file_of = {file.case_id: file for file in files}
    names = [score.case_id for score in comparison.after.of(MEAN)]
    return [show_case(source, adapted, file_of[names[index]], (old[index], new[index])) for index in unique]


def show_case(
    source: SegmenterAdapter, adapted: Model, file: CaseFile, scores: tuple[float, float] | None
) -> ReportCase:
    """The part of a case that the report shows: the plane of a volume with most of the segmentation.

    Args:
        source: The segmenter before adaptation.
        adapted: The segmenter after it, with its reward.
        file: The case.
        scores: Dice before and after; ground truth is read and shown only where they are given.
    """
    case = file.read()
    after, reward_map = segment_with_reward(adapted.segmenter, adapted.reward, case)
    assert reward_map is not None
    truth = where_said(file.read_labelled(source.schema, True, may_lack=True).ground_truth) if scores else None
    plane = _plane(after)
    return ReportCase(
        file.case_id,
        case.image[0][plane],
        source.segment(case)[plane],
        after[plane],
        reward_map[plane],
        None if truth is None else truth[plane],
        scores[0] if scores else None,
        scores[1] if scores else None,
    )


def _plane(labels: np.ndarray) -> tuple[int, ...]:
    """The slice of a volume that shows most of the segmentation; an image is its own plane."""
    if labels.ndim == 2:
        return ()
    return (int((labels > 0).sum(axis=(1, 2)).argmax()),)


def _curves(run: RunFolder) -> dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]]:
    curves: dict[str, dict[str, tuple[Sequence[float], Sequence[float]]]] = {}
    for iteration in run.iterations:
        updates = [
            update
            for path in sorted(run.checkpoints(iteration).glob("*.json"))
            for update in json.loads(path.read_text(encoding="utf-8"))
        ]
        for title, metric in _CURVES.items():
            values = [(update["update"], update[metric]) for update in updates if metric in update]
            if values:
                steps, numbers = zip(*values, strict=True)
                curves.setdefault(title, {})[f"iteration {iteration + 1}"] = (steps, numbers)
    return curves


def _reliability(
    run: RunFolder,
) -> dict[str, tuple[ReliabilityCurve, float, ReliabilityCurve, float]]:
    networks = {}
    for path in sorted(run.rewards(run.iterations[-1]).glob("*.json")):
        report = RewardTrainingReport.read(path)
        curves = (report.reliability_before, report.ece_before, report.reliability_after, report.ece_after)
        networks[current_name(path.stem)] = curves
    return networks


def _validity(comparison: Comparison | None) -> tuple[float, float] | None:
    if comparison is None:
        return None
    return comparison.before.summary[-1].validity, comparison.after.summary[-1].validity
