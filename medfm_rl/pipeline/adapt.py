"""The loop: collect -> reward -> PPO, iterated; then the best checkpoint leaves in the segmenter's own format.

Every stage leaves its result under a final name when it is complete, draws from a generator of its own, and is skipped
where its result is there. So a run goes on after a kill and ends as if it had never been interrupted.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.base import without_gradient
from medfm_rl.data.files import hash_file, hash_folder, write_json
from medfm_rl.errors import ModelError
from medfm_rl.networks import convolution_choice_kept, portable_state
from medfm_rl.pipeline.checks import check_inputs
from medfm_rl.pipeline.collect_stage import collect, shape_prior
from medfm_rl.pipeline.default_quality import write_default_quality
from medfm_rl.pipeline.images import Progress
from medfm_rl.pipeline.inputs import DATA_SETS, TARGET, load_inputs, read_inputs, require_same_inputs, write_inputs
from medfm_rl.pipeline.ppo_stage import average, fine_tune, missing_checkpoints
from medfm_rl.pipeline.reward_stage import member_names, train_rewards
from medfm_rl.pipeline.run_folder import JUDGE, SOURCE, RunFolder
from medfm_rl.pipeline.selection import judge_masks, paired_judge_scores, select
from medfm_rl.pipeline.stage import Domains, Stage, write_weights
from medfm_rl.pipeline.tournament import Tournament
from medfm_rl.pipeline.warm_up import warm_up
from medfm_rl.quality.model import is_outdated
from medfm_rl.quality.run_hashes import hash_run
from medfm_rl.reward.network import FUSION, RewardNet
from medfm_rl.seeding import derive_seed
from medfm_rl.settings import AdaptConfig
from medfm_rl.tracking import Tracker, open_tracker

_LOG = logging.getLogger(__name__)


def adapt(config: AdaptConfig, resume: bool, progress: Progress) -> RunFolder:
    """Adapts a segmenter to the target domain without target labels.

    Args:
        config: The settings.
        resume: Go on with the run in `config.output`.
        progress: Told how far each stage is.

    Returns:
        The run folder: adapted segmenter in `model`, reward networks in `reward`, and, where there are enough held-out
        source cases, `quality.json`.

    Raises:
        UserError: Something that was handed over cannot be used.
    """
    run = _start(config, resume, progress)
    with open_tracker(config.tracking, run.path) as tracker:
        tracker.log_params(_with_absolute_paths(config.model_dump(mode="json"), config.model_dump()))
        _log_inputs(run, tracker)
        if not run.model.exists():
            with convolution_choice_kept():
                # From the start what stable-baselines3 sets: a run that is resumed rounds as one that was not.
                torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
                _run_all(Stage.of_run(config, run, progress), tracker)
        tracker.log_params(hash_run(run.path))
        _log_results(run, config, tracker)
        if write_default_quality(run, config, progress) is not None:
            tracker.log_params({"quality_hash": hash_file(run.quality)})
            tracker.log_artifact(run.quality)
    return run


def _with_absolute_paths(settings: Mapping[str, Any], paths: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are recorded: a relative path says nothing to who was not there.

    Args:
        settings: As JSON values.
        paths: The same with paths as such.
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found[name] = _with_absolute_paths(value, paths[name])
        else:
            found[name] = str(paths[name].resolve()) if isinstance(paths[name], Path) else value
    return found


def _log_inputs(run: RunFolder, tracker: Tracker) -> None:
    """Records the data sets by counts and hashes; the names of their files are in `inputs.json` alone."""
    # A run of an older version may have no such record, or one without places.
    if not run.inputs.exists():
        return
    for name, place in load_inputs(run.inputs).items():
        if place.cases:
            tracker.log_data(name.removesuffix(".path"), place.record())
    tracker.log_artifact(run.inputs)


def _start(config: AdaptConfig, resume: bool, progress: Progress) -> RunFolder:
    """Starts a run whose settings and inputs can be used, or goes on with one whose are still the same."""
    if not RunFolder(config.output).config_file.exists():
        RunFolder(config.output).require_empty()
        check_inputs(config, progress)
        # Before the settings are written: a run that has those and no record of its inputs is of an older version.
        inputs = read_inputs(config, progress)
        run = RunFolder.start(config, resume)
        write_inputs(run.inputs, inputs)
        return run
    run = RunFolder.start(config, resume)
    require_same_inputs(run.inputs, config, progress, _data_sets_to_read(run, config))
    return run


def _data_sets_to_read(run: RunFolder, config: AdaptConfig) -> tuple[str, ...]:
    """The data sets that what is left to do reads; a run that reads none can be resumed where they are no more."""
    calibrated = run.quality.exists() and not is_outdated(run.quality)
    if not run.model.exists() or not (calibrated or config.source is None):
        return DATA_SETS
    # The report shows images of the target where there are none to evaluate on.
    return () if config.evaluation is not None else (TARGET,)


def _run_all(stage: Stage, tracker: Tracker) -> None:
    config = stage.config
    tracker.log_params({"segmenter_hash": hash_folder(config.segmenter.folder)})
    domains = stage.load_domains()
    _require_gradients(stage, domains.target.images[:1])
    prior = shape_prior(stage, domains)
    settings = config.warm_up
    warms_up = settings.steps > 0 and (domains.source is not None or settings.target_weight > 0)
    if warms_up:
        _warm_up(stage, domains, tracker)
    tournament = Tournament.start(warms_up)
    policy = stage.policy(tournament.incumbent)
    reference = copy.deepcopy(policy)
    for iteration in range(config.iterations):
        with tracker.child(f"iteration-{iteration}") as records:
            # Rewards and PPO learn from D_R, and nothing after them.
            if missing_checkpoints(stage, iteration):
                with records.child("collect") as of_stage:
                    collect(stage, iteration, policy, prior, domains)
                    shards = {"actions_hash": stage.dataset.content_hash(), "shards": len(stage.dataset.shards())}
                    of_stage.log_params(shards)
            with records.child("reward") as of_stage:
                ensemble, judge = train_rewards(stage, iteration, of_stage)
            with records.child("ppo") as of_stage:
                checkpoints = fine_tune(stage, iteration, policy, reference, ensemble, domains, of_stage)
            with records.child("select") as of_stage:
                averages = average(stage, iteration, tournament.trajectory, checkpoints)
                tournament = tournament.joined_by(averages, checkpoints)
                tournament = tournament.won_by(_select(stage, iteration, tournament, judge, domains, of_stage))
            policy = stage.policy(tournament.incumbent)
    _export(stage, policy, tracker)


def _require_gradients(stage: Stage, images: Tensor) -> None:
    """Raises ModelError where a parameter that shall learn would never move: nothing later would say so."""
    policy = copy.deepcopy(stage.source_policy)
    settings = stage.config.segmenter
    without = without_gradient(policy, stage.open_to_learning(policy), images.to(stage.device))
    if without:
        raise ModelError(
            f"{settings.folder}: no gradient reaches {len(without)} parameters of the scope {settings.train!r}, the "
            f"first {without[0]}; choose another segmenter.train"
        )


def _warm_up(stage: Stage, domains: Domains, tracker: Tracker) -> None:
    """Writes the source policy after fine-tuning in the look of the target."""
    if stage.run.warm_up.exists():
        return
    settings = stage.config.warm_up
    policy = stage.policy(SOURCE)
    share = warm_up(
        policy,
        list(stage.open_to_learning(policy).values()),
        None if domains.source is None else (domains.source[0].images, domains.source[1]),
        domains.target.images,
        settings,
        derive_seed(stage.config.seed, "warm up"),
        stage.device,
        lambda done, total: stage.progress("warm-up", done, total),
        policy.intensity_channels,
        policy.mirror_axes,
    )
    tracker.log_params({"warm_up_source_share": share})
    if share < settings.source_share:
        _LOG.warning(
            "the weights of the warm-up were drawn back by a share of %g and not %g: further back they do worse on the "
            "source; was the segmenter trained to the end?",
            share,
            settings.source_share,
        )
    write_weights(stage.run.warm_up, portable_state(policy.state_dict()))


def _select(
    stage: Stage,
    iteration: int,
    tournament: Tournament,
    judge: RewardNet,
    domains: Domains,
    tracker: Tracker,
) -> str:
    """The candidate so far that the judge of this iteration is sure of, else the incumbent."""
    path = stage.run.selection(iteration)
    if not path.exists():
        images, names, incumbent = domains.selection.images, tournament.names, tournament.incumbent
        before = judge_masks(stage.policy(incumbent), judge, images, stage.device)
        scores = []
        for done, name in enumerate(names, 1):
            after = before if name == incumbent else judge_masks(stage.policy(name), judge, images, stage.device)
            scores.append(paired_judge_scores(before, after, stage.num_classes, stage.device))
            stage.progress(f"selection {iteration + 1}/{stage.config.iterations}", done, len(names))
        settings = stage.config.selection
        selection = select(names, scores, domains.selection, settings.confidence, settings.margin, incumbent)
        selection.write(path)
        for step, candidate in enumerate(selection.candidates):
            tracker.log_metrics({"judge_score": candidate.score}, step)
    return str(json.loads(path.read_text(encoding="utf-8"))["chosen"])


def _export(stage: Stage, policy: SegmenterAdapter, tracker: Tracker) -> None:
    config, run = stage.config, stage.run
    members, last = member_names(config), config.iterations - 1
    run.copy_reward(last, [*members, JUDGE])
    write_json(
        run.final_reward / FUSION,
        {"members": members, "fusion": config.reward.fusion, "pessimism": config.reward.pessimism},
    )
    tracker.log_params({"actions_hash": stage.dataset.content_hash()})
    policy.cpu().export(run.model)


def _log_results(run: RunFolder, config: AdaptConfig, tracker: Tracker) -> None:
    """Records what a finished run leaves, under the names that it has in the run folder.

    At every call, for nobody knows whether a run that was killed had come to it; what is there is written over.
    """
    for path in (run.config_file, run.selection(config.iterations - 1)):
        tracker.log_artifact(path)
    for folder in (run.model, run.final_reward):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            tracker.log_artifact(path, path.parent.relative_to(run.path).as_posix())
