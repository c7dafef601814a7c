"""Correction of one case at test time: a proposal, and a verifier that the proposal was not made for."""

from medfm_rl.correction.corrector import CaseCorrector, CorrectionResult, Neighbour, Original, Proposal
from medfm_rl.correction.optimiser import TestTimeOptimiser
from medfm_rl.correction.verifier import Verification, Verifier
from medfm_rl.correction.view_vote import ViewVote

__all__ = [
    "CaseCorrector",
    "CorrectionResult",
    "Neighbour",
    "Original",
    "Proposal",
    "TestTimeOptimiser",
    "Verification",
    "Verifier",
    "ViewVote",
]
