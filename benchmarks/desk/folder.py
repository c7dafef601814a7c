"""Thousands of SIMULATED cases for a desk, and a service on them that can be killed and started again."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from medfm_rl.data.files import hash_file
from medfm_rl.data.labels import hash_labels
from medfm_rl.data.layouts import SIMULATION_RECORD
from medfm_rl.feedback import FeedbackStore
from medfm_rl.service.access import Access
from medfm_rl.service.database import Database

SIDE = 256
STRUCTURES = ("LV", "MYO")
PASSWORD = "only-for-this-benchmark"


@dataclass
class Place:
    """A folder with cases.

    Attributes:
        path: The folder.
    """

    path: Path

    @property
    def store(self) -> Path:
        """The feedback store."""
        return self.path / "feedback.sqlite"

    @property
    def scores(self) -> Path:
        """What `score` would have written."""
        return self.path / "scores"


def make_place(path: Path, cases: int, reviewers: int) -> Place:
    """Writes images, masks and scores unless they are there, and a new store with users."""
    place = Place(path)
    if not (place.scores / "scores.json").exists():
        _write_cases(place, cases)
    for old in path.glob("feedback.sqlite*"):
        if old.is_file():
            old.unlink()
    FeedbackStore.create(place.store).close()
    access = Access.of_store(Database(place.store))
    access.set_user("benchmark", "chief", "administrator", PASSWORD)
    for number in range(reviewers):
        access.set_user("benchmark", f"r{number:02d}", "reviewer", PASSWORD)
    return place


def _write_cases(place: Place, cases: int) -> None:
    images, masks, records = place.path / "images", place.scores / "masks", place.scores / "cases" / "score"
    for folder in (images, masks, records):
        folder.mkdir(parents=True, exist_ok=True)
    (images / SIMULATION_RECORD).write_text('{"simulated": true}')
    rows, columns = np.mgrid[:SIDE, :SIDE]
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 60, (SIDE, 2 * SIDE), dtype=np.uint8)
    found = []
    for number in range(cases):
        distance = np.hypot(rows - rng.uniform(100, 156), columns - rng.uniform(100, 156))
        labels = np.zeros((SIDE, SIDE), np.uint8)
        labels[distance < 60] = 2
        labels[distance < 40] = 1
        begin = int(rng.integers(0, SIDE))
        image = np.array([70, 20, 150], np.uint8)[labels] + noise[:, begin : begin + SIDE]
        # No two images are the same, whatever the draws.
        image[0, :4] = [number % 250, number // 250 % 250, 1, 254]
        name = f"p{number:05d}_4CH"
        Image.fromarray(image).save(images / f"{name}.png", compress_level=1)
        Image.fromarray(labels).save(masks / f"{name}.png", compress_level=1)
        record = {"format": 2, "inputs": {"images": [hash_file(images / f"{name}.png")]}, "result": {}, "files": {}}
        (records / f"{name}.json").write_text(json.dumps(record))
        found.append(_scored(place, name, images / f"{name}.png", hash_labels(labels), float(rng.uniform(0.2, 0.8))))
    content = {
        "format": 5,
        "quality": "a" * 64,
        "segmenter": None,
        "batch_state": "holds",
        "problems": {},
        "cases": found,
    }
    (place.scores / "scores.json").write_text(json.dumps(content))


def _scored(place: Place, name: str, image: Path, labels: str, dice: float) -> dict[str, object]:
    return {
        "case_id": name,
        "patient_id": name.partition("_")[0],
        "image_files": [str(image)],
        "mask_file": str(place.scores / "masks" / f"{name}.png"),
        "mask": labels,
        "verdict": "refer",
        "action": "refer",
        "guarantee": "expected",
        "reasons": [f"predicted mean Dice {dice:.2f}"],
        "risk": 1 - dice,
        "shift_distance": 1.0,
        "rules": [],
        "scores": [
            {
                "structure": structure,
                "predicted_dice": dice,
                "low": dice - 0.1,
                "high": dice + 0.1,
                "mean_reward": dice,
                "worst_reward": dice,
                "worst_centre": [0, 0],
            }
            for structure in (*STRUCTURES, "mean")
        ],
    }


class Service:
    """`medfm-rl desk` in a process of its own, at a port that stays.

    Args:
        place: The cases.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._port = "0"
        self._process: subprocess.Popen[str] | None = None
        self.address = ""

    @property
    def pid(self) -> int:
        """Number of the process."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts it, and waits until it has told its address."""
        token = self._place.path / "token"
        if not token.exists():
            token.touch(0o600)
            token.write_text(secrets.token_urlsafe(32))
        command = [sys.executable, "-m", "medfm_rl", "desk", "--store", str(self._place.store)]
        command += ["--scores", str(self._place.scores), "--port", self._port, "--token-file", str(token)]
        command += ["--jobs", str(self._place.path / "jobs")]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        assert self._process.stdout is not None
        for line in self._process.stdout:
            found = re.search(r"Desk: (http://[^/]+:(\d+))/", line)
            if found is not None:
                self.address, self._port = found[1], found[2]
                return
        raise RuntimeError("the service ended before it told its address")

    def kill(self) -> None:
        """Ends it as a power cut would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def memory(self) -> float:
        """Resident memory in MiB."""
        with open(f"/proc/{self.pid}/status") as status:  # noqa: PTH123
            line = next(line for line in status if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024
