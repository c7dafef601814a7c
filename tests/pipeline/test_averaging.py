from __future__ import annotations

import pytest
import torch

from medfm_rl.pipeline.averaging import average_weights


def state(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((2, 2), value), "seen": torch.tensor(int(value))}


def test_the_mean_of_the_checkpoints_is_drawn_towards_the_source() -> None:
    averaged = average_weights([state(2.0), state(4.0)], state(7.0), source_share=0.25)
    # .25 x 7 + .75 x 3
    assert torch.equal(averaged["weight"], torch.full((2, 2), 4.0))
    assert averaged["weight"].dtype == torch.float32
    # Counters are not averaged.
    assert averaged["seen"] == 7


@pytest.mark.parametrize(("share", "expected"), [(0.0, 3.0), (1.0, 7.0)])
def test_the_ends_are_the_checkpoints_and_the_source(share: float, expected: float) -> None:
    assert torch.equal(average_weights([state(3.0)], state(7.0), share)["weight"], torch.full((2, 2), expected))


def test_the_order_of_the_checkpoints_does_not_matter_and_nothing_shares_memory() -> None:
    states = [{"w": torch.randn(50, generator=torch.Generator().manual_seed(seed))} for seed in range(5)]
    source = {"w": torch.zeros(50), "seen": torch.tensor(3)}
    forwards, backwards = average_weights(states, source, 0.1), average_weights(states[::-1], source, 0.1)
    assert torch.equal(forwards["w"], backwards["w"])
    forwards["seen"].add_(1)
    assert source["seen"] == 3
