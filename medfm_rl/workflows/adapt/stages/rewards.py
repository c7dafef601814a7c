"""Training of an iteration's reward networks: the ensemble that the policy follows, and the held-out one."""

from __future__ import annotations

from medfm_rl.reward.judgements import Judgements, SplitJudgements
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.reward.origins import patients_of
from medfm_rl.reward.patient_split import SplitRecords, held_out_reward_patients, validation_patients_of
from medfm_rl.reward.training import train_reward
from medfm_rl.runs.folder import HELD_OUT_REWARD
from medfm_rl.seeding import derive_seed
from medfm_rl.settings import AdaptConfig
from medfm_rl.tracking import Tracker
from medfm_rl.workflows.adapt.context import RunContext
from medfm_rl.workflows.untrained_reward import untrained_reward


def member_names(config: AdaptConfig) -> list[str]:
    """Names of the reward networks of the ensemble."""
    return [f"member-{index}" for index in range(config.reward.ensemble)]


def _seed_name(name: str) -> str:
    """The name that a network draws by: that of version 0.1, so that the same seed gives the same weights as then."""
    return "judge" if name == HELD_OUT_REWARD else name


def train_rewards(
    context: RunContext, iteration: int, tracker: Tracker, judged: Judgements | None = None
) -> tuple[RewardEnsemble, RewardNet]:
    """Trains the ensemble on some patients and the held-out network on the others, side by side; returns both.

    Where there is ground truth, the held-out network learns of pixels from that alone: other references come from the
    policies that it is to rate. What reviewers said of masks comes from them, and teaches the network to which a
    patient belongs.

    Args:
        context: The run.
        iteration: Counted from 0.
        tracker: Told the calibration errors.
        judged: What reviewers said of whole masks.
    """
    config, run = context.config, context.run
    members = member_names(config)
    missing = context.team.from_leader(
        lambda: [name for name in (HELD_OUT_REWARD, *members) if not run.reward(iteration, name).exists()]
    )
    parts = _parts(context, judged) if missing else {}
    # Each as in one process, and not with a share of every batch: some draw by batch, and all are small.
    errors = context.team.share_out(missing, lambda name: _train(context, iteration, name, *parts[name]))
    for name, (before, after) in zip(missing, errors, strict=True):
        tracker.log_metrics({f"{name}_ece_before": before, f"{name}_ece_after": after}, iteration)
    ensemble = RewardEnsemble([RewardNet.load(run.reward(iteration, name)) for name in members], config.reward)
    held_out = RewardNet.load(run.reward(iteration, HELD_OUT_REWARD)).requires_grad_(False)
    return ensemble.to(context.device), held_out.to(context.device)


def _train(
    context: RunContext, iteration: int, name: str, records: SplitRecords, judgements: SplitJudgements | None
) -> tuple[float, float]:
    """Trains one network and writes it; returns its calibration error before and after the temperature."""
    config, folder = context.config, context.run.reward(iteration, name)
    seed = derive_seed(config.seed, "reward", iteration, _seed_name(name))
    net = _initial_reward(context, iteration, name, seed)
    label = f"reward network {name} {iteration + 1}/{config.iterations}"
    report = train_reward(
        net,
        records,
        config.reward,
        seed,
        context.device,
        lambda done, total: context.progress(label, done, total),
        f"reward network {name}",
        judgements,
    )
    # The report first: the folder of the network says that both are there.
    report.write(folder.with_name(f"{name}.json"))
    net.save(folder)
    return report.ece_before, report.ece_after


def _parts(context: RunContext, judged: Judgements | None) -> dict[str, tuple[SplitRecords, SplitJudgements | None]]:
    """By reward network, its part of D_R and of what reviewers said of masks."""
    seed, fraction = context.config.seed, context.config.reward.validation_fraction
    records = context.dataset.records()
    first = context.dataset.origins(0)
    judged_patients = judged.patients if judged is not None else set()
    kept_apart = held_out_reward_patients(records.origins, first, seed, judged_patients)
    with_ground_truth = records.with_ground_truth()
    trusted = with_ground_truth if len(with_ground_truth) else records
    others = records.of_patients(patients_of(records.origins) - kept_apart)
    parts = {}
    for name, own, own_judged in (
        (HELD_OUT_REWARD, trusted.of_patients(kept_apart), judged_patients & kept_apart),
        *((name, others, judged_patients - kept_apart) for name in member_names(context.config)),
    ):
        kept = set(own.origins)
        own_first = [origin for origin in first if origin in kept]
        # The seed of the first iteration, for the network goes on from there.
        own_seed = derive_seed(seed, "reward", 0, _seed_name(name))
        held_out = validation_patients_of(own.origins, own_first, fraction, own_seed, own_judged)
        parts[name] = (
            SplitRecords.hold_out(own, held_out),
            None if judged is None else SplitJudgements.hold_out(judged.of_patients(own_judged), held_out),
        )
    return parts


def _initial_reward(context: RunContext, iteration: int, name: str, seed: int) -> RewardNet:
    """A new network, or a copy of the previous iteration's to go on from."""
    if iteration > 0:
        return RewardNet.load(context.run.reward(iteration - 1, name)).requires_grad_(True)
    return untrained_reward(context.config.reward.network, context.source_policy, seed)
