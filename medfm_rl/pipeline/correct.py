"""`medfm-rl correct`: the cases that scoring marked are corrected, where a judge agrees, or referred."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from medfm_rl import __version__
from medfm_rl.adapters import Sample, SegmenterAdapter
from medfm_rl.data.files import append_lines, hash_folder, hash_path, replace_on_success, write_json, write_text
from medfm_rl.data.images import write_labels
from medfm_rl.data.layouts import CaseFile, is_simulated
from medfm_rl.errors import DataError, ModelError, UserError
from medfm_rl.metrics.validity import Anatomy, load_anatomy
from medfm_rl.pipeline.config_file import load_config
from medfm_rl.pipeline.images import Progress
from medfm_rl.pipeline.models import choose_device, load_adapted
from medfm_rl.pipeline.run_folder import RunFolder
from medfm_rl.pipeline.score import score
from medfm_rl.quality import QualityModel, State
from medfm_rl.report import CorrectionEntry, correction_figure, figure_bytes, write_corrections_page
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.reward.score import structure_scores
from medfm_rl.reward.shape_prior import ShapePrior
from medfm_rl.reward.tiles import judge_tiles
from medfm_rl.settings import AdaptConfig, CorrectionSettings
from medfm_rl.tto import (
    AugmentationAverage,
    CaseCorrector,
    Intent,
    Judge,
    LargestComponents,
    Memo,
    NoCorrection,
    ShapeProjection,
    Tent,
    TestTimeOptimizer,
    TTOResult,
    ViewVote,
)
from medfm_rl.tto.acceptance import Acceptance
from medfm_rl.types import Case, FloatArray, LabelMap, LabelSchema

_JUDGE = "judge"


@dataclass(frozen=True)
class Corrections:
    """What a call of `correct` did.

    Attributes:
        records: One for each case that was taken, as in `corrections.json`.
        problems: By case: why it could not be scored or handled. Such a case is referred.
        untouched: Cases whose verdict was not `correct`.
        promise: How many of the accepted corrections may do harm, or that nothing is promised.
    """

    records: tuple[Mapping[str, Any], ...]
    problems: Mapping[str, str]
    untouched: int
    promise: str

    def count(self, decision: str) -> int:
        """Cases with that decision: corrected, proposed or referred."""
        found = sum(1 for record in self.records if record["decision"] == decision)
        return found + (len(self.problems) if decision == "referred" else 0)


def correct(
    path: Path,
    files: Sequence[CaseFile],
    scores: Path | None,
    out: Path,
    settings: CorrectionSettings,
    propose_only: bool,
    every: bool,
    device: str,
    progress: Progress,
    prompts: Path | None = None,
) -> Corrections:
    """Corrects cases one by one and writes masks, pictures, tables and the audit log.

    Where scoring found that the batch differs from the calibration cases, and suspended what it promises, corrections
    are proposed only.

    Cases that were handled before, from the same images with the same networks and settings, are not handled again. A
    case that cannot be handled is named and referred; the others are handled.

    Args:
        path: Finished run of `adapt`.
        files: The images.
        scores: `scores.json` of `medfm-rl score`, or None to score the cases first.
        out: Folder for the results.
        settings: What is optimised and what is accepted.
        propose_only: Whether every mask stays and corrections are written beside them.
        every: Whether to take every case, whatever its verdict.
        device: Where the networks run.
        progress: Told how far it is.
        prompts: For a promptable segmenter: where its boxes come from, as in `load_model`.

    Raises:
        UserError: The run, the scores or the folder cannot be used, or not one case could be handled.
    """
    run = RunFolder(path)
    adapter, reward = load_networks(run, device, prompts)
    hashes = hash_parts(run, adapter.schema)
    promise = f"no error rate is promised: the run has no {run.correction.name} (medfm-rl calibrate-correction)"
    if run.correction.exists():
        settings, promise = Acceptance.read(run.correction).apply(settings, hashes)
    corrector = make_corrector(run, adapter, reward, settings)
    taken = list(files)
    problems: dict[str, str] = {}
    state: State = "untested"
    if scores is None and not every:
        own = adapter if adapter.prompted else None
        scoring = score(path, files, None, own, out / "scores", device, progress)
        problems.update(scoring.problems)
        state = scoring.batch.state
        verdicts: dict[str, str] = {report.case_id: report.verdict for report in scoring.batch.reports}
        taken = _marked([file for file in files if file.case_id not in problems], verdicts, scores)
    elif scores is not None and not every:
        state, verdicts = _read_scores(scores)
        taken = _marked(files, verdicts, scores)
    if state == "suspended" and not propose_only:
        propose_only = True
        promise = (
            "every mask stays: the batch differs from the calibration cases, and what scoring and judge say of such "
            "images has not been tested; what the judge accepts is in proposals/ for a person to take or leave"
        )
    untouched = len(files) - len(taken) - len(problems)
    bench = _Bench(corrector, reward, out, {**hashes, "settings": settings.model_dump()}, propose_only)
    records: list[Mapping[str, Any]] = []
    for done, file in enumerate(taken, 1):
        try:
            records.append(bench.handle(file))
        except UserError as error:
            problems[file.case_id] = str(error)
            bench.log({"case": file.case_id, "decision": "referred", "problem": str(error)})
        progress("correcting", done, len(taken))
    if taken and not records:
        raise DataError(f"no case could be handled; the first: {next(iter(problems.values()))}")
    corrections = Corrections(tuple(records), problems, untouched, promise)
    _write_tables(out, corrections, settings, propose_only)
    entries = [
        CorrectionEntry(
            record["case"],
            record["decision"],
            record["reasons"],
            record["reward_before"],
            record["reward_after"],
            record["seconds"],
            out / "pictures" / f"{record['case']}.png",
        )
        for record in records
    ]
    simulated = any(is_simulated(image.parent) for file in files[:1] for image in file.image_paths)
    write_corrections_page(out / "report.html", entries, problems, corrections.untouched, promise, simulated)
    return corrections


def predict_and_correct(
    path: Path,
    files: Sequence[CaseFile],
    out: Path,
    settings: CorrectionSettings,
    device: str,
    progress: Progress,
    prompts: Path | None = None,
) -> Corrections:
    """Segments, scores and corrects; `labels/` then has the mask to go on with of every case that could be segmented.

    What the segmenter made is in `scores/labels/`, with its scores and reward maps.

    Args:
        path: Finished run of `adapt`.
        files: The images.
        out: Folder for the results.
        settings: What is corrected and what is accepted.
        device: Where the networks run.
        progress: Told how far it is.
        prompts: As in `correct`.

    Raises:
        UserError: As in `correct`.
    """
    corrections = correct(path, files, None, out, settings, False, False, device, progress, prompts)
    handled = {record["case"] for record in corrections.records}
    for file in files:
        name = f"{file.case_id}.nii.gz"
        original = out / "scores" / "labels" / name
        if file.case_id not in handled and original.exists():
            with replace_on_success(out / "labels" / name) as temporary:
                shutil.copy(original, temporary)
    return corrections


def load_networks(run: RunFolder, device: str, prompts: Path | None = None) -> tuple[SegmenterAdapter, RewardEnsemble]:
    """Segmenter and reward networks of a finished run.

    Args:
        run: The run.
        device: Where they are to run.
        prompts: As in `load_model`.

    Raises:
        UserError: The run is not finished, or the device is not there.
    """
    run.require_model()
    chosen = choose_device(device)
    adapter = load_adapted(run, prompts).to(chosen)
    return adapter, RewardEnsemble.load(run.final_reward).to(chosen)


def hash_parts(run: RunFolder, schema: LabelSchema) -> dict[str, str]:
    """SHA-256 of what makes and judges corrections: segmenter, reward networks with the judge, and rules."""
    rules = _anatomy(run, schema).profile.model_dump_json()
    return {
        "segmenter": hash_folder(run.model),
        "reward": hash_folder(run.final_reward),
        "rules": hashlib.sha256(rules.encode()).hexdigest(),
    }


def make_corrector(
    run: RunFolder, adapter: SegmenterAdapter, reward: RewardEnsemble, settings: CorrectionSettings
) -> CaseCorrector:
    """The corrector that the settings name, with the judge and the rules of a finished run.

    Args:
        run: Its judge decides.
        adapter: The segmenter whose masks are corrected.
        reward: The run's reward networks.
        settings: `method` and what it needs.

    Raises:
        ModelError: The method cannot be used with this segmenter, or a part of the run is missing.
    """
    judge = Judge(RewardNet.load(run.final_reward / _JUDGE), _anatomy(run, adapter.schema), settings)
    match settings.method:
        case "views":
            return ViewVote(adapter, reward, judge, settings, _of_this_case(adapter, judge, settings))
        case "optimise":
            return TestTimeOptimizer(adapter, reward, judge, settings)
        case "none":
            return NoCorrection(adapter, judge)
        case "tta":
            return AugmentationAverage(adapter, judge)
        case "tent":
            return Tent(adapter, judge, settings)
        case "intent":
            return Intent(adapter, judge)
        case "memo":
            return Memo(adapter, judge, settings)
        case "components":
            return LargestComponents(adapter, judge)
        case "shape-prior":
            return ShapeProjection(adapter, judge, ShapePrior.load(run.shape_prior))


def _of_this_case(adapter: SegmenterAdapter, judge: Judge, settings: CorrectionSettings) -> list[CaseCorrector]:
    """Copies of the segmenter with the statistics of the case, where it has batch normalisation."""
    try:
        return [Intent(adapter, judge), Tent(adapter, judge, settings)]
    except ModelError:
        return []


class _Bench:
    """Handles a case, or takes what was done before."""

    def __init__(
        self, corrector: CaseCorrector, reward: RewardEnsemble, out: Path, common: dict[str, Any], propose_only: bool
    ) -> None:
        self.corrector = corrector
        self.reward = reward
        self.out = out
        self.common = {**common, "propose_only": propose_only}
        self.propose_only = propose_only

    def handle(self, file: CaseFile) -> Mapping[str, Any]:
        path = self.out / "cases" / f"{file.case_id}.json"
        inputs = {**self.common, "images": [hash_path(image) for image in file.image_paths]}
        prompts = self.corrector.adapter.prompt_hash(file.case_id)
        if prompts is not None:
            inputs["prompts"] = prompts
        known = _read_record(path)
        if known is not None and known["inputs"] == inputs:
            record: Mapping[str, Any] = known["record"]
            return record
        # A case that is handled anew has no record until it is complete.
        path.unlink(missing_ok=True)
        case = file.read()
        result = self.corrector.optimize(case)
        decision = "referred"
        if result.accepted:
            decision = "proposed" if self.propose_only else "corrected"
        rewards = self._write(case, result, decision)
        record = _record(result, case, decision, rewards)
        self.log({**record, "inputs": inputs})
        write_json(path, {"inputs": inputs, "record": record})
        return record

    def log(self, content: Mapping[str, Any]) -> None:
        """Adds a decision to the audit log; nothing is ever rewritten."""
        common = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "medfm_rl": __version__}
        append_lines(self.out / "audit.jsonl", [{**common, **content}])

    def _write(self, case: Case, result: TTOResult, decision: str) -> tuple[float, float]:
        """Writes masks and picture; returns the mean rewards before and after."""
        schema, name = self.corrector.adapter.schema, f"{case.case_id}.nii.gz"
        proposal = self.out / "proposals" / name
        # One of an earlier call with other settings would look like one of this call.
        proposal.unlink(missing_ok=True)
        if decision == "proposed":
            write_labels(proposal, result.after, case.geometry, schema)
        mask = result.before if self.propose_only else result.mask
        sample = self.corrector.adapter.preprocess(case)
        (map_before, before), (map_after, after) = (
            self._judge(sample, found) for found in (result.before, result.after)
        )
        title = f"{case.case_id}: {decision}"
        figure = correction_figure(case.image[0], result.before, map_before, result.after, map_after, schema, title)
        with replace_on_success(self.out / "pictures" / f"{case.case_id}.png") as temporary:
            temporary.write_bytes(figure_bytes(figure))
        write_labels(self.out / "labels" / name, mask, case.geometry, schema)
        return before, after

    @torch.no_grad()
    def _judge(self, sample: Sample, labels: LabelMap) -> tuple[FloatArray, float]:
        """The reward map of a mask on the case's own grid, and its mean in and around the structures."""
        adapter = self.corrector.adapter
        action = adapter.preprocess_labels(labels, sample).to(adapter.device)
        found = judge_tiles(self.reward, sample.image.to(adapter.device), action, adapter.patch_size)
        mean = float(structure_scores(found[None], action[None], adapter.schema.num_classes).mean())
        return adapter.restore_map(found, sample).clip(0, 1), mean


