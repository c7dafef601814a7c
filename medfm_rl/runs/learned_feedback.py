"""What a run learned from a feedback store, as `feedback.json` in its folder says: the one reader of that file."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import model_validator

from medfm_rl.data.files import write_versioned_json
from medfm_rl.data.json_models import read_model
from medfm_rl.errors import DataError

_FORMAT: Final = 3
_ADVICE: Final = "put back what `adapt` wrote there, or start a new run in another folder"
CORRECTED_TRUST: Final = 1.0


@dataclass(frozen=True)
class ReviewedCase:
    """A target case whose mask reviewers drew or accepted.

    Attributes:
        case_id: As the run calls it.
        patient_id: Of the case.
        masks: Hashes of the masks in the store, one for each reviewer.
        trust: How often it is shown beside a mask that was corrected, in (0, 1].
        drawn: Whether reviewers corrected or drew the masks; else they accepted what a model had made.
    """

    case_id: str
    patient_id: str
    masks: tuple[str, ...]
    trust: float
    drawn: bool = True

    @model_validator(mode="before")
    @classmethod
    def _with_what_was_drawn(cls, content: Any) -> Any:
        """Up to format 2 of the file the trust alone tells what was drawn."""
        return {"drawn": content.get("trust") == CORRECTED_TRUST, **content} if isinstance(content, dict) else content


@dataclass(frozen=True)
class Reported:
    """A value from a report.

    Attributes:
        patient_id: Whose it is.
        case_id: The case that was measured; None for the patient as a whole.
        name: Of the quantity, such as EF.
        structure: That was measured; None where the name says it.
        value: In the unit in which the store keeps that quantity.
        uncertainty: Standard deviation, in the same unit; None where it is not known.
    """

    patient_id: str
    case_id: str | None
    name: str
    structure: str | None
    value: float
    uncertainty: float | None


@dataclass(frozen=True)
class JudgedCase:
    """A verdict or grade on a mask of a target case.

    Attributes:
        case_id: As the run calls it.
        patient_id: Of the case.
        mask: Hash of the mask in the store.
        structure: Name; None for the mask as a whole.
        scale: What the value is one of.
        value: In [0, 1]: 1 for an acceptance and the best grade, 0 for a rejection and the worst.
        trust: In (0, 1].
    """

    case_id: str
    patient_id: str
    mask: str
    structure: str | None
    scale: Literal["verdict", "grade"]
    value: float
    trust: float


@dataclass(frozen=True)
class PreferredCase:
    """A preference between two masks of a target case.

    Attributes:
        case_id: As the run calls it.
        patient_id: Of the case.
        better: Hash of the better mask in the store.
        worse: Hash of the other.
        structure: Name; None for the masks as a whole.
        trust: In (0, 1].
    """

    case_id: str
    patient_id: str
    better: str
    worse: str
    structure: str | None
    trust: float


@dataclass(frozen=True)
class LearnedFeedback:
    """What a run learns from of a store.

    Attributes:
        store: Its name, without a password.
        state_hash: SHA-256 of what was in force when the run started.
        reviewed: Cases that teach.
        reported: Values that teach.
        kept: Patients with feedback who never teach: promises may rest on them.
        elsewhere: Cases with feedback whose image is not among those of the target.
        judged: Verdicts and grades that teach.
        preferred: Preferences that teach.
        taught_before: Patients who taught a run that this one goes on from; its weights and D_R know them.
    """

    store: str
    state_hash: str
    reviewed: tuple[ReviewedCase, ...]
    reported: tuple[Reported, ...]
    kept: tuple[str, ...]
    elsewhere: int
    judged: tuple[JudgedCase, ...] = ()
    preferred: tuple[PreferredCase, ...] = ()
    taught_before: tuple[str, ...] = ()

    @property
    def reviewed_patients(self) -> tuple[str, ...]:
        """Patients whose masks teach, sorted."""
        return tuple(sorted({each.patient_id for each in self.reviewed}))

    @property
    def judgements(self) -> tuple[JudgedCase | PreferredCase, ...]:
        """Verdicts and grades, then preferences."""
        return (*self.judged, *self.preferred)

    @property
    def judged_patients(self) -> tuple[str, ...]:
        """Patients of whom a verdict, grade or preference teaches, sorted."""
        return tuple(sorted({each.patient_id for each in self.judgements}))

    @property
    def teaching_patients(self) -> tuple[str, ...]:
        """Patients of whom anything teaches, sorted."""
        reported = {each.patient_id for each in self.reported}
        return tuple(sorted(reported.union(self.reviewed_patients, self.judged_patients)))

    @property
    def ever_taught(self) -> tuple[str, ...]:
        """Those, and whoever taught a run that this one goes on from, sorted: no promise may rest on them."""
        return tuple(sorted({*self.teaching_patients, *self.taught_before}))

    def without_teachers(self) -> Self:
        """What is left of it in a run that goes on from it and has no feedback of its own."""
        return replace(self, reviewed=(), reported=(), judged=(), preferred=(), taught_before=self.ever_taught)

    def write(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all."""
        write_versioned_json(path, _FORMAT, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads what `write` wrote, also format 1, which knew no judgements, and 2, which did not tell who drew a mask.

        Raises:
            DataError: The file is missing, is no such record, or was written by a newer version.
        """
        return read_model(path, cls, _FORMAT, "a record of feedback", _ADVICE, DataError)
