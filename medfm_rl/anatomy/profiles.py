"""Anatomy profiles: what a plausible mask looks like, as rules bound to the structures of a segmenter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from pydantic import ValidationError

from medfm_rl.anatomy.measures import MaskView
from medfm_rl.anatomy.rules import AnyRule, Profile
from medfm_rl.builtin import anatomy_profiles
from medfm_rl.errors import ConfigError
from medfm_rl.settings.problems import sum_up_problems
from medfm_rl.settings.yaml_text import read_yaml
from medfm_rl.types import LabelMap, LabelSchema

_NO_LIMIT = float(np.finfo(np.float64).max)
"""What stands for no upper limit."""


@dataclass(frozen=True)
class RuleResult:
    """The finding of a rule.

    Attributes:
        rule: Kind of the rule.
        structure: What it looked at.
        other: What it compared that with, or None.
        measured: The value that was compared; None where there is none: a structure is missing, or a ratio is over
            nothing.
        least: The lower limit, or None.
        most: The upper limit, or None.
        unit: Unit of the measured value and the limits.
        source: Where the rule and its limit come from.
        passed: False also where it could not be applied, unless the rule is optional. A ratio over nothing is larger
            than any limit.
    """

    rule: str
    structure: str
    other: str | None
    measured: float | None
    least: float | None
    most: float | None
    unit: str
    source: str
    passed: bool

    def __str__(self) -> str:
        subject = f"{self.rule} of {self.structure}" + (f" and {self.other}" if self.other else "")
        if self.rule == "above":
            subject = f"height of {self.structure} above {self.other}"
        if self.measured is None:
            where = " where both are compared" if self.rule == "width_ratio" else ""
            return f"{subject}: a structure is missing{where}"
        limits: list[str] = []
        if self.least is not None:
            # The least number above 0 is how a rule says that 0 itself breaks it.
            limits = ["above 0"] if 0 < self.least < np.finfo(np.float64).tiny else [f"at least {self.least:.4g}"]
        limits += [f"at most {self.most:.4g}"] if self.most is not None and self.most < 1e300 else []
        return f"{subject}: {self.measured:.4g} {self.unit}, limit {' and '.join(limits) or 'none'}"


@dataclass(frozen=True)
class Anatomy:
    """Rules bound to the structures of a segmenter.

    Attributes:
        name: Name of the profile.
        profile: The rules, with `each` spelled out.
        schema: Structures of the masks.
    """

    name: str
    profile: Profile
    schema: LabelSchema

    @property
    def rules(self) -> tuple[AnyRule, ...]:
        return self.profile.rules

    def check(self, labels: LabelMap, spacing: tuple[float, ...] | None = None) -> tuple[RuleResult, ...]:
        """Applies every rule to a mask.

        Args:
            labels: Class indices `(*S)`, 2-D or 3-D.
            spacing: Size of a pixel in mm in array order, or None where it is unknown.

        Returns:
            One result for each rule, in their order. Where a volume is checked plane by plane, that of the plane that
            breaks the rule, if one does.

        Raises:
            ValueError: What was given is no label map of the schema, so that the rules cannot be applied.
            DataError: A limit is in mm and the spacing is unknown.
        """
        whole, planes = self._views(labels, spacing)
        return tuple(
            _worst([apply_rule(rule, view) for view in (whole if rule.whole else planes)]) for rule in self.rules
        )

    def is_valid(self, labels: LabelMap, spacing: tuple[float, ...] | None = None) -> bool:
        """Whether every rule is met; it stops at the first that is not.

        Raises:
            ValueError: As in `check`.
            DataError: As in `check`.
        """
        whole, planes = self._views(labels, spacing)
        return all(apply_rule(rule, view).passed for rule in self.rules for view in (whole if rule.whole else planes))

    def extended(self, rules: Sequence[AnyRule]) -> Anatomy:
        """The same with further rules, such as those of `learn_limits`."""
        return replace(self, profile=Profile(rules=(*self.rules, *rules), planes=self.profile.planes))

    def _views(self, labels: LabelMap, spacing: tuple[float, ...] | None) -> tuple[list[MaskView], list[MaskView]]:
        """The mask as rules of the whole see it, and as the others do: its planes, where the profile says so."""
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
        # Only for the background does it matter how large the image is.
        cropped = not any(rule.measures_background() for rule in self.rules)
        whole = [MaskView(labels, self.schema, spacing, cropped)]
        if labels.ndim == 3 and self.profile.planes:
            flat = None if spacing is None else spacing[1:]
            # A plane without any structure has nothing to be checked; a volume of such planes has.
            filled = [plane for plane in labels if plane.any()] or [labels[0]]
            return whole, [MaskView(plane, self.schema, flat, cropped) for plane in filled]
        return whole, whole


def load_anatomy(name: str, schema: LabelSchema) -> Anatomy:
    """Loads a built-in profile or a YAML file and binds it to the structures of a segmenter.

    Args:
        name: A profile of `medfm_rl/anatomy/builtin`, or the path of a file with `rules: [...]`.
        schema: Structures of the masks.

    Raises:
        ConfigError: There is no such profile, it is not valid, or names a structure that the segmenter does not have.
    """
    text = _read_profile(name)
    try:
        content = read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"anatomy {name}: cannot be read as YAML with `rules: [...]` ({error})") from error
    if not isinstance(content, dict) or "rules" not in content:
        raise ConfigError(f"anatomy {name}: not a profile, which is a YAML file with `rules: [...]`")
    try:
        profile = Profile.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"anatomy {name}: not a valid profile: {sum_up_problems(error)}") from error
    try:
        return Anatomy(name, profile.bound_to(schema), schema)
    except ValueError as error:
        raise ConfigError(f"anatomy {name}: {error}.") from error


def apply_rule(rule: AnyRule, view: MaskView) -> RuleResult:
    """Applies one rule to a mask."""
    least, most = rule.limits()
    other = getattr(rule, "other", None)
    result = RuleResult(
        rule.kind, rule.structure, other, None, least, most, rule.unit_of(view), rule.source, rule.optional
    )
    if not all(view.has(name) for name in rule.names()):
        return result
    value = rule.measure(view)
    if math.isnan(value):
        return result
    passed = (least is None or value >= least) and (most is None or most >= _NO_LIMIT or value <= most)
    return replace(result, measured=value if math.isfinite(value) else None, passed=passed)


def _worst(results: Sequence[RuleResult]) -> RuleResult:
    """The one that fails by most, as a share of its limit; without a failure the first that measured something."""
    failures = [result for result in results if not result.passed]
    if failures:
        return max(failures, key=_excess)
    return next((result for result in results if result.measured is not None), results[0])


def _excess(result: RuleResult) -> float:
    if result.measured is None:
        return math.inf
    limit = result.least if result.least is not None and result.measured < result.least else result.most
    return abs(result.measured - (limit or 0.0)) / (abs(limit or 0.0) + 1e-9)


def _read_profile(name: str) -> str:
    profiles = anatomy_profiles()
    if name in profiles:
        return profiles[name]
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"anatomy {name!r}: no such file, and no such built-in profile ({', '.join(profiles)})")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"anatomy {name}: not a valid profile, the file cannot be read as text ({error})") from error
