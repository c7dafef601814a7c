"""`dataset.json` beside images: integers by name, versions, encodings, lists of files, colours in one file."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfm_rl.data.images import write_image
from medfm_rl.data.layouts import CaseFile, DescribedLabels, find_cases
from medfm_rl.data.mask_labels import labels_in_masks
from medfm_rl.errors import DataError
from medfm_rl.settings import DataSettings
from medfm_rl.types import Geometry, LabelSchema

GEOMETRY = Geometry((0.5, 0.8), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
TRUTH = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], np.uint8)
"""Class indices of background, LV, MYO and LA."""
OTHER = {"background": 0, "LA": 1, "MYO": 2, "LV": 3}
SAME = {"background": 0, "LV": 1, "MYO": 2, "LA": 3}


def write_data(
    root: Path, integers: dict[str, int], ending: str = ".nii.gz", channel: str = "_0000", folders: str = "Tr"
) -> Path:
    """Two cases whose masks are TRUTH, written in those integers."""
    table = np.array([integers[name] for name in SAME], np.uint8)
    for name in ("p0", "p1"):
        image = np.arange(8, dtype=np.uint8).reshape(2, 4)
        for path, pixels in (
            (root / f"images{folders}" / f"{name}{channel}.nii.gz", image),
            (root / f"labels{folders}" / f"{name}.nii.gz", table[TRUTH]),
        ):
            write_image(path, pixels, GEOMETRY)
            path.rename(path.with_name(path.name.replace(".nii.gz", ending)))
    return root


def describe(root: Path, content: Any, encoding: str = "utf-8") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_bytes(json.dumps(content).encode(encoding))
    return root


def found(root: Path, **changes: Any) -> list[CaseFile]:
    return find_cases(DataSettings(path=root, **changes))


def require_truth(cases: list[CaseFile], schema: LabelSchema, count: int = 2) -> None:
    assert len(cases) == count
    for case in cases:
        assert np.array_equal(case.read_labelled(schema).ground_truth, TRUTH)


def version_2(labels: Any = SAME, ending: str = ".nii.gz") -> dict[str, Any]:
    return {"channel_names": {"0": "US"}, "labels": labels, "numTraining": 2, "file_ending": ending}


@pytest.mark.parametrize("folders", ["Tr", ""])
def test_labels_are_read_by_their_names(tmp_path: Path, schema: LabelSchema, folders: str) -> None:
    """Report 11: in the data LA is 1 and LV 3, and in the segmenter the other way round."""
    root = describe(write_data(tmp_path, OTHER, folders=folders), version_2(OTHER))
    require_truth(found(root), schema)
    require_truth(found(root), LabelSchema.from_structures({"LV": 7, "MYO": 8, "LA": 9}))


def test_a_data_set_without_labels_in_its_description_has_those_of_the_segmenter(
    tmp_path: Path, schema: LabelSchema
) -> None:
    content = version_2()
    del content["labels"]
    require_truth(found(describe(write_data(tmp_path, SAME), content)), schema)


@given(st.permutations([0, 5, 9, 200]), st.booleans(), st.sampled_from([str, str.lower, lambda name: f" {name} "]))
def test_whatever_the_integers_names_decide(numbers: list[int], turned: bool, spell: Any) -> None:
    schema = LabelSchema.from_structures({"LV": 1, "MYO": 2, "LA": 3})
    integers = dict(zip(SAME, numbers, strict=True))
    spelled = {spell(name): number for name, number in integers.items()}
    labels = {str(number): name for name, number in spelled.items()} if turned else spelled
    assert DescribedLabels(Path("dataset.json"), labels).schema_for(schema).integers == integers


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "left ventricle": 1, "MYO": 2, "LA": 3}, "has no LV, and the segmenter segments .*LV 1"),
        ({"background": 0, "LV": 1}, "has no MYO and no LA"),
        ({"background": 0, "LV": 1, "MYO": 1, "LA": 3}, "an integer is there twice"),
        ({"background": 0, "LV": 1, "lv": 2, "MYO": 4, "LA": 3}, "a name is there twice"),
        ({"0": "background", "1": "LV", "2": "LV", "3": "LA"}, "there twice"),
        ({"LV": 0, "MYO": 1, "LA": 2}, "gives LV the integer of the background"),
        ({"background": 0, "LV": "one", "MYO": 2, "LA": 3}, "LV has 'one', and must have an integer"),
        ({"background": 0, "LV": 300, "MYO": 2, "LA": 3}, "LV has 300"),
        ({"background": 0, "heart": [1, 2], "LV": 1, "MYO": 2, "LA": 3}, "heart is a region"),
        (["LV", "MYO"], "labels must be names and integers"),
        ({}, "labels must be names and integers"),
    ],
)
def test_what_contradicts_is_refused_when_a_mask_is_read(
    tmp_path: Path, schema: LabelSchema, labels: Any, message: str
) -> None:
    cases = found(describe(write_data(tmp_path, SAME), version_2(labels)))
    assert cases[0].read().shape == (2, 4)
    with pytest.raises(DataError, match=rf"dataset\.json: labels.*{message}|dataset\.json: {message}"):
        cases[0].read_labelled(schema)


REGIONS = LabelSchema.of_regions(("whole tumour", "core"))


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "Whole_Tumour": [1, 2], "core": 2},
        {"background": 0, "whole tumour": 1, "whole tumour+core": 2},
        {"background": 0, "core": [2], "whole-tumour": [2, 1], "ignore": 3},
    ],
)
def test_regions_are_read_by_their_names_whatever_integers_they_take_in(labels: Any) -> None:
    described = DescribedLabels(Path("dataset.json"), labels).schema_for(REGIONS)
    assert described.structures == REGIONS.structures
    assert described.indices_in(REGIONS)[described.to_indices(np.arange(3))].tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "whole tumour": [1, 2]}, "has no core, and the segmenter segments whole tumour, core"),
        ({"background": 0, "whole tumour": [0, 2], "core": 2}, "takes in the integer of the background"),
        ({"background": 0, "whole tumour": [1, "x"], "core": 2}, "must have an integer from 0 to 255, or a list"),
        ({"background": 0, "whole tumour": 1, "rim": 2}, "has no core.*such as whole tumour\\+core"),
        ({"background": 0, "whole tumour": 1, "core": 2, "rim": 3}, "names rim"),
    ],
)
def test_regions_that_cannot_be_found_are_refused(labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        DescribedLabels(Path("dataset.json"), labels).schema_for(REGIONS)


def test_a_structure_that_the_segmenter_lacks_is_refused_only_where_a_mask_has_it(
    tmp_path: Path, schema: LabelSchema
) -> None:
    require_truth(found(describe(write_data(tmp_path, SAME), version_2({**SAME, "RV": 4}))), schema)
    with pytest.raises(DataError, match="label 3 is not one of those"):
        found(tmp_path)[0].read_labelled(LabelSchema.from_structures({"LV": 1, "MYO": 2}))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
def test_a_description_of_any_encoding_is_read(tmp_path: Path, schema: LabelSchema, encoding: str) -> None:
    """Report 12: a byte order mark, as Windows writes it."""
    root = describe(write_data(tmp_path, SAME), version_2(), encoding)
    if encoding == "utf-8-sig":
        assert (root / "dataset.json").read_bytes().startswith(codecs.BOM_UTF8)
    require_truth(found(root), schema)


@settings(deadline=None, max_examples=20)
@given(st.sampled_from([".nii.gz", ".NII.GZ", ".Nii.gz"]), st.sampled_from([".nii.gz", "nii.gz", ".NII.GZ", "NII.gz"]))
def test_endings_are_the_same_in_any_case_with_and_without_a_dot(
    tmp_path_factory: pytest.TempPathFactory, on_disk: str, said: str
) -> None:
    root = describe(write_data(tmp_path_factory.mktemp("ending"), SAME, ending=on_disk), version_2(ending=said))
    require_truth(found(root), LabelSchema.from_structures({"LV": 1, "MYO": 2, "LA": 3}))


@pytest.mark.parametrize("channel", ["", "_0000"], ids=["decathlon", "nnU-Net"])
@pytest.mark.parametrize("listed", [True, False])
def test_version_1_is_read(tmp_path: Path, schema: LabelSchema, channel: str, listed: bool) -> None:
    """Report 12: `modality`, labels the other way round, and names of files without the number of the channel."""
    if not channel and not listed:
        pytest.skip("files without a number are images of nnU-Net only where they are listed")
    content: dict[str, Any] = {
        "modality": {"0": "US"},
        "labels": {str(value): name for name, value in OTHER.items()},
        "numTraining": 2,
    }
    if listed:
        content["training"] = [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in ("p0", "p1")
        ]
        content["test"] = ["./imagesTs/p9.nii.gz"]
    cases = found(describe(write_data(tmp_path, OTHER, channel=channel), content), split="train")
    assert [case.case_id for case in cases] == ["p0", "p1"]
    require_truth(cases, schema)


def test_files_that_a_description_lists_are_read_wherever_they_lie(
    tmp_path: Path, schema: LabelSchema, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Report 39: the key `dataset`; relative to the description, absolute, or with a variable."""
    write_data(tmp_path / "files", OTHER)
    monkeypatch.setenv("SCANS", str(tmp_path / "files"))
    listed = {
        "a/b": {"images": ["../files/imagesTr/p0_0000.nii.gz"], "label": str(tmp_path / "files/labelsTr/p0.nii.gz")},
        "Müller": {"images": ["$SCANS/imagesTr/p1_0000.nii.gz"], "label": "../files/labelsTr/p1.nii.gz"},
    }
    root = describe(tmp_path / "raw", {**version_2(OTHER), "dataset": listed})
    cases = found(root)
    assert [case.case_id for case in cases] == ["Müller", "a_b"]
    require_truth(cases, schema)


