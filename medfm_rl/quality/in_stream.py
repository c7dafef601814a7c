"""What verdicts are worth in a stream: it is compared with its own beginning, study by study, in place of a batch test.

A stream that has not changed is what its reviewed patients are of, so that a mask that falls under their promise is
proven, also one that comes alone. Whether the stream is like the calibration cases nobody has tested: what is accepted
by the errors of those is expected, and no more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from medfm_rl.quality.drift import FEWEST_BEFORE, DriftTest
from medfm_rl.quality.guarantees import NEEDS_NO_PROMISE, RESTS_ON_PREDICTION, promise_of_intervals
from medfm_rl.quality.promise_state import PromiseState, Standing
from medfm_rl.quality.promises import Promise
from medfm_rl.quality.reports import BatchReport, Guarantee, PromiseStatus, QualityReport, ReasonCode, State, Status
from medfm_rl.quality.terms import Terms

_STATUS: Final[Mapping[Standing, Status]] = {
    "in force": "holds",
    "expected": "untested",
    "withdrawn": "suspended",
    "none": "none",
}


@dataclass(frozen=True)
class StreamStanding:
    """How a stream stands.

    Attributes:
        name: Name of the stream.
        drift: The test of it.
        promise: The promise of its reviewed patients; None where there is none.
        promise_state: What that is worth now.
    """

    name: str
    drift: DriftTest
    promise: Promise | None
    promise_state: PromiseState

    @property
    def state(self) -> State:
        """In the words of a batch: it holds, is suspended by an alarm or by reviews, or is too short to tell."""
        if self.drift.alarm is not None or self.promise_state.contradicted:
            return "suspended"
        return "holds" if self.drift.knows_itself else "untested"

    @property
    def words(self) -> str:
        """How it stands, in words."""
        alarm = self.drift.alarm
        if alarm is not None:
            return (
                f"stream {self.name} has changed, probably since number {alarm.since} of {self.drift.studies} that "
                f"were tested, by {alarm.signal}: {alarm.words}"
            )
        if self.promise_state.contradicted:
            return f"reviews of stream {self.name} say that its accepted masks are worse than promised"
        if not self.drift.knows_itself:
            return (
                f"stream {self.name} has {self.drift.studies} tested studies and reviews, and {FEWEST_BEFORE} are "
                "needed to notice a change soon"
            )
        return f"no change was found in the {self.drift.studies} tested studies and reviews of stream {self.name}"

    def promised(self, report: QualityReport, telling: bool, terms: Terms) -> tuple[ReasonCode, str] | None:
        """As in `Footing`; the promise is for masks that meet every rule.

        A threshold of the calibration promises nothing here: it is for batches that a test compares with it.
        """
        if self._not_under(terms) or telling:
            return None
        promise = self.promise
        assert promise is not None
        if not promise.accepts(report.mean_as_calibrated, all(rule.passed for rule in report.rules)):
            return None
        return "promise", f"at or above the threshold {promise.threshold:.3f} of the promise, and every rule is met"

    def worth(self, code: ReasonCode, terms: Terms) -> tuple[Guarantee, str]:
        """As in `Footing`."""
        if code not in RESTS_ON_PREDICTION:
            return "expected", NEEDS_NO_PROMISE
        if self.state == "suspended":
            return "suspended", f"{self.words}, so that what was learned before need not hold: a guess"
        promise, standing = self.promise, self.promise_state
        if code == "promise" and promise is not None and standing.standing == "in force":
            return "proven", f"{promise.target.words}: {standing.reason}; {self.words}"
        rests = f"it rests on the errors of {terms.known_patients}; {self.words}"
        if code == "promise":
            return "expected", f"{self.words}; its promise is not proven for this stream: {standing.reason}"
        why = self._not_under(terms)
        if not why and promise is not None:
            why = (
                f"its promise is of masks predicted at {promise.threshold:.3f} or above that meet every rule, and of "
                "no others"
            )
        return "expected", f"{rests}; not proven: {why}"

    def _not_under(self, terms: Terms) -> str:
        """Why no mask of the stream is accepted under a promise; empty where some are."""
        if self.promise is None or self.promise_state.standing in ("none", "withdrawn"):
            return self.promise_state.reason
        return terms.why_not_answered(self.promise.target)

    def summary(self, reports: Sequence[QualityReport], terms: Terms) -> BatchReport:
        """The masks of a call with what holds for the stream that they are of.

        Args:
            reports: With their verdicts.
            terms: What the policy asks.
        """
        code: ReasonCode = "predicted_dice" if self._not_under(terms) else "promise"
        return BatchReport(
            tuple(reports),
            self.state,
            len({report.patient_id for report in reports}),
            self.words,
            *self.worth(code, terms),
            None,
            self._promises(terms),
        )

    def _promises(self, terms: Terms) -> tuple[PromiseStatus, ...]:
        if self.state == "suspended":
            intervals = promise_of_intervals(terms, "suspended", self.words)
        else:
            unlike = "a stream is compared with itself, and not with the calibration cases"
            if terms.reviewed:
                unlike = f"they come from {terms.known_patients}; whether these are of this stream is for you to say"
            intervals = promise_of_intervals(terms, "untested", unlike)
        words = "accepted masks are as good as is asked" if self.promise is None else self.promise.target.words
        return intervals, PromiseStatus(words, _STATUS[self.promise_state.standing], self.promise_state.reason)
