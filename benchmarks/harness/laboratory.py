"""The laboratory of a shift and a seed: small U-Nets trained once, settings of `adapt`, and the choice of a run."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.budgets import trial_budget
from benchmarks.harness.recording import quiet
from benchmarks.harness.shifts import Shift
from medfm_rl.adapters import SegmenterAdapter, TorchModuleAdapter
from medfm_rl.anatomy.profiles import Anatomy, load_anatomy
from medfm_rl.data.files import write_json
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.metrics.overlap import dice
from medfm_rl.runs.folder import RunFolder
from medfm_rl.settings import (
    AdaptConfig,
    DataSettings,
    NetworkSettings,
    SourceTrainingSettings,
    TrainSourceConfig,
)
from medfm_rl.workflows.adapt.choosing.selection import Selection
from medfm_rl.workflows.train.source import train_source, training_folder

NETWORK = NetworkSettings(channels=(16, 32, 64, 128, 256), residual_units=2, norm="batch")
BATCH = 16


@dataclass(frozen=True)
class Budget:
    """How much is spent.

    Attributes:
        training_steps: Of each supervised training, whatever the number of its images.
        most_patients: Of each part of a shift; None for all of them.
        adapt: Changes to the default settings of `adapt`.
        trial: Whether the figures mean nothing.
    """

    training_steps: int = 700
    most_patients: int | None = None
    adapt: Mapping[str, Any] = field(default_factory=dict)
    trial: bool = False


TRIAL = Budget(
    training_steps=60,
    # Enough patients for a calibration, and with so many images for a held-out reward on patients of its own.
    most_patients=20,
    adapt={"iterations": 1, **trial_budget(source_images=24, target_images=24)},
    trial=True,
)


class Laboratory:
    """One shift with one seed: its images, and the models that are trained on labels.

    Args:
        shift: Whose images are there.
        seed: Of everything.
        runs: Folder of the benchmark.
        budget: How much is spent.
        started_in: The environment that cells are made in.
    """

    def __init__(self, shift: Shift, seed: int, runs: Path, budget: Budget, started_in: Mapping[str, Any]) -> None:
        self.shift = shift
        self.seed = seed
        self.runs = runs
        self.budget = budget
        self.started_in = started_in

    def with_seed(self, seed: int) -> Laboratory:
        """The same shift with another seed."""
        return Laboratory(self.shift, seed, self.runs, self.budget, self.started_in)

    def trained(self, data: Path, dropout: float = 0.0) -> tuple[Path, float]:
        """A model trained on a labelled data set with this seed, and the seconds that it took."""
        kind = "-dropout" if dropout else ""
        config = TrainSourceConfig(
            data=DataSettings(path=data),
            structures=dict(self.shift.structures),
            in_channels=self.shift.channels,
            output=self.runs / "models" / f"{data.name}{kind}-seed-{self.seed}",
            network=NETWORK.model_copy(update={"dropout": dropout}),
            training=SourceTrainingSettings(
                epochs=max(1, round(self.budget.training_steps * BATCH / len(files_of(data)))), batch_size=BATCH
            ),
            seed=self.seed,
        )
        return config.output, train_once(config)

    def source_model(self) -> TorchModuleAdapter:
        return TorchModuleAdapter.load(self.trained(self.shift.folders.source)[0])

    def config(self, output: Path, with_source: bool = True, changes: Mapping[str, Any] | None = None) -> AdaptConfig:
        """Settings that adapt the source model to the target.

        Args:
            output: Folder of the run.
            with_source: Whether the source images are at hand.
            changes: Sections beside, or in the place of, those of the budget.
        """
        folders = self.shift.folders
        return adapt_config(
            {"kind": "torch", "folder": self.trained(folders.source)[0]},
            folders.target,
            folders.source if with_source else None,
            output,
            self.shift.anatomy,
            {"seed": self.seed, **self.budget.adapt, **(changes or {})},
        )

    def held_out(self) -> list[CaseFile]:
        """The labelled cases of held-out target patients, on which everything is measured."""
        return files_of(self.shift.folders.held_out)

    def anatomy(self, segmenter: SegmenterAdapter) -> Anatomy:
        return load_anatomy(self.shift.anatomy, segmenter.schema)

    def mean_dice(self, segmenter: SegmenterAdapter) -> float:
        """Over the held-out target cases and the structures."""
        values = []
        for file in self.held_out():
            labelled = file.read_labelled(segmenter.schema)
            prediction = segmenter.segment(labelled.case)
            values.append(dice(prediction, labelled.ground_truth, segmenter.schema.classes).mean())
        return float(np.mean(values))


def train_once(config: TrainSourceConfig) -> float:
    """Trains a model into `config.output`, unless it is there; returns the seconds that it took."""
    folder = config.output
    record = folder.with_name(f"{folder.name}.json")
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}-unfinished")
        for begun in (unfinished, training_folder(unfinished)):
            shutil.rmtree(begun, ignore_errors=True)
        start = time.perf_counter()
        train_source(config.model_copy(update={"output": unfinished}), quiet)
        write_json(record, {"seconds": time.perf_counter() - start})
        shutil.rmtree(training_folder(unfinished))
        unfinished.rename(folder)
    return float(json.loads(record.read_text())["seconds"])


def adapt_config(
    segmenter: Mapping[str, Any],
    target: Path,
    source: Path | None,
    output: Path,
    anatomy: str,
    changes: Mapping[str, Any],
) -> AdaptConfig:
    """Settings of `adapt` without tracking.

    Args:
        segmenter: Its kind, folder and what is trained of it.
        target: Unlabelled images.
        source: Labelled images; None without.
        output: Folder of the run.
        anatomy: Profile of the validity rules.
        changes: To the default settings.
    """
    return AdaptConfig.model_validate(
        {
            "segmenter": segmenter,
            "target": {"path": target},
            "source": None if source is None else {"path": source},
            "output": output,
            "anatomy": anatomy,
            "tracking": {"uri": None},
            **changes,
        }
    )


def read_selection(run: RunFolder) -> Selection:
    """The last selection of a finished run: its candidates and its choice."""
    return Selection.read(run.last_selection)


def files_of(folder: Path) -> list[CaseFile]:
    """The cases of a data set in the folder layout."""
    return find_cases(DataSettings(path=folder))
