"""Is a stream of studies still what it was? A test after every study, valid however long one goes on looking.

Every study gives numbers for each signal: how far it lies from the calibration (appearance), where its images are
bright, how their grey values spread and how fine they are (look, `quality.appearance`), what the reward networks say of
its masks (rewards), how many anatomy rules they break (rules), and, of reviewed masks, the true Dice (reviewed).
While studies are exchangeable, the rank of a study's number among those before it is uniform and independent of the
ranks before (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005, chapter 7): its conformal
p-value. A gambler who bets against that gains without bound when the stream has changed, and a fair game otherwise: a
conformal test martingale (Vovk et al., Retrain or not retrain, arXiv 2102.10439).

Here he bets by power functions on small and on large p-values and changes between them now and then, as the simple
jumper does; and a new gambler enters with every study, so that a change after a long quiet time is found as soon. The
sum of their capitals is a Shiryaev-Roberts e-detector (Shin, Ramdas and Rinaldo, E-detectors, arXiv 2203.03532):
without a change its mean after n studies is n, so that an alarm at the sum 1,000 comes after 1,000 studies or more on
average. The signals share that: each has an equal part of the money, and the alarm is on the sum of all. Of a signal of
several numbers each number has an equal part of that part: a change in one of 79 is found a few studies later than in
the only one. While a signal says nothing, nobody enters its games: money saved in silence would be bet on its first
number, whose rank is chance. Each game is fair by itself; that the sum keeps the limit, of signals that depend on one
another too, is shown by simulation.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

import numpy as np
import numpy.typing as npt

from medfm_rl.seeding import derive_seed

Signal = Literal["appearance", "look", "rewards", "rules", "reviewed"]
SIGNALS: tuple[Signal, ...] = get_args(Signal)
STUDIES_TO_FALSE_ALARM: Final = 1000
"""Studies without a change after which one false alarm is expected at the earliest."""
FEWEST_BEFORE: Final = 20
"""Studies of one patient each without which a stream knows too little of itself to notice a change soon."""
_POWERS: Final = (0.15, 0.4, 0.7)
_JUMPING: Final = 0.02
"""Share of the capital that moves to other bets at each study."""
Numbers = Mapping[Signal, float | Sequence[float]]
"""What a study says to each signal: to look several numbers, to others one."""
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
        count: D, how many numbers come at once; each is ranked among those in its place.
    """

    def __init__(self, seed: int, name: str, count: int = 1) -> None:
        self._generator = np.random.default_rng(derive_seed(seed, "conformal ranks", name))
        self._sorted: list[list[float]] = [[] for _ in range(count)]

    def add(self, values: Array) -> Array:
        """Of each number the share so far, itself included, that is larger, with a part of those that are as large.

        Args:
            values: `(D,)`.

        Returns:
            `(D,)` in (0, 1); small for a number that is larger than those before.
        """
        larger, equal = [], []
        for known, value in zip(self._sorted, values.tolist(), strict=True):
            low, high = bisect.bisect_left(known, value), bisect.bisect_right(known, value)
            known.insert(high, value)
            larger.append(len(known) - 1 - high)
            equal.append(high - low + 1)
        drawn = np.maximum(self._generator.random(len(values)), 1e-9)
        found: Array = (np.array(larger) + drawn * np.array(equal)) / len(self._sorted[0])
        return found


class Detector:
    """The capitals of gamblers against uniform p-values, one of whom enters each game at each study.

    The bets are p^(k - 1) k and (1 - p)^(k - 1) k, and keeping the money; each is a density on [0, 1]. Capital is kept
    by bet, for all gamblers together: what they do is linear.

    Args:
        games: How many are played side by side.
    """

    def __init__(self, games: int = 1) -> None:
        self._bets = 2 * len(_POWERS) + 1
        self.capital: Array = np.zeros((games, self._bets))

    @property
    def by_game(self) -> Array:
        """The sum of the capitals in each game, `(D,)`."""
        found: Array = self.capital.sum(axis=1)
        return found

    def add(self, p: float | Array) -> None:
        """Lets gamblers enter and all of them bet on the p-value of each game."""
        stakes = self.capital + 1 / self._bets
        stakes = (1 - _JUMPING) * stakes + _JUMPING * stakes.sum(axis=1, keepdims=True) / self._bets
        # What is beyond any alarm need not be counted on.
        self.capital = np.minimum(stakes * _payoffs(np.atleast_1d(p)), 1e100)


