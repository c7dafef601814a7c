"""Time of reading, segmenting and judging a frame, and the memory of a long clip."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.clips.dicom_clip import write_dicom_clip
from benchmarks.harness.recording import BENCHMARKS
from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.anatomy.clips import measure_clip
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.data.clips.reading import find_clip
from medfm_rl.data.clips.sequences import write_sequence
from medfm_rl.data.ultrasound.phantom import ECHO_SCHEMA, draw_heart, draw_pose, pose_of
from medfm_rl.reward.consistency import agreement_over_time
from medfm_rl.settings import NetworkSettings, PreprocessingSettings
from medfm_rl.types import Clip, Geometry, LabelMap
from medfm_rl.workflows.deploy.predict import segment_clip

_RULES_GRID = (256, 256)
_LONG = (200, (600, 800))
_MM = 150 / 256
_CHILD = "from benchmarks.clips.long_clip import main; main()"
_SHRUNK = 4
"""The long clip is drawn so much smaller."""


def measure_speed(folder: Path, quick: bool) -> dict[str, Any]:
    """CPU milliseconds a frame, the best of some runs, and MB of a long clip.

    Args:
        folder: For files that are read.
        quick: Whether a small clip stands for the long one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    masks = beating_masks(24, _RULES_GRID)
    count, size = (8, (120, 160)) if quick else _LONG
    frames = np.random.default_rng(0).integers(0, 255, (count, *size), dtype=np.uint8)
    dicom, nifti = folder / "long.dcm", folder / "long.nii.gz"
    write_dicom_clip(dicom, frames)
    few = frames[: max(2, count // 8)]
    write_sequence(nifti, few, Geometry((0.2, 0.2), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0)), None)
    rules = _best(lambda: measure_clip(masks, ECHO_SCHEMA, "LV", (_MM, _MM)), len(masks), 5)
    anatomy = load_anatomy("echo_apical", ECHO_SCHEMA)
    static = _best(lambda: [anatomy.check(mask, (_MM, _MM)) for mask in masks], len(masks), 3)
    drawn = folder / "long-masks.npy"
    np.save(drawn, jumping(count, size))
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, str(dicom.resolve()), str(drawn.resolve())],
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
        cwd=BENCHMARKS.parent,
    )
    clip = Clip("c", "p", few[:8, None].astype(np.float32), None, Geometry.unknown(2))
    network = TorchModuleAdapter.build_unet(NetworkSettings(), ECHO_SCHEMA, PreprocessingSettings()).eval()
    small = masks[:8]
    shown = np.random.default_rng(0).normal(100, 30, small.shape).astype(np.float32)
    return {
        "rules_over_time_ms": rules,
        "static_rules_ms": static,
        "neighbours_ms": _best(lambda: agreement_over_time(shown, small, ECHO_SCHEMA.classes), len(small), 2),
        "read_ms": {
            f"DICOM {size[1]} x {size[0]}": _best(lambda: _read(dicom), count, 2),
            f"NIfTI {size[1]} x {size[0]}": _best(lambda: _read(nifti), len(few), 2),
        },
        "segment_ms": _best(lambda: segment_clip(network, None, clip), len(clip.frames), 2),
        "threads": torch.get_num_threads(),
        "long_clip": {"frames": count, "size": list(size)},
        **json.loads(child.stdout),
    }


def jumping(count: int, size: tuple[int, int]) -> LabelMap:
    """Masks `(T, H, W)` of the SIMULATED heart, of which every second frame lies a little to the side."""
    small = beating_masks(count, (size[0] // _SHRUNK, size[1] // _SHRUNK))
    masks = small.repeat(_SHRUNK, axis=1).repeat(_SHRUNK, axis=2)
    masks[::2] = np.roll(masks[::2], size[1] // 20, axis=2)
    return masks


def beating_masks(count: int, size: tuple[int, int]) -> LabelMap:
    """Masks `(T, H, W)` of the SIMULATED heart over a beat."""
    heart = draw_heart(np.random.default_rng(0))
    shares = (1 - np.cos(2 * np.pi * np.arange(count) / count)) / 2
    poses = [pose_of(heart, "4CH", float(share) * heart.contraction) for share in shares]
    return np.stack([draw_pose(pose, size, np.random.default_rng(0))[1] for pose in poses])


def _read(path: Path) -> None:
    found = find_clip(path)
    assert found is not None
    # Not what is kept of the last reading.
    path.touch()
    found.read("c", "p")


def _best(work: Callable[[], object], frames: int, times: int) -> float:
    """The least CPU milliseconds a frame: what else runs on the machine counts as little as it can."""
    work()
    spent = []
    for _ in range(times):
        start = time.process_time()
        work()
        spent.append(1000 * (time.process_time() - start) / frames)
    return min(spent)
