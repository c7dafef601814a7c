"""A run that is resumed goes on with what it was started with, or says what is no longer that."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.errors import ConfigError
from medfm_rl.pipeline.adapt import adapt
from medfm_rl.pipeline.inputs import read_inputs
from medfm_rl.settings import AdaptConfig, DataSettings, SegmenterSettings, TrackingSettings


@pytest.fixture
def interrupted(tiny_unet: TorchModuleAdapter, simulated_echo: Path, tmp_path: Path) -> AdaptConfig:
    """A run that was stopped as soon as it had started."""
    tiny_unet.export(tmp_path / "segmenter")
    shutil.copytree(simulated_echo, tmp_path / "echo")
    (tmp_path / "rules.yaml").write_text("rules: [{kind: present, structure: LV}]")
    config = AdaptConfig(
        segmenter=SegmenterSettings(folder=tmp_path / "segmenter"),
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


def test_a_record_of_the_inputs_that_cannot_be_read_is_named(interrupted: AdaptConfig) -> None:
    (interrupted.output / "inputs.json").write_text("{")
    with pytest.raises(ConfigError, match=r"inputs\.json: cannot be read"):
        adapt(interrupted, True, lambda *_: None)
