"""`medfm-rl correct`: the cases that scoring marked are corrected, where a judge agrees, or referred."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from medfm_rl import __version__
from medfm_rl.adapters import Sample, SegmenterAdapter
from medfm_rl.adapters.delta import state_hash
from medfm_rl.data.files import replace_on_success, write_json, write_text
from medfm_rl.data.images import hash_labels, write_labels
from medfm_rl.data.layouts import CaseFile, is_simulated
from medfm_rl.errors import ConfigError, DataError, UserError
from medfm_rl.pipeline.case_records import CaseRecords, hash_case, hash_settings, label_path
from medfm_rl.pipeline.correctors import for_given_masks, hash_parts, load_networks, make_corrector
from medfm_rl.pipeline.identity import identify
from medfm_rl.pipeline.images import Progress
from medfm_rl.pipeline.marked import GivenMasks, Marked, Scores
from medfm_rl.pipeline.mask_labels import parse_mask_labels
from medfm_rl.pipeline.memory import must_fit
from medfm_rl.pipeline.run_folder import RunFolder
from medfm_rl.pipeline.score import score
from medfm_rl.pipeline.score_outputs import SCORES_FILE
from medfm_rl.report import CorrectionEntry, correction_figure, figure_bytes, write_corrections_page
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.reward.score import structure_scores
from medfm_rl.reward.tiles import tiled_reward_map
from medfm_rl.settings import CorrectionSettings
from medfm_rl.tto import CaseCorrector, TTOResult
from medfm_rl.tto.acceptance import Acceptance
from medfm_rl.types import Case, FloatArray, LabelMap

_RECORDS = "correct"
_FORMAT = 2
"""Of a record: what an older version left is not taken for a result of this one."""
_NOT_HANDLED = "not handled"


@dataclass(frozen=True)
class Corrections:
    """What a call of `correct` did.

    Attributes:
        records: One for each case that was taken, as in `corrections.json`.
        problems: By case: why it could not be scored or handled.
        untouched: Other cases that were not taken, because their verdict was not `correct`.
        promise: How many of the accepted corrections may do harm, or that nothing is promised.
    """

    records: tuple[Mapping[str, Any], ...]
    problems: Mapping[str, str]
    untouched: int
    promise: str

    def count(self, decision: str) -> int:
        """Cases with that decision: corrected, proposed or referred."""
        return sum(record["decision"] == decision for record in self.records)

    @property
    def cut(self) -> int:
        """Cases whose time budget ended early: repeated with more time, the call may decide otherwise about them."""
        return sum(_is_cut(record) for record in self.records)


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
    *,
    prompts: Path | None = None,
    masks: Mapping[str, Path] | None = None,
    labels: str | None = None,
) -> Corrections:
    """Corrects cases one by one and writes masks, pictures, tables and the audit log.

    `labels/` then has the mask to go on with of every case that has one: the correction where it was accepted, else the
    original, also of cases that were not taken.

    Where scoring found that the batch differs from the calibration cases, and suspended what it promises, corrections
    are proposed only.

    Cases that were handled before, from the same images with the same networks and settings, are not handled again,
    unless the time budget cut them. A case that cannot be handled is named; the others are handled.

    Args:
        path: Finished run of `adapt`.
        files: The images.
        scores: `scores.json` of `medfm-rl score`, or None to score the cases first.
        out: Folder for the results.
        settings: What is optimised and what is accepted.
        propose_only: Whether every mask stays and corrections are written beside them.
        every: Whether to take every case, whatever its verdict; nothing is scored then, and `scores` is None.
        device: Where the networks run.
        progress: Told how far it is.
        prompts: For a promptable segmenter: where its boxes come from, as in `load_model`.
        masks: By case, the masks to be corrected, whatever made them; None for those of the run's segmenter.
        labels: The integers in these masks, as in `parse_mask_labels`; None for those of the run, which are always
            those of the masks that are written.

    Raises:
        UserError: The run, the scores or the folder cannot be used, the scores are of other masks or by another quality
            model, masks that something else made lie in `labels/`, or not one case could be handled.
    """
    if every and scores is not None:
        raise ConfigError(
            f"--all takes every case and asks no scores, so that {scores} would say nothing of which cases are taken "
            "or whether corrections are only proposed; leave out --all or --scores"
        )
    run = RunFolder(path)
    adapter, reward = load_networks(run, device, prompts)
    hashes = hash_parts(run, adapter.schema)
    case_records = CaseRecords(out, _RECORDS, identify(path))
    for file in files:
        case_records.require_own(file.case_id, label_path(out, file.case_id), {"segmenter": hashes["segmenter"]})
    promise = f"no error rate is promised: the run has no {run.correction.name} (medfm-rl calibrate-correction)"
    if masks is not None:
        settings = for_given_masks(settings)
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
    in_masks = None if labels is None else parse_mask_labels(labels, adapter.schema)
    given = None if masks is None else GivenMasks(masks, marked.scores, adapter.schema, in_masks)
    originals = given
    if masks is None and scores is None and marked.scores is not None:
        made = {case_id: label_path(out / "scores", case_id) for case_id in marked.scores.masks}
        originals = GivenMasks(made, marked.scores, adapter.schema)
    common = {
        "format": _FORMAT,
        **hashes,
        "inference": hash_settings(adapter.inference_settings()),
        "settings": settings.model_dump(mode="json"),
        "propose_only": propose_only,
    }
    bench = _Bench(corrector, reward, case_records, common, propose_only, given, originals)
    records: list[Mapping[str, Any]] = []
    for done, file in enumerate(taken, 1):
        try:
            records.append(bench.handle(file))
        except UserError as error:
            problems[file.case_id] = str(error)
        progress("correcting", done, len(taken))
    if taken and not records:
        raise DataError(f"no case could be handled; the first: {next(iter(problems.values()))}")
    corrected = {record["case"] for record in records}
    kept = [file for file in files if file.case_id not in corrected]
    for done, file in enumerate(kept, 1):
        try:
            bench.keep(file)
        except UserError as error:
            # Why it could not be corrected says more.
            problems.setdefault(file.case_id, str(error))
        progress("keeping other masks", done, len(kept))
    bench.records.log(
        [{"case": name, "decision": _NOT_HANDLED, "problem": problem} for name, problem in problems.items()]
    )
    untouched = sum(file.case_id not in problems for file in kept)
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
            record["views"],
            _judge_views(record),
            out / "pictures" / f"{record['case']}.png",
        )
        for record in records
    ]
    simulated = any(is_simulated(image.parent) for file in files[:1] for image in file.image_paths)
    write_corrections_page(
        out / "report.html",
        entries,
        problems,
        untouched,
        promise,
        corrections.cut,
        simulated,
    )
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
    found.require_quality(run.quality)
    if masks is None:
        found.require_segmenter(state_hash(adapter), run.path)
    return Marked(found.marked(files), {}, found)


def _is_cut(record: Mapping[str, Any]) -> bool:
    return bool(record["stopped"] == "time")


def _judge_views(record: Mapping[str, Any]) -> int | None:
    """Views that the judge looked at; None where there was nothing to judge."""
    judgement = record["judgement"]
    return None if judgement is None else int(judgement["views"])


class _Bench:
    """Corrects a case or keeps its mask, or takes what was done before."""

    def __init__(
        self,
        corrector: CaseCorrector,
        reward: RewardEnsemble,
        records: CaseRecords,
        common: dict[str, Any],
        propose_only: bool,
        masks: GivenMasks | None,
        originals: GivenMasks | None,
    ) -> None:
        self.corrector = corrector
        self.reward = reward
        self.out = records.out
        self.records = records
        self.common = common
        self.propose_only = propose_only
        self.masks = masks
        self.originals = originals

    def handle(self, file: CaseFile) -> Mapping[str, Any]:
        """Corrects a case, and says what came of it."""
        inputs = {**self.common, **hash_case(file, self.corrector.adapter)}
        if self.masks is not None:
            inputs |= self.masks.hashes(file.case_id)
        known: Mapping[str, Any] | None = self.records.reuse(file.case_id, inputs)
        # What a busy machine cut is no result to hand out again.
        if known is not None and not _is_cut(known):
            return known
        self.records.begin(file.case_id, inputs)
        with must_fit(f"case {file.case_id}", self.corrector.adapter.device):
            case = file.read()
            original = None if self.masks is None else self.masks.read(case)
            result = self.corrector.optimize(case, original=original)
            decision = "referred"
            if result.accepted:
                decision = "proposed" if self.propose_only else "corrected"
            mask = result.before if self.propose_only else result.mask
            rewards, files = self._write(case, result, decision, mask)
        record = _record(result, case, decision, rewards)
        self._close(record, inputs, mask, files, record)
        return record

    def keep(self, file: CaseFile) -> None:
        """Writes the mask of a case that is not corrected.

        Raises:
            UserError: There is none, or it cannot be read or made.
        """
        adapter = self.corrector.adapter
        inputs = {name: self.common[name] for name in ("format", "segmenter", "inference")}
        if self.originals is None:
            inputs |= {**hash_case(file, adapter), "mask": None}
        else:
            inputs |= {**hash_case(file, None), **self.originals.hashes(file.case_id)}
        if self.records.reuse(file.case_id, inputs) is not None:
            return
        with must_fit(f"case {file.case_id}", adapter.device):
            case = file.read()
            mask = adapter.segment(case) if self.originals is None else self.originals.read(case)
        labels = label_path(self.out, file.case_id)
        self.records.begin(file.case_id, inputs)
        write_labels(labels, mask, case.geometry, adapter.schema)
        self._close({"case": file.case_id, "decision": "kept"}, inputs, mask, [labels], {})

    def _close(
        self,
        line: Mapping[str, Any],
        inputs: Mapping[str, Any],
        mask: LabelMap,
        files: Sequence[Path],
        result: Mapping[str, Any],
    ) -> None:
        """Adds the line of a case to the audit log, and records that the case is complete."""
        outputs = self.records.hash_files(files)
        # Of the mask both: of its labels, as in scores.json, and of its file.
        self.records.log([{**line, "inputs": inputs, "mask": hash_labels(mask), "outputs": outputs}])
        self.records.write(line["case"], inputs, result, outputs)

    def _write(
        self, case: Case, result: TTOResult, decision: str, mask: LabelMap
    ) -> tuple[tuple[float, float], list[Path]]:
        """Writes masks and picture; returns the mean rewards before and after, and the files."""
        schema = self.corrector.adapter.schema
        labels, proposal = label_path(self.out, case.case_id), self.out / "proposals" / f"{case.case_id}.nii.gz"
        picture = self.out / "pictures" / f"{case.case_id}.png"
        # One of an earlier call with other settings would look like one of this call.
        proposal.unlink(missing_ok=True)
        if decision == "proposed":
            write_labels(proposal, result.after, case.geometry, schema)
        sample = self.corrector.adapter.preprocess(case)
        (map_before, before), (map_after, after) = (
            self._reward_of(sample, found) for found in (result.before, result.after)
        )
        title = f"{case.case_id}: {decision}"
        figure = correction_figure(case.image[0], result.before, map_before, result.after, map_after, schema, title)
        with replace_on_success(picture) as temporary:
            temporary.write_bytes(figure_bytes(figure))
        write_labels(labels, mask, case.geometry, schema)
        return (before, after), [labels, picture, *([proposal] if decision == "proposed" else [])]

    @torch.no_grad()
    def _reward_of(self, sample: Sample, labels: LabelMap) -> tuple[FloatArray, float]:
        """The reward map of a mask on the case's own grid, and its mean in and around the structures."""
        adapter = self.corrector.adapter
        action = adapter.preprocess_labels(labels, sample).to(adapter.device)
        found = tiled_reward_map(self.reward, sample.image.to(adapter.device), action, adapter.patch_size)
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
        "views": result.views,
        "reward_gains": list(result.gains),
        "reward_before": rewards[0],
        "reward_after": rewards[1],
        "judgement": None if result.judgement is None else asdict(result.judgement),
        "seconds": round(result.seconds, 3),
    }


