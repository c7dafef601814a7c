"""`medfm-rl correct`: the cases that scoring marked are corrected, where a judge agrees, or referred."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from medfm_rl import __version__
from medfm_rl.adapters import Sample, SegmenterAdapter
from medfm_rl.adapters.delta import state_hash
from medfm_rl.data.files import hash_file, hash_path, replace_on_success, write_json, write_text
from medfm_rl.data.images import write_labels
from medfm_rl.data.layouts import CaseFile, is_simulated
from medfm_rl.errors import DataError, UserError
from medfm_rl.pipeline.case_records import CaseRecords, hash_case, hash_settings
from medfm_rl.pipeline.correctors import hash_parts, load_networks, make_corrector
from medfm_rl.pipeline.identity import identify
from medfm_rl.pipeline.images import Progress
from medfm_rl.pipeline.marked import GivenMasks, Marked, Scores
from medfm_rl.pipeline.mask_labels import parse_mask_labels
from medfm_rl.pipeline.run_folder import RunFolder
from medfm_rl.pipeline.score import SCORES_FILE, score
from medfm_rl.report import CorrectionEntry, correction_figure, figure_bytes, write_corrections_page
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.reward.score import structure_scores
from medfm_rl.reward.tiles import judge_tiles
from medfm_rl.settings import CorrectionSettings
from medfm_rl.tto import CaseCorrector, TTOResult
from medfm_rl.tto.acceptance import Acceptance
from medfm_rl.types import Case, FloatArray, LabelMap

_RECORDS = "correct"


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
    masks: Mapping[str, Path] | None = None,
    labels: str | None = None,
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
        masks: By case, the masks to be corrected, whatever made them; None for those of the run's segmenter.
        labels: The integers in these masks, as in `parse_mask_labels`; None for those of the run, which are always
            those of the masks that are written.

    Raises:
        UserError: The run, the scores or the folder cannot be used, the scores are of other masks, or not one case
            could be handled.
    """
    run = RunFolder(path)
    adapter, reward = load_networks(run, device, prompts)
    hashes = hash_parts(run, adapter.schema)
    promise = f"no error rate is promised: the run has no {run.correction.name} (medfm-rl calibrate-correction)"
    if masks is not None:
        settings = settings.model_copy(update={"margin": settings.margin_given})
        promise = "no error rate is promised: the masks are not those of the run's own segmenter"
    elif run.correction.exists():
        settings, promise = Acceptance.read(run.correction).apply(settings, hashes)
    corrector = make_corrector(run, adapter, reward, settings)
    marked = _take(run, files, scores, out, every, adapter, masks, device, progress, prompts, labels)
    if marked.scores is not None and marked.scores.state == "suspended" and not propose_only:
        propose_only = True
        promise = (
            "every mask stays: the batch differs from the calibration cases, and what scoring and judge say of such "
            "images has not been tested; what the judge accepts is in proposals/ for a person to take or leave"
        )
    taken, problems = marked.files, dict(marked.problems)
    untouched = len(files) - len(taken) - len(problems)
    in_masks = None if labels is None else parse_mask_labels(labels, adapter.schema)
    given = None if masks is None else GivenMasks(masks, marked.scores, adapter.schema, in_masks)
    common = {
        **hashes,
        "inference": hash_settings(adapter.inference_settings()),
        "settings": settings.model_dump(mode="json"),
        "propose_only": propose_only,
    }
    bench = _Bench(corrector, reward, CaseRecords(out, _RECORDS, identify(path)), common, propose_only, given)
    records: list[Mapping[str, Any]] = []
    for done, file in enumerate(taken, 1):
        try:
            records.append(bench.handle(file))
        except UserError as error:
            problems[file.case_id] = str(error)
            bench.records.log([{"case": file.case_id, "decision": "referred", "problem": str(error)}])
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


