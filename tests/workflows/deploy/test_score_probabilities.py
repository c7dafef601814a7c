"""Scoring with the probabilities that came with the masks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from medfm_rl.data.layouts import find_cases
from medfm_rl.data.mask_files import find_masks
from medfm_rl.data.probabilities import find_probabilities
from medfm_rl.errors import ConfigError, ModelError
from medfm_rl.quality.model import QualityModel, Targets
from medfm_rl.runs.finished import load_run
from medfm_rl.settings import DataSettings
from medfm_rl.types import LabelSchema
from medfm_rl.workflows.calibrate.quality import CalibrateRequest, calibrate
from medfm_rl.workflows.deploy.score import ScoreRequest, score


def write_probabilities(data: Path, folder: Path, schema: LabelSchema) -> None:
    """Of masks that are right but for the lower half, where their maker is less certain."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for file in find_cases(DataSettings(path=data)):
        truth = file.read_labelled(schema).ground_truth
        certainty = np.full(truth.shape, 0.97)
        certainty[generator.random(truth.shape) < 0.1] = 0.6
        maps = np.repeat(((1 - certainty) / (schema.num_classes - 1))[None], schema.num_classes, axis=0)
        np.put_along_axis(maps, truth[None].astype(np.intp), certainty[None], axis=0)
        np.savez(folder / f"{file.case_id}.npz", probabilities=maps[:, None].astype(np.float16))


def test_given_probabilities_count_where_they_were_calibrated_and_nowhere_else(
    quality_run: Path, tmp_path: Path, schema: LabelSchema
) -> None:
    shutil.copytree(quality_run.parent / "data", tmp_path / "data")
    shutil.copytree(quality_run, tmp_path / "run")
    files = find_cases(DataSettings(path=tmp_path / "data"))
    write_probabilities(tmp_path / "data", tmp_path / "maps", schema)
    masks, maps = find_masks(tmp_path / "data" / "labels", files), find_probabilities(tmp_path / "maps", files)
    run = load_run(tmp_path / "run", "cpu")
    with pytest.raises(ConfigError, match="they go with --masks"):
        ScoreRequest(probabilities=maps)
    with pytest.raises(ModelError, match="leave out --probabilities, or calibrate"):
        score(run, files[:2], tmp_path / "out", ScoreRequest(masks=masks, probabilities=maps))
    assert "given_weight" not in run.folder.quality.read_text()
    calibrate(run, files, CalibrateRequest(Targets(dice=0.5), masks=masks, probabilities=maps))
    model = QualityModel.read(run.folder.quality)
    assert model.pixels.given_weight is not None
    with pytest.raises(ModelError, match="give those of these masks"):
        score(run, files[:2], tmp_path / "out", ScoreRequest(masks=masks))
    maps = {case: path for case, path in maps.items() if case != files[1].case_id}
    request = ScoreRequest(masks=masks, probabilities=maps)
    scoring = score(run, files[:2], tmp_path / "out", request)
    assert [report.case_id for report in scoring.batch.reports] == [files[0].case_id]
    assert scoring.unassessed[files[1].case_id].cause == "probabilities_unusable"
    changed = maps[files[0].case_id]
    content = np.load(changed)["probabilities"]
    np.savez(changed, probabilities=content[::-1])
    again = score(run, files[:2][:1] + files[2:3], tmp_path / "out", request)
    assert again.unassessed[files[0].case_id].cause == "probabilities_unusable"
    assert "of another mask" in again.problems[files[0].case_id]


def test_the_first_networks_alone_assess_where_they_alone_were_calibrated(quality_run: Path, tmp_path: Path) -> None:
    shutil.copytree(quality_run.parent / "data", tmp_path / "data")
    shutil.copytree(quality_run, tmp_path / "run")
    files = find_cases(DataSettings(path=tmp_path / "data"))[:60]
    masks = find_masks(tmp_path / "data" / "labels", files)
    run = load_run(tmp_path / "run", "cpu")
    assert len(run.controller().reward.networks) == 2
    assert '"networks"' not in run.folder.quality.read_text()
    with pytest.raises(ConfigError, match="has 2 reward networks"):
        calibrate(run, files, CalibrateRequest(Targets(dice=0.5), masks=masks, networks=3))
    calibrate(run, files, CalibrateRequest(Targets(dice=0.5), masks=masks, networks=1))
    assert QualityModel.read(run.folder.quality).networks == ("member-0",)
    assert len(run.controller().reward.networks) == 1
    alone = score(load_run(tmp_path / "run", "cpu"), files[:1], tmp_path / "out", ScoreRequest(masks=masks))
    assert alone.batch.reports[0].mean.predicted_dice is not None
