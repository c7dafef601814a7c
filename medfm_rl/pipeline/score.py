"""`medfm-rl score`: quality and verdict of every mask of a folder, whatever made the masks."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medfm_rl import __version__
from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.data.files import hash_file, hash_path, replace_on_success, write_json, write_text
from medfm_rl.data.images import hash_labels, image_stem, image_suffix, read_labels, write_image, write_labels
from medfm_rl.data.layouts import CaseFile, is_simulated
from medfm_rl.errors import DataError, ModelError, UserError
from medfm_rl.pipeline.case_records import CaseRecords, hash_case, hash_segmenter
from medfm_rl.pipeline.identity import identify
from medfm_rl.pipeline.images import Progress
from medfm_rl.pipeline.mask_labels import parse_mask_labels
from medfm_rl.pipeline.models import choose_device, load_adapted, load_preprocessing
from medfm_rl.pipeline.run_folder import RunFolder
from medfm_rl.quality import QUALITY_FILE, BatchReport, QualityController, QualityReport
from medfm_rl.quality.biomedclip import BiomedCLIP
from medfm_rl.quality.submission import Submission
from medfm_rl.quality.views import ViewClassifier
from medfm_rl.quality_page import PageCase, thumbnail, write_page
from medfm_rl.types import Case, LabelSchema

_LOG = logging.getLogger(__name__)
SCORES_FILE = "scores.json"
_MOST_WAITING = 16
_MOST_PIXELS = 4_000_000
_MOST_NAMED = 10
"""Masks without an image that are named."""
_Waiting = tuple[Submission, dict[str, Any]]
"""A case and what its report depends on."""
Cause = Literal["input_unusable", "mask_missing", "mask_unusable", "not_judged"]
"""Whose fault it is that a case could not be judged: that of its image or prompts, of its mask, or something else's."""


@dataclass(frozen=True)
class Unjudged:
    """Why a case could not be judged.

    Attributes:
        problem: In words.
        cause: For a program.
    """

    problem: str
    cause: Cause


@dataclass(frozen=True)
class Scoring:
    """What a call of `score` found.

    Attributes:
        batch: Reports and guarantees of the masks that could be judged.
        unjudged: The others by case. Such a case is referred.
    """

    batch: BatchReport
    unjudged: Mapping[str, Unjudged] = field(default_factory=dict)

    @property
    def problems(self) -> dict[str, str]:
        """By case: why it could not be judged, in words."""
        return {case_id: found.problem for case_id, found in self.unjudged.items()}

    def count(self, verdict: str) -> int:
        """Cases with that verdict."""
        found = sum(report.verdict == verdict for report in self.batch.reports)
        return found + (len(self.unjudged) if verdict == "refer" else 0)


@dataclass(frozen=True)
class Gates:
    """Networks that are not of the run and look at images before their masks are judged; each is off where None.

    Attributes:
        echoprime: EchoPrime's `view_classifier.pt`: images that are no apical views are referred.
        biomedclip: BiomedCLIP's `open_clip_pytorch_model.bin`: images unlike those of the calibration are referred.
    """

    echoprime: Path | None = None
    biomedclip: Path | None = None

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the weights by name, for the record of what judged a case."""
        files = {"views": self.echoprime, "biomedclip": self.biomedclip}
        return {name: hash_file(path) for name, path in files.items() if path is not None}


NO_GATES = Gates()


def load_controller(
    path: Path,
    device: str = "auto",
    gates: Gates = NO_GATES,
    segmenter: SegmenterAdapter | None = None,
    accept_untested: bool = False,
) -> QualityController:
    """Loads the quality model of a run with whatever segmenter it is for.

    Args:
        path: The run.
        device: Where the networks run.
        gates: Further networks to be asked.
        segmenter: That of the run, where it has been loaded to make masks; None for one that makes none.
        accept_untested: As in `QualityController`.

    Raises:
        ModelError: A part is missing, damaged, or does not belong to the others.
        ConfigError: The device is not there.
    """
    chosen = choose_device(device)
    views = None if gates.echoprime is None else ViewClassifier.load(gates.echoprime, chosen)
    biomedclip = None if gates.biomedclip is None else BiomedCLIP.load(gates.biomedclip, chosen)
    judging = load_preprocessing(RunFolder(path)) if segmenter is None else segmenter
    return QualityController.load(path, lambda _: judging, chosen, views, biomedclip, accept_untested)


def find_masks(folder: Path, files: Sequence[CaseFile]) -> dict[str, Path]:
    """Masks of a folder by the case whose name they have; a warning lists those of no case.

    Raises:
        DataError: The folder is missing, holds no mask of any case, or two of the same name.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    named: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or image_suffix(path) is None:
            continue
        if image_stem(path) in named:
            raise DataError(f"{folder}: two masks have the name {image_stem(path)}; remove one of them")
        named[image_stem(path)] = path
    masks = {file.case_id: named[file.case_id] for file in files if file.case_id in named}
    if not masks:
        raise DataError(
            f"{folder}: no mask has the name of an image ({files[0].case_id} for one); masks and images share names"
        )
    orphans = sorted(named.keys() - masks.keys())
    if orphans:
        more = f" and {len(orphans) - _MOST_NAMED} more" if len(orphans) > _MOST_NAMED else ""
        shown = ", ".join(named[name].name for name in orphans[:_MOST_NAMED])
        _LOG.warning("%s: masks that have the name of no image are not looked at: %s%s", folder, shown, more)
    return masks


