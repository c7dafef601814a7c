from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from medfm_rl.augmentation.appearance import (
    blur,
    match_histogram,
    match_low_frequencies,
    randomise_appearance,
    smooth_noise,
)

shapes = st.sampled_from([(16, 12), (9, 20), (6, 8, 7)])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def textured(count: int = 3, channels: int = 1, shape: tuple[int, ...] = (24, 20), seed: int = 0) -> Tensor:
    """Smooth structures and some noise, z-scored as the segmenter's preprocessing may have done."""
    noise = torch.randn(count, channels, *shape, generator=seeded(seed))
    images = blur(noise, (1.5,) * len(shape)) + 0.05 * noise
    axes = tuple(range(2, images.ndim))
    return (images - images.mean(axes, keepdim=True)) / images.std(axes, keepdim=True)


def moments(images: Tensor) -> tuple[Tensor, Tensor]:
    flat = images.flatten(2)
    return flat.mean(dim=2), flat.std(dim=2)


def test_strength_zero_shows_the_images_as_they_are_in_new_memory() -> None:
    images = textured()
    shown = randomise_appearance(images, textured(seed=1), 0.0, seeded())
    assert torch.equal(shown, images)
    shown.zero_()
    assert bool(images.any())


@pytest.mark.parametrize("with_styles", [False, True])
def test_the_same_seed_gives_the_same_appearance_and_another_seed_another(with_styles: bool) -> None:
    images, styles = textured(), textured(5, seed=1) if with_styles else None
    before = images.clone(), None if styles is None else styles.clone()
    torch.manual_seed(1)
    first = randomise_appearance(images, styles, 1.0, seeded())
    torch.manual_seed(2)
    assert torch.equal(randomise_appearance(images, styles, 1.0, seeded()), first)
    assert not torch.equal(randomise_appearance(images, styles, 1.0, seeded(1)), first)
    assert torch.equal(images, before[0]), "the images were to stay"
    assert styles is None or torch.equal(styles, before[1])  # type: ignore[arg-type]


def test_each_image_of_a_batch_gets_a_look_of_its_own() -> None:
    images = textured(1).expand(6, -1, -1, -1)
    shown = randomise_appearance(images, None, 1.0, seeded()).flatten(1).numpy()
    correlation = np.corrcoef(np.concatenate([images[:1].flatten(1).numpy(), shown]))
    assert correlation[np.triu_indices(7, 1)].max() < 0.999


def test_a_stronger_setting_changes_more() -> None:
    images = textured(20)
    changes = [
        float((randomise_appearance(images, None, strength, seeded()) - images).abs().mean())
        for strength in (0.1, 0.5, 1.0, 3.0)
    ]
    assert changes == sorted(changes)
    assert changes[0] > 0.001


@settings(deadline=None, max_examples=25)
@given(
    shape=shapes,
    channels=st.integers(1, 2),
    strength=st.floats(0.05, 3),
    scale=st.floats(0.01, 100),
    seed=st.integers(0, 99),
)
def test_mean_and_spread_of_each_image_and_channel_stay(
    shape: tuple[int, ...], channels: int, strength: float, scale: float, seed: int
) -> None:
    images = scale * (textured(2, channels, shape, seed) + 1)
    shown = randomise_appearance(images, None, strength, seeded(seed))
    assert shown.shape == images.shape
    assert shown.dtype == images.dtype
    for ours, theirs in zip(moments(shown), moments(images), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * scale)


def constant_image(shape: tuple[int, ...]) -> Tensor:
    return torch.full((2, 1, *shape), 0.7)


def one_bright_pixel(shape: tuple[int, ...]) -> Tensor:
    images = torch.zeros(2, 1, *shape)
    images.flatten(2)[:, :, 5] = 1.0
    return images


@pytest.mark.parametrize("make", [constant_image, one_bright_pixel])
@pytest.mark.parametrize("shape", [(8, 10), (4, 5, 6)])
@pytest.mark.parametrize("styles_too", [False, True])
def test_constant_images_and_single_bright_pixels_stay_finite(
    make: Callable[[tuple[int, ...]], Tensor], shape: tuple[int, ...], styles_too: bool
) -> None:
    images = make(shape)
    for seed in range(8):
        for styles in (None, make(shape) if styles_too else textured(2, shape=shape)):
            assert randomise_appearance(images, styles, 3.0, seeded(seed)).isfinite().all()


def test_a_constant_image_stays_constant() -> None:
    shown = randomise_appearance(constant_image((8, 10)), None, 1.0, seeded())
    torch.testing.assert_close(shown, constant_image((8, 10)))


@pytest.mark.parametrize("styled", [False, True])
def test_nothing_moves(styled: bool) -> None:
    """The cross-correlation of an image with what is shown of it peaks at displacement 0, on average.

    A single image may be off by a pixel, because gain that changes over the image weighs its parts differently.
    """
    images = textured(40, shape=(32, 32))
    shown = randomise_appearance(images, textured(3, shape=(32, 32), seed=1) if styled else None, 1.0, seeded())
    displacements = []
    for before, after in zip(images[:, 0].numpy(), shown[:, 0].numpy(), strict=True):
        correlation = np.fft.ifft2(np.fft.fft2(before).conj() * np.fft.fft2(after)).real
        peak = np.unravel_index(correlation.argmax(), correlation.shape)
        displacements.append([(int(place) + 16) % 32 - 16 for place in peak])
    assert np.abs(displacements).max() <= 1
    assert np.abs(np.mean(displacements, axis=0)).max() < 0.15


