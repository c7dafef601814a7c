"""Anatomy rules as data: what each of them measures in a mask, and the limits that the measure must keep.

A structure may be a union, such as `LV+MYO`. Distances and sizes are in mm where the spacing of the mask is known.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import ndimage

from medfm_rl.anatomy.measures import MaskView, centre, count_parts, grow, part_sizes, shifted
from medfm_rl.errors import DataError
from medfm_rl.types import BACKGROUND, LabelSchema

EACH = "each"
_BISECTIONS = 6


class Rule(BaseModel, ABC):
    """A rule: a structure, what to measure in it, the limits, and who says so."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    unit: ClassVar[str] = "share"
    measures_other: ClassVar[bool] = False
    """Whether the rule measures the other structure itself, and not only where it meets the first."""

    structure: str = Field(description="A structure, a union such as `LV+MYO`, or `each` for all of them one by one.")
    source: str = Field("", description="Where the rule and its limit come from.")
    optional: bool = Field(False, description="Whether a mask without the structure meets the rule.")
    whole: bool = Field(
        False, description="Whether the rule is of the whole volume where the others are checked plane by plane."
    )

    @abstractmethod
    def measure(self, view: MaskView) -> float:
        """The measured value; every structure that the rule names is there.

        Infinite where a ratio is over nothing, and NaN where there is nothing to measure.
        """

    def limits(self) -> tuple[float | None, float | None]:
        """Least and most that is allowed; None where there is no limit."""
        return getattr(self, "least", None), getattr(self, "most", None)

    def unit_of(self, view: MaskView) -> str:
        """Unit of the measured value."""
        del view
        return self.unit

    def measures_background(self) -> bool:
        """Whether the size or the place of the background matters, beyond what lies around the structures."""
        measured = self.names() if self.measures_other else (self.structure,)
        return any(BACKGROUND in union.split("+") for union in measured)

    def names(self) -> tuple[str, ...]:
        """The structures, or unions of them, that must be there."""
        other = getattr(self, "other", None)
        return (self.structure,) if other is None else (self.structure, other)


class _RangeRule(Rule):
    least: float
    most: float

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least ({self.least:g}) is above most ({self.most:g}): no mask can meet this rule")
        return self


class PresentRule(Rule):
    """The structure is not empty."""

    kind: Literal["present"] = "present"

    def measure(self, view: MaskView) -> float:
        return view.size(self.structure) * view.pixel_size

    def unit_of(self, view: MaskView) -> str:
        return view.size_unit


class ComponentsRule(Rule):
    """The structure has at most `most` connected parts; the smallest, together below `speck` of it, do not count."""

    unit: ClassVar[str] = "parts"
    kind: Literal["components"] = "components"
    most: int = Field(ge=1)
    speck: float = Field(0.01, ge=0, lt=1)

    def measure(self, view: MaskView) -> float:
        return float(count_parts(view.parts(self.structure), self.speck))


class HolesRule(Rule):
    """At most this share of the filled structure is hole."""

    kind: Literal["holes"] = "holes"
    most: float = Field(ge=0, le=1)
    of: Literal["anything", "background"] = Field(
        "anything",
        description="What is a hole where the structure encloses it: anything, or background alone, for a structure "
        "that others may lie in, as the ventricle does in its wall.",
    )

    def measure(self, view: MaskView) -> float:
        enclosed = view.holes(self.structure)
        if self.of == "background":
            enclosed = enclosed & view.mask(BACKGROUND)
        holes = int(np.count_nonzero(enclosed))
        return holes / (view.size(self.structure) + holes)


