"""What `score`, `correct` and `propose` wrote, as the desk needs it.

Nothing here loads PyTorch, which takes seconds and hundreds of megabytes that a desk can do without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, field_validator

from medfm_rl.anatomy.profiles import RuleResult
from medfm_rl.data.json_models import read_model
from medfm_rl.data.json_text import parse_json
from medfm_rl.data.names import file_of_case
from medfm_rl.errors import DataError
from medfm_rl.metrics.scores import MEAN
from medfm_rl.quality.drift import mask_key
from medfm_rl.quality.reports import StructureScore
from medfm_rl.runs.scores import SCORES_FILE, AssessedMask, Scores
from medfm_rl.types import LabelSchema

CORRECTIONS: Final = "corrections.json"
PROPOSALS: Final = "proposals.json"
_MAKERS: Final = ("score", "propose")


@dataclass(frozen=True, eq=False)
class ScoredCase:
    """A mask as `score` assessed it, or why it could not be.

    Attributes:
        case: Name of the case.
        patient: Its patient.
        images: Files of the image.
        mask: File of the mask; None where there is none.
        labels_sha256: Hash of the labels that were assessed.
        folder: What `score` wrote.
        action: use, correct or refer: what the policy does with it.
        verdict: accept, correct or refer.
        guarantee: proven, expected or suspended.
        reasons: Why, in words.
        scores: Of each structure, and of the mean.
        rules: What each rule measured.
        problem: Why it could not be assessed.
        made_by: `model_hash` of what made the mask.
    """

    case: str
    patient: str
    images: tuple[Path, ...]
    mask: Path | None
    labels_sha256: str | None
    folder: Path
    action: str
    verdict: str
    guarantee: str | None = None
    reasons: tuple[str, ...] = ()
    scores: tuple[StructureScore, ...] = ()
    rules: tuple[RuleResult, ...] = ()
    problem: str | None = None
    made_by: str | None = None

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the structures that were assessed, in the order of their classes."""
        return tuple(score.structure for score in self.scores_of_structures)

    @property
    def scores_of_structures(self) -> tuple[StructureScore, ...]:
        """The scores without that of the mean."""
        return tuple(score for score in self.scores if score.structure != MEAN)

    @property
    def mean_dice(self) -> float | None:
        """Predicted mean Dice; None where none could be predicted."""
        return next((score.predicted_dice for score in self.scores if score.structure == MEAN), None)

    @property
    def key(self) -> str:
        """By which a stream knows the mask (`runs.stream_history.StudyCase.key`)."""
        return mask_key(self.case, str(self.labels_sha256))

    def recorded_inputs(self) -> Mapping[str, Any]:
        """Hashes of what was assessed, by the record that is kept of the case; nothing where it is gone."""
        records = (_inputs(file_of_case(self.folder / "cases" / name, self.case, ".json")) for name in _MAKERS)
        return next((inputs for inputs in records if inputs), {})

    def find(self, path: Path) -> Path | None:
        """Where a file lies that the scores name; None where it is gone.

        They name it as the command was given it, perhaps from the folder that it was called in: that is looked for
        among the folders that the scores lie in.
        """
        if path.is_absolute() or path.exists():
            return path if path.exists() else None
        places = (folder / path for folder in self.folder.absolute().parents)
        return next((place for place in places if place.exists()), None)

    def reward_file(self) -> Path:
        """Where the reward map of the mask lies, if it was kept."""
        return file_of_case(self.folder / "rewards", self.case, ".nii.gz")


def scores_path(place: Path) -> Path:
    """The `scores.json` of a folder, or the one that was given itself."""
    return place if place.name == SCORES_FILE else place / SCORES_FILE


def read_scores(place: Path) -> list[ScoredCase]:
    """Reads what `score` wrote.

    Args:
        place: Its folder, or the `scores.json` in it.

    Raises:
        DataError: There is none, it is of a newer version, or it lacks masks.
    """
    path = scores_path(place)
    if not path.exists():
        raise DataError(f"{path}: there is no such file; give the folder that `medfm-rl score` wrote (--out)")
    scores, maker = Scores.read(path), _maker(path.parent)
    without = [name for name, case in scores.cases.items() if case.mask_file is None]
    if without:
        raise DataError(
            f"{path}: does not say where the masks lie ({len(without)} of {len(scores.cases)} cases, {without[0]} for "
            "one); score the images with this version, and give it the masks (--masks), or the model that makes them "
            "(--model)"
        )
    unassessed = [
        ScoredCase(
            case=name,
            patient=found.patient_id or name,
            images=found.image_files,
            mask=found.mask_file,
            labels_sha256=None,
            folder=path.parent,
            action="refer",
            verdict="refer",
            problem=found.problem,
        )
        for name, found in scores.problems.items()
    ]
    return [*(_assessed(case, path.parent, maker) for case in scores.cases.values()), *unassessed]


