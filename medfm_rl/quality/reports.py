"""Reports on a mask and on a batch of masks: scores, verdict with its reasons, what that is worth, and promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Literal, get_args

import numpy as np

from medfm_rl.anatomy.profiles import RuleResult
from medfm_rl.types import FloatArray

Verdict = Literal["accept", "correct", "refer"]
Guarantee = Literal["proven", "expected", "suspended"]
"""The worth of a verdict.

proven: a promise was tested for the rule that it was given by, on labelled cases of this domain, and no test says that
the batch differs from them. expected: the calibration leads to expect it, and nothing was proven for these masks.
suspended: a test says that the batch differs from the calibration cases.
"""
GUARANTEES: tuple[Guarantee, ...] = get_args(Guarantee)
"""The strongest first."""
Action = Literal["use", "correct", "refer"]
"""What a site's policy does with a mask."""
ShiftSeenBy = Literal["reward network", "appearance", "BiomedCLIP"]
State = Literal["holds", "weighted", "suspended", "untested"]
"""The state of the promises after the tests of a batch."""
Status = Literal["holds", "weighted", "suspended", "untested", "none"]
"""The same of one promise; none where there never was one."""
ReasonCode = Literal["promise", "threshold", "predicted_dice", "rules", "structure_missing", "shift_case", "view"]
"""The ground of a verdict.

accept: promise (it falls under that of the stream's reviewed patients), threshold (at or above one that a promise of
the calibration was tested for) or predicted_dice (hardly below a limit). correct:
rules (a telling one is broken) or predicted_dice (perhaps below a limit). refer: predicted_dice (almost surely below a
limit), structure_missing, shift_case (this image is unlike those of the calibration) and view (no apical one).
"""


APICAL: Final = frozenset(("A2C", "A3C", "A4C", "A5C"))
"""Views of echo that are apical, without those of Doppler."""


@dataclass(frozen=True)
class StructureScore:
    """Predicted quality of one structure of a mask, or of the mean over structures.

    Attributes:
        structure: Name, or `mean`.
        predicted_dice: In [0, 1]; None where the mask lacks the structure, and nothing can be said.
        low: Lower end of the interval; None likewise.
        high: Upper end.
        mean_reward: Mean probability of being right in and around the structure.
        worst_reward: Mean of that probability over the worst region in and around it.
        worst_centre: Centre of that region, pixel index on the case's own grid.
    """

    structure: str
    predicted_dice: float | None
    low: float | None
    high: float | None
    mean_reward: float
    worst_reward: float
    worst_centre: tuple[int, ...]


@dataclass(frozen=True)
class ViewFinding:
    """The finding of the classifier.

    Attributes:
        view: The most probable of `VIEWS`.
        probability: Probability of that view.
        apical: Probability of an apical view without Doppler.
    """

    view: str
    probability: float
    apical: float

    @property
    def is_apical(self) -> bool:
        return self.view in APICAL

    @classmethod
    def from_json(cls, content: Mapping[str, Any] | None) -> ViewFinding | None:
        """A finding from the result of `dataclasses.asdict`; None from None."""
        return None if content is None else cls(**content)


