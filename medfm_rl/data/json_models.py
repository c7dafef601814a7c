"""Models and dataclasses in JSON files that say the number of their format."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from medfm_rl.data.files import read_versioned_json
from medfm_rl.errors import ModelError, UserError
from medfm_rl.settings.problems import sum_up_problems

Model = TypeVar("Model")


def read_model(
    path: Path, kind: type[Model], newest: int, words: str, advice: str, error: type[UserError] = ModelError
) -> Model:
    """Reads a model that `files.write_versioned_json` wrote.

    Args:
        path: The file.
        kind: The model, of pydantic or a dataclass.
        newest: The newest format that the caller knows.
        words: What it is, for the message.
        advice: What to do where the file cannot be used, for the message.
        error: What to raise.

    Raises:
        UserError: It is missing, damaged, or of a newer version; of the type `error`.
    """
    content = read_versioned_json(path, newest, advice, error)
    del content["format"]
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as problem:
        raise error(f"{path}: not {words} ({sum_up_problems(problem)}); {advice}") from problem