def test_what_is_black_outside_the_field_of_view_stays_black() -> None:
    """Beyond the reach of the blur, three times 1.2 pixels."""
    images = torch.rand(6, 1, 24, 32, generator=seeded()) + 0.5
    images[..., :16] = 0.0
    shown = randomise_appearance(images, None, 1.0, seeded(1))
    darkest = shown.amin(dim=(1, 2, 3), keepdim=True)
    assert torch.equal(shown[..., :11], darkest.expand(-1, 1, 24, 11))
    assert bool((shown[..., 21:] > darkest).any())


def test_styles_lend_their_grey_values_to_some_images_and_their_low_frequencies_to_others() -> None:
    images, style = textured(200, shape=(8, 8)), 5 * textured(1, shape=(8, 8), seed=1) + 3
    shown = randomise_appearance(images, style, 1.0, seeded())
    matched = (shown.flatten(1).sort(dim=1).values == style.flatten(1).sort(dim=1).values).all(dim=1)
    assert 0.25 < float(matched.float().mean()) < 0.45
    plain = randomise_appearance(images, None, 1.0, seeded())
    untouched = (shown == plain).flatten(1).all(dim=1)
    assert 0.2 < float(untouched.float().mean()) < 0.4
    # All but those that took the histogram keep their own mean and spread.
    for ours, theirs in zip(moments(shown[~matched]), moments(images[~matched]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@settings(deadline=None, max_examples=25)
@given(shape=shapes, channels=st.integers(1, 3), seed=st.integers(0, 99))
def test_histogram_matching_keeps_the_ranks_and_takes_the_values(
    shape: tuple[int, ...], channels: int, seed: int
) -> None:
    image, style = textured(1, channels, shape, seed)[0], 3 * textured(1, channels, shape, seed + 1)[0] - 2
    matched = match_histogram(image, style)
    for ours, before, lent in zip(matched.flatten(1), image.flatten(1), style.flatten(1), strict=True):
        ranks = np.argsort(np.argsort(before.numpy()))
        np.testing.assert_array_equal(ours.numpy(), np.sort(lent.numpy())[ranks])


@pytest.mark.parametrize("shape", [(16, 20), (8, 10, 6)])
def test_low_frequencies_come_from_the_style_and_phase_and_details_from_the_image(shape: tuple[int, ...]) -> None:
    image, style = textured(1, 2, shape)[0], 4 * textured(1, 2, shape, seed=1)[0] + 1
    # No frequency of these sizes lies on it, whatever the precision.
    fraction = 0.16
    mixed = match_low_frequencies(image, style, fraction)
    axes = tuple(range(1, image.ndim))
    ours, own, lent = (np.fft.fftn(each.numpy(), axes=axes) for each in (mixed, image, style))
    bands = np.meshgrid(*(np.abs(np.fft.fftfreq(side)) <= fraction for side in shape), indexing="ij")
    low = np.logical_and.reduce(bands)
    expected = np.where(low, np.abs(lent), np.abs(own)) * np.exp(1j * np.angle(own))
    # The constant is the image's own mean, and all else is scaled alike to the image's own spread.
    for channel in range(2):
        changing = np.ones(shape, dtype=bool)
        changing[(0,) * len(shape)] = False
        ratio = ours[channel][changing] / expected[channel][changing]
        np.testing.assert_allclose(ratio, ratio.real.mean(), rtol=1e-2)
    for before, after in zip(moments(image[None]), moments(mixed[None]), strict=True):
        torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


def test_an_image_takes_nothing_from_itself() -> None:
    image = textured(1)[0]
    torch.testing.assert_close(match_low_frequencies(image, image, 0.1), image, atol=1e-5, rtol=1e-5)
    assert torch.equal(match_histogram(image, image), image)


@settings(deadline=None, max_examples=25)
@given(shape=st.sampled_from([(7,), (16, 12), (3, 40), (6, 8, 7)]), length=st.floats(0.1, 100), seed=st.integers(0, 99))
def test_smooth_noise_has_mean_zero_and_spread_one(shape: tuple[int, ...], length: float, seed: int) -> None:
    field = smooth_noise(shape, length, seeded(seed))
    assert field.shape == shape
    assert float(field.mean()) == pytest.approx(0, abs=1e-4)
    assert float(field.std()) == pytest.approx(1, abs=1e-3)


def test_noise_is_smoother_over_a_greater_length() -> None:
    steps = [float(smooth_noise((64, 64), length, seeded()).diff(dim=0).abs().mean()) for length in (1, 4, 16, 64)]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > 4 * steps[-1]


@pytest.mark.parametrize("sigmas", [(1.0, 2.3), (0.0, 1.2), (3.0, 0.0), (0.0, 0.0), (0.7, 0.0, 1.5), (1.0, 2.0, 0.4)])
def test_blur_is_scipys_with_one_width_per_axis(sigmas: tuple[float, ...]) -> None:
    images = torch.randn(2, 3, *(9, 12, 7)[: len(sigmas)], generator=seeded())
    expected = images.double().numpy()
    for axis, sigma in enumerate(sigmas):
        if sigma > 0:
            radius = int(np.ceil(3 * sigma))
            expected = ndimage.gaussian_filter1d(expected, sigma, axis + 2, mode="nearest", radius=radius)
    np.testing.assert_allclose(blur(images, sigmas).numpy(), expected, atol=1e-5)
