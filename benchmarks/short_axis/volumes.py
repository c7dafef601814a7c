"""The cardiac MR of two hospitals as volumes, from the packs of ACDC (Dijon) and Sunnybrook (Toronto).

A volume is one phase of one patient, end diastole or end systole: the slices from the first to the last that has a
contour of the left ventricle. The pack of Sunnybrook holds only such slices, so ACDC's are cut to them as well, and
what lies above the base or below the apex is in neither. Every slice of every volume has a contour; a stack with a gap
is refused (there is none in the packs). SC-N-06 and SC-HF-NI-13 are left out, because their contours lie beside what
they outline. The label is the cavity, with the papillary muscles in it, which is what both hospitals outlined.

The packs have lost the spacing. Assumed are 1.5 mm in plane for ACDC (1.34 to 1.68 in its paper), 1.25 mm for
Sunnybrook (a field of 320 mm with 256 pixels in its paper), and 8 mm between slices for both (ACDC 5 to 10 mm), so that
nothing is interpolated between slices. Millimetres that are measured on these volumes are as good as that. Of each
slice the square of 192 mm in the middle is kept, for both hospitals and whatever is outlined; it holds every contour
but a thirtieth of one (p038, end diastole).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.harness.packs import (
    ACDC_VENTRICLE,
    COMPLETE,
    VENTRICLE_SCHEMA,
    data_folder,
    is_complete,
)
from benchmarks.harness.shifts import HELD_OUT, SOURCE, SOURCE_HELD_OUT, TARGET, ventricle_patients
from medfm_rl.data.files import write_json
from medfm_rl.data.images import write_image, write_labels
from medfm_rl.types import Geometry

BETWEEN_SLICES_MM = 8.0
ACDC_MM, SUNNYBROOK_MM = 1.5, 1.25
FIELD_MM = 192.0
"""Side of the square that is kept of a slice."""
ENDING = ".nii.gz"
_PHASES = 20

Pixels = npt.NDArray[np.uint8]
Volume = tuple[str, Pixels, Pixels]
"""Name, image and mask `(D, H, W)`."""


def write_parts(root: Path, most: dict[str, int]) -> dict[str, Path]:
    """Writes the four parts of the shift as NIfTI in the folder layout; done once.

    Args:
        root: Folder of the parts.
        most: Patients of each part; a part without a number has all.
    """
    return {
        part: _write(part, patients[: most.get(part)], root / part) for part, patients in ventricle_patients().items()
    }


def _write(part: str, patients: Collection[str], out: Path) -> Path:
    record = {"patients": sorted(patients)}
    if is_complete(out, record):
        return out
    volumes, spacing = _READERS[part]
    geometry = Geometry((spacing, spacing, BETWEEN_SLICES_MM), (0.0,) * 3, tuple(np.eye(3).ravel().tolist()))
    for name, image, mask in volumes(patients):
        write_image(out / "images" / f"{name}{ENDING}", centre(image, spacing), geometry)
        write_labels(out / "labels" / f"{name}{ENDING}", centre(mask, spacing), geometry, VENTRICLE_SCHEMA)
    write_json(out / COMPLETE, record)
    return out


def acdc_volumes(patients: Collection[str]) -> Iterator[Volume]:
    """The phases of some patients of ACDC, cut to the slices that show the left ventricle."""
    pack = np.load(data_folder() / "acdc50.npz")
    for key in sorted(key for key in pack if key.endswith("_img") and key.split("_")[0] in patients):
        name = key.removesuffix("_img")
        mask = (pack[f"{name}_lab"] == ACDC_VENTRICLE).astype(np.uint8)
        slices = np.flatnonzero(mask.any(axis=(1, 2)))
        yield name, pack[key][stack(name, slices)], mask[slices]


def sunnybrook_volumes(patients: Collection[str]) -> Iterator[Volume]:
    """The phases of some patients of Sunnybrook, stacked from their slices."""
    pack = np.load(data_folder() / "sunnybrook25.npz")
    for patient in sorted(patients):
        slices, phases = np.divmod(pack[f"{patient}_im"] - 1, _PHASES)
        for phase in np.unique(phases):
            rows = np.flatnonzero(phases == phase)
            rows = rows[np.argsort(slices[rows])]
            name = f"{patient}_{int(phase):02d}"
            stack(name, slices[rows])
            yield name, pack[f"{patient}_img"][rows], (pack[f"{patient}_lab"][rows] > 0).astype(np.uint8)


def stack(name: str, slices: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """The numbers of the outlined slices of a volume, in their order.

    Raises:
        SystemExit: One between them has no contour.
    """
    if len(slices) == 0 or np.any(np.diff(slices) != 1):
        raise SystemExit(f"{name}: slices with a contour are {slices.tolist()}; a volume needs them without a gap")
    return slices


def centre(volume: Pixels, spacing: float) -> Pixels:
    """The square of `FIELD_MM` in the middle of each slice."""
    side = round(FIELD_MM / spacing)
    low = [(size - side) // 2 for size in volume.shape[1:]]
    return volume[:, low[0] : low[0] + side, low[1] : low[1] + side]


_READERS: dict[str, tuple[Callable[[Collection[str]], Iterator[Volume]], float]] = {
    SOURCE: (acdc_volumes, ACDC_MM),
    SOURCE_HELD_OUT: (acdc_volumes, ACDC_MM),
    TARGET: (sunnybrook_volumes, SUNNYBROOK_MM),
    HELD_OUT: (sunnybrook_volumes, SUNNYBROOK_MM),
}
