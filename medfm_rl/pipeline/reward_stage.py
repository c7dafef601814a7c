"""Training of an iteration's reward networks: the ensemble that the policy follows, and the judge."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch

from medfm_rl.data.files import write_json
from medfm_rl.pipeline.run_folder import JUDGE
from medfm_rl.pipeline.stage import Stage
from medfm_rl.reward.actions import ActionRecords
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.reward.roles import held_out_patients, judge_patients
from medfm_rl.reward.training import RewardTrainingReport, patients_of, train_reward
from medfm_rl.seeding import derive_seed
from medfm_rl.settings import AdaptConfig
from medfm_rl.tracking import Tracker


def member_names(config: AdaptConfig) -> list[str]:
    """Names of the reward networks of the ensemble."""
    return [f"member-{index}" for index in range(config.reward.ensemble)]


def train_rewards(stage: Stage, iteration: int, tracker: Tracker) -> tuple[RewardEnsemble, RewardNet]:
    """Trains the ensemble on some patients and the judge on the others; returns both.

    Where there is ground truth of the source, the judge learns from that alone: references of target images come from
    the policies that it shall judge.
    """
    config, run = stage.config, stage.run
    members = member_names(config)
    missing = [name for name in (JUDGE, *members) if not run.reward(iteration, name).exists()]
    parts = _parts_of_records(stage) if missing else {}
    for name in missing:
        folder = run.reward(iteration, name)
        seed = derive_seed(config.seed, "reward", iteration, name)
        net = _initial_reward(stage, iteration, name, seed)
        label = f"reward network {name} {iteration + 1}/{config.iterations}"
        report = train_reward(
            net,
            parts[name].records,
            config.reward,
            seed,
            stage.device,
            lambda done, total, label=label: stage.progress(label, done, total),  # type: ignore[misc]
            parts[name].held_out,
        )
        # The report first: the folder of the network says that the stage is complete.
        write_json(folder.with_name(f"{name}.json"), reward_report_to_json(report))
        net.save(folder)
        tracker.log_metrics({f"{name}_ece_before": report.ece_before, f"{name}_ece_after": report.ece_after}, iteration)
    ensemble = RewardEnsemble([RewardNet.load(run.reward(iteration, name)) for name in members], config.reward)
    judge = RewardNet.load(run.reward(iteration, JUDGE)).requires_grad_(False)
    return ensemble.to(stage.device), judge.to(stage.device)


@dataclass(frozen=True, eq=False)
class _Part:
    """What a reward network learns from, and the patients in it that it is stopped and calibrated on."""

    records: ActionRecords
    held_out: set[str]


def _parts_of_records(stage: Stage) -> dict[str, _Part]:
    """By reward network, its part of D_R."""
    seed, fraction = stage.config.seed, stage.config.reward.validation_fraction
    records = stage.dataset.read_all()
    of_first = [key for key in stage.dataset.shards() if key.startswith(f"{0:02d}-")]
    first = [origin for key in of_first for origin in stage.dataset.read(key).origins]
    judged = judge_patients(records.origins, first, seed)
    trusted = records.of_domain("source") if stage.config.source else records
    others = records.of_patients(patients_of(records.origins) - judged)
    parts = {}
    for name, own in ((JUDGE, trusted.of_patients(judged)), *((name, others) for name in member_names(stage.config))):
        kept = set(own.origins)
        own_first = [origin for origin in first if origin in kept]
        # The seed of the first iteration, for the network goes on from there.
        held_out = held_out_patients(own.origins, own_first, fraction, derive_seed(seed, "reward", 0, name))
        parts[name] = _Part(own, held_out)
    return parts


def _initial_reward(stage: Stage, iteration: int, name: str, seed: int) -> RewardNet:
    """A new network, or a copy of the previous iteration's to go on from."""
    if iteration > 0:
        return RewardNet.load(stage.run.reward(iteration - 1, name)).requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RewardNet(
            stage.config.reward.network,
            stage.num_classes,
            stage.source_policy.intensity_channels,
            len(stage.source_policy.patch_size),
        )


def reward_report_to_json(report: RewardTrainingReport) -> dict[str, object]:
    """The training report of a reward network as plain JSON values."""
    content = asdict(report)
    for name in ("reliability_before", "reliability_after"):
        curve = getattr(report, name)
        content[name] = {key: np.asarray(getattr(curve, key)).tolist() for key in ("confidence", "accuracy", "count")}
    return content