class ContactRule(_RangeRule):
    """At least / at most this share of the pixels just outside the structure belong to the other class."""

    kind: Literal["contact"] = "contact"
    other: str
    least: float = Field(0, ge=0, le=1)
    most: float = Field(1, ge=0, le=1)

    def measure(self, view: MaskView) -> float:
        grown = view.grown(self.structure)
        # The structure is part of what is grown, and no part of another; a union may share classes with the other.
        around = int(np.count_nonzero(grown)) - view.size(self.structure)
        touching = grown & view.mask(self.other) & ~view.mask(self.structure)
        return int(np.count_nonzero(touching)) / max(1, around)


class GapRule(Rule):
    """At most this share of the smaller of both structures lies as a slit between them.

    A slit is what a morphological closing of their union by `reach` pixels adds within that reach of both, together
    with what both enclose.
    """

    kind: Literal["gap"] = "gap"
    other: str
    most: float = Field(ge=0, le=1)
    reach: int = Field(2, ge=1, le=10)

    def measure(self, view: MaskView) -> float:
        mask, other = view.mask(self.structure), view.mask(self.other)
        union, near, near_other = mask | other, view.grown(self.structure), view.grown(self.other)
        closed = np.pad(union, self.reach, mode="edge")
        for step in range(self.reach):
            closed = grow(closed)
            if step > 0:
                near, near_other = grow(near), grow(near_other)
        open_ = ~closed
        for _ in range(self.reach):
            open_ = grow(open_)
        inner = ~open_[(slice(self.reach, -self.reach),) * mask.ndim]
        enclosed = view.holes(f"{self.structure}+{self.other}") & ~view.holes(self.structure) & ~view.holes(self.other)
        slit = (inner & near & near_other) | enclosed
        smaller = min(view.size(self.structure), view.size(self.other))
        return int(np.count_nonzero(slit & ~union)) / smaller


class SizeRule(_RangeRule):
    """The size of the structure lies between the two limits, in mm^2 or mm^3, or as a share of the image."""

    kind: Literal["size"] = "size"
    measured_in: Literal["mm", "share"]
    least: float = Field(ge=0)

    def measure(self, view: MaskView) -> float:
        size = view.size(self.structure)
        if self.measured_in == "share":
            return size / view.pixels
        if not view.has_spacing:
            raise DataError(
                f"rule size of {self.structure} has limits in mm and the spacing of this image is not known; give an "
                "image with a spacing, or learn the limits on images without one"
            )
        return size * view.pixel_size

    def unit_of(self, view: MaskView) -> str:
        return "share" if self.measured_in == "share" else view.size_unit


class SizeRatioRule(_RangeRule):
    """The size of the structure over the size of the other lies between the two limits."""

    unit: ClassVar[str] = "ratio"
    measures_other: ClassVar[bool] = True
    kind: Literal["size_ratio"] = "size_ratio"
    other: str
    least: float = Field(ge=0)

    def measure(self, view: MaskView) -> float:
        return view.size(self.structure) / view.size(self.other)


class WidthRatioRule(_RangeRule):
    """The width of the structure over that of the other, along the last axis through the centre of both together.

    A line that the other does not cross has no ratio: it is wider than any limit `most`. One that crosses neither has
    nothing to compare, as where a structure is missing.
    """

    unit: ClassVar[str] = "ratio"
    measures_other: ClassVar[bool] = True
    kind: Literal["width_ratio"] = "width_ratio"
    other: str
    least: float = Field(0, ge=0)
    most: float = Field(float(np.finfo(np.float64).max))

    def measure(self, view: MaskView) -> float:
        mask, other = view.mask(self.structure), view.mask(self.other)
        line = tuple(round(middle) for middle in centre(mask | other)[:-1])
        width, over = int(np.count_nonzero(mask[line])), int(np.count_nonzero(other[line]))
        if over == 0:
            return math.inf if width else math.nan
        return width / over


