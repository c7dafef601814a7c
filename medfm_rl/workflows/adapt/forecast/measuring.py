"""What a run costs on this machine: a few steps of each stage, with the real networks on real patches."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from torch import Tensor

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.loading import load_segmenter, open_to_learning
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.envs import SegmentationVecEnv
from medfm_rl.networks import (
    argmax_masks,
    build_padded_unet,
    choose_device,
    convolution_choice_kept,
    images_at_once,
    mixed_precision,
)
from medfm_rl.policies import DenseCategorical, DensePPO
from medfm_rl.progress import Progress, silent
from medfm_rl.quality.submission import segment
from medfm_rl.reward.collection import ActionSampler, ImageSet
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.reward.shape_prior import train_shape_prior
from medfm_rl.reward.sources import ExpertMasks, UnlabelledTargetImages
from medfm_rl.reward.training import contour_weights, reward_loss
from medfm_rl.settings import AdaptConfig
from medfm_rl.types import IGNORED
from medfm_rl.workflows.adapt.checks import split_target
from medfm_rl.workflows.adapt.stages.fine_tuning import FineTuningImages, fine_tune
from medfm_rl.workflows.calibrate.cases import calibration_case
from medfm_rl.workflows.training_images import load_images, load_labelled
from medfm_rl.workflows.untrained_reward import untrained_reward

_CASES: Final = 4
_IMAGES: Final = 16
_COLLECTED: Final = 4
T = TypeVar("T")


@dataclass(frozen=True)
class UnitCosts:
    """What is done again and again, each time in seconds.

    Attributes:
        read: Reading and preprocessing a case.
        segment: Segmenting a case on its own grid.
        assess: The same with all that the quality model looks at; 0 without a source.
        forward: The policy on one image of its patch size.
        fine_tuning: A step of fine-tuning in its first part, and one with target images.
        collect: Actions on one image of the source, and of the target.
        shape_prior: One mask of one pass.
        reward_step: A step of a reward network.
        reward_forward: A reward network on one image.
        ppo: An update of PPO.
        memory: Bytes that the steps needed: of the GPU, or of the process where there is none; None where the system
            does not tell.
    """

    read: float
    segment: float
    assess: float
    forward: float
    fine_tuning: tuple[float, float]
    collect: tuple[float, float]
    shape_prior: float
    reward_step: float
    reward_forward: float
    ppo: float
    memory: int | None


@dataclass(frozen=True)
class Amounts:
    """How much data a run has.

    Attributes:
        target: Patches that it learns on.
        selection: Patches on which candidates are compared.
        source: Source patches; 0 without a source.
        cases: Cases of target and source.
        source_cases: Cases of the source.
        evaluation: Labelled target cases.
        patch: Values of one patch: channels, and pixels.
        on_gpu: Whether the networks run on a GPU.
        clip_frames: Target cases that are frames of clips, which neighbours are references for.
    """

    target: int
    selection: int
    source: int
    cases: int
    source_cases: int
    evaluation: int
    patch: tuple[int, int]
    on_gpu: bool
    clip_frames: int = 0


def measure(config: AdaptConfig, progress: Progress) -> tuple[UnitCosts, Amounts]:
    """Measures the stages of a run, and counts its data.

    Nothing is written, and no generator of the process moves.

    Args:
        config: Settings and data that have been checked.
        progress: Told how far it is.

    Raises:
        UserError: A case cannot be read.
    """
    device = choose_device(config.device)
    devices = [device] if device.type == "cuda" else []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with torch.random.fork_rng(devices=devices), convolution_choice_kept():
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        return _Measuring.of_run(config, device, progress).all()


@dataclass(frozen=True, eq=False)
class _Measuring:
    """The networks and a few images of a run.

    Attributes:
        config: The settings.
        device: Where the networks are.
        policy: The segmenter.
        amounts: How much data the run has.
        target: A few target images.
        source: A few source images and their ground truth, or None.
        read: Seconds to read a case.
        case: One target case.
        labelled: One source case, or None.
        progress: Told how far it is.
    """

    config: AdaptConfig
    device: torch.device
    policy: SegmenterAdapter
    amounts: Amounts
    target: ImageSet
    source: tuple[ImageSet, Tensor] | None
    read: float
    case: CaseFile
    labelled: CaseFile | None
    progress: Progress

    @classmethod
    def of_run(cls, config: AdaptConfig, device: torch.device, progress: Progress) -> _Measuring:
        """Loads the segmenter and reads a few cases."""
        policy = load_segmenter(config.segmenter).to(device).eval()
        learning, selecting = split_target(config)
        sources = [] if config.source is None else find_cases(config.source)
        few = _spread(learning, _CASES)
        started = time.perf_counter()
        target = load_images(few, policy, silent, "")
        read = (time.perf_counter() - started) / len(few)
        per_case, source = len(target) / len(few), None
        per_source = 0.0
        if sources:
            some = _spread(sources, _CASES)
            images, truths = load_labelled(some, policy, silent, "")
            per_source = len(images) / len(some)
            rows = _spread(range(len(images)), _IMAGES)
            source = images[rows], truths[rows]
        evaluation = 0 if config.evaluation is None else len(find_cases(config.evaluation))
        amounts = Amounts(
            target=round(per_case * len(learning)),
            selection=round(per_case * len(selecting)),
            source=round(per_source * len(sources)),
            cases=len(learning) + len(selecting) + len(sources),
            source_cases=len(sources),
            evaluation=evaluation,
            patch=(target.images.shape[1], target.images[0, 0].numel()),
            on_gpu=device.type == "cuda",
            clip_frames=sum(file.frame is not None for file in learning) if len(policy.patch_size) == 2 else 0,
        )
        shown = target[_spread(range(len(target)), _IMAGES)]
        labelled = sources[0] if sources else None
        return cls(config, device, policy, amounts, shown, source, read, few[0], labelled, progress)

    def all(self) -> tuple[UnitCosts, Amounts]:
        """Each stage in the order of the run."""
        stages: list[Callable[[], object]] = []
        found: dict[str, float] = {}
        pairs: dict[str, tuple[float, float]] = {}
        stages += [
            lambda: found.update(zip(("forward", "segment"), self._segmenting(), strict=True)),
            lambda: pairs.update(fine_tuning=self._fine_tuning()),
            lambda: found.update(shape_prior=self._shape_prior()),
            lambda: pairs.update(collect=self._collecting()),
            lambda: found.update(zip(("reward_step", "reward_forward"), self._rewarding(), strict=True)),
            lambda: found.update(ppo=self._ppo()),
        ]
        for done, stage in enumerate(stages, 1):
            stage()
            self.progress("measuring a few steps", done, len(stages))
        costs = UnitCosts(
            self.read,
            found["segment"],
            self._assessing(),
            found["forward"],
            pairs["fine_tuning"],
            pairs["collect"],
            found["shape_prior"],
            found["reward_step"],
            found["reward_forward"],
            found["ppo"],
            _peak_memory(self.device),
        )
        return costs, self.amounts

    def _segmenting(self) -> tuple[float, float]:
        """The policy on an image, and on a case."""
        images = self.target.images[:]
        with torch.no_grad():
            # Once for whatever is set up at the first call.
            self.policy(images[:1].to(self.device))
            forward = self._seconds(lambda: argmax_masks(self.policy, images.to(self.device)))
        case = self.case.read()
        return forward / len(images), self._seconds(lambda: self.policy.segment(case))

    def _assessing(self) -> float:
        if self.labelled is None:
            return 0.0
        item = self.labelled.read_labelled(self.policy.schema, may_ignore=True)
        anatomy, ensemble = load_anatomy(self.config.anatomy, self.policy.schema), self._ensemble()

        def assess() -> None:
            submission = segment(self.policy, anatomy, item.case)
            calibration_case(submission, item.ground_truth, self.policy, ensemble, self.device)

        return self._seconds(assess)

    def _fine_tuning(self) -> tuple[float, float]:
        """A step of each part: the second of two steps, for the first of a part sets things up."""
        policy, at = copy.deepcopy(self.policy), [0.0]
        settings = self.config.fine_tuning.model_copy(update={"steps": 4, "target_start": 0.5})
        fine_tune(
            policy,
            list(open_to_learning(policy, self.config.segmenter, self.config.seed).values()),
            FineTuningImages(
                None if self.source is None else (self.source[0].images, self.source[1]),
                self.target.images,
                intensity_channels=policy.intensity_channels,
                mirror_axes=policy.mirror_axes,
            ),
            settings,
            0,
            lambda *_: at.append(self._now()),
            log=False,
            recompute=self.config.recompute,
        )
        return at[2] - at[1], at[4] - at[3]

    def _shape_prior(self) -> float:
        masks = self._masks()
        settings = self.config.shape_prior.model_copy(update={"epochs": 1})
        classes = self.policy.schema.num_classes
        return self._seconds(lambda: train_shape_prior(masks, classes, settings, 0, self.device)) / len(masks)

    def _masks(self) -> Tensor:
        """Of the source images, or as many of the target that the segmenter makes."""
        if self.source is not None:
            return self.source[1].masked_fill(self.source[1] == IGNORED, 0)
        with torch.no_grad():
            found = argmax_masks(self.policy, self.target.images[:].to(self.device))
        return found.to("cpu", torch.uint8)

    def _collecting(self) -> tuple[float, float]:
        config, generator = self.config, torch.Generator().manual_seed(0)
        length = config.ppo.noise_length
        sampler = ActionSampler(
            self.policy,
            config.collect,
            lambda logits, drawn: DenseCategorical(logits).sample(drawn, length),
            self.device,
            self.policy.intensity_channels,
        )
        anatomy = load_anatomy(config.anatomy, self.policy.schema)
        settings = config.shape_prior.model_copy(update={"epochs": 1})
        prior = train_shape_prior(self._masks()[:1], self.policy.schema.num_classes, settings, 0, self.device)
        target = UnlabelledTargetImages(
            sampler, self.target, lambda mask, axes: anatomy.is_valid(axes.in_image(mask.numpy())), prior
        )
        rows = list(range(min(_COLLECTED, len(self.target))))
        for_target = self._seconds(lambda: target.collect(rows, generator)) / len(rows)
        if self.source is None:
            return 0.0, for_target
        source = ExpertMasks(sampler, *self.source, self.target.images, _COLLECTED)
        rows = list(range(min(_COLLECTED, len(source))))
        return self._seconds(lambda: source.collect(rows, generator)) / len(rows), for_target

    def _rewarding(self) -> tuple[float, float]:
        """A step of a reward network, and the network on one image."""
        settings, net = self.config.reward, self._reward_net()
        rows = torch.arange(settings.batch_size) % len(self.target)
        images = self.target.images[rows].to(self.device)
        actions = self._masks()[torch.arange(settings.batch_size) % len(self._masks())].to(self.device).long()
        optimiser = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate)
        at_once = images_at_once(images.shape[2:], len(images))

        def step() -> None:
            optimiser.zero_grad()
            for shown, tried in zip(images.split(at_once), actions.split(at_once), strict=True):
                weights = contour_weights(tried, net.num_classes, settings.contour_weight)
                with mixed_precision(self.device, images.ndim - 2):
                    logits = net(shown, tried)
                reward_loss(logits.float(), torch.ones_like(weights), weights, settings.error_weight).backward()
            optimiser.step()

        def rate() -> None:
            for shown, tried in zip(images.split(at_once), actions.split(at_once), strict=True):
                net.eval()(shown, tried)

        step()
        taken = self._seconds(step)
        with torch.no_grad():
            return taken, self._seconds(rate) / len(images)

    def _reward_net(self) -> RewardNet:
        return untrained_reward(self.config.reward.network, self.policy).to(self.device)

    def _ensemble(self) -> RewardEnsemble:
        settings = self.config.reward
        return RewardEnsemble([self._reward_net() for _ in range(settings.ensemble)], settings).to(self.device)

    def _ppo(self) -> float:
        policy = copy.deepcopy(self.policy)
        # All inner epochs: whether a real update stops before them nobody knows.
        settings = self.config.ppo.model_copy(update={"target_kl": None})
        images, references = self.target.images[:], None
        if self.source is not None:
            images, references = torch.cat([self.source[0].images[:], images]), self.source[1].numpy()
        env = SegmentationVecEnv(
            images.numpy(),
            self._ensemble(),
            policy.schema.num_classes,
            settings.n_envs,
            references=references,
            device=self.device,
        )
        critic = None
        if settings.baseline == "critic":
            critic = build_padded_unet(self.config.reward.network, len(policy.patch_size), policy.in_channels, 1)
        ppo = DensePPO(
            env,
            policy,
            settings,
            critic=critic,
            trainable=list(open_to_learning(policy, self.config.segmenter, self.config.seed).values()),
            autocast=self.device.type == "cuda",
            recompute=self.config.recompute,
            device=self.device,
        )
        return self._seconds(lambda: ppo.learn(env.num_envs, reset_num_timesteps=False))

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _seconds(self, work: Callable[[], object]) -> float:
        started = self._now()
        work()
        return self._now() - started


def _spread(items: Sequence[T], most: int) -> list[T]:
    """Some of the items, evenly spaced: the first ones of a data set are often alike."""
    count = min(most, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def _peak_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_reserved(device))
    if sys.platform == "win32":
        return None
    import resource

    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
