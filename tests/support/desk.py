"""A folder for the desk without any network: a store, scored images, a volume and a clip, all SIMULATED.

`python -m support.desk FOLDER [COUNT]` (with tests on the path) makes one to open a desk on.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medfm_rl.data.clips.sequences import write_sequence
from medfm_rl.data.images import hash_image, write_image, write_labels
from medfm_rl.data.labels import hash_labels
from medfm_rl.data.layouts import SIMULATION_RECORD
from medfm_rl.feedback import FeedbackStore
from medfm_rl.runs.stream_history import StreamIdentity, StudyCase
from medfm_rl.runs.stream_state import add_studies
from medfm_rl.types import Geometry, LabelSchema

SCHEMA = LabelSchema.from_structures({"LV": 1, "MYO": 2})
PLANE = Geometry((0.8, 0.6), (3.0, -1.5), (1.0, 0.0, 0.0, 1.0))
SPACE = Geometry((0.8, 0.6, 5.0), (3.0, -1.5, 7.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
SIZE = (48, 64)
FRAMES, PLANES = 8, 5


@dataclass(frozen=True)
class DeskFolder:
    """Where everything lies.

    Attributes:
        store: The feedback store, empty.
        images: The images.
        scores: What `score` would have written.
        corrections: What `correct` would have written.
        stream: A stream with one mask drawn for audit.
    """

    store: Path
    images: Path
    scores: Path
    corrections: Path
    stream: Path


def make_desk_folder(folder: Path, count: int = 6, volume: bool = True, clip: bool = True) -> DeskFolder:
    """Writes it.

    Of the images the first is accepted and drawn for audit; of the others every third is referred, with a speck that
    breaks a rule, the next is to be corrected, and the next has a correction to compare with.

    Args:
        folder: Where; it is made.
        count: Images.
        volume: Whether a volume is among the cases.
        clip: Whether the frames of a clip are.
    """
    images, scores, corrected = folder / "images", folder / "scores", folder / "corrected"
    images.mkdir(parents=True, exist_ok=True)
    (images / SIMULATION_RECORD).write_text(json.dumps({"simulated": True}))
    for name in ("masks", "rewards", "cases/score"):
        (scores / name).mkdir(parents=True, exist_ok=True)
    (corrected / "labels").mkdir(parents=True, exist_ok=True)
    cases: list[dict[str, Any]] = []
    corrections: list[dict[str, Any]] = []
    for number in range(count):
        name = f"p{number:04d}_4CH"
        labels = rings(SIZE, number)
        action = "use" if number == 0 else ("refer", "correct", "correct")[number % 3]
        if action == "refer":
            labels[2:5, 3:6] = 1
        path = images / f"{name}.nii.gz"
        write_image(path, greys(labels, number), PLANE)
        cases.append(_scored(scores, name, path, labels, PLANE, action, number))
        if number and number % 3 == 2:
            better = np.where(rings(SIZE, number + 1) > 0, rings(SIZE, number + 1), 0).astype(np.uint8)
            write_labels(corrected / "labels" / f"{name}.nii.gz", better, PLANE, SCHEMA)
            corrections.append({"case": name, "decision": "corrected", "reasons": ["the verifier prefers it"]})
    if volume:
        labels = np.stack([rings(SIZE, plane) for plane in range(PLANES)])
        path = images / "v01_short.nii.gz"
        write_image(path, greys(labels, 50), SPACE)
        cases.append(_scored(scores, "v01_short", path, labels, SPACE, "correct", 50))
    if clip:
        cases += _clip(images, scores)
    _write_scores(scores, cases)
    (corrected / "corrections.json").write_text(json.dumps({"format": 1, "cases": corrections, "problems": {}}))
    store = folder / "feedback.sqlite"
    FeedbackStore.create(store).close()
    return DeskFolder(store, images, scores, corrected, _stream(folder / "stream.jsonl", cases[0]))


def rings(size: tuple[int, int], seed: int) -> np.ndarray:
    """A ventricle in its wall, somewhere about the middle: labels 1 and 2."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: size[0], : size[1]]
    y, x = rows - size[0] / 2 - rng.uniform(-3, 3), columns - size[1] / 2 - rng.uniform(-3, 3)
    distance, radius = np.hypot(y, x), rng.uniform(6, 9)
    labels = np.zeros(size, np.uint8)
    labels[distance < radius + 4] = 2
    labels[distance < radius] = 1
    return labels


def greys(labels: np.ndarray, seed: int) -> np.ndarray:
    """An image of 8 bits in which the structures are seen."""
    noise = np.random.default_rng(seed).integers(0, 40, labels.shape)
    return (np.array([60, 20, 160])[labels] + noise).astype(np.uint8)


