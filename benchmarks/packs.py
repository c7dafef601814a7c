"""Reads the `.npz` packs of real images, which are not part of the project, into the folder layout."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from medfm_rl.data.files import write_json
from medfm_rl.data.images import write_image, write_labels
from medfm_rl.types import Geometry, LabelSchema

CAMUS_SCHEMA = LabelSchema.from_structures({"LV": 1, "MYO": 2, "LA": 3})


def data_folder() -> Path:
    """Where the packs are: `MEDFM_RL_DATA`, or `../shared/data` beside the checkout."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("MEDFM_RL_DATA", default))
    if not folder.is_dir():
        raise SystemExit(f"{folder}: the real images are not here; set MEDFM_RL_DATA")
    return folder


def unpack_camus(patients: slice, out: Path) -> Path:
    """Writes some patients of the CAMUS pack (sorted by name) as PNG in the folder layout; done once.

    The pack has no spacing, so neither have the files: distances are in pixels.
    """
    if (out / "complete.json").exists():
        return out
    pack = np.load(data_folder() / "camus224_train250.npz")
    owners = np.array([name.split("_")[0] for name in pack["name"]])
    wanted = set(sorted(set(owners))[patients])
    geometry = Geometry.unknown(2)
    images, labels = pack["image"], pack["label"]
    for row in np.flatnonzero([owner in wanted for owner in owners]):
        name = f"{pack['name'][row]}.png"
        write_image(out / "images" / name, images[row], geometry)
        write_labels(out / "labels" / name, labels[row], geometry, CAMUS_SCHEMA)
    write_json(out / "complete.json", {"patients": sorted(wanted)})
    return out
