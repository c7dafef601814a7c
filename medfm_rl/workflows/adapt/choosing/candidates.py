"""Which policies compete over the iterations of a run, and what the fine-tuning goes on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from medfm_rl.runs.folder import FINE_TUNED, PREVIOUS, SOURCE


@dataclass(frozen=True)
class CandidatePool:
    """The candidates so far, by name.

    Attributes:
        trajectories: By candidate, the source policy first: the names of the weights that it is the average of.
        incumbent: The one that fine-tuning goes on from, and that stays unless a held-out reward network is sure of
            another.
    """

    trajectories: Mapping[str, tuple[str, ...]]
    incumbent: str

    @classmethod
    def start(cls, fine_tuned: bool, previous: bool = False) -> Self:
        """Before the first iteration.

        Args:
            fine_tuned: Whether there is a policy after a fine-tuning of the source policy.
            previous: Whether there is one that an earlier run returned.
        """
        names = [SOURCE, *([PREVIOUS] if previous else []), *([FINE_TUNED] if fine_tuned else [])]
        return cls({name: (name,) for name in names}, names[-1])

    @property
    def names(self) -> list[str]:
        """The candidates in the order in which they joined."""
        return list(self.trajectories)

    @property
    def trajectory(self) -> tuple[str, ...]:
        """The weights that the incumbent is the average of: the next average has those in it, and nothing that lost."""
        return self.trajectories[self.incumbent]

    def joined_by(self, averages: Sequence[str], checkpoints: Sequence[str]) -> CandidatePool:
        """The pool with the averages of an iteration.

        A little PPO beside the fine-tuning: there is more reason to believe in it than in what a held-out network makes
        of the others. So the first average is the incumbent, except where the source policy was returned to.

        Args:
            averages: Names of the running averages of the incumbent's trajectory and the checkpoints.
            checkpoints: Names of the checkpoints since, one for each average.
        """
        added = {
            average: (*self.trajectory, *checkpoints[:count])
            for count, average in zip(range(1, len(checkpoints) + 1), averages, strict=True)
        }
        incumbent = self.incumbent if self.incumbent == SOURCE else averages[0]
        return CandidatePool({**self.trajectories, **added}, incumbent)

    def won_by(self, name: str) -> CandidatePool:
        """The pool after a candidate was chosen."""
        return replace(self, incumbent=name)
