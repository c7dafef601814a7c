"""Pydantic models in JSON files that say the number of their format."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from medfm_rl.data.files import read_versioned_json
from medfm_rl.errors import ModelError
from medfm_rl.settings.problems import describe_problem, field_of

Model = TypeVar("Model", bound=BaseModel)


def read_model(path: Path, kind: type[Model], newest: int, words: str, advice: str) -> Model:
    """Reads a model that `files.write_versioned_json` wrote.

    Args:
        path: The file.
        kind: The model.
        newest: The newest format that the caller knows.
        words: What it is, for the message.
        advice: What to do where the file cannot be used, for the message.

    Raises:
        ModelError: It is missing, damaged, or of a newer version.
    """
    content = read_versioned_json(path, newest, advice, ModelError)
    del content["format"]
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        what = ": ".join(part for part in (field_of(first["loc"]), describe_problem(first)) if part)
        raise ModelError(f"{path}: not {words} ({what}); {advice}") from error
