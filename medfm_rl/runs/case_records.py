"""Records of what was made of a case and from what, so that a repeated call goes on where the last one ended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.data.files import append_lines, hash_path, write_json
from medfm_rl.data.images import hash_image
from medfm_rl.data.json_text import parse_json
from medfm_rl.data.labels import hash_labels
from medfm_rl.data.layouts import CaseFile
from medfm_rl.data.names import file_of_case
from medfm_rl.errors import DataError
from medfm_rl.networks import hash_weights
from medfm_rl.runs.identity import Identity
from medfm_rl.types import LabelMap, frame_ids
from medfm_rl.version import __version__

AUDIT_FILE = "audit.jsonl"
_FORMAT = 2
_LINE = "line"
"""In the record of a worker: what the audit log has not yet."""


class CaseRecords:
    """Records of a command in its output folder, one file for each case, and the audit log.

    A record holds the inputs, the result, and the hashes of the files that were written. One that was begun and not
    ended holds no result. That of a worker also holds the line for the audit log: the call that the worker serves adds
    it, in the order of its cases, when it takes the result.

    Args:
        out: Output folder.
        command: Whose records; those of other commands in the same folder are not looked at.
        identity: Identity of the run or segmenter that the command was given, for the audit log.
        of_worker: Whether a worker writes them, who leaves the audit log to the call.
    """

    def __init__(self, out: Path, command: str, identity: Identity | None = None, of_worker: bool = False) -> None:
        self.out = out
        self.command = command
        self.identity = Identity() if identity is None else identity
        self.of_worker = of_worker
        self.folder = out / "cases" / command

    def reuse(self, case_id: str, inputs: Mapping[str, Any]) -> Any | None:
        """The result of a case, where it came from the same inputs and its files are still there.

        A line that a worker has left in the record goes to the audit log.

        Args:
            case_id: The case.
            inputs: Hashes and settings that the result depends on, as JSON values.

        Raises:
            DataError: One of its files was changed since, and would be lost if the case were handled anew.
        """
        record = self._read(case_id)
        if record is None or record["files"] is None:
            return None
        files = {self.out / name: found for name, found in record["files"].items()}
        for path, found in files.items():
            if path.exists() and hash_path(path) != found:
                raise DataError(
                    f"{path}: was changed after it was written; move it elsewhere, and the case is handled anew"
                )
        if record["inputs"] != _as_json(inputs) or not all(path.exists() for path in files):
            return None
        if _LINE in record and not self.of_worker:
            self.log([record[_LINE]])
            self._write(case_id, {name: record[name] for name in ("inputs", "result", "files")})
        return record["result"]

    def is_complete(self, case_id: str) -> bool:
        """Whether a case has a result whose files are there, whatever it came from."""
        record = self._read(case_id)
        files = None if record is None else record["files"]
        return files is not None and all((self.out / name).exists() for name in files)

    def begin(self, case_id: str, inputs: Mapping[str, Any]) -> None:
        """Says that a case is handled anew: until `write`, its files are nobody's result."""
        self._write(case_id, {"inputs": inputs, "result": None, "files": None})

    def write(self, case_id: str, inputs: Mapping[str, Any], result: Any, outputs: Mapping[str, str]) -> None:
        """Records a case that is complete.

        Args:
            case_id: The case.
            inputs: As in `reuse`.
            result: JSON values, not None.
            outputs: What was written of the case, as `hash_files` gives it.
        """
        self._write(case_id, {"inputs": inputs, "result": result, "files": outputs})

    def close(
        self, case_id: str, inputs: Mapping[str, Any], result: Any, outputs: Mapping[str, str], line: Mapping[str, Any]
    ) -> None:
        """Records a case that is complete, and adds its line to the audit log.

        Args:
            case_id: The case.
            inputs: As in `reuse`.
            result: JSON values, not None.
            outputs: What was written of the case, as `hash_files` gives it.
            line: As in `log`.
        """
        content = {"inputs": inputs, "result": result, "files": outputs}
        if self.of_worker:
            content[_LINE] = line
        else:
            self.log([line])
        self._write(case_id, content)

    def close_mask(
        self,
        line: Mapping[str, Any],
        inputs: Mapping[str, Any],
        mask: LabelMap,
        files: Sequence[Path],
        result: Mapping[str, Any],
    ) -> None:
        """Records a case of which a mask was written, and adds its line to the audit log with hashes of all of it.

        Args:
            line: `case`, and what the command decided.
            inputs: As in `reuse`.
            mask: Class indices `(*S)`.
            files: What was written of the case.
            result: JSON values.
        """
        outputs = self.hash_files(files)
        # Of the mask both: of its labels, as in scores.json, and of its file.
        whole = {**line, "inputs": inputs, "mask": hash_labels(mask), "outputs": outputs}
        self.close(line["case"], inputs, result, outputs, whole)

    def hash_files(self, files: Sequence[Path]) -> dict[str, str]:
        """SHA-256 of files within the output folder, by their names in there."""
        return {path.relative_to(self.out).as_posix(): hash_path(path) for path in files}

    def files_of(self, case_id: str) -> dict[str, str]:
        """The files of a case with their hashes, as `write` recorded them; nothing where the case is not complete."""
        record = self._read(case_id)
        return {} if record is None or record["files"] is None else dict(record["files"])

    def require_own(self, case_id: str, path: Path, maker: Mapping[str, Any]) -> None:
        """Refuses a file that lies where one of this case would be written, and that something else made.

        Args:
            case_id: The case.
            path: The file, which may not exist.
            maker: Those of the inputs that say which model and settings make such files.

        Raises:
            DataError: No record says what made it, or another model did.
        """
        if not path.exists():
            return
        record = self._read(case_id)
        if record is None:
            raise DataError(
                f"{path}: is there already and no record says what made it; give another output folder, or move it away"
            )
        if any(record["inputs"].get(name) != value for name, value in _as_json(maker).items()):
            raise DataError(
                f"{path}: another model made it, or this one with other settings; give each its own output folder"
            )

    def require_no_others(self, case_id: str, path: Path) -> None:
        """Refuses a file of this case that another command wrote into the same folder.

        Raises:
            DataError: It did.
        """
        name = path.relative_to(self.out).as_posix()
        for folder in sorted((self.out / "cases").glob("*")):
            record = file_of_case(folder, case_id, ".json")
            found = None if record.parent == self.folder else _read_record(record)
            if found is not None and name in (found["files"] or {}):
                raise DataError(
                    f"{path}: is a result of `medfm-rl {record.parent.name}`; give each command its own output folder"
                )

    def log(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Adds what was handed out to the audit log; nothing is ever rewritten.

        Every line of every command begins with the same names: time, version, command, and who made or assessed the
        case.

        Args:
            lines: One for each case: `case`; `inputs`, as in `reuse`; `outputs`, as `hash_files` gives them; and what
                the command decided. A case that failed has a `problem` in place of inputs and outputs.
        """
        common = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "medfm_rl": __version__,
            "command": self.command,
            **asdict(self.identity),
        }
        append_lines(self.out / AUDIT_FILE, ({**common, **line} for line in lines))

    def _path(self, case_id: str) -> Path:
        return file_of_case(self.folder, case_id, ".json")

    def _write(self, case_id: str, content: Mapping[str, Any]) -> None:
        write_json(self._path(case_id), {"format": _FORMAT, **content})

    def _read(self, case_id: str) -> dict[str, Any] | None:
        return _read_record(self._path(case_id))


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    known = isinstance(content, dict) and content.get("format") == _FORMAT
    return content if known and {"inputs", "result", "files"} <= content.keys() else None


def label_path(out: Path, case_id: str) -> Path:
    """Where the mask of a case lies in an output folder."""
    return file_of_case(out / "labels", case_id, ".nii.gz")


def reward_path(out: Path, case_id: str) -> Path:
    """Where the reward map of a case lies in an output folder."""
    return file_of_case(out / "rewards", case_id, ".nii.gz")


def hash_settings(content: Any) -> str:
    """SHA-256 of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def hash_segmenter(segmenter: SegmenterAdapter) -> dict[str, str]:
    """Hashes of what makes the masks of a segmenter, but for image and prompts: `weights` as loaded, and `settings`.

    A segmenter in memory has no folder to be hashed, and other settings of inference give other masks.
    """
    return {"weights": hash_weights(segmenter), "settings": hash_settings(segmenter.inference_settings())}


def hash_case(file: CaseFile, segmenter: SegmenterAdapter | None) -> dict[str, Any]:
    """Hashes of the inputs of a mask: `images`, and `prompts` where a segmenter takes them.

    Args:
        file: The case.
        segmenter: Makes the mask; None where it came as a file.

    Raises:
        DataError: The case cannot be used, an image is missing, or there are no prompts for the case.
    """
    file.require_sound()
    hashes: dict[str, Any]
    if file.clip is None:
        hashes = {"images": [hash_image(path) for path in file.image_paths]}
    else:
        hashes = {"images": [file.clip.hash()], "frame": file.frame}
    prompts = None if segmenter is None else _hash_prompts(file, segmenter)
    return hashes if prompts is None else {**hashes, "prompts": prompts}


def _hash_prompts(file: CaseFile, segmenter: SegmenterAdapter) -> str | list[str | None] | None:
    """The hash of the prompts of a case, or those of all frames of a clip: of each, or of the clip as a whole."""
    if file.clip is not None and segmenter.segments_clips:
        return segmenter.prompt_hash_of_clip(frame_ids(str(file.clip_id), file.clip.count))
    if file.clip is None or file.frame is not None:
        return segmenter.prompt_hash(file.case_id)
    found = [segmenter.prompt_hash(name) for name in frame_ids(file.case_id, file.clip.count)]
    return None if found[0] is None else found


def _as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from a file: tuples are lists there."""
    values: dict[str, Any] = json.loads(json.dumps(content))
    return values
