from __future__ import annotations

import torch

from medfm_rl.workflows.adapt.stages.averaging import RunningAverage, average_weights


def state(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((2, 2), value), "seen": torch.tensor(int(value))}


def test_without_shares_all_count_the_same() -> None:
    averaged = average_weights([state(7.0), state(2.0), state(3.0)])
    torch.testing.assert_close(averaged["weight"], torch.full((2, 2), 4.0))
    assert averaged["weight"].dtype == torch.float32
    # Counters are not averaged.
    assert averaged["seen"] == 7


def test_shares_weigh_the_states() -> None:
    # .25 x 7 + .75 x 3
    assert torch.equal(average_weights([state(7.0), state(3.0)], [0.25, 0.75])["weight"], torch.full((2, 2), 4.0))
    assert torch.equal(average_weights([state(7.0), state(3.0)], [0.0, 1.0])["weight"], torch.full((2, 2), 3.0))


def test_the_order_does_not_matter_and_nothing_shares_memory() -> None:
    states = [
        {"w": torch.randn(50, generator=torch.Generator().manual_seed(seed)), "seen": torch.tensor(seed)}
        for seed in range(5)
    ]
    forwards, backwards = average_weights(states), average_weights(states[::-1])
    torch.testing.assert_close(forwards["w"], backwards["w"])
    forwards["seen"].add_(1)
    assert states[0]["seen"] == 0


def test_states_that_come_one_by_one_have_the_same_mean() -> None:
    running = RunningAverage()
    for value in (7.0, 2.0, 3.0):
        running.add(state(value))
    assert torch.equal(running.state["weight"], torch.full((2, 2), 4.0))
    assert running.state["weight"].dtype == torch.float32
    assert running.state["seen"] == 3
