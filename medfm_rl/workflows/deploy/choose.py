"""`medfm-rl choose`: case by case, the mask of an adapted segmenter or the one that is in use.

Adapting makes most masks better and some worse. Which ones become worse no score tells for certain; where there is much
to gain, predicted Dice tells better. So a mask in use gives way only where the other one is predicted to be better by a
margin: few of the cases that are left alone would have gained much, and none of them can lose.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final, Literal

from medfm_rl.correction.acceptance import HARM
from medfm_rl.data.each_case import each_case
from medfm_rl.data.files import alone_writing, write_json, write_text
from medfm_rl.data.images import write_labels
from medfm_rl.data.labels import hash_labels
from medfm_rl.data.layouts import CaseFile, are_simulated
from medfm_rl.data.mask_labels import labels_in_masks, write_class_names
from medfm_rl.errors import ConfigError, DataError
from medfm_rl.progress import Progress, silent
from medfm_rl.quality.model import MEAN
from medfm_rl.runs.case_records import CaseRecords, hash_case, label_path
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.types import LabelSchema
from medfm_rl.version import __version__
from medfm_rl.workflows.deploy.given_masks import GivenMasks
from medfm_rl.workflows.deploy.score import OWN_MASKS, ScoreRequest, score
from medfm_rl.workflows.deploy.scores_file import SCORES_FILE, Scores
from medfm_rl.workflows.deploy.workers import Workers

TABLE_FILE: Final = "choices.csv"
CHOICES_FILE: Final = "choices.json"
_FORMAT: Final = 1
Side = Literal["before", "after"]


@dataclass(frozen=True)
class ChooseRequest:
    """The masks in use, and what it takes to replace one.

    Attributes:
        masks: The masks in use by case.
        labels: The integers in them, as in `labels_in_masks`.
        margin: Predicted gain in mean Dice, in [0, 1], from which on the adapted segmenter's mask is taken. By default
            what counts as harm where it is a loss.

    Raises:
        ConfigError: The margin is no such number.
    """

    masks: Mapping[str, Path]
    labels: str | None = None
    margin: float = HARM

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= 1:
            raise ConfigError(f"--margin {self.margin:g}: a gain in Dice, from 0 to 1, such as {HARM:g}")


@dataclass(frozen=True)
class Choice:
    """Which mask was taken of a case.

    Attributes:
        case: Name of the case.
        patient: Its patient.
        taken: `before`: the mask in use; `after`: that of the adapted segmenter.
        before: Predicted mean Dice of the mask in use; None where it lacks a structure or could not be assessed.
        after: The same of the adapted segmenter's mask.
        reason: Why, in words.
    """

    case: str
    patient: str
    taken: Side
    before: float | None
    after: float | None
    reason: str


@dataclass(frozen=True)
class Choices:
    """The result of a call of `choose`.

    Attributes:
        made: One for each case of which a mask was written.
        problems: By case, why there is no mask.
    """

    made: tuple[Choice, ...]
    problems: Mapping[str, str]

    def count(self, side: Side) -> int:
        """Cases of which that mask was taken."""
        return sum(choice.taken == side for choice in self.made)


def decide(before: float | None, after: float | None, margin: float) -> tuple[Side, str]:
    """Which of two masks is taken by their predicted Dice, and why.

    Args:
        before: Of the mask in use; None where it lacks a structure or could not be assessed.
        after: Of the other.
        margin: By how much the other has to be better.
    """
    if after is None:
        return "before", "the adapted segmenter's mask lacks a structure, or could not be assessed"
    if before is None:
        return "after", "the mask in use lacks a structure, or could not be assessed"
    gain = after - before
    if gain >= margin:
        return "after", f"predicted to be better by {gain:.3f}"
    return "before", f"the predicted gain of {gain:.3f} is below the margin"


def choose(
    run: FinishedRun,
    files: Sequence[CaseFile],
    out: Path,
    request: ChooseRequest,
    progress: Progress = silent,
    workers: Workers | None = None,
) -> Choices:
    """Scores the masks in use and those of a run's segmenter, and writes the better one of each case to `labels/`.

    Of a clip all frames are of one segmenter: the one that its frames ask for on average. Nothing is promised of what
    was chosen, for promises are about masks of one segmenter: `before/` and `after/` hold the scores of each.

    Cases that were scored before, from the same files with the same networks, are not scored again.

    Args:
        run: A finished run of `adapt`, with its quality model.
        files: The images.
        out: Folder for the results.
        request: The masks in use, and what it takes to replace one.
        progress: Told how far it is.
        workers: Score cases side by side.

    Raises:
        UserError: As in `score`, or not one mask could be written.
    """
    with alone_writing(out):
        records = CaseRecords(out, "choose", run.identity)
        quality = {"quality": run.identity.quality_hash}
        for file in files:
            records.require_own(file.case_id, label_path(out, file.case_id), quality)
        in_use = ScoreRequest(request.masks, request.labels)
        sides = {
            "before": _scored(run, files, out / "before", in_use, _about(progress, "the masks in use"), workers),
            "after": _scored(run, files, out / "after", OWN_MASKS, _about(progress, "those of the run"), workers),
        }
        schema = run.segmenter.schema
        own = {file.case_id: label_path(out / "after", file.case_id) for file in files}
        in_masks = labels_in_masks(request.labels, request.masks, schema)
        masks = {
            "before": GivenMasks(request.masks, sides["before"], schema, in_masks),
            "after": GivenMasks(own, sides["after"], schema),
        }
        common = {"format": _FORMAT, **quality, "margin": request.margin}
        writer = _Writer(records, common, _choices(files, sides, request.margin), masks, schema)
        found, problems = each_case(files, writer.write, "writing masks", progress)
        if not found:
            raise DataError(f"no mask could be written; the first: {next(iter(problems.values()))}")
        made = Choices(tuple(found[file.case_id] for file in files if file.case_id in found), problems)
        _write_tables(out, made, request.margin, sides["after"], are_simulated(files))
        write_class_names(label_path(out, files[0].case_id).parent, schema)
        return made


@dataclass(frozen=True)
class _Writer:
    """Writes the mask of each case that was taken, unless it is there.

    Attributes:
        records: What was done before, and where.
        common: What the result of every case depends on.
        choices: By case.
        masks: Of both sides.
        schema: Structures of the masks.
    """

    records: CaseRecords
    common: Mapping[str, Any]
    choices: Mapping[str, Choice]
    masks: Mapping[str, GivenMasks]
    schema: LabelSchema

    def write(self, file: CaseFile) -> Choice:
        """Writes one.

        Raises:
            DataError: The image or the mask cannot be read.
        """
        choice = self.choices[file.case_id]
        inputs = {**self.common, **hash_case(file, None), **self._hashes(file), **asdict(choice)}
        if self.records.reuse(file.case_id, inputs) is not None:
            return choice
        case = file.read()
        mask = self.masks[choice.taken].read(case)
        self.records.begin(file.case_id, inputs)
        path = label_path(self.records.out, file.case_id)
        write_labels(path, mask, case.geometry, self.schema)
        outputs = self.records.hash_files([path])
        line = {"case": file.case_id, "decision": choice.taken, "mask": hash_labels(mask)}
        self.records.close(
            file.case_id, inputs, asdict(choice), outputs, {**line, "inputs": inputs, "outputs": outputs}
        )
        return choice

    def _hashes(self, file: CaseFile) -> dict[str, str | None]:
        """Hashes of the masks of a case that were scored, by side."""
        return {
            f"mask_{side}": None if masks.scores is None else masks.scores.masks.get(file.case_id)
            for side, masks in self.masks.items()
        }


def _about(progress: Progress, masks: str) -> Progress:
    """Tells of the stages that one set of masks goes through: both go through the same."""
    return lambda stage, done, total: progress(f"{stage} {masks}", done, total)


def _scored(
    run: FinishedRun,
    files: Sequence[CaseFile],
    out: Path,
    request: ScoreRequest,
    progress: Progress,
    workers: Workers | None,
) -> Scores:
    score(run, files, out, request, progress, workers)
    return Scores.read(out / SCORES_FILE)


def _choices(files: Sequence[CaseFile], sides: Mapping[str, Scores], margin: float) -> dict[str, Choice]:
    """By case, which mask is taken; of a clip, one side for all frames."""
    predicted = {
        file.case_id: tuple(sides[side].predicted.get(file.case_id, {}).get(MEAN) for side in ("before", "after"))
        for file in files
    }
    units: dict[str, list[CaseFile]] = {}
    for file in files:
        units.setdefault(file.clip_id or file.case_id, []).append(file)
    choices = {}
    for members in units.values():
        of_before, of_after = (_mean([predicted[file.case_id][side] for file in members]) for side in (0, 1))
        taken, reason = decide(of_before, of_after, margin)
        for file in members:
            before, after = predicted[file.case_id]
            choices[file.case_id] = Choice(file.case_id, file.patient_id, taken, before, after, reason)
    return choices


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _write_tables(out: Path, choices: Choices, margin: float, scores: Scores, simulated: bool) -> None:
    """`choices.csv`, one row for each case, and `choices.json`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "patient", "taken", "predicted_before", "predicted_after", "reason"])
    for choice in choices.made:
        values = ["" if value is None else f"{value:.4f}" for value in (choice.before, choice.after)]
        writer.writerow([choice.case, choice.patient, choice.taken, *values, choice.reason])
    for case, problem in choices.problems.items():
        writer.writerow([case, "", "none", "", "", problem])
    write_text(out / TABLE_FILE, text.getvalue())
    content = {
        "format": _FORMAT,
        "medfm_rl": __version__,
        "margin": margin,
        "quality": scores.quality,
        "segmenter": scores.segmenter,
        "before": choices.count("before"),
        "after": choices.count("after"),
        "cases": [asdict(choice) for choice in choices.made],
        "problems": dict(choices.problems),
        **({"simulated": True} if simulated else {}),
    }
    write_json(out / CHOICES_FILE, content)
