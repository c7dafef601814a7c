"""What a site does with verdicts: limits, what is asked of a promise, and what happens to what is not proven."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from medfm_rl.settings.base import Fraction, Settings

Outcome = Literal["accept", "refer"]


class SitePolicy(Settings):
    """What a site does with the verdicts of `score`, and which masks are good enough for it."""

    name: str = Field("site", min_length=1, description="Name of the policy, in tables, on the page and in the log.")
    limits: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(
        default_factory=dict,
        description="Dice below which a mask is bad, by structure, and as `mean` for the mean over structures. Where "
        "there is none for the mean, that of the calibration holds.",
    )
    alpha: float | None = Field(
        None,
        gt=0,
        lt=0.5,
        description="Largest probability of being below a limit with which a mask is accepted, and largest share of "
        "such masks among those accepted under a promise. null: that of the calibration.",
    )
    confidence: float | None = Field(
        None,
        gt=0.5,
        lt=1,
        description="Confidence that a promise must have. null: that of the calibration.",
    )
    unproven: Outcome = Field(
        "accept",
        description="What is done with a mask whose verdict is accept where no promise was tested for that: accept "
        "uses it, refer has a person look at it.",
    )
    suspended: Outcome = Field(
        "accept",
        description="The same where a test says that the batch is not like the calibration cases.",
    )
    audit_share: Fraction = Field(
        0.05, description="Share of the accepted masks to be drawn at random for review by a person."
    )

    @model_validator(mode="after")
    def _not_the_other_way_round(self) -> Self:
        if self.suspended == "accept" and self.unproven == "refer":
            raise ValueError(
                "suspended: accept and unproven: refer contradict each other: a mask would be used where a test says "
                "that nothing is promised, and referred where no test says so; write suspended: refer, or unproven: "
                "accept"
            )
        return self


CLINIC = SitePolicy(name="clinic", unproven="refer", suspended="refer")
"""Cautious: only what was accepted under a promise is used without a person."""
RESEARCH = SitePolicy(name="research")
"""Triage: verdicts are acted on from the first day; the guarantee stands beside each."""
BUILTIN_POLICIES: Mapping[str, SitePolicy] = {policy.name: policy for policy in (CLINIC, RESEARCH)}
