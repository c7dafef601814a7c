"""A run that is resumed goes on with what it was started with, or says what is no longer that."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medfm_rl import __version__
from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.data.layouts import find_cases
from medfm_rl.errors import ConfigError
from medfm_rl.runs.identity import Identity
from medfm_rl.runs.inputs import hash_labelled, read_inputs
from medfm_rl.settings import AdaptConfig, DataSettings, TorchSettings, TrackingSettings
from medfm_rl.settings.files import dump_config
from medfm_rl.workflows.adapt import loop as adapt_module
from medfm_rl.workflows.adapt.loop import adapt


@pytest.fixture
def interrupted(tiny_unet: TorchModuleAdapter, simulated_echo: Path, tmp_path: Path) -> AdaptConfig:
    """A run that was stopped as soon as it had started."""
    tiny_unet.export(tmp_path / "segmenter")
    shutil.copytree(simulated_echo, tmp_path / "echo")
    (tmp_path / "rules.yaml").write_text("rules: [{kind: present, structure: LV}]")
    config = AdaptConfig(
        segmenter=TorchSettings(folder=tmp_path / "segmenter"),
        target=DataSettings(path=tmp_path / "echo" / "b"),
        source=DataSettings(path=tmp_path / "echo" / "a"),
        output=tmp_path / "run",
        anatomy=str(tmp_path / "rules.yaml"),
        tracking=TrackingSettings(uri=None),
        device="cpu",
    )
    with pytest.raises(KeyboardInterrupt):
        adapt(config, False, stop_at_the_images)
    return config


def stop_at_the_images(stage: str, done: int, total: int) -> None:
    if stage == "reading target images":
        raise KeyboardInterrupt


def first_of(folder: Path) -> Path:
    return min(folder.iterdir())


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights": (
        lambda folder: grow(folder / "segmenter" / "weights.safetensors"),
        r"segmenter\.folder: 1 file changed, weights\.safetensors",
    ),
    "target image": (
        lambda folder: grow(first_of(folder / "echo" / "b" / "images")),
        r"target\.path: 1 file changed, images/",
    ),
    "source mask": (
        lambda folder: grow(first_of(folder / "echo" / "a" / "labels")),
        r"source\.path: 1 file changed, labels/",
    ),
    "source case": (
        lambda folder: [first_of(folder / "echo" / "a" / part).unlink() for part in ("images", "labels")],
        r"source\.path: 2 files gone, images/.* first",
    ),
    "target case": (
        lambda folder: shutil.copy(
            first_of(folder / "echo" / "b" / "images"), folder / "echo" / "b" / "images" / "new_1.nii.gz"
        ),
        r"target\.path: 1 file new, images/new_1\.nii\.gz",
    ),
    "anatomy": (
        lambda folder: (folder / "rules.yaml").write_text("rules: [{kind: present, structure: LA}]"),
        r"anatomy: 1 file changed, rules\.yaml",
    ),
}


@pytest.mark.parametrize("changed", CHANGES)
def test_a_run_does_not_go_on_with_inputs_that_were_changed_in_place(interrupted: AdaptConfig, changed: str) -> None:
    change, message = CHANGES[changed]
    change(interrupted.output.parent)
    with pytest.raises(ConfigError, match=f"run: what the run was started with has changed .{message}.*put it back"):
        adapt(interrupted, True, lambda *_: None)


def test_a_run_goes_on_with_what_is_the_same_whatever_its_date_and_whatever_lies_beside_it(
    interrupted: AdaptConfig,
) -> None:
    folder = interrupted.output.parent
    for path in folder.rglob("*"):
        os.utime(path, (1, 1))
    (folder / "segmenter" / "__pycache__").mkdir()
    (folder / "segmenter" / "__pycache__" / "x.pyc").write_bytes(b"x")
    # Masks of the target are none of the run's business.
    shutil.rmtree(folder / "echo" / "b" / "labels")
    with pytest.raises(KeyboardInterrupt):
        adapt(interrupted, True, stop_at_the_images)


def test_a_run_of_an_older_version_goes_on_with_a_warning(
    interrupted: AdaptConfig, caplog: pytest.LogCaptureFixture
) -> None:
    (interrupted.output / "inputs.json").unlink()
    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        adapt(interrupted, True, stop_at_the_images)
    assert "inputs.json is missing, for an older version started this run" in caplog.text


@pytest.mark.parametrize("recorded", ["0.0.1", None])
def test_a_run_of_another_version_goes_on_with_a_warning(
    interrupted: AdaptConfig, caplog: pytest.LogCaptureFixture, recorded: str | None
) -> None:
    """Also one whose record does not say the version."""
    path = interrupted.output / "inputs.json"
    content = json.loads(path.read_text())
    assert content["medfm_rl"] == __version__
    for resumed in (False, True):
        with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
            adapt(interrupted, True, stop_at_the_images)
        assert ("started this run" in caplog.text) == resumed
        del content["medfm_rl"]
        path.write_text(json.dumps(content if recorded is None else {**content, "medfm_rl": recorded}))
        content["medfm_rl"] = __version__
    named = "0.0.1" if recorded else "of an older version"
    assert f"run: medfm-rl {named} started this run and {__version__} goes on with it" in caplog.text


@pytest.fixture
def finished(interrupted: AdaptConfig, monkeypatch: pytest.MonkeyPatch) -> AdaptConfig:
    """As a run that has its model and its quality model, and goes on to the report alone."""
    monkeypatch.setattr(adapt_module, "FinishedRun", lambda *_: SimpleNamespace(identity=Identity()))
    monkeypatch.setattr(adapt_module, "write_default_quality", lambda run, config, progress: None)
    (interrupted.output / "model").mkdir()
    (interrupted.output / "iteration-00").mkdir(exist_ok=True)
    (interrupted.output / "iteration-00" / "selection.json").write_text("{}")
    (interrupted.output / "quality.json").write_text('{"format": 5}')
    return interrupted


def resume(config: AdaptConfig) -> None:
    adapt(config, True, lambda *_: None)


def with_evaluation(config: AdaptConfig) -> AdaptConfig:
    changed = config.model_copy(update={"evaluation": DataSettings(path=config.output.parent / "echo" / "a")})
    (config.output / "config.yaml").write_text(dump_config(changed))
    return changed


def test_a_finished_run_is_not_reported_on_with_another_segmenter(finished: AdaptConfig) -> None:
    resume(finished)
    grow(finished.segmenter.folder / "weights.safetensors")
    for config_of in (lambda: finished, lambda: with_evaluation(finished)):
        with pytest.raises(ConfigError, match=r"segmenter\.folder: 1 file changed, weights\.safetensors"):
            resume(config_of())


def test_a_finished_run_needs_the_images_alone_that_its_report_shows(finished: AdaptConfig) -> None:
    """Those of the target where there are none to evaluate on; nothing calibrates again."""
    grow(first_of(finished.output.parent / "echo" / "a" / "images"))
    resume(finished)
    grow(first_of(finished.output.parent / "echo" / "b" / "images"))
    with pytest.raises(ConfigError, match=r"changed \(target\.path: 1 file changed, images/[^;]*\)"):
        resume(finished)
    shutil.rmtree(finished.output.parent / "echo" / "b")
    resume(with_evaluation(finished))


def test_an_outdated_quality_model_is_made_anew_and_needs_its_images(finished: AdaptConfig) -> None:
    config = with_evaluation(finished)
    (config.output / "quality.json").write_text('{"format": 3}')
    grow(first_of(config.output.parent / "echo" / "a" / "images"))
    with pytest.raises(ConfigError, match=r"source\.path: 1 file changed"):
        resume(config)


def test_the_pixels_beside_a_header_count(tmp_path: Path, interrupted: AdaptConfig) -> None:
    target = tmp_path / "mhd"
    target.mkdir()
    for name, pixels in (("p1", "p1.raw"), ("p2", "second.bin"), ("p3", "lost.raw")):
        (target / f"{name}.mhd").write_text(f"ElementDataFile = {pixels}")
        if name != "p3":
            (target / pixels).write_bytes(name.encode())
    config = interrupted.model_copy(update={"target": DataSettings(path=target)})
    files = read_inputs(config, lambda *_: None)["target.path"].files
    assert set(files) == {"p1.mhd", "p1.raw", "p2.mhd", "second.bin", "p3.mhd"}


BOXES = {"kind": "from_masks", "path": "../coarse"}
CLIP = {"structures": {"LV": 1}, "checkout": "../checkout", "tokenizer": "../clip", "checkpoint": "own.ckpt"}
MODULE = {"schema": {"names": ["background", "LV"], "ids": [0, 1]}, "preprocessing": {}}
BESIDE: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, set[str]]]] = {
    "prompts that segmenter.json names": (
        {"kind": "litemedsam"},
        {"kind": "litemedsam", "structures": {"LV": 1}, "prompts": BOXES, "checkpoint": "own.ckpt"},
        {"segmenter.prompts.path": {"p1.png"}},
    ),
    "prompts of the settings in their place": (
        {"kind": "litemedsam", "prompts": {"kind": "from_file", "path": "boxes.json"}},
        {"kind": "litemedsam", "structures": {"LV": 1}, "prompts": BOXES, "checkpoint": "../mine.pth"},
        {"segmenter.prompts.path": {"boxes.json"}, "segmenter.checkpoint": {"mine.pth"}},
    ),
    "a checkout and a tokenizer": (
        {"kind": "biomedparse"},
        {"kind": "biomedparse", **CLIP},
        {"segmenter.checkout": {"src/net.py"}, "segmenter.tokenizer": {"words.txt"}},
    ),
    "weights of a module": (
        {},
        {"network": {"unet": {}}, "weights": "../mine.pth", **MODULE},
        {"segmenter.weights": {"mine.pth"}},
    ),
    "a script": ({}, {"network": {"torchscript": "../mine.pth"}, **MODULE}, {"segmenter.weights": {"mine.pth"}}),
    "weights of a bundle": (
        {"kind": "monai-bundle", "weights": "../../mine.pth"},
        {},
        {"segmenter.weights": {"mine.pth"}},
    ),
    "a checkpoint of nnU-Net": (
        {"kind": "nnunet", "checkpoint": "../../mine.pth"},
        {},
        {"segmenter.checkpoint": {"mine.pth"}},
    ),
    "nothing": ({"kind": "monai-bundle"}, {}, {}),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_what_a_segmenter_reads_beside_its_folder_is_an_input(
    simulated_echo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    settings, description, expected = BESIDE[kind]
    for name in ("coarse/p1.png", "boxes.json", "mine.pth", "checkout/src/net.py", "checkout/.git/x", "clip/words.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("content")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "plans.json").write_text("{}")
    content = {"kind": "torch", "format": 1, **description}
    (tmp_path / "model" / "segmenter.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    config = AdaptConfig.model_validate(
        {
            "segmenter": {"folder": tmp_path / "model", **settings},
            "target": {"path": simulated_echo / "b"},
            "output": tmp_path / "run",
        }
    )
    found = read_inputs(config, lambda *_: None)
    assert found.pop("target.path").cases
    assert set(found.pop("segmenter.folder").files) == {"plans.json", "segmenter.json"}
    assert {name: set(place.files) for name, place in found.items()} == expected


def test_a_record_of_the_inputs_that_cannot_be_read_is_named(interrupted: AdaptConfig) -> None:
    (interrupted.output / "inputs.json").write_text("{")
    with pytest.raises(ConfigError, match=r"inputs\.json: cannot be read"):
        adapt(interrupted, True, lambda *_: None)


def test_files_of_one_name_in_two_folders_outside_the_data_set_are_told_apart(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8), np.uint8)
    for part in ("a", "m"):
        (tmp_path / part).mkdir()
        pixels[0, 0] += 1
        Image.fromarray(pixels).save(tmp_path / part / "p1.png")
    (tmp_path / "set").mkdir()
    listed = [{"image": str(tmp_path / "a" / "p1.png"), "label": str(tmp_path / "m" / "p1.png")}]
    (tmp_path / "set" / "dataset.json").write_text(json.dumps({"training": listed}))
    settings = DataSettings(path=tmp_path / "set")
    files = find_cases(settings)
    found = hash_labelled(settings.path, files, lambda *_: None)
    assert set(found.files) == {"../a/p1.png", "../m/p1.png"}
    assert len(set(found.files.values())) == 2
