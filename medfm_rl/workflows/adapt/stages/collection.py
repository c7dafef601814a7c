"""Collection of actions into D_R, and the shape prior that proposes references for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.errors import DataError
from medfm_rl.networks import argmax_masks
from medfm_rl.policies import DenseCategorical
from medfm_rl.reward.collection import ActionSampler, ImageSet
from medfm_rl.reward.origins import ShardKey
from medfm_rl.reward.shape_prior import ShapePrior, train_shape_prior
from medfm_rl.reward.sources import (
    ActionSource,
    ExpertMasks,
    NeighbouringFrames,
    UnlabelledTargetImages,
)
from medfm_rl.rows import Rows, batches_of
from medfm_rl.seeding import derive_seed, torch_generator
from medfm_rl.types import IGNORED
from medfm_rl.workflows.adapt.context import Domains, RunContext


def shape_prior(context: RunContext, domains: Domains) -> ShapePrior:
    """The autoencoder of masks, trained by the leader of the team where the run has none yet."""
    context.team.from_leader(lambda: _write_shape_prior(context, domains))
    return ShapePrior.load(context.run.shape_prior)


def _write_shape_prior(context: RunContext, domains: Domains) -> None:
    if context.run.shape_prior.exists():
        return
    source = domains.source
    masks = _completed(context, *source) if source else _valid_predictions(context, domains.target)
    if masks is None:
        raise DataError(
            f"none of the segmenter's masks of the {len(domains.target)} target images meets the rules of anatomy "
            f"{context.config.anatomy}, and without a source the shape prior learns from those that do; take "
            "anatomy: generic, or give source images"
        )
    train_shape_prior(
        masks,
        context.num_classes,
        context.config.shape_prior,
        derive_seed(context.config.seed, "shape prior"),
        context.device,
        lambda done, total: context.progress("shape prior", done, total),
    ).save(context.run.shape_prior)


@torch.no_grad()
def _completed(context: RunContext, images: ImageSet, masks: Rows) -> Rows:
    """Expert masks, with those of the segmenter where they say nothing: shapes are learned from whole masks."""
    if not any(bool((masks[row] == IGNORED).any()) for row in range(len(masks))):
        return masks
    kept = context.scratch.new("completed-masks")
    for row in range(len(masks)):
        mask = masks[[row]]
        unsaid = mask == IGNORED
        if bool(unsaid.any()):
            own = argmax_masks(context.source_policy, images.images[[row]].to(context.device)).to("cpu", torch.uint8)
            mask = torch.where(unsaid, own, mask)
        kept.add(mask)
    return kept.rows()


@torch.no_grad()
def _valid_predictions(context: RunContext, images: ImageSet) -> Rows | None:
    """The segmenter's masks that meet the rules; None where none does."""
    kept, row, found = context.scratch.new("masks"), 0, False
    for batch in batches_of(images.images, 16):
        for mask in argmax_masks(context.source_policy, batch.to(context.device)).to("cpu", torch.uint8):
            if context.is_valid(mask, images.axes_of(row)):
                kept.add(mask[None])
                found = True
            row += 1
    return kept.rows() if found else None


def action_sources(
    context: RunContext, policy: SegmenterAdapter, prior: ShapePrior, domains: Domains
) -> list[ActionSource]:
    """The sources of D_R that a run has."""
    settings, styles = context.config.collect, domains.target.images
    sampler = ActionSampler(
        policy,
        settings,
        lambda logits, generator: DenseCategorical(logits).sample(generator, context.config.ppo.noise_length),
        context.device,
        policy.intensity_channels,
    )
    sources: list[ActionSource] = []
    if domains.source is not None:
        sources.append(ExpertMasks(sampler, *domains.source, styles, settings.source_images))
    if domains.reviewed is not None and context.config.feedback is not None:
        reviewed, share = domains.reviewed, context.config.feedback.share
        count = max(1, round(settings.source_images * share / (1 - share)))
        sources.append(ExpertMasks(sampler, reviewed.images, reviewed.masks, styles, count, "reviewed", reviewed.trust))
    sources.append(UnlabelledTargetImages(sampler, domains.target, context.is_valid, prior))
    if domains.clips and settings.clip_images > 0:
        sources.append(NeighbouringFrames(sampler, domains.target, context.is_valid, prior, domains.clips))
    return sources


def collect(context: RunContext, iteration: int, sources: Sequence[ActionSource]) -> None:
    """Adds the shards of an iteration that D_R lacks, each by one process of the team.

    A shard draws from a generator of its own, and those that read D_R go by the names of shards: who made one, and
    when, is not to be seen.
    """
    team = context.team
    dealt = team.deal(team.from_leader(lambda: _missing_shards(context, iteration, sources)))
    for source in sources:
        name = f"collecting actions {iteration + 1}/{context.config.iterations} ({source.name})"
        own = [(key, size) for key, size in dealt if key.source == source.name]
        count, left = source.images_per_iteration, sum(size for _, size in own)
        if not own:
            context.progress(name, count, count)
        for key, size in own:
            generator = torch_generator(context.config.seed, "collect", str(key))
            rows = torch.randint(len(source), (size,), generator=generator).tolist()
            context.dataset.append(key, source.collect(rows, generator))
            left -= size
            context.progress(name, count - left, count)
    team.wait()


def _missing_shards(context: RunContext, iteration: int, sources: Sequence[ActionSource]) -> list[tuple[ShardKey, int]]:
    """The shards that D_R lacks, and the images of each."""
    shard_images, present = context.config.collect.shard_images, set(context.dataset.shards(iteration))
    found = []
    for source in sources:
        count = source.images_per_iteration
        for offset in range(0, count, shard_images):
            key = ShardKey(iteration, source.name, offset)
            if key not in present:
                found.append((key, min(shard_images, count - offset)))
    return found