def _write_tables(out: Path, corrections: Corrections, settings: CorrectionSettings, propose_only: bool) -> None:
    columns = ["case", "patient", "decision", "judge_gain", "change", "reward_gain", "step", "stopped", "views"]
    columns += ["judge_views", "seconds", "reasons"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="", extrasaction="ignore")
    writer.writeheader()
    for record in corrections.records:
        judgement, gains = record["judgement"] or {}, record["reward_gains"]
        row = {
            "judge_gain": judgement.get("gain"),
            "change": judgement.get("change"),
            "judge_views": _judge_views(record),
            "reward_gain": gains[record["step"]] if gains else None,
            "reasons": "; ".join(record["reasons"]),
        }
        writer.writerow({**record, **row})
    for case, problem in corrections.problems.items():
        writer.writerow({"case": case, "decision": _NOT_HANDLED, "reasons": problem})
    write_text(out / "corrections.csv", text.getvalue())
    content = {
        "format": 1,
        "medfm_rl": __version__,
        "settings": settings.model_dump(mode="json"),
        "propose_only": propose_only,
        "not_taken": corrections.untouched,
        "cut": corrections.cut,
        "promise": corrections.promise,
        "cases": list(corrections.records),
        "problems": dict(corrections.problems),
    }
    write_json(out / "corrections.json", content)
