"""The page of measured clips: the area over time with its beat, and each loop as an animation with contours."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from medfm_rl.anatomy.clips import ClipAnatomy
from medfm_rl.reports.figures import encode_figure, overlay, structure_colours
from medfm_rl.reports.pages import embed, render_page
from medfm_rl.reports.thumbnails import in_greys, under
from medfm_rl.types import Clip, LabelMap, LabelSchema

_SIDE = 256
"""Pixels of the longer side of an animation at most."""
_MOST_FRAMES = 100
"""Frames of an animation at most; of longer clips every second, third and so on."""
_UNTIMED = 0.05
"""Seconds for which a frame without a time is shown."""
_SHORTEST = 0.02
"""Seconds below which browsers show a frame for longer than it says."""


@dataclass(frozen=True)
class ClipPicture:
    """Pictures of a clip, as addresses that a page holds itself.

    Attributes:
        curve: Area of each structure over time.
        loop: The clip with the contours of its masks, as a GIF.
    """

    curve: str
    loop: str


def picture_clip(clip: Clip, labels: LabelMap, anatomy: ClipAnatomy, schema: LabelSchema) -> ClipPicture:
    """Draws a clip with its masks, class indices `(T, H, W)`."""
    return ClipPicture(_draw_curve(clip, anatomy, schema), embed(animate(clip, labels, schema), "gif"))


def animate(clip: Clip, labels: LabelMap, schema: LabelSchema) -> bytes:
    """The clip with the contours of its masks, class indices `(T, H, W)`, as a GIF that goes round at its own pace."""
    every = max(1, -(-len(clip.frames) // _MOST_FRAMES))
    step = max(1, -(-max(clip.frames.shape[2:]) // _SIDE))
    shown = []
    for frame, mask in zip(clip.frames[::every, 0, ::step, ::step], labels[::every, ::step, ::step], strict=True):
        picture = np.clip(under(in_greys(frame), overlay(mask, schema)), 0, 1)
        shown.append(Image.fromarray((255 * picture).astype(np.uint8)).quantize(64))
    # A clip of one frame has a time and no pace.
    steps = 0 if clip.times is None else len(clip.times) - 1
    pace = clip.times[-1] / steps if clip.times is not None and steps else _UNTIMED
    buffer = io.BytesIO()
    milliseconds = round(1000 * max(_SHORTEST, every * pace))
    shown[0].save(buffer, "gif", save_all=True, append_images=shown[1:], duration=milliseconds, loop=0)
    return buffer.getvalue()


def write_clip_page(
    path: Path,
    measures: Any,
    pictures: Mapping[str, ClipPicture],
    schema: LabelSchema,
    simulated: bool,
) -> None:
    """Writes the page; it loads nothing from anywhere else.

    Args:
        path: The page.
        measures: What was measured, as `medfm_rl.workflows.measure.measure.Measures` holds it.
        pictures: By clip.
        schema: Structures.
        simulated: Whether the images are simulated; the page says so.
    """
    ordered = sorted(measures.clips.values(), key=lambda clip: (clip.reliable, clip.clip_id))
    render_page(
        path,
        "clips.html",
        clips=[(clip, pictures[clip.clip_id]) for clip in ordered],
        biplane=measures.biplane,
        biplane_intervals=measures.biplane_intervals,
        doubtful={
            patient: doubtful
            for patient, (_, names) in measures.biplane.items()
            if (doubtful := [name for name in names if not measures.clips[name].reliable])
        },
        problems=measures.problems,
        colours=structure_colours(schema),
        simulated=simulated,
        drawn=any(clip.draws is not None for clip in ordered),
    )


def _draw_curve(clip: Clip, anatomy: ClipAnatomy, schema: LabelSchema) -> str:
    figure = Figure(figsize=(6.4, 3.0))
    axes = figure.subplots()
    times = np.arange(len(clip.frames)) if clip.times is None else np.array(clip.times)
    scale = 1.0 if anatomy.side is None else anatomy.side**2 / 100
    for name, colour in structure_colours(schema).items():
        axes.plot(times, anatomy.area_curve(name) * scale, color=colour, label=name, marker=".", markersize=3)
    if anatomy.beat is not None:
        for phase, index in (("ED", anatomy.beat.ed), ("ES", anatomy.beat.es)):
            axes.axvline(times[index], color="#555555", linewidth=0.8, linestyle="--")
            axes.annotate(phase, (times[index], 1.0), xycoords=("data", "axes fraction"), ha="center", va="bottom")
    axes.set_xlabel("frame" if clip.times is None else "seconds")
    axes.set_ylabel("area in pixels" if anatomy.side is None else "area in cm²")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    return encode_figure(figure)
