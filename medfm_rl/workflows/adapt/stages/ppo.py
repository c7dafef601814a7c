"""Fine-tuning by PPO, and the averages of its checkpoints that compete in the selection."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.logger import Logger
from torch import Tensor

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.augmentation.appearance import randomise_appearance
from medfm_rl.data.files import write_json
from medfm_rl.envs import SegmentationVecEnv
from medfm_rl.networks import argmax_classes, build_padded_unet, portable_state
from medfm_rl.policies import DensePPO
from medfm_rl.reward.collection import ImageSet, logits_of
from medfm_rl.reward.consistency import ClipVotes, NeighbourWord
from medfm_rl.reward.informed import Informant, InformedReward
from medfm_rl.reward.measurements import ReportedValues
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.reward.rule_word import RuleWord
from medfm_rl.rows import Rows
from medfm_rl.seeding import derive_seed, torch_generator
from medfm_rl.tracking import Tracker
from medfm_rl.types import GridAxes
from medfm_rl.workflows.adapt.context import Domains, RunContext, write_weights
from medfm_rl.workflows.adapt.stages.averaging import RunningAverage
from medfm_rl.workflows.adapt.stages.shown_images import Mirrored, ShownImages
from medfm_rl.workflows.adapt.stages.telling import is_told, tell_update


def run_ppo(
    context: RunContext,
    iteration: int,
    start: SegmenterAdapter,
    reference: SegmenterAdapter,
    ensemble: RewardEnsemble,
    domains: Domains,
    tracker: Tracker,
) -> list[str]:
    """PPO from the policy chosen so far, held near the reference; returns the names of the checkpoints."""
    settings, folder = context.config.ppo, context.run.checkpoints(iteration)
    steps = _checkpoint_steps(context)
    names = [f"{folder.parent.name}/{folder.name}/{step:05d}" for step in steps]
    team = context.team
    missing = team.from_leader(lambda: missing_checkpoints(context, iteration))
    if not missing:
        return names
    env = _environment(context, iteration, start, ensemble, domains)
    last = max((step for step in steps if step < missing[0]), default=0)
    ppo = _make_ppo(context, iteration, start, reference, env, folder / f"{last:05d}" if last else None)
    for step in missing:
        history = []
        while ppo._n_updates < step:
            ppo.learn(env.num_envs, reset_num_timesteps=False)
            context.progress(f"PPO {iteration + 1}/{context.config.iterations}", ppo._n_updates, settings.updates)
            history.append({"update": ppo._n_updates, **_logged(ppo.logger)})
            tracker.log_metrics(history[-1], ppo._n_updates)
            if is_told(ppo._n_updates, settings.updates):
                tell_update(history[-1], settings.updates)
        if team.leads:
            # The history first: the folder of the checkpoint says that it is complete.
            write_json(folder / f"{step:05d}.json", history)
            ppo.save(folder / f"{step:05d}")
    team.wait()
    return names


def missing_checkpoints(context: RunContext, iteration: int) -> list[int]:
    """Updates of an iteration whose checkpoints are not there yet."""
    folder = context.run.checkpoints(iteration)
    return [step for step in _checkpoint_steps(context) if not (folder / f"{step:05d}").exists()]


def average(context: RunContext, iteration: int, trajectory: Sequence[str], checkpoints: Sequence[str]) -> list[str]:
    """Writes the running averages of the weights so far, one for each checkpoint; returns their names.

    The leader of the team does.

    Args:
        context: The run.
        iteration: Counted from 0.
        trajectory: Names of the weights that the policy which this iteration started from is the average of.
        checkpoints: Those of this iteration.
    """
    folders = [context.run.candidate(iteration, int(Path(name).name)) for name in checkpoints]
    context.team.from_leader(lambda: _write_averages(context, trajectory, checkpoints, folders))
    return [folder.relative_to(context.run.path).as_posix() for folder in folders]


def _write_averages(
    context: RunContext, trajectory: Sequence[str], checkpoints: Sequence[str], folders: Sequence[Path]
) -> None:
    if all(folder.exists() for folder in folders):
        return
    mean = RunningAverage()
    for name in trajectory:
        mean.add(portable_state(context.policy(name).state_dict()))
    for name, folder in zip(checkpoints, folders, strict=True):
        mean.add(portable_state(context.policy(name).state_dict()))
        if not folder.exists():
            write_weights(folder, mean.state)


def _checkpoint_steps(context: RunContext) -> list[int]:
    settings = context.config.ppo
    # The last update competes too, whether or not `eval_every` divides the number of updates.
    return [*range(settings.eval_every, settings.updates, settings.eval_every), settings.updates]


def _environment(
    context: RunContext, iteration: int, start: SegmenterAdapter, ensemble: RewardEnsemble, domains: Domains
) -> SegmentationVecEnv:
    """Images with rewards from their ground truth, and as many target images with those of the ensemble and informants.

    Both are shown in new appearances, those with ground truth as they were collected. The ensemble and informants see
    target images as they are: the mask must not depend on the look.
    """
    known = context.dataset.records(iteration).with_ground_truth()
    settings = context.config.ppo
    count = len(known) or settings.updates * settings.n_envs
    rows, views, state = context.team.from_leader(lambda: _views(context, iteration, count, domains))
    generator = torch.Generator()
    generator.set_state(state)
    # The ensemble has not seen mirrored images; ground truth can.
    mirrored = Mirrored(known, context.source_policy.mirror_axes if len(known) else (), generator)
    return SegmentationVecEnv(
        ShownImages(mirrored, views, range(count)),
        _reward(context, start, ensemble, domains, rows, len(known)),
        context.num_classes,
        settings.n_envs,
        references=mirrored.references,
        rated_as=ShownImages(mirrored, domains.target.images, rows),
        seed=derive_seed(context.config.seed, "order", iteration),
        device=context.device,
    )


def _views(context: RunContext, iteration: int, count: int, domains: Domains) -> tuple[list[int], Rows, Tensor]:
    """Rows of the target, those images in new appearances, and the state of the generator that drew them."""
    generator = torch_generator(context.config.seed, "views", iteration)
    rows = torch.randint(len(domains.target), (count,), generator=generator).tolist()
    channels, strength = context.source_policy.intensity_channels, context.config.ppo.appearance_strength
    views = context.scratch.new("views")
    for row in rows:
        views.add(randomise_appearance(domains.target.images[[row]], None, strength, generator, channels))
    return rows, views.rows(), generator.get_state()


def _reward(
    context: RunContext,
    start: SegmenterAdapter,
    ensemble: RewardEnsemble,
    domains: Domains,
    rows: Sequence[int],
    first: int,
) -> RewardEnsemble | InformedReward:
    """The ensemble, and beside it what reports, the neighbours of frames and anatomy rules say of target images.

    Args:
        context: The run.
        start: The policy whose masks count, of neighbours and where they break rules.
        ensemble: The learned reward.
        domains: The images of the run.
        rows: Of the target images in the environment, in their order.
        first: Row of the environment that the first of them has.
    """
    informants: list[Informant] = []
    if domains.goals:
        cases = [domains.target.case_ids[row] for row in rows]
        goals = {first + place: domains.goals[case] for place, case in enumerate(cases) if case in domains.goals}
        informants.append(ReportedValues(goals))
    share = context.config.ppo.neighbour_share
    if domains.clips and share > 0:
        votes = ClipVotes(domains.target.images, domains.clips, partial(logits_of, start, context.device))
        shown = {first + place: row for place, row in enumerate(rows)}
        informants.append(NeighbourWord(votes, shown, share, context.config.ppo.n_envs))
    if context.config.ppo.rule_share > 0:
        broken = _axes_where_rules_are_broken(context, start, domains.target, set(rows))
        spoken_of = {first + place: broken[row] for place, row in enumerate(rows) if row in broken}
        informants.append(RuleWord(context.anatomy, spoken_of, context.config.ppo.rule_share))
    return InformedReward(ensemble, informants) if informants else ensemble


def _axes_where_rules_are_broken(
    context: RunContext, policy: SegmenterAdapter, images: ImageSet, rows: Collection[int]
) -> dict[int, GridAxes]:
    """How the axes run of those images, by their row, of which the policy's mask breaks a rule."""
    found = {}
    for row in sorted(rows):
        logits = logits_of(policy, context.device, images.images[[row]])
        axes = images.axes_of(row)
        if not context.is_valid(argmax_classes(logits, dim=1)[0].to(torch.uint8), axes):
            found[row] = axes
    return found


