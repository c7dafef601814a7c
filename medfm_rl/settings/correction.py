"""Correction of single cases at test time."""

from __future__ import annotations

from pydantic import Field

from medfm_rl.choices import CorrectionMethod, CorrectionObjective, CorrectionScope
from medfm_rl.settings.base import Positive, Settings


class CorrectionSettings(Settings):
    """Correction of one case, and when its result is accepted."""

    method: CorrectionMethod = Field(
        "views",
        description="How a better mask is sought: views averages over random views, those with the better masks by the "
        "reward networks more; optimise follows the reward; none refers every case; tta averages "
        "over random appearances; tent, intent and memo adapt a copy of the segmenter by its entropy (intent needs "
        "batch normalisation); components keeps the largest parts and fills holes, as the anatomy rules say; "
        "shape-prior projects on shapes of the source; neighbours averages the segmenter's probabilities of a frame "
        "of a clip with what the frames before and after it say (their masks, or the segmenter where these are to be "
        "corrected too), carried along by the images' motion, and leaves images without a clip.",
    )
    views: Positive = Field(
        16, description="Random views of a case that a vote is taken of; the verifier looks at as many others."
    )
    objective: CorrectionObjective = Field(
        "reward",
        description="How the optimiser follows the reward: by its gradient, or by PPO on random appearances.",
    )
    optimise: CorrectionScope = Field(
        "logits",
        description="What changes for one case: its logits (one network pass, the cheapest), or a copy of the "
        "normalisation layers, the decoder or all weights.",
    )
    steps: Positive = Field(30, description="Gradient steps, at most.")
    patience: Positive = Field(8, description="Steps without a better reward before it stops.")
    learning_rate: float = Field(0.5, gt=0, description="Learning rate of Adam on logits.")
    weight_learning_rate: float = Field(1e-3, gt=0, description="Learning rate of Adam on weights.")
    smoothness: Positive = Field(
        4, description="Logits change on a grid that is this many times coarser than the image, not pixel by pixel."
    )
    kl_coef: float = Field(
        0.3,
        ge=0,
        description="Weight of the KL divergence to the deployed segmenter. On perturbed lung images of held-out "
        "source patients .01 did harm in a tenth of the cases, .3 in 0 and 3 %.",
    )
    seconds: float = Field(
        10.0,
        gt=0,
        description="Time for one case, half of it for segmentation and method, the rest for the verifier. When a part "
        "is over no step and no view is begun; the verifier accepts nothing without all of its views.",
    )
    margin: float = Field(0.005, ge=0, lt=1, description="Gain in the Dice that the verifier expects which is needed.")
    margin_given: float = Field(
        0.04,
        ge=0,
        lt=1,
        description="Gain in the Dice that the verifier expects which is needed for masks that another segmenter made. "
        "More than margin: the verifier looks at views of the run's segmenter, and leans to what that would do.",
    )
    tolerance: float = Field(
        0.05, ge=0, lt=1, description="By how much the Dice of a single structure may fall, as the verifier expects it."
    )
    max_change: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Largest accepted distance from the original mask, 1 - mean Dice between the two. What is right is "
        "far from a mask that is bad.",
    )
