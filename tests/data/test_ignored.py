"""Pixels of which a mask says nothing: nnU-Net's label `ignore`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfm_rl.data.images import write_image
from medfm_rl.data.labels import read_any_labels, read_labels
from medfm_rl.data.layouts import find_cases
from medfm_rl.data.layouts.description import DescribedLabels
from medfm_rl.errors import DataError
from medfm_rl.settings import DataSettings
from medfm_rl.types import IGNORED, Geometry, LabelSchema, where_said

LABELS = {"background": 0, "LV": 1, "MYO": 2, "ignore": 3}
SCHEMA = LabelSchema.from_structures({"MYO": 1, "LV": 2})
FLAT = Geometry((1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
MASK = np.array([[0, 1, 2], [3, 3, 1]], dtype=np.uint8)
UNSAID = MASK == 3


def write_data(folder: Path, labels: dict[str, Any], ending: str = ".nii.gz") -> Path:
    content = {"channel_names": {"0": "ultrasound"}, "labels": labels, "numTraining": 1, "file_ending": ending}
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    write_image(folder / "imagesTr" / f"p1_0000{ending}", np.arange(6, dtype=np.uint8).reshape(2, 3), FLAT)
    write_image(folder / "labelsTr" / f"p1{ending}", MASK, FLAT)
    return folder


@pytest.mark.parametrize("ending", [".nii.gz", ".png"])
def test_an_ignored_label_is_no_structure_and_its_pixels_are_marked(tmp_path: Path, ending: str) -> None:
    (file,) = find_cases(DataSettings(path=write_data(tmp_path / "data", LABELS, ending)))
    truth = file.read_labelled(SCHEMA, may_ignore=True).ground_truth
    # LV is 1 in the file and class 2 here.
    assert np.array_equal(truth, np.where(UNSAID, IGNORED, np.array([[0, 2, 1], [0, 0, 2]])))
    assert np.array_equal(where_said(truth), [[0, 2, 1], [0, 0, 2]])


def test_where_every_pixel_counts_such_a_mask_is_refused_by_name(tmp_path: Path) -> None:
    (file,) = find_cases(DataSettings(path=write_data(tmp_path / "data", LABELS)))
    with pytest.raises(
        DataError, match=r"p1\.nii\.gz: has pixels of the label `ignore` \(3\), of which nothing is said"
    ):
        file.read_labelled(SCHEMA)


def test_a_mask_without_such_pixels_is_read_as_ever(tmp_path: Path) -> None:
    (file,) = find_cases(DataSettings(path=write_data(tmp_path / "data", LABELS)))
    assert file.label_path is not None
    write_image(file.label_path, np.minimum(MASK, 2), FLAT)
    assert np.array_equal(file.read_labelled(SCHEMA).ground_truth, [[0, 2, 1], [1, 1, 2]])


def test_a_description_has_the_ignored_label_among_no_structures() -> None:
    described = DescribedLabels(Path("dataset.json"), LABELS)
    own = described.own_schema()
    assert (own.structures, own.ids, own.ignored) == (("LV", "MYO"), (0, 1, 2), 3)
    assert described.schema_for(SCHEMA).ignored == 3
    assert DescribedLabels(Path("dataset.json"), {"background": 0, "LV": 1}).own_schema().ignored is None
    # A schema is the same whatever its files leave out.
    assert own == LabelSchema.from_structures({"LV": 1, "MYO": 2})


def test_regions_can_be_left_out_too(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    (file,) = find_cases(DataSettings(path=write_data(tmp_path / "data", labels)))
    schema = LabelSchema.of_regions(("whole", "core"))
    truth = file.read_labelled(schema, may_ignore=True).ground_truth
    assert np.array_equal(truth, np.where(UNSAID, IGNORED, np.array([[0, 1, 3], [0, 0, 1]])))


def test_a_schema_tells_it_where_no_description_does(tmp_path: Path) -> None:
    """As that of an nnU-Net that was trained with such a label."""
    write_image(tmp_path / "mask.nii.gz", MASK, FLAT)
    schema = LabelSchema(("background", "LV", "MYO"), (0, 1, 2), ignored=3)
    found = read_labels(tmp_path / "mask.nii.gz", schema, MASK.shape, FLAT, may_ignore=True)
    assert np.array_equal(found, np.where(UNSAID, IGNORED, MASK))
    with pytest.raises(DataError, match="label 3 is not one of those"):
        read_labels(tmp_path / "mask.nii.gz", SCHEMA, MASK.shape, FLAT, may_ignore=True)


def test_without_a_segmenter_they_are_background(tmp_path: Path) -> None:
    write_image(tmp_path / "mask.nii.gz", MASK, FLAT)
    own = DescribedLabels(tmp_path / "dataset.json", LABELS).own_schema()
    found = read_any_labels(tmp_path / "mask.nii.gz", MASK.shape, FLAT, own)
    assert np.array_equal(found.ids, [[0, 1, 2], [0, 0, 1]])
    assert found.names == {0: "background", 1: "LV", 2: "MYO"}
