"""What a folder of results says, without the times: to compare an interrupted call with an uninterrupted one."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from safetensors.torch import load_file

_TIMES = frozenset({"time", "created", "seconds", "minutes", "since"})
"""Fields that say when or for how long, in JSON and tables."""
_TIME = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(\+\d\d:\d\d|Z)?|\d+(\.\d+)? ?(s|seconds|min|minutes)\b"
)
"""The same in texts."""
_TOLD = frozenset({"audit.jsonl", "log.txt", "expected.json"})
"""What a call told of itself, and how long it expected to take: a killed call has its lines in there too."""


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file below a folder by its relative name, logs and what locks leave apart."""
    return {
        path.relative_to(folder).as_posix(): _hash(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in _TOLD and not path.name.startswith(".medfm-rl.")
    }


def differences(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """Names of files that only one of two folders has, or that say something else."""
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    name = path.name
    if name.endswith(".safetensors"):
        for key, value in sorted(load_file(path).items()):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.contiguous().view(-1).numpy().tobytes())
    elif name.endswith((".nii", ".nii.gz")):
        image: Any = nib.load(path)
        digest.update(image.header.binaryblock)
        digest.update(np.asarray(image.dataobj).tobytes())
    elif name.endswith(".json"):
        digest.update(json.dumps(_without_times(json.loads(path.read_text())), sort_keys=True).encode())
    elif name.endswith(".csv"):
        rows = list(csv.DictReader(path.read_text().splitlines()))
        digest.update(json.dumps(_without_times(rows)).encode())
    elif name.endswith((".html", ".yaml", ".txt", ".md")):
        digest.update(_TIME.sub("", path.read_text()).encode())
    else:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _without_times(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_times(value) for key, value in content.items() if key not in _TIMES}
    if isinstance(content, list):
        return [_without_times(value) for value in content]
    return content
