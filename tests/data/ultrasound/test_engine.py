from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medfm_rl.data.images import read_image
from medfm_rl.data.ultrasound.engine import (
    Sector,
    detect_envelope,
    estimate_echogenicity,
    estimate_sector,
    image_tissue,
    resimulate,
)
from medfm_rl.data.ultrasound.phantom import draw_heart, draw_phantom
from medfm_rl.data.ultrasound.vendors import VENDORS, VendorProfile, vendor
from medfm_rl.errors import DataError

SAMPLES = 320
DEPTH_MM = 150.0
SECTOR = Sector((0.0, 63.5), 127.0, np.deg2rad(38))
# Lines at the sides of the sector have neighbours on one side only.
INNER = slice(12, -12)


def speckle_only(name: str, **changes: float) -> VendorProfile:
    """A vendor without attenuation, noise and haze."""
    quiet = {"attenuation_db": 0.0, "noise_db": -200.0, "clutter_db": -200.0}
    return replace(vendor(name), **(quiet | changes))  # type: ignore[arg-type]


def envelopes(profile: VendorProfile, level_db: float = 0.0, draws: int = 6) -> np.ndarray:
    """Envelopes of homogeneous tissue, `(draws, samples, lines)`."""
    tissue = np.full((SAMPLES, profile.lines), level_db)
    return np.stack(
        [detect_envelope(tissue, SECTOR, profile, np.random.default_rng(seed), DEPTH_MM) for seed in range(draws)]
    )


def power_db(envelope: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(envelope**2)))


def sigma_of_speckle(envelope: np.ndarray, axis: int, lag: int) -> float:
    """Standard deviation of the blur, from the correlation of the intensity with itself `lag` pixels on.

    White noise under a Gaussian blur of standard deviation s has the autocorrelation exp(-lag^2 / (4 s^2)); that of the
    intensity of a circular complex field is its square.
    """
    intensity = np.moveaxis(envelope**2, axis, -1)
    first, second = intensity[..., :-lag], intensity[..., lag:]
    mean = intensity.mean()
    correlation = ((first - mean) * (second - mean)).mean() / intensity.var()
    return float(lag / np.sqrt(-2 * np.log(correlation)))


@pytest.mark.parametrize("name", VENDORS)
def test_speckle_of_homogeneous_tissue_is_rayleigh(name: str) -> None:
    envelope = envelopes(speckle_only(name))[:, 10:-10, INNER]
    # Mean over standard deviation is sqrt(pi / (4 - pi)) = 1.913; the squared mean over the power pi / 4.
    assert envelope.mean() / envelope.std() == pytest.approx(1.913, rel=0.02)
    assert envelope.mean() ** 2 / (envelope**2).mean() == pytest.approx(np.pi / 4, rel=0.01)
    # A Rayleigh variable exceeds r with probability exp(-r^2 / power).
    power = (envelope**2).mean()
    for threshold in (0.5, 1.0, 2.0):
        assert (envelope**2 > threshold * power).mean() == pytest.approx(np.exp(-threshold), abs=0.02)


@pytest.mark.parametrize("name", VENDORS)
def test_the_brightest_tissue_has_unit_power_at_every_depth(name: str) -> None:
    envelope = envelopes(speckle_only(name), draws=10)[:, :, INNER]
    for depth in range(20, SAMPLES - 60, 60):
        assert power_db(envelope[:, depth : depth + 60]) == pytest.approx(0, abs=0.5)


def test_tissue_that_is_weaker_echoes_less_by_as_many_decibels() -> None:
    profile = speckle_only("cart")
    loud, quiet = envelopes(profile, 0.0), envelopes(profile, -20.0)
    assert np.allclose(quiet, loud / 10)


def test_deeper_tissue_is_attenuated_by_what_the_profile_says() -> None:
    profile = speckle_only("cart", attenuation_db=20.0)
    envelope = envelopes(profile, draws=10)[:, :, INNER]
    near, far = power_db(envelope[:, 30:50]), power_db(envelope[:, 270:290])
    # 240 of 319 steps of 20 dB over the whole depth.
    assert near - far == pytest.approx(20 * 240 / 319, abs=1)