def _take(
    run: RunFolder,
    files: Sequence[CaseFile],
    scores: Path | None,
    out: Path,
    every: bool,
    adapter: SegmenterAdapter,
    masks: Mapping[str, Path] | None,
    device: str,
    progress: Progress,
    prompts: Path | None,
    labels: str | None,
) -> Marked:
    """The cases that are to be corrected, scored first where nothing says which.

    Raises:
        UserError: As in `correct`.
    """
    if every:
        return Marked(files, {}, None)
    if scores is None:
        asked = prompts if masks is None else None
        scoring = score(run.path, files, masks, None, out / "scores", device, progress, prompts=asked, labels=labels)
        found = Scores.read(out / "scores" / SCORES_FILE)
        judged = [file for file in files if file.case_id not in scoring.problems]
        return Marked(found.marked(judged), scoring.problems, found)
    found = Scores.read(scores)
    if masks is None:
        found.require_segmenter(state_hash(adapter), run.path)
    return Marked(found.marked(files), {}, found)


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
        UserError: As in `correct`, or masks that another model or another command made lie in `labels/`.
    """
    run = RunFolder(path)
    run.require_model()
    records = CaseRecords(out, _RECORDS, identify(path))
    maker = {"segmenter": records.identity.model_hash}
    for file in files:
        records.require_own(file.case_id, _label_path(out, file), maker)
    corrections = correct(path, files, None, out, settings, False, False, device, progress, prompts)
    handled = {record["case"] for record in corrections.records}
    for file in files:
        original, labels = _label_path(out / "scores", file), _label_path(out, file)
        if file.case_id in handled or not original.exists():
            continue
        inputs = {**maker, "kept": hash_file(original), "images": [hash_path(image) for image in file.image_paths]}
        if records.reuse(file.case_id, inputs) is None:
            records.begin(file.case_id, inputs)
            with replace_on_success(labels) as temporary:
                shutil.copy(original, temporary)
            kept = {"case": file.case_id, "decision": "kept"}
            records.log([{**kept, "inputs": inputs, "outputs": records.hash_files([labels])}])
            records.write(file.case_id, inputs, {}, [labels])
    return corrections


def _label_path(out: Path, file: CaseFile) -> Path:
    return out / "labels" / f"{file.case_id}.nii.gz"


class _Bench:
    """Handles a case, or takes what was done before."""

    def __init__(
        self,
        corrector: CaseCorrector,
        reward: RewardEnsemble,
        records: CaseRecords,
        common: dict[str, Any],
        propose_only: bool,
        masks: GivenMasks | None,
    ) -> None:
        self.corrector = corrector
        self.reward = reward
        self.out = records.out
        self.records = records
        self.common = common
        self.propose_only = propose_only
        self.masks = masks

    def handle(self, file: CaseFile) -> Mapping[str, Any]:
        inputs = {**self.common, **hash_case(file, self.corrector.adapter)}
        if self.masks is not None:
            inputs["mask"] = hash_path(self.masks.path(file.case_id))
            if self.masks.in_files is not None:
                inputs["labels"] = dict(zip(self.masks.in_files.names, self.masks.in_files.ids, strict=True))
        known: Mapping[str, Any] | None = self.records.reuse(file.case_id, inputs)
        if known is not None:
            return known
        self.records.begin(file.case_id, inputs)
        case = file.read()
        result = self.corrector.optimize(case, original=None if self.masks is None else self.masks.read(case))
        decision = "referred"
        if result.accepted:
            decision = "proposed" if self.propose_only else "corrected"
        rewards, files = self._write(case, result, decision)
        record = _record(result, case, decision, rewards)
        self.records.log([{**record, "inputs": inputs, "outputs": self.records.hash_files(files)}])
        self.records.write(file.case_id, inputs, record, files)
        return record

    def _write(self, case: Case, result: TTOResult, decision: str) -> tuple[tuple[float, float], list[Path]]:
        """Writes masks and picture; returns the mean rewards before and after, and the files."""
        schema, name = self.corrector.adapter.schema, f"{case.case_id}.nii.gz"
        labels, proposal = self.out / "labels" / name, self.out / "proposals" / name
        picture = self.out / "pictures" / f"{case.case_id}.png"
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
        with replace_on_success(picture) as temporary:
            temporary.write_bytes(figure_bytes(figure))
        write_labels(labels, mask, case.geometry, schema)
        return (before, after), [labels, picture, *([proposal] if decision == "proposed" else [])]

    @torch.no_grad()
    def _judge(self, sample: Sample, labels: LabelMap) -> tuple[FloatArray, float]:
        """The reward map of a mask on the case's own grid, and its mean in and around the structures."""
        adapter = self.corrector.adapter
        action = adapter.preprocess_labels(labels, sample).to(adapter.device)
        found = judge_tiles(self.reward, sample.image.to(adapter.device), action, adapter.patch_size)
        mean = float(structure_scores(found[None], action[None], adapter.schema.num_classes).mean())
        return adapter.restore_map(found, sample).clip(0, 1), mean


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
