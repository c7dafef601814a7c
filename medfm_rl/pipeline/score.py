"""`medfm-rl score`: quality and verdict of every mask of a folder, whatever made the masks."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medfm_rl import __version__
from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.data.files import hash_file, hash_path, replace_on_success, write_json, write_text
from medfm_rl.data.images import hash_labels, image_stem, image_suffix, read_labels, write_image, write_labels
from medfm_rl.data.layouts import CaseFile, is_simulated
from medfm_rl.errors import DataError, ModelError, UserError
from medfm_rl.pipeline.case_records import CaseRecords, hash_case, hash_segmenter
from medfm_rl.pipeline.images import Progress
from medfm_rl.pipeline.models import choose_device, load_adapted, load_preprocessing
from medfm_rl.pipeline.run_folder import RunFolder
from medfm_rl.quality import QUALITY_FILE, BatchReport, QualityController, QualityReport
from medfm_rl.quality.biomedclip import BiomedCLIP
from medfm_rl.quality.submission import Submission
from medfm_rl.quality.views import ViewClassifier
from medfm_rl.quality_page import PageCase, thumbnail, write_page
from medfm_rl.types import Case

SCORES_FILE = "scores.json"
_MOST_WAITING = 16
_MOST_PIXELS = 4_000_000
_Waiting = tuple[Submission, dict[str, Any]]
"""A case and what its report depends on."""


@dataclass(frozen=True)
class Scoring:
    """What a call of `score` found.

    Attributes:
        batch: Reports and guarantees of the masks that could be judged.
        problems: By case: why it could not be judged. Such a case is referred.
    """

    batch: BatchReport
    problems: Mapping[str, str]

    def count(self, verdict: str) -> int:
        """Cases with that verdict."""
        found = sum(report.verdict == verdict for report in self.batch.reports)
        return found + (len(self.problems) if verdict == "refer" else 0)


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
    path: Path, device: str = "auto", gates: Gates = NO_GATES, segmenter: SegmenterAdapter | None = None
) -> QualityController:
    """Loads the quality model of a run with whatever segmenter it is for.

    Args:
        path: The run.
        device: Where the networks run.
        gates: Further networks to be asked.
        segmenter: That of the run, where it has been loaded to make masks; None for one that makes none.

    Raises:
        ModelError: A part is missing, damaged, or does not belong to the others.
        ConfigError: The device is not there.
    """
    chosen = choose_device(device)
    views = None if gates.echoprime is None else ViewClassifier.load(gates.echoprime, chosen)
    biomedclip = None if gates.biomedclip is None else BiomedCLIP.load(gates.biomedclip, chosen)
    judging = load_preprocessing(RunFolder(path)) if segmenter is None else segmenter
    return QualityController.load(path, lambda _: judging, chosen, views, biomedclip)


def find_masks(folder: Path, files: Sequence[CaseFile]) -> dict[str, Path]:
    """Masks of a folder by the case whose name they have.

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

    Raises:
        UserError: The quality model cannot be used, or not one case could be judged.
    """
    folder = RunFolder(run)
    folder.require_model()
    own = load_adapted(folder, prompts) if masks is None and segmenter is None else None
    controller = load_controller(run, device, gates, own)
    segmenter = segmenter if own is None else controller.segmenter
    if segmenter is not None and segmenter.schema.names != controller.schema.names:
        raise ModelError(
            f"the model segments {', '.join(segmenter.schema.structures)}, the quality model judges "
            f"{', '.join(controller.schema.structures)}; they must be of one anatomy"
        )
    networks = {"quality": hash_file(run / QUALITY_FILE), **gates.hashes()}
    queue = _ScoringQueue(controller, networks, masks, segmenter, out)
    inputs: dict[str, dict[str, Any]] = {}
    for done, file in enumerate(files, 1):
        try:
            inputs[file.case_id] = queue.inputs(file)
            queue.take(file, inputs[file.case_id])
        except UserError as error:
            queue.problems[file.case_id] = str(error)
        progress("scoring", done, len(files))
    queue.judge_waiting()
    reports = [queue.reports[file.case_id] for file in files if file.case_id in queue.reports]
    if not reports:
        raise DataError(f"no case could be judged; the first: {next(iter(queue.problems.values()))}")
    scoring = Scoring(controller.settle(reports), queue.problems)
    _write_tables(out, scoring, controller, queue)
    simulated = any(is_simulated(path.parent) for file in files[:1] for path in file.image_paths)
    _write_page(out, scoring, controller, simulated)
    queue.records.log(_audit_lines(scoring, inputs, controller, networks))
    return scoring


class _ScoringQueue:
    """Takes cases one by one, and judges together those of which no report is there yet."""

    def __init__(
        self,
        controller: QualityController,
        networks: Mapping[str, str],
        masks: Mapping[str, Path] | None,
        segmenter: SegmenterAdapter | None,
        out: Path,
    ) -> None:
        self.controller = controller
        self.networks = networks
        self.masks = masks
        self.segmenter = None if segmenter is None else segmenter.to(controller.device)
        self.maker = {} if segmenter is None else hash_segmenter(segmenter)
        self.out = out
        self.records = CaseRecords(out, "score")
        self.reports: dict[str, QualityReport] = {}
        self.mask_hashes: dict[str, str] = {}
        self.problems: dict[str, str] = {}
        self._waiting: list[_Waiting] = []

    def inputs(self, file: CaseFile) -> dict[str, Any]:
        """Hashes of everything that the report of a case depends on."""
        hashes = {**hash_case(file, self.segmenter), **self.maker, **self.networks}
        return hashes if self.masks is None else {**hashes, "mask": hash_path(self._mask(file))}

    def take(self, file: CaseFile, inputs: dict[str, Any]) -> None:
        """Takes the report that there is, or lets the case wait for enough others to be judged with it.

        Raises:
            UserError: The case cannot be made ready to be judged.
        """
        known = self.records.reuse(file.case_id, inputs)
        if known is not None:
            self.reports[file.case_id] = QualityReport.from_json(known["report"])
            self.mask_hashes[file.case_id] = known["mask"]
            return
        case = file.read()
        self.records.begin(file.case_id, inputs)
        self._waiting.append((self._submission(file, case), inputs))
        pixels = sum(submission.labels.size for submission, _ in self._waiting)
        if len(self._waiting) >= _MOST_WAITING or pixels >= _MOST_PIXELS:
            self.judge_waiting()

    def judge_waiting(self) -> None:
        """Judges the cases that wait, and writes what was found; one that fails keeps no other back."""
        waiting, self._waiting = self._waiting, []
        for submission, inputs, report in self._judge(waiting):
            try:
                self._write(submission, inputs, report)
            except UserError as error:
                self.problems[report.case_id] = str(error)
                continue
            # Maps of ten thousand cases would fill the memory, and they are in the files.
            self.reports[report.case_id] = replace(report, reward_map=np.zeros(0, np.float32))

    def _judge(self, waiting: Sequence[_Waiting]) -> list[tuple[Submission, dict[str, Any], QualityReport]]:
        try:
            reports = self.controller.judge([submission for submission, _ in waiting])
        except UserError as error:
            if len(waiting) == 1:
                self.problems[waiting[0][0].case.case_id] = str(error)
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

    def _mask(self, file: CaseFile) -> Path:
        assert self.masks is not None
        if file.case_id not in self.masks:
            raise DataError(f"case {file.case_id}: there is no mask of that name")
        return self.masks[file.case_id]

    def _submission(self, file: CaseFile, case: Case) -> Submission:
        controller = self.controller
        if self.segmenter is None:
            labels = read_labels(self._mask(file), controller.schema, case.shape, case.geometry)
            return controller.submit(case, labels)
        if self.segmenter is controller.segmenter:
            submission = controller.segment(case)
        else:
            submission = controller.submit(case, self.segmenter.segment(case))
        write_labels(self._label_path(file.case_id), submission.labels, case.geometry, controller.schema)
        return submission


def _write_tables(out: Path, scoring: Scoring, controller: QualityController, queue: _ScoringQueue) -> None:
    """`scores.csv`, one row for each case and structure, and `scores.json`."""
    columns = ["case_id", "patient_id", "structure", "predicted_dice", "low", "high", "mean_reward", "worst_reward"]
    columns += ["worst_centre", "shift_distance", "shift_probability", "view", "rules_failed", "verdict", "reasons"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    for report in scoring.batch.reports:
        for item in report.scores:
            writer.writerow(
                {
                    "case_id": report.case_id,
                    "patient_id": report.patient_id,
                    "structure": item.structure,
                    "predicted_dice": item.predicted_dice,
                    "low": item.low,
                    "high": item.high,
                    "mean_reward": item.mean_reward,
                    "worst_reward": item.worst_reward,
                    "worst_centre": " ".join(map(str, item.worst_centre)),
                    "shift_distance": report.shift_distance,
                    "shift_probability": report.shift_probability,
                    "view": "" if report.view is None else report.view.view,
                    "rules_failed": "; ".join(str(rule) for rule in report.rules if not rule.passed),
                    "verdict": report.verdict,
                    "reasons": "; ".join(report.reasons),
                }
            )
    for case_id, problem in scoring.problems.items():
        writer.writerow({"case_id": case_id, "verdict": "refer", "reasons": problem})
    write_text(out / "scores.csv", text.getvalue())
    cases = []
    for report in scoring.batch.reports:
        content = report.to_json()
        del content["embedding"]
        cases.append({**content, "mask": queue.mask_hashes[report.case_id]})
    write_json(
        out / SCORES_FILE,
        {
            "format": 2,
            "medfm_rl": __version__,
            "calibrated_on": controller.model.origin,
            "quality": queue.networks["quality"],
            # None where the masks came as files.
            "segmenter": queue.maker.get("segmenter"),
            "batch_state": scoring.batch.state,
            "batch_shift_probability": scoring.batch.shift_probability,
            "guarantees": [vars(guarantee) for guarantee in scoring.batch.guarantees],
            "cases": cases,
            "problems": dict(scoring.problems),
        },
    )


def _write_page(out: Path, scoring: Scoring, controller: QualityController, simulated: bool) -> None:
    cases = [
        PageCase(report, (out / "thumbnails" / f"{report.case_id}.png").read_bytes())
        for report in scoring.batch.reports
    ]
    write_page(out / "report.html", cases, scoring.problems, scoring.batch.guarantees, controller.model, simulated)


def _audit_lines(
    scoring: Scoring,
    inputs: Mapping[str, Mapping[str, Any]],
    controller: QualityController,
    networks: Mapping[str, str],
) -> list[dict[str, Any]]:
    """One line for each verdict that is handed out."""
    common = {**networks, "rewards": controller.model.reward_hashes}
    lines = [
        {**common, "case": report.case_id, "inputs": inputs[report.case_id], "verdict": report.verdict}
        for report in scoring.batch.reports
    ]
    return lines + [
        {**common, "case": case_id, "inputs": {}, "verdict": "refer", "problem": problem}
        for case_id, problem in scoring.problems.items()
    ]
