"""Test-time optimisation: a proposal for one case, and a judge that the proposal was not made for."""

from medfm_rl.tto.corrector import CaseCorrector, Proposal, TTOResult
from medfm_rl.tto.judge import Judge, Judgement
from medfm_rl.tto.optimizer import TestTimeOptimizer

__all__ = ["CaseCorrector", "Judge", "Judgement", "Proposal", "TTOResult", "TestTimeOptimizer"]
