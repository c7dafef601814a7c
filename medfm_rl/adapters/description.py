"""`segmenter.json`, the file that says what a segmenter folder of ours holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import BaseModel

from medfm_rl.adapters.checkpoints import read_json_object
from medfm_rl.data.files import versioned_json
from medfm_rl.data.json_models import read_model
from medfm_rl.errors import ModelError

DESCRIPTION: Final = "segmenter.json"
_FORMAT: Final = 1
_ADVICE: Final = "correct it there"

Described = TypeVar("Described", bound=BaseModel)


def read_described(folder: Path, model: type[Described]) -> Described:
    """Reads the file of a folder, as it stands: relative paths in it count from the folder.

    Raises:
        ModelError: It is missing, of another format, or a field is wrong.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise ModelError(f"{folder}: not a segmenter folder, there is no {DESCRIPTION}")
    return read_model(path, model, _FORMAT, "the description of a segmenter", _ADVICE)


def write_described(folder: Path, description: BaseModel) -> None:
    """Writes the file into a folder that is there."""
    text = versioned_json(_FORMAT, description.model_dump(mode="json"))
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")


def kind_of_folder(folder: Path) -> Any:
    """What the file says that the folder is; None where there is none that can be read."""
    try:
        return read_json_object(folder / DESCRIPTION, "").get("kind")
    except ModelError:
        return None