class Watch:
    """The games of one signal, one for each of its numbers, among which its money is divided.

    Args:
        signal: Its name.
        seed: Of the draws that break ties.
    """

    def __init__(self, signal: Signal, seed: int) -> None:
        self.signal = signal
        self._seed = seed
        self._ranks: ConformalRanks | None = None
        self._detector = Detector()
        self._p_values: list[Array | None] = []

    @property
    def evidence(self) -> float:
        """The mean over the games of the sums of their capitals."""
        return float(self._detector.by_game.mean())

    def add(self, numbers: float | Sequence[float] | None) -> None:
        """Tests what a study says; None where it says nothing, and nothing happens.

        Raises:
            ValueError: There are more numbers than in the study before, or fewer.
        """
        if numbers is None:
            self._p_values.append(None)
            return
        values = np.atleast_1d(np.asarray(numbers, dtype=np.float64))
        if self._ranks is None:
            self._ranks = ConformalRanks(self._seed, self.signal, len(values))
            self._detector = Detector(len(values))
        found = self._ranks.add(values)
        self._detector.add(found)
        self._p_values.append(found)

    def change(self) -> tuple[int, str]:
        """From which study on the number that tells most is most unlike before, and what that means in words."""
        by_game = self._detector.by_game
        place = int(by_game.argmax())
        since, higher = change_point([None if found is None else float(found[place]) for found in self._p_values])
        if self.signal == "look":
            # Only here: it brings PyTorch, and a desk reads streams without.
            from medfm_rl.quality.appearance import meaning_of_number

            return since, meaning_of_number(place, len(by_game), higher)
        return since, _DIRECTIONS[self.signal][0 if higher else 1]


@dataclass
class DriftTest:
    """The test of a stream.

    Attributes:
        seed: Of the draws that break ties.
        limit: Sum of the capitals from which on there is an alarm.
        evidence: The sum of the capitals over the signals after each study that was tested.
        alarm: The first one; nothing is tested after it.
    """

    seed: int
    limit: float = STUDIES_TO_FALSE_ALARM
    evidence: list[float] = field(default_factory=list)
    alarm: Alarm | None = None

    def __post_init__(self) -> None:
        self._watches = [Watch(signal, self.seed) for signal in SIGNALS]

    def add(self, numbers: Numbers) -> Alarm | None:
        """Tests a study.

        Args:
            numbers: By signal; a signal may be missing, as the truth of what nobody has reviewed.

        Returns:
            The alarm, where there is one now or was before.

        Raises:
            ValueError: A signal has more numbers than before, or fewer.
        """
        if self.alarm is not None:
            return self.alarm
        for watch in self._watches:
            watch.add(numbers.get(watch.signal))
        self.evidence.append(sum(watch.evidence for watch in self._watches) / len(SIGNALS))
        if self.evidence[-1] >= self.limit:
            loudest = max(self._watches, key=lambda watch: watch.evidence)
            since, words = loudest.change()
            self.alarm = Alarm(len(self.evidence), since + 1, loudest.signal, words, self.evidence[-1])
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
    payoffs = np.log(_payoffs(np.array([p for p in p_values if p is not None])))
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


def _payoffs(p: Array) -> Array:
    """What each bet on each p-value `(N,)` pays, `(N, bets)`."""
    powers, small, large = np.asarray(_POWERS), np.maximum(p, 1e-9)[:, None], np.maximum(1 - p, 1e-9)[:, None]
    bets = [powers * small ** (powers - 1), powers * large ** (powers - 1), np.ones_like(small)]
    return np.concatenate(bets, axis=1)
