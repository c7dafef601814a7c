"""`segmenter.json`, the file that says what a segmenter folder of ours holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError

from medfm_rl.adapters.checkpoints import read_json_object
from medfm_rl.errors import ModelError
from medfm_rl.settings.problems import describe_problem, field_of

DESCRIPTION: Final = "segmenter.json"
_FORMAT = 1

Described = TypeVar("Described", bound=BaseModel)


def read_described(folder: Path, model: type[Described]) -> Described:
    """Reads the file of a folder, as it stands: relative paths in it count from the folder.

    Raises:
        ModelError: It is missing, of another format, or a field is wrong.
    """
    path = folder / DESCRIPTION
    content = read_json_object(path, f"{folder}: not a segmenter folder, there is no {DESCRIPTION}")
    if content.pop("format", _FORMAT) != _FORMAT:
        raise ModelError(f'{path}: "format" must be {_FORMAT}')
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = (": ".join(filter(None, (field_of(item["loc"]), describe_problem(item)))) for item in error.errors())
        raise ModelError(f"{path}: {'; '.join(problems)}") from error


def write_described(folder: Path, description: BaseModel) -> None:
    """Writes the file into a folder that is there."""
    text = json.dumps({"format": _FORMAT, **description.model_dump(mode="json")}, indent=2)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def kind_of_folder(folder: Path) -> Any:
    """What the file says that the folder is; None where there is none that can be read."""
    try:
        return read_json_object(folder / DESCRIPTION, "").get("kind")
    except ModelError:
        return None
