"""Drawn hearts in short axis, 3-D, as two SIMULATED MR scanners would show them. No patient is behind them."""

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
from medfm_rl.seeding import numpy_generator
from medfm_rl.types import FloatArray, Geometry, LabelMap, LabelSchema

SCHEMA = LabelSchema.from_structures({"RV": 1, "MYO": 2, "LV": 3})
PHASES = ("ED", "ES")
SHAPE = (16, 64, 64)
SPACING_MM = (6.0, 2.5, 2.5)
_RV, _MYO, _LV = 1, 2, 3
_FEWEST_VOXELS = 30
_AIR, _FAT, _MUSCLE, _BLOOD, _WALL, _PAPILLARY = range(6)


@dataclass(frozen=True)
class Scanner:
    """How a simulated scanner shows tissue.

    Attributes:
        name: Of the scanner.
        levels: Signal of air (and lungs), fat, muscle, blood, the ventricle's wall and papillary muscles.
        noise: Standard deviation of the noise in each of the two channels whose magnitude is the image.
        blur_mm: Standard deviation of the point spread in the plane.
        bias: Largest relative change of sensitivity over the image.
        misplacement_mm: Standard deviation of the shift of a plane: each is of another breath hold.
    """

    name: str
    levels: tuple[float, float, float, float, float, float]
    noise: float
    blur_mm: float
    bias: float
    misplacement_mm: float


BRIGHT = Scanner("bright-blood", (0.05, 0.9, 0.4, 1.0, 0.35, 0.4), 0.04, 1.0, 0.2, 1.0)
FAINT = Scanner("faint-blood", (0.1, 0.5, 0.55, 0.8, 0.5, 0.5), 0.09, 1.6, 0.6, 2.0)


@dataclass(frozen=True)
class Heart:
    """Shape of a drawn heart at end-diastole, in millimetres.

    Attributes:
        apex: Distance of the endocardial apex from the first plane.
        length: From the endocardial apex to the base.
        cavity: Radius of the LV at the base.
        wall: Thickness of the wall.
        right_width: How far the RV reaches beyond the wall.
        right_angle: Where the RV leans on the wall, in radians.
        centre: Of the LV in the plane (y, x), from the middle of the image.
        tilt: Drift of the centre per millimetre along the axis (y, x).
        roundness: Ratio of the axes of the LV.
        contraction: Share by which the cavity narrows at end-systole.
        fat: Thickness of the fat around the body.
    """

    apex: float
    length: float
    cavity: float
    wall: float
    right_width: float
    right_angle: float
    centre: tuple[float, float]
    tilt: tuple[float, float]
    roundness: float
    contraction: float
    fat: float


def draw_heart(rng: np.random.Generator) -> Heart:
    """A patient: about as varied as adults."""
    return Heart(
        apex=rng.uniform(6, 18),
        length=rng.uniform(60, 80),
        cavity=rng.uniform(19, 29),
        wall=rng.uniform(7, 12),
        right_width=rng.uniform(14, 26),
        right_angle=np.pi + rng.normal(0, 0.3),
        centre=(rng.normal(0, 5), rng.normal(4, 5)),
        tilt=(rng.normal(0, 0.08), rng.normal(0, 0.08)),
        roundness=rng.uniform(0.88, 1.12),
        contraction=rng.uniform(0.2, 0.45),
        fat=rng.uniform(5, 15),
    )


