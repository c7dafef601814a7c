"""Correction of one case at test time: a proposal, and a judge that the proposal was not made for."""

from medfm_rl.tto.corrector import CaseCorrector, Original, Proposal, TTOResult
from medfm_rl.tto.judge import Judge, Judgement
from medfm_rl.tto.optimizer import TestTimeOptimizer
from medfm_rl.tto.rivals import (
    AugmentationAverage,
    Intent,
    LargestComponents,
    Memo,
    NoCorrection,
    ShapeProjection,
    Tent,
)
from medfm_rl.tto.view_vote import ViewVote

__all__ = [
    "AugmentationAverage",
    "CaseCorrector",
    "Intent",
    "Judge",
    "Judgement",
    "LargestComponents",
    "Memo",
    "NoCorrection",
    "Original",
    "Proposal",
    "ShapeProjection",
    "TTOResult",
    "Tent",
    "TestTimeOptimizer",
    "ViewVote",
]