def test_noise_does_not_fade_with_depth_and_wins_there() -> None:
    profile = speckle_only("cart", attenuation_db=60.0, noise_db=-30.0)
    envelope = envelopes(profile)[:, :, INNER]
    assert power_db(envelope[:, -60:]) == pytest.approx(-30, abs=0.7)
    assert power_db(envelope[:, 20:40]) > -10


def test_haze_lies_in_the_near_field() -> None:
    profile = speckle_only("cart", clutter_db=-10.0, clutter_depth=0.1)
    envelope = envelopes(profile, level_db=-200.0, draws=10)[:, :, INNER]
    # exp(-depth / 0.1) of the amplitude: 20 log10(e) / 0.1 = 86.9 dB over the whole depth.
    near, far = power_db(envelope[:, 30:40]), power_db(envelope[:, 94:104])
    assert near - far == pytest.approx(86.86 * 64 / 319, abs=2)
    assert near < -10


@pytest.mark.parametrize("name", VENDORS)
def test_the_axial_resolution_is_that_of_the_profile(name: str) -> None:
    profile = speckle_only(name)
    sigma = sigma_of_speckle(envelopes(profile)[:, 10:-10, INNER], axis=1, lag=1)
    assert 2.355 * sigma * DEPTH_MM / SAMPLES == pytest.approx(profile.axial_resolution_mm, rel=0.15)


@pytest.mark.parametrize("name", VENDORS)
def test_the_beam_is_narrowest_at_the_focus_and_widens_as_the_profile_says(name: str) -> None:
    profile = speckle_only(name)
    envelope = envelopes(profile, draws=16)[:, :, INNER]
    degrees_per_line = 76 / profile.lines

    def width(depth: float) -> float:
        row = int(depth * (SAMPLES - 1))
        rows = slice(max(10, row - 12), min(SAMPLES, row + 12))
        lag = 2 if profile.beam_width_deg / degrees_per_line > 2 else 1
        return 2.355 * sigma_of_speckle(envelope[:, rows], axis=2, lag=lag) * degrees_per_line

    at_focus, away = width(profile.focus), width(1.0)
    assert at_focus == pytest.approx(profile.beam_width_deg, rel=0.15)
    expected = np.sqrt(1 + ((0.98 - profile.focus) / profile.focal_zone) ** 2)
    assert away / at_focus == pytest.approx(expected, rel=0.2)
    # In millimetres the beam is wider than the pulse is long, at the focus already.
    assert np.deg2rad(at_focus) * profile.focus * DEPTH_MM > profile.axial_resolution_mm


def test_imaging_compresses_decibels_linearly_to_grey() -> None:
    profile = speckle_only("cart", gain_db=0.0)
    shape = (128, 128)
    pictures = [
        image_tissue(np.full((SAMPLES, profile.lines), level), SECTOR, shape, profile, np.random.default_rng(0))
        for level in (-15.0, -30.0)
    ]
    inside = SECTOR.contains(shape)
    # 15 of 60 dB over 254 grey values.
    assert np.median(pictures[0][inside]) - np.median(pictures[1][inside]) == pytest.approx(254 * 15 / 60, abs=1)


@pytest.mark.parametrize(("parameter", "value"), [("gain_db", 10.0), ("dynamic_range_db", 80.0), ("gamma", 0.7)])
def test_gain_dynamic_range_and_gamma_brighten(parameter: str, value: float) -> None:
    profile = vendor("cart")
    means = [
        image_tissue(
            np.full((SAMPLES, profile.lines), -30.0), SECTOR, (64, 128), changed, np.random.default_rng(0)
        ).mean()
        for changed in (profile, replace(profile, **{parameter: value}))  # type: ignore[arg-type]
    ]
    assert means[1] > means[0] + 5


