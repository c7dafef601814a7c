from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medfm_rl.envs import SegmentationVecEnv
from medfm_rl.errors import DataError, ModelError
from medfm_rl.policies import DensePPO
from medfm_rl.policies.checkpoints import read_state
from medfm_rl.policies.losses import clipped_policy_loss, greedy_advantages, normalise_advantages
from medfm_rl.settings import PPOHyperparameters

K = 3
CRITIC = PPOHyperparameters(baseline="critic")


class TinyNet(nn.Module):
    """Two convolutions with what must stay frozen between them: batch norm and dropout."""

    def __init__(self, out_channels: int = K, spatial_dims: int = 2) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if spatial_dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.layers = nn.Sequential(
            conv(1, 16, 3, padding=1), norm(16), nn.ReLU(), nn.Dropout(0.3), conv(16, out_channels, 3, padding=1)
        )

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.layers(images)
        return result


def drawn_shapes(count: int = 32, spatial_dims: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Squares within squares whose grey value is their class, with some noise."""
    rng = np.random.default_rng(0)
    side = 16 if spatial_dims == 2 else 8
    labels = np.zeros((count, *(side,) * spatial_dims), np.uint8)
    for label_map in labels:
        corner = rng.integers(1, side // 2, spatial_dims)
        label_map[tuple(slice(c, c + side // 2 - 2) for c in corner)] = 1
        label_map[tuple(slice(c + 1, c + 3) for c in corner)] = 2
    images = labels + rng.normal(0, 0.1, labels.shape)
    return images.astype(np.float32)[:, None], labels


def no_reward(images: Tensor, actions: Tensor) -> Tensor:
    raise AssertionError("every image has its truth here")


def make_ppo(
    seed: int = 0,
    n_envs: int = 16,
    n_steps: int = 1,
    batch_size: int | None = None,
    autocast: bool = False,
    **changes: Any,
) -> DensePPO:
    """PPO on drawn shapes.

    Args:
        changes: Hyper-parameters.
    """
    torch.manual_seed(0)
    images, labels = drawn_shapes()
    segmenter = TinyNet()
    settings = PPOHyperparameters(**{"baseline": "greedy", "learning_rate": 1e-2, "kl_coef": 0.0, **changes})
    critic = TinyNet(1) if settings.baseline == "critic" else None
    env = SegmentationVecEnv(images, no_reward, K, n_envs, references=labels)
    return DensePPO(
        env,
        segmenter,
        settings,
        critic=critic,
        n_steps=n_steps,
        batch_size=batch_size,
        autocast=autocast,
        seed=seed,
        device="cpu",
    )


def accuracy(ppo: DensePPO) -> float:
    images, labels = drawn_shapes()
    actions, _ = ppo.predict(images, deterministic=True)
    return float((actions.reshape(labels.shape) == labels).mean())


@pytest.mark.parametrize("baseline", ["critic", "greedy"])
@pytest.mark.parametrize("exploration", ["independent", "correlated"])
def test_an_oracle_reward_is_learnt(baseline: str, exploration: str) -> None:
    ppo = make_ppo(baseline=baseline, exploration=exploration, correlation_length=2.0)
    assert accuracy(ppo) < 0.9
    ppo.learn(16 * 80)
    assert accuracy(ppo) >= 0.98


def test_volumes_are_learnt_too() -> None:
    torch.manual_seed(0)
    images, labels = drawn_shapes(16, spatial_dims=3)
    env = SegmentationVecEnv(images, no_reward, K, 8, references=labels)
    settings = PPOHyperparameters(learning_rate=1e-2, kl_coef=0.0, correlation_length=1.0)
    ppo = DensePPO(env, TinyNet(spatial_dims=3), settings, device="cpu")
    before = float((ppo.predict(images, deterministic=True)[0].reshape(labels.shape) == labels).mean())
    ppo.learn(8 * 30)
    after = float((ppo.predict(images, deterministic=True)[0].reshape(labels.shape) == labels).mean())
    assert after > before + 0.1


@pytest.mark.parametrize("baseline", ["critic", "greedy"])
def test_a_batch_that_is_cut_learns_as_a_whole_one(baseline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Advantages are normalised over all of it, and gradients are summed: the same but for rounding."""
    trained = []
    for at_once in (16, 5):
        monkeypatch.setattr("medfm_rl.policies.ppo.images_at_once", lambda grid, most, size=at_once: min(size, most))
        ppo = make_ppo(baseline=baseline, kl_coef=0.1, ent_coef=0.01, exploration="independent")
        ppo.learn(3 * 16)
        trained.append(ppo)
    whole, cut = trained
    for one, other in zip(whole.policy.parameters(), cut.policy.parameters(), strict=True):
        assert torch.allclose(one, other, atol=2e-4)
    for name in ("train/policy_loss", "train/approx_kl", "train/kl_reference", "train/entropy"):
        told = [ppo.logger.name_to_value[name] for ppo in trained]
        assert told[0] == pytest.approx(told[1], rel=0.02, abs=1e-5)


def test_activations_that_are_computed_again_change_no_weight() -> None:
    states = []
    for recompute in (False, True):
        ppo = make_ppo(baseline="greedy")
        ppo.recompute = recompute
        ppo.learn(2 * 16)
        states.append(ppo.policy.segmenter.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def forget_the_graph(ppo: DensePPO) -> DensePPO:
    """Sets the log-probabilities that the rollout keeps aside, so that they are computed again where PPO trains."""
    train = ppo.train

    def without_graph() -> None:
        ppo._rollout_log_probs = None
        train()

    ppo.train = without_graph  # type: ignore[method-assign]
    return ppo


def test_the_ratio_is_exactly_one_at_the_first_inner_epoch() -> None:
    """Dropout and batch norm are in the network, and frozen: what is computed again is what was drawn from."""
    ppo = forget_the_graph(make_ppo(n_epochs=1))
    ppo.learn(16)
    assert ppo.logger.name_to_value["train/approx_kl"] == 0.0
    assert ppo.logger.name_to_value["train/clip_fraction"] == 0.0


def test_reusing_the_rollout_graph_changes_nothing() -> None:
    """One minibatch reuses the graph, two half-rollout steps cannot: the same images give the same first loss."""
    reused, recomputed = make_ppo(n_epochs=1), make_ppo(n_epochs=1)
    forget_the_graph(recomputed)
    for ppo in (reused, recomputed):
        ppo.learn(16)
    losses = [ppo.logger.name_to_value["train/policy_loss"] for ppo in (reused, recomputed)]
    norms = [ppo.logger.name_to_value["train/actor_grad_norm"] for ppo in (reused, recomputed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


@pytest.mark.parametrize("n_steps", [1, 2])
def test_minibatches_and_several_steps_learn(n_steps: int) -> None:
    ppo = make_ppo(n_steps=n_steps, batch_size=8)
    ppo.learn(16 * 60)
    assert accuracy(ppo) >= 0.95


def test_no_batch_statistics_move_while_the_policy_learns() -> None:
    ppo = make_ppo()
    before = {name: value.clone() for name, value in ppo.policy.segmenter.named_buffers()}
    ppo.learn(16 * 3)
    for name, value in ppo.policy.segmenter.named_buffers():
        assert torch.equal(value, before[name]), name


def test_the_policy_loss_does_not_reach_the_critic() -> None:
    ppo = make_ppo(baseline="critic")
    assert ppo.policy.critic_optimizer is not None
    ppo.policy.critic_optimizer.param_groups[0]["lr"] = 0.0
    before = {name: value.clone() for name, value in ppo.policy.critic.named_parameters()}  # type: ignore[union-attr]
    actor = {name: value.clone() for name, value in ppo.policy.segmenter.named_parameters()}
    ppo.learn(16)
    for name, value in ppo.policy.critic.named_parameters():  # type: ignore[union-attr]
        assert torch.equal(value, before[name]), name
    assert any(not torch.equal(value, actor[name]) for name, value in ppo.policy.segmenter.named_parameters())


def test_sharing_parameters_by_accident_is_refused() -> None:
    images, labels = drawn_shapes()
    net = TinyNet()
    with pytest.raises(ValueError, match="share parameters"):
        DensePPO(SegmentationVecEnv(images, no_reward, K, 4, references=labels), net, CRITIC, critic=net)


def test_a_critic_with_a_huge_gradient_does_not_shrink_the_step_of_the_actor() -> None:
    """The gradient of one critic is a million times that of the other; its values, and so the advantages, are equal."""
    plain, steep = make_ppo(baseline="critic", n_epochs=1), make_ppo(baseline="critic", n_epochs=1)
    assert steep.policy.critic is not None
    steep.policy.critic.register_forward_hook(lambda _, inputs, out: out.detach() + 1e6 * (out - out.detach()))
    before = [parameter.clone() for parameter in plain.policy.actor_parameters]
    for ppo in (plain, steep):
        ppo.learn(16)
    norms = [ppo.logger.name_to_value["train/critic_grad_norm"] for ppo in (plain, steep)]
    assert norms[1] == pytest.approx(1e6 * norms[0], rel=1e-3)
    pairs = zip(plain.policy.actor_parameters, steep.policy.actor_parameters, before, strict=True)
    for ours, theirs, start in pairs:
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, start)


@pytest.mark.parametrize("role", ["actor", "critic"])
def test_gradients_are_clipped_to_the_largest_norm(role: str) -> None:
    """A step of plain gradient descent with a learning rate of 1 is as long as the gradient that it was given.

    Adam divides by the size of the gradient, and its steps would not tell.
    """
    ppo = make_ppo(baseline="critic", n_epochs=1, learning_rate=1.0, max_grad_norm=1e-3)
    assert ppo.policy.critic is not None
    critic = list(ppo.policy.critic.parameters())
    ppo.policy.optimizer = torch.optim.SGD(ppo.policy.actor_parameters, lr=1.0)
    ppo.policy.critic_optimizer = torch.optim.SGD(critic, lr=1.0)
    parameters = ppo.policy.actor_parameters if role == "actor" else critic
    before = [parameter.detach().clone() for parameter in parameters]
    ppo.learn(16)
    assert ppo.logger.name_to_value[f"train/{role}_grad_norm"] > 2e-3
    moved = [(now - start).flatten() for now, start in zip(parameters, before, strict=True)]
    assert float(torch.cat(moved).detach().norm()) == pytest.approx(1e-3, rel=1e-2)


def test_only_the_chosen_parameters_move() -> None:
    torch.manual_seed(0)
    images, labels = drawn_shapes()
    net = TinyNet()
    chosen = [net.layers[1].weight, net.layers[1].bias]
    before = {name: value.clone() for name, value in net.named_parameters()}
    ppo = DensePPO(SegmentationVecEnv(images, no_reward, K, 16, references=labels), net, trainable=chosen, device="cpu")
    ppo.learn(16 * 2)
    moved = {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"layers.1.weight", "layers.1.bias"}


def test_the_reference_is_frozen_and_the_kl_term_holds_the_policy_back() -> None:
    free, held = make_ppo(kl_coef=1e-6), make_ppo(kl_coef=10.0)
    before = {name: value.clone() for name, value in held.reference.named_parameters()}
    for ppo in (free, held):
        ppo.learn(16 * 10)
    assert all(torch.equal(value, before[name]) for name, value in held.reference.named_parameters())
    kl = [ppo.logger.name_to_value["train/kl_reference"] for ppo in (free, held)]
    assert kl[1] < 0.5 * kl[0]


def test_target_kl_stops_the_inner_epochs() -> None:
    ppo = make_ppo(target_kl=1e-9, n_epochs=50, learning_rate=0.05)
    ppo.learn(16)
    steps = next(iter(ppo.policy.optimizer.state.values()))["step"]
    assert steps == 2


def test_the_same_seed_gives_the_same_weights() -> None:
    first, second, other = make_ppo(seed=1), make_ppo(seed=1), make_ppo(seed=2)
    for ppo in (first, second, other):
        ppo.learn(16 * 3)
    weights = [torch.cat([p.flatten() for p in ppo.policy.actor_parameters]) for ppo in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_generators_of_the_caller_are_left_alone() -> None:
    """Another seed of PPO, in which networks are built beforehand, draws nothing else from them."""
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002 (the generator that stable-baselines3 seeds)
        random.seed(5)
        images, labels = drawn_shapes()
        ppo = DensePPO(SegmentationVecEnv(images, no_reward, K, 4, references=labels), TinyNet(), seed=seed)
        ppo.learn(4)
        drawn.append((float(torch.rand(())), float(np.random.rand()), random.random()))  # noqa: NPY002
    assert drawn[0] == drawn[1]


def test_the_order_of_the_images_is_that_of_the_seed_of_ppo() -> None:
    """Not that of the environment: published results have that order."""
    images, labels = drawn_shapes()
    shown = []
    for seed, of_env in ((1, 3), (1, 4), (2, 3)):
        env = SegmentationVecEnv(images, no_reward, K, 4, references=labels, seed=of_env)
        DensePPO(env, TinyNet(), seed=seed, device="cpu")
        shown.append(env.reset())
    assert np.array_equal(shown[0], shown[1])
    assert not np.array_equal(shown[0], shown[2])


@pytest.mark.parametrize("baseline", ["critic", "greedy"])
def test_saving_and_loading_goes_on_as_if_nothing_had_happened(tmp_path: Path, baseline: str) -> None:
    changes = {"baseline": baseline, "kl_coef": 0.1, "critic_learning_rate": 0.03, "autocast": True}
    straight, first = make_ppo(**changes), make_ppo(**changes)
    straight.learn(16 * 4)
    first.learn(16 * 2)
    first.save(tmp_path / "checkpoint")
    images, labels = drawn_shapes()
    torch.manual_seed(99)
    second = DensePPO.load(
        tmp_path / "checkpoint",
        SegmentationVecEnv(images, no_reward, K, 16, references=labels),
        TinyNet(),
        critic=TinyNet(1) if baseline == "critic" else None,
        device="cpu",
    )
    assert (second.settings, second.autocast) == (first.settings, True)
    second.learn(16 * 2, reset_num_timesteps=False)
    for ours, theirs in zip(second.policy.actor_parameters, straight.policy.actor_parameters, strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_of_version_0_1_is_read(tmp_path: Path) -> None:
    """Its hyper-parameters stood beside the state, and independent exploration was a correlation length of 0."""
    ppo = make_ppo(exploration="independent", clip_range=0.1, n_steps=2, batch_size=4, seed=7)
    ppo.learn(32)
    ppo.save(tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "ppo.json"
    content = json.loads(path.read_text())
    assert content.pop("format") == 2
    flat = {**content.pop("settings"), "correlation_length": 0.0}
    del flat["exploration"]
    path.write_text(json.dumps({**content, **flat, "_n_updates": content.pop("n_updates")}))
    found = read_state(tmp_path / "checkpoint")
    assert found.settings == ppo.settings
    assert (found.n_steps, found.batch_size, found.seed, found.num_timesteps, found.n_updates) == (2, 4, 7, 32, 1)


def test_other_settings_than_those_that_were_saved_can_be_gone_on_with(tmp_path: Path) -> None:
    ppo = make_ppo()
    ppo.save(tmp_path / "checkpoint")
    other = ppo.settings.model_copy(update={"clip_range": 0.3})
    images, labels = drawn_shapes()
    env = SegmentationVecEnv(images, no_reward, K, 16, references=labels)
    loaded = DensePPO.load(tmp_path / "checkpoint", env, TinyNet(), other, seed=5, device="cpu")
    assert (loaded.settings, loaded.seed) == (other, 5)


def test_a_checkpoint_of_a_newer_version_says_to_update(tmp_path: Path) -> None:
    make_ppo().save(tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / "ppo.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 3}))
    with pytest.raises(ModelError, match=r"ppo\.json: format 3 was written by a newer version of medfm-rl; update"):
        read_state(tmp_path / "checkpoint")


@pytest.mark.parametrize("verbose", [0, 1])
def test_learning_leaves_nothing_among_the_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verbose: int
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    images, labels = drawn_shapes()
    env = SegmentationVecEnv(images, no_reward, K, 16, references=labels)
    ppo = DensePPO(env, TinyNet(), device="cpu", verbose=verbose)
    for _ in range(2):
        ppo.learn(16)
    assert list(tmp_path.iterdir()) == []
    assert ("total_timesteps" in capsys.readouterr().out) == bool(verbose)


def test_loading_what_is_no_checkpoint_names_the_folder(tmp_path: Path) -> None:
    images, labels = drawn_shapes()
    env = SegmentationVecEnv(images, no_reward, K, 16, references=labels)
    with pytest.raises(ModelError, match=r"nothing/ppo\.json: there is no such file; give the folder"):
        DensePPO.load(tmp_path / "nothing", env, TinyNet())


def test_saving_over_a_checkpoint_is_refused(tmp_path: Path) -> None:
    ppo = make_ppo()
    ppo.save(tmp_path / "a")
    with pytest.raises(DataError, match="not empty"):
        ppo.save(tmp_path / "a")


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    ppo = make_ppo()
    with torch.no_grad():
        ppo.policy.actor_parameters[0][0] = torch.nan
    before = [parameter.clone() for parameter in ppo.policy.actor_parameters]
    with pytest.raises(FloatingPointError, match="learning_rate"):
        ppo.learn(16)
    for ours, theirs in zip(ppo.policy.actor_parameters, before, strict=True):
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


def test_rollouts_sample_and_evaluation_takes_the_argmax() -> None:
    ppo = make_ppo(exploration="independent")
    images, _ = drawn_shapes()
    greedy = [ppo.predict(images, deterministic=True)[0] for _ in range(2)]
    assert np.array_equal(*greedy)
    assert greedy[0].dtype == np.uint8
    ppo.learn(16)
    drawn = next(ppo.rollout_buffer.get()).actions
    rows = [ppo.env.images[i] for i in range(16)]  # type: ignore[union-attr]
    assert len(rows) == 16
    logits = ppo.reference(next(ppo.rollout_buffer.get()).images)
    assert (drawn != logits.argmax(dim=1)).float().mean() > 0.05


def test_clipped_loss_by_hand() -> None:
    """Ratios 1.5 and 0.5 with epsilon 0.2: the first is cut at 1.2 for a gain, the second at 0.8 for a loss."""
    old = torch.zeros(1, 2)
    new = torch.log(torch.tensor([[1.5, 0.5]]))
    loss, clip_fraction, approx_kl = clipped_policy_loss(new, old, torch.tensor([[2.0, -1.0]]), 0.2)
    assert loss.item() == pytest.approx(-(1.2 * 2.0 + 0.8 * -1.0) / 2)
    assert clip_fraction == 1.0
    assert approx_kl == pytest.approx(((0.5 - np.log(1.5)) + (-0.5 - np.log(0.5))) / 2, rel=1e-5)
    # Where clipping would make things look better than they are, PPO does not clip.
    loss, _, _ = clipped_policy_loss(new, old, torch.tensor([[-2.0, 1.0]]), 0.2)
    assert loss.item() == pytest.approx(-(1.5 * -2.0 + 0.5 * 1.0) / 2)


def test_advantages_are_scaled_but_not_centred() -> None:
    scaled = normalise_advantages(torch.tensor([[3.0, 0.0, 0.0, 4.0]]))
    assert torch.allclose(scaled, torch.tensor([[1.2, 0.0, 0.0, 1.6]]))
    assert torch.equal(normalise_advantages(torch.zeros(1, 4)), torch.zeros(1, 4))


def test_greedy_advantages_by_hand() -> None:
    """The difference of both reward maps where the actions differ, exactly 0 where they do not."""
    actions, greedy = torch.tensor([[[1, 2]]]), torch.tensor([[[1, 1]]])
    advantages = greedy_advantages(torch.tensor([[[0.2, 0.9]]]), actions, torch.tensor([[[0.7, 0.4]]]), greedy)
    assert torch.allclose(advantages, torch.tensor([[[0.0, 0.5]]]))


def test_a_critic_and_the_greedy_baseline_exclude_each_other() -> None:
    images, labels = drawn_shapes()
    env = SegmentationVecEnv(images, no_reward, K, 4, references=labels)
    with pytest.raises(ValueError, match="critic"):
        DensePPO(env, TinyNet(), PPOHyperparameters(baseline="greedy"), critic=TinyNet(1))
    with pytest.raises(ValueError, match="critic"):
        DensePPO(env, TinyNet(), CRITIC)
