"""The four commands that are killed, on tiny networks and a few SIMULATED frames of 32 x 32 pixels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.robustness.children import run
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.data.ultrasound.phantom import simulate_dataset
from medfm_rl.data.ultrasound.vendors import vendor
from medfm_rl.progress import silent
from medfm_rl.quality.model import Targets
from medfm_rl.runs.finished import load_run
from medfm_rl.settings import (
    AdaptConfig,
    CollectSettings,
    CorrectionSettings,
    DataSettings,
    FineTuningSettings,
    NetworkSettings,
    PPOSettings,
    PreprocessingSettings,
    RewardSettings,
    ShapePriorSettings,
    SourceTrainingSettings,
    TorchSettings,
    TrackingSettings,
    TrainSourceConfig,
)
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.calibrate.quality import CalibrateRequest, calibrate
from medfm_rl.workflows.deploy.correct import CorrectRequest, correct
from medfm_rl.workflows.deploy.score import score
from medfm_rl.workflows.train.source import train_source

_SIZE = (32, 32)
_TINY = NetworkSettings(channels=(4, 8), residual_units=0)
_DATA = {"a": ("cart", 6, 1), "b": ("handheld", 6, 101), "c": ("cart", 24, 201), "d": ("cart", 3, 301)}
"""Vendor, number of patients and number of the first: source, target, calibration, deployment."""


@dataclass(frozen=True)
class Command:
    """A command that is killed.

    Attributes:
        call: Calls it; where an earlier call was killed, it goes on.
        results: What it leaves, below the folder that it is called in.
        needs_run: Whether the run has to lie in the folder beforehand.
    """

    call: Callable[[Path, Path], None]
    results: str
    needs_run: bool


class Ground:
    """Data, a source model and a finished run, made once.

    Args:
        folder: Where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def prepare(self) -> None:
        """Makes what is not there, in child processes."""
        log = self.folder / "prepare.log"
        self.folder.mkdir(parents=True, exist_ok=True)
        for step, made in ((self._simulate, "data"), (self._train, "source"), (self._adapt, "run")):
            if not (self.folder / made).exists():
                run(step, log)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def _simulate(self) -> None:
        unfinished = self.folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        for name, (profile, patients, first) in _DATA.items():
            simulate_dataset(unfinished / name, vendor(profile), patients, seed=0, size=_SIZE, first=first)
        unfinished.rename(self.folder / "data")

    def _train(self) -> None:
        train_source(
            TrainSourceConfig(
                data=DataSettings(path=self.folder / "data" / "a"),
                structures={"LV": 1, "MYO": 2, "LA": 3},
                output=self.folder / "source",
                network=_TINY,
                preprocessing=PreprocessingSettings(size=_SIZE),
                training=SourceTrainingSettings(epochs=30, learning_rate=1e-2),
                device="cpu",
            ),
            silent,
        )

    def _adapt(self) -> None:
        unfinished = self.folder / "unfinished-run"
        shutil.rmtree(unfinished, ignore_errors=True)
        adapt(_settings(self.folder, unfinished), resume=False, progress=silent)
        _calibrate(self.folder, unfinished)
        unfinished.rename(self.folder / "run")


def _settings(ground: Path, output: Path) -> AdaptConfig:
    return AdaptConfig(
        segmenter=TorchSettings(folder=ground / "source"),
        target=DataSettings(path=ground / "data" / "b"),
        source=DataSettings(path=ground / "data" / "a"),
        output=output,
        anatomy="generic",
        iterations=2,
        fine_tuning=FineTuningSettings(steps=4, batch_size=4),
        collect=CollectSettings(source_images=12, target_images=8, actions_per_image=3, shard_images=6),
        shape_prior=ShapePriorSettings(epochs=1, latent=4),
        reward=RewardSettings(network=_TINY, steps=4, validate_every=2),
        ppo=PPOSettings(updates=4, n_envs=4, eval_every=2),
        tracking=TrackingSettings(uri=None),
        device="cpu",
    )


def _adapt(ground: Path, place: Path) -> None:
    adapt(_settings(ground, place / "run"), resume=(place / "run").exists(), progress=silent)


def _files(ground: Path, name: str) -> list[CaseFile]:
    return find_cases(DataSettings(path=ground / "data" / name))


def _calibrate(ground: Path, folder: Path) -> None:
    calibrate(load_run(folder, "cpu"), _files(ground, "c")[::2], CalibrateRequest(Targets(dice=0.5)), silent)


def _score(ground: Path, place: Path) -> None:
    score(load_run(place / "run", "cpu"), _files(ground, "d"), place / "scored", progress=silent)


def _correct(ground: Path, place: Path) -> None:
    # No machine is so busy that the time budget would decide.
    request = CorrectRequest(CorrectionSettings(seconds=3600), every=True)
    correct(load_run(place / "run", "cpu"), _files(ground, "d")[::3], place / "corrected", request, silent)


COMMANDS = {
    "adapt": Command(_adapt, "run", False),
    "score": Command(_score, "scored", True),
    "correct": Command(_correct, "corrected", True),
    "calibrate": Command(lambda ground, place: _calibrate(ground, place / "run"), "run", True),
}
