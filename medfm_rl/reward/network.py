"""Reward networks: from an image and an action to the probability that each pixel of the action is right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from medfm_rl.data.files import read_versioned_json, replace_folder_on_success, versioned_json
from medfm_rl.errors import ModelError
from medfm_rl.networks import build_padded_unet, fill_network, one_hot
from medfm_rl.reward.fusion import read_fusion
from medfm_rl.settings import NetworkSettings, RewardSettings
from medfm_rl.tiling import over_tiles

_DESCRIPTION = "reward.json"
_FORMAT = 1
_ADVICE = "give a folder that `adapt` wrote"
# Most pixels are right: an untrained network says so (probability 0.95), and its output is scaled to the range of
# log-odds. Without this the first epochs are spent on learning a constant.
_PRIOR_LOG_ODDS = 3.0
_GAIN = 4.0


class RewardNet(nn.Module):
    """Rates each pixel of an action.

    Args:
        settings: Architecture.
        num_classes: K, classes of the action.
        in_channels: Channels of the image that it sees, the first ones: grey values. Whatever else travels with an
            image, such as the boxes that a segmenter was prompted with, says nothing of whether a mask is right; a
            network that knew the boxes would believe them.
        spatial_dims: 2 or 3.
    """

    temperature: Tensor

    def __init__(
        self, settings: NetworkSettings, num_classes: int, in_channels: int = 1, spatial_dims: int = 2
    ) -> None:
        super().__init__()
        self.settings = settings
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.spatial_dims = spatial_dims
        self.network = build_padded_unet(settings, spatial_dims, in_channels + num_classes, 1)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, images: Tensor, actions: Tensor) -> Tensor:
        """Reward logits z.

        Args:
            images: `(B, C, *S)`, preprocessed as for the segmenter.
            actions: `(B, *S)`, class indices of any integer type.

        Returns:
            `(B, *S)`; the log-odds that a pixel is right, before calibration.
        """
        return self._logits(images, one_hot(actions, self.num_classes, dim=1).to(images.dtype))

    def _logits(self, images: Tensor, memberships: Tensor) -> Tensor:
        """Reward logits `(B, *S)` of memberships `(B, K, *S)`."""
        seen = torch.cat([images[:, : self.in_channels], memberships], dim=1)
        logits: Tensor = self.network(seen)[:, 0]
        return _PRIOR_LOG_ODDS + _GAIN * logits

    def reward_map(self, images: Tensor, actions: Tensor) -> Tensor:
        """Calibrated probability in [0, 1] that each pixel is right, `sigmoid(z / T)`, `(B, *S)`.

        The scale is absolute: nothing is normalised by image or batch.
        """
        return torch.sigmoid(self(images, actions) / self.temperature)

    def relaxed_map(self, images: Tensor, memberships: Tensor) -> Tensor:
        """The reward map of an action given by memberships, differentiable in them.

        For one-hot memberships it is `reward_map` of that action. The network has learned from nothing else: what it
        says of a softmax is extrapolated.

        Args:
            images: `(B, C, *S)`.
            memberships: `(B, K, *S)`, how much each pixel belongs to each class.

        Returns:
            `(B, *S)` in [0, 1].
        """
        return torch.sigmoid(self._logits(images, memberships) / self.temperature)

    def save(self, folder: Path) -> None:
        """Writes `reward.json` and `weights.safetensors` into a new folder."""
        description = {
            "network": self.settings.model_dump(mode="json"),
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "spatial_dims": self.spatial_dims,
        }
        with replace_folder_on_success(folder) as temporary:
            (temporary / _DESCRIPTION).write_text(versioned_json(_FORMAT, description), encoding="utf-8")
            weights = {name: value.contiguous() for name, value in self.state_dict().items()}
            (temporary / "weights.safetensors").write_bytes(save(weights))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            ModelError: A file is missing, does not fit, or was written by a newer version.
        """
        description = read_versioned_json(folder / _DESCRIPTION, _FORMAT, _ADVICE, ModelError)
        try:
            net = cls(
                NetworkSettings(**description["network"]),
                description["num_classes"],
                description["in_channels"],
                description["spatial_dims"],
            )
            fill_network(net, load_file(folder / "weights.safetensors"))
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{folder}: not a reward network ({error}); {_ADVICE}") from error
        return net.eval()


@dataclass(frozen=True, eq=False)
class Examination:
    """What one pass of reward networks over images and actions tells.

    Attributes:
        mean: Mean of the calibrated reward maps, `(B, *S)` in [0, 1].
        spread: Standard deviation of the maps, `(B, *S)`; 0 for a single network.
        features: `(B, F)`: mean activation of every channel of the first network's encoder, level by level.
    """

    mean: Tensor
    spread: Tensor
    features: Tensor


