"""The loop: collect -> reward -> PPO, iterated; then the best checkpoint leaves in the segmenter's own format.

Every stage leaves its result under a final name when it is complete, draws from a generator of its own, and is skipped
where its result is there. So a run goes on after a kill and ends as if it had never been interrupted.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.loading import load_segmenter
from medfm_rl.data.files import hash_file, hash_folder, scratch_folder
from medfm_rl.data.layouts import find_cases
from medfm_rl.data.locks import alone_in
from medfm_rl.networks import convolution_choice_kept
from medfm_rl.processes.team import ALONE, Team
from medfm_rl.progress import Progress, silent
from medfm_rl.quality.model import is_outdated
from medfm_rl.reward.fusion import write_fusion
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.runs.folder import HELD_OUT_REWARD, PREVIOUS, RunFolder
from medfm_rl.runs.inputs import DATA_SETS, TARGET, load_inputs, read_inputs, require_same_inputs, write_inputs
from medfm_rl.runs.learned_feedback import LearnedFeedback
from medfm_rl.runs.log_file import logged_to
from medfm_rl.settings import AdaptConfig
from medfm_rl.tracking import NullTracker, Tracker, open_tracker
from medfm_rl.workflows.adapt.checks import check_inputs
from medfm_rl.workflows.adapt.choosing.candidates import CandidatePool
from medfm_rl.workflows.adapt.choosing.choice import Witnesses, choose
from medfm_rl.workflows.adapt.choosing.cross_fit import cross_fit
from medfm_rl.workflows.adapt.context import RunContext
from medfm_rl.workflows.adapt.continuing import (
    Continuation,
    first_iteration,
    learned_before,
    require_same_segmenter,
    take_over,
)
from medfm_rl.workflows.adapt.feedback.gathering import as_record, gather, say_what_is_learned
from medfm_rl.workflows.adapt.forecast.expectation import Expectation
from medfm_rl.workflows.adapt.forecast.look_ahead import look_ahead, resumed, settings_of_run
from medfm_rl.workflows.adapt.forecast.stage_clock import StageClock, parts_of_stages
from medfm_rl.workflows.adapt.stages.collection import action_sources, collect, shape_prior
from medfm_rl.workflows.adapt.stages.ppo import average, missing_checkpoints, run_ppo
from medfm_rl.workflows.adapt.stages.rewards import member_names, train_rewards
from medfm_rl.workflows.adapt.stages.starting import fine_tunes, write_fine_tuned
from medfm_rl.workflows.adapt.together import require_same_files, require_same_settings
from medfm_rl.workflows.calibrate.from_source import write_default_quality

_LOG = logging.getLogger(__name__)


def adapt(
    config: AdaptConfig,
    resume: bool = False,
    progress: Progress = silent,
    max_minutes: float | None = None,
    team: Team = ALONE,
) -> RunFolder:
    """Adapts a segmenter to the target domain without target labels.

    Args:
        config: The settings.
        resume: Go on with the run in `config.output`.
        progress: Told how far each stage is.
        max_minutes: How long a new run may take on this machine; settings are lowered for it (`shortening.ORDER`), and
            the run goes on with those when it is resumed. None leaves them as they are.
        team: The processes that share the run (`medfm_rl.joined_team`); each calls this with the same
            settings. The first one checks and writes; the others have returned when it calibrates the quality model. A
            run can be resumed by another number of them.

    Returns:
        The run folder, with the adapted segmenter in `model`, reward networks in `reward`, and, where there are enough
        held-out source cases, `quality.json`.

    Raises:
        UserError: Something that was handed over cannot be used.
    """
    require_same_settings(config, team)
    if not team.leads:
        return _follow(config, team)
    with alone_in(config.output):
        run, config, expected = _start(config, resume, progress, max_minutes, team.size)
        with logged_to(run.log), open_tracker(config.tracking, run.path) as tracker:
            expected.tell()
            if team.size > 1:
                _LOG.info("%d processes share the run; what is expected is for one", team.size)
            progress = StageClock(progress, expected, parts_of_stages(config, team.size))
            tracker.log_params(_with_absolute_paths(config.model_dump(mode="json"), config.model_dump()))
            _log_inputs(run, tracker)
            if run.feedback.exists():
                tracker.log_params(as_record(LearnedFeedback.read(run.feedback)))
            if run.continued.exists():
                tracker.log_params(Continuation.read(run.continued).as_record())
            if run.model.exists():
                team.from_leader(lambda: None)
            else:
                with scratch_folder(run.path, "images") as scratch:
                    team.from_leader(lambda: scratch)
                    require_same_files(config, run, scratch, team)
                    _run_all(RunContext.of_run(config, run, progress, scratch, team), tracker)
            finished = FinishedRun(run.path, config.device)
            hashes = asdict(finished.identity)
            tracker.log_params({name: hashes[name] for name in ("model_hash", "reward_hash")})
            _log_results(run, tracker)
            if write_default_quality(finished, config, progress) is not None:
                tracker.log_params({"quality_hash": hash_file(run.quality)})
                tracker.log_artifact(run.quality)
        return run


def _follow(config: AdaptConfig, team: Team) -> RunFolder:
    """What a process does that does not lead: it waits for the checks, and has its share of the stages."""
    run = RunFolder(config.output)
    scratch = team.from_leader(_nothing)
    if scratch is not None:
        require_same_files(config, run, scratch, team)
        _run_all(RunContext.of_run(settings_of_run(config), run, silent, scratch, team), NullTracker())
    return run


def _nothing() -> Path | None:
    """What a process makes that waits for the leader."""
    return None


def _with_absolute_paths(settings: Mapping[str, Any], paths: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are recorded: a relative path says nothing to somebody who was not there.

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


def _start(
    config: AdaptConfig, resume: bool, progress: Progress, max_minutes: float | None, processes: int
) -> tuple[RunFolder, AdaptConfig, Expectation]:
    """Starts a run whose settings and inputs can be used, or goes on with one whose are still the same.

    Returns:
        Its folder, its settings, of which some may be lowered, and what is expected of it.
    """
    if not RunFolder(config.output).config_file.exists():
        RunFolder(config.output).require_empty()
        segmenter = check_inputs(config, progress)
        require_same_segmenter(config)
        # Before steps are measured, which takes longer: a store that cannot be read is told at once.
        learned = _gathered(config, progress, segmenter)
        config, expected = look_ahead(config, segmenter, max_minutes, progress, processes)
        # Before the settings are written: a run that has those and no record of its inputs is of an older version.
        inputs = read_inputs(config, progress)
        run = RunFolder.start(config, resume)
        expected.write(run.expected)
        write_inputs(run.inputs, inputs)
        if learned is not None:
            learned.write(run.feedback)
        take_over(config, run)
        return run, config, expected
    config, expected = resumed(config, max_minutes)
    run = RunFolder.start(config, resume)
    if not run.feedback.exists() and not run.model.exists():
        # Killed between the settings and what was gathered for them.
        learned = _gathered(config, progress)
        if learned is not None:
            learned.write(run.feedback)
    take_over(config, run)
    require_same_inputs(run.inputs, config, progress, _data_sets_to_read(run, config))
    return run, config, expected


def _gathered(
    config: AdaptConfig, progress: Progress, segmenter: SegmenterAdapter | None = None
) -> LearnedFeedback | None:
    """What the store of the settings says of the target, where they name one, and who taught an earlier run.

    Args:
        config: The settings.
        progress: Told how far it is.
        segmenter: That of the settings; None to load it where it is needed.
    """
    before = learned_before(config)
    if config.feedback is None:
        return None if before is None else before.without_teachers()
    taught = () if before is None else before.ever_taught
    schema = (load_segmenter(config.segmenter) if segmenter is None else segmenter).schema
    learned = gather(config.feedback, find_cases(config.target), config.seed, progress, taught, schema)
    say_what_is_learned(learned)
    return learned


def _data_sets_to_read(run: RunFolder, config: AdaptConfig) -> tuple[str, ...]:
    """The data sets that what is left to do reads; a run that reads none can be resumed where they are no more."""
    calibrated = run.quality.exists() and not is_outdated(run.quality)
    if not run.model.exists() or not (calibrated or config.source is None):
        return DATA_SETS
    # The report shows images of the target where there are none to evaluate on.
    return () if config.evaluation is not None else (TARGET,)


def _run_all(context: RunContext, tracker: Tracker) -> None:
    with convolution_choice_kept():
        # From the start what stable-baselines3 sets: a run that is resumed rounds as one that was not.
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        _run_stages(context, tracker)


def _run_stages(context: RunContext, tracker: Tracker) -> None:
    """All stages. Every process of the team goes through them; the leader alone has a tracker and writes the result."""
    config, team = context.config, context.team
    if team.leads:
        tracker.log_params({"segmenter_hash": hash_folder(config.segmenter.folder)})
    domains = context.load_domains()
    prior = shape_prior(context, domains)
    if fine_tunes(context, domains):
        write_fine_tuned(context, domains, tracker)
    evidence = cross_fit(context, domains)
    previous = team.from_leader(context.run.candidate_weights(PREVIOUS).exists)
    pool = CandidatePool.start(fine_tunes(context, domains), previous)
    policy = context.policy(pool.incumbent)
    reference = copy.deepcopy(policy)
    first = team.from_leader(lambda: first_iteration(context.run))
    for iteration in range(first, first + config.iterations):
        with tracker.child(f"iteration-{iteration}") as records:
            # Rewards and PPO learn from D_R, and nothing after them.
            if team.from_leader(partial(missing_checkpoints, context, iteration)):
                with records.child("collect") as of_stage:
                    collect(context, iteration, action_sources(context, policy, prior, domains))
                    if team.leads:
                        of_stage.log_params(
                            {"actions_hash": context.dataset.content_hash(), "shards": len(context.dataset.shards())}
                        )
            with records.child("reward") as of_stage:
                ensemble, held_out = train_rewards(context, iteration, of_stage, domains.judged)
            with records.child("ppo") as of_stage:
                checkpoints = run_ppo(context, iteration, policy, reference, ensemble, domains, of_stage)
            with records.child("select") as of_stage:
                averages = average(context, iteration, pool.trajectory, checkpoints)
                pool = pool.joined_by(averages, checkpoints)
                pool = pool.won_by(
                    choose(context, iteration, pool, Witnesses(held_out, prior, evidence), domains, of_stage)
                )
            policy = context.policy(pool.incumbent)
    team.from_leader(lambda: _export(context, policy, tracker))


def _export(context: RunContext, policy: SegmenterAdapter, tracker: Tracker) -> None:
    config, run = context.config, context.run
    members = member_names(config)
    run.copy_reward(run.iterations[-1], [*members, HELD_OUT_REWARD])
    write_fusion(run.final_reward, members, config.reward)
    tracker.log_params({"actions_hash": context.dataset.content_hash()})
    policy.cpu().export(run.model)


def _log_results(run: RunFolder, tracker: Tracker) -> None:
    """Records what a finished run leaves, under the names that it has in the run folder.

    At every call, for nobody knows whether a run that was killed had come to it; what is there is written over.
    """
    for path in (run.config_file, run.last_selection):
        tracker.log_artifact(path)
    for folder in (run.model, run.final_reward):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            tracker.log_artifact(path, path.parent.relative_to(run.path).as_posix())
