"""A kind of segmenter of another package, from its installation to an exported model, through the command line."""

from __future__ import annotations

import csv
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from support.choosing import keep_the_incumbent
from support.installed_packages import install, write_documented_package
from support.tiny_runs import TINY
from typer.testing import CliRunner

from medfm_rl.adapters import check_adapter
from medfm_rl.adapters.kinds import kind_named
from medfm_rl.adapters.loading import load_segmenter, recognise
from medfm_rl.cli import app
from medfm_rl.data.labels import read_labels
from medfm_rl.data.layouts import find_cases
from medfm_rl.data.ultrasound.phantom import simulate_dataset
from medfm_rl.data.ultrasound.vendors import vendor
from medfm_rl.quality.controller import QualityController
from medfm_rl.settings import DataSettings, kinds
from medfm_rl.tracking.quality_model import save_quality_model
from medfm_rl.version import __version__
from medfm_rl.workflows.adapt.choosing import choice

KIND = "two-convolutions"


@pytest.fixture(scope="module")
def _installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package that the documentation shows, installed by pip."""
    root = tmp_path_factory.mktemp("package")
    target = install(write_documented_package(root / "source"), root / "site")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(target)
        kinds._entry_points.cache_clear()
        yield
    sys.modules.pop("two_convolutions", None)
    kinds._entry_points.cache_clear()


@pytest.fixture(scope="module")
def model(_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter of that kind, untrained."""
    folder = tmp_path_factory.mktemp("model") / "source"
    torch.manual_seed(0)
    importlib.import_module("two_convolutions").TwoConvolutions({"LV": 1, "MYO": 2, "LA": 3}).export(folder)
    return folder


def call(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_documented_adapter_keeps_every_promise(model: Path, simulated_echo: Path) -> None:
    adapter = load_segmenter(recognise(model))
    check_adapter(adapter, find_cases(DataSettings(path=simulated_echo / "b"))[0].read())


@pytest.mark.filterwarnings("ignore")
def test_it_is_adapted_scores_and_is_exported(
    model: Path, simulated_echo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"{KIND}: brought by the package {KIND}." in call("init", "--kinds")
    file, run, images = tmp_path / "adapt.yaml", tmp_path / "run", simulated_echo / "b"
    call("init", file, "--segmenter", KIND)
    assert "# Grey values are divided by it." in file.read_text()
    settings: dict[str, Any] = yaml.safe_load(file.read_text())
    settings["segmenter"] |= {"folder": str(model), "scale": 2.0}
    settings |= {
        "source": {"path": str(simulated_echo / "a")},
        "target": {"path": str(images)},
        "output": str(run),
        "fine_tuning": {"steps": 10, "batch_size": 4, "learning_rate": 1e-2},
        "collect": {"source_images": 12, "target_images": 4, "actions_per_image": 2},
        "shape_prior": {"epochs": 1, "latent": 4},
        "reward": {"network": TINY.model_dump(mode="json"), "steps": 4, "validate_every": 2},
        "ppo": {"updates": 1, "n_envs": 2, "n_epochs": 1, "eval_every": 1},
        "tracking": {"uri": None},
        "device": "cpu",
    }
    file.write_text(yaml.safe_dump(settings))
    # The held-out reward network learnt nothing in four steps; its choice is not asked for here.
    monkeypatch.setattr(choice, "select", keep_the_incumbent)
    call("adapt", file)

    shown = call("inspect", run, "--device", "cpu")
    assert KIND in shown
    assert "It can be adapted." in shown
    call("predict", run, images, tmp_path / "masks", "--device", "cpu")
    call("export", run, "--to", tmp_path / "out")
    assert recognise(tmp_path / "out").kind == KIND
    # The scale that the run was given counts, and not the default.
    exported = load_segmenter(kind_named(KIND, "test").at(tmp_path / "out").model_copy(update={"scale": 2.0}))
    files, masks = find_cases(DataSettings(path=images)), tmp_path / "masks" / "labels"
    case = files[0].read()
    mask = read_labels(masks / f"{case.case_id}.nii.gz", exported.schema, case.shape, case.geometry)
    assert np.array_equal(exported.segment(case), mask)
    before = load_segmenter(recognise(model)).state_dict()
    assert not any(torch.equal(value, before[name]) for name, value in exported.state_dict().items())

    simulate_dataset(tmp_path / "labelled", vendor("cart"), 24, seed=0, size=(32, 32), first=201)
    call("calibrate", run, "--labelled", tmp_path / "labelled", "--dice", "0.5", "--device", "cpu")
    assessing = QualityController.load(run).segmenter
    assert type(assessing) is type(exported)
    assert assessing.inference_settings() == exported.inference_settings()
    scores = tmp_path / "scores"
    call("score", run, "--images", images, "--masks", masks, "--out", scores, "--device", "cpu")
    with (scores / "scores.csv").open() as table:
        assert {row["case_id"] for row in csv.DictReader(table)} == {file.case_id for file in files}

    # Whoever serves the quality model has to install that package too.
    save_quality_model(run, tmp_path / "served")
    requirements = (tmp_path / "served" / "requirements.txt").read_text().split()
    # MLflow adds itself.
    assert {f"medfm-rl[tracking]=={__version__}", f"{KIND}==1.0"} <= set(requirements)
