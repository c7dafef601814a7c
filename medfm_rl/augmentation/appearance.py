"""Random appearance: the same anatomy as another scanner, another gain or another site would show it.

Source images come with ground truth but look like the source. Shown in many appearances, some borrowed from the target
images themselves, they teach the reward network errors that are real and a look that is not the source's alone.

All functions work on preprocessed batches `(B, C, *S)` in 2-D and 3-D and keep the mean and standard deviation of each
image and channel, so that whatever normalisation the segmenter uses stays valid. Histogram matching alone takes them
from the style image, which was preprocessed in the same way. They work where the images are and draw on the CPU, so
that what is drawn depends on no device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from medfm_rl.rows import Rows

_EPSILON = 1e-6


def randomise_appearance(
    images: Tensor, styles: Rows | None, strength: float, generator: torch.Generator, channels: int | None = None
) -> Tensor:
    """Shows each image in a random appearance.

    Gamma, a smooth gain field, blur along each axis and speckle-like noise are drawn anew for each image; then seven of
    ten images take the look of a random style image, by histogram matching or by the low frequencies of its Fourier
    amplitude (Yang and Soatto, CVPR 2020).

    Args:
        images: `(B, C, *S)`.
        styles: Unlabelled images `(N, C, *S)` of the target domain, in memory on any device or on the disk, or None.
        strength: 0 returns the images as they are; 1 is the default range; 3 is the most.
        generator: A CPU generator.
        channels: How many of the first channels have an appearance; the others, such as boxes of prompts, stay as they
            are. All where None.

    Returns:
        `(B, C, *S)`, new tensor.
    """
    shown = randomise_contrast(images, strength, generator, channels)
    return shown if styles is None or strength == 0 else borrow_looks(shown, styles, generator, channels)


def randomise_contrast(
    images: Tensor, strength: float, generator: torch.Generator, channels: int | None = None
) -> Tensor:
    """The first half of `randomise_appearance`: gamma, gain, blur and noise, drawn image by image."""
    shown = images.clone()
    if strength > 0:
        for looks in shown[:, :channels]:
            looks.copy_(_randomise(looks, strength, generator))
    return shown


def borrow_looks(shown: Tensor, styles: Rows, generator: torch.Generator, channels: int | None = None) -> Tensor:
    """The second half: seven of ten images take the look of a random style image, drawn image by image.

    Args:
        shown: `(B, C, *S)`, changed in place and returned.
        styles: As in `randomise_appearance`.
        generator: A CPU generator.
        channels: As in `randomise_appearance`.
    """
    for looks in shown[:, :channels]:
        style = styles[int(torch.randint(len(styles), (), generator=generator))][:channels].to(looks)
        draw = float(torch.rand((), generator=generator))
        if draw < 0.35:
            looks.copy_(match_histogram(looks, style))
        elif draw < 0.7:
            looks.copy_(match_low_frequencies(looks, style, fraction=0.02 + 0.08 * draw))
    return shown


def match_histogram(image: Tensor, style: Tensor) -> Tensor:
    """Gives an image `(C, *S)` the grey-value distribution of a style image of the same shape, channel by channel."""
    flat = image.flatten(1)
    ranks = flat.argsort(dim=1, stable=True)
    return torch.empty_like(flat).scatter_(1, ranks, style.flatten(1).sort(dim=1).values).reshape(image.shape)


def match_low_frequencies(image: Tensor, style: Tensor, fraction: float) -> Tensor:
    """Gives an image `(C, *S)` the low-frequency Fourier amplitudes of a style image, and keeps its own phase.

    Args:
        image: `(C, *S)`.
        style: `(C, *S)`.
        fraction: Half-width of the exchanged band, as a share of the sampling frequency.
    """
    axes = tuple(range(1, image.ndim))
    spectrum, other = torch.fft.fftn(image, dim=axes), torch.fft.fftn(style, dim=axes)
    low = torch.ones(image.shape[1:], dtype=torch.bool, device=image.device)
    for axis, size in enumerate(image.shape[1:]):
        band = torch.fft.fftfreq(size, device=image.device).abs() <= fraction
        low = low & band.reshape([-1 if other_axis == axis else 1 for other_axis in range(image.ndim - 1)])
    amplitude = torch.where(low, other.abs(), spectrum.abs())
    mixed = torch.fft.ifftn(torch.polar(amplitude, spectrum.angle()), dim=axes).real
    return _with_moments_of(mixed, image)


def smooth_noise(
    shape: tuple[int, ...], length: float, generator: torch.Generator, device: torch.device | None = None
) -> Tensor:
    """Standard normal noise `(*S)` that is smooth over about `length` pixels, by interpolation of a coarse grid."""
    coarse = [max(2, math.ceil(size / max(length, 1.0)) + 1) for size in shape]
    # Apple's GPUs have no double precision.
    place = None if device is not None and device.type == "mps" else device
    grid = torch.randn(1, 1, *coarse, generator=generator).to(place)
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(shape)]
    # In double precision: a field that is nearly constant has a mean far above its spread.
    field = F.interpolate(grid, size=shape, mode=mode, align_corners=True)[0, 0].double()
    return ((field - field.mean()) / field.std().clamp_min(_EPSILON)).float().to(device)


def blur(images: Tensor, sigmas: tuple[float, ...]) -> Tensor:
    """Gaussian blur of `(B, C, *S)` with one standard deviation in pixels per axis; 0 leaves an axis as it is."""
    ndim = images.ndim - 2
    for axis, sigma in enumerate(sigmas):
        if sigma <= 0:
            continue
        radius = math.ceil(3 * sigma)
        kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=images.device) / sigma) ** 2)
        kernel = (kernel / kernel.sum()).to(images.dtype)
        padding = [0] * (2 * ndim)
        padding[2 * (ndim - 1 - axis)] = padding[2 * (ndim - 1 - axis) + 1] = radius
        padded = F.pad(images.flatten(0, 1)[:, None], padding, mode="replicate")
        weight = kernel.reshape([1, 1, *(-1 if other == axis else 1 for other in range(ndim))])
        convolve = F.conv2d if ndim == 2 else F.conv3d
        images = convolve(padded, weight)[:, 0].unflatten(0, images.shape[:2])
    return images


def _randomise(image: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    grid = image.shape[1:]
    low = image.amin(dim=tuple(range(1, image.ndim)), keepdim=True)
    high = image.amax(dim=tuple(range(1, image.ndim)), keepdim=True)
    shown = (image - low) / (high - low).clamp_min(_EPSILON)
    shown = shown ** math.exp(0.5 * strength * uniform(-1, 1))
    gain = smooth_noise(grid, uniform(0.3, 1.0) * max(grid), generator, image.device)
    shown = shown * torch.exp(0.3 * strength * uniform(0, 1) * gain)
    if uniform(0, 1) < 0.5:
        sigmas = tuple(strength * uniform(0, 1.2) for _ in grid)
        shown = blur(shown[None], sigmas)[0]
    grain = torch.randn(1, *image.shape, generator=generator).to(image)
    grain = blur(grain, tuple(uniform(0, 1.2) for _ in grid))[0]
    grain = grain / grain.std().clamp_min(_EPSILON)
    # Multiplicative, as speckle is: what is black outside the field of view stays black.
    shown = (shown * (1 + 0.25 * strength * uniform(0, 1) * grain)).clamp_min(0)
    return _with_moments_of(shown, image)


def _with_moments_of(image: Tensor, original: Tensor) -> Tensor:
    axes = tuple(range(1, image.ndim))
    scale = original.std(dim=axes, keepdim=True) / image.std(dim=axes, keepdim=True).clamp_min(_EPSILON)
    return (image - image.mean(dim=axes, keepdim=True)) * scale + original.mean(dim=axes, keepdim=True)
