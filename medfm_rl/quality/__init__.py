"""How good a mask is without ground truth: predicted Dice, intervals with a guarantee, shift, and a verdict."""

from medfm_rl.quality.controller import QualityController
from medfm_rl.quality.model import QUALITY_FILE, QualityModel
from medfm_rl.quality.reports import BatchReport, QualityReport, State, StructureScore

__all__ = [
    "QUALITY_FILE",
    "BatchReport",
    "QualityController",
    "QualityModel",
    "QualityReport",
    "State",
    "StructureScore",
]