def score(
    run: Path,
    files: Sequence[CaseFile],
    masks: Mapping[str, Path] | None,
    segmenter: SegmenterAdapter | None,
    out: Path,
    device: str,
    progress: Progress,
    gates: Gates = NO_GATES,
    prompts: Path | None = None,
    accept_untested: bool = False,
    labels: str | None = None,
    made_by: str | None = None,
) -> Scoring:
    """Judges masks and writes tables, reward maps, a page and the audit log.

    Cases that were judged before, from the same files with the same networks, are not judged again. A case that cannot
    be judged is named and referred; the others are judged.

    Args:
        run: Run folder with the quality model.
        files: The images.
        masks: Masks by case, or None where a segmenter makes them.
        segmenter: Makes the masks where none are given; None for that of the run.
        out: Folder for the results.
        device: Where the networks run.
        progress: Told how far it is.
        gates: As in `load_controller`.
        prompts: Where the segmenter of the run makes the masks: as in `load_model`.
        accept_untested: Whether masks may be accepted where the batch is too small to be tested.
        labels: The integers in the masks that are given, as in `parse_mask_labels`; None for those of the run.
        made_by: `model_hash` of the segmenter, where one is given, for the audit log.

    Raises:
        UserError: The quality model cannot be used, or not one case could be judged.
    """
    folder = RunFolder(run)
    folder.require_model()
    own = load_adapted(folder, prompts) if masks is None and segmenter is None else None
    controller = load_controller(run, device, gates, own, accept_untested)
    segmenter = segmenter if own is None else controller.segmenter
    if segmenter is not None and segmenter.schema.names != controller.schema.names:
        raise ModelError(
            f"the model segments {', '.join(segmenter.schema.structures)}, the quality model judges "
            f"{', '.join(controller.schema.structures)}; they must be of one anatomy"
        )
    networks = {"quality": hash_file(run / QUALITY_FILE), **gates.hashes()}
    in_masks = None if labels is None else parse_mask_labels(labels, controller.schema)
    identity = identify(run)
    queue = _ScoringQueue(controller, networks, masks, in_masks, segmenter, CaseRecords(out, "score", identity))
    for done, file in enumerate(files, 1):
        try:
            queue.take(file)
        except UserError as error:
            queue.refuse(file.case_id, error)
        progress("scoring", done, len(files))
    queue.judge_waiting()
    reports = [queue.reports[file.case_id] for file in files if file.case_id in queue.reports]
    if not reports:
        first = next(iter(queue.unjudged.values()))
        raise DataError(f"no case could be judged; the first: {first.problem}")
    scoring = Scoring(controller.settle(reports), queue.unjudged)
    _write_tables(out, files, scoring, controller, queue)
    simulated = any(is_simulated(path.parent) for file in files[:1] for path in file.image_paths)
    _write_page(out, scoring, controller, simulated)
    common = {**gates.hashes(), "made_by": made_by if own is None else identity.model_hash}
    queue.records.log(_audit_lines(scoring, queue, common))
    return scoring


class _NotJudgedError(UserError):
    """A case that cannot be judged, and the cause."""

    def __init__(self, message: str, cause: Cause) -> None:
        super().__init__(message)
        self.cause = cause


@contextmanager
def _caused_by(cause: Cause) -> Iterator[None]:
    """Says of a user's mistake in the block what is at fault."""
    try:
        yield
    except UserError as error:
        raise _NotJudgedError(str(error), cause) from error


