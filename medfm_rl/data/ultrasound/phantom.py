"""Drawn apical echo: simulated anatomy for the demo and the tests. Everything that comes from here is simulated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medfm_rl.data.files import write_json
from medfm_rl.data.images import write_image, write_labels
from medfm_rl.data.layouts import SIMULATION_RECORD
from medfm_rl.data.ultrasound.engine import Array, Sector, image_tissue
from medfm_rl.data.ultrasound.vendors import VendorProfile
from medfm_rl.seeding import numpy_generator
from medfm_rl.types import Geometry, LabelMap, LabelSchema

ECHO_SCHEMA = LabelSchema.from_structures({"LV": 1, "MYO": 2, "LA": 3})
VIEWS = ("2CH", "4CH")
PHASES = ("ED", "ES")
DEPTH_MM = 150.0
_LV, _MYO, _LA = 1, 2, 3


@dataclass(frozen=True)
class Heart:
    """Shape of a drawn left heart, in shares of the image height, and its echo level.

    Attributes:
        apex: Row of the endocardial apex.
        length: From the endocardial apex to the mitral valve.
        half_width: Largest half-width of the ventricle at end-diastole.
        wall: Thickness of the wall at end-diastole.
        atrium_length: From the mitral valve to the roof of the atrium.
        atrium_half_width: Half-width of the atrium.
        tilt: Angle of the long axis to the vertical, in radians.
        shift: Horizontal offset of the apex.
        contraction: Share by which the ventricle narrows at end-systole.
        wall_db: Level of the wall.
        blood_db: Level of the blood, haze included.
        dropout_db: Depth of the angular dropouts.
    """

    apex: float
    length: float
    half_width: float
    wall: float
    atrium_length: float
    atrium_half_width: float
    tilt: float
    shift: float
    contraction: float
    wall_db: float
    blood_db: float
    dropout_db: float


def draw_heart(rng: np.random.Generator) -> Heart:
    """A patient: shapes vary about as much as in adults."""
    return Heart(
        apex=rng.uniform(0.13, 0.22),
        length=rng.uniform(0.40, 0.52),
        half_width=rng.uniform(0.11, 0.17),
        wall=rng.uniform(0.045, 0.075),
        atrium_length=rng.uniform(0.15, 0.24),
        atrium_half_width=rng.uniform(0.09, 0.14),
        tilt=rng.normal(0.0, 0.08),
        shift=rng.normal(0.0, 0.03),
        contraction=rng.uniform(0.15, 0.4),
        wall_db=rng.uniform(-18, -10),
        blood_db=rng.uniform(-50, -38),
        dropout_db=rng.uniform(0, 12),
    )


def draw_phantom(
    heart: Heart, view: str, phase: str, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Array, LabelMap, Sector]:
    """Draws one frame.

    Args:
        heart: The patient.
        view: "2CH" or "4CH" (broader, tilted the other way).
        phase: "ED" or "ES" (ventricle narrower and shorter, wall thicker).
        size: (H, W).
        rng: Draws the texture of the surroundings and the dropouts.

    Returns:
        Echogenicity in dB `(H, W)`, class indices `(H, W)` of `ECHO_SCHEMA`, and the field of view.
    """
    return draw_pose(pose_of(heart, view, heart.contraction if phase == "ES" else 0.0), size, rng)


@dataclass(frozen=True)
class Pose:
    """A heart at one moment, in a view.

    Attributes:
        heart: Whose.
        tilt: Angle of the long axis to the vertical, in radians.
        length: From the endocardial apex to the mitral valve, in shares of the image height.
        cavity: Half-width of the ventricle.
        wall: Thickness of the wall.
        atrium: Half-width of the atrium.
    """

    heart: Heart
    tilt: float
    length: float
    cavity: float
    wall: float
    atrium: float

    def coordinates(self, rows: Array, columns: Array, width: float) -> tuple[Array, Array]:
        """Coordinates of the heart: along the long axis from the endocardial apex, and across it.

        Args:
            rows: In shares of the image height.
            columns: Likewise.
            width: Of the image, likewise.
        """
        down, across = rows - self.heart.apex, columns - 0.5 * width - self.heart.shift
        along = down * np.cos(self.tilt) + across * np.sin(self.tilt)
        return along, across * np.cos(self.tilt) - down * np.sin(self.tilt)

    def places(self, along: Array, across: Array, width: float) -> tuple[Array, Array]:
        """Rows and columns, in shares of the image height, of coordinates of the heart."""
        down = along * np.cos(self.tilt) - across * np.sin(self.tilt)
        aside = along * np.sin(self.tilt) + across * np.cos(self.tilt)
        return down + self.heart.apex, aside + 0.5 * width + self.heart.shift

    def inner(self, along: Array) -> Array:
        """Half-width of the ventricle at places along its axis."""
        return _half_width(along / self.length, self.cavity)

    def outer(self, along: Array) -> Array:
        """Half-width of ventricle and wall together."""
        return _half_width((along + self.wall) / (self.length + self.wall), self.cavity + self.wall)


def pose_of(heart: Heart, view: str, contraction: float) -> Pose:
    """A heart that has contracted by a share of its width.

    Args:
        heart: The patient.
        view: "2CH" or "4CH".
        contraction: 0 at end-diastole, `heart.contraction` at end-systole.
    """
    breadth = 1.08 if view == "4CH" else 0.95
    return Pose(
        heart,
        heart.tilt + (0.08 if view == "4CH" else -0.05),
        heart.length * (1 - 0.3 * contraction),
        heart.half_width * breadth * (1 - contraction),
        heart.wall * (1 + contraction),
        heart.atrium_half_width * breadth * (1 + 0.3 * contraction),
    )


def draw_pose(pose: Pose, size: tuple[int, int], rng: np.random.Generator) -> tuple[Array, LabelMap, Sector]:
    """Draws a heart at one moment; arguments and result as in `draw_phantom`."""
    height, width = size
    heart = pose.heart
    sector = field_of_view(size)
    rows, columns = np.indices(size) / height
    along, across = pose.coordinates(rows, columns, width / height)
    length = pose.length
    ventricle = np.abs(across) < pose.inner(along)
    shell = np.abs(across) < pose.outer(along)
    centre = length + heart.atrium_length / 2
    # The ellipse reaches a little beyond the valve plane, which cuts it: the atrium opens into the ventricle.
    atrium = ((along - centre) / (0.6 * heart.atrium_length)) ** 2 + (across / pose.atrium) ** 2 < 1
    labels = np.zeros(size, dtype=np.uint8)
    labels[atrium & (along > length)] = _LA
    labels[shell & (along <= length)] = _MYO
    labels[ventricle & (along <= length)] = _LV
    labels[~sector.contains(size)] = 0
    echo = _echogenicity(labels, shell, np.abs(along - length) < 0.012, heart, sector, rng)
    return echo, labels, sector


def field_of_view(size: tuple[int, int]) -> Sector:
    """The sector of an image (H, W): its apex in the middle of the first row."""
    height, width = size
    return Sector((0.0, (width - 1) / 2), height - 1.0, half_angle=np.deg2rad(38))


def simulate_dataset(
    out: Path,
    vendor: VendorProfile,
    patients: int,
    seed: int,
    size: tuple[int, int],
    first: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes simulated patients in the folder layout: `images/sim0001_4CH_ED.nii.gz` and `labels/` likewise.

    Args:
        out: New folder.
        vendor: The system that images them.
        patients: How many, four frames each.
        seed: The same seed gives the same bytes.
        size: (H, W) of the frames.
        first: Number of the first patient; a patient of the same number and seed has the same anatomy for every vendor.
        progress: Called with (patients done, patients).
    """
    height, width = size
    geometry = grid_of(size)
    record = {"simulated": True, "vendor": vendor.name, "seed": seed, "patients": patients}
    # First: what an interrupted simulation leaves is simulated too.
    write_json(out / SIMULATION_RECORD, record | {"complete": False})
    for number in range(first, first + patients):
        heart = draw_heart(numpy_generator(seed, "heart", number))
        for view in VIEWS:
            for phase in PHASES:
                rng = numpy_generator(seed, vendor.name, number, view, phase)
                echo, labels, sector = draw_phantom(heart, view, phase, (height, width), rng)
                polar = sector.to_polar(echo, vendor.lines)
                image = image_tissue(polar, sector, size, vendor, rng, DEPTH_MM)
                name = f"sim{number:04d}_{view}_{phase}.nii.gz"
                write_image(out / "images" / name, image, geometry)
                write_labels(out / "labels" / name, labels, geometry, ECHO_SCHEMA)
        if progress:
            progress(number - first + 1, patients)
    write_json(out / SIMULATION_RECORD, record | {"complete": True})


