"""The choice between the candidates of an iteration: what the signals say of their masks, and what that is worth."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from medfm_rl.augmentation.appearance import borrow_looks, randomise_contrast
from medfm_rl.reward.collection import ImageSet
from medfm_rl.reward.network import RewardNet
from medfm_rl.reward.shape_prior import ShapePrior
from medfm_rl.rows import Rows, batches_of
from medfm_rl.seeding import torch_generator
from medfm_rl.structures import Structures
from medfm_rl.tracking import Tracker
from medfm_rl.workflows.adapt.choosing.candidates import CandidatePool
from medfm_rl.workflows.adapt.choosing.cross_fit import CrossFit
from medfm_rl.workflows.adapt.choosing.decision import tell_selection
from medfm_rl.workflows.adapt.choosing.selection import Comparison, Selection, select, worth_of_signals
from medfm_rl.workflows.adapt.choosing.signals import MOST_SOURCE_IMAGES, RatedMasks, Raters, mean_dice
from medfm_rl.workflows.adapt.context import Domains, RunContext

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Witnesses:
    """What is asked about candidates, beside the rules and the images themselves.

    Attributes:
        held_out: A reward network that no policy learned from.
        shape_prior: The autoencoder of masks.
        reviewed: What patients with corrected masks say of adapting at all; None where there are too few.
    """

    held_out: RewardNet
    shape_prior: ShapePrior
    reviewed: CrossFit | None = None


def choose(
    context: RunContext,
    iteration: int,
    pool: CandidatePool,
    witnesses: Witnesses,
    domains: Domains,
    tracker: Tracker,
) -> str:
    """The candidate so far that signals of different kinds agree on, else the incumbent; written to the run.

    Where there are enough patients with corrected masks, they alone decide whether the source policy comes back.
    """
    path = context.run.selection(iteration)
    if context.team.from_leader(lambda: not path.exists()):
        raters = Raters(
            context.is_valid,
            witnesses.shape_prior,
            witnesses.held_out,
            context.schema.classes,
            context.source_policy.intensity_channels,
            context.device,
            context.scratch,
        )
        source = context.team.from_leader(lambda: _in_other_looks(context, iteration, domains))
        rated = _rate_all(context, iteration, pool, raters, domains.selection, source)
        context.team.from_leader(
            lambda: _select(context, iteration, pool, raters, rated, source, witnesses.reviewed, domains, tracker)
        )
    return Selection.read(path).chosen


def _select(
    context: RunContext,
    iteration: int,
    pool: CandidatePool,
    raters: Raters,
    rated: Mapping[str, tuple[RatedMasks, RatedMasks | None]],
    source: tuple[ImageSet, Rows] | None,
    reviewed: CrossFit | None,
    domains: Domains,
    tracker: Tracker,
) -> None:
    """Compares the candidates by their rated masks, and writes and tells the decision."""
    incumbent, settings = pool.incumbent, context.config.selection
    comparisons: dict[str, Comparison] = {
        name: raters.compare(rated[incumbent][0], on_target) for name, (on_target, _) in rated.items()
    }
    worth = None if source is None else _worth(raters, rated, incumbent, source[1], context.schema.classes)
    selection = select(
        comparisons, domains.selection.patient_ids, settings.confidence, settings.margin, incumbent, worth
    )
    if reviewed is not None:
        selection = selection.decided_by_patients(reviewed.is_better, reviewed.typical_gain, reviewed.p_value)
    selection.write(context.run.selection(iteration))
    tell_selection(selection)
    _record(selection, settings.confidence, tracker)


def _rate_all(
    context: RunContext,
    iteration: int,
    pool: CandidatePool,
    raters: Raters,
    images: ImageSet,
    source: tuple[ImageSet, Rows] | None,
) -> dict[str, tuple[RatedMasks, RatedMasks | None]]:
    """By candidate, its rated masks of the target images, and of source images in other looks where there are any.

    Each process of the team rates some of the candidates.
    """
    own = context.team.deal(pool.names)

    def rate(done: int, name: str) -> tuple[RatedMasks, RatedMasks | None]:
        policy = context.policy(name)
        found = raters.rate(policy, images), None if source is None else raters.rate(policy, source[0])
        context.progress(f"selection {iteration + 1}/{context.config.iterations}", done, len(own))
        return found

    made = (rate(done, name) for done, name in enumerate(own, 1))
    return dict(zip(pool.names, context.team.interleave(made, len(pool.names)), strict=True))


def _in_other_looks(context: RunContext, iteration: int, domains: Domains) -> tuple[ImageSet, Rows] | None:
    """Some source images, evenly spaced, half of them in the look of the target, and their ground truth.

    None in the source-free mode.
    """
    if domains.source is None:
        return None
    (images, truth), styles = domains.source, domains.selection.images
    rows = torch.linspace(0, len(images) - 1, min(len(images), MOST_SOURCE_IMAGES)).round().long().tolist()
    generator = torch_generator(context.config.seed, "looks", iteration)
    channels = context.source_policy.intensity_channels
    # One by one: so many volumes do not fit into memory together. All contrasts are drawn before the first look.
    contrasts, shown, wanted = (context.scratch.new(name) for name in ("contrasts", "looks", "masks"))
    for row in rows:
        contrasts.add(randomise_contrast(images.images[[row]], 1.0, generator, channels))
        wanted.add(truth[[row]])
    for contrast in batches_of(contrasts.rows(), 1):
        shown.add(borrow_looks(contrast.clone(), styles, generator, channels))
    chosen = ImageSet(
        shown.rows(),
        tuple(images.case_ids[row] for row in rows),
        tuple(images.patient_ids[row] for row in rows),
        tuple(images.axes_of(row) for row in rows),
    )
    return chosen, wanted.rows()


def _worth(
    raters: Raters,
    rated: Mapping[str, tuple[RatedMasks, RatedMasks | None]],
    incumbent: str,
    truth: Rows,
    structures: Structures,
) -> dict[str, float]:
    """What each signal is worth where the truth is known."""
    on_source = {name: masks for name, (_, masks) in rated.items() if masks is not None}
    true = {name: mean_dice(masks.actions, truth, structures) for name, masks in on_source.items()}
    others = [name for name in on_source if name != incumbent]
    return worth_of_signals(
        [raters.compare(on_source[incumbent], on_source[name]) for name in others],
        [(true[incumbent], true[name]) for name in others],
    )


def _record(selection: Selection, confidence: float, tracker: Tracker) -> None:
    for line in selection.disagreements(confidence):
        _LOG.warning("the signals disagree about %s; `medfm-rl export --candidate` gives any of them", line)
    for step, candidate in enumerate(selection.candidates):
        tracker.log_metrics({f"{_key(name)}_score": one.score for name, one in candidate.opinions.items()}, step)
    tracker.log_metrics(
        {f"{_key(name)}_worth": worth for name, worth in selection.worth.items() if worth is not None}, 0
    )


def _key(signal: str) -> str:
    return signal.replace(" ", "_").replace("-", "_")
