"""What can be measured, and in which units: reports of many hands come in many."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from medfm_rl.feedback.errors import FeedbackError


@dataclass(frozen=True)
class Quantity:
    """Something that a report states.

    Attributes:
        unit: The unit in which it is kept.
        meaning: What it is.
        low: Smallest value that can be meant.
        high: Largest value that can be meant, infinity where there is none.
        structure: The structure that is meant where none is named; None where the quantity says nothing of it.
    """

    unit: str
    meaning: str
    low: float = 0.0
    high: float = math.inf
    structure: str | None = None


VENTRICLE = "LV"
"""What the quantities of a ventricle are of, unless another is named."""
QUANTITIES: Mapping[str, Quantity] = {
    "EF": Quantity("%", "ejection fraction, (EDV - ESV) / EDV", 1.0, 100.0, structure=VENTRICLE),
    "EDV": Quantity("ml", "end-diastolic volume", structure=VENTRICLE),
    "ESV": Quantity("ml", "end-systolic volume", structure=VENTRICLE),
    "SV": Quantity("ml", "stroke volume, EDV - ESV", structure=VENTRICLE),
    "volume": Quantity("ml", "volume of a structure"),
    "area": Quantity("mm2", "area of a structure in one image"),
    "diameter": Quantity("mm", "largest diameter of a structure"),
    "length": Quantity("mm", "length of a structure along its long axis"),
}
"""Quantities by name."""

_FACTORS: Mapping[str, Mapping[str, float]] = {
    "%": {"%": 1, "percent": 1, "ratio": 100, "fraction": 100},
    "ml": {"ml": 1, "cm3": 1, "cc": 1, "mm3": 1e-3, "cl": 10, "dl": 100, "l": 1000},
    "mm2": {"mm2": 1, "cm2": 100},
    "mm": {"mm": 1, "cm": 10, "m": 1000},
}
"""By the unit in which something is kept: other units of it, in lower case, and what one of them is worth."""
_SPELLINGS = str.maketrans({"²": "2", "³": "3", "^": "", " ": ""})


def units_of(name: str) -> tuple[str, ...]:
    """The units in which a quantity can be given, its own first."""
    return tuple(_FACTORS[QUANTITIES[name].unit])


def in_own_unit(name: str, value: float, unit: str) -> tuple[float, str]:
    """Brings a value to the unit in which its quantity is kept.

    Case does not matter in names and units, nor how powers are written (cm2, cm^2, cm²).

    Args:
        name: Name of the quantity.
        value: In `unit`; its uncertainty converts likewise.
        unit: As it was given.

    Returns:
        The value in the quantity's own unit, and that unit.

    Raises:
        FeedbackError: The name or the unit is not known.
    """
    own = QUANTITIES[known_name(name)].unit
    factors = _FACTORS[own]
    given = unit.translate(_SPELLINGS).casefold()
    if given not in factors:
        wrong = f"unit {unit!r} is none of {name}" if given else f"{name} has no unit"
        raise FeedbackError(f"{wrong}; give it in {', '.join(factors)}")
    return value * factors[given], own


def known_name(name: str) -> str:
    """A quantity's name as it is spelled here.

    Raises:
        FeedbackError: It is not known.
    """
    found = {known.casefold(): known for known in QUANTITIES}.get(name.strip().casefold())
    if found is None:
        raise FeedbackError(
            f"nothing is known of a measurement {name!r}; known are "
            f"{', '.join(f'{known} ({quantity.unit})' for known, quantity in QUANTITIES.items())}"
        )
    return found


def require_known(name: str, value: float, unit: str) -> None:
    """Refuses a measurement that is not in its own unit, or that cannot be meant.

    Raises:
        FeedbackError: It is so.
    """
    quantity = QUANTITIES.get(name)
    if quantity is None or unit != quantity.unit:
        _, own = in_own_unit(name, value, unit)
        raise FeedbackError(f"{name} in {unit}; write {known_name(name)} in {own}, as units.in_own_unit gives it")
    if not (math.isfinite(value) and quantity.low <= value <= quantity.high and value > 0):
        most = "" if math.isinf(quantity.high) else f" to {quantity.high:g}"
        hint = "; is it a ratio? Then say so as its unit" if unit == "%" and 0 < value < quantity.low else ""
        raise FeedbackError(
            f"{name} is {value:g} {unit}, and can be {f'from {quantity.low:g}' if quantity.low else 'above 0'}"
            f"{most}{hint or '; correct it, or leave it out'}"
        )
