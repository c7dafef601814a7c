"""The loop: collect -> reward -> PPO, iterated; then the best checkpoint leaves in the segmenter's own format.

Every stage leaves its result under a final name when it is complete, draws from a generator of its own, and is skipped
where its result is there. So a run goes on after a kill and ends as if it had never been interrupted.
"""

from __future__ import annotations

import copy
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from stable_baselines3.common.logger import Logger
from torch import Tensor
from torch.nn import Parameter

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.base import without_gradient
from medfm_rl.adapters.loading import load_segmenter, open_to_learning
from medfm_rl.data.files import hash_file, hash_folder, replace_folder_on_success, write_json
from medfm_rl.data.layouts import CaseFile, find_cases, split_by_patient
from medfm_rl.envs import SegmentationVecEnv
from medfm_rl.errors import DataError, ModelError
from medfm_rl.metrics.validity import load_anatomy
from medfm_rl.networks import build_unet, portable_state
from medfm_rl.pipeline.averaging import average_weights
from medfm_rl.pipeline.calibrate import write_default_quality
from medfm_rl.pipeline.images import Progress, load_images, load_labelled
from medfm_rl.pipeline.models import choose_device
from medfm_rl.pipeline.run_folder import SOURCE, WARM_UP, RunFolder
from medfm_rl.pipeline.selection import judge_scores, select
from medfm_rl.pipeline.supervised import mirror_at_random
from medfm_rl.pipeline.warm_up import warm_up
from medfm_rl.policies import ACTOR, DenseCategorical, DensePPO
from medfm_rl.reward.actions import ActionDataset, ActionRecords, patient_folds
from medfm_rl.reward.appearance import randomise_appearance
from medfm_rl.reward.collection import Collector, ImageSet
from medfm_rl.reward.network import FUSION, RewardEnsemble, RewardNet
from medfm_rl.reward.shape_prior import ShapePrior, train_shape_prior
from medfm_rl.reward.training import RewardTrainingReport, train_reward
from medfm_rl.seeding import derive_seed, torch_generator
from medfm_rl.settings import AdaptConfig
from medfm_rl.tracking import Tracker, open_tracker

_LOG = logging.getLogger(__name__)
_JUDGE = "judge"


@dataclass(frozen=True, eq=False)
class Domains:
    """The images of a run.

    Attributes:
        target: Unlabelled target images that the policy learns on.
        selection: Unlabelled images of other target patients, on which the judge compares checkpoints.
        source: Source images and their ground truth, or None in the source-free mode.
    """

    target: ImageSet
    selection: ImageSet
    source: tuple[ImageSet, Tensor] | None


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
    if not RunFolder(config.output).config_file.exists():
        _check_inputs(config)
    run = RunFolder.start(config, resume)
    with open_tracker(config.tracking, run.path) as tracker:
        tracker.log_params(config.model_dump(mode="json"))
        _Loop(config, run, tracker, progress).run_all()
        if write_default_quality(run, config, progress) is not None:
            tracker.log_artifact(run.quality)
    return run


def _check_inputs(config: AdaptConfig) -> None:
    """Finds mistakes before a folder is written, and not when hours of work are done.

    Of the evaluation data it asks only which masks there are.

    Raises:
        UserError: Something that was handed over cannot be used.
    """
    choose_device(config.device)
    segmenter = load_segmenter(config.segmenter)
    open_to_learning(segmenter, config.segmenter, config.seed)
    load_anatomy(config.anatomy, segmenter.schema)
    _split_target(config)
    for name, data in (("source", config.source), ("evaluation", config.evaluation)):
        files = find_cases(data) if data is not None else []
        without_mask = [file for file in files if file.label_path is None]
        if without_mask:
            raise DataError(
                f"{name}: there is no mask for {without_mask[0].image_paths[0]} ({len(without_mask)} of {len(files)} "
                "images have none); labelled data is needed here"
            )
        if name == "evaluation" and data is not None and len({file.patient_id for file in files}) < 2:
            raise DataError(f"evaluation: {data.path} has images of one patient; intervals need at least 2")


def _split_target(config: AdaptConfig) -> tuple[list[CaseFile], list[CaseFile]]:
    """Cases to learn on, and those of other patients on which the judge compares checkpoints.

    Raises:
        DataError: There are too few patients.
    """
    files = find_cases(config.target)
    fraction = config.selection.target_fraction
    where = f"target: {config.target.path}"
    learning, selecting = split_by_patient(files, fraction, derive_seed(config.seed, "selection"), where)
    if len({file.patient_id for file in selecting}) < 2:
        raise DataError(
            f"target: {config.target.path} has images of {len({file.patient_id for file in files})} patients, of whom "
            f"selection.target_fraction {fraction:g} leaves one to compare checkpoints on, and 2 are needed; give more "
            "patients or raise the fraction"
        )
    return learning, selecting