def grid_of(size: tuple[int, int]) -> Geometry:
    """Where the pixels of an image (H, W) lie: square ones, the depth of the phantom over its rows."""
    spacing = DEPTH_MM / size[0]
    return Geometry((spacing, spacing), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))


def _half_width(position: Array, widest: float) -> Array:
    """Half-width of a cut half-ellipse: round at the apex (0), widest at 0.6, a little narrower at the base (1)."""
    apical = np.sqrt(np.clip(1 - (1 - position / 0.6) ** 2, 0, 1))
    basal = 1 - 0.2 * ((position - 0.6) / 0.4) ** 2
    return np.where(position < 0, 0.0, widest * np.where(position < 0.6, apical, basal))


def _echogenicity(
    labels: LabelMap,
    shell: npt.NDArray[np.bool_],
    valve: npt.NDArray[np.bool_],
    heart: Heart,
    sector: Sector,
    rng: np.random.Generator,
) -> Array:
    texture = ndimage.gaussian_filter(rng.standard_normal(labels.shape), max(labels.shape) / 25)
    echo = -24 + 8 * texture / texture.std()
    echo[labels == _MYO] = heart.wall_db
    echo[np.isin(labels, (_LV, _LA))] = heart.blood_db
    rim = ndimage.binary_dilation(shell, iterations=2) & ~shell
    echo[rim & (labels == 0)] = heart.wall_db + 6
    echo[valve & np.isin(labels, (_LV, _LA))] = heart.wall_db + 4
    echo = ndimage.gaussian_filter(echo, 0.7)
    _, angle = sector.polar((labels.shape[0], labels.shape[1]))
    bumps = ndimage.gaussian_filter1d(rng.standard_normal(64), 5)
    bumps = np.clip(bumps / np.abs(bumps).max(), -1, 0)
    position = np.clip((angle / sector.half_angle + 1) / 2, 0, 1) * 63
    level: Array = np.clip(echo + heart.dropout_db * np.interp(position, np.arange(64), bumps), -60, 0)
    return level
