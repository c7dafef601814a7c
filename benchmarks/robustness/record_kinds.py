"""JSON and tables that commands read: descriptions, scores, boxes, and records of a run."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.robustness.comparing import SCHEMA, given_values_disagree
from benchmarks.robustness.kind import Kind, UnknownError, UnreadableError
from benchmarks.robustness.text_faults import JSON, TEXT
from medfm_rl.adapters.sam.prompts import BoxesFromFile
from medfm_rl.correction.acceptance import Acceptance, HarmTarget
from medfm_rl.data.layouts.description import Description
from medfm_rl.data.names import case_name
from medfm_rl.reward.fusion import read_fusion
from medfm_rl.runs.inputs import load_inputs
from medfm_rl.runs.scores import Scores
from medfm_rl.settings.prompts import FilePrompts

_SCORES = {
    "format": 4,
    "medfm_rl": "0.2",
    "quality": "ab" * 32,
    "segmenter": "cd" * 32,
    "batch_state": "holds",
    "cases": [
        {
            "case_id": f"p{number}",
            "patient_id": f"p{number}",
            "verdict": verdict,
            "mask": "ef" * 32,
            "scores": [
                {
                    "structure": "mean",
                    "predicted_dice": 0.5,
                    "low": 0.25,
                    "high": 0.75,
                    "mean_reward": 0.5,
                    "worst_reward": 0.25,
                    "worst_centre": [3, 4],
                }
            ],
            "rules": [],
            "shift_distance": 1.5,
        }
        for number, verdict in enumerate(("accept", "correct", "refer"))
    ],
    "problems": {"p9": {"problem": "p9.png: cannot be read", "verdict": "refer"}},
}
_BOXES: dict[str, dict[str, list[float]]] = {
    "p1": {"LV": [1, 2, 30, 40], "LA": [5.5, 6, 7, 8]},
    "p2": {"MYO": [0, 0, 9, 9]},
}
_FUSION = {"format": 2, "members": ["member-0", "member-1"], "fusion": "mean", "pessimism": 0.5}
_DATASET = {
    "labels": {"background": 0, "LV": 1, "MYO": 2, "LA": 3},
    "channel_names": {"0": "US"},
    "file_ending": ".png",
    "numTraining": 2,
    "dataset": {
        "p1": {"images": ["imagesTr/p1.png"], "label": "labelsTr/p1.png"},
        "p2": {"images": ["b.png"], "label": "c.png"},
    },
}
_INPUTS = {
    "format": 2,
    "medfm_rl": "0.2",
    "inputs": {"target": {"path": "/data/b", "files": {"a.png": "ab" * 32}, "cases": {"a": "a"}, "hash": "cd" * 32}},
}
_ACCEPTANCE = Acceptance(
    version="0.2",
    created="2026-01-01T00:00:00+00:00",
    cases=20,
    patients=10,
    proposals=8,
    target=HarmTarget(),
    margin=0.02,
    reason="harm is rare",
    segmenter="ab" * 32,
    reward="cd" * 32,
    rules="ef" * 32,
    settings={"method": "views"},
)


def _write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps(content, indent=1))
    return path


def _write_boxes(folder: Path) -> Path:
    path = folder / "boxes.csv"
    rows = ["case,structure,x_min,y_min,x_max,y_max"]
    rows += [
        f"{case},{name},{','.join(map(str, box))}" for case, boxes in _BOXES.items() for name, box in boxes.items()
    ]
    path.write_text("\n".join(rows) + "\n")
    return path


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise UnreadableError("a key twice")
    return dict(pairs)


def _json(path: Path) -> Any:
    return json.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), object_pairs_hook=_once)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UnreadableError(f"{value!r} is no text")
    return value


def equal(found: Any, expected: Any) -> str:
    """What differs, where two plain values do."""
    return "" if found == expected else f"{str(found)[:200]}, and {str(expected)[:200]} by the oracle"


def _read_scores(path: Path) -> Any:
    scores = Scores.read(path)
    verdicts = {name: case.verdict for name, case in scores.cases.items()} | dict.fromkeys(scores.problems, "refer")
    masks = {name: case.mask for name, case in scores.cases.items()}
    return verdicts, masks, scores.quality, scores.segmenter, scores.state


def _scores_oracle(path: Path) -> Any:
    content = _json(path)
    verdicts = [(_text(case["case_id"]), _text(case["verdict"])) for case in content["cases"]]
    verdicts += [(name, "refer") for name in content["problems"]]
    if len(dict(verdicts)) < len(verdicts) or not {verdict for _, verdict in verdicts} <= {
        "accept",
        "correct",
        "refer",
    }:
        raise UnreadableError("a case twice, or no verdict")
    masks = {case["case_id"]: _text(case["mask"]) for case in content["cases"]}
    return dict(verdicts), masks, _text(content["quality"]), content["segmenter"], _text(content["batch_state"])


def _boxes_of(path: Path) -> Any:
    return BoxesFromFile(FilePrompts(kind="from_file", path=path), SCHEMA).table


def _boxes_oracle(path: Path) -> Any:
    if path.suffix == ".json":
        table = [(case, name, box) for case, boxes in _json(path).items() for name, box in boxes.items()]
        empty: dict[str, dict[str, tuple[float, ...]]] = {
            case_name(case): {} for case, boxes in _json(path).items() if not boxes
        }
        if len({case_name(case) for case in _json(path)}) < len(_json(path)):
            raise UnreadableError("a case twice")
    else:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
        head, rows = rows[0], [row for row in rows[1:] if row]
        if len(set(head)) < len(head) or any(len(row) != len(head) for row in rows):
            raise UnreadableError("a column twice, or a row of another length")
        read = [dict(zip(head, row, strict=True)) for row in rows]
        table = [
            (row["case"], row["structure"], [row[name] for name in ("x_min", "y_min", "x_max", "y_max")])
            for row in read
        ]
        empty = {}
    found: dict[str, dict[str, tuple[float, ...]]] = dict(empty)
    for case, name, box in table:
        if name not in SCHEMA.structures or len(box) != 4 or any(isinstance(value, bool | None) for value in box):
            raise UnreadableError(f"{name} {box}")
        boxes = found.setdefault(case_name(case), {})
        if name in boxes:
            raise UnreadableError("a box twice")
        boxes[name] = tuple(float(value) for value in box)
    return found


def _read_description(path: Path) -> Any:
    description = Description.read(path.parent)
    if description is None:
        return None
    labels = None if description.labels is None else description.labels.integers()
    listed = [(case.name, [str(image) for image in case.images], str(case.label)) for case in description.listed()]
    return labels, listed, description.channels, description.ending


def _description_oracle(path: Path) -> Any:
    if not path.is_file():
        return None
    content = json.loads(path.read_bytes(), object_pairs_hook=_once)
    labels = content.get("labels")
    if labels is not None:
        if not all(str(value).isdigit() and int(str(value)) < 256 for value in labels.values()):
            raise UnknownError("labels the other way round, or regions")
        labels = {name: int(value) for name, value in labels.items()}
    listed = []
    for name, item in content.get("dataset", {}).items():
        files = [item["images"]] if isinstance(item["images"], str) else item["images"]
        label = item.get("label")
        listed.append(
            (name, [str(path.parent / _text(file)) for file in files], str(label and path.parent / _text(label)))
        )
    if "dataset" not in content and "channel_names" not in content:
        raise UnknownError("lists of another tool")
    channels = content.get("channel_names", content.get("modality"))
    if not isinstance(channels, dict | list) or not channels:
        raise UnreadableError("channels")
    return labels, listed, len(channels), "." + content["file_ending"].lower().lstrip(".")


def _read_fusion(path: Path) -> Any:
    settings, members = read_fusion(path.parent)
    return members, settings.fusion, settings.pessimism


def _fusion_oracle(path: Path) -> Any:
    content = _json(path)
    members = content["members"]
    if not isinstance(members, list) or not members or len(set(map(_text, members))) < len(members):
        raise UnreadableError("members")
    return members, content["fusion"], float(content["pessimism"])


def _read_inputs(path: Path) -> Any:
    return {name: asdict(found) for name, found in load_inputs(path).items()}


def _inputs_oracle(path: Path) -> Any:
    content = _json(path)
    if "format" not in content:
        raise UnknownError("an older version")
    found = {}
    for name, place in content["inputs"].items():
        if not isinstance(place["files"], dict) or not all(isinstance(value, str) for value in place["files"].values()):
            raise UnreadableError("files")
        if place["path"] is not None:
            _text(place["path"])
        found[name] = {"path": place["path"], "files": place["files"], "cases": place["cases"]}
        if place["cases"] is not None and not all(isinstance(value, str) for value in place["cases"].values()):
            raise UnreadableError("cases")
    return found


def kinds() -> list[Kind]:
    """Every file of JSON or CSV that a command reads."""

    def of_json(name: str, file: str, content: Any, read: Callable[[Path], Any], oracle: Callable[[Path], Any]) -> Kind:
        return Kind(name, partial(_write, name=file, content=content), JSON, read, oracle, equal)

    acceptance = json.loads(_ACCEPTANCE.model_dump_json())
    return [
        of_json("scores.json", "scores.json", _SCORES, _read_scores, _scores_oracle),
        of_json("boxes, JSON", "boxes.json", _BOXES, _boxes_of, _boxes_oracle),
        Kind("boxes, CSV", _write_boxes, TEXT, _boxes_of, _boxes_oracle, equal),
        of_json("dataset.json", "dataset.json", _DATASET, _read_description, _description_oracle),
        of_json("fusion.json", "fusion.json", _FUSION, _read_fusion, _fusion_oracle),
        of_json("inputs.json", "inputs.json", _INPUTS, _read_inputs, _inputs_oracle),
        Kind(
            "correction.json",
            partial(_write, name="correction.json", content=acceptance),
            JSON,
            lambda path: Acceptance.read(path).model_dump(mode="json"),
            _json,
            given_values_disagree,
        ),
    ]