class RewardEnsemble(nn.Module):
    """Frozen reward networks fused into one reward map.

    It stays in evaluation mode whatever `train` is told, so that no batch statistics move and batch-mates do not change
    each other's rewards.

    Args:
        members: Trained and calibrated networks.
        settings: How the maps are fused. `mean_minus_std` and `min` are pessimistic: where the members disagree, the
            policy has found a spot where at least one of them is wrong, and earns nothing by exploiting it.
    """

    def __init__(self, members: Sequence[RewardNet], settings: RewardSettings) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.fusion = settings.fusion
        self.pessimism = settings.pessimism
        self.requires_grad_(False)
        self.eval()

    @property
    def in_channels(self) -> int:
        """How many of the first channels of an image the networks see."""
        return self.networks[0].in_channels

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode."""
        del mode
        return super().train(False)

    def forward(self, images: Tensor, actions: Tensor) -> Tensor:
        """Fused reward map in [0, 1], `(B, *S)`; images `(B, C, *S)`, actions `(B, *S)`."""
        return self._fuse([member.reward_map(images, actions) for member in self.networks])

    def relaxed_map(self, images: Tensor, memberships: Tensor) -> Tensor:
        """Fused reward map `(B, *S)`, differentiable in the memberships `(B, K, *S)`; see `RewardNet.relaxed_map`."""
        return self._fuse([member.relaxed_map(images, memberships) for member in self.networks])

    def _fuse(self, members: Sequence[Tensor]) -> Tensor:
        maps = torch.stack(list(members))
        if len(maps) == 1:
            return maps[0]
        match self.fusion:
            case "mean":
                return maps.mean(dim=0)
            case "min":
                return maps.amin(dim=0)
            case "mean_minus_std":
                return (maps.mean(dim=0) - self.pessimism * maps.std(dim=0, correction=0)).clamp_min(0)

    @torch.no_grad()
    def examine(self, images: Tensor, actions: Tensor, patch_size: Sequence[int]) -> Examination:
        """Rates actions and describes what the networks saw, in one forward pass of each.

        Args:
            images: `(B, C, *S)`.
            actions: `(B, *S)`, class indices.
            patch_size: Grid that the networks were trained on; larger images, and slices of volumes, are rated as in
                `tiled_reward_map`.
        """
        if tuple(images.shape[2:]) == tuple(patch_size):
            return self._examine_whole(images, actions)
        rated, features = [], []
        for image, action in zip(images, actions, strict=True):
            seen: list[Tensor] = []

            def rate(shown: Tensor, labels: Tensor, seen: list[Tensor] = seen) -> Tensor:
                found = self._examine_whole(shown, labels[:, 0])
                seen.append(found.features)
                return torch.stack([found.mean, found.spread], dim=1)

            rated.append(over_tiles(rate, [image, action[None]], patch_size))
            features.append(torch.cat(seen).mean(dim=0))
        maps = torch.stack(rated)
        return Examination(maps[:, 0], maps[:, 1], torch.stack(features))

    def _examine_whole(self, images: Tensor, actions: Tensor) -> Examination:
        first, *others = self.networks
        with _encoder_means(first) as levels:
            maps = [first.reward_map(images, actions)]
        stacked = torch.stack([*maps, *(network.reward_map(images, actions) for network in others)])
        mean = stacked.mean(dim=0)
        # Several times as fast as `std` along the first axis.
        spread = (stacked - mean).square().mean(dim=0).sqrt()
        return Examination(mean, spread, torch.cat(levels, dim=1))

    @classmethod
    def load(cls, folder: Path, names: Sequence[str] | None = None) -> Self:
        """Reads the ensemble that `adapt` leaves: `fusion.json` and one folder for each network.

        Args:
            folder: The folder.
            names: Which of its networks; None for all of them.

        Raises:
            ModelError: A part is missing or does not fit.
        """
        settings, members = read_fusion(folder)
        return cls([RewardNet.load(folder / name) for name in names or members], settings)

    @property
    def networks(self) -> list[RewardNet]:
        """The members, in their order."""
        return [member for member in self.members if isinstance(member, RewardNet)]


@contextmanager
def _encoder_means(net: RewardNet) -> Iterator[list[Tensor]]:
    """Collects the mean activations `(B, channels)` of the levels of the encoder while the block runs."""
    levels: list[Tensor] = []

    def collect(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del module, inputs
        levels.append(output.detach().flatten(2).mean(dim=2).float().cpu())

    hooks = [block.register_forward_hook(collect) for block in _encoder(net)]
    try:
        yield levels
    finally:
        for hook in hooks:
            hook.remove()


def _encoder(net: RewardNet) -> list[nn.Module]:
    """The blocks on the way down of a MONAI UNet, which nests each level in the skip connection of the one above."""
    from monai.networks.layers.simplelayers import SkipConnection

    blocks: list[nn.Module] = []
    level = net.network.model
    while isinstance(level, nn.Sequential) and len(level) == 3 and isinstance(level[1], SkipConnection):
        blocks.append(level[0])
        level = level[1].submodule
    assert isinstance(level, nn.Module)
    return [*blocks, level]
