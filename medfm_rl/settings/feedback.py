"""What reviewers and reports said of the target, as a run learns from it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medfm_rl.settings.base import Fraction, Settings

LearnedKind = Literal["masks", "accepted", "measurements", "verdicts", "grades", "preferences"]


class FeedbackSettings(Settings):
    """Feedback that a run learns from, and how far it is trusted."""

    store: str = Field(
        description="The store: a SQLite file, or the URL of a PostgreSQL database. `medfm-rl feedback add` fills it."
    )
    kinds: tuple[LearnedKind, ...] = Field(
        ("masks", "accepted", "measurements", "verdicts", "grades", "preferences"),
        min_length=1,
        description="What is learned from: corrected masks, masks that were accepted as they were (as references), "
        "values of reports, and what was said of whole masks: accepted or rejected, grades, preferences.",
    )
    accepted_trust: float = Field(
        0.5,
        gt=0,
        le=1,
        description="How often an accepted mask is shown, next to a corrected one: a mask can be accepted that is a "
        "little wrong.",
    )
    verdict_trust: float = Field(
        0.5, gt=0, le=1, description="How much a verdict on a mask weighs: it says less than a grade."
    )
    grade_trust: float = Field(1.0, gt=0, le=1, description="How much a grade of a mask weighs.")
    preference_trust: float = Field(1.0, gt=0, le=1, description="How much a preference between two masks weighs.")
    judgement_weight: float = Field(
        0.2,
        gt=0,
        description="Weight of verdicts, grades and preferences in the loss of the reward networks, beside that of "
        "pixels.",
    )
    share: Fraction = Field(
        1 / 3,
        description="Share of reviewed images among the labelled ones of a step, however few there are, beside those "
        "of the source.",
    )
    calibration_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the reviewed patients that never teach, so that promises can rest on them; each is drawn "
        "by himself, whoever else is in the store. Patients of an audit draw are kept in any case, unless "
        "learn_from_audit is set. Whoever taught a run that is gone on from is not kept.",
    )
    learn_from_audit: bool = Field(
        False, description="Learn from patients of an audit draw too; no promise can rest on them after that."
    )
    cross_fit: bool = Field(
        True,
        description="Decide between the source model and the adapted one on patients with drawn or corrected masks, "
        "each by a policy that did not learn from him; costs as much as the fine-tuning. With fewer than four such "
        "patients there is none; accepted masks do not count.",
    )
