"""From echogenicity to a B-mode image, along the steps of a real scanner, in polar coordinates.

Scatterers are complex Gaussian, which gives fully developed speckle (Rayleigh-distributed envelope: Wagner et al.,
IEEE Trans. Sonics Ultrason. 30(3), 1983). They are blurred with a point-spread function whose lateral width grows away
from the focus, attenuated, joined by noise and near-field clutter, detected, log-compressed and scan-converted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medfm_rl.data.ultrasound.vendors import VendorProfile
from medfm_rl.errors import DataError

Array = npt.NDArray[np.float64]

ComplexArray = npt.NDArray[np.complex128]

SAMPLES = 320
"""Of a scan line."""
TYPICAL_DEPTH_MM = 150.0
_FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))
_BLUR_LEVELS = 5
_SOURCE_DYNAMIC_RANGE_DB = 60.0
# A fan that touches a side of the image in more than this share of the rows is cut off there.
_CUT_ROWS = 0.04
# Intersection over union of a sector and what is bright, below which the image shows something else.
_LEAST_OVERLAP = 0.7


@dataclass(frozen=True)
class Sector:
    """The field of view of a phased array.

    Attributes:
        apex: Row and column, in pixels; may lie outside the image.
        depth: Distance from the apex to the deepest row, in rows.
        half_angle: Between the axis (straight down) and either edge, in radians.
        aspect: Physical width of a pixel over its height: real frames that were resized are not square.
    """

    apex: tuple[float, float]
    depth: float
    half_angle: float
    aspect: float = 1.0

    def polar(self, shape: tuple[int, int]) -> tuple[Array, Array]:
        """Depth (0 at the apex, 1 at full depth) and angle in radians of each pixel, each `(H, W)`."""
        rows, columns = np.indices(shape, dtype=np.float64)
        return self.polar_of(rows, columns)

    def polar_of(self, rows: Array, columns: Array) -> tuple[Array, Array]:
        """Depth and angle, as in `polar`, of places in pixels."""
        down, across = rows - self.apex[0], (columns - self.apex[1]) * self.aspect
        return np.hypot(down, across) / self.depth, np.arctan2(across, down)

    def contains(self, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Which pixels lie in the field of view, `(H, W)`."""
        depth, angle = self.polar(shape)
        inside: npt.NDArray[np.bool_] = (depth <= 1) & (np.abs(angle) <= self.half_angle)
        return inside

    def to_polar(self, image: Array, lines: int) -> Array:
        """Samples an image `(H, W)` along scan lines, `(samples, lines)`, linearly."""
        rows, columns = self.place(*self._grid(lines))
        return ndimage.map_coordinates(image, [rows, columns], order=1, mode="nearest")

    def place(self, depth: Array, angle: Array) -> tuple[Array, Array]:
        """Rows and columns, in pixels, of depths and angles as in `polar`."""
        rows = self.apex[0] + depth * self.depth * np.cos(angle)
        columns = self.apex[1] + depth * self.depth * np.sin(angle) / self.aspect
        return rows, columns

    def to_image(self, polar: Array, shape: tuple[int, int]) -> Array:
        """Scan conversion of `(samples, lines)` to `(H, W)`, linearly; 0 outside the field of view."""
        depth, angle = self.polar(shape)
        samples, lines = polar.shape
        row = depth * (samples - 1)
        column = (angle / self.half_angle + 1) / 2 * (lines - 1)
        image = ndimage.map_coordinates(polar, [row, column], order=1, mode="nearest")
        return np.where(self.contains(shape), image, 0.0)

    def _grid(self, lines: int) -> tuple[Array, Array]:
        depth = np.linspace(0, 1, SAMPLES)[:, None]
        angle = np.linspace(-self.half_angle, self.half_angle, lines)[None, :]
        return np.broadcast_to(depth, (SAMPLES, lines)), np.broadcast_to(angle, (SAMPLES, lines))


