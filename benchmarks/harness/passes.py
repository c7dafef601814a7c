"""The passes of one PPO update through its networks: counted, and made again with nothing around them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from medfm_rl.networks import images_at_once
from medfm_rl.policies import DensePPO


def networks(ppo: DensePPO) -> dict[str, nn.Module]:
    """The networks of an update: actor, reference, reward, and the critic where there is one."""
    assert ppo.env is not None
    found: dict[str, nn.Module] = {
        "actor": ppo.policy.segmenter,
        "reference": ppo.reference,
        "reward": ppo.env.get_attr("reward")[0],
    }
    if ppo.policy.critic is not None:
        found["critic"] = ppo.policy.critic
    return found


def update(ppo: DensePPO) -> None:
    """One rollout and one optimisation."""
    ppo.learn(ppo.env.num_envs, reset_num_timesteps=False)  # type: ignore[union-attr]


def count_passes(ppo: DensePPO) -> dict[str, dict[str, int]]:
    """Forwards and backwards of each network in one update; of a batch that is cut, each part is one."""
    forwards: Counter[str] = Counter()
    backwards: Counter[str] = Counter()

    def count(name: str, output: Tensor) -> None:
        forwards[name] += 1
        if output.requires_grad:
            output.register_hook(lambda _: backwards.update([name]))

    handles = [
        network.register_forward_hook(lambda _, __, output, name=name: count(name, output))
        for name, network in networks(ppo).items()
    ]
    update(ppo)
    for handle in handles:
        handle.remove()
    return {"forwards": dict(forwards), "backwards": dict(backwards)}


def bare_passes(ppo: DensePPO, passes: dict[str, dict[str, int]]) -> Callable[[], None]:
    """The same forwards and backwards, of as many images, and nothing else."""
    images = torch.as_tensor(ppo.env.reset())  # type: ignore[union-attr]
    images = images[: images_at_once(images.shape[2:], len(images))]
    actions = torch.zeros(len(images), *images.shape[2:], dtype=torch.int64)

    def run() -> None:
        for name, network in networks(ppo).items():
            inputs = (images, actions) if name == "reward" else (images,)
            learning = passes["backwards"].get(name, 0)
            for _ in range(learning):
                network(*inputs).sum().backward()
            with torch.no_grad():
                for _ in range(passes["forwards"][name] - learning):
                    network(*inputs)

    return run


def seconds(function: Callable[[], None]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
