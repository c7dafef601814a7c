from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.data.layouts import CaseFile, find_cases, is_simulated
from medfm_rl.errors import ConfigError
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.runs.models import ModelInMemory
from medfm_rl.settings import (
    AdaptConfig,
    DataSettings,
    NetworkSettings,
    PreprocessingSettings,
    RewardSettings,
    TrainSourceConfig,
)
from medfm_rl.workflows import demo


def silent(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


class StoppedError(Exception):
    """Ends a demo where its settings are known and its work would begin."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """A demo of few small images; what it asks of training and of adaptation is kept, neither is done."""
    seen: dict[str, object] = {}
    for name, value in {
        "_SIZE": (32, 32),
        "_SOURCE_PATIENTS": 2,
        "_TARGET_PATIENTS": 3,
        "_HELD_OUT_PATIENTS": 2,
    }.items():
        monkeypatch.setattr(demo, name, value)

    def train(config: TrainSourceConfig, progress: Callable[[str, int, int], None]) -> None:
        seen["train"] = config

    def adapt(config: AdaptConfig, resume: bool, progress: Callable[[str, int, int], None]) -> None:
        seen["adapt"], seen["resume"] = config, resume
        raise StoppedError

    monkeypatch.setattr(demo, "train_source", train)
    monkeypatch.setattr(demo, "adapt", adapt)
    return seen


def settings_of(out: Path, asked: dict[str, object], seed: int = 0) -> tuple[TrainSourceConfig, AdaptConfig]:
    with pytest.raises(StoppedError):
        demo.run_demo(out, seed, silent)
    train, adapt = asked["train"], asked["adapt"]
    assert isinstance(train, TrainSourceConfig)
    assert isinstance(adapt, AdaptConfig)
    return train, adapt


def test_all_data_of_the_demo_is_marked_as_simulated(tmp_path: Path, asked: dict[str, object]) -> None:
    train, adapt = settings_of(tmp_path, asked)
    assert adapt.source is not None
    assert adapt.evaluation is not None
    for data in (train.data, adapt.source, adapt.target, adapt.evaluation):
        assert is_simulated(data.path)
        assert is_simulated(data.path / "images")
        assert json.loads((data.path / "simulation.json").read_text())["simulated"] is True
    assert not is_simulated(tmp_path)


def test_no_patient_is_in_two_parts_and_the_evaluation_is_held_out(tmp_path: Path, asked: dict[str, object]) -> None:
    train, adapt = settings_of(tmp_path, asked)
    assert adapt.source is not None
    assert adapt.evaluation is not None
    assert train.data == adapt.source
    parts = [{case.patient_id for case in find_cases(data)} for data in (adapt.source, adapt.target, adapt.evaluation)]
    assert [len(part) for part in parts] == [2, 3, 2]
    assert len(set.union(*parts)) == 7
    vendors = [
        json.loads((data.path / "simulation.json").read_text())["vendor"]
        for data in (adapt.source, adapt.target, adapt.evaluation)
    ]
    assert vendors[0] != vendors[1] == vendors[2]


def test_the_seed_reaches_every_stage(tmp_path: Path, asked: dict[str, object]) -> None:
    train, adapt = settings_of(tmp_path, asked, seed=7)
    assert train.seed == adapt.seed == 7
    assert json.loads((adapt.target.path / "simulation.json").read_text())["seed"] == 7
    assert asked["resume"] is True


def test_a_second_call_simulates_nothing_again(tmp_path: Path, asked: dict[str, object]) -> None:
    settings_of(tmp_path, asked)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.nii.gz")}
    settings_of(tmp_path, asked)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.nii.gz")}


def test_an_interrupted_demo_keeps_its_seed(tmp_path: Path, asked: dict[str, object]) -> None:
    """Parts of two seeds would be mixed otherwise: patients of one anatomy and images of another."""

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(tmp_path / "demo", 0, interrupt)
    with pytest.raises(ConfigError, match="another seed"):
        demo.run_demo(tmp_path / "demo", 1, silent)
    settings_of(tmp_path / "demo", asked, seed=0)
    simulated = [json.loads(path.read_text()) for path in (tmp_path / "demo" / "data").glob("*/simulation.json")]
    assert [content["seed"] for content in simulated] == [0, 0, 0]


def test_a_folder_with_other_things_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("kept")
    with pytest.raises(ConfigError, match=f"{tmp_path}: is not empty and holds no demo"):
        demo.run_demo(tmp_path, 0, silent)
    assert [path.name for path in tmp_path.iterdir()] == ["precious.txt"]


def test_a_demo_ends_with_the_quality_of_its_own_held_out_images(
    tmp_path: Path, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Assessed as a user would have them assessed: by the adapted model, without their ground truth."""
    report = tmp_path / "run.html"
    report.write_text("the report of the run")
    monkeypatch.setattr(demo, "adapt", lambda config, resume, progress: SimpleNamespace(report=report))
    monkeypatch.setattr(demo, "report_run", lambda *_: "the comparison")
    monkeypatch.setattr(demo, "load_run", lambda folder, device: (folder, device))
    calls: list[tuple[object, ...]] = []

    def score(run: object, files: list[CaseFile], out: Path, progress: object) -> str:
        calls.append((run, [file.patient_id for file in files], out))
        return "the scoring"

    monkeypatch.setattr(demo, "score", score)
    monkeypatch.setattr(demo, "_measure_clips", lambda config, data, out, progress: (data.name, out.name))
    out = tmp_path / "demo"
    assert demo.run_demo(out, 0, silent) == demo.DemoResult(
        "the comparison",  # type: ignore[arg-type]
        "the scoring",  # type: ignore[arg-type]
        ("vendor-b-clips", "clips"),  # type: ignore[arg-type]
    )
    ((run, patients, folder),) = calls
    assert run == (out / "run", "auto")
    held_out = find_cases(DataSettings(path=out / "data" / "vendor-b-held-out"))
    assert patients == [file.patient_id for file in held_out]
    assert folder == out / "quality"
    assert (out / "report.html").read_text() == "the report of the run"


def test_the_clips_of_a_demo_are_predicted_and_measured_and_marked_as_simulated(
    tmp_path: Path, asked: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    tiny = NetworkSettings(channels=(4, 8), residual_units=0)
    segmenter = TorchModuleAdapter.build_unet(tiny, demo.ECHO_SCHEMA, PreprocessingSettings(size=(32, 32))).eval()
    reward = RewardEnsemble([RewardNet(tiny, 4)], RewardSettings())
    monkeypatch.setattr(demo, "load_run", lambda *_: ModelInMemory(segmenter, reward))
    _, config = settings_of(tmp_path / "demo", asked)
    measures = demo._measure_clips(config, tmp_path / "data", tmp_path / "out", silent)
    assert set(measures.clips) == {f"sim300{number}_{view}" for number in (1, 2) for view in ("2CH", "4CH")}
    page = (tmp_path / "out" / "measures" / "report.html").read_text()
    assert "SIMULATED DATA" in page
    assert page.count("data:image/gif") == 4
