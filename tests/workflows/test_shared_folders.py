"""Two commands on one folder: the second says at once that another is at work, and changes nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from medfm_rl.cli import app
from medfm_rl.data.files import hash_file
from medfm_rl.errors import DataError
from medfm_rl.settings import AdaptConfig, TrackingSettings
from medfm_rl.settings.files import dump_config, load_config
from medfm_rl.tracking import open_tracker

HOLD = (
    "import sys; from pathlib import Path; from medfm_rl.data.locks import *\n"
    "with globals()[sys.argv[2]](Path(sys.argv[1])):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)


@contextmanager
def at_work(folder: Path, way: str = "alone_in") -> Iterator[subprocess.Popen[str]]:
    """Another process that works in a folder until the block ends."""
    command = [sys.executable, "-c", HOLD, str(folder), way]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.communicate("")


def refused(*arguments: object) -> str:
    error = CliRunner().invoke(app, [str(argument) for argument in arguments]).exception
    assert isinstance(error, DataError)
    return str(error)


def test_predict_score_correct_and_evaluate_keep_off_a_folder_in_use(quality_run: Path, tmp_path: Path) -> None:
    data, out = quality_run.parent / "data", tmp_path / "out"
    calls = (
        ("predict", quality_run, data, out, "--device", "cpu"),
        ("score", quality_run, "--images", data, "--model", quality_run, "--out", out, "--device", "cpu"),
        ("correct", quality_run, "--images", data, "--all", "--out", out, "--device", "cpu"),
        ("evaluate", quality_run, data, "--out", out, "--device", "cpu"),
    )
    with at_work(out) as other:
        before = sorted(path.name for path in out.iterdir())
        for call in calls:
            assert f"{out}: another process is at work here (process {other.pid} on " in refused(*call)
        assert sorted(path.name for path in out.iterdir()) == before
    assert not out.exists()


def test_calibration_keeps_off_a_run_in_use(quality_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(quality_run, run)
    before = hash_file(run / "quality.json")
    for command in ("calibrate", "calibrate-correction"):
        with at_work(run):
            assert "another process is at work here" in refused(
                command, run, "--labelled", quality_run.parent / "data", "--device", "cpu"
            )
    assert hash_file(run / "quality.json") == before


@pytest.mark.parametrize("resume", [(), ("--resume",)])
def test_two_adaptations_in_one_folder_are_kept_apart_and_a_killed_one_is_no_obstacle(
    quality_run: Path, tmp_path: Path, resume: tuple[str, ...]
) -> None:
    config = load_config(quality_run / "config.yaml", AdaptConfig)
    changed = {"output": tmp_path / "run", "tracking": TrackingSettings(uri=None)}
    settings = tmp_path / "adapt.yaml"
    settings.write_text(dump_config(config.model_copy(update=changed)))
    with at_work(tmp_path / "run") as other:
        assert f"run: another process is at work here (process {other.pid} on" in refused("adapt", settings, *resume)
        other.kill()
    # It goes on to what is wrong with the settings: without a source there are steps of fine-tuning to make.
    settings.write_text(yaml.safe_dump({**yaml.safe_load(settings.read_text()), "target": {"path": "nowhere"}}))
    assert "nowhere: there is no such folder" in refused("adapt", settings, *resume)


def test_a_source_model_is_trained_by_one_process_at_a_time(simulated_echo: Path, tmp_path: Path) -> None:
    settings = {"data": {"path": str(simulated_echo / "a")}, "structures": {"LV": 1}, "output": str(tmp_path / "model")}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(settings))
    with at_work(tmp_path / "model", "alone_making"):
        assert "model: another process is at work here" in refused("train-source", tmp_path / "train.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["train.yaml"]


def test_a_vendor_is_simulated_into_a_folder_by_one_process_at_a_time(simulated_echo: Path, tmp_path: Path) -> None:
    with at_work(tmp_path / "out") as other:
        message = refused("simulate-vendor", simulated_echo / "a", tmp_path / "out")
        assert f"out: another process is at work here (process {other.pid} on" in message
    assert not (tmp_path / "out").exists()


def test_a_demo_is_made_by_one_process_at_a_time(tmp_path: Path) -> None:
    with at_work(tmp_path / "demo") as other:
        message = refused("demo", "--out", tmp_path / "demo")
        assert f"demo: another process is at work here (process {other.pid} on" in message
    assert not (tmp_path / "demo").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_calibration_is_recorded_within_its_run(quality_run: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    run = tmp_path / "run"
    shutil.copytree(quality_run, run)
    shutil.copytree(quality_run.parent / "data", tmp_path / "data")
    tracking = TrackingSettings(uri="auto", experiment="tests")
    config = load_config(run / "config.yaml", AdaptConfig)
    (run / "config.yaml").write_text(dump_config(config.model_copy(update={"tracking": tracking, "output": run})))
    with open_tracker(tracking, run):
        pass
    call = ["calibrate", run, "--labelled", tmp_path / "data", "--dice", 0.6, "--allow-overlap", "--track"]
    result = CliRunner().invoke(app, [*map(str, call), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    names = {found.info.run_name: found for found in client.search_runs([experiment.experiment_id])}
    assert set(names) == {"run", "calibrate run"}
    record = names["calibrate run"]
    assert record.data.tags["mlflow.parentRunId"] == names["run"].info.run_id
    assert record.data.params["quality_hash"] == hash_file(run / "quality.json")
    assert (record.data.params["data.labelled.cases"], record.data.params["data.labelled.patients"]) == ("96", "24")
    assert [item.path for item in client.list_artifacts(record.info.run_id)] == ["quality.json"]
