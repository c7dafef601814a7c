from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from torch import Tensor

import medfm_rl.envs  # noqa: F401 (registers the environment)
from medfm_rl.envs import SegmentationEnv, SegmentationVecEnv
from medfm_rl.types import IGNORED

K = 3
IMAGES = np.random.default_rng(0).normal(size=(5, 1, 6, 7)).astype(np.float32)


def likes_ones(images: Tensor, actions: Tensor) -> Tensor:
    """A reward that depends on image and action, so that a mix-up shows."""
    return torch.where(actions == 1, torch.sigmoid(images[:, 0]), 0.25)


def test_gymnasium_accepts_the_environment() -> None:
    env = gymnasium.make("medfm_rl/Segmentation-v0", images=IMAGES, reward=likes_ones, num_classes=K)
    gymnasium_check_env(env.unwrapped, skip_render_check=True)


def test_stable_baselines_accepts_the_environment() -> None:
    # It takes an image of real numbers for one of bytes, and says so; the networks here want real numbers.
    with pytest.warns(UserWarning, match="image"):
        sb3_check_env(SegmentationEnv(IMAGES, likes_ones, K))


def test_one_step_ends_the_episode_with_the_mean_of_the_map() -> None:
    env = SegmentationEnv(IMAGES, likes_ones, K)
    observation, info = env.reset(seed=0)
    action = np.ones(42, np.uint8)
    _, reward, terminated, truncated, after = env.step(action)
    expected = 1 / (1 + np.exp(-observation[0]))
    assert (terminated, truncated) == (True, False)
    assert after["image_index"] == info["image_index"]
    assert np.allclose(after["reward_map"], expected, atol=1e-6)
    assert reward == pytest.approx(float(expected.mean()), rel=1e-5)


def test_every_image_comes_once_before_any_comes_again() -> None:
    env = SegmentationEnv(IMAGES, likes_ones, K)
    first = [env.reset(seed=3)[1]["image_index"], *(env.reset()[1]["image_index"] for _ in range(4))]
    assert sorted(first) == list(range(5))
    again = [env.reset(seed=3)[1]["image_index"], *(env.reset()[1]["image_index"] for _ in range(4))]
    assert again == first


def test_scalar_and_vector_twin_give_the_same_rewards() -> None:
    vector = SegmentationVecEnv(IMAGES, likes_ones, K, n_envs=5)
    shown = vector.reset()
    actions = np.random.default_rng(1).integers(0, K, (5, 42)).astype(np.uint8)
    _, rewards, dones, infos = vector.step(actions)
    assert dones.all()
    scalar = SegmentationEnv(IMAGES, likes_ones, K)
    by_image = {info["image_index"]: row for row, info in enumerate(infos)}
    for seed in range(20):
        _, start = scalar.reset(seed=seed)
        row = by_image[start["image_index"]]
        _, reward, _, _, info = scalar.step(actions[row])
        assert reward == pytest.approx(rewards[row], rel=1e-5)
        assert np.allclose(info["reward_map"], infos[row]["reward_map"])
        assert np.array_equal(shown[row], IMAGES[start["image_index"]])


def test_the_reward_is_called_once_for_the_whole_batch() -> None:
    calls = []

    def counted(images: Tensor, actions: Tensor) -> Tensor:
        calls.append(len(images))
        return likes_ones(images, actions)

    env = SegmentationVecEnv(IMAGES, counted, K, n_envs=4)
    env.reset()
    env.step(np.zeros((4, 42), np.uint8))
    assert calls == [4]


def test_images_with_a_reference_are_judged_by_it() -> None:
    references = np.random.default_rng(2).integers(0, K, (2, 6, 7)).astype(np.uint8)
    env = SegmentationVecEnv(IMAGES, likes_ones, K, n_envs=5, references=references)
    env.reset()
    shown = env.current
    actions = np.stack([references[i].ravel() if i < 2 else np.zeros(42, np.uint8) for i in shown])
    _, _, _, infos = env.step(actions)
    for info in infos:
        expected = 1.0 if info["image_index"] < 2 else 0.25
        assert (info["reward_map"] == expected).all()


def test_the_reward_sees_other_views_of_what_the_policy_is_shown() -> None:
    rated_as = IMAGES + np.arange(5, dtype=np.float32).reshape(5, 1, 1, 1)
    env = SegmentationVecEnv(IMAGES, likes_ones, K, n_envs=2, rated_as=rated_as)
    shown = env.reset()
    assert np.array_equal(shown, IMAGES[env.current])
    _, _, _, infos = env.step(np.ones((2, 42), np.uint8))
    for info in infos:
        expected = torch.sigmoid(torch.as_tensor(rated_as[info["image_index"], 0])).numpy()
        np.testing.assert_allclose(info["reward_map"], expected)
        assert np.array_equal(info["terminal_observation"], IMAGES[info["image_index"]])


def test_views_for_some_images_only_are_refused() -> None:
    with pytest.raises(ValueError, match="one for each image"):
        SegmentationVecEnv(IMAGES, likes_ones, K, n_envs=2, rated_as=IMAGES[:2])


def test_the_order_depends_on_seed_and_position_only() -> None:
    env, twin = (SegmentationVecEnv(IMAGES, likes_ones, K, n_envs=2, seed=4) for _ in range(2))
    env.reset()
    for _ in range(3):
        env.step(np.zeros((2, 42), np.uint8))
    twin.position = 6
    assert np.array_equal(twin.reset(), IMAGES[env.current])


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (lambda images, actions: torch.full(actions.shape, 1.5), r"in \[0, 1\]"),
        (lambda images, actions: torch.full(actions.shape, torch.nan), r"in \[0, 1\]"),
        (lambda images, actions: torch.zeros(len(images)), "shape"),
    ],
)
def test_a_reward_that_is_no_probability_map_is_refused(reward, message: str) -> None:
    env = SegmentationEnv(IMAGES, reward, K)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(np.zeros(42, np.uint8))


def test_volumes_have_an_environment_too() -> None:
    volumes = np.zeros((2, 1, 3, 4, 5), np.float32)
    env = SegmentationEnv(volumes, lambda images, actions: torch.ones(actions.shape), K)
    env.reset(seed=0)
    _, reward, *_, info = env.step(np.zeros(60, np.uint8))
    assert reward == 1.0
    assert info["reward_map"].shape == (3, 4, 5)


def test_no_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        SegmentationEnv(IMAGES[:0], likes_ones, K)


def test_where_the_truth_says_nothing_every_action_is_right() -> None:
    truth = np.zeros((5, 6, 7), np.uint8)
    truth[:, :2] = IGNORED
    env = SegmentationVecEnv(IMAGES, likes_ones, K, n_envs=5, references=truth)
    env.reset()
    for label in range(K):
        maps = env.reward_maps(np.full((5, 42), label, np.uint8)).numpy()
        assert (maps[:, :2] == 1).all()
        assert (maps[:, 2:] == (label == 0)).all()
