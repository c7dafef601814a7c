"""Which policies compete over the iterations of a run, and what the fine-tuning goes on from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

from medfm_rl.pipeline.run_folder import SOURCE, WARM_UP


@dataclass(frozen=True)
class Tournament:
    """The candidates so far, by name.

    Attributes:
        trajectories: By candidate, the source policy first: the names of the weights that it is the average of.
        incumbent: The one that fine-tuning goes on from, and that stays unless a judge is sure of another.
    """

    trajectories: Mapping[str, tuple[str, ...]]
    incumbent: str

    @classmethod
    def start(cls, warmed_up: bool) -> Self:
        """Before the first iteration: the source policy and, where there is one, what the warm-up made of it."""
        names = (SOURCE, WARM_UP) if warmed_up else (SOURCE,)
        return cls({name: (name,) for name in names}, names[-1])

    @property
    def names(self) -> list[str]:
        """The candidates in the order in which they joined."""
        return list(self.trajectories)

    @property
    def trajectory(self) -> tuple[str, ...]:
        """What the incumbent is the average of: what is averaged next has that in it, and nothing that lost."""
        return self.trajectories[self.incumbent]

    def joined_by(self, averages: Sequence[str], checkpoints: Sequence[str]) -> Tournament:
        """The tournament with the averages of an iteration.

        A little PPO beside the warm-up: there is more reason to believe in it than in what a judge makes of its rivals.
        So the first average is the incumbent, except where the source policy was returned to.

        Args:
            averages: Names of the running averages of the incumbent's trajectory and the checkpoints.
            checkpoints: Names of the checkpoints since, one for each average.
        """
        added = {
            average: (*self.trajectory, *checkpoints[:count])
            for count, average in zip(range(1, len(checkpoints) + 1), averages, strict=True)
        }
        incumbent = self.incumbent if self.incumbent == SOURCE else averages[0]
        return Tournament({**self.trajectories, **added}, incumbent)

    def won_by(self, name: str) -> Tournament:
        """The tournament after a judge has chosen a candidate."""
        return replace(self, incumbent=name)