def _make_ppo(
    context: RunContext,
    iteration: int,
    start: SegmenterAdapter,
    reference: SegmenterAdapter,
    env: SegmentationVecEnv,
    checkpoint: Path | None,
) -> DensePPO:
    """A new PPO, or that of a checkpoint to go on with."""
    policy = copy.deepcopy(start)
    settings = context.config.ppo
    # The same for a new PPO and for one that goes on, whatever the checkpoint holds.
    arguments: dict[str, Any] = {
        "critic": _critic(context, iteration) if settings.baseline == "critic" else None,
        "trainable": list(context.open_to_learning(policy).values()),
        "autocast": context.device.type == "cuda",
        "recompute": context.config.recompute,
        "seed": derive_seed(context.config.seed, "ppo", iteration),
        "device": context.device,
        "team": context.team,
    }
    if checkpoint is not None:
        return DensePPO.load(checkpoint, env, policy, settings, **arguments)
    return DensePPO(env, policy, settings, reference=copy.deepcopy(reference), **arguments)


def _critic(context: RunContext, iteration: int) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(context.config.seed, "critic", iteration))
        adapter = context.source_policy
        return build_padded_unet(context.config.reward.network, len(adapter.patch_size), adapter.in_channels, 1)


def _logged(logger: Logger) -> dict[str, float]:
    return {
        name.replace("/", "_"): float(value)
        for name, value in logger.name_to_value.items()
        if isinstance(value, int | float)
    }
