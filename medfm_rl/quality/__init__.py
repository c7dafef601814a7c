"""How good a mask is without ground truth: predicted Dice, intervals with a guarantee, shift, and a verdict."""

from medfm_rl.quality.controller import BatchReport, QualityController, QualityReport, State, StructureScore
from medfm_rl.quality.model import QUALITY_FILE, QualityModel

__all__ = [
    "QUALITY_FILE",
    "BatchReport",
    "QualityController",
    "QualityModel",
    "QualityReport",
    "State",
    "StructureScore",
]
