"""The network that segmenters, rewards and critics are built from; where it runs, how precisely, what it decides."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfm_rl.errors import ConfigError
from medfm_rl.prelu import with_fast_prelu
from medfm_rl.settings import NetworkSettings
from medfm_rl.structures import Structures, exclusive
from medfm_rl.types import LabelSchema

_PIXELS_AT_ONCE: Final = 1 << 20


def build_unet(settings: NetworkSettings, spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    """Builds a MONAI UNet from images `(B, in_channels, *S)` to `(B, out_channels, *S)`.

    Each side of S must be a multiple of `size_divisor(settings)`.
    """
    from monai.networks.nets import UNet

    norm: str | tuple[str, dict[str, int]] = settings.norm
    if settings.norm == "group":
        # The largest group count that divides the feature maps of every level and the output.
        norm = ("group", {"num_groups": math.gcd(*settings.channels, out_channels)})
    network: nn.Module = UNet(
        spatial_dims=spatial_dims,
        in_channels=in_channels,
        out_channels=out_channels,
        channels=settings.channels,
        strides=(2,) * (len(settings.channels) - 1),
        num_res_units=settings.residual_units,
        norm=norm,
        dropout=settings.dropout,
    )
    return with_fast_prelu(network)


def build_padded_unet(settings: NetworkSettings, spatial_dims: int, in_channels: int, out_channels: int) -> nn.Module:
    """The same for images of any size; the names of its weights are those of `build_unet`."""
    unet = build_unet(settings, spatial_dims, in_channels, out_channels)
    return PaddedNetwork(unet, size_divisor(settings))


def size_divisor(settings: NetworkSettings) -> int:
    """The number that every side of the network's input must be a multiple of: the UNet halves it at each level."""
    return 1 << (len(settings.channels) - 1)