def _scored(
    scores: Path, name: str, image: Path, labels: np.ndarray, grid: Geometry, action: str, seed: int
) -> dict[str, Any]:
    mask = scores / "masks" / f"{name}.nii.gz"
    write_labels(mask, labels, grid, SCHEMA)
    reward = np.where(labels > 0, 0.8, 0.95).astype(np.float32)
    write_image(scores / "rewards" / f"{name}.nii.gz", reward, grid)
    return _report(scores, name, [str(image)], [hash_image(image)], mask, labels, action, seed)


def _report(
    scores: Path, name: str, files: list[str], hashes: list[str], mask: Path, labels: np.ndarray, action: str, seed: int
) -> dict[str, Any]:
    dice = {"use": 0.93, "correct": 0.71, "refer": 0.42}[action] + 0.001 * (seed % 10)
    speck = action == "refer"
    record = {"format": 2, "inputs": {"images": hashes}, "result": {}, "files": {}}
    (scores / "cases" / "score" / f"{name}.json").write_text(json.dumps(record))
    return {
        "case_id": name,
        "patient_id": name.split("_")[0],
        "image_files": files,
        "mask_file": str(mask),
        "mask": hash_labels(labels),
        "verdict": "accept" if action == "use" else action,
        "action": action,
        "guarantee": "expected",
        "reason_code": "rules" if speck else "predicted_dice",
        "reasons": [f"predicted mean Dice {dice:.2f}"] + (["LV has 2 parts"] if speck else []),
        "risk": 1 - dice,
        "shift_distance": 1.0,
        "scores": [
            {
                "structure": structure,
                "predicted_dice": dice,
                "low": dice - 0.1,
                "high": min(1.0, dice + 0.05),
                "mean_reward": 0.8,
                "worst_reward": 0.4,
                "worst_centre": [size // 2 for size in labels.shape],
            }
            for structure in (*SCHEMA.structures, "mean")
        ],
        "rules": [
            {
                "rule": "components",
                "structure": "LV",
                "other": None,
                "measured": 2.0 if speck else 1.0,
                "least": None,
                "most": 1.0,
                "unit": "parts",
                "source": "",
                "passed": not speck,
            }
        ],
    }


def _clip(images: Path, scores: Path) -> list[dict[str, Any]]:
    labels = np.stack([rings(SIZE, 7) for _ in range(FRAMES)])
    for frame in range(FRAMES):
        rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
        radius = 6 + 3 * np.cos(2 * np.pi * frame / FRAMES)
        labels[frame][labels[frame] == 1] = 2
        labels[frame][np.hypot(rows - SIZE[0] / 2, columns - SIZE[1] / 2) < radius] = 1
    path = images / "c01_loop.nii.gz"
    write_sequence(path, greys(labels, 70), PLANE, tuple(0.04 * frame for frame in range(FRAMES)))
    found = []
    for frame in range(FRAMES):
        name = f"c01_loop_frame{frame:03d}"
        mask = scores / "masks" / f"{name}.nii.gz"
        write_labels(mask, labels[frame], PLANE, SCHEMA)
        write_image(scores / "rewards" / f"{name}.nii.gz", np.full(SIZE, 0.7, np.float32), PLANE)
        found.append(_report(scores, name, [str(path)], [hash_image(path)], mask, labels[frame], "correct", frame))
    return found


def _write_scores(scores: Path, cases: list[dict[str, Any]]) -> None:
    content = {
        "format": 5,
        "quality": "a" * 64,
        "segmenter": None,
        "batch_state": "holds",
        "problems": {},
        "cases": cases,
    }
    (scores / "scores.json").write_text(json.dumps(content))
    line = {"command": "score", "case": cases[0]["case_id"], "made_by": "b" * 64}
    (scores / "audit.jsonl").write_text(json.dumps(line) + "\n")


def _stream(path: Path, case: dict[str, Any]) -> Path:
    identity = StreamIdentity("scanner", "protocol", "site", "a" * 64, seed=0, audit_share=1.0)
    mask = StudyCase(case["case_id"], case["mask"], "accept", 0.9, 0.8, 1.0, ())
    add_studies(path, identity, {case["patient_id"]: [mask]})
    return path


if __name__ == "__main__":
    made = make_desk_folder(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 6)
    sys.stdout.write(
        f"medfm-rl desk --store {made.store} --scores {made.scores} --corrections {made.corrections} "
        f"--stream {made.stream} --accepted"
    )
