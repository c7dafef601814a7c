"""Volumes and ejection fraction of a clip, from one view or from two, in ml where pixels are calibrated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medfm_rl.anatomy.clips import ClipAnatomy
from medfm_rl.anatomy.discs import DISCS, Discs, ejection_fraction
from medfm_rl.anatomy.uncertainty import ClipDraws, interval_of

_CUBIC_MM = 1000.0
"""In a ml."""
ML, RATIO = "ml", "of EDV"
_Phases = tuple[Discs, Discs]
"""A view at end-diastole and at end-systole."""


@dataclass(frozen=True)
class Ejection:
    """What a ventricle ejects in a beat.

    Attributes:
        edv: Volume at end-diastole, in `unit`.
        esv: At end-systole.
        unit: "ml", or "of EDV" where the size of pixels is unknown: then `edv` is 1.
        ef: Percent of the EDV that is ejected, each phase with its own length (Simpson's discs).
        ef_common_length: The same with the length at end-diastole in both phases, as the table of CAMUS has it
            (`anatomy.discs`).
        method: From which views.
    """

    edv: float
    esv: float
    unit: str
    ef: float
    ef_common_length: float
    method: str


@dataclass(frozen=True)
class EjectionInterval:
    """What rewards leave open of what a ventricle ejects: intervals of 90 % of drawn masks.

    Attributes:
        edv: Lower and upper end, in the unit of the ejection; None where volumes are ratios of the EDV.
        esv: The same.
        ef: In percent, each phase with its own length.
        draws: How many pairs of masks they rest on.
    """

    edv: tuple[float, float] | None
    esv: tuple[float, float]
    ef: tuple[float, float]
    draws: int


def single_plane(clip: ClipAnatomy) -> Ejection | None:
    """From one view: discs are circles. None where no beat was found."""
    return _ejection([clip], "single plane")


def biplane(first: ClipAnatomy, second: ClipAnatomy) -> Ejection | None:
    """From two views of one patient: discs are ellipses. None where a beat is missing in either.

    Where both are calibrated the length is the longer one (R. M. Lang et al., J. Am. Soc. Echocardiogr. 28(1), 2015).
    """
    return _ejection([first, second], "biplane")


def _ejection(clips: Sequence[ClipAnatomy], method: str) -> Ejection | None:
    phases: list[_Phases] = []
    for clip in clips:
        if clip.beat is None:
            return None
        ed, es = (clip.frames[index].discs for index in (clip.beat.ed, clip.beat.es))
        if ed is None or es is None:
            return None
        phases.append((ed, es))
    return _eject(phases, [clip.side for clip in clips], method)


def interval_of_draws(clips: Sequence[ClipAnatomy], draws: Sequence[ClipDraws]) -> EjectionInterval | None:
    """The interval of what one view or two eject; None where no mask was drawn.

    Args:
        clips: The views.
        draws: What was drawn of each; pairs of views go by the order of the draws.
    """
    count = min(len(drawn.ed) for drawn in draws)
    if count == 0:
        return None
    sides = [clip.side for clip in clips]
    found = [_eject([(drawn.ed[row], drawn.es[row]) for drawn in draws], sides, "") for row in range(count)]
    calibrated = found[0].unit == ML
    return EjectionInterval(
        interval_of([each.edv for each in found]) if calibrated else None,
        interval_of([each.esv for each in found]),
        interval_of([each.ef for each in found]),
        count,
    )


def _eject(phases: Sequence[_Phases], sides: Sequence[float | None], method: str) -> Ejection:
    before, after = [ed for ed, _ in phases], [es for _, es in phases]
    common = ejection_fraction(before, after, "common")
    if any(side is None for side in sides):
        ef = ejection_fraction(before, after, "own")
        return Ejection(1.0, 1 - ef / 100, RATIO, ef, common, method)
    known = [side for side in sides if side is not None]
    edv, esv = _volume(before, known), _volume(after, known)
    return Ejection(edv, esv, ML, 100 * (1 - esv / edv), common, method)


def _volume(views: Sequence[Discs], sides: Sequence[float]) -> float:
    """Volume in ml of discs that are circles, or ellipses with a diameter from either view."""
    diameters = [np.asarray(view.diameters) * side for view, side in zip(views, sides, strict=True)]
    length = max(view.length * side for view, side in zip(views, sides, strict=True))
    return float(np.pi / 4 * (diameters[0] * diameters[-1]).sum() * length / DISCS / _CUBIC_MM)
