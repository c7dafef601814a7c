"""The base of all settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], Field(description="auto: cuda, then mps, then cpu.")]


class Settings(BaseModel):
    """Base of all settings: frozen; an unknown field and a number that is not finite are errors.

    Attributes:
        former_names: Fields by the names that they had in earlier versions; files with those are still read.
    """

    former_names: ClassVar[Mapping[str, str]] = {}

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
