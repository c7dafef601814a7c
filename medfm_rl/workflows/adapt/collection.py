"""Collection of actions into D_R, and the shape prior that proposes references for them."""

from __future__ import annotations

import torch
from torch import Tensor

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.errors import DataError
from medfm_rl.networks import argmax_classes
from medfm_rl.policies import DenseCategorical
from medfm_rl.reward.actions import ActionRecords
from medfm_rl.reward.collection import Collector, ImageSet
from medfm_rl.reward.shape_prior import ShapePrior, train_shape_prior
from medfm_rl.seeding import derive_seed, torch_generator
from medfm_rl.workflows.adapt.context import Domains, RunContext


def shape_prior(context: RunContext, domains: Domains) -> ShapePrior:
    """The autoencoder of masks, trained where the run has none yet."""
    if not context.run.shape_prior.exists():
        masks = domains.source[1] if domains.source else _valid_predictions(context, domains.target)
        if len(masks) == 0:
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
    return ShapePrior.load(context.run.shape_prior)


@torch.no_grad()
def _valid_predictions(context: RunContext, images: ImageSet) -> Tensor:
    batches = images.images.split(16)
    masks = torch.cat(
        [argmax_classes(context.source_policy(batch.to(context.device)), dim=1).cpu() for batch in batches]
    )
    kept = [mask for mask in masks.to(torch.uint8) if context.is_valid(mask)]
    return torch.stack(kept) if kept else masks[:0].to(torch.uint8)


def collect(context: RunContext, iteration: int, policy: SegmenterAdapter, prior: ShapePrior, domains: Domains) -> None:
    """Adds the shards of an iteration that D_R lacks."""
    settings = context.config.collect
    collector = Collector(
        policy,
        context.num_classes,
        settings,
        lambda logits, generator: DenseCategorical(logits).sample(generator, context.correlation_length),
        context.is_valid,
        prior,
        context.device,
        policy.intensity_channels,
    )
    plan = [("target", settings.target_images)]
    if domains.source is not None:
        plan.insert(0, ("source", settings.source_images))
    for domain, count in plan:
        name = f"collecting actions {iteration + 1}/{context.config.iterations} ({domain})"
        for done in range(0, count, settings.shard_images):
            key = f"{iteration:02d}-{domain}-{done:06d}"
            if key not in context.dataset.shards():
                generator = torch_generator(context.config.seed, "collect", key)
                size = min(settings.shard_images, count - done)
                context.dataset.append(key, _collect_shard(collector, domain, size, domains, generator))
            context.progress(name, min(done + settings.shard_images, count), count)


def _collect_shard(
    collector: Collector, domain: str, size: int, domains: Domains, generator: torch.Generator
) -> ActionRecords:
    if domain == "source":
        assert domains.source is not None
        images, masks = domains.source
        rows = torch.randint(len(images), (size,), generator=generator).tolist()
        return collector.from_source(images[rows], masks[rows], domains.target.images, generator)
    rows = torch.randint(len(domains.target), (size,), generator=generator).tolist()
    return collector.from_target(domains.target[rows], generator)