class PaddedNetwork(nn.Module):
    """A UNet for patches of any size: what it cannot halve is made larger by repeating the last pixels, and cut again.

    Patches of other tools need not be what a UNet can halve. The names of the weights are those of `network`.

    Args:
        network: A UNet of `build_unet`.
        divisor: What every side of its input must be a multiple of.
    """

    def __init__(self, network: nn.Module, divisor: int) -> None:
        super().__init__()
        assert isinstance(network.model, nn.Module)
        self.model = network.model
        self.divisor = divisor

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, C, *S)` to `(B, C', *S)`."""
        short = [-side % self.divisor for side in images.shape[2:]]
        if not any(short):
            whole: Tensor = self.model(images)
            return whole
        margins = [margin for amount in reversed(short) for margin in (0, amount)]
        padded: Tensor = self.model(F.pad(images, margins, mode="replicate"))
        return padded[(slice(None), slice(None), *(slice(0, side) for side in images.shape[2:]))]


def images_at_once(grid: Sequence[int], most: int = 16) -> int:
    """How many images of that grid a network is shown at once, in training and elsewhere; at least one.

    As many as have a million pixels together: 16 of 256 x 256, 4 of 512 x 512, one of 96 x 160 x 160. So what the
    activations need does not grow with the images. Of a larger batch the gradients are summed, which is the same but
    for rounding; where it is not larger, nothing is other than without this.

    Args:
        grid: `(*S)`.
        most: Images at most.
    """
    return max(1, min(most, _PIXELS_AT_ONCE // max(1, math.prod(grid))))


def choose_device(name: str) -> torch.device:
    """The device of that name; auto takes CUDA, then MPS, then the CPU.

    Raises:
        ConfigError: It is not there, or there is no such device.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name not in ("auto", *available):
        raise ConfigError(f"device: {name} is none of auto, cpu, cuda and mps")
    if name == "auto":
        return torch.device(next(kind for kind, there in available.items() if there))
    if not available[name]:
        raise ConfigError(f"device: {name} is not available on this machine; use auto or cpu")
    return torch.device(name)


def hash_weights(module: nn.Module) -> str:
    """SHA-256 of names and values of all weights and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        # As bytes: NumPy has no bfloat16.
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def mixed_precision(device: torch.device, spatial_dims: int) -> torch.autocast:
    """A context in which networks compute in bfloat16 where the hardware has it, and in single precision elsewhere.

    For training: weights, losses and optimiser states stay in single precision. An AMD EPYC with AVX512-BF16 took .6 of
    the time for a step of the default network. A PyTorch that does not tell what the processor can do gets single
    precision, and so do 3-D networks on a CPU: there the gradient of the weights of a convolution in bfloat16 has
    values that nobody computed (torch 2.15; 128 to 128 channels on 2 x 8 x 8 voxels: not finite 58 times of 60).

    Args:
        device: Where they compute.
        spatial_dims: 2 or 3.
    """
    match device.type:
        case "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        case "cpu":
            capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
            fast = spatial_dims < 3 and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
        case _:
            fast = False
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)


@contextmanager
def convolution_choice_kept() -> Iterator[None]:
    """How convolutions on a GPU choose their algorithm is afterwards what it was before.

    Tools set that for the whole process: what runs after them would round otherwise, or be slower.
    """
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before


def portable_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that safetensors takes: on the CPU, contiguous, each with memory of its own."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}


def copied_without_graphs(network: nn.Module, memo: dict[int, Any]) -> None:
    """Has a deep copy take the results that layers of a network have kept without what computed them.

    Networks keep feature maps, or the outputs of their heads (MONAI's DynUNet), as attributes. After a pass with
    gradients these hang on a graph, of which torch makes no copy.

    Args:
        network: What is going to be copied.
        memo: That of the copy.
    """
    for layer in network.modules():
        for kept in vars(layer).values():
            inner = kept.values() if isinstance(kept, dict) else kept if isinstance(kept, list | tuple) else (kept,)
            for value in inner:
                if isinstance(value, Tensor) and not value.is_leaf:
                    memo[id(value)] = value.detach().clone()


def one_hot(labels: Tensor, num_classes: int, dim: int) -> Tensor:
    """Class indices as maps of the classes, 0 or 1 in float32, along a new dimension."""
    return F.one_hot(labels.long(), num_classes).movedim(-1, dim).float()


def log_of(probabilities: Tensor) -> Tensor:
    """Logarithms of probabilities, which may be 0: logits that have them as softmax."""
    return probabilities.clamp_min(1e-12).log()


def pixel_entropy(log_probabilities: Tensor) -> Tensor:
    """Entropy of each pixel in nats, `(B, *S)`, from log-probabilities `(B, K, *S)`."""
    return -(log_probabilities.exp() * log_probabilities).sum(dim=1)


def argmax_classes(logits: Tensor, dim: int) -> Tensor:
    """Index of the largest value along a dimension, int64; the first one where several are.

    `Tensor.argmax` says the same, and takes ten times as long on a CPU where the dimension is not the last one.
    """
    largest: Tensor = logits.max(dim=dim).indices
    return largest


def argmax_masks(segmenter: nn.Module, images: Tensor) -> Tensor:
    """The argmax of a segmenter's logits of images `(N, C, *S)`, `(N, *S)` int64, a few images at a time.

    No gradient is kept where the caller keeps none.
    """
    parts = images.split(images_at_once(images.shape[2:]))
    return torch.cat([argmax_classes(segmenter(part), dim=1) for part in parts])


def fill_network(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads the weights of a network: every tensor has its place, its shape and its kind of number, and is finite.

    Raises:
        ValueError: They do not fit, or one is damaged.
    """
    own = module.state_dict()
    odd = sorted(own.keys() ^ state.keys())
    if odd:
        raise ValueError(f"{len(odd)} tensors are missing or unknown, {odd[0]} for one")
    for name, value in state.items():
        if value.shape != own[name].shape:
            raise ValueError(f"{name} has the shape {tuple(value.shape)} and not {tuple(own[name].shape)}")
        if not fits_in(value, own[name]):
            raise ValueError(f"{name} holds {value.dtype} where {own[name].dtype} is wanted")
        if not is_finite(value):
            raise ValueError(f"{name} holds NaN or infinite values")
    module.load_state_dict(state)


def fits_in(value: Tensor, own: Tensor) -> bool:
    """Whether a tensor is dense and of the kind of number (real, complex, other) that another one holds."""
    dense = value.layout == torch.strided and not value.is_quantized and not value.is_meta
    same = value.is_floating_point() == own.is_floating_point() and value.is_complex() == own.is_complex()
    return dense and same


def is_finite(value: Tensor) -> bool:
    """Whether a dense tensor holds neither NaN nor infinite values; in 8 bits too, where torch itself cannot say."""
    return not value.is_floating_point() or bool(torch.isfinite(value.float() if value.itemsize < 2 else value).all())


def structures_of(network: nn.Module, num_classes: int) -> Structures:
    """Class indices of each structure of a segmenter; those of a bare network, without a schema, exclude each other."""
    schema = getattr(network, "schema", None)
    return schema.classes if isinstance(schema, LabelSchema) else exclusive(num_classes)
