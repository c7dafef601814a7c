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
from medfm_rl.data.files import alone_writing, leads_into, write_json, write_text
from medfm_rl.data.images import write_labels
from medfm_rl.data.layouts import CaseFile, are_simulated
from medfm_rl.data.mask_labels import write_class_names
from medfm_rl.errors import ConfigError, DataError
from medfm_rl.metrics.scores import MEAN
from medfm_rl.progress import Progress, silent
from medfm_rl.runs.case_records import CaseRecords, hash_case, label_path
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.runs.scores import SCORES_FILE, Scores
from medfm_rl.types import LabelSchema
from medfm_rl.version import __version__
from medfm_rl.workflows.deploy.correction_outputs import NOT_HANDLED
from medfm_rl.workflows.deploy.given_masks import GivenMasks
from medfm_rl.workflows.deploy.score import OWN_MASKS, NothingAssessedError, ScoreRequest, score
from medfm_rl.workflows.deploy.workers import Workers

TABLE_FILE: Final = "choices.csv"
CHOICES_FILE: Final = "choices.json"
_FORMAT: Final = 1
Side = Literal["before", "after"]
_NAMES: Final[Mapping[Side, str]] = {"before": "the mask in use", "after": "the adapted segmenter's mask"}


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
        before: Predicted Dice of the mask in use, mean over the structures that both masks have; None where they have
            none in common, or one of them could not be assessed.
        after: The same of the adapted segmenter's mask.
        reason: Why, in words; of a frame, why its clip.
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


@dataclass(frozen=True)
class _Scored:
    """What `score` says of one set of masks.

    Attributes:
        scores: Of those that could be assessed.
        problems: By case, why the mask could not be.
        reviews: Which reviews moved predictions, as records have it.
    """

    scores: Scores
    problems: Mapping[str, str]
    reviews: Mapping[str, Any]

    def predicted(self, case_id: str) -> dict[str, float]:
        """Predicted Dice of the structures that the mask of a case has."""
        case = self.scores.cases.get(case_id)
        found = {} if case is None else case.predicted
        return {name: value for name, value in found.items() if name != MEAN and value is not None}


def choose(
    run: FinishedRun,
    files: Sequence[CaseFile],
    out: Path,
    request: ChooseRequest,
    progress: Progress = silent,
    workers: Workers | None = None,
) -> Choices:
    """Scores the masks in use and those of a run's segmenter, and writes the one to go on with to `labels/`.

    The segmenter's is taken where it is predicted to be better by the margin, in the mean over the structures that both
    masks have, and the one in use wherever that cannot be said. Of a clip all frames are of one segmenter, by the mean
    of its frames. Nothing is promised of what was chosen, for promises are about masks of one segmenter: `before/` and
    `after/` hold the scores of each.

    Cases that were scored before, from the same files with the same networks, are not scored again.

    Args:
        run: A finished run of `adapt`, with its quality model.
        files: The images.
        out: Folder for the results.
        request: The masks in use, and what it takes to replace one.
        progress: Told how far it is.
        workers: Score cases side by side.

    Raises:
        UserError: As in `score`, but for cases that cannot be assessed; masks in use lie in `out`, or not one mask
            could be written.
    """
    _require_elsewhere(request.masks, out)
    with alone_writing(out):
        records = CaseRecords(out, "choose", run.identity)
        quality = {"quality": run.identity.quality_hash}
        for file in files:
            records.require_own(file.case_id, label_path(out, file.case_id), quality)
        for name in (TABLE_FILE, CHOICES_FILE):
            # They would be taken for results of this call if it did not end.
            (out / name).unlink(missing_ok=True)
        in_use = ScoreRequest(request.masks, request.labels)
        sides: dict[Side, _Scored] = {
            "before": _scored(run, files, out / "before", in_use, _about("masks in use", progress), workers),
            "after": _scored(run, files, out / "after", OWN_MASKS, _about("own masks", progress), workers),
        }
        schema = run.segmenter.schema
        own = {file.case_id: label_path(out / "after", file.case_id) for file in files}
        masks: dict[Side, GivenMasks] = {
            "before": GivenMasks.of_user(request.masks, request.labels, sides["before"].scores, schema),
            "after": GivenMasks(own, sides["after"].scores, schema),
        }
        reviews = sides["after"].reviews
        common = {"format": _FORMAT, **quality, **reviews, "margin": request.margin}
        writer = _Writer(records, common, _choices(files, sides, request.margin), masks, schema)
        found, problems = each_case(files, writer.write, "writing masks", progress)
        for name in problems:
            # One of an earlier call would look like one of this call.
            label_path(out, name).unlink(missing_ok=True)
        records.log([{"case": name, "decision": NOT_HANDLED, "problem": text} for name, text in problems.items()])
        if not found:
            raise DataError(f"no mask could be written; the first: {next(iter(problems.values()))}")
        made = Choices(tuple(found[file.case_id] for file in files if file.case_id in found), problems)
        _write_tables(out, files, made, {**common, "segmenter": sides["after"].scores.segmenter})
        write_class_names(label_path(out, files[0].case_id).parent, schema)
        return made


