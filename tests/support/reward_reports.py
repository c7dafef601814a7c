"""Reports on the training of reward networks, as `adapt` leaves them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medfm_rl.metrics.calibration import ReliabilityCurve
from medfm_rl.reward.training_report import RewardTrainingReport


def report_on(training: Sequence[str], validation: Sequence[str] = ()) -> RewardTrainingReport:
    """A report on a training with these patients; all numbers are made up."""
    before = ReliabilityCurve(np.array([0.2, 0.9]), np.array([0.4, 0.8]), np.array([10, 90]))
    after = ReliabilityCurve(np.array([0.4, 0.8]), np.array([0.4, 0.8]), np.array([10, 90]))
    return RewardTrainingReport(
        losses=((0.5, 0.6), (0.4, 0.55)),
        best_step=2,
        temperature=1.5,
        ece_before=0.11,
        ece_after=0.0,
        reliability_before=before,
        reliability_after=after,
        training_patients=tuple(training),
        validation_patients=tuple(validation),
    )
