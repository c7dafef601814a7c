from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.harness import laboratory
from benchmarks.harness.laboratory import Budget, Laboratory
from benchmarks.harness.shifts import ECHO, Folders, Shift
from medfm_rl.settings import NetworkSettings


@pytest.fixture
def echo(simulated_echo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Laboratory:
    """Six patients of each of two drawn vendors, and two training steps of a tiny network."""
    monkeypatch.setattr(laboratory, "NETWORK", NetworkSettings(channels=(4, 8), residual_units=0, norm="batch"))
    source, target = simulated_echo / "a", simulated_echo / "b"
    shift = Shift("drawn", "drawn hearts", True, "generic", ECHO, Folders(source, source, target, target))
    return Laboratory(shift, 0, tmp_path, Budget(training_steps=2), {})


def test_a_model_is_trained_once_for_each_data_set_seed_and_dropout(echo: Laboratory) -> None:
    folder, seconds = echo.trained(echo.shift.folders.source)
    written = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert echo.trained(echo.shift.folders.source) == (folder, seconds)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == written
    others = {
        echo.with_seed(1).trained(echo.shift.folders.source)[0],
        echo.trained(echo.shift.folders.target)[0],
        echo.trained(echo.shift.folders.source, dropout=0.1)[0],
    }
    assert len(others | {folder}) == 4
    assert sorted(path.name for path in folder.parent.iterdir() if path.is_dir()) == sorted(
        path.name for path in (*others, folder)
    )


def test_what_a_killed_training_left_is_not_taken_for_a_model(echo: Laboratory) -> None:
    unfinished = echo.runs / "models" / "a-seed-0-unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "segmenter.json").write_text("cut sh")
    assert echo.source_model().schema.structures == ("LV", "MYO", "LA")
    assert not unfinished.exists()


def test_the_settings_are_those_of_the_budget_but_for_the_changes(echo: Laboratory) -> None:
    budget = Budget(training_steps=2, adapt={"ppo": {"updates": 3}, "iterations": 1})
    changed = Laboratory(echo.shift, 5, echo.runs, budget, {})
    config = changed.config(Path("out"), with_source=False, changes={"ppo": {"updates": 7}})
    assert (config.seed, config.iterations, config.ppo.updates, config.source) == (5, 1, 7, None)
    assert config.target.path == echo.shift.folders.target
    source = changed.config(Path("out")).source
    assert source is not None
    assert source.path == echo.shift.folders.source


def test_the_mean_dice_of_the_experts_own_masks_is_one(echo: Laboratory, monkeypatch: pytest.MonkeyPatch) -> None:
    model = echo.source_model()
    truth = {file.case_id: file.read_labelled(model.schema).ground_truth for file in echo.held_out()}
    monkeypatch.setattr(model, "segment", lambda case: truth[case.case_id])
    assert echo.mean_dice(model) == 1
