"""Is a stream of studies still what it was? A test after every study, valid however long one goes on looking.

Every study gives a number for each signal: how far it lies from the calibration (appearance), what the reward networks
say of its masks (rewards), how many anatomy rules they break (rules), and, of reviewed masks, the true Dice (reviewed).
While studies are exchangeable, the rank of a study's number among those before it is uniform and independent of the
ranks before (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005, chapter 7): its conformal
p-value. A gambler who bets against that gains without bound when the stream has changed, and a fair game otherwise: a
conformal test martingale (Vovk et al., Retrain or not retrain, arXiv 2102.10439).

Here he bets by power functions on small and on large p-values and changes between them now and then, as the simple
jumper does; and a new gambler enters with every study, so that a change after a long quiet time is found as soon. The
sum of their capitals is a Shiryaev-Roberts e-detector (Shin, Ramdas and Rinaldo, E-detectors, arXiv 2203.03532):
without a change its mean after n studies is n, so that an alarm at the sum 1,000 comes after 1,000 studies or more on
average. The signals share that: each has an equal part of the money, and the alarm is on the sum of all. Each signal's
game is fair by itself; that the sum keeps the limit is shown by simulation.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from medfm_rl.seeding import derive_seed

Signal = Literal["appearance", "rewards", "rules", "reviewed"]
SIGNALS: tuple[Signal, ...] = get_args(Signal)
STUDIES_TO_FALSE_ALARM: Final = 1000
"""Studies without a change after which one false alarm is expected at the earliest."""
FEWEST_BEFORE: Final = 20
"""Studies of one patient each without which a stream knows too little of itself to notice a change soon."""
_POWERS: Final = (0.15, 0.4, 0.7)
_JUMPING: Final = 0.02
"""Share of the capital that moves to other bets at each study."""
_DIRECTIONS: Final[Mapping[Signal, tuple[str, str]]] = {
    "appearance": ("images are less like those of the calibration", "images are more like those of the calibration"),
    "rewards": ("the reward networks think better of the masks", "the reward networks think less of the masks"),
    "rules": ("masks break more anatomy rules", "masks break fewer anatomy rules"),
    "reviewed": ("reviewed masks are better", "reviewed masks are worse"),
}
"""What it means that numbers are higher, or lower."""
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Alarm:
    """A stream has changed.

    Attributes:
        study: Number of the study at which it was noticed, counted from 1.
        since: Number of the study from which on the signal is most unlike before.
        signal: The signal that tells most.
        words: What it tells.
        evidence: Sum of the capitals; an alarm is given from 1,000 on.
    """

    study: int
    since: int
    signal: Signal
    words: str
    evidence: float


class ConformalRanks:
    """p-values of numbers that come one by one: ranks among themselves, ties broken by a seeded draw.

    Args:
        seed: Of the draws.
        name: Of what they are for.
    """

    def __init__(self, seed: int, name: str) -> None:
        self._generator = np.random.default_rng(derive_seed(seed, "conformal ranks", name))
        self._sorted: list[float] = []

    def add(self, value: float) -> float:
        """The share of numbers so far, this one included, that are larger, with a part of those that are as large.

        Small for a number that is larger than those before, in (0, 1).
        """
        low = bisect.bisect_left(self._sorted, value)
        high = bisect.bisect_right(self._sorted, value)
        self._sorted.insert(high, value)
        larger, equal = len(self._sorted) - 1 - high, high - low + 1
        drawn = max(float(self._generator.random()), 1e-9)
        return (larger + drawn * equal) / len(self._sorted)


class Detector:
    """The capitals of gamblers against uniform p-values, one of whom enters at each study.

    The bets are p^(k - 1) k and (1 - p)^(k - 1) k, and keeping the money; each is a density on [0, 1]. Capital is kept
    by bet, for all gamblers together: what they do is linear.
    """

    def __init__(self) -> None:
        self._bets = 2 * len(_POWERS) + 1
        self.capital: Array = np.zeros(self._bets)

    @property
    def evidence(self) -> float:
        """The sum of the capitals."""
        return float(self.capital.sum())

    def add(self, p: float) -> float:
        """Lets a gambler enter and all of them bet on a p-value; the sum of their capitals after it."""
        stakes = self.capital + 1 / self._bets
        stakes = (1 - _JUMPING) * stakes + _JUMPING * stakes.sum() / self._bets
        # What is beyond any alarm need not be counted on.
        self.capital = np.minimum(stakes * _payoffs(p), 1e100)
        return self.evidence

    def skip(self) -> float:
        """Lets a gambler enter where a study gives no number: nobody bets."""
        self.capital = self.capital + 1 / self._bets
        return self.evidence


@dataclass
class DriftTest:
    """The test of a stream.

    Attributes:
        seed: Of the draws that break ties.
        limit: Sum of the capitals from which on there is an alarm.
        p_values: By signal, the p-value of each study that was tested; None where it gives no number.
        evidence: The sum of the capitals over the signals after each study that was tested.
        alarm: The first one; nothing is tested after it.
    """

    seed: int
    limit: float = STUDIES_TO_FALSE_ALARM
    p_values: dict[Signal, list[float | None]] = field(default_factory=lambda: {signal: [] for signal in SIGNALS})
    evidence: list[float] = field(default_factory=list)
    alarm: Alarm | None = None

    def __post_init__(self) -> None:
        self._ranks = {signal: ConformalRanks(self.seed, signal) for signal in SIGNALS}
        self._detectors = {signal: Detector() for signal in SIGNALS}

    def add(self, numbers: Mapping[Signal, float]) -> Alarm | None:
        """Tests a study.

        Args:
            numbers: By signal; a signal may be missing, as the truth of what nobody has reviewed.

        Returns:
            The alarm, where there is one now or was before.
        """
        if self.alarm is not None:
            return self.alarm
        for signal in SIGNALS:
            if signal in numbers:
                p = self._ranks[signal].add(numbers[signal])
                self._detectors[signal].add(p)
                self.p_values[signal].append(p)
            else:
                self._detectors[signal].skip()
                self.p_values[signal].append(None)
        by_signal = {signal: detector.evidence for signal, detector in self._detectors.items()}
        self.evidence.append(sum(by_signal.values()) / len(SIGNALS))
        if self.evidence[-1] >= self.limit:
            loudest = max(SIGNALS, key=lambda signal: by_signal[signal])
            since, higher = change_point(self.p_values[loudest])
            study = len(self.evidence)
            words = _DIRECTIONS[loudest][0 if higher else 1]
            self.alarm = Alarm(study, since + 1, loudest, words, self.evidence[-1])
        return self.alarm

    @property
    def studies(self) -> int:
        """How many were tested."""
        return len(self.evidence)

    @property
    def knows_itself(self) -> bool:
        """Whether there were enough studies to notice a change soon."""
        return self.studies >= FEWEST_BEFORE


def change_point(p_values: Sequence[float | None]) -> tuple[int, bool]:
    """From where on p-values are least uniform, as the CUSUM statistic has it, and whether they are small from there.

    Returns:
        Index of the first such p-value, and whether numbers are higher since then.
    """
    known = [index for index, p in enumerate(p_values) if p is not None]
    payoffs = np.log(np.array([_payoffs(p) for p in p_values if p is not None]))
    # Gains from each index to the end, by bet.
    gains = payoffs[::-1].cumsum(axis=0)[::-1][:, :-1]
    row, bet = np.unravel_index(int(gains.argmax()), gains.shape)
    return known[int(row)], int(bet) < len(_POWERS)


def mask_key(case: str, mask: str) -> str:
    """Tells a mask from every other one: SHA-256 of the name of its case and of the hash of its labels."""
    return hashlib.sha256(f"{case}\0{mask}".encode()).hexdigest()


def audit_draw(seed: int, case: str, share: float) -> bool:
    """Whether a case is drawn for review: the same for every process, and not to be foreseen without the seed.

    Args:
        seed: Of the stream.
        case: What identifies image and mask, such as a hash.
        share: Of the cases that are drawn, in [0, 1].
    """
    return derive_seed(seed, "audit", case) / 2**31 < share


def conformal_p_values(numbers: Iterable[float], seed: int) -> list[float]:
    """The p-value of each number among those before it."""
    ranks = ConformalRanks(seed, "numbers")
    return [ranks.add(number) for number in numbers]


def _payoffs(p: float) -> Array:
    powers = np.asarray(_POWERS)
    small, large = max(p, 1e-9), max(1 - p, 1e-9)
    return np.concatenate([powers * small ** (powers - 1), powers * large ** (powers - 1), [1.0]])
