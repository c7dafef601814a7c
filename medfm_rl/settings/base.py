"""The base of all settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medfm_rl import choices

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Device = Annotated[choices.Device, Field(description="auto: cuda, then mps, then cpu.")]


class Settings(BaseModel):
    """Base of all settings: frozen; an unknown field and a number that is not finite are errors.

    Attributes:
        former_names: Fields by the names that they had in earlier versions; files with those are still read.
    """

    former_names: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _paths_are_named(cls, values: Any) -> Any:
        for name, field in cls.model_fields.items() if isinstance(values, dict) else ():
            value = values.get(name)
            if isinstance(value, str) and not value.strip() and Path in (field.annotation, *get_args(field.annotation)):
                raise ValueError(f"{name} must name a file or folder; `.` is the one that the command is called in")
        return values

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
