"""The phantom beats: simulated clips of a heart with a known period, end-diastole and end-systole.

Tissue moves as the drawn shapes do: the ventricle about its axis, the wall with it, what lies around less and less.
Speckle is the echo of scatterers that are carried along; haze of the near field stands still, and the noise of the
receiver is another in each frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from medfm_rl.data.clips.sequences import write_sequence
from medfm_rl.data.files import write_json
from medfm_rl.data.layouts import SIMULATION_RECORD
from medfm_rl.data.ultrasound.engine import SAMPLES, Array, complex_noise, envelope_of, show_envelope
from medfm_rl.data.ultrasound.phantom import (
    DEPTH_MM,
    ECHO_SCHEMA,
    VIEWS,
    Heart,
    Pose,
    draw_heart,
    draw_pose,
    field_of_view,
    grid_of,
    pose_of,
)
from medfm_rl.data.ultrasound.scatterers import Scatterers
from medfm_rl.data.ultrasound.vendors import VendorProfile
from medfm_rl.seeding import numpy_generator
from medfm_rl.types import LabelMap

FRAMES = 32
RATE = 25.0
"""Frames a second."""
SYSTOLE = 0.4
"""Share of a beat in which the ventricle contracts."""
_PERIODS = (0.7, 1.1)
"""Seconds of a beat; a clip of `FRAMES` is longer than any."""
_CALM = 0.1
"""Distance from the wall, in shares of the image height, over which the motion around it falls by a factor e."""
_LEAST = 1e-6


@dataclass(frozen=True)
class Rhythm:
    """When a simulated heart beats.

    Attributes:
        period: Seconds of a beat.
        start: Where in the beat the clip begins, in [0, 1); end-diastole is 0.
    """

    period: float
    start: float

    def contraction(self, seconds: float) -> float:
        """How far the ventricle has contracted at a time: 0 at end-diastole, 1 at end-systole."""
        phase = (self.start + seconds / self.period) % 1
        share = phase / SYSTOLE if phase < SYSTOLE else (1 - phase) / (1 - SYSTOLE)
        return float((1 - np.cos(np.pi * share)) / 2)


@dataclass(frozen=True, eq=False)
class SimulatedClip:
    """A clip with its truth.

    Attributes:
        frames: `(T, H, W)` uint8.
        labels: Class indices of `ECHO_SCHEMA`, `(T, H, W)`.
        times: Seconds.
        ed: The frame nearest to end-diastole.
        es: The frame nearest to end-systole.
    """

    frames: npt.NDArray[np.uint8]
    labels: LabelMap
    times: tuple[float, ...]
    ed: int
    es: int


def draw_rhythm(rng: np.random.Generator) -> Rhythm:
    """The rhythm of a patient."""
    return Rhythm(float(rng.uniform(*_PERIODS)), float(rng.uniform()))


def draw_clip(
    heart: Heart,
    rhythm: Rhythm,
    view: str,
    size: tuple[int, int],
    vendor: VendorProfile,
    seed: int,
    frames: int = FRAMES,
) -> SimulatedClip:
    """Draws a clip as a vendor's system shows it.

    Args:
        heart: The patient.
        rhythm: When it beats.
        view: "2CH" or "4CH".
        size: (H, W).
        vendor: The system.
        seed: Of scatterers, haze, noise and surroundings; the same gives the same bytes.
        frames: How many, 40 ms apart.
    """
    sector = field_of_view(size)
    height, width = size
    rest = pose_of(heart, view, 0.0)
    scatterers = Scatterers.scattered(sector, vendor.lines, numpy_generator(seed, "scatterers"))
    haze = complex_noise(numpy_generator(seed, "haze"), (SAMPLES, vendor.lines))
    receiver = numpy_generator(seed, "receiver")
    along, across = rest.coordinates(scatterers.rows / height, scatterers.columns / height, width / height)
    times = tuple((np.arange(frames) / RATE).tolist())
    contractions = [rhythm.contraction(time) for time in times]
    images, labels = [], []
    for contraction in contractions:
        pose = pose_of(heart, view, contraction * heart.contraction)
        # The same surroundings in each frame.
        echo, mask, _ = draw_pose(pose, size, numpy_generator(seed, "surroundings"))
        rows, columns = pose.places(*_carried(rest, pose, along, across), width / height)
        moved = scatterers.moved(rows * height, columns * height).on_lines(sector, vendor.lines)
        noise = complex_noise(receiver, (SAMPLES, vendor.lines))
        polar = sector.to_polar(echo, vendor.lines)
        envelope = envelope_of(moved, haze, noise, polar, sector, vendor, DEPTH_MM)
        images.append(show_envelope(envelope, sector, size, vendor))
        labels.append(mask)
    return SimulatedClip(
        np.stack(images), np.stack(labels), times, int(np.argmin(contractions)), int(np.argmax(contractions))
    )


def simulate_clips(
    out: Path,
    vendor: VendorProfile,
    patients: int,
    seed: int,
    size: tuple[int, int],
    first: int = 1,
    frames: int = FRAMES,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes simulated patients as clips: `images/sim0001_4CH.nii.gz` with time as fourth axis, and `labels/` likewise.

    `simulation.json` says that they are simulated, and of each clip its period and which frames are ED and ES.

    Args:
        out: New folder.
        vendor: The system that images them.
        patients: How many, a clip of either view each.
        seed: The same seed gives the same bytes.
        size: (H, W) of the frames.
        first: Number of the first patient; one of the same number and seed has the anatomy and rhythm that it has for
            every vendor, and the anatomy of `simulate_dataset`.
        frames: Of each clip.
        progress: Called with (patients done, patients).
    """
    geometry, truth = grid_of(size), {}
    record = {"simulated": True, "vendor": vendor.name, "seed": seed, "patients": patients}
    # First: what an interrupted simulation leaves is simulated too.
    write_json(out / SIMULATION_RECORD, record | {"complete": False})
    for number in range(first, first + patients):
        heart = draw_heart(numpy_generator(seed, "heart", number))
        rhythm = draw_rhythm(numpy_generator(seed, "rhythm", number))
        for view in VIEWS:
            name = f"sim{number:04d}_{view}"
            drawn = int(numpy_generator(seed, "clip", vendor.name, number, view).integers(2**31))
            clip = draw_clip(heart, rhythm, view, size, vendor, drawn, frames)
            write_sequence(out / "images" / f"{name}.nii.gz", clip.frames, geometry, clip.times)
            write_sequence(out / "labels" / f"{name}.nii.gz", ECHO_SCHEMA.to_ids(clip.labels), geometry, clip.times)
            truth[name] = {"period_s": rhythm.period, "ed_frame": clip.ed, "es_frame": clip.es}
        if progress:
            progress(number - first + 1, patients)
    write_json(out / SIMULATION_RECORD, record | {"clips": truth, "complete": True})


