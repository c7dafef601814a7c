"""What is refused before a run has spent anything."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import nn

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.adapters.grid import Sample
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.data.images import read_image, write_image
from medfm_rl.errors import ConfigError, DataError, ModelError, TrackingError
from medfm_rl.settings import AdaptConfig, DataSettings, PreprocessingSettings, TorchSettings, TrackingSettings
from medfm_rl.types import Case
from medfm_rl.workflows.adapt.checks import check_inputs
from medfm_rl.workflows.adapt.loop import adapt


def quiet(*_: object) -> None:
    """Shows no progress."""


@pytest.fixture
def segmenter(tiny_unet: TorchModuleAdapter, tmp_path: Path) -> Path:
    tiny_unet.export(tmp_path / "segmenter")
    return tmp_path / "segmenter"


def config_of(segmenter: Path, echo: Path, **changes: object) -> AdaptConfig:
    values: dict[str, object] = {
        "segmenter": TorchSettings(folder=segmenter),
        "target": DataSettings(path=echo / "b"),
        "source": DataSettings(path=echo / "a"),
        "output": segmenter.parent / "run",
        "tracking": TrackingSettings(uri=None),
        "device": "cpu",
    }
    return AdaptConfig.model_validate({**values, **changes})


def test_a_rule_in_mm_is_refused_before_a_folder_is_written(segmenter: Path, simulated_echo: Path) -> None:
    """It cannot be checked on the grid of the networks."""
    profile = segmenter.parent / "mine.yaml"
    rule = "{kind: size, structure: LV, measured_in: MEASURE, least: 0, most: 9000}"
    profile.write_text(f"rules: [{{kind: present, structure: LA}}, {rule.replace('MEASURE', 'mm')}]")
    config = config_of(segmenter, simulated_echo, anatomy=str(profile))
    with pytest.raises(ConfigError, match=r"mine\.yaml: the rule size of LV has limits in mm.*measured_in: share"):
        adapt(config, resume=False, progress=quiet)
    assert not config.output.exists()
    profile.write_text(f"rules: [{rule.replace('MEASURE', 'share')}]")
    check_inputs(config, quiet)


@pytest.mark.parametrize("name", ["echo_apical", "generic"])
def test_built_in_profiles_pass_the_check(segmenter: Path, simulated_echo: Path, name: str) -> None:
    check_inputs(config_of(segmenter, simulated_echo, anatomy=name), quiet)
    assert load_anatomy(name, TorchModuleAdapter.load(segmenter).schema).rules


def test_a_parameter_that_would_never_learn_is_named_before_a_folder_is_written(
    segmenter: Path, simulated_echo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = nn.Parameter(torch.zeros(2))
    taught = TorchModuleAdapter.trainable
    monkeypatch.setattr(TorchModuleAdapter, "trainable", lambda own, scope: {**taught(own, scope), "beside": beside})
    config = config_of(segmenter, simulated_echo)
    with pytest.raises(ModelError, match=r"no gradient reaches 1 parameters of the scope 'all', the first beside"):
        adapt(config, resume=False, progress=quiet)
    assert not config.output.exists()


def copy_of_patients(data: Path, folder: Path, count: int) -> DataSettings:
    """The images and masks of some patients."""
    shutil.copytree(data, folder)
    patients = sorted({path.name.split("_")[0] for path in (folder / "images").iterdir()})
    for path in [*(folder / "images").iterdir(), *(folder / "labels").iterdir()]:
        if path.name.split("_")[0] in patients[count:]:
            path.unlink()
    return DataSettings(path=folder)


def test_an_output_within_the_segmenter_is_refused_also_behind_a_link(segmenter: Path, simulated_echo: Path) -> None:
    """The run would find its own files among its inputs, and not go on after a kill."""
    (segmenter.parent / "link").symlink_to(segmenter)
    inside = config_of(segmenter, simulated_echo, output=segmenter.parent / "link" / "run")
    with pytest.raises(ConfigError, match=r"run: it lies in segmenter.folder .*choose a folder outside"):
        check_inputs(inside, quiet)


def test_too_few_patients_for_a_judge_of_its_own_are_refused(segmenter: Path, simulated_echo: Path) -> None:
    few = copy_of_patients(simulated_echo / "a", segmenter.parent / "few", 2)
    with pytest.raises(DataError, match="source: the reward networks learn from images of 2 patients and need 3"):
        check_inputs(config_of(segmenter, simulated_echo, source=few), quiet)
    enough = copy_of_patients(simulated_echo / "a", segmenter.parent / "enough", 3)
    check_inputs(config_of(segmenter, simulated_echo, source=enough), quiet)
    with pytest.raises(DataError, match="target: the reward networks learn from images of 3 patients and need 4"):
        check_inputs(config_of(segmenter, simulated_echo, source=None, selection={"target_fraction": 0.5}), quiet)


def refuse(config: AdaptConfig, error: type[Exception], *words: str) -> str:
    """The message with which a run is refused before anything of it is on the disk."""
    with pytest.raises(error) as caught:
        adapt(config, resume=False, progress=quiet)
    for word in words:
        assert word in str(caught.value)
    assert not config.output.exists()
    return str(caught.value)


def test_files_that_cannot_be_used_are_all_named_before_a_folder_is_written(
    segmenter: Path, simulated_echo: Path
) -> None:
    source, target = (copy_of_patients(simulated_echo / name, segmenter.parent / name, 6) for name in ("a", "b"))
    labels, images = (sorted((source.path / kind).iterdir()) for kind in ("labels", "images"))
    cut = images[0].read_bytes()
    images[0].write_bytes(cut[: len(cut) // 2])
    small, geometry = read_image(labels[1])
    write_image(labels[1], small[0, :-1].astype(np.uint8), geometry)
    unknown, geometry = read_image(labels[2])
    write_image(labels[2], np.full_like(unknown[0], 9).astype(np.uint8), geometry)
    text = refuse(
        config_of(segmenter, simulated_echo, source=source),
        DataError,
        f"source: 3 of {len(images)} cases cannot be used",
        f"{images[0]}: cannot be read",
        f"{labels[1]}: the mask has size (31, 32), its image (32, 32)",
        str(labels[2]),
    )
    assert len(text.splitlines()) == 4
    for path in sorted((target.path / "images").iterdir())[:12]:
        path.write_bytes(b"")
    text = refuse(config_of(segmenter, simulated_echo, target=target), DataError, "target: 12 of ", "and 2 more")
    assert text.count("the file is empty") == 10


def test_colour_images_of_a_grey_segmenter_are_named_with_their_files(segmenter: Path, simulated_echo: Path) -> None:
    target = copy_of_patients(simulated_echo / "b", segmenter.parent / "b", 6)
    for number, path in enumerate(sorted((target.path / "images").iterdir())):
        grey = read_image(path)[0][0].clip(0, 255).astype(np.uint8)
        path.unlink()
        colours = [grey, grey, grey if number else 255 - grey]
        image = sitk.GetImageFromArray(np.stack(colours, axis=-1), isVector=True)
        sitk.WriteImage(image, str(path).replace(".nii.gz", ".png"))
    first = min((target.path / "images").iterdir())
    text = refuse(
        config_of(segmenter, simulated_echo, target=target),
        DataError,
        "target: 1 of ",
        str(first),
        "write it as a grey",
    )
    assert len(text.splitlines()) == 2


def test_images_that_only_preprocessing_refuses_are_named_before_a_folder_is_written(
    segmenter: Path, simulated_echo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those without a spacing are by an nnU-Net, and boxes outside their image by a promptable segmenter."""
    first = min((simulated_echo / "b" / "images").iterdir())
    preprocess = TorchModuleAdapter.preprocess

    def particular(self: TorchModuleAdapter, case: Case) -> Sample:
        if case.case_id == first.name.removesuffix(".nii.gz"):
            raise DataError(f"case {case.case_id}: not at all")
        return preprocess(self, case)

    monkeypatch.setattr(TorchModuleAdapter, "preprocess", particular)
    with pytest.raises(DataError) as caught:
        check_inputs(config_of(segmenter, simulated_echo), quiet)
    assert "target: 1 of 24 cases cannot be used" in str(caught.value)
    assert f"{first}: case {first.name.removesuffix('.nii.gz')}: not at all" in str(caught.value)


