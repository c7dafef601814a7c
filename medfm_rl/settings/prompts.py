"""Prompts: where a promptable segmenter is told to look, with each image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from medfm_rl.settings.base import Fraction, Settings


class FixedPrompts(Settings):
    """The same boxes for every image (kind fixed)."""

    kind: Literal["fixed"] = Field(description="fixed: the same boxes for every image.")
    boxes: dict[str, tuple[Fraction, Fraction, Fraction, Fraction]] = Field(
        description="By structure: x_min, y_min, x_max, y_max as fractions of the image's width and height."
    )

    @field_validator("boxes")
    @classmethod
    def _corners_are_in_order(
        cls, boxes: dict[str, tuple[float, float, float, float]]
    ) -> dict[str, tuple[float, float, float, float]]:
        for name, (x_min, y_min, x_max, y_max) in boxes.items():
            if x_min >= x_max or y_min >= y_max:
                raise ValueError(f"{name}: needs x_min < x_max and y_min < y_max")
        return boxes


class FilePrompts(Settings):
    """Boxes from a file (kind from_file)."""

    kind: Literal["from_file"] = Field(description="from_file: boxes by case and structure.")
    path: Path = Field(
        description="CSV with the columns case, structure, x_min, y_min, x_max, y_max in pixels of the image, or JSON "
        "{case: {structure: [x_min, y_min, x_max, y_max]}}."
    )


class MaskPrompts(Settings):
    """Boxes of the masks that another segmenter made (kind from_masks)."""

    kind: Literal["from_masks"] = Field(description="from_masks: boxes of masks that another segmenter made.")
    path: Path = Field(description="Folder of masks with the names of the images, such as labels/ of predict.")
    margin: float = Field(0.0, ge=0, description="Pixels of the image by which each side is moved outwards.")
    jitter: float = Field(
        0.0, ge=0, description="Each side is moved by up to so many pixels, at random; the same for a case each time."
    )
    seed: int = Field(0, ge=0, description="Seed of the jitter.")


PromptSettings = Annotated[FixedPrompts | FilePrompts | MaskPrompts, Field(discriminator="kind")]
"""Where the prompts of a promptable segmenter come from."""


class TextPrompts(Settings):
    """Words for each structure (kind text)."""

    kind: Literal["text"] = Field("text", description="text: words for each structure.")
    texts: dict[str, str] = Field(
        default_factory=dict,
        description="By structure, what to look for: {LV: left heart ventricle in cardiac ultrasound}. A structure "
        "that is not here is asked for by its name.",
    )

    @field_validator("texts")
    @classmethod
    def _each_is_one_prompt(cls, texts: dict[str, str]) -> dict[str, str]:
        for name, text in texts.items():
            if not text.strip() or "[SEP]" in text:
                raise ValueError(f"{name}: needs words for one prompt, without [SEP]")
        return texts
