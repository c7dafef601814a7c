"""What `propose` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from medfm_rl.choices import ProposalWay
from medfm_rl.errors import ConfigError
from medfm_rl.quality.proposals import DEFAULT_AUDIT


@dataclass(frozen=True)
class ProposeRequest:
    """How many patients are wanted, and how they are chosen.

    Attributes:
        budget: Patients to learn from.
        audit: Patients to draw at random, for promises; by default as many as an interval of 90 % needs at least.
        seed: Of every draw; recorded.
        by: How patients to learn from are chosen: gain (`quality.proposals.by_gain`), clasp (`by_clasp`) or random.
        feedback: The feedback store, whose patients are left out; None where there is none.
        scores: `scores.json` of an earlier `score` with the same run: its masks and predictions are taken, and the
            segmenter is not asked. None: the segmenter of the run makes the masks.

    Raises:
        ConfigError: A number is negative, both are 0, or the way is not known.
    """

    budget: int = 8
    audit: int = DEFAULT_AUDIT
    seed: int = 0
    by: ProposalWay = "gain"
    feedback: Path | str | None = None
    scores: Path | None = None

    def __post_init__(self) -> None:
        for name, count in (("budget", self.budget), ("audit", self.audit)):
            if count < 0:
                raise ConfigError(f"--{name} {count}: must be 0 or more")
        if self.budget == 0 and self.audit == 0:
            raise ConfigError("--budget 0 and --audit 0 ask for nobody; give one of them patients")
        if self.by not in (ways := get_args(ProposalWay)):
            raise ConfigError(f"--by {self.by}: must be {', '.join(ways)}")


BY_GAIN = ProposeRequest()
"""Eight patients by expected gain, after an audit draw."""
