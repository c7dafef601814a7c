"""The same seed gives the same weights, masks and scores as version 0.1, and its runs are still read."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path

import pytest
from support.commands import run_command

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import reference_run  # noqa: E402

EXPECTED = json.loads((HERE / "expected.json").read_text())
same_rounding = pytest.mark.skipif(
    reference_run.how_this_machine_rounds() != EXPECTED["rounding"],
    reason="this machine rounds otherwise than the one that the hashes were made on",
)


def call(folder: Path, *arguments: str) -> str:
    """Runs `medfm-rl` in a folder with one thread, as the reference run does; returns what it printed."""
    done = run_command(*arguments, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def run_of_version_0_1(tmp_path: Path) -> Path:
    """A folder with simulated `data`, the segmenter `source`, and the `run` that version 0.1 made of them."""
    with zipfile.ZipFile(HERE / "run.zip") as archive:
        archive.extractall(tmp_path)
    return tmp_path


@same_rounding
def test_adapt_gives_the_same_actions_and_weights_as_version_0_1(run_of_version_0_1: Path) -> None:
    run = run_of_version_0_1 / "run"
    actions = reference_run.hashes_of_actions(run)
    shutil.rmtree(run)
    reference_run.adapt(run_of_version_0_1, call=call)
    assert len(actions) == 8
    assert reference_run.hashes_of_actions(run) == actions
    assert reference_run.hashes_of_run(run) == EXPECTED["run"]


def test_a_run_of_version_0_1_is_read_by_every_command(run_of_version_0_1: Path) -> None:
    reference_run.deploy(run_of_version_0_1, call=call)
    found = reference_run.hashes_of_deployment(run_of_version_0_1)
    if reference_run.how_this_machine_rounds() == EXPECTED["rounding"]:
        assert found == EXPECTED["deployment"]
    assert len(list((run_of_version_0_1 / "corrected" / "labels").iterdir())) == 8


def test_an_interrupted_run_of_version_0_1_goes_on_where_it_was(run_of_version_0_1: Path) -> None:
    run = run_of_version_0_1 / "run"

    for name in ("model", "reward", "iteration-01", "quality.json", "report.html"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    fine_tuned = (run / "warm-up" / "actor.safetensors").stat().st_mtime_ns
    # The settings of then name a stage by its former name.
    assert "warm_up:" in (run_of_version_0_1 / "adapt.yaml").read_text()
    printed = call(run_of_version_0_1, "adapt", "adapt.yaml", "--resume")
    assert "warm_up is now called fine_tuning" in printed
    assert (run / "warm-up" / "actor.safetensors").stat().st_mtime_ns == fine_tuned
    assert not (run / "fine-tuning").exists()
    if reference_run.how_this_machine_rounds() == EXPECTED["rounding"]:
        assert reference_run.hashes_of_run(run) == EXPECTED["run"]
