"""Anatomy rules as data: what each of them measures in a mask, and the limits that the measure must keep.

A structure may be a union, such as `LV+MYO`. Distances and sizes are in mm where the spacing of the mask is known.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import ndimage

from medfm_rl.errors import DataError
from medfm_rl.types import BACKGROUND, LabelMap, LabelSchema

Mask = npt.NDArray[np.bool_]
EACH = "each"
_BISECTIONS = 6


T = TypeVar("T")


def _once(measure: Callable[[MaskView, str], T]) -> Callable[[MaskView, str], T]:
    """Keeps a measure of a structure for the next rule that asks."""

    @wraps(measure)
    def kept(view: MaskView, structure: str) -> T:
        key = (measure.__name__, structure)
        if key not in view.found:
            view.found[key] = measure(view, structure)
        found: T = view.found[key]
        return found

    return kept


class MaskView:
    """The structures of one mask and what is measured in them, each found once however many rules ask for it.

    Args:
        labels: Class indices `(*S)`.
        schema: Structures.
        spacing: Size of a pixel in mm in array order, or None where it is unknown.
        cropped: Whether to look at the box of all structures alone, and one pixel around it, which is faster and enough
            for every rule but those about the background.
    """

    def __init__(
        self, labels: LabelMap, schema: LabelSchema, spacing: tuple[float, ...] | None, cropped: bool = True
    ) -> None:
        self.pixels = labels.size
        self.has_spacing = spacing is not None
        self.spacing = spacing or (1.0,) * labels.ndim
        self.schema = schema
        self._labels = labels[_box(labels > 0, margin=1)] if cropped else labels
        self.found: dict[tuple[str, str], Any] = {}

    @_once
    def mask(self, structure: str) -> Mask:
        """Where the structure is, in the box of everything that is segmented and one pixel around it, or in all."""
        classes = [self.schema.index_of(name) for name in structure.split("+")]
        found: Mask = self._labels == classes[0]
        for index in classes[1:]:
            found |= self._labels == index
        return found

    @_once
    def size(self, structure: str) -> int:
        """Pixels of the structure."""
        return int(np.count_nonzero(self.mask(structure)))

    def has(self, structure: str) -> bool:
        """Whether the structure is there."""
        return self.size(structure) > 0

    @_once
    def box(self, structure: str) -> tuple[slice, ...]:
        """Bounding box of the structure."""
        return _box(self.mask(structure))

    @_once
    def grown(self, structure: str) -> Mask:
        """The structure and the pixels across its faces."""
        return _grow(self.mask(structure))

    @_once
    def holes(self, structure: str) -> Mask:
        """Pixels that the structure encloses."""
        return _holes(self.mask(structure), self.box(structure))

    @_once
    def parts(self, structure: str) -> npt.NDArray[np.int64]:
        """Sizes in pixels of the connected parts of the structure."""
        return _part_sizes(self.mask(structure)[self.box(structure)])

    @property
    def pixel_size(self) -> float:
        """Area or volume of a pixel, in mm^2 or mm^3, or 1."""
        return float(np.prod(self.spacing))

    @property
    def size_unit(self) -> str:
        return f"mm^{len(self.spacing)}" if self.has_spacing else "px"


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
        """The measured value; every structure that the rule names is there."""

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
        return float(_count(view.parts(self.structure), self.speck))


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
            closed = _grow(closed)
            if step > 0:
                near, near_other = _grow(near), _grow(near_other)
        open_ = ~closed
        for _ in range(self.reach):
            open_ = _grow(open_)
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
    """The width of the structure over that of the other, along the last axis through the centre of both together."""

    unit: ClassVar[str] = "ratio"
    measures_other: ClassVar[bool] = True
    kind: Literal["width_ratio"] = "width_ratio"
    other: str
    least: float = Field(0, ge=0)
    most: float = Field(float(np.finfo(np.float64).max))

    def measure(self, view: MaskView) -> float:
        mask, other = view.mask(self.structure), view.mask(self.other)
        line = tuple(round(middle) for middle in _centre(mask | other)[:-1])
        # A row that the other does not cross is wider than any limit.
        return float(mask[line].sum() / max(other[line].sum(), 1e-9))


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
            ahead, behind = _shifted(mask.ndim, axis)
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
        if _count(view.parts(self.structure), self.speck) > 1:
            return 0.0
        mask = view.mask(self.structure)[view.box(self.structure)]
        depth = ndimage.distance_transform_edt(np.pad(mask, 1), sampling=view.spacing)
        low, high, deepest = 0.0, 1.0, float(depth.max())
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if _count(_part_sizes(depth > middle * deepest), self.speck) > 1:
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
        offset = _centre(view.mask(self.other))[-2] - _centre(view.mask(self.structure))[-2]
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


def _box(mask: Mask, margin: int = 0) -> tuple[slice, ...]:
    """The bounding box of what is there, and `margin` pixels around it; everything where there is nothing."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    if not found:
        return (slice(None),) * mask.ndim
    return tuple(
        slice(max(0, part.start - margin), min(side, part.stop + margin))
        for part, side in zip(found[0], mask.shape, strict=True)
    )


def _shifted(ndim: int, axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    everything = [slice(None)] * ndim
    ahead, behind = everything.copy(), everything.copy()
    ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
    return tuple(ahead), tuple(behind)


def _grow(mask: Mask) -> Mask:
    """Dilation by one pixel across faces: several times as fast as SciPy's."""
    grown = mask.copy()
    for axis in range(mask.ndim):
        ahead, behind = _shifted(mask.ndim, axis)
        grown[ahead] |= mask[behind]
        grown[behind] |= mask[ahead]
    return grown


def _part_sizes(mask: Mask) -> npt.NDArray[np.int64]:
    return np.sort(np.bincount(ndimage.label(mask)[0].ravel())[1:])


def _count(sizes: npt.NDArray[np.int64], speck: float) -> int:
    # Specks are weighed together: a mask of noise has nothing but specks.
    return int((np.cumsum(sizes) >= speck * sizes.sum()).sum())


def _holes(mask: Mask, box: tuple[slice, ...]) -> Mask:
    """Pixels that the mask encloses: parts of its complement that do not reach the border of its bounding box."""
    outside, count = ndimage.label(np.pad(~mask[box], 1, constant_values=True))
    enclosed = np.arange(count + 1) > 0
    enclosed[outside[(0,) * mask.ndim]] = False
    holes = np.zeros_like(mask)
    holes[box] = enclosed[outside][(slice(1, -1),) * mask.ndim]
    return holes


def _centre(mask: Mask) -> tuple[float, ...]:
    """Centre of mass in pixels."""
    total = mask.sum()
    centre = []
    for axis, side in enumerate(mask.shape):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        centre.append(float(mask.sum(axis=others) @ np.arange(side) / total))
    return tuple(centre)
