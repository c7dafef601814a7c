"""A judge of masks that is made without a segmenter."""

from __future__ import annotations

from pydantic import Field

from medfm_rl.settings.adaptation import RewardSettings
from medfm_rl.settings.base import Positive, Settings
from medfm_rl.settings.training import PreprocessingSettings


class JudgeSettings(Settings):
    """How a judge is made of labelled cases and the masks of a tool that nobody has the networks of."""

    size: tuple[Positive, ...] = Field(
        (128, 128),
        min_length=2,
        max_length=3,
        description="Pixels of the grid that images are resampled to, in the order of arrays: (H, W) or (D, H, W).",
    )
    actions: int = Field(
        6, ge=2, description="Masks of each image that the reward networks see: the given one, and others made of it."
    )
    looks: Positive = Field(3, description="Appearances in which each image is shown; the first is its own.")
    appearance_strength: float = Field(1.0, ge=0, le=3, description="How far the others are from it.")
    reward: RewardSettings = Field(
        default_factory=lambda: RewardSettings(fusion="mean"), description="Reward networks and their training."
    )
    anatomy: str = Field("generic", description="Anatomy profile, or a YAML file.")
    seed: int = Field(0, ge=0, description="Seed of splits, draws and weights.")

    @property
    def preprocessing(self) -> PreprocessingSettings:
        """How an image is brought to the grid."""
        return PreprocessingSettings(size=self.size)
