"""Simulated vendors: what an ultrasound system does to the same tissue. None of them copies a product."""

from __future__ import annotations

from dataclasses import dataclass

from medfm_rl.errors import ConfigError


@dataclass(frozen=True)
class VendorProfile:
    """Imaging parameters of a simulated ultrasound system.

    Attributes:
        name: Name of the profile.
        axial_resolution_mm: Full width at half maximum of the pulse along the beam.
        beam_width_deg: Full width at half maximum of the beam at its focus, as an angle from the apex.
        focus: Depth of the focus as a share of the imaged depth.
        focal_zone: Distance from the focus, as a share of the depth, at which the beam is wider by sqrt(2).
        attenuation_db: Loss over the full depth that the time-gain compensation leaves uncorrected.
        noise_db: Electronic noise, relative to the brightest tissue; not attenuated, so it wins at depth.
        clutter_db: Near-field haze (reverberation) at the probe, relative to the brightest tissue.
        clutter_depth: Depth over which the haze falls by a factor e, as a share of the imaged depth.
        dynamic_range_db: What lies between black and white after log compression.
        gain_db: Added before log compression.
        gamma: Exponent of the grey-level curve; above 1 darkens the mid-tones.
        lines: Scan lines across the sector.
    """

    name: str
    axial_resolution_mm: float
    beam_width_deg: float
    focus: float
    focal_zone: float
    attenuation_db: float
    noise_db: float
    clutter_db: float
    clutter_depth: float
    dynamic_range_db: float
    gain_db: float
    gamma: float
    lines: int


_PROFILES = (
    VendorProfile(
        name="cart",
        axial_resolution_mm=0.9,
        beam_width_deg=1.2,
        focus=0.55,
        focal_zone=0.45,
        attenuation_db=2.0,
        noise_db=-62.0,
        clutter_db=-45.0,
        clutter_depth=0.06,
        dynamic_range_db=60.0,
        gain_db=2.0,
        gamma=1.0,
        lines=192,
    ),
    VendorProfile(
        name="portable",
        axial_resolution_mm=1.3,
        beam_width_deg=2.0,
        focus=0.5,
        focal_zone=0.35,
        attenuation_db=7.0,
        noise_db=-50.0,
        clutter_db=-32.0,
        clutter_depth=0.1,
        dynamic_range_db=55.0,
        gain_db=4.0,
        gamma=1.1,
        lines=128,
    ),
    VendorProfile(
        name="handheld",
        axial_resolution_mm=1.8,
        beam_width_deg=3.0,
        focus=0.4,
        focal_zone=0.3,
        attenuation_db=12.0,
        noise_db=-44.0,
        clutter_db=-24.0,
        clutter_depth=0.14,
        dynamic_range_db=48.0,
        gain_db=5.0,
        gamma=1.2,
        lines=96,
    ),
    VendorProfile(
        name="vintage",
        axial_resolution_mm=1.6,
        beam_width_deg=3.8,
        focus=0.6,
        focal_zone=0.25,
        attenuation_db=10.0,
        noise_db=-38.0,
        clutter_db=-30.0,
        clutter_depth=0.1,
        dynamic_range_db=36.0,
        gain_db=0.0,
        gamma=0.85,
        lines=96,
    ),
)
VENDORS = tuple(profile.name for profile in _PROFILES)


def vendor(name: str) -> VendorProfile:
    """The profile of that name.

    Raises:
        ConfigError: There is none.
    """
    for profile in _PROFILES:
        if profile.name == name:
            return profile
    raise ConfigError(f"unknown vendor {name!r}; simulated vendors are {', '.join(VENDORS)}")
