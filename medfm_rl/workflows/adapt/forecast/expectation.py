"""What a run will need, before it starts: minutes of each stage and in all, memory and disk."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from medfm_rl.data.files import write_versioned_json
from medfm_rl.data.json_models import read_model
from medfm_rl.errors import DataError
from medfm_rl.progress import spoken_time
from medfm_rl.settings import AdaptConfig
from medfm_rl.workflows.adapt.choosing.cross_fit import CROSS_FIT
from medfm_rl.workflows.adapt.choosing.signals import LOOKS, MOST_SOURCE_IMAGES
from medfm_rl.workflows.adapt.forecast.measuring import Amounts, UnitCosts

_LOG = logging.getLogger(__name__)
_FORMAT: Final = 3
_ADVICE: Final = "put back what `adapt` wrote there"
_BLEND_IMAGES: Final = 200
"""Source images on which the blend after the fine-tuning is tried, with and without about two shares."""
_BLEND_TRIES: Final = 3
_QUALITY_SHARE: Final = 1 / 3
"""Share of the source patients that no ensemble member learns from; each of their cases is shown three times."""
_QUALITY_VIEWS: Final = 3

READING, FINE_TUNING, SHAPE_PRIOR, COLLECTING = "reading", "fine-tuning", "shape prior", "collecting actions"
REWARD, PPO, SELECTION, QUALITY, EVALUATING = (
    "reward network",
    "PPO",
    "selection",
    "calibrating the quality model",
    "evaluating",
)


@dataclass(frozen=True)
class Expectation:
    """What is expected of a run.

    Attributes:
        stages: Seconds by stage, in the order of the run; the names are the first words of what progress tells.
        memory: Bytes at most; None where nobody knows.
        on_gpu: Whether that is memory of the GPU.
        max_minutes: What the user asked for, or None.
        shortened: The settings that were lowered for that, by their dotted names: from what, to what.
        fitted: The settings that were changed for the memory, in the same way.
        disk: Bytes that it writes; None where nobody knows.
    """

    stages: Mapping[str, float] = field(default_factory=dict)
    memory: int | None = None
    on_gpu: bool = False
    max_minutes: float | None = None
    shortened: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    fitted: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    disk: int | None = None

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(self.stages.values())

    def tell(self) -> None:
        """Logs what is expected."""
        for name, (before, after) in self.shortened.items():
            _LOG.info("for --max-minutes %g: %s is %d in place of %d", self.max_minutes, name, after, before)
        for name, (before, after) in self.fitted.items():
            where = "GPU" if self.on_gpu else "machine"
            _LOG.warning("for the memory of this %s: %s is %d in place of %d", where, name, after, before)
        if not self.stages:
            return
        listed = ", ".join(f"{name} {spoken_time(seconds)}" for name, seconds in self.stages.items() if seconds >= 1)
        memory = ""
        if self.memory is not None:
            memory = f"; about {self.memory / 1e9:.1f} GB of {'GPU ' if self.on_gpu else ''}memory"
        if self.disk is not None:
            memory += f", {self.disk / 1e9:.1f} GB on the disk"
        _LOG.info(
            "expected on this machine, from a few measured steps: about %s (%s)%s%s",
            spoken_time(self.seconds),
            listed,
            memory,
            "" if self.shortened else "; too long? --max-minutes lowers settings before it starts, and says which",
        )

    def write(self, path: Path) -> None:
        """Writes the expectation as JSON."""
        write_versioned_json(path, _FORMAT, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Expectation:
        """Reads what `write` wrote; of a run that has none, nothing is expected.

        Raises:
            DataError: The file is something else.
        """
        if not path.exists():
            return cls()
        return read_model(path, cls, _FORMAT, "what is expected of a run", _ADVICE, DataError)


def expect(config: AdaptConfig, costs: UnitCosts, amounts: Amounts) -> Expectation:
    """What a run of these settings needs. Reward networks may stop early; they are counted to their end."""
    iterations = config.iterations
    checkpoints = math.ceil(config.ppo.updates / config.ppo.eval_every)
    stages = {
        READING: 2 * costs.read * amounts.cases,
        SHAPE_PRIOR: config.shape_prior.epochs * costs.shape_prior * (amounts.source or amounts.target),
        FINE_TUNING: _fine_tuning(config, costs, amounts),
        CROSS_FIT: _fine_tuning(config, costs, amounts) if config.feedback and config.feedback.cross_fit else 0.0,
        COLLECTING: iterations * _collecting(config, costs, amounts),
        REWARD: sum(_reward(config, costs, iteration) for iteration in range(iterations)),
        PPO: iterations * _ppo(config, costs, amounts),
        SELECTION: sum(
            (2 + checkpoints * (iteration + 1))
            * (amounts.selection + min(MOST_SOURCE_IMAGES, amounts.source))
            * ((1 + LOOKS) * costs.forward + costs.reward_forward)
            for iteration in range(iterations)
        ),
        QUALITY: _quality(costs, amounts),
        EVALUATING: 2 * amounts.evaluation * costs.segment,
    }
    return Expectation(stages, costs.memory, amounts.on_gpu)


def _fine_tuning(config: AdaptConfig, costs: UnitCosts, amounts: Amounts) -> float:
    settings, (alone, together) = config.fine_tuning, costs.fine_tuning
    if settings.steps == 0 or (amounts.source == 0 and settings.target_weight == 0):
        return 0.0
    first = settings.target_start if settings.target_weight > 0 else 1.0
    steps = settings.steps * (first * alone + (1 - first) * together)
    blends = 2 * _BLEND_TRIES * min(_BLEND_IMAGES, amounts.source)
    return steps + (blends + amounts.target) * costs.forward


def _collecting(config: AdaptConfig, costs: UnitCosts, amounts: Amounts) -> float:
    settings, (source, target) = config.collect, costs.collect
    # A frame is segmented with four neighbours, an image of the target in as many changed ways.
    images = settings.target_images + (settings.clip_images if amounts.clip_frames else 0)
    return images * target + (settings.source_images * source if amounts.source else 0.0)


def _ppo(config: AdaptConfig, costs: UnitCosts, amounts: Amounts) -> float:
    settings = config.ppo
    # Every other image is of the target where there is a source; of a frame the neighbours are segmented too.
    frames = settings.updates * settings.n_envs / (2 if amounts.source else 1)
    voted = frames * costs.collect[1] if amounts.clip_frames and settings.neighbour_share > 0 else 0.0
    return settings.updates * costs.ppo + voted


def _reward(config: AdaptConfig, costs: UnitCosts, iteration: int) -> float:
    settings, collect = config.reward, config.collect
    records = (iteration + 1) * (collect.target_images + (collect.source_images if config.source else 0))
    validated = settings.validation_fraction * records * collect.actions_per_image
    validations = math.ceil(settings.steps / settings.validate_every) + 1
    each = settings.steps * costs.reward_step + validations * validated * costs.reward_forward
    return (settings.ensemble + 1) * each


def _quality(costs: UnitCosts, amounts: Amounts) -> float:
    if amounts.source_cases == 0:
        return 0.0
    # Every image is read once more.
    return _QUALITY_VIEWS * _QUALITY_SHARE * amounts.source_cases * costs.assess + costs.read * amounts.cases


def with_changes(config: AdaptConfig, changes: Mapping[str, tuple[int, int]]) -> AdaptConfig:
    """Settings with those lowered that have the value that they were lowered from.

    Args:
        config: As the user wrote them.
        changes: By dotted name, from what, to what.
    """
    for name, (before, after) in changes.items():
        if value_of(config, name) == before:
            config = with_value(config, name, after)
    return config


def value_of(config: AdaptConfig, name: str) -> int:
    """The setting of a dotted name."""
    found: Any = config
    for part in name.split("."):
        found = getattr(found, part)
    return int(found)


def with_value(config: AdaptConfig, name: str, value: int) -> AdaptConfig:
    """The settings with another value for a dotted name of one or two parts; a switch is 0 or 1."""
    section, _, inner = name.partition(".")
    if not inner:
        own = bool(value) if isinstance(getattr(config, section), bool) else value
        return config.model_copy(update={section: own})
    return config.model_copy(update={section: getattr(config, section).model_copy(update={inner: value})})
