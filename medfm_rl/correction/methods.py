"""The ways to correct, by the name that the settings give them: the one place that knows them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.correction import published
from medfm_rl.correction.corrector import CaseCorrector
from medfm_rl.correction.neighbours import NeighbourVote
from medfm_rl.correction.optimiser import TestTimeOptimiser
from medfm_rl.correction.verifier import Verifier
from medfm_rl.correction.view_vote import ViewVote
from medfm_rl.errors import ModelError
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.reward.shape_prior import ShapePrior

_OF_SEGMENTER: Final[dict[str, Callable[[SegmenterAdapter, Verifier], CaseCorrector]]] = {
    "none": published.NoCorrection,
    "tta": published.AugmentationAverage,
    "tent": published.Tent,
    "intent": published.Intent,
    "memo": published.Memo,
    "components": published.LargestComponents,
    "neighbours": NeighbourVote,
}
"""Ways that need nothing but the segmenter."""


def make_corrector(
    segmenter: SegmenterAdapter, reward: RewardEnsemble, verifier: Verifier, shape_prior: Callable[[], ShapePrior]
) -> CaseCorrector:
    """The way to correct that the settings of a verifier name.

    Args:
        segmenter: The segmenter whose masks are corrected.
        reward: The reward networks that proposals are made with.
        verifier: Decides about proposals.
        shape_prior: Loads the shape prior, for the way that needs it.

    Raises:
        ModelError: The way cannot be used with this segmenter, or there is no shape prior.
    """
    match verifier.settings.method:
        case "views":
            return ViewVote(segmenter, reward, verifier, _with_statistics_of_the_case(segmenter, verifier))
        case "optimise":
            return TestTimeOptimiser(segmenter, reward, verifier)
        case "shape-prior":
            return published.ShapeProjection(segmenter, verifier, shape_prior())
        case other:
            return _OF_SEGMENTER[other](segmenter, verifier)


def _with_statistics_of_the_case(segmenter: SegmenterAdapter, verifier: Verifier) -> list[CaseCorrector]:
    """Copies of the segmenter with the statistics of the case, where it has batch normalisation."""
    try:
        return [published.Intent(segmenter, verifier), published.Tent(segmenter, verifier)]
    except ModelError:
        return []
