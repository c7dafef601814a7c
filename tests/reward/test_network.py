from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medfm_rl.errors import DataError, ModelError
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.settings import NetworkSettings, RewardSettings

K = 3


def make_net(
    seed: int = 0,
    norm: str = "instance",
    dropout: float = 0.0,
    channels: int = 1,
    spatial_dims: int = 2,
    temperature: float = 1.0,
) -> RewardNet:
    settings = NetworkSettings(channels=(4, 8), residual_units=0, norm=norm, dropout=dropout)  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = RewardNet(settings, K, channels, spatial_dims)
    net.temperature.fill_(temperature)
    return net.eval()


def make_batch(count: int = 3, channels: int = 1, spatial_dims: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    grid = (8,) * spatial_dims
    images = torch.randn(count, channels, *grid, generator=generator)
    return images, torch.randint(0, K, (count, *grid), generator=generator).byte()


def moved_statistics(net: RewardNet) -> RewardNet:
    """Batch statistics of other images, so that evaluation with them differs from evaluation with the batch's own."""
    net.train()
    with torch.no_grad():
        for seed in range(1, 4):
            images, actions = make_batch(seed=seed)
            net(2 * images + 1, actions)
    return net.eval()


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_reward_map_is_exactly_the_calibrated_sigmoid(spatial_dims: int, temperature: float) -> None:
    net = make_net(spatial_dims=spatial_dims, temperature=temperature)
    images, actions = make_batch(spatial_dims=spatial_dims)
    logits, maps = net(images, actions), net.reward_map(images, actions)
    assert logits.shape == maps.shape == actions.shape
    assert torch.equal(maps, torch.sigmoid(logits / temperature))
    assert torch.equal(logits, make_net(spatial_dims=spatial_dims)(images, actions)), "T is no part of the logits"


@pytest.mark.parametrize("bias", [-1e4, -2.0, -0.75, 0.0, 1e4])
def test_a_flat_map_keeps_its_level_and_holds_no_nan(bias: float) -> None:
    net = make_net(temperature=2.0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        last = [parameter for parameter in net.parameters() if parameter.shape == (1,)][-1]
        last.fill_(bias)
    images, actions = make_batch()
    logits, maps = net(images, actions), RewardEnsemble([net], RewardSettings())(images, actions)
    assert logits.min() == logits.max(), "the network was to say the same everywhere"
    assert torch.equal(maps, torch.sigmoid(logits / 2.0))
    # The level is what the network says, not the 0, 0.5 or 1 that a normalisation by image would make of it.
    assert maps.isfinite().all()
    if abs(bias) < 10:
        assert 0.001 < float(maps[0, 0, 0]) < 0.999


def test_the_scale_is_that_of_the_network_and_not_of_the_image_or_batch() -> None:
    net = make_net()
    images, actions = make_batch(4)
    images[1:] *= 50
    together = net.reward_map(images, actions)
    alone = net.reward_map(images[:1], actions[:1]).detach()
    assert torch.allclose(together[:1], alone, atol=1e-6)
    assert float(alone.min()) > 0, "no image is stretched to the full range"
    assert float(alone.max()) < 1


def test_actions_of_any_integer_type_are_judged_alike() -> None:
    net = make_net()
    images, actions = make_batch()
    expected = net(images, actions)
    for dtype in (torch.int16, torch.int32, torch.int64):
        assert torch.equal(net(images, actions.to(dtype)), expected)


class Pick(nn.Module):
    """One channel of what it is given."""

    def __init__(self, channel: int) -> None:
        super().__init__()
        self.channel = channel

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[:, self.channel, None]


def test_the_network_is_given_the_image_and_each_class_as_a_channel_of_its_own() -> None:
    net, (images, actions) = make_net(channels=2), make_batch(channels=2)
    for channel, expected in enumerate([images[:, 0], images[:, 1], *(actions == label for label in range(K))]):
        net.network = Pick(channel)
        logits = net(images, actions)
        # Up to the scale of log-odds.
        assert np.corrcoef(logits.flatten().numpy(), expected.float().flatten().numpy())[0, 1] == pytest.approx(1.0)


def test_a_class_that_the_network_does_not_know_is_an_error() -> None:
    images, actions = make_batch(1)
    with pytest.raises(RuntimeError, match="num_classes"):
        make_net()(images, torch.full_like(actions, K))


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
def test_batch_mates_do_not_change_a_reward_whatever_mode_is_asked_for(norm: str) -> None:
    ensemble = RewardEnsemble(
        [moved_statistics(make_net(seed, norm, dropout=0.4)) for seed in range(2)], RewardSettings()
    )
    nn.ModuleList([ensemble]).train()
    assert not any(module.training for module in ensemble.modules())
    images, actions = make_batch(4)
    images[2] = 100.0
    together = ensemble(images, actions)
    for row in range(4):
        assert torch.allclose(ensemble(images[row : row + 1], actions[row : row + 1])[0], together[row], atol=1e-6)
    assert torch.equal(ensemble(images, actions), together), "dropout draws"


def test_no_batch_statistics_move_while_an_ensemble_judges() -> None:
    ensemble = RewardEnsemble([moved_statistics(make_net(norm="batch"))], RewardSettings())
    before = {name: value.clone() for name, value in ensemble.state_dict().items()}
    assert any("running_mean" in name for name in before)
    ensemble.train()
    ensemble(*make_batch(seed=7))
    for name, value in ensemble.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_an_ensemble_is_frozen() -> None:
    ensemble = RewardEnsemble([make_net(0), make_net(1)], RewardSettings())
    assert len(list(ensemble.parameters())) > 0
    assert not any(parameter.requires_grad for parameter in ensemble.parameters())
    assert not ensemble(*make_batch()).requires_grad


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize(
    ("fusion", "pessimism"), [("mean", 0.5), ("min", 0.5), ("mean_minus_std", 0.0), ("mean_minus_std", 1.5)]
)
def test_maps_are_fused_as_numpy_would(fusion: str, pessimism: float, spatial_dims: int) -> None:
    members = [make_net(seed, spatial_dims=spatial_dims, temperature=0.5 + seed) for seed in range(3)]
    images, actions = make_batch(spatial_dims=spatial_dims)
    maps = np.stack([member.reward_map(images, actions).detach().numpy() for member in members])
    assert maps.std(axis=0).max() > 0.01, "the members were to disagree"
    expected = {
        "mean": maps.mean(axis=0),
        "min": maps.min(axis=0),
        "mean_minus_std": np.maximum(maps.mean(axis=0) - pessimism * maps.std(axis=0), 0),
    }[fusion]
    settings = RewardSettings(fusion=fusion, pessimism=pessimism)  # type: ignore[arg-type]
    fused = RewardEnsemble(members, settings)(images, actions)
    np.testing.assert_allclose(fused.numpy(), expected, atol=1e-6)


def test_pessimism_never_makes_a_reward_negative() -> None:
    members = [make_net(seed) for seed in range(3)]
    fused = RewardEnsemble(members, RewardSettings(fusion="mean_minus_std", pessimism=100.0))(*make_batch())
    assert float(fused.min()) == 0.0


@pytest.mark.parametrize("fusion", ["mean", "min", "mean_minus_std"])
def test_one_network_alone_is_its_own_ensemble(fusion: str) -> None:
    net, batch = make_net(temperature=1.7), make_batch()
    ensemble = RewardEnsemble([net], RewardSettings(fusion=fusion, pessimism=3.0))  # type: ignore[arg-type]
    assert torch.equal(ensemble(*batch), net.reward_map(*batch))


@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
@pytest.mark.parametrize(("channels", "spatial_dims"), [(1, 2), (2, 3)])
def test_a_saved_network_judges_the_same_when_it_comes_back(
    tmp_path: Path, norm: str, channels: int, spatial_dims: int
) -> None:
    net = make_net(norm=norm, dropout=0.2, channels=channels, spatial_dims=spatial_dims, temperature=1.7)
    net.save(tmp_path / "net")
    loaded = RewardNet.load(tmp_path / "net")
    batch = make_batch(channels=channels, spatial_dims=spatial_dims)
    assert torch.equal(loaded.reward_map(*batch), net.reward_map(*batch))
    assert loaded.settings == net.settings
    assert not loaded.training
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == ["reward.json", "weights.safetensors"]
    assert float(load_file(tmp_path / "net" / "weights.safetensors")["temperature"]) == pytest.approx(1.7)


def test_a_network_is_never_saved_over_another(tmp_path: Path) -> None:
    make_net(0).save(tmp_path / "net")
    before = (tmp_path / "net" / "weights.safetensors").read_bytes()
    with pytest.raises(DataError, match=r"net: already exists and is not empty; give a new folder"):
        make_net(1).save(tmp_path / "net")
    assert (tmp_path / "net" / "weights.safetensors").read_bytes() == before


def test_a_full_disk_leaves_no_half_network(
    tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    with full_disk(), pytest.raises(DataError, match="net: cannot be written"):
        make_net().save(tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def damage(folder: Path, how: str) -> None:
    description, weights = folder / "reward.json", folder / "weights.safetensors"
    content = json.loads(description.read_text())
    match how:
        case "no description":
            description.unlink()
        case "no weights":
            weights.unlink()
        case "half the weights":
            weights.write_bytes(weights.read_bytes()[:-50])
        case "no temperature":
            save_file({name: value for name, value in load_file(weights).items() if name != "temperature"}, weights)
        case "a description that is no JSON":
            description.write_text("{")
        case "a description that is a list":
            description.write_text("[1]")
        case "another number of classes":
            description.write_text(json.dumps({**content, "num_classes": K + 1}))
        case "an unknown setting":
            description.write_text(json.dumps({**content, "network": {"colour": "red"}}))


@pytest.mark.parametrize(
    "how",
    [
        "no description",
        "no weights",
        "half the weights",
        "no temperature",
        "a description that is no JSON",
        "a description that is a list",
        "another number of classes",
        "an unknown setting",
    ],
)
def test_a_folder_that_is_no_reward_network_is_named(tmp_path: Path, how: str) -> None:
    make_net().save(tmp_path / "net")
    damage(tmp_path / "net", how)
    with pytest.raises(
        ModelError, match=r"(?s)net(: not a reward network |/reward\.json: ).*give a folder that `adapt` wrote"
    ):
        RewardNet.load(tmp_path / "net")


def test_the_relaxed_map_of_one_hot_memberships_is_the_reward_map_and_has_a_gradient() -> None:
    images, actions = make_batch()
    one_hot = nn.functional.one_hot(actions.long(), K).movedim(-1, 1).float().requires_grad_(True)
    net = make_net(temperature=2.0)
    torch.testing.assert_close(net.relaxed_map(images, one_hot), net.reward_map(images, actions))
    ensemble = RewardEnsemble([net, make_net(1)], RewardSettings(fusion="mean_minus_std"))
    relaxed = ensemble.relaxed_map(images, one_hot)
    torch.testing.assert_close(relaxed, ensemble(images, actions))
    relaxed.mean().backward()
    assert one_hot.grad is not None
    assert bool(one_hot.grad.isfinite().all())
    assert float(one_hot.grad.abs().min(dim=1).values.max()) > 0
    assert all(parameter.grad is None for parameter in net.parameters())
