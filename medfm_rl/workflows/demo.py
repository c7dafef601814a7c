"""The whole story on simulated echo, in a few minutes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from medfm_rl.data.files import write_bytes, write_json
from medfm_rl.data.layouts import SIMULATION_RECORD, find_cases
from medfm_rl.data.locks import alone_in, is_unused
from medfm_rl.data.mask_files import find_masks
from medfm_rl.data.ultrasound.beating import simulate_clips
from medfm_rl.data.ultrasound.phantom import ECHO_SCHEMA, simulate_dataset
from medfm_rl.data.ultrasound.vendors import vendor
from medfm_rl.errors import ConfigError
from medfm_rl.progress import Progress
from medfm_rl.runs.finished import load_run
from medfm_rl.settings import (
    AdaptConfig,
    CollectSettings,
    DataSettings,
    NetworkSettings,
    PPOSettings,
    PreprocessingSettings,
    RewardSettings,
    ShapePriorSettings,
    SourceTrainingSettings,
    TorchSettings,
    TrainSourceConfig,
)
from medfm_rl.workflows.adapt.final_report import report_run
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.deploy.predict import predict
from medfm_rl.workflows.deploy.score import score
from medfm_rl.workflows.deploy.scoring import Scoring
from medfm_rl.workflows.evaluate.comparison import Comparison
from medfm_rl.workflows.measure.measure import MeasureRequest, Measures, measure
from medfm_rl.workflows.train.source import train_source

_SIZE = (96, 96)
QUALITY_FOLDER = "quality"
"""Where the masks of the held-out images and their quality page lie, in the folder of the demo."""
CLIPS_FOLDER = "clips"
"""Where masks and measures of the simulated clips and their page lie, in the folder of the demo."""
# Of the source, so many that those whom no reward network has learned from are enough for intervals of predicted Dice.
_SOURCE_PATIENTS, _TARGET_PATIENTS, _HELD_OUT_PATIENTS = 56, 30, 25
_CLIP_PATIENTS, _FIRST_CLIP_PATIENT = 2, 3001


@dataclass(frozen=True)
class DemoResult:
    """What a demo ends with.

    Attributes:
        comparison: Source and adapted model on the held-out images, with their ground truth.
        scoring: The quality of the adapted model's masks of these images, without it.
        measures: What its masks of clips of further patients measure.
    """

    comparison: Comparison
    scoring: Scoring
    measures: Measures


def run_demo(out: Path, seed: int, progress: Progress) -> DemoResult:
    """Simulates two vendors, trains a segmenter on the first, adapts it to the second, evaluates, reports and scores.

    At the end clips of the second are segmented and measured.

    A demo that was interrupted goes on where it was.

    Args:
        out: Folder of the demo; the run itself is in it too.
        seed: Seed of everything.
        progress: Told how far each stage is.

    Raises:
        ConfigError: The folder holds a demo with another seed, or other things.
        DataError: Another process is at work there.
    """
    with alone_in(out):
        return _make_demo(out, seed, progress)


def _make_demo(out: Path, seed: int, progress: Progress) -> DemoResult:
    marker = out / "demo.json"
    if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) != {"seed": seed}:
        raise ConfigError(f"{out}: holds a demo with another seed; choose another folder or delete it")
    if not marker.exists() and not is_unused(out):
        raise ConfigError(f"{out}: is not empty and holds no demo; choose another folder")
    # First of all: what an interrupted demo leaves says which seed it has.
    write_json(marker, {"seed": seed})
    data = out / "data"
    parts = {
        "vendor-a": ("cart", 1, _SOURCE_PATIENTS),
        "vendor-b-unlabelled": ("vintage", 1001, _TARGET_PATIENTS),
        "vendor-b-held-out": ("vintage", 2001, _HELD_OUT_PATIENTS),
    }
    for name, (profile, first, patients) in parts.items():
        if not _is_simulated_whole(data / name):
            label = f"simulating {name}"
            simulate_dataset(
                data / name,
                vendor(profile),
                patients,
                seed,
                _SIZE,
                first,
                lambda done, total, label=label: progress(label, done, total),  # type: ignore[misc]
            )
    segmenter = out / "source-model"
    if not segmenter.exists():
        train_source(
            TrainSourceConfig(
                data=DataSettings(path=data / "vendor-a"),
                structures={name: ECHO_SCHEMA.ids[ECHO_SCHEMA.index_of(name)] for name in ECHO_SCHEMA.structures},
                output=segmenter,
                preprocessing=PreprocessingSettings(size=_SIZE),
                network=NetworkSettings(),
                training=SourceTrainingSettings(epochs=40, batch_size=8),
                seed=seed,
            ),
            progress,
        )
    config = AdaptConfig(
        segmenter=TorchSettings(folder=segmenter),
        target=DataSettings(path=data / "vendor-b-unlabelled"),
        source=DataSettings(path=data / "vendor-a"),
        evaluation=DataSettings(path=data / "vendor-b-held-out"),
        output=out / "run",
        anatomy="echo_apical",
        iterations=1,
        collect=CollectSettings(source_images=300, target_images=150),
        shape_prior=ShapePriorSettings(epochs=12),
        reward=RewardSettings(steps=600),
        ppo=PPOSettings(updates=40),
        seed=seed,
    )
    run = adapt(config, resume=True, progress=progress)
    comparison = report_run(run, config, progress)
    assert comparison is not None
    # The report of the run is the report of the demo.
    write_bytes(out / "report.html", run.report.read_bytes())
    scoring = _score_held_out(config, out / QUALITY_FOLDER, progress)
    return DemoResult(
        comparison, scoring, _measure_clips(config, data / "vendor-b-clips", out / CLIPS_FOLDER, progress)
    )


def _is_simulated_whole(folder: Path) -> bool:
    record = folder / SIMULATION_RECORD
    return record.exists() and bool(json.loads(record.read_text(encoding="utf-8")).get("complete", True))


def _measure_clips(config: AdaptConfig, data: Path, out: Path, progress: Progress) -> Measures:
    """What the adapted model's masks of simulated clips measure, with what its rewards leave open."""
    if not _is_simulated_whole(data):
        simulate_clips(
            data,
            vendor("vintage"),
            _CLIP_PATIENTS,
            config.seed,
            _SIZE,
            _FIRST_CLIP_PATIENT,
            progress=lambda done, total: progress("simulating clips", done, total),
        )
    run = load_run(config.output, config.device)
    files = find_cases(DataSettings(path=data))
    predict(run, files, out, progress)
    request = MeasureRequest(rewards=find_masks(out / "rewards", files))
    return measure(files, find_masks(out / "labels", files), ECHO_SCHEMA, out / "measures", request, progress)


def _score_held_out(config: AdaptConfig, out: Path, progress: Progress) -> Scoring:
    """The quality of the adapted model's masks of the held-out images: of these, and of nobody's ground truth."""
    assert config.evaluation is not None
    return score(load_run(config.output, config.device), find_cases(config.evaluation), out, progress=progress)
