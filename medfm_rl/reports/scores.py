"""The page of a scored batch: every verdict with its reasons, and pictures of the worst masks first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt

from medfm_rl.metrics.scores import MEAN
from medfm_rl.quality.model import QualityModel
from medfm_rl.quality.packed import InTurn
from medfm_rl.quality.reports import GUARANTEES, BatchReport, QualityReport
from medfm_rl.reports.figures import overlay, structure_colours
from medfm_rl.reports.pages import embed, render_page
from medfm_rl.reports.thumbnails import in_greys, png_bytes, under
from medfm_rl.settings import SitePolicy
from medfm_rl.types import FloatArray, LabelMap, LabelSchema

_PICTURES = 100
_SIDE = 256


@dataclass(frozen=True, eq=False)
class PageCase:
    """A report and the file of its picture, a PNG; those of ten thousand cases need not all be in memory."""

    report: QualityReport
    picture: Path


def thumbnail(image: FloatArray, labels: LabelMap, reward_map: FloatArray | None, schema: LabelSchema) -> bytes:
    """The mask on its image, and the reward map beside it, as a PNG of its own size up to 256 pixels.

    Args:
        image: Grey values `(*S)`; of a volume the plane with most of the mask is shown.
        labels: Class indices `(*S)`.
        reward_map: `(*S)` in [0, 1]; None for the mask alone.
        schema: Structures.
    """
    plane = int((labels > 0).sum(axis=(1, 2)).argmax()) if labels.ndim == 3 else None
    step = max(1, -(-max(labels.shape[-2:]) // _SIDE))

    def small(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        flat = values if plane is None else values[plane]
        return flat[::step, ::step]

    shown = under(in_greys(small(image)), overlay(small(labels), schema))
    if reward_map is None:
        return png_bytes(shown)
    heat: npt.NDArray[np.float64] = matplotlib.colormaps["cividis"](small(reward_map))[..., :3]
    return png_bytes(np.concatenate([shown, heat], axis=1))


def write_page(
    path: Path,
    cases: Sequence[PageCase],
    problems: Mapping[str, str],
    batch: BatchReport,
    model: QualityModel,
    policy: SitePolicy,
    simulated: bool,
    drawn: Sequence[str] = (),
) -> None:
    """Writes the page; it loads nothing from anywhere else.

    Args:
        path: Where.
        cases: Reports and pictures.
        problems: By case, why it could not be assessed.
        batch: What holds for all of them.
        model: The quality model.
        policy: What the site does with verdicts.
        simulated: Whether the images are simulated; the page says so.
        drawn: Cases that are drawn for audit.
    """
    counts, actions, worth = Counter(refer=len(problems)), Counter(refer=len(problems)), Counter[str | None]()
    badness = []
    for case in cases:
        badness.append(_badness(case.report))
        counts[case.report.verdict] += 1
        actions[str(case.report.action)] += 1
        worth[case.report.guarantee] += case.report.verdict == "accept"
    ordered = sorted(range(len(cases)), key=badness.__getitem__)
    reports = InTurn(len(cases), lambda place: cases[ordered[place]].report)
    worst = [cases[index] for index in ordered[:_PICTURES]]
    pictures = [(case.report, embed(case.picture.read_bytes())) for case in worst]
    render_page(
        path,
        "quality.html",
        reports=reports,
        pictures=pictures,
        problems=problems,
        batch=batch,
        model=model,
        policy=policy,
        limits={MEAN: model.targets.dice, **policy.limits},
        alpha=model.targets.alpha if policy.alpha is None else policy.alpha,
        colours=structure_colours(model.label_schema),
        counts=counts,
        actions=actions,
        worth={guarantee: worth[guarantee] for guarantee in GUARANTEES if worth[guarantee]},
        total=len(cases) + len(problems),
        simulated=simulated,
        drawn=drawn,
    )


def _badness(report: QualityReport) -> float:
    """Predicted mean Dice, the lowest first; before all others the masks of which none can be predicted."""
    predicted = report.mean.predicted_dice
    return -1.0 if predicted is None else predicted
