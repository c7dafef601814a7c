from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from medfm_rl.reward.actions import ActionRecords
from medfm_rl.reward.origins import GROUND_TRUTH, ActionOrigin, Reference


@pytest.fixture
def make_records() -> Callable[..., ActionRecords]:
    """Records of random labels; the images hold values that float16 can hold."""

    def make(
        patients: tuple[str, ...] = ("p1", "p2"),
        actions: int = 2,
        shape: tuple[int, ...] = (16, 16),
        channels: int = 1,
        classes: int = 3,
        reference: Reference = GROUND_TRUTH,
        seed: int = 0,
    ) -> ActionRecords:
        rng, count = np.random.default_rng(seed), len(patients)
        return ActionRecords(
            torch.from_numpy(rng.normal(size=(count, channels, *shape)).astype(np.float16)).float(),
            torch.from_numpy(rng.integers(0, classes, (count, actions, *shape)).astype(np.uint8)),
            torch.from_numpy(rng.integers(0, classes, (count, *shape)).astype(np.uint8)),
            torch.from_numpy(rng.choice([0.0, 0.25, 1.0], (count, *shape))).float(),
            tuple(
                ActionOrigin(
                    f"{patient}_{row}",
                    patient,
                    reference,
                    ("policy", *("warped policy",) * (actions - 1)),
                )
                for row, patient in enumerate(patients)
            ),
        )

    return make
