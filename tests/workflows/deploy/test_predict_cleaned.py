"""Masks that are cleaned up by the rules of an anatomy."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from support.grey_reader import SCHEMA, make_reward, make_segmenter

from medfm_rl.adapters.post_processing import PostProcessing
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.data.images import write_image
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.errors import ConfigError, DataError
from medfm_rl.runs.models import ModelInMemory
from medfm_rl.settings import DataSettings
from medfm_rl.types import Geometry
from medfm_rl.workflows.deploy.predict import predict, segment_with_reward
from medfm_rl.workflows.evaluate.evaluate import evaluate

GRID = Geometry((1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))


def drawn() -> np.ndarray:
    """A square of each structure, as it should be."""
    image = np.zeros((16, 16), np.uint8)
    image[2:8, 2:8], image[9:14, 9:14] = 1, 2
    return image


def torn() -> np.ndarray:
    """The same with a hole in `a`, and a stray part of `b`."""
    image = drawn()
    image[4, 4], image[12, 2:4] = 0, 2
    return image


@pytest.fixture
def files(tmp_path: Path) -> list[CaseFile]:
    """Stills of two patients and their true masks; what the segmenter makes of them is torn."""
    for patient in ("p1", "p2"):
        for part, pixels in (("images", torn()), ("labels", 10 * drawn())):
            write_image(tmp_path / "data" / part / f"{patient}_still.nii.gz", pixels, GRID)
    return find_cases(DataSettings(path=tmp_path / "data"))


def written(path: Path) -> np.ndarray:
    found: np.ndarray = np.asarray(nib.load(path).dataobj).squeeze().T
    return found


def test_stray_parts_go_and_holes_are_filled_on_request(tmp_path: Path, files: list[CaseFile]) -> None:
    model = ModelInMemory(make_segmenter(0, 1, 2))
    for cleaned, expected in ((False, torn()), (True, drawn())):
        out = tmp_path / str(cleaned)
        assert predict(model, files, out, cleaned=cleaned) == []
        assert np.array_equal(written(out / "labels" / "p1_still.nii.gz"), 10 * expected)
        measured = evaluate(model, files, tmp_path / f"scores-{cleaned}", cleaned=cleaned)
        assert [row.validity for row in measured.evaluation.summary] == [float(cleaned)] * 3
        assert (measured.evaluation.summary[-1].dice == 1) == cleaned
    # What was made without is not taken for what was asked, and a repeated call makes nothing anew.
    with pytest.raises(DataError, match="False"):
        predict(model, files, tmp_path / "False", cleaned=True)
    lines = (tmp_path / "True" / "audit.jsonl").read_text()
    predict(model, files, tmp_path / "True", cleaned=True)
    assert (tmp_path / "True" / "audit.jsonl").read_text() == lines
    assert json.loads(lines.splitlines()[0])["inputs"]["clean_up"]["rules"][0]["kind"] == "components"


def test_both_models_are_cleaned_where_they_are_compared(tmp_path: Path, files: list[CaseFile]) -> None:
    one, other = (ModelInMemory(make_segmenter(0, 1, 2)) for _ in range(2))
    measured = evaluate(one, files, tmp_path / "out", against=other, cleaned=True)
    assert measured.comparison is not None
    assert [row.dice for row in measured.comparison.before.summary] == [1.0] * 3
    assert [row.dice for row in measured.comparison.after.summary] == [1.0] * 3


def test_the_rules_may_be_another_file_s(tmp_path: Path, files: list[CaseFile]) -> None:
    (tmp_path / "parts.yaml").write_text("rules:\n  - {kind: components, structure: b, most: 1}\n")
    model = ModelInMemory(make_segmenter(0, 1, 2))
    predict(model, files, tmp_path / "out", cleaned=True, anatomy=str(tmp_path / "parts.yaml"))
    expected = torn()
    expected[12, 2:4] = 0
    assert np.array_equal(written(tmp_path / "out" / "labels" / "p2_still.nii.gz"), 10 * expected)


@pytest.mark.parametrize("command", [predict, evaluate])
def test_rules_that_clean_nothing_are_refused_before_anything_is_written(
    command: object, tmp_path: Path, files: list[CaseFile]
) -> None:
    rules = tmp_path / "sizes.yaml"
    rules.write_text("rules:\n  - {kind: present, structure: a}\n")
    assert callable(command)
    with pytest.raises(ConfigError, match=r"sizes.*: no rule of kind components or holes"):
        command(ModelInMemory(make_segmenter(0, 1, 2)), files, tmp_path / "out", cleaned=True, anatomy=str(rules))
    assert not list((tmp_path / "out").rglob("*.nii.gz"))
    assert not list((tmp_path / "out").rglob("scores.csv"))


def test_the_reward_map_is_that_of_the_mask_that_was_cleaned_up(files: list[CaseFile]) -> None:
    case, reward = files[0].read(), make_reward()
    processing = PostProcessing(anatomy=load_anatomy("generic", SCHEMA))
    labels, reward_map = segment_with_reward(make_segmenter(0, 1, 2), reward, case, processing)
    assert np.array_equal(labels, drawn())
    expected = reward(torch.from_numpy(case.image)[None], torch.from_numpy(drawn())[None])[0]
    assert reward_map is not None
    assert np.allclose(reward_map, expected.detach().numpy(), atol=1e-6)