def estimate_sector(image: npt.NDArray[np.generic]) -> Sector:
    """Finds the field of view in a B-mode image whose surroundings are black, apex up.

    Two lines are fitted to the edges of the bright fan; they meet at the apex. The row at which the fan is widest is
    that of its lower corners, and with the deepest row tells the true angle, and so how much the pixels are stretched.
    Where the sides of the image cut the corners off, the arc at the bottom tells it instead.

    Args:
        image: `(H, W)`, grey values.

    Raises:
        DataError: There is no such fan.
    """
    bright = ndimage.binary_closing(np.pad(np.asarray(image) > 0, 4), iterations=3)[4:-4, 4:-4]
    parts, count = ndimage.label(bright)
    if count:
        bright = parts == 1 + int(np.argmax(ndimage.sum_labels(bright, parts, np.arange(1, count + 1))))
    widths = bright.sum(axis=1)
    rows = np.flatnonzero(widths)
    if len(rows) < 20 or bright.mean() < 0.1 or bright.mean() > 0.95:
        raise DataError("no ultrasound sector found: a bright fan on black, apex up, is needed")
    bottom, corner = float(rows[-1]) + 0.5, float(np.argmax(widths))
    edge_rows = rows[(rows > rows[0] + 0.1 * (corner - rows[0])) & (rows < rows[0] + 0.9 * (corner - rows[0]))]
    if len(edge_rows) < 10 or corner - rows[0] < 0.25 * (rows[-1] - rows[0]):
        raise DataError("no ultrasound sector found: the field of view has no straight edges that open downwards")
    left = np.argmax(bright[edge_rows], axis=1) - 0.5
    right = bright.shape[1] - np.argmax(bright[edge_rows, ::-1], axis=1) - 0.5
    # The border of the image is no edge of the fan.
    left_seen, right_seen = ~bright[edge_rows, 0], ~bright[edge_rows, -1]
    if min(left_seen.sum(), right_seen.sum()) < 10:
        raise DataError("no ultrasound sector found: the image cuts off the edges of the field of view")
    left_slope, left_start = _fit_line(edge_rows[left_seen], left[left_seen])
    right_slope, right_start = _fit_line(edge_rows[right_seen], right[right_seen])
    opening = right_slope - left_slope
    if opening < 0.2:
        raise DataError("no ultrasound sector found: its edges do not open downwards")
    apex_row = (left_start - right_start) / opening
    apex_column = left_slope * apex_row + left_start
    depth = bottom - apex_row
    if bright[:, [0, -1]].sum(axis=0).max() > _CUT_ROWS * len(bright):
        aspect = _aspect_of_arc(bright, (apex_row, apex_column), depth)
        half_angle = float(np.arctan(aspect * opening / 2))
    else:
        cosine = np.clip((corner - apex_row) / depth, 0.3, 0.98)
        half_angle = float(np.arccos(cosine))
        aspect = float(np.tan(half_angle) / (opening / 2))
    sector = Sector((apex_row, apex_column), depth, half_angle, aspect)
    inside, filled = sector.contains((bright.shape[0], bright.shape[1])), ndimage.binary_fill_holes(bright)
    if (inside & filled).sum() < _LEAST_OVERLAP * (inside | filled).sum():
        raise DataError("no ultrasound sector found: what is bright has not the shape of a fan, apex up")
    return sector


def estimate_echogenicity(image: npt.NDArray[np.generic], sector: Sector, lines: int) -> Array:
    """The tissue behind a B-mode image: its level in dB (0 is the brightest), with the speckle removed.

    Args:
        image: `(H, W)`, grey values 0 to 255, taken as log-compressed over 60 dB.
        sector: Its field of view.
        lines: Scan lines of the result.

    Returns:
        `(samples, lines)` in [-60, 0].
    """
    level = (sector.to_polar(np.asarray(image, dtype=np.float64), lines) / 255 - 1) * _SOURCE_DYNAMIC_RANGE_DB
    smooth = ndimage.median_filter(level, size=(7, 3), mode="nearest")
    return ndimage.gaussian_filter(smooth, sigma=(1.5, 0.7), mode="nearest")


