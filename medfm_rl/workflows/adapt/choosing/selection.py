"""Choice of a candidate without labels, by signals of different kinds of which none decides alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final, Self

import numpy as np
from scipy.stats import spearmanr

from medfm_rl.data.files import read_versioned_json, write_versioned_json
from medfm_rl.errors import DataError
from medfm_rl.metrics.bootstrap import paired_bootstrap
from medfm_rl.runs.folder import SOURCE, current_name
from medfm_rl.workflows.adapt.choosing.signals import REWARD, Values

_FORMAT = 3
_ADVICE = "put back what `adapt` wrote there, or delete it and resume the run"
_AHEAD: Final = 2
"""How many more signals must be surely for a change than surely against it."""
_LEAST_PAIRS: Final = 20
_SIGNIFICANT: Final = 0.05

Comparison = Mapping[str, tuple[Values, Values]]
"""By signal the values `(N,)` of the incumbent and of a candidate on the same images."""


@dataclass(frozen=True)
class Opinion:
    """What one signal says of a candidate beside the incumbent.

    Attributes:
        score: Mean of the signal over the images.
        gain: Mean difference to the incumbent on the same images.
        better: Share of bootstrap draws over patients in which the difference is above the margin.
        worse: Share in which it is below minus the margin.
    """

    score: float
    gain: float
    better: float
    worse: float

    @classmethod
    def of(cls, before: Values, after: Values, patients: Sequence[str], margin: float) -> Self:
        """Compares a candidate with the incumbent, image by image."""
        difference = paired_bootstrap(before, after, patients)
        above = paired_bootstrap(before + margin, after, patients)
        below = paired_bootstrap(after + margin, before, patients)
        return cls(float(after.mean()), difference.mean, above.probability_positive, below.probability_positive)


@dataclass(frozen=True)
class Candidate:
    """A policy that competes.

    Attributes:
        name: "source", "fine-tuning" or the folder of averaged checkpoints.
        opinions: By signal.
    """

    name: str
    opinions: Mapping[str, Opinion]

    def sure(self, confidence: float, heard: Sequence[str]) -> tuple[list[str], list[str]]:
        """The signals that surely prefer it to the incumbent, and those that surely do not, of those that are heard."""
        said = {name: opinion for name, opinion in self.opinions.items() if name in heard}
        return (
            [name for name, opinion in said.items() if opinion.better >= confidence],
            [name for name, opinion in said.items() if opinion.worse >= confidence],
        )


@dataclass(frozen=True)
class Selection:
    """The decision between candidates.

    Attributes:
        chosen: Name of the chosen candidate.
        incumbent: Name of the one that was to be beaten.
        candidates: All of them, the source policy first.
        worth: By signal, its rank correlation with true Dice on source images in other looks; None where it could not
            be measured.
        heard: The signals that had a vote.
        patients_gain: What a typical reviewed patient gains in Dice by adapting; None where none was compared. That
            decides whether the source policy is returned.
        patients_p_value: How probable so good an outcome is where adapting brings nothing.
    """

    chosen: str
    incumbent: str
    candidates: tuple[Candidate, ...]
    worth: Mapping[str, float | None] = field(default_factory=dict)
    heard: tuple[str, ...] = (REWARD,)
    patients_gain: float | None = None
    patients_p_value: float | None = None

    def decided_by_patients(self, adapting_is_better: bool, gain: float, p_value: float) -> Selection:
        """The decision after reviewed patients had theirs: nothing learned overrules them."""
        adapted = self.incumbent if self.chosen == SOURCE else self.chosen
        chosen = adapted if adapting_is_better else SOURCE
        return replace(self, chosen=chosen, patients_gain=gain, patients_p_value=p_value)

    def of(self, name: str) -> Candidate:
        """The candidate of that name."""
        return next(candidate for candidate in self.candidates if candidate.name == name)

    def disagreements(self, confidence: float) -> list[str]:
        """Where signals are sure of opposite things, in words, one line a candidate."""
        lines = []
        for candidate in self.candidates:
            better, worse = candidate.sure(confidence, self.heard)
            if better and worse:
                for_it, against_it = _all_of(better), _all_of(worse)
                lines.append(
                    f"{candidate.name} beside {self.incumbent}: {for_it} prefer{'s' if len(better) == 1 else ''} it, "
                    f"{against_it} {'does' if len(worse) == 1 else 'do'} not"
                )
        return lines

    def write(self, path: Path) -> None:
        """Writes the decision and all scores as JSON, whole or not at all."""
        write_versioned_json(path, _FORMAT, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads what `write` wrote, also where an older version did, which heard the held-out reward network alone.

        Raises:
            DataError: The file is missing, is no such decision, or was written by a newer version.
        """
        content = read_versioned_json(path, _FORMAT, _ADVICE)
        try:
            candidates = tuple(_candidate(each) for each in content["candidates"])
            return cls(
                current_name(content["chosen"]),
                current_name(content["incumbent"]),
                candidates,
                content.get("worth", {}),
                tuple(content.get("heard", (REWARD,))),
                content.get("patients_gain"),
                content.get("patients_p_value"),
            )
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: not a decision between candidates ({error!r}); {_ADVICE}") from error


