"""The policy that PPO starts from: the segmenter after fine-tuning in the look of the target."""

from __future__ import annotations

import logging

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.networks import portable_state
from medfm_rl.reward.collection import ReviewedImages
from medfm_rl.runs.folder import SOURCE
from medfm_rl.seeding import derive_seed
from medfm_rl.tracking import Tracker
from medfm_rl.workflows.adapt.context import Domains, RunContext, write_weights
from medfm_rl.workflows.adapt.stages.fine_tuning import FineTuningImages, fine_tune

_LOG = logging.getLogger(__name__)


def fine_tunes(context: RunContext, domains: Domains) -> bool:
    """Whether there is anything to fine-tune on."""
    settings = context.config.fine_tuning
    labelled = domains.source is not None or domains.reviewed is not None
    return settings.steps > 0 and (labelled or settings.target_weight > 0)


def write_fine_tuned(context: RunContext, domains: Domains, tracker: Tracker) -> None:
    """Writes the weights of the source policy after fine-tuning, where the run has none yet."""
    if context.team.from_leader(context.run.fine_tuned.exists):
        return
    wanted = context.config.fine_tuning.source_share
    policy, share = fine_tuned_policy(context, domains, domains.reviewed, 1.0, "fine-tuning")
    tracker.log_params({"fine_tuning_source_share": share})
    _LOG.info("fine-tuning: the result has a share of %g of the source model's weights", share)
    if share < wanted:
        _LOG.warning(
            "the fine-tuned weights were blended with a share of %g, not %g, of the source model's: with more they do "
            "worse on the source; was the segmenter trained to the end?",
            share,
            wanted,
        )
    state = portable_state(policy.state_dict())
    context.team.from_leader(lambda: write_weights(context.run.fine_tuned, state))


def fine_tuned_policy(
    context: RunContext, domains: Domains, reviewed: ReviewedImages | None, length: float, label: str
) -> tuple[SegmenterAdapter, float]:
    """The source policy after fine-tuning, and the share of its former weights in it.

    Args:
        context: The run.
        domains: Its images.
        reviewed: Those reviewed images that teach.
        length: Share of the steps that the settings ask for.
        label: What the progress calls it.
    """
    config, policy = context.config, context.policy(SOURCE)
    images = FineTuningImages(
        None if domains.source is None else (domains.source[0].images, domains.source[1]),
        domains.target.images,
        reviewed,
        1.0 if config.feedback is None else config.feedback.share,
        policy.intensity_channels,
        policy.mirror_axes,
        context.scratch,
    )
    share = fine_tune(
        policy,
        list(context.open_to_learning(policy).values()),
        images,
        config.fine_tuning.model_copy(update={"steps": max(1, round(length * config.fine_tuning.steps))}),
        derive_seed(config.seed, "warm up"),
        lambda done, total: context.progress(label, done, total),
        recompute=config.recompute,
        team=context.team,
    )
    return policy, share
