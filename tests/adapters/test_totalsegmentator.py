"""TotalSegmentator by the names of its tasks: small networks in folders as it lays them out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medfm_rl.adapters.kinds import kind_of
from medfm_rl.adapters.loading import adapted_settings, exported_settings, load_segmenter, read_beside
from medfm_rl.adapters.nnunet.adapter import NnUNetAdapter
from medfm_rl.errors import ModelError
from medfm_rl.settings import AdaptConfig, TotalSegmentatorSettings
from medfm_rl.settings.files import dump_config
from medfm_rl.settings.totalsegmentator import TaskNetwork, find_network
from medfm_rl.workflows.inspection import inspect_model

pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed (extra nnunet)")
from support.nnunet_models import VOLUME, dataset, read, volumetric, write_case, write_model

pytestmark = pytest.mark.nnunet


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOTALSEG_WEIGHTS_PATH", str(tmp_path / "weights"))
    return tmp_path / "weights"


def write_weights(root: Path, network: TaskNetwork, count: int | None = None, trainer: str | None = None) -> Path:
    """The weights of a network, with names as a data set has them that was not made for the task."""
    numbers = range(1, (len(network.structures) if count is None else count) + 1)
    labels = {"background": 0, **{f"label {number}": number for number in numbers}}
    model = root / network.dataset / network.model
    return write_model(model, volumetric(), dataset(labels), folds=(0, 1), trainer=trainer or network.trainer)


def settings(task: str, part: str | None = None) -> TotalSegmentatorSettings:
    return TotalSegmentatorSettings.model_validate({"kind": "totalsegmentator", "task": task, "part": part})


def test_a_part_of_total_is_loaded_by_its_name_and_exported_with_it(weights: Path, tmp_path: Path) -> None:
    network = find_network("total", "cardiac")
    model = write_weights(weights, network)
    # Another model beside it, which the task does not run.
    write_model(model.with_name("nnUNetTrainer__nnUNetPlans__3d_lowres"), volumetric())
    named = settings("total", "cardiac")
    adapter = load_segmenter(named)
    assert isinstance(adapter, NnUNetAdapter)
    assert adapter.schema.structures == network.structures
    assert adapter.schema.integers["aorta"] == 2
    assert (adapter.step_size, adapter.folds, adapter.mirroring, adapter.canonical) == (0.8, (0,), False, True)
    assert read_beside(named) == {}
    case = read(write_case(tmp_path / "images" / "p1_v_0000.nii.gz", *VOLUME))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1)
    mask = adapter.segment(case)
    # As a run leaves it: settings with the folder of then, and the model beside them.
    adapter.export(tmp_path / "run" / "model")
    assert (tmp_path / "run" / "model" / network.dataset / network.model / "plans.json").exists()
    config = AdaptConfig.model_validate({"segmenter": named, "target": {"path": "x"}, "output": tmp_path / "run"})
    (tmp_path / "run" / "config.yaml").write_text(dump_config(config))
    again = load_segmenter(adapted_settings(tmp_path / "run" / "config.yaml", tmp_path / "run" / "model"))
    assert again.schema.structures == network.structures
    assert np.array_equal(again.segment(case), mask)
    assert exported_settings(named, tmp_path / "x").folder == tmp_path / "x"


def test_a_trainer_of_totalsegmentator_alone_needs_no_totalsegmentator(weights: Path) -> None:
    model = write_weights(weights, find_network("lung_vessels"))
    adapter = load_segmenter(settings("lung_vessels"))
    assert adapter.schema.structures == ("lung_airways", "lung_airways_wall", "lung_arteries", "lung_veins")
    assert isinstance(adapter, NnUNetAdapter)
    assert adapter.folder == model
    summary = kind_of(settings("lung_vessels")).summarise
    assert summary is not None
    rows = summary(settings("lung_vessels"), lambda found: found.obstacles()).rows
    assert rows["task"] == "lung_vessels"
    assert rows["structures"] == "background 0, lung_airways 1, lung_airways_wall 2, lung_arteries 3, lung_veins 4"
    assert rows["cropped to"].startswith("lung_upper_lobe_left, ")


def test_structures_that_the_task_does_not_know_keep_their_names(weights: Path) -> None:
    write_weights(weights, find_network("hip_implant"), count=3, trainer="nnUNetTrainer")
    adapter = load_segmenter(settings("hip_implant"))
    assert adapter.schema.structures == ("hip_implant", "label 2", "label 3")


def test_weights_that_are_missing_or_of_another_task_are_named_with_the_remedy(weights: Path) -> None:
    with pytest.raises(
        ModelError,
        match=r"Dataset295_.*: there is no such folder; download the weights of task total, part ribs: "
        r"`totalseg_download_weights -t total` \(package TotalSegmentator\), or say where they are: .*"
        "TOTALSEG_WEIGHTS_PATH or TOTALSEG_HOME_DIR",
    ):
        load_segmenter(settings("total", "ribs"))
    write_weights(weights, find_network("total", "ribs"), count=7, trainer="nnUNetTrainer")
    with pytest.raises(ModelError, match=r"dataset\.json: has 7 structures \(label 1, .*and the task 26; is it the"):
        load_segmenter(settings("total", "ribs"))


def test_a_settings_file_is_inspected_by_its_task(weights: Path, tmp_path: Path) -> None:
    file = tmp_path / "adapt.yaml"
    file.write_text(
        "segmenter: {kind: totalsegmentator, task: lung_vessels}\ntarget: {path: data}\noutput: run\n", encoding="utf-8"
    )
    with pytest.raises(ModelError, match=r"Dataset117_.*download the weights of task lung_vessels"):
        inspect_model(file, torch.device("cpu"), lambda *_: None)
    write_weights(weights, find_network("lung_vessels"))
    summary = inspect_model(file, torch.device("cpu"), lambda *_: None)
    assert summary.obstacles == ()
    assert (summary.rows["task"], summary.rows["kind"]) == ("lung_vessels", "totalsegmentator")