def _carried(rest: Pose, pose: Pose, along: Array, across: Array) -> tuple[Array, Array]:
    """Where tissue is that lay at these coordinates of the heart at rest.

    Along the axis the ventricle shortens towards its apex, which stays, and what lies below its base follows. Across it
    the ventricle and its wall keep their shares of the width, and what lies around follows.
    """
    share = along / rest.length
    below = np.exp(-np.maximum(along - rest.length, 0) / _CALM)
    shortened = np.where(share > 0, share * pose.length, along)
    later = np.where(share < 1, shortened, along + (pose.length - rest.length) * below)
    # Beyond apex and base the motion across is that at apex and base, and fades.
    near, now = np.clip(along, 0, rest.length), np.clip(later, 0, pose.length)
    inner, outer = rest.inner(near), rest.outer(near)
    new_inner, new_outer = pose.inner(now), pose.outer(now)
    distance = np.abs(across)
    in_wall = new_inner + (distance - inner) * (new_outer - new_inner) / np.maximum(outer - inner, _LEAST)
    around = distance + (new_outer - outer) * np.exp(-np.maximum(distance - outer, 0) / _CALM)
    moved = np.where(distance < inner, distance * new_inner / np.maximum(inner, _LEAST), in_wall)
    moved = np.where(distance < outer, moved, around)
    fading = np.exp(-np.maximum(-along, 0) / _CALM) * below
    return later, np.sign(across) * (distance + (moved - distance) * fading)
