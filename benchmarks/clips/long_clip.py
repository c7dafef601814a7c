"""What a process takes that reads a long clip, measures masks of it and smooths others; started by `clips.speed`.

It imports no network's library, which alone takes as much.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from medfm_rl.anatomy.clips import measure_clip
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.anatomy.smoothing import smooth_over_time
from medfm_rl.data.clips.reading import find_clip
from medfm_rl.types import LabelSchema

_ECHO = LabelSchema(("background", "LV", "MYO", "LA"), (0, 1, 2, 3))
_SPACING = (0.2, 0.2)


def main() -> None:
    """Prints MB and milliseconds as JSON; the arguments of the process are the clip and an npy file of masks."""
    file = find_clip(Path(sys.argv[1]))
    assert file is not None
    clip = file.read("long", "p")
    count, size = len(clip.frames), clip.frames.shape[2:]
    noise = np.zeros((count, *size), np.uint8)
    for index in range(count):
        noise[index] = clip.frames[index, 0] > 100
    measure_clip(noise, LabelSchema(("background", "LV"), (0, 1)), "LV", _SPACING)
    found = {"peak_mb": _peak()}
    del noise
    start = time.process_time()
    smoothed = smooth_over_time(np.load(sys.argv[2]), load_anatomy("generic", _ECHO), "LV", _SPACING)
    found["smooth_ms"] = 1000 * (time.process_time() - start) / len(smoothed)
    print(json.dumps({**found, "peak_mb_smoothed": _peak()}))


def _peak() -> float:
    """MB. Not `ru_maxrss`, which counts what the process was before it became this one."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