class _ScoringQueue:
    """Takes cases one by one, and judges together those of which no report is there yet."""

    def __init__(
        self,
        controller: QualityController,
        networks: Mapping[str, str],
        masks: Mapping[str, Path] | None,
        in_masks: LabelSchema | None,
        segmenter: SegmenterAdapter | None,
        records: CaseRecords,
    ) -> None:
        self.controller = controller
        self.networks = networks
        self.masks = masks
        self.in_masks = in_masks
        self.segmenter = None if segmenter is None else segmenter.to(controller.device)
        self.maker = {} if segmenter is None else hash_segmenter(segmenter)
        self.out = records.out
        self.records = records
        self.reports: dict[str, QualityReport] = {}
        self.mask_hashes: dict[str, str] = {}
        self.hashes: dict[str, dict[str, Any]] = {}
        self.unjudged: dict[str, Unjudged] = {}
        self._waiting: list[_Waiting] = []

    def take(self, file: CaseFile) -> None:
        """Takes the report that there is, or lets the case wait for enough others to be judged with it.

        Raises:
            UserError: The case cannot be made ready to be judged.
        """
        inputs = self._inputs(file)
        known = self.records.reuse(file.case_id, inputs)
        if known is not None:
            self.reports[file.case_id] = QualityReport.from_json(known["report"])
            self.mask_hashes[file.case_id] = known["mask"]
            return
        with _caused_by("input_unusable"):
            case = file.read()
        self.records.begin(file.case_id, inputs)
        self._waiting.append((self._submission(file, case), inputs))
        pixels = sum(submission.labels.size for submission, _ in self._waiting)
        if len(self._waiting) >= _MOST_WAITING or pixels >= _MOST_PIXELS:
            self.judge_waiting()

    def refuse(self, case_id: str, error: UserError) -> None:
        """Notes why a case could not be judged."""
        self.unjudged[case_id] = Unjudged(
            str(error), error.cause if isinstance(error, _NotJudgedError) else "not_judged"
        )

    def judge_waiting(self) -> None:
        """Judges the cases that wait, and writes what was found; one that fails keeps no other back."""
        waiting, self._waiting = self._waiting, []
        for submission, inputs, report in self._judge(waiting):
            try:
                self._write(submission, inputs, report)
            except UserError as error:
                self.refuse(report.case_id, error)
                continue
            # Maps of ten thousand cases would fill the memory, and they are in the files.
            self.reports[report.case_id] = replace(report, reward_map=np.zeros(0, np.float32))

    def _judge(self, waiting: Sequence[_Waiting]) -> list[tuple[Submission, dict[str, Any], QualityReport]]:
        try:
            reports = self.controller.judge([submission for submission, _ in waiting])
        except UserError as error:
            if len(waiting) == 1:
                self.refuse(waiting[0][0].case.case_id, error)
                return []
            # It does not say whose fault it is: alone, each case answers for itself.
            return [found for item in waiting for found in self._judge([item])]
        return [(*item, report) for item, report in zip(waiting, reports, strict=True)]

    def _write(self, submission: Submission, inputs: Mapping[str, Any], report: QualityReport) -> None:
        case = submission.case
        rewards = self.out / "rewards" / f"{case.case_id}.nii.gz"
        write_image(rewards, report.reward_map, case.geometry)
        picture = self.out / "thumbnails" / f"{case.case_id}.png"
        with replace_on_success(picture) as temporary:
            temporary.write_bytes(
                thumbnail(case.image[0], submission.labels, report.reward_map, self.controller.schema)
            )
        mask = self.mask_hashes[case.case_id] = hash_labels(submission.labels)
        files = [rewards, picture, *([] if self.segmenter is None else [self._label_path(case.case_id)])]
        self.records.write(case.case_id, inputs, {"report": report.to_json(), "mask": mask}, files)

    def _label_path(self, case_id: str) -> Path:
        return self.out / "labels" / f"{case_id}.nii.gz"

    def mask_path(self, case_id: str) -> Path | None:
        """The file of a case's mask, where it is known or was written."""
        if self.masks is not None:
            return self.masks.get(case_id)
        path = self._label_path(case_id)
        return path if path.exists() else None

    def _inputs(self, file: CaseFile) -> dict[str, Any]:
        """Hashes of everything that the report of a case depends on; what is found stays in `hashes` after an error."""
        found = self.hashes[file.case_id] = {**self.maker, **self.networks}
        with _caused_by("input_unusable"):
            found.update(hash_case(file, self.segmenter))
        if self.masks is not None:
            mask = self._mask(file)
            with _caused_by("mask_unusable"):
                found["mask"] = hash_path(mask)
        if self.in_masks is not None:
            found["labels"] = dict(zip(self.in_masks.names, self.in_masks.ids, strict=True))
        return found

    def _mask(self, file: CaseFile) -> Path:
        assert self.masks is not None
        if file.case_id not in self.masks:
            folder = next(iter(self.masks.values())).parent
            raise _NotJudgedError(f"case {file.case_id}: there is no mask of that name in {folder}", "mask_missing")
        return self.masks[file.case_id]

    def _submission(self, file: CaseFile, case: Case) -> Submission:
        controller = self.controller
        if self.segmenter is None:
            with _caused_by("mask_unusable"):
                labels = read_labels(self._mask(file), controller.schema, case.shape, case.geometry, self.in_masks)
            return controller.submit(case, labels)
        if self.segmenter is controller.segmenter:
            submission = controller.segment(case)
        else:
            submission = controller.submit(case, self.segmenter.segment(case))
        write_labels(self._label_path(file.case_id), submission.labels, case.geometry, controller.schema)
        return submission