def image_tissue(
    echogenicity_db: Array,
    sector: Sector,
    shape: tuple[int, int],
    profile: VendorProfile,
    rng: np.random.Generator,
    depth_mm: float = TYPICAL_DEPTH_MM,
) -> npt.NDArray[np.uint8]:
    """Shows tissue as a vendor's system would.

    Args:
        echogenicity_db: `(samples, lines)` level of the tissue in dB, 0 the brightest, along the profile's scan lines.
        sector: Field of view.
        shape: Size of the image, (H, W).
        profile: The system.
        rng: Draws scatterers and noise; the same state gives the same bytes.
        depth_mm: Imaged depth, which turns millimetres into samples.

    Returns:
        `(H, W)` uint8, exactly 0 outside the sector.
    """
    return show_envelope(detect_envelope(echogenicity_db, sector, profile, rng, depth_mm), sector, shape, profile)


def show_envelope(
    envelope: Array, sector: Sector, shape: tuple[int, int], profile: VendorProfile
) -> npt.NDArray[np.uint8]:
    """Log compression, grey-level curve and scan conversion of a detected echo `(samples, lines)`, `(H, W)`."""
    level = 20 * np.log10(np.maximum(envelope, 1e-12)) + profile.gain_db
    grey = np.clip(level / profile.dynamic_range_db + 1, 0, 1) ** profile.gamma
    # The darkest grey inside the sector is 1: 0 is what lies outside.
    picture = sector.to_image(1 + 254 * grey, shape)
    return np.asarray(np.rint(picture), dtype=np.uint8)


def detect_envelope(
    echogenicity_db: Array, sector: Sector, profile: VendorProfile, rng: np.random.Generator, depth_mm: float
) -> Array:
    """The detected echo before log compression, `(samples, lines)`; 1 is the level of the brightest tissue."""
    shape = echogenicity_db.shape
    scatterers, haze, noise = (complex_noise(rng, shape) for _ in range(3))
    return envelope_of(scatterers, haze, noise, echogenicity_db, sector, profile, depth_mm)


def envelope_of(
    scatterers: ComplexArray,
    haze: ComplexArray,
    noise: ComplexArray,
    echogenicity_db: Array,
    sector: Sector,
    profile: VendorProfile,
    depth_mm: float,
) -> Array:
    """The detected echo of given scatterers, `(samples, lines)`; all are circular complex Gaussian of mean power 1.

    Args:
        scatterers: Of the tissue; they move with it.
        haze: Of the near field, which stands still.
        noise: Of the receiver, which is another at every moment.
        echogenicity_db: As in `image_tissue`.
        sector: Field of view.
        profile: The system.
        depth_mm: Imaged depth.
    """
    samples, lines = echogenicity_db.shape
    depth = np.linspace(0, 1, samples)[:, None]
    scatterers = scatterers * 10 ** (echogenicity_db / 20)
    axial_sigma = profile.axial_resolution_mm / _FWHM_PER_SIGMA / depth_mm * samples
    lateral_sigma = np.deg2rad(profile.beam_width_deg) / _FWHM_PER_SIGMA / (2 * sector.half_angle) * lines
    widening = np.sqrt(1 + ((depth[:, 0] - profile.focus) / profile.focal_zone) ** 2)
    echo = _blur(scatterers, axial_sigma, lateral_sigma * widening)
    echo = echo * 10 ** (-profile.attenuation_db * depth / 20)
    clutter = _blur(haze, 3 * axial_sigma, np.full(samples, 6 * lateral_sigma))
    echo = echo + clutter * 10 ** (profile.clutter_db / 20) * np.exp(-depth / profile.clutter_depth)
    echo = echo + _unit_power(ndimage.gaussian_filter1d(noise, 0.6, axis=0)) * 10 ** (profile.noise_db / 20)
    return np.abs(echo)