def _assessed(case: AssessedMask, folder: Path, maker: str | None) -> ScoredCase:
    return ScoredCase(
        case=case.case_id,
        patient=case.patient_id,
        images=case.image_files,
        mask=case.mask_file,
        labels_sha256=case.mask,
        folder=folder,
        action=case.action,
        verdict=case.verdict,
        guarantee=case.guarantee,
        reasons=case.reasons,
        scores=case.scores,
        rules=case.rules,
        made_by=maker,
    )


def _inputs(record: Path) -> Mapping[str, Any]:
    try:
        content = parse_json(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    inputs = content.get("inputs") if isinstance(content, dict) else None
    return inputs if isinstance(inputs, dict) else {}


def _maker(folder: Path) -> str | None:
    """`model_hash` of what made the masks, by the last line of the audit log; None where nothing says it."""
    try:
        lines = (folder / "audit.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for line in reversed(lines):
        try:
            found = parse_json(line)
        except ValueError:
            continue
        if isinstance(found, dict) and found.get("command") == "score":
            maker = found.get("made_by")
            return maker if isinstance(maker, str) else None
    return None


@dataclass(frozen=True)
class Correction:
    """What `correct` made of a case.

    Attributes:
        case: Name of the case.
        decision: corrected, proposed or referred.
        reasons: Why.
        mask: File of the mask that it made; None where it made none.
        images: SHA-256 of the images that it was made for; empty where no record says it.
    """

    case: str
    decision: str
    reasons: tuple[str, ...]
    mask: Path | None
    images: tuple[str, ...]


class _Decision(BaseModel):
    case: str
    decision: str
    reasons: tuple[str, ...]


class _CorrectionsFile(BaseModel):
    cases: tuple[_Decision, ...]


def read_corrections(place: Path) -> dict[str, Correction]:
    """Reads what `correct` wrote, by case.

    Raises:
        DataError: There is nothing of it, or it is of a newer version.
    """
    path = place / CORRECTIONS
    if not path.exists():
        raise DataError(f"{path}: there is no such file; give the folder that `medfm-rl correct` wrote (--out)")
    words, advice = "a corrections.json of `medfm-rl correct`", "correct the masks with this version"
    found = {}
    for each in read_model(path, _CorrectionsFile, 1, words, advice, DataError).cases:
        folder = {"corrected": "labels", "proposed": "proposals"}.get(each.decision)
        mask = None if folder is None else file_of_case(place / folder, each.case, ".nii.gz")
        inputs = _inputs(file_of_case(place / "cases" / "correct", each.case, ".json"))
        images = tuple(map(str, inputs.get("images", ())))
        found[each.case] = Correction(each.case, each.decision, each.reasons, mask, images)
    return found


@dataclass(frozen=True)
class Proposal:
    """A case that `propose` wants reviewed.

    Attributes:
        case: Name of the case.
        patient: Its patient.
        images: Files of the image.
        mask: File of the mask.
        kind: audit or informative.
        why: In words.
        folder: What `propose` wrote.
        made_by: `model_hash` of the run.
    """

    case: str
    patient: str
    images: tuple[Path, ...]
    mask: Path
    kind: str
    why: str
    folder: Path
    made_by: str | None


@dataclass(frozen=True)
class Proposals:
    """What `propose` wrote.

    Attributes:
        proposals: The audit list first, in its order.
        structures: The structures in the masks, with their integers; None where an older version did not say.
    """

    proposals: tuple[Proposal, ...]
    structures: LabelSchema | None


class _Maker(BaseModel):
    model_hash: str | None = None


class _ProposedCase(BaseModel):
    case: str
    image_files: tuple[Path, ...]
    mask_file: Path


class _ProposedPatient(BaseModel):
    patient: str
    why: str
    cases: tuple[_ProposedCase, ...]


class _ProposedList(BaseModel):
    patients: tuple[_ProposedPatient, ...]


class _ProposalsFile(BaseModel):
    run: _Maker
    audit: _ProposedList
    informative: _ProposedList
    structures: dict[str, int] | None = None

    @field_validator("structures")
    @classmethod
    def _are_a_schema(cls, structures: dict[str, int] | None) -> dict[str, int] | None:
        if structures is not None:
            LabelSchema.from_integers(structures)
        return structures


def read_proposals(place: Path) -> Proposals:
    """Reads what `propose` wrote.

    Raises:
        DataError: There is nothing of it, it is damaged, or of a newer version.
    """
    path = place / PROPOSALS
    if not path.exists():
        raise DataError(f"{path}: there is no such file; give the folder that `medfm-rl propose` wrote (--out)")
    words, advice = "a proposals.json of `medfm-rl propose`", "propose again with this version"
    content = read_model(path, _ProposalsFile, 1, words, advice, DataError)
    proposals = tuple(
        Proposal(
            case.case,
            patient.patient,
            case.image_files,
            case.mask_file,
            kind,
            patient.why,
            place,
            content.run.model_hash,
        )
        for kind, listed in (("audit", content.audit), ("informative", content.informative))
        for patient in listed.patients
        for case in patient.cases
    )
    return Proposals(proposals, None if content.structures is None else LabelSchema.from_integers(content.structures))
