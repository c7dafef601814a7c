"""A learned shape prior: an autoencoder of masks that maps an implausible mask to a plausible one nearby."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from medfm_rl.data.files import read_versioned_json, replace_folder_on_success, versioned_json
from medfm_rl.errors import DataError, ModelError
from medfm_rl.networks import argmax_classes, fill_network, images_at_once, one_hot
from medfm_rl.prelu import with_fast_prelu
from medfm_rl.reward.corruption import add_blob, warp
from medfm_rl.rows import Rows
from medfm_rl.seeding import torch_generator
from medfm_rl.settings import ShapePriorSettings

_CHANNELS = (16, 32, 64, 64)
_DESCRIPTION = "shape_prior.json"
_FORMAT = 1
_ADVICE = "delete the folder and resume the run"


class ShapePrior(nn.Module):
    """A denoising autoencoder of one-hot masks with a small code (Oktay et al., IEEE TMI 2018), for any anatomy.

    Args:
        num_classes: K.
        size: Grid of the masks, `(*S)`.
        latent: Size of the code.
    """

    def __init__(self, num_classes: int, size: tuple[int, ...], latent: int) -> None:
        super().__init__()
        from monai.networks.nets import VarAutoEncoder

        self.num_classes = num_classes
        self.size = size
        self.latent = latent
        # The network halves the grid at each level: masks are resampled to the nearest grid that allows it.
        factor = 2 ** len(_CHANNELS)
        self.inner_size = tuple(factor * max(1, round(side / factor)) for side in size)
        autoencoder = VarAutoEncoder(
            spatial_dims=len(size),
            in_shape=(num_classes, *self.inner_size),
            out_channels=num_classes,
            latent_size=latent,
            channels=_CHANNELS,
            strides=(2,) * len(_CHANNELS),
            # Normalisation would take the size of the structures out of the features.
            norm=None,
        )
        autoencoder.logvar.requires_grad_(False)
        self.network = with_fast_prelu(autoencoder)

    def forward(self, masks: Tensor) -> Tensor:
        """Logits of plausible masks.

        Args:
            masks: `(B, K, *S)`, one-hot or probabilities.

        Returns:
            `(B, K, *S)`.
        """
        mode = "bilinear" if len(self.size) == 2 else "trilinear"
        inner = F.interpolate(masks, size=self.inner_size, mode=mode, align_corners=False)
        # The mean of the code, never a draw: the same mask always gets the same projection. (`encode_forward` would do,
        # but views a tensor that is not contiguous without normalisation layers.)
        code = self.network.mu(self.network.encode(inner).flatten(1))
        logits: Tensor = self.network.decode_forward(code, use_sigmoid=False)
        resized: Tensor = F.interpolate(logits, size=self.size, mode=mode, align_corners=False)
        return resized

    @torch.no_grad()
    def project(self, actions: Tensor) -> Tensor:
        """The plausible masks nearest to actions `(B, *S)`, a few at a time; class indices `(B, *S)` uint8."""
        found = []
        for part in actions.split(images_at_once(actions.shape[1:], most=max(1, len(actions)))):
            logits: Tensor = self(one_hot(part, self.num_classes, dim=1))
            found.append(argmax_classes(logits, dim=1).to(torch.uint8))
        return torch.cat(found)

    def save(self, folder: Path) -> None:
        """Writes `shape_prior.json` and `weights.safetensors` into a new folder."""
        description = {"num_classes": self.num_classes, "size": self.size, "latent": self.latent}
        with replace_folder_on_success(folder) as temporary:
            (temporary / _DESCRIPTION).write_text(versioned_json(_FORMAT, description), encoding="utf-8")
            (temporary / "weights.safetensors").write_bytes(save(self.state_dict()))

    @classmethod
    def load(cls, folder: Path) -> ShapePrior:
        """Reads what `save` wrote.

        Raises:
            ModelError: A file is missing, does not fit, or was written by a newer version.
        """
        description = read_versioned_json(folder / _DESCRIPTION, _FORMAT, _ADVICE, ModelError)
        try:
            prior = cls(description["num_classes"], tuple(description["size"]), description["latent"])
            fill_network(prior, load_file(folder / "weights.safetensors"))
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{folder}: not a shape prior ({error}); {_ADVICE}") from error
        return prior.eval()


def train_shape_prior(
    masks: Rows,
    num_classes: int,
    settings: ShapePriorSettings,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> ShapePrior:
    """Trains a shape prior to undo corruptions of plausible masks.

    Args:
        masks: `(N, *S)` class indices, in memory or on the disk: ground truth of the source, or valid predictions where
            there is none.
        num_classes: K.
        settings: Optimisation.
        seed: Seed of weights, order and corruptions.
        device: Where to train.
        progress: Called with (epochs done, epochs).

    Returns:
        On the CPU, frozen in evaluation mode.

    Raises:
        DataError: There are no masks.
    """
    if len(masks) == 0:
        raise DataError("a shape prior needs masks and there is none that the anatomy rules call valid")
    generator = torch_generator(seed, "shape prior")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prior = ShapePrior(num_classes, tuple(masks.shape[1:]), settings.latent).to(device)
    parameters = [parameter for parameter in prior.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, settings.learning_rate, total_steps=settings.epochs * -(-len(masks) // settings.batch_size)
    )
    for epoch in range(settings.epochs):
        for rows in torch.randperm(len(masks), generator=generator).split(settings.batch_size):
            plausible = torch.stack([warp(masks[row], generator, amplitude=0.02) for row in rows])
            corrupted = torch.stack([_corrupt(mask, num_classes, generator) for mask in plausible])
            optimiser.zero_grad()
            at_once = images_at_once(masks.shape[1:], len(rows))
            for given, wanted in zip(corrupted.split(at_once), plausible.split(at_once), strict=True):
                maps = one_hot(given, num_classes, dim=1).to(device)
                loss = F.cross_entropy(prior(maps), wanted.long().to(device))
                if len(given) < len(rows):
                    loss = loss * (len(given) / len(rows))
                loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            schedule.step()
        if progress:
            progress(epoch + 1, settings.epochs)
    return prior.cpu().eval().requires_grad_(False)


def _corrupt(mask: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    if float(torch.rand((), generator=generator)) < 0.5:
        return add_blob(mask, num_classes, generator)
    return mask
