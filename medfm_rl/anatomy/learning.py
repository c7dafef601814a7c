"""Rules whose limits are learned from masks that are known to be right."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy import stats

from medfm_rl.anatomy.measures import MaskView
from medfm_rl.anatomy.profiles import apply_rule
from medfm_rl.anatomy.rules import AnyRule, ContactRule, SizeRatioRule, SizeRule
from medfm_rl.types import LabelMap, LabelSchema


def learn_limits(
    masks: Iterable[tuple[LabelMap, tuple[float, ...] | None]], schema: LabelSchema, quantile: float = 0.005
) -> tuple[AnyRule, ...]:
    """Rules whose limits are the statistics of masks that are known to be right.

    Sizes, size ratios, and shares of contact of the structures that touch, volumes as a whole, each between the
    `quantile` and the `1 - quantile` of the masks that have them. Such a limit refuses about `2 * quantile` of masks
    like these by itself. Fewer masks than `1 / quantile` do not show those quantiles: the distance of the extremes
    from the median is then stretched as it would be for a normal distribution. A structure that each of the masks has
    must be there; a rule about one that some of them lack is optional.

    Args:
        masks: Class indices `(*S)`, expert masks of the source for example, each with its spacing in mm in array order
            or None. They are looked at one by one, and none is kept. Where one spacing is unknown, sizes are shares of
            the image.
        schema: Their structures.
        quantile: Share of the masks on each side of the limits, in [0, 0.5).

    Raises:
        ValueError: There is no mask, or the quantile is out of range.
    """
    candidates = _learnable(schema)
    measured: list[list[float | None]] = [[] for _ in candidates]
    count, in_mm = 0, True
    for mask, spacing in masks:
        count, in_mm = count + 1, in_mm and spacing is not None
        view = MaskView(mask, schema, spacing)
        for rule, found in zip(candidates, measured, strict=True):
            if in_mm or not _takes_mm(rule):
                found.append(apply_rule(rule, view).measured)
    if count == 0 or not 0 <= quantile < 0.5:
        raise ValueError(f"limits are learned from at least one mask at a quantile in [0, 0.5), not {quantile:g}")
    learned: list[AnyRule] = []
    for rule, found in zip(candidates, measured, strict=True):
        values = np.array([value for value in found if value is not None])
        # Structures that hardly ever meet say nothing by the share of their contact.
        if len(values) == 0 or (isinstance(rule, ContactRule) and np.median(values) == 0):
            continue
        if isinstance(rule, SizeRule) and _takes_mm(rule) != in_mm:
            continue
        least, most = range_of(values, quantile)
        if isinstance(rule, ContactRule):
            most = min(most, 1.0)
        limits = {"least": max(least, 0.0), "most": most, "whole": True, "optional": None in found}
        source = f"{100 * quantile:g} to {100 * (1 - quantile):g} % of {count} masks"
        learned.append(rule.model_copy(update={**limits, "source": source}))
    return tuple(learned)


def range_of(values: npt.NDArray[np.float64], quantile: float) -> tuple[float, float]:
    """The quantile and one minus it, at values that were seen, or beyond where those are too few to show them.

    Then the extremes are taken for those of a normal distribution, of which n values reach about n / (n + 1).
    """
    low = float(np.quantile(values, quantile, method="lower"))
    high = float(np.quantile(values, 1 - quantile, method="higher"))
    count = len(values)
    if count < 2 or not 0 < count * quantile < 1:
        return low, high
    middle = float(np.median(values))
    stretch = float(stats.norm.isf(quantile) / stats.norm.isf(1 / (count + 1)))
    return middle - stretch * (middle - low), middle + stretch * (high - middle)


def _learnable(schema: LabelSchema) -> list[AnyRule]:
    """The rules whose limits can be learned, without limits; sizes in both ways to measure them."""
    unlimited = float(np.finfo(np.float64).max)
    rules: list[AnyRule] = []
    for name in schema.structures:
        rules.append(SizeRule(structure=name, measured_in="mm", least=0, most=unlimited))
        rules.append(SizeRule(structure=name, measured_in="share", least=0, most=unlimited))
    for one, two in combinations(schema.structures, 2):
        rules.append(SizeRatioRule(structure=one, other=two, least=0, most=unlimited))
        rules.append(ContactRule(structure=one, other=two))
    return rules


def _takes_mm(rule: AnyRule) -> bool:
    return isinstance(rule, SizeRule) and rule.measured_in == "mm"
