"""Which nnU-Net is trained, and how much is done."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.harness.budgets import adapt_budget, trial_budget
from benchmarks.harness.nnunet_official import NnUNetRecipe, NnUNetSize
from benchmarks.harness.packs import VENTRICLE_SCHEMA
from benchmarks.short_axis.volumes import BETWEEN_SLICES_MM, ENDING

RECIPE = NnUNetRecipe(
    "3d_fullres", VENTRICLE_SCHEMA, "MRI", ENDING, batch=2, width=4, spacing=(BETWEEN_SLICES_MM, 2.4, 2.4)
)


@dataclass(frozen=True)
class ShortAxisSize(NnUNetSize):
    """How much is done.

    Attributes:
        source_held_out: Patients of the source that the source model is measured on.
        upper_epochs: Of the training on the target's labels.
    """

    source_held_out: int
    upper_epochs: int


# As for the SIMULATED twin, `benchmarks.segmenters.short_axis`: volumes cost more than frames.
_CHANGES = {"collect": {"shard_images": 20}, "shape_prior": {"epochs": 10}, "reward": {"validate_every": 50}}
FULL = ShortAxisSize(
    source=40,
    source_held_out=10,
    target=12,
    held_out=11,
    epochs=20,
    iterations=75,
    upper_epochs=6,
    adapt=adapt_budget(fine_tuning=(200, 4), collect=(120, 60), reward=(300, 8), ppo=(12, 6, 6), changes=_CHANGES),
)
QUICK = ShortAxisSize(
    source=10,
    source_held_out=2,
    target=5,
    held_out=2,
    epochs=2,
    iterations=2,
    upper_epochs=1,
    adapt=trial_budget(8, 4),
)
