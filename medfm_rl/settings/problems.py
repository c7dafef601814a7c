"""Problems that pydantic finds in a field, in words for the person who wrote it."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_TAGS: Final = {"intensity": {"name", "fields"}}
"""By field, what pydantic puts after its name to tell which of several forms was meant."""
_SHOWN: Final = 3


def list_problems(error: ValidationError) -> list[str]:
    """What is wrong with each field: its dotted name as it stands in the file, and `describe_problem`."""
    return [f"{_field_of(item['loc']) or '(whole file)'}: {describe_problem(item)}" for item in error.errors()]


def sum_up_problems(error: ValidationError) -> str:
    """The first of `list_problems` in one line, and how many more there are."""
    problems = list_problems(error)
    more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return "; ".join([*problems[:_SHOWN], *more])


def _field_of(location: tuple[int | str, ...]) -> str:
    parts = [
        part for before, part in zip(("", *location), location, strict=False) if part not in _TAGS.get(str(before), ())
    ]
    return ".".join(map(str, parts))


def describe_problem(item: ErrorDetails) -> str:
    """The problem of a field and, where it is one value, what was given; not which field it is."""
    match item["type"]:
        case "extra_forbidden":
            return "there is no such field; correct its name or remove it"
        case "missing":
            return "this field is needed"
    given, words = item["input"], in_our_words(item)
    return words if isinstance(given, dict | list | BaseModel) else f"{words}, not {given!r}"


def in_our_words(item: ErrorDetails) -> str:
    """The message, without pydantic's own name for what a validator of ours raises."""
    return item["msg"].removeprefix("Value error, ")
