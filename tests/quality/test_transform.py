from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from medfm_rl.data.layouts import find_cases
from medfm_rl.errors import DataError
from medfm_rl.quality import QualityController
from medfm_rl.quality.transform import AssessQualityd
from medfm_rl.settings import DataSettings


def test_a_pipeline_of_monai_gets_the_report_that_the_controller_gives(quality_run: Path) -> None:
    controller = QualityController.load(quality_run)
    labelled = find_cases(DataSettings(path=quality_run.parent / "data"))[0].read_labelled(controller.schema)
    case, mask = labelled.case, labelled.ground_truth
    spacing = case.geometry.spacing
    assert spacing is not None
    pixels = torch.from_numpy(np.ascontiguousarray(case.image.transpose(0, 2, 1)))
    image = MetaTensor(pixels, affine=torch.diag(torch.tensor([*spacing, 1.0, 1.0])))
    given = {"image": image, "pred": controller.schema.to_ids(mask).T[None], "other": 1}
    found = AssessQualityd(controller)(given)
    expected = controller.assess(case, mask)
    assert found["quality"].scores == expected.scores
    assert [rule.measured for rule in found["quality"].rules] == pytest.approx(
        [rule.measured for rule in expected.rules]
    )
    assert found["other"] == 1
    assert "quality" not in given


def test_a_mask_that_does_not_fit_is_an_error(quality_run: Path) -> None:
    transform = AssessQualityd(QualityController.load(quality_run), label_key="mask")
    image = np.random.default_rng(0).normal(size=(1, 32, 32)).astype(np.float32)
    with pytest.raises(DataError, match="mask: label 9"):
        transform({"image": image, "mask": np.full((32, 32), 9)})
    with pytest.raises(DataError, match="they must be equal"):
        transform({"image": image, "mask": np.ones((32, 31), np.uint8)})
