"""One image, one action, one reward: segmentation as a contextual bandit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, Protocol, runtime_checkable

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn
from torch import Tensor

from medfm_rl.networks import images_at_once
from medfm_rl.types import IGNORED, FloatArray

RewardFunction = Callable[[Tensor, Tensor], Tensor]
"""Images `(B, C, *S)` and actions `(B, *S)` int64 to reward maps `(B, *S)` in [0, 1]."""


@runtime_checkable
class RewardSource(Protocol):
    """What rates actions by more than the image: by what is known of the case that it shows."""

    def rewards(self, images: Tensor, actions: Tensor, rows: Sequence[int]) -> Tensor:
        """Rates actions.

        Args:
            images: `(B, C, *S)`.
            actions: `(B, *S)` int64.
            rows: Of the images in the environment, by which a source finds what it knows of each.

        Returns:
            Reward maps `(B, *S)` in [0, 1].
        """
        ...


class Images(Protocol):
    """Images `(N, C, *S)` by their row; a NumPy array is some, and those on the disk are others."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, C, *S)`."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Any:
        """The images of a list of rows, `(B, C, *S)`."""
        ...

    def min(self) -> Any:
        """Their lowest value, or one below."""
        ...

    def max(self) -> Any:
        """Their highest value, or one above."""
        ...


class Masks(Protocol):
    """Masks `(M, *S)` of class indices by their row; a NumPy array is some."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Any:
        """The masks of an array of rows, `(B, *S)`."""
        ...


class SegmentationEnv(gymnasium.Env[Any, Any]):
    """Segment one image, and be told how good each pixel is.

    ## Action space
    `MultiDiscrete([K] * prod(S))` of dtype uint8: the class index of each pixel, row by row. It is flat because
    stable-baselines3 refuses a `MultiDiscrete` with more than one axis.

    ## Observation space
    `Box(min, max, (C, *S), float32)`: a preprocessed image; the bounds are those of the images at hand.

    ## Rewards
    The mean of the reward map. The map itself, `(*S)` float32 in [0, 1], is in `info["reward_map"]`.

    ## Starting state
    The images come in random order, each once before any comes again; `reset(seed=...)` makes the order reproducible.

    ## Episode end
    Each episode has one step and then terminates.

    Args:
        images: `(N, C, *S)`, preprocessed.
        reward: Rates actions.
        num_classes: K.
        device: Where the reward function wants its tensors.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own declaration)

    def __init__(
        self, images: FloatArray, reward: RewardFunction, num_classes: int, device: torch.device | str = "cpu"
    ) -> None:
        self.images = images
        self.reward = reward
        self.device = torch.device(device)
        self.observation_space, self.action_space = _spaces(images, num_classes)
        self._order: list[int] = []
        self._current = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Shows the next image; `info["image_index"]` says which."""
        super().reset(seed=seed, options=options)
        if seed is not None or not self._order:
            self._order = self.np_random.permutation(len(self.images)).tolist()
        self._current = self._order.pop()
        return self.images[self._current].copy(), {"image_index": self._current}

    def step(self, action: npt.NDArray[np.uint8]) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Rates the action on the image shown last.

        Raises:
            ValueError: The reward function does not give a map in [0, 1].
        """
        image = self.images[self._current]
        maps = reward_maps_of(self.reward, image[None], np.asarray(action)[None], self.device)
        reward_map = maps[0].cpu().numpy()
        info = {"reward_map": reward_map, "image_index": self._current}
        return image.copy(), float(reward_map.mean()), True, False, info


