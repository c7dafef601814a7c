"""Collection of actions into D_R, and the shape prior that proposes references for them."""

from __future__ import annotations

import torch
from torch import Tensor

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.errors import DataError
from medfm_rl.networks import argmax_classes
from medfm_rl.pipeline.stage import Domains, Stage
from medfm_rl.policies import DenseCategorical
from medfm_rl.reward.actions import ActionRecords
from medfm_rl.reward.collection import Collector, ImageSet
from medfm_rl.reward.shape_prior import ShapePrior, train_shape_prior
from medfm_rl.seeding import derive_seed, torch_generator


def shape_prior(stage: Stage, domains: Domains) -> ShapePrior:
    """The autoencoder of masks, trained where the run has none yet."""
    if not stage.run.shape_prior.exists():
        masks = domains.source[1] if domains.source else _valid_predictions(stage, domains.target)
        if len(masks) == 0:
            raise DataError(
                f"none of the segmenter's masks of the {len(domains.target)} target images meets the rules of anatomy "
                f"{stage.config.anatomy}, and without a source the shape prior learns from those that do; take "
                "anatomy: generic, or give source images"
            )
        train_shape_prior(
            masks,
            stage.num_classes,
            stage.config.shape_prior,
            derive_seed(stage.config.seed, "shape prior"),
            stage.device,
            lambda done, total: stage.progress("shape prior", done, total),
        ).save(stage.run.shape_prior)
    return ShapePrior.load(stage.run.shape_prior)


@torch.no_grad()
def _valid_predictions(stage: Stage, images: ImageSet) -> Tensor:
    batches = images.images.split(16)
    masks = torch.cat([argmax_classes(stage.source_policy(batch.to(stage.device)), dim=1).cpu() for batch in batches])
    kept = [mask for mask in masks.to(torch.uint8) if stage.is_valid(mask)]
    return torch.stack(kept) if kept else masks[:0].to(torch.uint8)


def collect(stage: Stage, iteration: int, policy: SegmenterAdapter, prior: ShapePrior, domains: Domains) -> None:
    """Adds the shards of an iteration that D_R lacks."""
    settings = stage.config.collect
    collector = Collector(
        policy,
        stage.num_classes,
        settings,
        lambda logits, generator: DenseCategorical(logits).sample(generator, stage.correlation_length),
        stage.is_valid,
        prior,
        stage.device,
        policy.intensity_channels,
    )
    plan = [("target", settings.target_images)]
    if domains.source is not None:
        plan.insert(0, ("source", settings.source_images))
    for domain, count in plan:
        name = f"collecting actions {iteration + 1}/{stage.config.iterations} ({domain})"
        for done in range(0, count, settings.shard_images):
            key = f"{iteration:02d}-{domain}-{done:06d}"
            if key not in stage.dataset.shards():
                generator = torch_generator(stage.config.seed, "collect", key)
                size = min(settings.shard_images, count - done)
                stage.dataset.append(key, _collect_shard(collector, domain, size, domains, generator))
            stage.progress(name, min(done + settings.shard_images, count), count)


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
