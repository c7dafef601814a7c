"""The page of corrections, and the picture of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from medfm_rl.reports.figures import LEGEND_COLUMNS, explain_rewards, overlay, show_no_axes, structure_colours
from medfm_rl.reports.pages import embed, render_page
from medfm_rl.types import FloatArray, LabelMap, LabelSchema

_DECISIONS = ("referred", "proposed", "corrected")
_CORRECTIONS = 50
"""Pictures on the page of corrections."""


@dataclass(frozen=True)
class CorrectionEntry:
    """A correction on the page of corrections.

    Attributes:
        case_id: Name of the case.
        decision: corrected, proposed or referred.
        reasons: Why, in words.
        reward_before: Mean reward of the original.
        reward_after: Mean reward of the proposal.
        seconds: Time it took.
        views: Views that the method looked at.
        verifier_views: Views that the verifier looked at; None where there was nothing to verify.
        picture: A PNG file, as `correction_figure` draws it.
    """

    case_id: str
    decision: str
    reasons: Sequence[str]
    reward_before: float
    reward_after: float
    seconds: float
    views: int
    verifier_views: int | None
    picture: Path

    def badness(self) -> tuple[int, float]:
        """Sorts the worst first: referred masks, then those of low reward."""
        mask = self.reward_after if self.decision == "corrected" else self.reward_before
        return _DECISIONS.index(self.decision), mask


def write_corrections_page(
    path: Path,
    entries: Sequence[CorrectionEntry],
    problems: Mapping[str, str],
    untouched: int,
    promise: str,
    cut: int,
    simulated: bool,
) -> None:
    """Writes the page of corrections; it loads nothing from anywhere else.

    Args:
        path: File of the page.
        entries: One for each case that was handled.
        problems: By case: why it could not be handled.
        untouched: Cases that were not taken.
        promise: What is promised of the accepted corrections.
        cut: Cases whose time budget ended early.
        simulated: Whether the images are simulated; the page says so.
    """
    ordered = sorted(entries, key=CorrectionEntry.badness)
    counts = {decision: sum(entry.decision == decision for entry in entries) for decision in _DECISIONS}
    shown = [(entry, embed(entry.picture.read_bytes())) for entry in ordered[:_CORRECTIONS]]
    render_page(
        path,
        "corrections.html",
        shown=shown,
        total=len(entries),
        counts=counts,
        problems=problems,
        untouched=untouched,
        promise=promise,
        cut=cut,
        simulated=simulated,
    )


def correction_figure(
    image: FloatArray,
    before: LabelMap,
    reward_before: FloatArray,
    after: LabelMap,
    reward_after: FloatArray,
    schema: LabelSchema,
    title: str,
) -> Figure:
    """Image, mask and reward map before a correction, mask and reward map after it, side by side.

    Args:
        image: Grey values `(*S)`; of a volume the plane with most of the change is shown.
        before: Class indices `(*S)` of the original.
        reward_before: Its reward map, in [0, 1].
        after: Class indices of the proposal.
        reward_after: Its reward map.
        schema: Structures.
        title: Heading.
    """
    if before.ndim == 3:
        changed = (before != after).sum(axis=(1, 2))
        plane = int(changed.argmax() if changed.any() else (before > 0).sum(axis=(1, 2)).argmax())
        image, before, reward_before = image[plane], before[plane], reward_before[plane]
        after, reward_after = after[plane], reward_after[plane]
    figure = Figure(figsize=(13, 3.3), layout="constrained")
    panels = figure.subplots(1, 5)
    names = ("image", "before", "reward before", "after", "reward after")
    for axes, name, labels in zip(panels, names, (None, before, None, after, None), strict=True):
        axes.set_title(name, fontsize=9)
        show_no_axes(axes)
        if not name.startswith("reward"):
            axes.imshow(image, cmap="gray")
        if labels is not None:
            axes.imshow(overlay(labels, schema))
    for axes, reward_map in ((panels[2], reward_before), (panels[4], reward_after)):
        picture = axes.imshow(reward_map, cmap="cividis", vmin=0, vmax=1)
    explain_rewards(figure, panels, picture)
    handles = [Patch(facecolor=colour, label=name) for name, colour in structure_colours(schema).items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=LEGEND_COLUMNS, frameon=False, fontsize=9)
    # A case may be named with dollar signs, between which Matplotlib would read a formula.
    figure.suptitle(title, fontsize=10, parse_math=False)
    return figure