def test_a_listed_file_that_is_missing_costs_its_own_case_alone(tmp_path: Path, schema: LabelSchema) -> None:
    listed = {
        name: {"images": [f"imagesTr/{name}_0000.nii.gz"], "label": f"labelsTr/{name}.nii.gz"} for name in ("p0", "p1")
    }
    root = describe(write_data(tmp_path, SAME), {**version_2(), "dataset": listed})
    (root / "imagesTr" / "p0_0000.nii.gz").unlink()
    first, second = found(root)
    with pytest.raises(DataError, match=r"p0_0000\.nii\.gz: there is no such file"):
        first.read()
    require_truth([second], schema, 1)


@pytest.mark.parametrize(
    "content", [{"dataset": {"a": "x.nii.gz"}}, {"dataset": ["x"]}, {"training": [{"label": "x"}]}]
)
def test_a_list_of_another_form_is_named(tmp_path: Path, content: Any) -> None:
    with pytest.raises(DataError, match=r"dataset\.json: a list of files has"):
        found(describe(tmp_path, content))


def write_colours(root: Path) -> Path:
    from PIL import Image

    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for name in ("p0", "p1"):
        grey = np.arange(8, dtype=np.uint8).reshape(2, 4)
        Image.fromarray(np.stack([grey, grey // 2, 255 - grey], -1)).save(root / "imagesTr" / f"{name}_0000.png")
        Image.fromarray(TRUTH).save(root / "labelsTr" / f"{name}.png")
    return describe(root, {**version_2(ending=".png"), "channel_names": {"0": "R", "1": "G", "2": "B"}})


def test_one_picture_is_three_channels(tmp_path: Path, schema: LabelSchema) -> None:
    """Report 05: nnU-Net's own layout of colour PNG."""
    cases = found(write_colours(tmp_path))
    require_truth(cases, schema)
    assert cases[0].read().image[:, 0, 2].tolist() == [2, 1, 253]


def test_masks_that_are_given_are_read_by_the_description_beside_them(tmp_path: Path, schema: LabelSchema) -> None:
    """nnU-Net copies its dataset.json to where it writes predictions."""
    root = write_data(tmp_path, OTHER)
    masks = {"p0": root / "labelsTr" / "p0.nii.gz"}
    assert labels_in_masks(None, masks, schema) is None
    for place in (root, root / "labelsTr"):
        describe(place, version_2(OTHER))
        in_masks = labels_in_masks(None, masks, schema)
        assert in_masks is not None
        assert in_masks.integers == {"background": 0, "LV": 3, "MYO": 2, "LA": 1}
        assert labels_in_masks("LV=255", masks, schema) == LabelSchema.from_structures({"LV": 255})
        (place / "dataset.json").unlink()