def resimulate(
    image: npt.NDArray[np.generic],
    profile: VendorProfile,
    rng: np.random.Generator,
    row_mm: float | None = None,
) -> npt.NDArray[np.uint8]:
    """Shows the tissue of a real B-mode frame as another vendor's system would.

    Args:
        image: `(H, W)`, grey values 0 to 255, black around the sector, apex up.
        profile: The system.
        rng: Draws scatterers and noise.
        row_mm: Distance of neighbouring rows in mm, which tells the depth of the sector; None where it is unknown, and
            the sector is as deep as that of an apical view typically is.

    Returns:
        `(H, W)` uint8.

    Raises:
        DataError: The frame holds NaN or infinite values, or no sector is found.
    """
    if not np.isfinite(image).all():
        raise DataError("the frame holds NaN or infinite values; repair or leave it out")
    sector = estimate_sector(image)
    echogenicity = estimate_echogenicity(image, sector, profile.lines)
    height, width = image.shape
    # Of the sector, not of the frame: there may be black above and below.
    depth_mm = TYPICAL_DEPTH_MM if row_mm is None else sector.depth * row_mm
    return image_tissue(echogenicity, sector, (height, width), profile, rng, depth_mm)


def _aspect_of_arc(bright: npt.NDArray[np.bool_], apex: tuple[float, float], depth: float) -> float:
    """Width of a pixel over its height, from the lowest bright row of the columns that are far from the axis."""
    across = np.abs(np.arange(bright.shape[1]) - apex[1])
    down = bright.shape[0] - np.argmax(bright[::-1], axis=0) - 0.5 - apex[0]
    on_arc = bright.any(axis=0) & (across > 0.5 * across.max()) & (down < depth)
    if on_arc.sum() < 5:
        raise DataError("no ultrasound sector found: the image cuts off the arc at its bottom")
    return float(np.median(np.sqrt(depth**2 - down[on_arc] ** 2) / across[on_arc]))


def _fit_line(rows: npt.NDArray[np.intp], columns: Array) -> tuple[float, float]:
    """Slope and start of the line through most of the edge points: one refit without the worst quarter."""
    slope, start = np.polyfit(rows, columns, 1)
    distance = np.abs(columns - (slope * rows + start))
    kept = distance <= np.quantile(distance, 0.75)
    slope, start = np.polyfit(rows[kept], columns[kept], 1)
    return float(slope), float(start)


def complex_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> ComplexArray:
    """Circular complex Gaussian of mean power 1."""
    noise: ComplexArray = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)
    return noise


def _blur(echo: ComplexArray, axial_sigma: float, lateral_sigma: Array) -> ComplexArray:
    """Gaussian blur along depth and, with one width per depth, across lines; the mean power stays 1.

    A blur of varying width is an interpolation between a few of constant width.
    """
    along = _unit_power_filter(echo, axial_sigma, axis=0)
    levels = np.linspace(lateral_sigma.min(), lateral_sigma.max() + 1e-9, _BLUR_LEVELS)
    blurred = np.stack([_unit_power_filter(along, sigma, axis=1) for sigma in levels])
    position = np.interp(lateral_sigma, levels, np.arange(_BLUR_LEVELS))
    lower = np.minimum(position.astype(int), _BLUR_LEVELS - 2)
    weight = (position - lower)[:, None]
    depths = np.arange(len(echo))
    mixed: ComplexArray = (1 - weight) * blurred[lower, depths] + weight * blurred[lower + 1, depths]
    return mixed


def _unit_power_filter(echo: ComplexArray, sigma: float, axis: int) -> ComplexArray:
    """Gaussian filter scaled so that white noise keeps its mean power."""
    blurred = ndimage.gaussian_filter1d(echo, sigma, axis=axis, mode="nearest")
    impulse = np.zeros(2 * int(np.ceil(4 * sigma)) + 3)
    impulse[len(impulse) // 2] = 1
    kernel = ndimage.gaussian_filter1d(impulse, sigma)
    return np.asarray(blurred / np.sqrt((kernel**2).sum()), dtype=np.complex128)


def _unit_power(echo: ComplexArray) -> ComplexArray:
    scaled: ComplexArray = echo / np.sqrt(np.mean(np.abs(echo) ** 2))
    return scaled
