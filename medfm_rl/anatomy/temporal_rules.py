"""Rules over time as data: what each measures in the masks of a clip, its limit, and who says so.

Those that hold without a file are RL4Seg3D's (arXiv 2510.14244; `attr_thresholds` in its code), after N. Painchaud et
al., IEEE Trans. Med. Imaging 41(10), 2022: an attribute is scaled to its own range in the clip, widened by 1 % of
either end, and a frame stands out where it lies too far from the middle between its neighbours; and the Hausdorff
distance to both neighbours is, in the mean, a few mm. Limits can be learned from clips whose masks are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medfm_rl.anatomy.contour_motion import neighbour_distances
from medfm_rl.anatomy.learning import range_of
from medfm_rl.errors import ConfigError
from medfm_rl.settings.problems import sum_up_problems
from medfm_rl.settings.yaml_text import read_yaml
from medfm_rl.structures import pixels_of
from medfm_rl.types import LabelMap, LabelSchema

Curve = npt.NDArray[np.float64]
Measure = Literal["area", "length", "base width", "centre down", "centre across", "distance to neighbours"]
ABSENCE: Final = "absence"
DISTANCE: Final = "distance to neighbours"
_SOURCE: Final = "RL4Seg3D, arXiv 2510.14244"
_MARGIN = 0.01
_FEWEST = 3
"""Frames of which the middle one has two neighbours."""
_MYOCARDIUM = ("myo", "myocardium", "lvmyo", "lvmyocardium", "lvepi", "lvepicardium")


class TemporalRule(BaseModel):
    """What is measured over time, and its limit."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    measure: Measure = Field(
        description="area of any structure; length, base width and centre of the ventricle; distance to neighbours: "
        "mean Hausdorff distance of a contour to those of both neighbours, in mm."
    )
    structure: str = Field(description="A structure, or for distances a union such as `LV+MYO`.")
    most: float = Field(ge=0, description="Limit: a share of the range of the curve in the clip, or mm for distances.")
    source: str = Field("", description="Where the limit comes from.")


class TemporalRules(BaseModel):
    """A file of rules over time."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: tuple[TemporalRule, ...]

    @classmethod
    def of_literature(cls, schema: LabelSchema, ventricle: str) -> TemporalRules:
        """Those of RL4Seg3D for the structures there are; without a myocardium, distances are of the ventricle.

        Its limits are kept; how length and base are measured is ours (`FrameAttributes`).
        """
        limits: list[tuple[Measure, str, float]] = [
            ("area", name, 0.2 if name == ventricle else 0.4) for name in schema.structures
        ]
        limits += [("length", ventricle, 0.25), ("base width", ventricle, 0.45)]
        limits += [("centre down", ventricle, 0.2), ("centre across", ventricle, 0.3)]
        walls = [name for name in schema.structures if "".join(filter(str.isalnum, name.casefold())) in _MYOCARDIUM]
        if walls:
            limits += [(DISTANCE, walls[0], 7.0), (DISTANCE, f"{ventricle}+{walls[0]}", 7.5)]
        else:
            limits += [(DISTANCE, ventricle, 7.0)]
        return cls(
            rules=tuple(
                TemporalRule(measure=measure, structure=name, most=most, source=_SOURCE)
                for measure, name, most in limits
            )
        )

    @classmethod
    def read(cls, path: Path) -> TemporalRules:
        """Reads a YAML file with `rules: [...]`.

        Raises:
            ConfigError: It cannot be read, or holds something else.
        """
        try:
            content = read_yaml(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"rules over time {path}: cannot be read as YAML ({error})") from error
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise ConfigError(f"rules over time {path}: {sum_up_problems(error)}") from error

    def to_yaml(self) -> str:
        """The content of a file that `read` reads."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        return text

    def require_known(self, schema: LabelSchema, ventricle: str, where: Path | str) -> None:
        """Refuses rules about structures that the masks do not have.

        Raises:
            ConfigError: There is one.
        """
        for rule in self.rules:
            for name in rule.structure.split("+"):
                if name not in schema.structures:
                    raise ConfigError(
                        f"rules over time {where}: {rule.measure} of {name!r}; the masks have "
                        f"{', '.join(schema.structures)}"
                    )
            if rule.measure not in ("area", DISTANCE) and rule.structure != ventricle:
                raise ConfigError(
                    f"rules over time {where}: {rule.measure} is measured in the ventricle ({ventricle}) alone, not in "
                    f"{rule.structure!r}"
                )