@dataclass(frozen=True, eq=False)
class QualityReport:
    """Everything that is known of one mask.

    Attributes:
        case_id: Name of the case.
        patient_id: Patient of the case.
        scores: Scores of each structure, the mean last.
        rules: What each anatomy rule measured.
        shift_distance: Mahalanobis distance from the calibration cases, by what the reward network saw in image and
            mask, by the appearance of the image, or by what BiomedCLIP saw in it, whichever is least probable.
        shift_probability: Probability of such a distance among images of their kind, for as many distances.
        verdict: What the evidence says. accept: it is good enough. correct: a person or a further step should correct
            it. refer: a person has to decide.
        reasons: Why, in words.
        embedding: What the reward network saw, for the test of a batch.
        look: What the image looks like by itself, `quality.appearance`, for the test of a stream; to four decimals.
        view: What a classifier of views sees, where there is one.
        reason_code: The first of the reasons, for a program; None before there is a verdict.
        shift_seen_by: Which of the three the distance is by.
        risk: Probability that the Dice lies below one of the limits; None where nothing is predicted.
        guarantee: What the verdict is worth; None before there is one.
        evidence: On what that rests, in words.
        action: What the policy does with the mask; None before there is a verdict.
        action_reason: Why, in words.
        reward_map: `(*S)` on the case's own grid, calibrated; empty where the report was read back.
        unmoved: Predicted Dice of each score before reviewed patients moved it (`quality.reviewed_errors`); empty where
            none did.
    """

    case_id: str
    patient_id: str
    scores: tuple[StructureScore, ...]
    rules: tuple[RuleResult, ...]
    shift_distance: float
    shift_probability: float
    verdict: Verdict
    reasons: tuple[str, ...]
    embedding: tuple[float, ...] = ()
    look: tuple[float, ...] = ()
    view: ViewFinding | None = None
    reason_code: ReasonCode | None = None
    shift_seen_by: ShiftSeenBy = "reward network"
    risk: float | None = None
    guarantee: Guarantee | None = None
    evidence: str = ""
    action: Action | None = None
    action_reason: str = ""
    reward_map: FloatArray = field(default_factory=lambda: np.zeros(0, np.float32))
    unmoved: tuple[float | None, ...] = ()

    @property
    def mean(self) -> StructureScore:
        return self.scores[-1]

    @property
    def mean_as_calibrated(self) -> float | None:
        """Predicted mean Dice by the quality model alone, which promises are about; None where nothing is predicted."""
        return self.unmoved[-1] if self.unmoved else self.mean.predicted_dice

    def to_json(self) -> dict[str, Any]:
        """Everything but the reward map, as plain JSON values."""
        content = asdict(replace(self, reward_map=np.zeros(0, np.float32)))
        del content["reward_map"]
        if not self.unmoved:
            del content["unmoved"]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> QualityReport:
        """The report that `to_json` wrote, without its map."""
        values = dict(content)
        values["scores"] = tuple(
            StructureScore(**{**score, "worst_centre": tuple(score["worst_centre"])}) for score in content["scores"]
        )
        values["rules"] = tuple(RuleResult(**rule) for rule in content["rules"])
        values["view"] = ViewFinding.from_json(content["view"])
        values["reasons"], values["embedding"] = tuple(content["reasons"]), tuple(content["embedding"])
        values["look"], values["unmoved"] = tuple(content.get("look", ())), tuple(content.get("unmoved", ()))
        return cls(**values)


@dataclass(frozen=True)
class PromiseStatus:
    """A promise, and whether it holds for a batch.

    Attributes:
        promise: In words.
        status: holds, weighted (it holds with other intervals, if only the shares of the images differ), suspended (a
            test says that it does not), untested, or none (there never was one).
        reason: Why.
    """

    promise: str
    status: Status
    reason: str

    @property
    def standing(self) -> str:
        """The status in words."""
        return "not promised" if self.status == "none" else self.status

    def __str__(self) -> str:
        return f"{self.standing}: {self.promise}"


@dataclass(frozen=True, eq=False)
class BatchReport:
    """Reports of the masks of a batch, with the verdicts that hold for them together.

    Attributes:
        reports: In the order given.
        state: Whether what is promised holds for the batch: it does, it does with weighted intervals, a test has
            suspended it, or the batch or the calibration is too small for the test.
        patients: How many the batch is of.
        meaning: What the state means for the verdicts, in words.
        guarantee: The most that a verdict `accept` of this batch is worth.
        evidence: On what that rests, in words.
        shift_probability: p-value of the two-sample test, or None where the batch is too small for it.
        promises: What is promised for this batch, and what is not: of the intervals, and of the threshold.
    """

    reports: Sequence[QualityReport]
    state: State
    patients: int
    meaning: str
    guarantee: Guarantee
    evidence: str
    shift_probability: float | None
    promises: tuple[PromiseStatus, ...]
