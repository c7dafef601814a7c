"""Packs with the keys and names of the real ones, drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest


def ramp(slices: int, side: int) -> np.ndarray:
    """Each slice has the grey value of its number."""
    return np.broadcast_to(np.arange(1, slices + 1, dtype=np.uint8)[:, None, None], (slices, side, side)).copy()


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the real ones: stacks with unlabelled slices at both ends in ACDC, single slices in no order in Sunnybrook."""
    folder = tmp_path_factory.mktemp("packs")
    structures = np.zeros((6, 140, 140), np.uint8)
    structures[:, 50:90, 50:90] = 1
    structures[:, 55:85, 55:85] = 2
    structures[1:5, 60:80, 60:80] = 3
    acdc = {
        f"p{number:03d}_{frame}_{part}": ramp(6, 140) if part == "img" else structures
        for number in range(50)
        for frame in ("f01", "f12")
        for part in ("img", "lab")
    }
    np.savez(folder / "acdc50.npz", meta="{}", **acdc)
    outline = np.zeros((5, 160, 160), np.uint8)
    outline[:, 70:90, 70:90] = 1
    # Slices 2, 1 and 3 of phase 7, then 1 and 2 of phase 19.
    images = np.array([2 * 20 + 8, 1 * 20 + 8, 3 * 20 + 8, 1 * 20 + 20, 2 * 20 + 20], np.int16)
    sunnybrook = {}
    patients = ("SC-N-06", "SC-HF-NI-13", *(f"SC-HF-I-{number:02d}" for number in range(23)))
    for number, patient in enumerate(patients):
        image = ramp(5, 160)
        # No two patients have the same image.
        image[:, 80, 80] = 100 + number
        sunnybrook |= {f"{patient}_img": image, f"{patient}_lab": outline, f"{patient}_im": images}
    np.savez(folder / "sunnybrook25.npz", meta="{}", **sunnybrook)
    return folder


@pytest.fixture(autouse=True)
def packs_are_here(packs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDFM_RL_DATA", str(packs))