@dataclass(frozen=True)
class TemporalResult:
    """The finding of a rule over time.

    Attributes:
        measure: What was measured; `ABSENCE` where a structure is missing.
        structure: In what.
        measured: The largest value, in `unit`; None where nothing could be measured.
        most: The limit; infinity where none applies.
        unit: What it is measured in.
        frame: Where it is largest, counted from 0.
        source: Where the limit comes from.
        passed: Whether it is met.
    """

    measure: Measure | Literal["absence"]
    structure: str
    measured: float | None
    most: float
    unit: str
    frame: int | None
    source: str
    passed: bool

    @property
    def rule(self) -> str:
        """What was measured, in words."""
        return self.measure if self.measure in (ABSENCE, DISTANCE) else f"jump of the {self.measure}"

    def __str__(self) -> str:
        if self.measured is None:
            return f"{self.rule} of {self.structure}: cannot be measured"
        at = "" if self.frame is None else f" at frame {self.frame}"
        return f"{self.rule} of {self.structure}{at}: {self.measured:.3g} {self.unit}, limit at most {self.most:.3g}"


def absent(structure: str, missing: Sequence[int], frames: int) -> TemporalResult:
    """The finding that a structure is missing in some frames."""
    return TemporalResult(
        ABSENCE, structure, len(missing) / frames, 0.0, "of the frames", missing[0], "project", passed=False
    )


def departures(curve: Curve) -> Curve:
    """How far each frame but the first and last lies from the middle between its neighbours, `(T - 2,)`.

    As a share of the range of the curve in the clip, widened by 1 % of either end; nothing of fewer than 3 frames.
    """
    if len(curve) < _FEWEST:
        return np.zeros(0)
    low, high = (1 - _MARGIN) * curve.min(), (1 + _MARGIN) * curve.max()
    found: Curve = np.abs(np.diff((curve - low) / (high - low), 2)) / 2
    return found


def judge_curve(rule: TemporalRule, curve: Curve) -> TemporalResult:
    """Applies a rule to what was measured in every frame, `(T,)`, all above 0."""
    unit = "of its range in the clip"
    found = departures(curve)
    if len(found) == 0:
        return TemporalResult(rule.measure, rule.structure, None, rule.most, unit, None, rule.source, passed=True)
    worst = int(found.argmax())
    measured = float(found[worst])
    passed = measured <= rule.most
    return TemporalResult(rule.measure, rule.structure, measured, rule.most, unit, worst + 1, rule.source, passed)


def judge_distance(rule: TemporalRule, masks: LabelMap, schema: LabelSchema, side: float | None) -> TemporalResult:
    """Applies a rule to the mean Hausdorff distance of a frame to both neighbours.

    With unknown spacing it is in pixels, and no limit applies.

    Args:
        rule: The rule.
        masks: Class indices `(T, H, W)` on square pixels.
        schema: Structures.
        side: Side of a pixel in mm, or None.
    """
    unit, limit = ("px", np.inf) if side is None else ("mm", rule.most)
    inside = pixels_of(masks, schema.classes_of(rule.structure))
    steps = neighbour_distances(inside) * (side or 1.0)
    means = (steps[:-1] + steps[1:]) / 2
    if not np.isfinite(means).any():
        # That structures are missing is another rule's to say.
        return TemporalResult(DISTANCE, rule.structure, None, limit, unit, None, rule.source, passed=True)
    worst = int(np.nanargmax(means))
    measured = float(means[worst])
    return TemporalResult(
        DISTANCE, rule.structure, measured, limit, unit, worst + 1, rule.source, passed=measured <= limit
    )


def learn_temporal_rules(
    measured: Sequence[Sequence[TemporalResult]], rules: TemporalRules, quantile: float = 0.005
) -> TemporalRules:
    """Rules with limits learned from clips whose masks are known to be right.

    A limit is the `1 - quantile` of what the clips measure; fewer clips than `1 / quantile` do not show that, and it is
    stretched as `learn_limits` does it. A measure that no clip has keeps its limit.

    Args:
        measured: For each clip what the rules found.
        rules: Those rules.
        quantile: Share of clips like these that a limit refuses.

    Raises:
        ValueError: There is no clip.
    """
    if not measured:
        raise ValueError("limits over time are learned from at least one clip")
    by_rule: dict[tuple[str, str], list[float]] = {(rule.measure, rule.structure): [] for rule in rules.rules}
    for clip in measured:
        for result in clip:
            key = (result.measure, result.structure)
            if key in by_rule and result.measured is not None and result.unit != "px":
                by_rule[key].append(result.measured)
    learned = []
    for rule in rules.rules:
        values = np.array(by_rule[rule.measure, rule.structure])
        if len(values) == 0:
            learned.append(rule)
            continue
        source = f"{100 * (1 - quantile):g} % of {len(values)} clips"
        learned.append(rule.model_copy(update={"most": range_of(values, quantile)[1], "source": source}))
    return TemporalRules(rules=tuple(learned))