class _Loop:
    """One run of the loop: what its stages share."""

    def __init__(self, config: AdaptConfig, run: RunFolder, tracker: Tracker, progress: Progress) -> None:
        self.config = config
        self.run = run
        self.tracker = tracker
        self.progress = progress
        self.device = choose_device(config.device)
        self.source_policy = load_segmenter(config.segmenter).to(self.device)
        self.schema = self.source_policy.schema
        self.anatomy = load_anatomy(config.anatomy, self.schema)
        self.dataset = ActionDataset(run.actions)

    def run_all(self) -> None:
        if self.run.model.exists():
            return
        self.tracker.log_params({"segmenter_hash": hash_folder(self.config.segmenter.folder)})
        domains = self._load_domains()
        self._require_gradients(domains.target.images[:1])
        prior = self._shape_prior(domains)
        names, incumbent = [SOURCE], SOURCE
        settings = self.config.warm_up
        if settings.steps > 0 and (domains.source is not None or settings.target_weight > 0):
            self._warm_up(domains)
            names, incumbent = [SOURCE, WARM_UP], WARM_UP
        policy = self._policy(incumbent)
        reference = copy.deepcopy(policy)
        # Names of the weights along the fine-tuning, with those that it started from.
        trajectory = [incumbent]
        for iteration in range(self.config.iterations):
            with self.tracker.child(f"iteration-{iteration}") as tracker:
                # Rewards and PPO learn from D_R, and nothing after them.
                if self._missing_checkpoints(iteration):
                    with tracker.child("collect") as stage:
                        self._collect(iteration, policy, prior, domains)
                        stage.log_params(
                            {"actions_hash": self.dataset.content_hash(), "shards": len(self.dataset.shards())}
                        )
                with tracker.child("reward") as stage:
                    ensemble, judge = self._train_rewards(iteration, stage)
                with tracker.child("ppo") as stage:
                    checkpoints = self._fine_tune(iteration, policy, reference, ensemble, domains, stage)
                with tracker.child("select") as stage:
                    averages = self._average(iteration, trajectory, checkpoints)
                    names += averages
                    # A little PPO beside the warm-up: there is more reason to believe in it than in what a judge makes
                    # of its rivals. It stays unless the judge is sure.
                    if incumbent != SOURCE:
                        incumbent = averages[0]
                    incumbent = self._select(iteration, names, incumbent, judge, domains, stage)
                policy = self._policy(incumbent)
                # Where the source policy was better, the next iteration starts anew from there.
                trajectory = [SOURCE] if incumbent == SOURCE else [*trajectory, *checkpoints]
        self._export(policy)

    def _load_domains(self) -> Domains:
        learning, selecting = _split_target(self.config)
        target = load_images(learning, self.source_policy, self.progress, "target images")
        selection = load_images(selecting, self.source_policy, self.progress, "selection images")
        source = None
        if self.config.source is not None:
            source = load_labelled(find_cases(self.config.source), self.source_policy, self.progress, "source images")
        return Domains(target, selection, source)

    def _require_gradients(self, images: Tensor) -> None:
        """Raises ModelError where a parameter that shall learn would never move: nothing later would say so."""
        policy = copy.deepcopy(self.source_policy)
        scope = self.config.segmenter.train
        without = without_gradient(policy, self._open_to_learning(policy), images.to(self.device))
        if without:
            raise ModelError(
                f"{self.config.segmenter.folder}: no gradient reaches {len(without)} parameters of the scope "
                f"{scope!r}, the first {without[0]}; choose another segmenter.train"
            )

    def _warm_up(self, domains: Domains) -> None:
        """Writes the source policy after fine-tuning in the look of the target."""
        if not self.run.warm_up.exists():
            policy = self._policy(SOURCE)
            share = warm_up(
                policy,
                list(self._open_to_learning(policy).values()),
                None if domains.source is None else (domains.source[0].images, domains.source[1]),
                domains.target.images,
                self.config.warm_up,
                derive_seed(self.config.seed, "warm up"),
                self.device,
                lambda done, total: self.progress("warm-up", done, total),
                policy.intensity_channels,
                policy.mirror_axes,
            )
            self.tracker.log_params({"warm_up_source_share": share})
            if share < self.config.warm_up.source_share:
                _LOG.warning(
                    "the weights of the warm-up were drawn back by a share of %g and not %g: further back they do "
                    "worse on the source; was the segmenter trained to the end?",
                    share,
                    self.config.warm_up.source_share,
                )
            self._write_weights(self.run.warm_up, portable_state(policy.state_dict()))

    def _shape_prior(self, domains: Domains) -> ShapePrior:
        if not self.run.shape_prior.exists():
            masks = domains.source[1] if domains.source else self._valid_predictions(domains.target)
            train_shape_prior(
                masks,
                self.schema.num_classes,
                self.config.shape_prior,
                derive_seed(self.config.seed, "shape prior"),
                self.device,
                lambda done, total: self.progress("shape prior", done, total),
            ).save(self.run.shape_prior)
        return ShapePrior.load(self.run.shape_prior)

    @torch.no_grad()
    def _valid_predictions(self, images: ImageSet) -> Tensor:
        batches = images.images.split(16)
        masks = torch.cat([self.source_policy(batch.to(self.device)).argmax(dim=1).cpu() for batch in batches])
        kept = [mask for mask in masks.to(torch.uint8) if self.anatomy.is_valid(mask.numpy())]
        return torch.stack(kept) if kept else masks[:0].to(torch.uint8)

    def _collect(self, iteration: int, policy: SegmenterAdapter, prior: ShapePrior, domains: Domains) -> None:
        settings = self.config.collect
        collector = Collector(
            policy,
            self.schema.num_classes,
            settings,
            lambda logits, generator: DenseCategorical(logits).sample(generator, self._correlation_length),
            lambda mask: self.anatomy.is_valid(mask.numpy()),
            prior,
            self.device,
            policy.intensity_channels,
        )
        plan = [("target", settings.target_images)]
        if domains.source is not None:
            plan.insert(0, ("source", settings.source_images))
        for domain, count in plan:
            name = f"collecting actions {iteration + 1}/{self.config.iterations} ({domain})"
            for done in range(0, count, settings.shard_images):
                key = f"{iteration:02d}-{domain}-{done:06d}"
                if key not in self.dataset.shards():
                    generator = torch_generator(self.config.seed, "collect", key)
                    size = min(settings.shard_images, count - done)
                    self.dataset.append(key, self._collect_shard(collector, domain, size, domains, generator))
                self.progress(name, min(done + settings.shard_images, count), count)

    def _collect_shard(
        self, collector: Collector, domain: str, size: int, domains: Domains, generator: torch.Generator
    ) -> ActionRecords:
        if domain == "source":
            assert domains.source is not None
            images, masks = domains.source
            rows = torch.randint(len(images), (size,), generator=generator).tolist()
            return collector.from_source(images[rows], masks[rows], domains.target.images, generator)
        rows = torch.randint(len(domains.target), (size,), generator=generator).tolist()
        return collector.from_target(domains.target[rows], generator)

    def _train_rewards(self, iteration: int, tracker: Tracker) -> tuple[RewardEnsemble, RewardNet]:
        """Trains the ensemble on some patients and the judge on the others.

        Where there is ground truth of the source, the judge learns from that alone: references of target images come
        from the policies that it shall judge.
        """
        missing = [name for name in (_JUDGE, *self._members) if not self.run.reward(iteration, name).exists()]
        parts = self._parts_of_records() if missing else {}
        for name in missing:
            folder = self.run.reward(iteration, name)
            seed = derive_seed(self.config.seed, "reward", iteration, name)
            net = self._initial_reward(iteration, name, seed)
            label = f"reward network {name} {iteration + 1}/{self.config.iterations}"
            report = train_reward(
                net,
                parts[name],
                self.config.reward,
                seed,
                self.device,
                lambda done, total, label=label: self.progress(label, done, total),  # type: ignore[misc]
            )
            # The report first: the folder of the network says that the stage is complete.
            write_json(folder.with_name(f"{name}.json"), reward_report_to_json(report))
            net.save(folder)
            tracker.log_metrics(
                {f"{name}_ece_before": report.ece_before, f"{name}_ece_after": report.ece_after}, iteration
            )
        members = [RewardNet.load(self.run.reward(iteration, name)) for name in self._members]
        judge = RewardNet.load(self.run.reward(iteration, _JUDGE)).requires_grad_(False)
        return RewardEnsemble(members, self.config.reward).to(self.device), judge.to(self.device)

    def _parts_of_records(self) -> dict[str, ActionRecords]:
        """By reward network, what it learns from."""
        records = self.dataset.read_all()
        folds = patient_folds(records, 3, derive_seed(self.config.seed, "judge"))
        trusted = records.of_domain("source") if self.config.source else records
        others = records.of_patients(folds[1] + folds[2])
        return {_JUDGE: trusted.of_patients(folds[0]), **dict.fromkeys(self._members, others)}

    @property
    def _members(self) -> list[str]:
        return [f"member-{index}" for index in range(self.config.reward.ensemble)]

    def _initial_reward(self, iteration: int, name: str, seed: int) -> RewardNet:
        """A new network, or a copy of the previous iteration's to go on from."""
        if iteration > 0:
            return RewardNet.load(self.run.reward(iteration - 1, name)).requires_grad_(True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return RewardNet(
                self.config.reward.network,
                self.schema.num_classes,
                self.source_policy.intensity_channels,
                len(self.source_policy.patch_size),
            )

    def _fine_tune(
        self,
        iteration: int,
        start: SegmenterAdapter,
        reference: SegmenterAdapter,
        ensemble: RewardEnsemble,
        domains: Domains,
        tracker: Tracker,
    ) -> list[str]:
        """PPO from the policy chosen so far, held near the reference; returns the names of the checkpoints."""
        settings, folder = self.config.ppo, self.run.checkpoints(iteration)
        steps = self._checkpoint_steps()
        names = [f"{folder.parent.name}/{folder.name}/{step:05d}" for step in steps]
        missing = self._missing_checkpoints(iteration)
        if not missing:
            return names
        env = self._environment(iteration, ensemble, domains)
        last = max((step for step in steps if step < missing[0]), default=0)
        ppo = self._make_ppo(iteration, start, reference, env, folder, last)
        for step in missing:
            history = []
            while ppo._n_updates < step:
                ppo.learn(env.num_envs, reset_num_timesteps=False)
                self.progress(f"PPO {iteration + 1}/{self.config.iterations}", ppo._n_updates, settings.updates)
                history.append({"update": ppo._n_updates, **_logged(ppo.logger)})
                tracker.log_metrics(history[-1], ppo._n_updates)
            # The history first: the folder of the checkpoint says that it is complete.
            write_json(folder / f"{step:05d}.json", history)
            ppo.save(folder / f"{step:05d}")
        return names

    def _checkpoint_steps(self) -> list[int]:
        settings = self.config.ppo
        # The last update competes too, whether or not `eval_every` divides the number of updates.
        return [*range(settings.eval_every, settings.updates, settings.eval_every), settings.updates]

    def _missing_checkpoints(self, iteration: int) -> list[int]:
        folder = self.run.checkpoints(iteration)
        return [step for step in self._checkpoint_steps() if not (folder / f"{step:05d}").exists()]

    def _environment(self, iteration: int, ensemble: RewardEnsemble, domains: Domains) -> SegmentationVecEnv:
        """Source images in new appearances judged by their ground truth, and as many target images by the ensemble.

        The policy sees target images in new appearances too, the ensemble as they are: the mask must not depend on
        the look.
        """
        known = [self.dataset.read(key) for key in self.dataset.shards() if key.startswith(f"{iteration:02d}-source")]
        settings = self.config.ppo
        count = sum(len(shard.images) for shard in known) or settings.updates * settings.n_envs
        generator = torch_generator(self.config.seed, "views", iteration)
        target = domains.target.images[torch.randint(len(domains.target), (count,), generator=generator)]
        channels = self.source_policy.intensity_channels
        views = randomise_appearance(target, None, settings.appearance_strength, generator, channels)
        images, references = [shard.images for shard in known], [shard.references for shard in known]
        if known:
            # The ensemble has not seen mirrored images; ground truth can judge them.
            axes = self.source_policy.mirror_axes
            mirrored = mirror_at_random(torch.cat(images), torch.cat(references), axes, generator)
            images, references = [mirrored[0]], [mirrored[1]]
        return SegmentationVecEnv(
            torch.cat([*images, views]).numpy(),
            ensemble,
            self.schema.num_classes,
            settings.n_envs,
            references=references[0].numpy() if known else None,
            judged=torch.cat([*images, target]).numpy(),
            seed=derive_seed(self.config.seed, "order", iteration),
            device=self.device,
        )

    def _make_ppo(
        self,
        iteration: int,
        start: SegmenterAdapter,
        reference: SegmenterAdapter,
        env: SegmentationVecEnv,
        folder: Path,
        last: int,
    ) -> DensePPO:
        settings = self.config.ppo
        policy = copy.deepcopy(start)
        trainable = list(self._open_to_learning(policy).values())
        critic = self._critic(iteration) if settings.baseline == "critic" else None
        if last > 0:
            return DensePPO.load(folder / f"{last:05d}", env, policy, critic, trainable, device=self.device)
        return DensePPO(
            env,
            policy,
            critic,
            trainable,
            copy.deepcopy(reference),
            learning_rate=settings.learning_rate,
            critic_learning_rate=settings.critic_learning_rate,
            n_epochs=settings.n_epochs,
            clip_range=settings.clip_range,
            ent_coef=settings.ent_coef,
            kl_coef=settings.kl_coef,
            target_kl=settings.target_kl,
            max_grad_norm=settings.max_grad_norm,
            baseline=settings.baseline,
            correlation_length=self._correlation_length,
            autocast=self.device.type == "cuda",
            seed=derive_seed(self.config.seed, "ppo", iteration),
            device=self.device,
        )

    def _critic(self, iteration: int) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.config.seed, "critic", iteration))
            adapter = self.source_policy
            return build_unet(self.config.reward.network, len(adapter.patch_size), adapter.in_channels, 1)

    def _average(self, iteration: int, trajectory: list[str], checkpoints: list[str]) -> list[str]:
        """Writes the running averages of the weights so far, one for each checkpoint; returns their names."""
        names = []
        for count, last in enumerate(checkpoints, 1):
            folder = self.run.candidate(iteration, int(Path(last).name))
            if not folder.exists():
                path = [*trajectory, *checkpoints[:count]]
                states = [portable_state(self._policy(name).state_dict()) for name in path]
                self._write_weights(folder, average_weights(states))
            names.append(folder.relative_to(self.run.path).as_posix())
        return names

    @staticmethod
    def _write_weights(folder: Path, state: dict[str, Tensor]) -> None:
        with replace_folder_on_success(folder) as temporary:
            (temporary / ACTOR).write_bytes(save(state))

    def _select(
        self, iteration: int, names: list[str], incumbent: str, judge: RewardNet, domains: Domains, tracker: Tracker
    ) -> str:
        """The candidate so far that the judge of this iteration is sure of, else the incumbent."""
        path = self.run.selection(iteration)
        if not path.exists():
            scores = []
            for done, name in enumerate(names, 1):
                policy = self._policy(name)
                scores.append(
                    judge_scores(policy, judge, domains.selection.images, self.schema.num_classes, self.device)
                )
                self.progress(f"selection {iteration + 1}/{self.config.iterations}", done, len(names))
            settings = self.config.selection
            selection = select(names, scores, domains.selection, settings.confidence, settings.margin, incumbent)
            selection.write(path)
            for step, candidate in enumerate(selection.candidates):
                tracker.log_metrics({"judge_score": candidate.score}, step)
        return str(json.loads(path.read_text(encoding="utf-8"))["chosen"])

    def _policy(self, name: str) -> SegmenterAdapter:
        policy = copy.deepcopy(self.source_policy)
        if name != SOURCE:
            policy.load_state_dict(load_file(self.run.path / name / ACTOR))
        return policy.eval()

    def _open_to_learning(self, policy: SegmenterAdapter) -> dict[str, Parameter]:
        return open_to_learning(policy, self.config.segmenter, self.config.seed)

    def _export(self, policy: SegmenterAdapter) -> None:
        last = self.config.iterations - 1
        self.run.copy_reward(last, [*self._members, _JUDGE])
        write_json(
            self.run.final_reward / FUSION,
            {"members": self._members, "fusion": self.config.reward.fusion, "pessimism": self.config.reward.pessimism},
        )
        policy.cpu().export(self.run.model)
        self.tracker.log_params({"model_hash": hash_folder(self.run.model)})
        for path in (self.run.config_file, self.run.selection(last)):
            self.tracker.log_artifact(path)
        for path in sorted(path for path in self.run.model.rglob("*") if path.is_file()):
            self.tracker.log_artifact(path, path.parent.relative_to(self.run.path).as_posix())
        for path in sorted(self.run.final_reward.rglob("*")):
            if path.is_file():
                self.tracker.log_artifact(path, f"reward/{path.parent.name}")
                self.tracker.log_params({f"hash.{path.parent.name}.{path.name}": hash_file(path)})

    @property
    def _correlation_length(self) -> float:
        return self.config.ppo.correlation_length if self.config.ppo.exploration == "correlated" else 0.0


def reward_report_to_json(report: RewardTrainingReport) -> dict[str, object]:
    """The training report of a reward network as plain JSON values."""
    content = asdict(report)
    for name in ("reliability_before", "reliability_after"):
        curve = getattr(report, name)
        content[name] = {key: np.asarray(getattr(curve, key)).tolist() for key in ("confidence", "accuracy", "count")}
    return content


def _logged(logger: Logger) -> dict[str, float]:
    return {
        name.replace("/", "_"): float(value)
        for name, value in logger.name_to_value.items()
        if isinstance(value, int | float)
    }