def _all_of(names: Sequence[str]) -> str:
    return " and ".join(names)


def _candidate(content: Mapping[str, object]) -> Candidate:
    name = current_name(str(content["name"]))
    opinions = content.get("opinions")
    if isinstance(opinions, Mapping):
        return Candidate(name, {signal: Opinion(**opinion) for signal, opinion in opinions.items()})
    score, gain, better = (float(str(content[key])) for key in ("score", "gain", "confidence"))
    return Candidate(name, {REWARD: Opinion(score, gain, better, 0.0)})


def worth_of_signals(comparisons: Sequence[Comparison], true_dice: Sequence[tuple[Values, Values]]) -> dict[str, float]:
    """What the signals are worth: the rank correlation of their differences with those of true Dice.

    Args:
        comparisons: Of each candidate with the incumbent, on images with ground truth.
        true_dice: Their Dice on the same images, `(N,)` of the incumbent and of the candidate.

    Returns:
        By signal Spearman's rho over all pairs of image and candidate, 0 where it is not significantly above 0
        (one-sided, 5 %) or there are fewer than 20 pairs that differ at all.
    """
    gains = np.concatenate([after - before for before, after in true_dice]) if true_dice else np.empty(0)
    worth = {}
    for signal in comparisons[0] if comparisons else ():
        said = np.concatenate([values[signal][1] - values[signal][0] for values in comparisons])
        differs = (said != 0) | (gains != 0)
        if differs.sum() < _LEAST_PAIRS or np.ptp(said) == 0 or np.ptp(gains) == 0:
            worth[signal] = 0.0
            continue
        found = spearmanr(said, gains, alternative="greater")
        worth[signal] = float(found.statistic) if found.pvalue < _SIGNIFICANT else 0.0
    return worth


def select(
    comparisons: Mapping[str, Comparison],
    patients: Sequence[str],
    confidence: float,
    margin: float,
    incumbent: str,
    worth: Mapping[str, float] | None = None,
) -> Selection:
    """Replaces the incumbent where at least two more signals are sure of another candidate than are sure against it.

    What there is reason to believe in beforehand, the fine-tuned policy, stays without such evidence. One signal alone
    never decides: on shifts that nobody had tuned on, a learned reward was sure of the wrong model (docs/method.md).

    Args:
        comparisons: By candidate, the source policy first, what the signals say of it and of the incumbent.
        patients: Of the images.
        confidence: Share of bootstrap draws over patients that count as being sure.
        margin: By how much a candidate must be better, or worse, in those draws.
        incumbent: The candidate that stays without such evidence. Where the source policy beats it, that is returned.
        worth: By signal what it is worth; those with 0 have no vote. All have one where None.
    """
    signals = list(next(iter(comparisons.values())))
    heard = tuple(name for name in signals if worth is None or worth.get(name, 0) > 0)
    candidates = tuple(
        Candidate(name, {signal: Opinion.of(*said[signal], patients, margin) for signal in signals})
        for name, said in comparisons.items()
    )
    backed = {}
    for candidate in candidates:
        better, worse = candidate.sure(confidence, heard)
        if candidate.name != incumbent and len(better) - len(worse) >= _AHEAD:
            backed[candidate.name] = (len(better) - len(worse), _standing(candidate, heard))
    chosen = SOURCE if SOURCE in backed else max(backed, key=lambda name: backed[name], default=incumbent)
    return Selection(chosen, incumbent, candidates, {name: (worth or {}).get(name) for name in signals}, heard)


def _standing(candidate: Candidate, heard: Sequence[str]) -> float:
    """The sum of the gains that the signals see: they have the same range."""
    return float(sum(candidate.opinions[name].gain for name in heard))
