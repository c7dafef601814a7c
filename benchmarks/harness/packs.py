"""Reads the `.npz` packs of real images, which are not part of the project, into the folder layout."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.harness.recording import BENCHMARKS
from medfm_rl.data.files import write_json
from medfm_rl.data.images import write_image, write_labels
from medfm_rl.types import Geometry, LabelMap, LabelSchema

CAMUS_SCHEMA = LabelSchema.from_structures({"LV": 1, "MYO": 2, "LA": 3})
LUNG_SCHEMA = LabelSchema.from_structures({"lung": 1})
FUNDUS_SCHEMA = LabelSchema.from_structures({"rim": 1, "cup": 2})
VENTRICLE_SCHEMA = LabelSchema.from_structures({"LV": 1})
ACDC_VENTRICLE = 3
# Contours that lie visibly beside what they outline (the packs' own README).
_SHIFTED_CONTOURS = ("SC-N-06", "SC-HF-NI-13")
VIEWS = ("2CH", "4CH")
COMPLETE = "complete.json"


def data_folder() -> Path:
    """Where the packs are: `MEDFM_RL_DATA`, or `../shared/data` beside the checkout."""
    default = BENCHMARKS.parents[1] / "shared" / "data"
    folder = Path(os.environ.get("MEDFM_RL_DATA", default))
    if not folder.is_dir():
        raise SystemExit(f"{folder}: the real images are not here; set MEDFM_RL_DATA")
    return folder


def camus_qualities() -> dict[str, str]:
    """Patients of the CAMUS pack in the order of their names, with the grade of their 2CH view."""
    pack = np.load(data_folder() / "camus224_train250.npz")
    grades = {_owner(name): str(grade) for name, grade in zip(pack["name"], pack["quality2ch"], strict=True)}
    return dict(sorted(grades.items()))


def lung_patients(site: str) -> list[str]:
    """Patients of the lung pack from one site ("shenzhen" or "montgomery"), sorted; each has one image."""
    pack = np.load(data_folder() / "lung256_dev.npz")
    return sorted(_lung_case(name).split("_")[0] for name in pack["name"][pack["site"] == site])


def write_camus(patients: Collection[str], out: Path, views: Collection[str] = VIEWS) -> Path:
    """Writes the frames of some CAMUS patients as PNG in the folder layout; done once.

    The pack has no spacing, so neither have the files: distances are in pixels.
    """
    record = {"patients": sorted(patients)} | ({} if set(views) == set(VIEWS) else {"views": sorted(views)})
    if is_complete(out, record):
        return out
    pack = np.load(data_folder() / "camus224_train250.npz")
    rows = [
        row
        for row, (name, view) in enumerate(zip(pack["name"], pack["view"], strict=True))
        if _owner(name) in patients and view in views
    ]
    return _write(out, [str(pack["name"][row]) for row in rows], pack["image"][rows], pack["label"][rows], record)


def write_lungs(patients: Collection[str], out: Path) -> Path:
    """Writes the chest X-rays of some patients as PNG in the folder layout; done once.

    The pack has no spacing: distances are in pixels. `CHNCXR_0002_0` becomes `CHNCXR0002_0`, because the layout takes
    what precedes the first underscore for the patient.
    """
    record = {"patients": sorted(patients)}
    if is_complete(out, record):
        return out
    pack = np.load(data_folder() / "lung256_dev.npz")
    names = [_lung_case(name) for name in pack["name"]]
    rows = [row for row, name in enumerate(names) if name.split("_")[0] in patients]
    return _write(out, [names[row] for row in rows], pack["image"][rows], pack["label"][rows], record, LUNG_SCHEMA)


def fundus_cases(site: str) -> list[str]:
    """Cases of a fundus pack ("refuge150" or "drishti60"), sorted; as far as is known each is of another patient."""
    pack = np.load(data_folder() / f"fundus_{site}.npz")
    return sorted(_fundus_case(case["id"]) for case in json.loads(str(pack["meta"]))["cases"])


def write_fundus(cases: Collection[str], site: str, out: Path) -> Path:
    """Writes colour photographs of the optic disc as PNG in the folder layout; done once."""
    record = {"patients": sorted(cases)}
    if is_complete(out, record):
        return out
    pack = np.load(data_folder() / f"fundus_{site}.npz")
    names = [_fundus_case(case["id"]) for case in json.loads(str(pack["meta"]))["cases"]]
    rows = [row for row, name in enumerate(names) if name in cases]
    return _write(out, [names[row] for row in rows], pack["img"][rows], pack["lab"][rows], record, FUNDUS_SCHEMA)


def acdc_patients() -> list[str]:
    """Patients of the ACDC pack, sorted."""
    pack = np.load(data_folder() / "acdc50.npz")
    return sorted({key.split("_")[0] for key in pack if key.endswith("_img")})


def write_acdc(patients: Collection[str], out: Path) -> Path:
    """Writes the slices that show the left ventricle of some ACDC patients as PNG in the folder layout; done once.

    Of its three structures the cavity alone, which is what Sunnybrook's experts outlined. Slices are padded to squares,
    as Sunnybrook's are.
    """
    record = {"patients": sorted(patients)}
    if is_complete(out, record):
        return out
    pack = np.load(data_folder() / "acdc50.npz")
    names, images, labels = [], [], []
    for key in sorted(key for key in pack if key.endswith("_img") and key.split("_")[0] in patients):
        patient, frame, _ = key.split("_")
        volume, truth = pack[key], pack[f"{patient}_{frame}_lab"] == ACDC_VENTRICLE
        for index in range(len(volume)):
            if truth[index].any():
                names.append(f"{patient}_{frame}_{index:02d}")
                images.append(_squared(volume[index]))
                labels.append(_squared(truth[index].astype(np.uint8)))
    return _write(out, names, images, labels, record, VENTRICLE_SCHEMA)


def sunnybrook_patients() -> list[str]:
    """Patients of the Sunnybrook pack whose contours lie where they should, sorted."""
    pack = np.load(data_folder() / "sunnybrook25.npz")
    found = {key.removesuffix("_img") for key in pack if key.endswith("_img")}
    return sorted(found - set(_SHIFTED_CONTOURS))


def write_sunnybrook(patients: Collection[str], out: Path) -> Path:
    """Writes the outlined slices of some Sunnybrook patients as PNG in the folder layout; done once."""
    record = {"patients": sorted(patients)}
    if is_complete(out, record):
        return out
    pack = np.load(data_folder() / "sunnybrook25.npz")
    names, images, labels = [], [], []
    for patient in sorted(patients):
        for number, image, label in zip(
            pack[f"{patient}_im"], pack[f"{patient}_img"], pack[f"{patient}_lab"], strict=True
        ):
            names.append(f"{patient}_{int(number):03d}")
            images.append(image)
            labels.append(label.astype(np.uint8))
    return _write(out, names, images, labels, record, VENTRICLE_SCHEMA)


def _squared(plane: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A slice in the middle of the smallest square that holds it."""
    missing = [max(plane.shape) - size for size in plane.shape]
    return np.pad(plane, [(size // 2, size - size // 2) for size in missing])


def _fundus_case(name: str) -> str:
    """The layout takes what precedes the first underscore for the patient."""
    return str(name).replace("_", "")


def _owner(name: str) -> str:
    return str(name).split("_")[0]


def _lung_case(name: str) -> str:
    return str(name).removesuffix(".png").replace("_", "", 1)


def is_complete(out: Path, record: dict[str, list[str]]) -> bool:
    """Whether a folder was written whole with these patients.

    Raises:
        SystemExit: It holds others.
    """
    if not (out / COMPLETE).exists():
        return False
    if json.loads((out / COMPLETE).read_text()) != record:
        raise SystemExit(f"{out}: holds other patients or views than are asked for; delete it or choose another folder")
    return True


def _write(
    out: Path,
    names: Sequence[str],
    images: Sequence[npt.NDArray[np.uint8]] | npt.NDArray[np.uint8],
    labels: Sequence[LabelMap] | LabelMap,
    record: dict[str, list[str]],
    schema: LabelSchema = CAMUS_SCHEMA,
) -> Path:
    geometry = Geometry.unknown(2)
    for name, image, label in zip(names, images, labels, strict=True):
        path = out / "images" / f"{name}.png"
        if image.ndim == 2:
            write_image(path, image, geometry)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        write_labels(out / "labels" / f"{name}.png", label, geometry, schema)
    write_json(out / COMPLETE, record)
    return out
