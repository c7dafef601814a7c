from __future__ import annotations

from dataclasses import astuple, replace

import numpy as np
import pytest

from medfm_rl.data.ultrasound.engine import image_tissue
from medfm_rl.data.ultrasound.phantom import draw_heart, draw_phantom
from medfm_rl.data.ultrasound.vendors import VENDORS, vendor
from medfm_rl.errors import ConfigError


def test_every_vendor_is_found_by_its_name() -> None:
    assert {"cart", "portable", "handheld", "vintage"} <= set(VENDORS)
    assert len(set(VENDORS)) == len(VENDORS)
    for name in VENDORS:
        assert vendor(name).name == name


def test_no_two_vendors_are_the_same() -> None:
    assert len({astuple(replace(vendor(name), name="")) for name in VENDORS}) == len(VENDORS)


@pytest.mark.parametrize("name", ["hand-held", "Cart", ""])
def test_an_unknown_vendor_is_refused_and_the_known_are_listed(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        vendor(name)
    assert repr(name) in str(caught.value)
    for known in VENDORS:
        assert known in str(caught.value)


@pytest.mark.parametrize("name", VENDORS)
def test_parameters_are_physically_possible(name: str) -> None:
    profile = vendor(name)
    assert 0 < profile.axial_resolution_mm < 5
    assert 0 < profile.beam_width_deg < 10
    assert 0 < profile.focus < 1
    assert profile.focal_zone > 0
    assert profile.attenuation_db >= 0
    # Noise and haze are weaker than the brightest tissue, and noise is not above all that is shown.
    assert -profile.dynamic_range_db * 1.2 < profile.noise_db < 0
    assert profile.clutter_db < 0
    assert 0 < profile.clutter_depth < 1
    assert 30 <= profile.dynamic_range_db <= 90
    assert profile.gamma > 0
    # Lines lie closer than the beam is wide, else the sector would be undersampled.
    assert 76 / profile.lines < profile.beam_width_deg


def test_the_smaller_the_system_the_worse_the_image() -> None:
    cart, portable, handheld = (vendor(name) for name in ("cart", "portable", "handheld"))
    for better, worse in [(cart, portable), (portable, handheld)]:
        assert better.dynamic_range_db > worse.dynamic_range_db
        assert better.noise_db < worse.noise_db
        assert better.clutter_db < worse.clutter_db
        assert better.attenuation_db < worse.attenuation_db
        assert better.axial_resolution_mm < worse.axial_resolution_mm
        assert better.beam_width_deg < worse.beam_width_deg
        assert better.lines > worse.lines


def test_a_cart_separates_blood_from_muscle_better_than_a_handheld() -> None:
    size = (96, 96)
    separation: dict[str, list[float]] = {"cart": [], "handheld": []}
    for patient in range(4):
        for name, values in separation.items():
            rng = np.random.default_rng(patient)
            echo, labels, sector = draw_phantom(draw_heart(rng), "4CH", "ED", size, rng)
            profile = vendor(name)
            image = image_tissue(sector.to_polar(echo, profile.lines), sector, size, profile, rng).astype(float)
            blood, muscle = image[labels == 1], image[labels == 2]
            values.append((muscle.mean() - blood.mean()) / np.sqrt((muscle.var() + blood.var()) / 2))
    assert np.mean(separation["cart"]) > 1.15 * np.mean(separation["handheld"]) > 0
