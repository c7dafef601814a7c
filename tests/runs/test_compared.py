from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.nnunet_models import plans, write_model

from medfm_rl.adapters.loading import load_segmenter
from medfm_rl.reward.fusion import write_fusion
from medfm_rl.runs.compared import load_compared
from medfm_rl.settings import AdaptConfig, DataSettings, NnUNetSettings, RewardSettings
from medfm_rl.settings.files import dump_config

pytestmark = pytest.mark.nnunet


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An nnU-Net with two folds that was trained with mirroring, and a second checkpoint in each fold."""
    folder = write_model(
        tmp_path_factory.mktemp("nnunet") / "model", plans(2, [32, 32], [1.0, 1.0]), folds=(0, 1), mirror=(0, 1)
    )
    for fold in (0, 1):
        shutil.copy(folder / f"fold_{fold}" / "checkpoint_final.pth", folder / f"fold_{fold}" / "checkpoint_best.pth")
    return folder


def finished_run(folder: Path, settings: NnUNetSettings) -> Path:
    """The folder of a run that has handed its source back unchanged."""
    config = AdaptConfig(segmenter=settings, target=DataSettings(path=folder / "images"), output=folder)
    folder.mkdir()
    (folder / "config.yaml").write_text(dump_config(config))
    write_fusion(folder / "reward", ["member-0"], RewardSettings())
    load_segmenter(settings).export(folder / "model")
    return folder


def test_a_source_is_compared_under_the_settings_that_the_run_recorded(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Recognised by its files alone it would be mirrored, of both folds, and of another checkpoint."""
    settings = NnUNetSettings(
        kind="nnunet", folder=source, folds=(1,), checkpoint="checkpoint_best.pth", mirroring=False
    )
    run = finished_run(tmp_path / "run", settings)
    adapted, before = load_compared(run, source, "cpu", None)
    assert before.settings == settings
    assert before.segmenter.mirror_axes == adapted.segmenter.mirror_axes == ()
    assert before.segmenter.inference_settings() == adapted.segmenter.inference_settings()
    assert caplog.text == ""
    # The other way round it is the same.
    before, _ = load_compared(source, run, "cpu", None)
    assert before.settings == settings


def test_a_difference_that_is_not_the_adaptation_s_is_named(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [
        finished_run(tmp_path / str(mirrored), NnUNetSettings(kind="nnunet", folder=source, mirroring=mirrored))
        for mirrored in (True, False)
    ]
    load_compared(runs[0], runs[1], "cpu", None)
    assert f"{runs[0]} and {runs[1]} segment with other settings (mirrored: [0, 1] and [])" in caplog.text