@pytest.mark.parametrize("name", VENDORS)
@pytest.mark.parametrize("shape", [(32, 32), (40, 56), (57, 31)])
def test_the_same_seed_gives_the_same_bytes_and_nothing_outside_the_sector(name: str, shape: tuple[int, int]) -> None:
    profile = vendor(name)
    sector = Sector((-2.0, shape[1] / 2), shape[0] - 1.0, 0.6, aspect=1.2)
    tissue = np.random.default_rng(9).uniform(-60, 0, (SAMPLES, profile.lines))
    first, second, other = (
        image_tissue(tissue, sector, shape, profile, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == shape
    assert first.dtype == np.uint8
    assert first.tobytes() == second.tobytes()
    assert first.tobytes() != other.tobytes()
    assert (first[~sector.contains(shape)] == 0).all()
    assert (first[sector.contains(shape)] >= 1).all()


@settings(deadline=None, max_examples=25)
@given(
    row=st.floats(-10, 2),
    column=st.floats(40, 56),
    half_angle=st.floats(0.4, 0.8),
    aspect=st.floats(0.8, 1.3),
)
def test_scan_conversion_and_back_keeps_a_smooth_image(
    row: float, column: float, half_angle: float, aspect: float
) -> None:
    sector = Sector((row, column), 90.0, half_angle, aspect)
    shape = (96, 96)
    rows, columns = np.indices(shape)
    image = 100 + 50 * np.sin(rows / 15) * np.cos(columns / 12)
    back = sector.to_image(sector.to_polar(image, 200), shape)
    inside = sector.contains(shape)
    assert (back[~inside] == 0).all()
    # Near the apex and at the border of the image, which cuts scan lines off, neighbours are missing.
    depth, _ = sector.polar(shape)
    assert np.abs(back - image)[inside & (depth > 0.1)].max() < 1.5


def test_polar_coordinates_by_hand() -> None:
    sector = Sector((0.0, 2.0), 10.0, np.pi / 4, aspect=2.0)
    depth, angle = sector.polar((5, 5))
    # Four rows down on the axis; two rows down and one column (of two rows' width) to the right.
    assert (depth[4, 2], angle[4, 2]) == pytest.approx((0.4, 0))
    assert (depth[2, 3], angle[2, 3]) == pytest.approx((np.sqrt(8) / 10, np.pi / 4))
    assert (depth[2, 1], angle[2, 1]) == pytest.approx((np.sqrt(8) / 10, -np.pi / 4))
    inside = sector.contains((5, 5))
    assert inside[4, 2]
    assert not inside[1, 3]


def fan(sector: Sector, shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Noise in a sector, a tenth of it black as in real speckle."""
    rng = np.random.default_rng(seed)
    return np.where(sector.contains(shape) & (rng.random(shape) > 0.1), rng.integers(1, 255, shape), 0)


def overlap(first: Sector, second: Sector, shape: tuple[int, int]) -> float:
    ours, theirs = first.contains(shape), second.contains(shape)
    return float((ours & theirs).sum() / (ours | theirs).sum())


@settings(deadline=None, max_examples=25)
@given(
    row=st.floats(-12, 6),
    shift=st.floats(-6, 6),
    degrees=st.floats(28, 45),
    aspect=st.floats(0.9, 1.6),
    seed=st.integers(0, 99),
)
def test_a_drawn_sector_is_found_also_where_the_sides_of_the_image_cut_it(
    row: float, shift: float, degrees: float, aspect: float, seed: int
) -> None:
    shape = (128, 128)
    sector = Sector((row, 63.5 + shift), 126 - row, np.deg2rad(degrees), aspect)
    found = estimate_sector(fan(sector, shape, seed))
    assert found.apex == pytest.approx(sector.apex, abs=2.5)
    assert found.depth == pytest.approx(sector.depth, abs=2.5)
    assert found.half_angle == pytest.approx(sector.half_angle, abs=np.deg2rad(3))
    # The corners are found to a row or two, which is a tenth of the aspect where the sector is narrow.
    assert found.aspect == pytest.approx(sector.aspect, rel=0.15)
    assert overlap(sector, found, shape) > 0.96


def test_writing_beside_the_sector_does_not_disturb() -> None:
    shape = (128, 128)
    sector = Sector((-4.0, 63.5), 128.0, np.deg2rad(30))
    image = fan(sector, shape)
    image[2:8, 2:20] = 255
    assert overlap(sector, estimate_sector(image), shape) > 0.97


def square_on_black() -> np.ndarray:
    image = np.zeros((64, 64))
    image[10:54, 20:44] = 200
    return image


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((64, 64)),
        np.full((64, 64), 200.0),
        np.full((64, 64), np.nan),
        np.random.default_rng(0).integers(1, 255, (64, 64)),
        square_on_black(),
        fan(Sector((0.0, 63.5), 127.0, 0.75), (128, 128))[::-1],
        fan(Sector((0.0, 63.5), 127.0, 0.5), (128, 128))[::-1],
        fan(Sector((0.0, 63.5), 127.0, 0.6), (128, 128)).T,
        np.ones((4, 4)),
        np.eye(64),
    ],
    ids=["black", "constant", "nan", "full", "square", "apex down, cut", "apex down", "apex left", "tiny", "line"],
)
def test_an_image_without_a_sector_is_refused(image: np.ndarray) -> None:
    with pytest.raises(DataError, match="no ultrasound sector found"):
        estimate_sector(image)


def test_a_frame_with_nan_is_refused() -> None:
    image = fan(SECTOR, (128, 128)).astype(float)
    image[60, 60] = np.nan
    with pytest.raises(DataError, match="NaN"):
        resimulate(image, vendor("cart"), np.random.default_rng(0))


def test_echogenicity_is_the_level_of_the_grey_with_the_speckle_removed() -> None:
    shape = (128, 128)
    inside = SECTOR.contains(shape)
    level = estimate_echogenicity(np.where(inside, 102, 0), SECTOR, 64)
    assert level.shape == (SAMPLES, 64)
    # 102 of 255 over 60 dB: -36 dB.
    assert np.median(level) == pytest.approx(-36)
    noisy = np.where(inside, np.random.default_rng(0).integers(52, 152, shape), 0)
    smooth = estimate_echogenicity(noisy, SECTOR, 64)[60:-20, 8:-8]
    assert np.median(smooth) == pytest.approx(-36, abs=1)
    assert smooth.std() < 0.35 * (noisy[inside].std() / 255 * 60)
    assert estimate_echogenicity(np.full(shape, 255), SECTOR, 64).max() == pytest.approx(0)
    assert estimate_echogenicity(np.zeros(shape), SECTOR, 64).min() == pytest.approx(-60)


@pytest.mark.parametrize("name", VENDORS)
def test_a_frame_shown_by_another_vendor_shows_the_same_anatomy(name: str) -> None:
    shape = (96, 96)
    rng = np.random.default_rng(3)
    echo, labels, sector = draw_phantom(draw_heart(rng), "4CH", "ED", shape, rng)
    cart = vendor("cart")
    frame = image_tissue(sector.to_polar(echo, cart.lines), sector, shape, cart, rng)
    shown, again, other = (resimulate(frame, vendor(name), np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert shown.tobytes() == again.tobytes()
    assert shown.tobytes() != other.tobytes()
    assert not np.array_equal(shown, frame)
    # Black stays black outside, and hardly anything of the field of view is lost.
    inside = sector.contains(shape)
    assert ((shown > 0) == inside).mean() > 0.97
    smoothed = [ndimage.gaussian_filter(picture.astype(float), 2)[inside] for picture in (frame, shown)]
    assert np.corrcoef(*smoothed)[0, 1] > 0.7
    assert shown[labels == 2].mean() > shown[labels == 1].mean() + 20


@pytest.mark.data
def test_the_sector_of_real_frames_is_found(real_data: Path) -> None:
    with np.load(real_data / "camus224_train250.npz") as content:
        images, labels = content["image"][::50], content["label"][::50]
    assert len(images) == 20
    for image, label in zip(images, labels, strict=True):
        inside = estimate_sector(image).contains((224, 224))
        bright = image > 0
        assert (inside & bright).sum() / bright.sum() > 0.985
        assert (inside & bright).sum() / inside.sum() > 0.97
        assert inside[label > 0].mean() > 0.8


@pytest.mark.data
@pytest.mark.parametrize("view", ["2CH", "4CH"])
def test_the_sector_of_a_native_frame_tells_how_its_pixels_are_stretched(real_data: Path, view: str) -> None:
    path = real_data / "camus_native" / "patient0001" / f"patient0001_{view}_ED.mhd"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    image, geometry = read_image(path)
    assert geometry.spacing is not None
    # The arc is a circle in millimetres only.
    assert estimate_sector(image[0]).aspect == pytest.approx(geometry.spacing[0] / geometry.spacing[1], rel=0.02)
