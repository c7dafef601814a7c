"""SIMULATED beating hearts of two target vendors: a source model, adapted without and with the temporal reward."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.clips.measuring import KnownClip, average, gain_over, known_clips, measure_masks, measure_model
from benchmarks.harness.budgets import merge, trial_budget
from benchmarks.harness.laboratory import adapt_config, files_of, train_once
from benchmarks.harness.recording import once, quiet
from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.adapters.post_processing import PostProcessing
from medfm_rl.anatomy.profiles import Anatomy, load_anatomy
from medfm_rl.correction.acceptance import HARM
from medfm_rl.data.layouts import SIMULATION_RECORD
from medfm_rl.data.ultrasound.beating import simulate_clips
from medfm_rl.data.ultrasound.phantom import ECHO_SCHEMA, simulate_dataset
from medfm_rl.data.ultrasound.vendors import vendor
from medfm_rl.runs.finished import FinishedRun, load_run
from medfm_rl.settings import (
    CorrectionSettings,
    DataSettings,
    NetworkSettings,
    PreprocessingSettings,
    SourceTrainingSettings,
    TrainSourceConfig,
)
from medfm_rl.types import LabelMap
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.deploy.clip_correction import correct_clip
from medfm_rl.workflows.deploy.correction_terms import for_given_masks

SOURCE_VENDOR = "cart"
VENDORS = ("vintage", "handheld")
ANATOMY = "echo_apical"
SOURCE, WITHOUT, WITH = "source", "adapted", "adapted with temporal reward"
SOURCE_AVERAGED, ADAPTED_AVERAGED = (f"{name}, averaged over time" for name in (SOURCE, WITHOUT))
SOURCE_CLEANED, ADAPTED_CLEANED = (f"{name}, cleaned up" for name in (SOURCE_AVERAGED, ADAPTED_AVERAGED))
OF_SOURCE = (SOURCE, SOURCE_AVERAGED, SOURCE_CLEANED)
CORRECTION = "correction"
METHODS = (*OF_SOURCE, WITHOUT, ADAPTED_AVERAGED, ADAPTED_CLEANED, WITH)
WITHOUT_TIME: Mapping[str, Any] = {"collect": {"clip_images": 0}, "ppo": {"neighbour_share": 0.0}}
"""Settings of `adapt` by which neither D_R nor PPO know of neighbours."""
_FIRST_TARGET, _FIRST_HELD_OUT = 1001, 2001


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        grid: Size of the frames, (H, W).
        source: Labelled patients of the source vendor, four stills each.
        target: Patients of each target vendor with unlabelled clips of two views.
        held_out: Patients of each target vendor that are measured on.
        frames: Of each clip.
        epochs: Of the training on stills.
        adapt: Settings of `adapt`.
        most_frames: Of a real clip; None for all.
    """

    grid: tuple[int, int]
    source: int
    target: int
    held_out: int
    frames: int
    epochs: int
    adapt: Mapping[str, Any] = field(default_factory=dict)
    most_frames: int | None = None


FULL = Size(
    (112, 112),
    source=60,
    target=12,
    held_out=12,
    frames=32,
    epochs=40,
    adapt={
        "iterations": 1,
        "collect": {"source_images": 300, "target_images": 200, "clip_images": 200},
        "reward": {"steps": 600},
        "ppo": {"updates": 40},
    },
)
QUICK = Size(
    (48, 48),
    source=18,
    target=7,
    held_out=2,
    frames=8,
    epochs=2,
    adapt={"iterations": 1, **merge(trial_budget(9, 4), {"collect": {"clip_images": 4}})},
    most_frames=8,
)