class SegmentationVecEnv(VecEnv):
    """The vectorised twin of `SegmentationEnv`: a batch of images a step, the reward network called once for all.

    The images come in an order that depends on the seed and the position only, so that a run can be resumed in the
    middle (`position`).

    Of images on the disk, those of a step are in memory, and no others.

    Args:
        images: `(N, C, *S)`, preprocessed.
        reward: Rates actions on images whose truth is not known: a function, or a source that is told the rows too.
        num_classes: K.
        n_envs: Images a step.
        references: `(M, *S)` class indices: the truth of the first M images, such as source images with ground truth.
            Every action is right where they are `IGNORED`: no decision there gains by another.
            Their reward map is 1 where the action equals it and 0 elsewhere.
        rated_as: `(N, C, *S)`, the images as `reward` sees them, where the policy is shown other views of the same
            anatomy; `images` where None.
        seed: Seed of the order.
        device: Where the reward function wants its tensors.
    """

    def __init__(
        self,
        images: Images,
        reward: RewardFunction | RewardSource,
        num_classes: int,
        n_envs: int,
        references: Masks | None = None,
        rated_as: Images | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        if rated_as is not None and tuple(rated_as.shape) != tuple(images.shape):
            raise ValueError(f"rated_as has shape {rated_as.shape}, {images.shape} is needed: one for each image")
        self.render_mode = None
        super().__init__(n_envs, *_spaces(images, num_classes))
        self.images = images
        self.rated_as = images if rated_as is None else rated_as
        self.references = np.empty((0, *images.shape[2:]), dtype=np.uint8) if references is None else references
        self.reward = reward
        self.device = torch.device(device)
        self.at_once = images_at_once(images.shape[2:], n_envs)
        """Images that the reward function is shown at once."""
        self.order_seed = seed
        self.position = 0
        """Images shown so far; set it and `reset` to go on from there."""
        self.rated = slice(None)
        """Which of the images of a step are rated: another process rates the others, whose maps are NaN here."""
        self._actions: npt.NDArray[np.integer] | None = None
        self._shown: tuple[list[int], FloatArray] | None = None

    @property
    def current(self) -> list[int]:
        """Indices of the images shown now."""
        return [self._index(self.position + offset) for offset in range(self.num_envs)]

    def reset(self) -> VecEnvObs:
        self.reset_infos = [{"image_index": index} for index in self.current]
        return self._images_of(self.current)

    def _images_of(self, rows: list[int]) -> FloatArray:
        """Some of the images; those that were asked for last are still there."""
        if self._shown is None or self._shown[0] != rows:
            self._shown = rows, np.asarray(self.images[rows])
        return self._shown[1]

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        if self._actions is None:
            raise RuntimeError("step_wait without step_async")
        shown = self.current
        images = self._images_of(shown)
        maps = self.reward_maps(self._actions).cpu().numpy()
        self.position += self.num_envs
        infos = [
            {"reward_map": reward_map, "image_index": index, "terminal_observation": image}
            for reward_map, index, image in zip(maps, shown, images, strict=True)
        ]
        rewards = maps.reshape(self.num_envs, -1).mean(axis=1)
        return self.reset(), rewards, np.ones(self.num_envs, dtype=bool), infos

    def reward_maps(self, actions: npt.NDArray[Any]) -> Tensor:
        """Reward maps `(n_envs, *S)` of other actions on the images shown now, without a step."""
        shown = np.asarray(self.current)
        gridded = np.asarray(actions).reshape(self.num_envs, *self.images.shape[2:])
        rated = np.zeros(self.num_envs, dtype=bool)
        rated[self.rated] = True
        known = rated & (shown < len(self.references))
        learned = rated & ~known
        maps = torch.full(gridded.shape, torch.nan, device=self.device)
        if known.any():
            truth = np.asarray(self.references[shown[known]])
            # Where the truth says nothing, whatever an action says gets the same.
            maps[known] = torch.as_tensor((gridded[known] == truth) | (truth == IGNORED)).to(maps)
        if learned.any():
            maps[learned] = self._rated(shown[learned], gridded[learned])
        return maps

    def _rated(self, rows: npt.NDArray[Any], actions: npt.NDArray[Any]) -> Tensor:
        """Reward maps of actions on images whose truth is not known, as many at a time as a network is shown."""
        found = []
        for part in np.split(np.arange(len(rows)), range(self.at_once, len(rows), self.at_once)):
            reward = self.reward
            if isinstance(reward, RewardSource):
                reward = partial(reward.rewards, rows=rows[part].tolist())
            images = np.asarray(self.rated_as[rows[part].tolist()])
            found.append(reward_maps_of(reward, images, actions[part], self.device))
        return torch.cat(found)

    def close(self) -> None:
        """Nothing to release."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        del indices
        setattr(self, attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> Any:
        raise NotImplementedError("the images share one environment; call its methods directly")

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        del wrapper_class
        return [False] * len(list(self._get_indices(indices)))

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Sets the seed of the order; it counts from the next `reset`."""
        if seed is not None:
            self.order_seed = seed
        return [self.order_seed] * self.num_envs

    def _index(self, position: int) -> int:
        epoch, within = divmod(position, len(self.images))
        return int(np.random.default_rng([self.order_seed, epoch]).permutation(len(self.images))[within])


_TOLERANCE: Final = 1e-5


def reward_maps_of(
    reward: RewardFunction, images: FloatArray, actions: npt.NDArray[Any], device: torch.device
) -> Tensor:
    """Calls a reward function on flat or gridded actions and checks what it gives.

    Args:
        reward: The function.
        images: `(B, C, *S)`.
        actions: `(B, *S)` or `(B, prod(S))`.
        device: Where the function wants its tensors.

    Returns:
        Reward maps `(B, *S)`.

    Raises:
        ValueError: The maps have another shape or leave [0, 1].
    """
    grid = images.shape[2:]
    gridded = torch.as_tensor(np.asarray(actions).astype(np.int64).reshape(len(images), *grid), device=device)
    with torch.no_grad():
        maps = reward(torch.as_tensor(images, device=device), gridded)
    if maps.shape != gridded.shape:
        raise ValueError(f"the reward map has shape {tuple(maps.shape)}, {tuple(gridded.shape)} is needed")
    low, high = float(maps.min()), float(maps.max())
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
        raise ValueError(f"the reward map must lie in [0, 1], it goes from {low:g} to {high:g}")
    return maps.float()


def _spaces(images: Images, num_classes: int) -> tuple[spaces.Box, spaces.MultiDiscrete]:
    if len(images) == 0:
        raise ValueError("there are no images to segment")
    pixels = int(np.prod(images.shape[2:]))
    return (
        spaces.Box(float(images.min()), float(images.max()), images.shape[1:], np.float32),
        # uint8 is what the label maps are; the stubs of Gymnasium know int64 only.
        spaces.MultiDiscrete(np.full(pixels, num_classes), dtype=np.uint8),  # type: ignore[arg-type]
    )
