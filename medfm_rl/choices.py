"""Words that people choose among, on the command line and in settings: light, for `--help` has to answer at once."""

from __future__ import annotations

from typing import Literal

Layout = Literal["auto", "nnunet", "camus", "folder", "clips", "echonet"]
"""How a data set is laid out."""
Split = Literal["all", "train", "test"]
"""A part of an nnU-Net data set."""
Device = Literal["auto", "cpu", "cuda", "mps"]
"""Where networks run."""
CorrectionMethod = Literal[
    "views", "optimise", "none", "tta", "tent", "intent", "memo", "components", "shape-prior", "neighbours"
]
"""How a better mask is sought."""
CorrectionObjective = Literal["reward", "ppo"]
"""How a correction follows the reward."""
CorrectionScope = Literal["logits", "norm", "decoder", "all"]
"""What changes for a case that is corrected."""
Drawn = Literal["audit", "informative", "other"]
"""How a case came to be reviewed: by a random draw (promises rest on these alone), because it was thought to teach
much, or in some other way."""
ConsensusMethod = Literal["staple", "majority"]
"""How one mask is made of several."""
ProposalWay = Literal["gain", "clasp", "random"]
"""How patients to learn from are chosen: by expected gain, as ClaSP chooses patches, or at random."""
PromiseUnit = Literal["mean", "worst"]
"""What a patient counts: the share of bad masks among his accepted ones, or whether any of them is bad."""
Role = Literal["reviewer", "lead", "administrator"]
"""Who somebody is at a desk; each may do what those before may."""