class FrontierRule(_RangeRule):
    """Length (area) of the border between both classes over the width (cross-section) of the structure.

    The border is the size of all faces of pixels between both, times what faces exceed a smooth border by on average
    over its directions (pi / 4 in 2-D, 2 / 3 in 3-D; Crofton's formula); the width is that of the bounding box across
    rows.
    """

    unit: ClassVar[str] = "ratio"
    kind: Literal["frontier"] = "frontier"
    other: str
    least: float = Field(0, ge=0)
    most: float = Field(float(np.finfo(np.float64).max))

    def measure(self, view: MaskView) -> float:
        mask, other = view.mask(self.structure), view.mask(self.other)
        border = 0.0
        for axis, size in enumerate(view.spacing):
            ahead, behind = shifted(mask.ndim, axis)
            faces = np.count_nonzero(mask[ahead] & other[behind]) + np.count_nonzero(mask[behind] & other[ahead])
            border += float(faces) * view.pixel_size / size
        box = view.box(self.structure)
        extent = [(part.stop - part.start) * size for part, size in zip(box, view.spacing, strict=True)]
        smooth = np.pi / 4 if mask.ndim == 2 else 2 / 3
        return float(smooth * border * extent[-2] / np.prod(extent))


class ThinnestRule(Rule):
    """The thinnest spot of the structure is at least this share of its thickest.

    What is measured is the largest share q of the thickest half-width by which the structure can be eroded without
    falling apart; 0 where it is in several parts as it is.
    """

    unit: ClassVar[str] = "ratio"
    kind: Literal["thinnest"] = "thinnest"
    least: float = Field(ge=0, le=1)
    speck: float = Field(0.05, ge=0, lt=1)

    def measure(self, view: MaskView) -> float:
        if count_parts(view.parts(self.structure), self.speck) > 1:
            return 0.0
        mask = view.mask(self.structure)[view.box(self.structure)]
        depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=view.spacing)
        low, high, deepest = 0.0, 1.0, float(depth.max())
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if count_parts(part_sizes(depth > middle * deepest), self.speck) > 1:
                high = middle
            else:
                low = middle
        return low


class AboveRule(Rule):
    """The centre of the structure lies nearer to the first row than that of the other."""

    measures_other: ClassVar[bool] = True
    kind: Literal["above"] = "above"
    other: str

    def measure(self, view: MaskView) -> float:
        # Rows are the last axis but one, in 2-D (H, W) as in 3-D (D, H, W).
        offset = centre(view.mask(self.other))[-2] - centre(view.mask(self.structure))[-2]
        return float(offset) * view.spacing[-2]

    def limits(self) -> tuple[float | None, float | None]:
        # The least number above 0: the same height is not above.
        return float(np.nextafter(0, 1)), None

    def unit_of(self, view: MaskView) -> str:
        return "mm" if view.has_spacing else "px"


AnyRule = Annotated[
    PresentRule
    | ComponentsRule
    | HolesRule
    | ContactRule
    | GapRule
    | SizeRule
    | SizeRatioRule
    | WidthRatioRule
    | FrontierRule
    | ThinnestRule
    | AboveRule,
    Field(discriminator="kind"),
]


class Profile(BaseModel):
    """A file of rules."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    rules: tuple[AnyRule, ...]
    planes: bool = Field(
        False, description="Whether a volume is checked plane by plane (first axis), because the rules are of images."
    )

    def bound_to(self, schema: LabelSchema) -> Profile:
        """The profile with `each` spelled out.

        Raises:
            ValueError: A rule names a structure that is not in the schema.
        """
        spelled: list[AnyRule] = []
        for rule in self.rules:
            structures = schema.structures if rule.structure == EACH else (rule.structure,)
            spelled += [rule.model_copy(update={"structure": structure}) for structure in structures]
        for rule in spelled:
            for name in (part for union in rule.names() for part in union.split("+")):
                if name not in schema.names:
                    raise ValueError(
                        f"rule {rule.kind} names {name!r}; the segmenter has {', '.join(schema.names)}. "
                        "Use the profile generic or a file of your own"
                    )
        return Profile(rules=tuple(spelled), planes=self.planes)
