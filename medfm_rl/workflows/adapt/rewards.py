"""Training of an iteration's reward networks: the ensemble that the policy follows, and the held-out one."""

from __future__ import annotations

import torch

from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.reward.origins import patients_of
from medfm_rl.reward.patient_split import SplitRecords, held_out_reward_patients, validation_patients_of
from medfm_rl.reward.training import train_reward
from medfm_rl.runs.folder import HELD_OUT_REWARD
from medfm_rl.seeding import derive_seed
from medfm_rl.settings import AdaptConfig
from medfm_rl.tracking import Tracker
from medfm_rl.workflows.adapt.context import RunContext


def member_names(config: AdaptConfig) -> list[str]:
    """Names of the reward networks of the ensemble."""
    return [f"member-{index}" for index in range(config.reward.ensemble)]


def _seed_name(name: str) -> str:
    """The name that a network draws by: that of version 0.1, so that the same seed gives the same weights as then."""
    return "judge" if name == HELD_OUT_REWARD else name


def train_rewards(context: RunContext, iteration: int, tracker: Tracker) -> tuple[RewardEnsemble, RewardNet]:
    """Trains the ensemble on some patients and the held-out network on the others; returns both.

    Where there is ground truth, the held-out network learns from that alone: other references come from the policies
    that it is to rate.
    """
    config, run = context.config, context.run
    members = member_names(config)
    missing = [name for name in (HELD_OUT_REWARD, *members) if not run.reward(iteration, name).exists()]
    parts = _parts_of_records(context) if missing else {}
    for name in missing:
        folder = run.reward(iteration, name)
        seed = derive_seed(config.seed, "reward", iteration, _seed_name(name))
        net = _initial_reward(context, iteration, name, seed)
        label = f"reward network {name} {iteration + 1}/{config.iterations}"
        report = train_reward(
            net,
            parts[name],
            config.reward,
            seed,
            context.device,
            lambda done, total, label=label: context.progress(label, done, total),  # type: ignore[misc]
            f"reward network {name}",
        )
        # The report first: the folder of the network says that both are there.
        report.write(folder.with_name(f"{name}.json"))
        net.save(folder)
        tracker.log_metrics({f"{name}_ece_before": report.ece_before, f"{name}_ece_after": report.ece_after}, iteration)
    ensemble = RewardEnsemble([RewardNet.load(run.reward(iteration, name)) for name in members], config.reward)
    held_out = RewardNet.load(run.reward(iteration, HELD_OUT_REWARD)).requires_grad_(False)
    return ensemble.to(context.device), held_out.to(context.device)


def _parts_of_records(context: RunContext) -> dict[str, SplitRecords]:
    """By reward network, its part of D_R."""
    seed, fraction = context.config.seed, context.config.reward.validation_fraction
    records = context.dataset.read_all()
    first = [origin for key in context.dataset.shards(0) for origin in context.dataset.read(key).origins]
    kept_apart = held_out_reward_patients(records.origins, first, seed)
    with_ground_truth = records.with_ground_truth()
    trusted = with_ground_truth if len(with_ground_truth) else records
    others = records.of_patients(patients_of(records.origins) - kept_apart)
    parts = {}
    for name, own in (
        (HELD_OUT_REWARD, trusted.of_patients(kept_apart)),
        *((name, others) for name in member_names(context.config)),
    ):
        kept = set(own.origins)
        own_first = [origin for origin in first if origin in kept]
        # The seed of the first iteration, for the network goes on from there.
        own_seed = derive_seed(seed, "reward", 0, _seed_name(name))
        parts[name] = SplitRecords.hold_out(own, validation_patients_of(own.origins, own_first, fraction, own_seed))
    return parts


def _initial_reward(context: RunContext, iteration: int, name: str, seed: int) -> RewardNet:
    """A new network, or a copy of the previous iteration's to go on from."""
    if iteration > 0:
        return RewardNet.load(context.run.reward(iteration - 1, name)).requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RewardNet(
            context.config.reward.network,
            context.num_classes,
            context.source_policy.intensity_channels,
            len(context.source_policy.patch_size),
        )
