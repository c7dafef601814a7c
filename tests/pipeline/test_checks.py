"""What is refused before a run has spent anything."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.errors import ConfigError, DataError
from medfm_rl.metrics.validity import load_anatomy
from medfm_rl.pipeline.adapt import adapt
from medfm_rl.pipeline.checks import check_inputs
from medfm_rl.settings import AdaptConfig, DataSettings, SegmenterSettings, TrackingSettings


@pytest.fixture
def segmenter(tiny_unet: TorchModuleAdapter, tmp_path: Path) -> Path:
    tiny_unet.export(tmp_path / "segmenter")
    return tmp_path / "segmenter"


def config_of(segmenter: Path, echo: Path, **changes: object) -> AdaptConfig:
    values: dict[str, object] = {
        "segmenter": SegmenterSettings(folder=segmenter),
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
        adapt(config, resume=False, progress=lambda *_: None)
    assert not config.output.exists()
    profile.write_text(f"rules: [{rule.replace('MEASURE', 'share')}]")
    check_inputs(config)


@pytest.mark.parametrize("name", ["echo_apical", "generic"])
def test_built_in_profiles_pass_the_check(segmenter: Path, simulated_echo: Path, name: str) -> None:
    check_inputs(config_of(segmenter, simulated_echo, anatomy=name))
    assert load_anatomy(name, TorchModuleAdapter.load(segmenter).schema).rules


def copy_of_patients(data: Path, folder: Path, count: int) -> DataSettings:
    """The images and masks of some patients."""
    shutil.copytree(data, folder)
    patients = sorted({path.name.split("_")[0] for path in (folder / "images").iterdir()})
    for path in [*(folder / "images").iterdir(), *(folder / "labels").iterdir()]:
        if path.name.split("_")[0] in patients[count:]:
            path.unlink()
    return DataSettings(path=folder)


def test_too_few_patients_for_a_judge_of_its_own_are_refused(segmenter: Path, simulated_echo: Path) -> None:
    few = copy_of_patients(simulated_echo / "a", segmenter.parent / "few", 2)
    with pytest.raises(DataError, match="source: the reward networks learn from images of 2 patients and need 3"):
        check_inputs(config_of(segmenter, simulated_echo, source=few))
    enough = copy_of_patients(simulated_echo / "a", segmenter.parent / "enough", 3)
    check_inputs(config_of(segmenter, simulated_echo, source=enough))
    with pytest.raises(DataError, match="target: the reward networks learn from images of 3 patients and need 4"):
        check_inputs(config_of(segmenter, simulated_echo, source=None, selection={"target_fraction": 0.5}))
