"""Figures of pages: overlays of masks, colours of structures, and pictures as bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from medfm_rl.reports.pages import embed
from medfm_rl.reports.palette import colour_of
from medfm_rl.structures import pixels_of
from medfm_rl.types import IntArray, LabelMap, LabelSchema

LEGEND_COLUMNS = 6


def encode_figure(figure: Figure) -> str:
    """A figure as the address of a picture that a page holds itself."""
    return embed(figure_bytes(figure))


def show_no_axes(axes: Axes) -> None:
    """Leaves nothing of axes but the picture in them.

    Matplotlib's own `axis("off")` draws no ticks either, and still measures them: most of the time that a figure takes.
    """
    axes.set_axis_off()
    axes.xaxis.set_visible(False)
    axes.yaxis.set_visible(False)


def explain_rewards(figure: Figure, panels: npt.NDArray[np.object_], picture: AxesImage) -> None:
    """A colour bar beside the panels for the reward maps among them, of which `picture` is one."""
    bar = figure.colorbar(picture, ax=panels, fraction=0.012, pad=0.01)
    bar.set_label("reward: fused probability of being right", fontsize=8)


def figure_bytes(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", facecolor="white")
    return buffer.getvalue()


def structure_colours(schema: LabelSchema) -> dict[str, str]:
    """The colour of each structure in pictures, as `#RRGGBB`."""
    return {name: colour_of(index) for index, name in enumerate(schema.structures)}


def overlay(labels: LabelMap, schema: LabelSchema) -> npt.NDArray[np.float64]:
    """Translucent fill and opaque contour of each structure, RGBA `(H, W, 4)`."""
    colours = structure_colours(schema)
    return _layer(labels.shape, [(pixels_of(labels, schema.classes_of(name)), colours[name]) for name in colours])


def overlay_in(labels: IntArray, colours: Mapping[int, str]) -> npt.NDArray[np.float64]:
    """The same of the integers that have a colour."""
    return _layer(labels.shape, [(labels == label, colour) for label, colour in colours.items()])


def _layer(shape: tuple[int, ...], parts: Sequence[tuple[npt.NDArray[np.bool_], str]]) -> npt.NDArray[np.float64]:
    layer = np.zeros((*shape, 4))
    for mask, colour in parts:
        layer[mask] = (*to_rgb(colour), 0.3)
    # After all fills: of structures that overlap every contour stays to be seen.
    for mask, colour in parts:
        inside = mask.copy()
        for axis in (0, 1):
            for step in (-1, 1):
                inside &= np.roll(mask, step, axis)
        layer[mask & ~inside] = (*to_rgb(colour), 1.0)
    return layer