def draw_volume(heart: Heart, phase: str, scanner: Scanner, rng: np.random.Generator) -> tuple[FloatArray, LabelMap]:
    """Image `(D, H, W)` float32 and mask `(D, H, W)` of `SCHEMA`, planes from apex to base.

    Args:
        heart: The patient.
        phase: "ED" or "ES" (narrower and shorter ventricles, thicker wall).
        scanner: The scanner.
        rng: Draws misplacement, papillary muscles, sensitivity and noise.
    """
    labels = np.zeros(SHAPE, dtype=np.uint8)
    tissue = np.full(SHAPE, _MUSCLE, dtype=np.uint8)
    contraction = heart.contraction if phase == "ES" else 0.0
    length = heart.length * (1 - 0.3 * contraction)
    wall = heart.wall * (1 + 1.2 * contraction)
    y, x = (
        (np.arange(size) - (size - 1) / 2)[:, None] * step if axis == 0 else (np.arange(size) - (size - 1) / 2) * step
        for axis, (size, step) in enumerate(zip(SHAPE[1:], SPACING_MM[1:], strict=True))
    )
    chest = np.hypot(y / 85, x / 95)
    lungs = (np.abs(x) > 45) & (np.abs(y) < 55)
    papillary = rng.uniform(0, 2 * np.pi) + np.array([0.0, 2.2])
    for plane in range(SHAPE[0]):
        depth = plane * SPACING_MM[0] - heart.apex
        shift = rng.normal(0, scanner.misplacement_mm, 2)
        down = y - heart.centre[0] - heart.tilt[0] * depth - shift[0]
        across = x - heart.centre[1] - heart.tilt[1] * depth - shift[1]
        radius = np.hypot(down * heart.roundness, across / heart.roundness)
        inner = heart.cavity * (1 - contraction) * _profile(depth / length)
        outer = (heart.cavity * (1 - contraction) + wall) * _profile((depth + wall) / (length + wall))
        tissue[plane][lungs] = _AIR
        tissue[plane][chest > 1 - heart.fat / 95] = _FAT
        tissue[plane][chest > 1] = _AIR
        if outer <= 0 or depth > length:
            continue
        reach = 0.75 * outer
        offset = (reach * np.sin(heart.right_angle), reach * np.cos(heart.right_angle))
        right = outer + heart.right_width * (1 - 0.5 * contraction) - reach
        right *= _profile(depth / (0.95 * length))
        beside = (np.hypot(down - offset[0], across - offset[1]) < right) & (radius >= outer)
        labels[plane][_largest_part(beside)] = _RV
        labels[plane][radius < outer] = _MYO
        labels[plane][radius < inner] = _LV
        tissue[plane][np.isin(labels[plane], (_RV, _LV))] = _BLOOD
        tissue[plane][labels[plane] == _MYO] = _WALL
        for angle in papillary if 0.25 < depth / length < 0.75 else ():
            place = np.hypot(down - 0.6 * inner * np.sin(angle), across - 0.6 * inner * np.cos(angle))
            tissue[plane][(place < 0.2 * inner) & (labels[plane] == _LV)] = _PAPILLARY
    return _acquire(tissue, scanner, rng), labels


def simulate_dataset(
    out: Path,
    scanner: Scanner,
    patients: int,
    seed: int,
    first: int,
    progress: Callable[[int, int], None],
) -> None:
    """Writes simulated patients, two volumes each: `images/sax0001_ED.nii.gz` and `labels/` likewise.

    Args:
        out: New folder.
        scanner: The scanner that images them.
        patients: How many.
        seed: The same seed gives the same bytes.
        first: Number of the first patient.
        progress: Called with (patients done, patients).
    """
    spacing = SPACING_MM[::-1]
    geometry = Geometry(spacing, (0.0,) * 3, tuple(np.eye(3).ravel().tolist()))
    for number in range(first, first + patients):
        heart = draw_heart(numpy_generator(seed, "heart", number))
        for phase in PHASES:
            image, labels = draw_volume(heart, phase, scanner, numpy_generator(seed, scanner.name, number, phase))
            name = f"sax{number:04d}_{phase}.nii.gz"
            write_image(out / "images" / name, image, geometry)
            write_labels(out / "labels" / name, labels, geometry, SCHEMA)
        progress(number - first + 1, patients)
    write_json(out / SIMULATION_RECORD, {"simulated": True, "vendor": scanner.name, "seed": seed, "patients": patients})


def _largest_part(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Without the crumbs of a crescent that is thinner than a voxel at its ends; nothing where only crumbs are left."""
    parts, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(parts.ravel())[1:]
    largest: npt.NDArray[np.bool_] = (parts == 1 + sizes.argmax()) & (sizes.max() >= _FEWEST_VOXELS)
    return largest


def _profile(position: float) -> float:
    """Radius of a half ellipsoid as a share of its largest: 0 at the apex (0), 1 at .7, then falling a little."""
    if position <= 0:
        return 0.0
    return float(np.sqrt(1 - (1 - position / 0.7) ** 2)) if position < 0.7 else 1 - 0.1 * (position - 0.7) / 0.3


def _acquire(tissue: npt.NDArray[np.uint8], scanner: Scanner, rng: np.random.Generator) -> FloatArray:
    """Turns tissue into an image: partial volume, point spread, sensitivity, Rician noise."""
    levels = np.array(scanner.levels) * rng.uniform(0.85, 1.15, len(scanner.levels))
    blur = (0.4, *(scanner.blur_mm / step for step in SPACING_MM[1:]))
    signal = ndimage.gaussian_filter(levels[tissue], blur)
    texture = ndimage.gaussian_filter(rng.standard_normal(SHAPE), (0, 2, 2))
    signal = signal * (1 + 0.05 * texture / texture.std())
    direction = rng.standard_normal(2)
    direction /= np.linalg.norm(direction)
    slope = np.tensordot(
        direction, np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE[1:]), indexing="ij")), 1
    )
    signal = signal * (1 + scanner.bias * rng.uniform(0.3, 1) * slope / np.sqrt(2))
    real, imaginary = rng.normal(0, scanner.noise, (2, *SHAPE))
    image: FloatArray = np.hypot(signal + real, imaginary).astype(np.float32)
    return image