class Simulated:
    """One seed.

    Args:
        seed: Of hearts, training and adaptation.
        size: How much is done.
        folder: Data, models, runs and results.
    """

    def __init__(self, seed: int, size: Size, folder: Path) -> None:
        self.seed = seed
        self.size = size
        self.folder = folder

    def run(self, adapted: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """Trains, adapts, measures, corrects; what was measured before is read again.

        Args:
            adapted: Methods beyond the source model that are wanted, by vendor.
        """
        source = self._trained()
        result: dict[str, Any] = {"simulated": {}}
        for name in VENDORS:
            found = {
                method: self._kept(name, method, partial(self._source, source, name, method)) for method in OF_SOURCE
            }
            for method in adapted.get(name, ()):
                found[method] = self._kept(name, method, partial(self._adapted, source, name, method))
            if WITHOUT in found:
                found[CORRECTION] = self._kept(name, CORRECTION, partial(self._corrected, source, name))
            result["simulated"][name] = found
        return result

    def _kept(self, name: str, method: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A cell, made where it is not there."""
        found: dict[str, Any] = once(self.folder / f"{name}-{file_name(method)}.json", make)
        return found

    def _stills(self) -> Path:
        out = self.folder / "data" / f"{SOURCE_VENDOR}-stills"
        if not _is_complete(out):
            simulate_dataset(out, vendor(SOURCE_VENDOR), self.size.source, self.seed, self.size.grid)
        return out

    def _clips(self, name: str, part: str, first: int, patients: int) -> Path:
        out = self.folder / "data" / f"{name}-{part}"
        if not _is_complete(out):
            simulate_clips(out, vendor(name), patients, self.seed, self.size.grid, first, self.size.frames)
        return out

    def _held_out(self, name: str, segmenter: TorchModuleAdapter) -> list[KnownClip]:
        folder = self._clips(name, "held-out", _FIRST_HELD_OUT, self.size.held_out)
        return list(known_clips(files_of(folder), segmenter))

    def _trained(self) -> Path:
        out = self.folder / "source-model"
        train_once(
            TrainSourceConfig(
                data=DataSettings(path=self._stills()),
                structures={name: ECHO_SCHEMA.ids[ECHO_SCHEMA.index_of(name)] for name in ECHO_SCHEMA.structures},
                output=out,
                preprocessing=PreprocessingSettings(size=self.size.grid),
                network=NetworkSettings(),
                training=SourceTrainingSettings(epochs=self.size.epochs, batch_size=8),
                seed=self.seed,
            )
        )
        return out

    def _source(self, source: Path, name: str, method: str) -> dict[str, Any]:
        segmenter = TorchModuleAdapter.load(source)
        anatomy = load_anatomy(ANATOMY, segmenter.schema)
        clips = self._held_out(name, segmenter)
        rows, _ = measure_model(segmenter, None, clips, anatomy, processing_of(method, anatomy))
        result = {"clips": rows, "mean": average(rows)}
        return result if method == SOURCE else {**result, "dice_gain": gain_over(self._rows_of_source(name), rows)}

    def _rows_of_source(self, name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads((self.folder / f"{name}-{SOURCE}.json").read_text())["clips"]
        return rows

    def _run_folder(self, name: str, temporal: bool) -> Path:
        return self.folder / "runs" / f"{name}{'-temporal' if temporal else ''}"

    def _adapted(self, source: Path, name: str, method: str) -> dict[str, Any]:
        temporal = method == WITH
        config = adapt_config(
            {"kind": "torch", "folder": source},
            self._clips(name, "target", _FIRST_TARGET, self.size.target),
            self._stills(),
            self._run_folder(name, temporal),
            ANATOMY,
            {"seed": self.seed, **(self.size.adapt if temporal else merge(self.size.adapt, WITHOUT_TIME))},
        )
        run = load_run(adapt(config, resume=True, progress=quiet).path, "cpu")
        assert isinstance(run.segmenter, TorchModuleAdapter)
        anatomy, clips = load_anatomy(ANATOMY, run.segmenter.schema), self._held_out(name, run.segmenter)
        rows, _ = measure_model(run.segmenter, run.reward, clips, anatomy, processing_of(method, anatomy))
        return {"clips": rows, "mean": average(rows), "dice_gain": gain_over(self._rows_of_source(name), rows)}

    def _corrected(self, source: Path, name: str) -> dict[str, Any]:
        """The source model's clips, corrected by the adapted one and its neighbours."""
        run = load_run(self._run_folder(name, False), "cpu")
        segmenter = TorchModuleAdapter.load(source)
        return correct_clips(run, segmenter, self._held_out(name, segmenter))


def correct_clips(run: FinishedRun, segmenter: TorchModuleAdapter, clips: Sequence[KnownClip]) -> dict[str, Any]:
    """Corrects every frame of each clip, as `correct RUN --masks DIR --all --method neighbours` does.

    Args:
        run: Its segmenter speaks, and its held-out reward network judges.
        segmenter: Has made the masks, of the same structures.
        clips: With truth, which is read to measure alone.
    """
    corrector = run.corrector(for_given_masks(CorrectionSettings(method="neighbours", seconds=600)))
    anatomy, rows = load_anatomy(ANATOMY, segmenter.schema), []
    for known in clips:
        masks = np.stack([segmenter.segment(known.clip.frame(index)) for index in range(len(known.truth))])
        names = {index: known.clip.frame(index).case_id for index in range(len(masks))}
        found = correct_clip(corrector, known.clip, masks, list(names), False, names)
        after: LabelMap = masks.copy()
        for place, result in found.results.items():
            after[place] = result.mask
        before_row, after_row = (measure_masks(known, made, anatomy) for made in (masks, after))
        rows.append(
            {
                "clip": known.clip.clip_id,
                "patient": known.clip.patient_id,
                "corrected": sum(result.accepted for result in found.results.values()),
                "objection": found.objection,
                "before": before_row,
                "after": after_row,
                "worst_frame_gain": after_row["worst_frame_dice"] - before_row["worst_frame_dice"],
            }
        )
    return {
        "clips": rows,
        "worst_frame_gain": float(np.mean([row["worst_frame_gain"] for row in rows])),
        "clips_changed": sum(row["corrected"] > 0 for row in rows),
        "harmed": float(np.mean([row["after"]["dice"] < row["before"]["dice"] - HARM for row in rows])),
    }


def of_adapted(temporal: bool) -> tuple[str, ...]:
    """Methods that adapt, with or without the one by the temporal reward."""
    return tuple(method for method in METHODS if method not in OF_SOURCE and (temporal or method != WITH))


def processing_of(method: str, anatomy: Anatomy) -> PostProcessing:
    """What is done to the masks of a method."""
    cleaned = method in (SOURCE_CLEANED, ADAPTED_CLEANED)
    return PostProcessing(
        over_time=cleaned or method in (SOURCE_AVERAGED, ADAPTED_AVERAGED), anatomy=anatomy if cleaned else None
    )


def file_name(method: str) -> str:
    """The name of a method in those of files."""
    return method.replace(",", "").replace(" ", "-")


def _is_complete(folder: Path) -> bool:
    """Whether a simulation was written whole; its record comes last."""
    return (folder / SIMULATION_RECORD).exists()
