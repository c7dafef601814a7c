"""Declarative anatomy rules: what a plausible mask looks like, as data."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self, assert_never

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from scipy import ndimage

from medfm_rl.errors import ConfigError
from medfm_rl.types import LabelMap, LabelSchema

Mask = npt.NDArray[np.bool_]


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    structure: str = Field(description="A structure, or `each` for all of them one by one.")


class PresentRule(_Rule):
    """The structure is not empty."""

    kind: Literal["present"]


class ComponentsRule(_Rule):
    """The structure has at most `most` connected parts; the smallest, together below `speck` of it, do not count."""

    kind: Literal["components"]
    most: int = Field(ge=1)
    speck: float = Field(0.01, ge=0, lt=1)


class HolesRule(_Rule):
    """At most this share of the filled structure is hole."""

    kind: Literal["holes"]
    most: float = Field(ge=0, le=1)


class _RangeRule(_Rule):
    other: str
    least: float
    most: float

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.least > self.most:
            raise ValueError(f"least ({self.least:g}) is above most ({self.most:g}): no mask can meet this rule")
        return self


class ContactRule(_RangeRule):
    """At least / at most this share of the pixels just outside the structure belong to the other class."""

    kind: Literal["contact"]
    least: float = Field(0, ge=0, le=1)
    most: float = Field(1, ge=0, le=1)


class SizeRatioRule(_RangeRule):
    """The size of the structure over the size of the other lies between the two limits."""

    kind: Literal["size_ratio"]
    least: float = Field(ge=0)


class AboveRule(_Rule):
    """The centre of the structure lies nearer to the first row than that of the other."""

    kind: Literal["above"]
    other: str


Rule = Annotated[
    PresentRule | ComponentsRule | HolesRule | ContactRule | SizeRatioRule | AboveRule, Field(discriminator="kind")
]


class _Profile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rules: list[Rule]


@dataclass(frozen=True)
class RuleResult:
    """What a rule found.

    Attributes:
        rule: Kind of the rule.
        structure: What it looked at.
        measured: The value that was compared; None where the rule could not be applied because a structure is missing.
        passed: False also where it could not be applied.
    """

    rule: str
    structure: str
    measured: float | None
    passed: bool


@dataclass(frozen=True)
class Anatomy:
    """Rules bound to the structures of a segmenter.

    Attributes:
        name: Of the profile.
        rules: With `each` spelled out.
        schema: Structures of the masks.
    """

    name: str
    rules: tuple[Rule, ...]
    schema: LabelSchema

    def check(self, labels: LabelMap) -> tuple[RuleResult, ...]:
        """Applies every rule to class indices `(*S)`, 2-D or 3-D.

        Raises:
            ValueError: What was given is no label map of the schema, so that the rules cannot be applied.
        """
        if labels.ndim not in (2, 3) or labels.size == 0 or labels.dtype.kind not in "biu":
            raise ValueError(
                f"anatomy {self.name}: a label map is a 2-D or 3-D array of class indices, "
                f"got shape {labels.shape} of {labels.dtype}"
            )
        if labels.min() < 0 or labels.max() >= self.schema.num_classes:
            raise ValueError(
                f"anatomy {self.name}: class indices go from 0 to {self.schema.num_classes - 1}, "
                f"the label map has {labels.min()} to {labels.max()}"
            )
        return tuple(self._apply(rule, labels) for rule in self.rules)

    def is_valid(self, labels: LabelMap) -> bool:
        """Whether every rule is met."""
        return all(result.passed for result in self.check(labels))

    def _apply(self, rule: Rule, labels: LabelMap) -> RuleResult:
        mask = labels == self.schema.index_of(rule.structure)
        if not mask.any():
            return RuleResult(rule.kind, rule.structure, None, False)
        match rule:
            case PresentRule():
                return RuleResult(rule.kind, rule.structure, float(mask.sum()), True)
            case ComponentsRule():
                parts = float(_count_parts(mask, rule.speck))
                return RuleResult(rule.kind, rule.structure, parts, parts <= rule.most)
            case HolesRule():
                share = _hole_share(mask)
                return RuleResult(rule.kind, rule.structure, share, share <= rule.most)
            case ContactRule() | SizeRatioRule() | AboveRule():
                return self._compare(rule, mask, labels == self.schema.index_of(rule.other))
            case _:
                assert_never(rule)

    def _compare(self, rule: ContactRule | SizeRatioRule | AboveRule, mask: Mask, other: Mask) -> RuleResult:
        if not other.any():
            return RuleResult(rule.kind, rule.structure, None, False)
        match rule:
            case ContactRule():
                share = _contact_share(mask, other)
                return RuleResult(rule.kind, rule.structure, share, rule.least <= share <= rule.most)
            case SizeRatioRule():
                ratio = float(mask.sum() / other.sum())
                return RuleResult(rule.kind, rule.structure, ratio, rule.least <= ratio <= rule.most)
            case AboveRule():
                # Rows are the last axis but one, in 2-D (H, W) as in 3-D (D, H, W).
                offset = float(ndimage.center_of_mass(other)[-2] - ndimage.center_of_mass(mask)[-2])
                return RuleResult(rule.kind, rule.structure, offset, offset > 0)


def load_anatomy(name: str, schema: LabelSchema) -> Anatomy:
    """Loads a built-in profile or a YAML file and binds it to the structures of a segmenter.

    Args:
        name: `generic`, `echo_apical`, `lungs`, or the path of a file with `rules: [...]`.
        schema: Structures of the masks.

    Raises:
        ConfigError: There is no such profile, it is not valid, or names a structure that the segmenter does not have.
    """
    try:
        rules = _Profile.model_validate(yaml.safe_load(_read_profile(name))).rules
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError) as error:
        raise ConfigError(
            f"anatomy {name}: not a valid profile, which is a YAML file with `rules: [...]` ({error})"
        ) from error
    spelled: list[Rule] = []
    for rule in rules:
        structures = schema.structures if rule.structure == "each" else (rule.structure,)
        spelled += [rule.model_copy(update={"structure": structure}) for structure in structures]
    for rule in spelled:
        for structure in (rule.structure, getattr(rule, "other", rule.structure)):
            if structure not in schema.names:
                raise ConfigError(
                    f"anatomy {name}: rule {rule.kind} names {structure!r}; the segmenter has "
                    f"{', '.join(schema.names)}. Use the profile generic or a file of your own."
                )
    return Anatomy(name, tuple(spelled), schema)


def _read_profile(name: str) -> str:
    built_in = resources.files("medfm_rl.metrics") / "anatomy" / f"{name}.yaml"
    if built_in.is_file():
        return built_in.read_text(encoding="utf-8")
    if Path(name).is_file():
        return Path(name).read_text(encoding="utf-8")
    profiles = sorted(
        item.name.removesuffix(".yaml") for item in (resources.files("medfm_rl.metrics") / "anatomy").iterdir()
    )
    raise ConfigError(f"anatomy {name!r}: no such file, and no such built-in profile ({', '.join(profiles)})")


def _count_parts(mask: Mask, speck: float) -> int:
    # Specks are weighed together: a mask of noise has nothing but specks.
    sizes = np.sort(np.bincount(ndimage.label(mask)[0].ravel())[1:])
    return int((np.cumsum(sizes) >= speck * sizes.sum()).sum())


def _hole_share(mask: Mask) -> float:
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    filled = ndimage.binary_fill_holes(mask[box])
    return float(1 - mask[box].sum() / filled.sum())


def _contact_share(mask: Mask, other: Mask) -> float:
    """Share of the pixels just outside a structure (across a face) that belong to the other class."""
    around = ndimage.binary_dilation(mask) & ~mask
    return float((around & other).sum() / max(1, around.sum()))
