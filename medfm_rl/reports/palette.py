"""The colours of structures, in pictures and pages alike."""

from __future__ import annotations

# Okabe and Ito's palette: told apart by colour-blind readers and in grey print.
_PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00")


def colour_of(place: int) -> str:
    """The colour of the structure in that place, counted from 0; after the last one they begin again."""
    return _PALETTE[place % len(_PALETTE)]