def _write_tables(
    out: Path, files: Sequence[CaseFile], scoring: Scoring, controller: QualityController, queue: _ScoringQueue
) -> None:
    """`scores.csv`, one row for each case and structure, and `scores.json`."""
    batch, of_case = scoring.batch, {file.case_id: file for file in files}
    # Of two promises the first is that of the intervals.
    interval_state = batch.guarantees[0].status
    of_batch = {"batch_state": batch.state, "batch_patients": batch.patients, "batch_meaning": batch.meaning}
    columns = ["case_id", "patient_id", "structure", "predicted_dice", "low", "high", "interval_state", "mean_reward"]
    columns += ["worst_reward", "worst_centre", "shift_distance", "shift_probability", "view", "rules_failed"]
    columns += ["verdict", "reason_code", "reasons", *of_batch, "image_files", "mask_file"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()

    def places(case_id: str) -> dict[str, Any]:
        mask = queue.mask_path(case_id)
        images = [str(path) for path in of_case[case_id].image_paths]
        return {"image_files": images, "mask_file": None if mask is None else str(mask)}

    def common(case_id: str) -> dict[str, Any]:
        found = places(case_id)
        images = "; ".join(found["image_files"])
        return {
            **of_batch,
            "case_id": case_id,
            "patient_id": of_case[case_id].patient_id,
            **found,
            "image_files": images,
        }

    cases = []
    for report in batch.reports:
        for item in report.scores:
            writer.writerow(
                {
                    **common(report.case_id),
                    "structure": item.structure,
                    "predicted_dice": item.predicted_dice,
                    "low": item.low,
                    "high": item.high,
                    "interval_state": interval_state,
                    "mean_reward": item.mean_reward,
                    "worst_reward": item.worst_reward,
                    "worst_centre": " ".join(map(str, item.worst_centre)),
                    "shift_distance": report.shift_distance,
                    "shift_probability": report.shift_probability,
                    "view": "" if report.view is None else report.view.view,
                    "rules_failed": "; ".join(str(rule) for rule in report.rules if not rule.passed),
                    "verdict": report.verdict,
                    "reason_code": report.reason_code,
                    "reasons": "; ".join(report.reasons),
                }
            )
        content = report.to_json()
        del content["embedding"]
        cases.append({**content, **places(report.case_id), "mask": queue.mask_hashes[report.case_id]})
    problems = {}
    for case_id, found in scoring.unjudged.items():
        verdict = {"verdict": "refer", "reason_code": found.cause}
        writer.writerow({**common(case_id), **verdict, "reasons": found.problem})
        patient = of_case[case_id].patient_id
        problems[case_id] = {"problem": found.problem, "patient_id": patient, **verdict, **places(case_id)}
    write_text(out / "scores.csv", text.getvalue())
    write_json(
        out / SCORES_FILE,
        {
            "format": 3,
            "medfm_rl": __version__,
            "calibrated_on": controller.model.origin,
            "quality": queue.networks["quality"],
            # None where the masks came as files.
            "segmenter": queue.maker.get("weights"),
            **of_batch,
            "batch_shift_probability": batch.shift_probability,
            "accept_untested": controller.accept_untested,
            "interval_state": interval_state,
            "guarantees": [vars(guarantee) for guarantee in batch.guarantees],
            "cases": cases,
            "problems": problems,
        },
    )


def _write_page(out: Path, scoring: Scoring, controller: QualityController, simulated: bool) -> None:
    cases = [
        PageCase(report, (out / "thumbnails" / f"{report.case_id}.png").read_bytes())
        for report in scoring.batch.reports
    ]
    path = out / "report.html"
    write_page(path, cases, scoring.problems, scoring.batch, controller.model, controller.schema, simulated)


def _audit_lines(
    scoring: Scoring,
    queue: _ScoringQueue,
    common: Mapping[str, str | None],
) -> list[dict[str, Any]]:
    """One line for each verdict that is handed out."""
    batch = {
        "state": scoring.batch.state,
        "patients": scoring.batch.patients,
        "accept_untested": queue.controller.accept_untested,
    }
    lines = [
        {
            **common,
            "case": report.case_id,
            "batch": batch,
            "inputs": queue.hashes[report.case_id],
            "outputs": queue.records.files_of(report.case_id),
            "verdict": report.verdict,
            "reason_code": report.reason_code,
        }
        for report in scoring.batch.reports
    ]
    return lines + [
        {
            **common,
            "case": case_id,
            "batch": batch,
            "inputs": queue.hashes[case_id],
            "verdict": "refer",
            "reason_code": found.cause,
            "problem": found.problem,
        }
        for case_id, found in scoring.unjudged.items()
    ]
