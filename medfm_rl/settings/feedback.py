"""What reviewers and reports said of the target, as a run learns from it."""

from __future__ import annotations

import re
from typing import Final, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from medfm_rl.settings.base import Fraction, Settings

LearnedKind = Literal["masks", "accepted", "measurements", "verdicts", "grades", "preferences"]


_PASSWORD: Final = re.compile(r"^[\w+]+://[^/?#:@]*:[^@]+@|[?&]password=")


def has_password(store: str) -> bool:
    """Whether the URL of a store holds a password, for the server or as one of its options."""
    return "://" in store and _PASSWORD.search(store) is not None


class FeedbackSettings(Settings):
    """Feedback that a run learns from, and how far it is trusted."""

    model_config = ConfigDict(hide_input_in_errors=True)

    store: str = Field(
        description="The store: a SQLite file, or the URL of a PostgreSQL database, without a password (that comes "
        "from PGPASSWORD or ~/.pgpass). `medfm-rl feedback add` fills it."
    )
    kinds: tuple[LearnedKind, ...] = Field(
        ("masks", "accepted", "measurements", "verdicts", "grades", "preferences"),
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
        "each by a policy that did not learn from him; costs as much as the fine-tuning. There is none with "
        "fewer than four such patients, or where more patients had every mask accepted; accepted masks do not count.",
    )

    @field_validator("kinds")
    @classmethod
    def _something_teaches(cls, kinds: tuple[LearnedKind, ...]) -> tuple[LearnedKind, ...]:
        # Not by `min_length`, which counts what is left of a list with wrong names, and tells that beside them.
        if not kinds:
            raise ValueError("names no kind of feedback; leave it out to learn from all")
        return kinds

    @model_validator(mode="after")
    def _holds_no_password(self) -> Self:
        # Of the settings as a whole, for the message about a field shows its value. Settings are written into run
        # folders and to MLflow.
        if has_password(self.store):
            raise ValueError(
                "store has a password in its URL, and settings are written down with every run: take it out, and give "
                "it by PGPASSWORD or ~/.pgpass"
            )
        return self