def _require_elsewhere(masks: Mapping[str, Path], out: Path) -> None:
    """Refuses masks in use that lie in the output folder: a second call would take what was chosen for what is in use.

    Raises:
        ConfigError: One does.
    """
    inside = next((path for path in masks.values() if leads_into(path, out)), None)
    if inside is not None:
        raise ConfigError(f"--out {out}: the mask in use {inside} lies in there; give another folder for the results")


def _about(masks: str, progress: Progress) -> Progress:
    """Tells of the stages that one set of masks goes through: both go through the same."""
    return lambda stage, done, total: progress(f"{masks}: {stage}", done, total)


def _scored(
    run: FinishedRun,
    files: Sequence[CaseFile],
    out: Path,
    request: ScoreRequest,
    progress: Progress,
    workers: Workers | None,
) -> _Scored:
    """What `score` says of masks, also where it can say nothing of any."""
    problems: Mapping[str, str]
    reviews: Mapping[str, Any] = {}
    try:
        scoring = score(run, files, out, request, progress, workers)
        problems, reviews = scoring.problems, scoring.scorer.reviews
    except NothingAssessedError as error:
        problems = error.problems
    return _Scored(Scores.read(out / SCORES_FILE), problems, reviews)


def _choices(files: Sequence[CaseFile], sides: Mapping[Side, _Scored], margin: float) -> dict[str, Choice]:
    """By case, which mask is taken; of a clip, one side for all frames."""
    units: dict[str, list[CaseFile]] = {}
    for file in files:
        units.setdefault(file.clip_id or file.case_id, []).append(file)
    choices = {}
    for members in units.values():
        predicted = {file.case_id: _in_common(sides, file.case_id) for file in members}
        gains = [after - before for before, after in predicted.values() if before is not None and after is not None]
        taken, reason = decide(gains, margin)
        for file in members:
            before, after = predicted[file.case_id]
            own = reason if gains else _why_not(sides, file.case_id)
            choices[file.case_id] = Choice(file.case_id, file.patient_id, taken, before, after, own)
    return choices


def _in_common(sides: Mapping[Side, _Scored], case_id: str) -> tuple[float | None, float | None]:
    """Predicted Dice of both masks of a case, mean over the structures that both have."""
    before, after = sides["before"].predicted(case_id), sides["after"].predicted(case_id)
    shared = [name for name in before if name in after]
    return (fmean(before[name] for name in shared), fmean(after[name] for name in shared)) if shared else (None, None)


def decide(gains: Sequence[float], margin: float) -> tuple[Side, str]:
    """Which mask is taken of a case, or of all frames of a clip, and why.

    Args:
        gains: Predicted gain of the case in Dice, or those of the frames of which there is one.
        margin: How much it has to be on average, and above 0.
    """
    if not gains:
        return "before", "nothing can be said of the gain"
    gain = fmean(gains)
    if gain > 0 and gain >= margin:
        return "after", f"predicted to be better by {gain:.3f}"
    return "before", f"the predicted gain of {gain:.3f} is below the margin" if gain > 0 else "no gain is predicted"


def _why_not(sides: Mapping[Side, _Scored], case_id: str) -> str:
    """Why nothing can be said of the gain in a case."""
    for side, scored in sides.items():
        if case_id in scored.problems:
            return f"{_NAMES[side]} could not be assessed: {scored.problems[case_id]}"
    return "the two masks have no structure in common"


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
    masks: Mapping[Side, GivenMasks]
    schema: LabelSchema

    def write(self, file: CaseFile) -> Choice:
        """Writes one.

        Raises:
            DataError: The image or the mask cannot be read.
        """
        choice = self.choices[file.case_id]
        taken = self.masks[choice.taken]
        inputs = {**self.common, **hash_case(file, None), **taken.hashes(file.case_id), **asdict(choice)}
        if self.records.reuse(file.case_id, inputs) is not None:
            return choice
        case = file.read()
        mask = taken.read(case)
        self.records.begin(file.case_id, inputs)
        path = label_path(self.records.out, file.case_id)
        write_labels(path, mask, case.geometry, self.schema)
        line = {"case": file.case_id, "decision": choice.taken}
        self.records.close_mask(line, inputs, mask, [path], asdict(choice))
        return choice


def _write_tables(out: Path, files: Sequence[CaseFile], choices: Choices, common: Mapping[str, Any]) -> None:
    """`choices.csv`, one row for each case, and `choices.json`."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "patient", "taken", "predicted_before", "predicted_after", "reason"])
    for choice in choices.made:
        values = ["" if value is None else f"{value:.4f}" for value in (choice.before, choice.after)]
        writer.writerow([choice.case, choice.patient, choice.taken, *values, choice.reason])
    for file in files:
        if file.case_id in choices.problems:
            writer.writerow([file.case_id, file.patient_id, NOT_HANDLED, "", "", choices.problems[file.case_id]])
    write_text(out / TABLE_FILE, text.getvalue())
    content = {
        **common,
        "medfm_rl": __version__,
        "before": choices.count("before"),
        "after": choices.count("after"),
        "cases": [asdict(choice) for choice in choices.made],
        "problems": dict(choices.problems),
        **({"simulated": True} if are_simulated(files) else {}),
    }
    write_json(out / CHOICES_FILE, content)