def _anatomy(run: RunFolder, schema: LabelSchema) -> Anatomy:
    """The rules of the quality model, learned limits included, or those of the run where there is none."""
    if run.quality.exists():
        return QualityModel.read(run.quality).bound_anatomy()
    return load_anatomy(load_config(run.config_file, AdaptConfig).anatomy, schema)


def _read_scores(path: Path) -> tuple[State, dict[str, str]]:
    """State of the batch and verdicts by case of a `scores.json`; a case that could not be judged was referred.

    Raises:
        DataError: It is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        verdicts = {str(case["case_id"]): str(case["verdict"]) for case in content["cases"]}
        return content["batch_state"], {**verdicts, **dict.fromkeys(content["problems"], "refer")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: not a scores.json of `medfm-rl score` ({error}); score the images with this version"
        ) from error


def _marked(files: Sequence[CaseFile], verdicts: Mapping[str, str], scores: Path | None) -> list[CaseFile]:
    missing = [file.case_id for file in files if file.case_id not in verdicts]
    if missing:
        raise DataError(
            f"{scores}: has no score of {len(missing)} images, {missing[0]} for one; score these images, or take every "
            "case by --all"
        )
    return [file for file in files if verdicts[file.case_id] == "correct"]


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # Handled anew.
    return content if isinstance(content, dict) and {"inputs", "record"} <= content.keys() else None


def _record(result: TTOResult, case: Case, decision: str, rewards: tuple[float, float]) -> dict[str, Any]:
    return {
        "case": result.case_id,
        "patient": case.patient_id,
        "decision": decision,
        "reasons": list(result.reasons),
        "step": result.step,
        "stopped": result.stopped,
        "reward_gains": list(result.gains),
        "reward_before": rewards[0],
        "reward_after": rewards[1],
        "judgement": None if result.judgement is None else asdict(result.judgement),
        "seconds": round(result.seconds, 3),
    }


def _write_tables(out: Path, corrections: Corrections, settings: CorrectionSettings, propose_only: bool) -> None:
    columns = ["case", "patient", "decision", "judge_gain", "change", "reward_gain", "step", "stopped", "seconds"]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns, "reasons"], lineterminator="\n", restval="", extrasaction="ignore")
    writer.writeheader()
    for record in corrections.records:
        judgement, gains = record["judgement"] or {}, record["reward_gains"]
        row = {
            "judge_gain": judgement.get("gain"),
            "change": judgement.get("change"),
            "reward_gain": gains[record["step"]] if gains else None,
            "reasons": "; ".join(record["reasons"]),
        }
        writer.writerow({**record, **row})
    for case, problem in corrections.problems.items():
        writer.writerow({"case": case, "decision": "referred", "reasons": problem})
    write_text(out / "corrections.csv", text.getvalue())
    content = {
        "format": 1,
        "medfm_rl": __version__,
        "settings": settings.model_dump(mode="json"),
        "propose_only": propose_only,
        "not_taken": corrections.untouched,
        "promise": corrections.promise,
        "cases": list(corrections.records),
        "problems": dict(corrections.problems),
    }
    write_json(out / "corrections.json", content)
