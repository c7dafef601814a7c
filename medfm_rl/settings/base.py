"""What all settings share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"], Field(description="auto: cuda, then mps, then cpu.")]


class Settings(BaseModel):
    """Base of all settings: frozen; an unknown field and a number that is not finite are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
