"""The actions of a rollout: each process acts on its images, with noise that is drawn for the images of all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medfm_rl.envs import SegmentationVecEnv
from medfm_rl.policies.distribution import DenseCategorical


@dataclass(frozen=True, eq=False)
class Acts:
    """What a policy did on some images.

    Attributes:
        actions: Sampled, `(B, *S)` uint8.
        log_probs: Of those, `(B, *S)`.
        greedy: The argmax actions, `(B, *S)` uint8.
        graph: Log-probabilities `(B, K, *S)` of the images that passed the network last, with their graph where it has
            one; None where there were no images.
    """

    actions: Tensor
    log_probs: Tensor
    greedy: Tensor
    graph: Tensor | None


def act_on(
    images: Tensor,
    own: range,
    distribution: Callable[[Tensor], DenseCategorical],
    noise: Callable[[tuple[int, ...]], Tensor],
    num_classes: int,
    at_once: int,
    noise_length: float,
) -> Acts:
    """Samples actions on some of the images of a step.

    Args:
        images: `(N, C, *S)`, those of all processes.
        own: Which of them to act on.
        distribution: The policy.
        noise: Standard normal noise of a shape; it is drawn for all images, a few at a time.
        num_classes: K.
        at_once: Images that the policy is shown together.
        noise_length: Correlation length of the exploration.
    """
    nothing = torch.empty((0, *images.shape[2:]), device=images.device)
    actions, log_probs, greedy = [nothing.byte()], [nothing], [nothing.byte()]
    graph = None
    for start in range(0, len(images), at_once):
        stop = min(start + at_once, len(images))
        drawn = noise((stop - start, num_classes, *images.shape[2:]))
        first, last = max(start, own.start), min(stop, own.stop)
        if first >= last:
            continue
        found = distribution(images[first:last])
        sampler = DenseCategorical(found.logits.detach())
        actions.append(sampler.sample_by(drawn[first - start : last - start], noise_length).byte())
        log_probs.append(found.log_prob(actions[-1]).detach())
        greedy.append(found.mode().byte())
        graph = found.log_probs
    return Acts(torch.cat(actions), torch.cat(log_probs), torch.cat(greedy), graph)


def among_all(actions: Tensor, env: SegmentationVecEnv) -> npt.NDArray[np.uint8]:
    """Actions `(B, *S)` on the images that are rated here in their places among those of a step, 0 elsewhere, flat."""
    flat: npt.NDArray[np.uint8] = actions.flatten(1).to("cpu", torch.uint8).numpy()
    if len(flat) == env.num_envs:
        return flat
    whole = np.zeros((env.num_envs, flat.shape[1]), dtype=np.uint8)
    whole[env.rated] = flat
    return whole
