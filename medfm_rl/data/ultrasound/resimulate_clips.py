"""A real clip as another vendor would show it: speckle that moves as the tissue in the clip does."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medfm_rl.data.clips.motion import find_motion
from medfm_rl.data.ultrasound.engine import (
    SAMPLES,
    TYPICAL_DEPTH_MM,
    Sector,
    complex_noise,
    envelope_of,
    estimate_echogenicity,
    estimate_sector,
    show_envelope,
)
from medfm_rl.data.ultrasound.scatterers import Scatterers
from medfm_rl.data.ultrasound.vendors import VendorProfile
from medfm_rl.types import FloatArray

_RENEWED = 0.03
"""Share of the scatterers that are others in the next frame: tissue leaves the plane, and errors of the motion do not
pile up until scatterers lie in heaps."""


def resimulate_clip(
    frames: FloatArray, profile: VendorProfile, rng: np.random.Generator, row_mm: float | None = None
) -> npt.NDArray[np.uint8]:
    """Shows the tissue of a real B-mode clip as another vendor's system would.

    Scatterers are carried along by the motion from frame to frame (`medfm_rl.data.clips.motion`). Haze of the near
    field stands still, and the noise of the receiver is another in each frame.

    Args:
        frames: `(T, H, W)`, grey values 0 to 255, black around the sector, apex up.
        profile: The system.
        rng: Draws scatterers and noise.
        row_mm: Distance of neighbouring rows in mm, as in `resimulate`.

    Returns:
        `(T, H, W)` uint8.

    Raises:
        DataError: No sector is found.
    """
    # What is dark in one frame is bright in another, and the field of view is that of all.
    sector = estimate_sector(frames.max(axis=0))
    height, width = frames.shape[1:]
    depth_mm = TYPICAL_DEPTH_MM if row_mm is None else sector.depth * row_mm
    scatterers = Scatterers.scattered(sector, profile.lines, rng)
    haze = complex_noise(rng, (SAMPLES, profile.lines))
    shown = []
    for index, frame in enumerate(frames):
        if index > 0:
            scatterers = _carried(scatterers, frames[index - 1], frame, sector, profile.lines, rng)
        echo = estimate_echogenicity(frame, sector, profile.lines)
        echoes = scatterers.on_lines(sector, profile.lines)
        noise = complex_noise(rng, (SAMPLES, profile.lines))
        envelope = envelope_of(echoes, haze, noise, echo, sector, profile, depth_mm)
        shown.append(show_envelope(envelope, sector, (height, width), profile))
    return np.stack(shown)


def _carried(
    scatterers: Scatterers,
    before: FloatArray,
    after: FloatArray,
    sector: Sector,
    lines: int,
    rng: np.random.Generator,
) -> Scatterers:
    """Scatterers where the tissue has gone; some, and those that left the field of view, are new ones elsewhere."""
    motion = find_motion(before, after)
    down, across = (
        ndimage.map_coordinates(shift, [scatterers.rows, scatterers.columns], order=1, mode="nearest")
        for shift in motion
    )
    rows, columns, echoes = scatterers.rows + down, scatterers.columns + across, scatterers.echoes.copy()
    depth, angle = sector.polar_of(rows, columns)
    renewed = (depth > 1) | (np.abs(angle) > sector.half_angle) | (rng.uniform(size=len(rows)) < _RENEWED)
    fresh = Scatterers.scattered(sector, lines, rng)
    rows[renewed], columns[renewed] = fresh.rows[renewed], fresh.columns[renewed]
    echoes[renewed] = fresh.echoes[renewed]
    return Scatterers(rows, columns, echoes)
