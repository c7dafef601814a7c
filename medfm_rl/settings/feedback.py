"""What reviewers and reports said of the target, as a run learns from it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from medfm_rl.settings.base import Fraction, Settings

LearnedKind = Literal["masks", "accepted", "measurements"]


class FeedbackSettings(Settings):
    """Feedback that a run learns from, and how far it is trusted."""

    store: str = Field(
        description="The store: a SQLite file, or the URL of a PostgreSQL database. `medfm-rl feedback add` fills it."
    )
    kinds: tuple[LearnedKind, ...] = Field(
        ("masks", "accepted", "measurements"),
        min_length=1,
        description="What is learned from: corrected masks, masks that were accepted as they were, values of reports.",
    )
    accepted_trust: float = Field(
        0.5,
        gt=0,
        le=1,
        description="How often an accepted mask is shown, next to a corrected one: a mask can be accepted that is a "
        "little wrong.",
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
        description="Share of the reviewed patients that never teach, so that promises can rest on them. Patients of "
        "an audit draw are kept in any case, unless learn_from_audit is set.",
    )
    learn_from_audit: bool = Field(
        False, description="Learn from patients of an audit draw too; no promise can rest on them after that."
    )
    cross_fit: bool = Field(
        True,
        description="Decide between the source model and the adapted one on reviewed patients, each by a policy that "
        "did not learn from him; costs as much as the fine-tuning. With fewer than four patients there is none.",
    )