def test_a_network_that_is_no_policy_is_refused_before_a_folder_is_written(
    segmenter: Path, simulated_echo: Path
) -> None:
    """Its description leaves out a structure that the network has."""
    schema = TorchModuleAdapter.load(segmenter).schema
    arguments = {"in_channels": 1, "out_channels": 5, "kernel_size": 1}
    five = nn.Conv2d(**arguments)
    network = {"factory": "torch.nn:Conv2d", "arguments": arguments}
    TorchModuleAdapter(five, schema, PreprocessingSettings(size=(16, 16)), network=network).export(
        segmenter.parent / "five"
    )
    refuse(
        config_of(segmenter.parent / "five", simulated_echo),
        ModelError,
        "five: it cannot be adapted: ",
        "its 5 outputs",
    )


def test_what_runs_before_a_folder_is_written_is_told(segmenter: Path, simulated_echo: Path) -> None:
    told: list[tuple[str, int, int]] = []
    check_inputs(config_of(segmenter, simulated_echo), lambda *news: told.append(news))
    assert [told[0], told[1]] == [("trying the network on one patch", done, 1) for done in (0, 1)]
    assert told[-1] == ("checking source", 24, 24)


def test_masks_of_the_target_are_not_opened(segmenter: Path, simulated_echo: Path) -> None:
    target = copy_of_patients(simulated_echo / "b", segmenter.parent / "b", 6)
    for path in (target.path / "labels").iterdir():
        path.write_bytes(b"no mask")
    check_inputs(config_of(segmenter, simulated_echo, target=target, evaluation=target), quiet)


