"""The grid of a judge without a segmenter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medfm_rl.adapters import ImageGrid, TorchModuleAdapter
from medfm_rl.adapters.image_grid import GRID_FILE
from medfm_rl.errors import DataError, ModelError
from medfm_rl.settings import NetworkSettings, PreprocessingSettings
from medfm_rl.types import Case, Geometry, LabelSchema


def case_of(shape: tuple[int, ...]) -> Case:
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    return Case("a", "a", image, Geometry.unknown(len(shape)))


@pytest.mark.parametrize("grid", ["resize", "native"])
@pytest.mark.parametrize(("shape", "size"), [((20, 13), (16, 16)), ((9, 20, 13), (8, 8, 8))])
def test_it_is_that_of_a_segmenter_with_the_same_settings(
    schema: LabelSchema, grid: str, shape: tuple[int, ...], size: tuple[int, ...]
) -> None:
    settings = PreprocessingSettings.model_validate({"size": size, "grid": grid})
    alone = ImageGrid(schema, settings)
    network = NetworkSettings(channels=(4, 8), residual_units=0)
    segmenter = TorchModuleAdapter.build_unet(network, schema, settings)
    case = case_of(shape)
    one, two = alone.preprocess(case), segmenter.preprocess(case)
    assert torch.equal(one.image, two.image)
    labels = np.random.default_rng(1).integers(0, 4, shape).astype(np.uint8)
    assert torch.equal(alone.preprocess_labels(labels, one), segmenter.preprocess_labels(labels, two))
    values = torch.rand(one.image.shape[1:])
    np.testing.assert_array_equal(alone.restore_map(values, one), segmenter.restore_map(values, two))
    assert alone.restore_map(values, one).shape == shape
    assert alone.opinion(one) is None
    assert alone.own_estimate(one.image, torch.zeros(one.image.shape[1:])) is None


def test_it_comes_back_as_it_was_saved_and_damage_is_named(schema: LabelSchema, tmp_path: Path) -> None:
    settings = PreprocessingSettings(size=(16, 12), intensity="minmax")
    ImageGrid(schema, settings, in_channels=3).save(tmp_path / "model")
    found = ImageGrid.load(tmp_path / "model")
    assert (found.schema, found.preprocessing, found.in_channels) == (schema, settings, 3)
    with pytest.raises(DataError, match="has 1 channels and the segmenter takes 3"):
        found.preprocess(case_of((20, 20)))
    (tmp_path / "model" / GRID_FILE).write_text('{"format": 1}')
    with pytest.raises(ModelError, match=r"grid\.json"):
        ImageGrid.load(tmp_path / "model")
