"""`medfm-rl score`: quality and verdict of every mask of a folder, whatever made the masks."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from medfm_rl import __version__
from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.delta import state_hash
from medfm_rl.data.files import append_lines, hash_file, hash_path, replace_on_success, write_json, write_text
from medfm_rl.data.images import hash_labels, image_stem, image_suffix, read_labels, write_image, write_labels
from medfm_rl.data.layouts import CaseFile, is_simulated
from medfm_rl.errors import DataError, ModelError, UserError
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
    judge = _Judge(controller, networks, masks, segmenter, out)
    inputs: dict[str, dict[str, str]] = {}
    for done, file in enumerate(files, 1):
        try:
            inputs[file.case_id] = judge.inputs(file)
            judge.take(file, inputs[file.case_id])
        except UserError as error:
            judge.problems[file.case_id] = str(error)
        progress("scoring", done, len(files))
    judge.settle_waiting()
    reports = [judge.reports[file.case_id] for file in files if file.case_id in judge.reports]
    if not reports:
        raise DataError(f"no case could be judged; the first: {next(iter(judge.problems.values()))}")
    scoring = Scoring(controller.settle(reports), judge.problems)
    _write_tables(out, scoring, controller, judge)
    simulated = any(is_simulated(path.parent) for file in files[:1] for path in file.image_paths)
    _write_page(out, scoring, controller, simulated)
    _append_audit(out / "audit.jsonl", scoring, inputs, controller, networks)
    return scoring


class _Judge:
    """Judges a case, or takes what was found before."""

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
        self.segmenter_hash = "" if segmenter is None else state_hash(segmenter)
        self.out = out
        self.reports: dict[str, QualityReport] = {}
        self.mask_hashes: dict[str, str] = {}
        self.problems: dict[str, str] = {}
        self._waiting: list[tuple[Submission, dict[str, str]]] = []

    def inputs(self, file: CaseFile) -> dict[str, str]:
        """Hashes of everything that the report of a case depends on."""
        hashes = {f"image {number}": hash_path(path) for number, path in enumerate(file.image_paths)}
        if self.masks is None:
            assert self.segmenter is not None
            hashes["segmenter"] = self.segmenter_hash
            prompts = self.segmenter.prompt_hash(file.case_id)
            if prompts is not None:
                hashes["prompts"] = prompts
        else:
            hashes["mask"] = hash_path(self._mask(file))
        return {**hashes, **self.networks}

    def take(self, file: CaseFile, inputs: dict[str, str]) -> None:
        """Takes the report that there is, or lets the case wait for enough others to be judged with it.

        Raises:
            UserError: The case cannot be judged.
        """
        known = _read_record(self._record(file.case_id))
        if known is not None and known["inputs"] == inputs:
            self.reports[file.case_id] = QualityReport.from_json(known["report"])
            self.mask_hashes[file.case_id] = known["mask"]
            return
        case = file.read()
        self._waiting.append((self._submission(file, case), inputs))
        pixels = sum(submission.labels.size for submission, _ in self._waiting)
        if len(self._waiting) >= _MOST_WAITING or pixels >= _MOST_PIXELS:
            self.settle_waiting()

    def settle_waiting(self) -> None:
        """Judges the cases that wait, and writes what was found; a case that cannot be written keeps no other back."""
        waiting, self._waiting = self._waiting, []
        reports = self.controller.judge([submission for submission, _ in waiting])
        for (submission, inputs), report in zip(waiting, reports, strict=True):
            try:
                self._write(submission, inputs, report)
            except UserError as error:
                self.problems[report.case_id] = str(error)
                continue
            # Maps of ten thousand cases would fill the memory, and they are in the files.
            self.reports[report.case_id] = replace(report, reward_map=np.zeros(0, np.float32))

    def _write(self, submission: Submission, inputs: Mapping[str, str], report: QualityReport) -> None:
        case = submission.case
        write_image(self.out / "rewards" / f"{case.case_id}.nii.gz", report.reward_map, case.geometry)
        picture = thumbnail(case.image[0], submission.labels, report.reward_map, self.controller.schema)
        with replace_on_success(self.out / "thumbnails" / f"{case.case_id}.png") as temporary:
            temporary.write_bytes(picture)
        # Last: a case with a record is complete.
        mask = self.mask_hashes[case.case_id] = hash_labels(submission.labels)
        write_json(self._record(case.case_id), {"inputs": inputs, "report": report.to_json(), "mask": mask})

    def _record(self, case_id: str) -> Path:
        return self.out / "cases" / f"{case_id}.json"

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
        write_labels(
            self.out / "labels" / f"{file.case_id}.nii.gz", submission.labels, case.geometry, controller.schema
        )
        return submission


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # Judged anew.
    return content if isinstance(content, dict) and {"inputs", "report", "mask"} <= content.keys() else None


def _write_tables(out: Path, scoring: Scoring, controller: QualityController, judge: _Judge) -> None:
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
        cases.append({**content, "mask": judge.mask_hashes[report.case_id]})
    write_json(
        out / SCORES_FILE,
        {
            "format": 2,
            "medfm_rl": __version__,
            "calibrated_on": controller.model.origin,
            # None where the masks came as files.
            "segmenter": judge.segmenter_hash or None,
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


def _append_audit(
    path: Path,
    scoring: Scoring,
    inputs: Mapping[str, Mapping[str, str]],
    controller: QualityController,
    networks: Mapping[str, str],
) -> None:
    """One line for each verdict that is handed out; nothing is ever rewritten."""
    common = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "medfm_rl": __version__,
        **networks,
        "rewards": controller.model.reward_hashes,
    }
    lines = [
        {**common, "case": report.case_id, "inputs": inputs[report.case_id], "verdict": report.verdict}
        for report in scoring.batch.reports
    ]
    lines += [
        {**common, "case": case_id, "inputs": {}, "verdict": "refer", "problem": problem}
        for case_id, problem in scoring.problems.items()
    ]
    append_lines(path, lines)