@pytest.mark.parametrize("uri", ["127.0.0.1:5000", "http://127.0.0.1:9"])
def test_records_that_could_not_be_kept_are_told_before_a_folder_is_written(
    segmenter: Path, simulated_echo: Path, uri: str
) -> None:
    refuse(config_of(segmenter, simulated_echo, tracking=TrackingSettings(uri=uri)), TrackingError, "tracking.uri", uri)


def test_what_looks_suspicious_is_said_in_a_line_and_holds_nothing_up(
    segmenter: Path, simulated_echo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Masks of the target have no part in it, for none is read."""
    target, source = tmp_path / "target", tmp_path / "source"
    shutil.copytree(simulated_echo / "b", target)
    shutil.copytree(simulated_echo / "a", source)
    first = sorted((target / "images").iterdir())[0]
    shutil.copy(first, first.with_name(f"other_{first.name}"))
    shutil.copy(target / "labels" / first.name, target / "labels" / f"other_{first.name}")
    mask = sorted((source / "labels").iterdir())[0]
    drawn, grid = read_image(mask)
    write_image(mask, np.zeros(drawn.shape[1:], dtype=np.uint8), grid)
    changes = {"target": DataSettings(path=target), "source": DataSettings(path=source)}
    check_inputs(config_of(segmenter, simulated_echo, **changes), quiet)
    lines = [record.getMessage() for record in caplog.records if record.name == "medfm_rl.workflows.adapt.checks"]
    twins, empty = lines
    assert twins.startswith("target: 2 of ")
    assert "images are the very image of another patient: " in twins
    assert empty.startswith("source: 1 of ")
    assert "masks is empty: " in empty
