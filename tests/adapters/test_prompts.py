from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medfm_rl.adapters.sam.prompts import boxes_of, boxes_of_mask, open_prompts, render_boxes
from medfm_rl.data.clips.sequences import write_sequence
from medfm_rl.data.images import write_labels
from medfm_rl.errors import ConfigError, DataError
from medfm_rl.settings import FilePrompts, FixedPrompts, MaskPrompts
from medfm_rl.types import Case, Clip, Geometry, LabelSchema

SCHEMA = LabelSchema.from_structures({"LV": 1, "MYO": 2})


def case(name: str = "p1_a", shape: tuple[int, int] = (20, 40)) -> Case:
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    return Case(name, name.split("_")[0], image, Geometry.unknown(2))


@given(
    corners=st.tuples(*(st.floats(0, 30) for _ in range(2)), *(st.floats(2, 60) for _ in range(2))),
    sides=st.tuples(st.integers(64, 300), st.integers(64, 300)),
)
def test_a_box_is_read_back_where_it_was_rendered(
    corners: tuple[float, float, float, float], sides: tuple[int, int]
) -> None:
    x, y, width, height = corners
    box = np.array([[x, y, min(x + width, 63), min(y + height, 63)]])
    found, there = boxes_of(render_boxes(box, (64, 64), sides)[None])
    scale = np.array([sides[1], sides[0], sides[1], sides[0]]) / 64
    assert there.all()
    # A box ends with the last pixel of the grid.
    limit = np.array([sides[1], sides[0], sides[1], sides[0]]) - 1
    np.testing.assert_allclose(found[0].numpy(), np.minimum(box * scale, limit), atol=2e-3)


def test_a_structure_that_is_not_there_has_an_empty_channel() -> None:
    channels = render_boxes(np.array([[2, 2, 9, 9], [np.nan] * 4]), (16, 16), (16, 16))
    assert channels[1].abs().max() == 0
    assert boxes_of(channels[None])[1].tolist() == [[True, False]]


def test_a_box_of_one_pixel_is_widened_to_what_the_grid_can_show() -> None:
    found, there = boxes_of(render_boxes(np.array([[100.0, 100, 100, 100]]), (200, 200), (16, 16))[None])
    assert there.all()
    x_min, y_min, x_max, y_max = found[0, 0].tolist()
    assert (x_max - x_min, y_max - y_min) == pytest.approx((1, 1), abs=1e-4)
    assert (x_min + x_max) / 2 == pytest.approx(100 * 16 / 200, abs=0.51)


def test_boxes_move_with_the_image() -> None:
    channels = render_boxes(np.array([[2.0, 3, 7, 9]]), (16, 16), (16, 16))
    found, _ = boxes_of(channels.flip(-1)[None])
    assert found[0, 0].tolist() == pytest.approx([15 - 7, 3, 15 - 2, 9])


def test_fixed_boxes_are_fractions_of_the_image() -> None:
    source = open_prompts(FixedPrompts(kind="fixed", boxes={"MYO": (0, 0.5, 1, 1)}), SCHEMA)
    boxes = source.boxes(case(shape=(21, 41)))
    assert np.isnan(boxes[0]).all()
    assert boxes[1].tolist() == [0, 10, 40, 20]


def test_a_file_gives_boxes_by_case_and_structure(tmp_path: Path) -> None:
    table, document = tmp_path / "boxes.csv", tmp_path / "boxes.json"
    table.write_text("case,structure,x_min,y_min,x_max,y_max\np1_a,LV,1,2,30,12\n", encoding="utf-8")
    document.write_text(json.dumps({"p1_a": {"LV": [1, 2, 30, 12]}}), encoding="utf-8")
    for path in (table, document):
        boxes = open_prompts(FilePrompts(kind="from_file", path=path), SCHEMA).boxes(case())
        assert boxes[0].tolist() == [1, 2, 30, 12]
        assert np.isnan(boxes[1]).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("case,structure\np1_a,LV\n", "needs a first line with the columns"),
        ("case,structure,x_min,y_min,x_max,y_max\np1_a,LV,1,2,3,four\n", "not a file of boxes"),
        ("case,structure,x_min,y_min,x_max,y_max\np1_a,LV,1,2,3,4\np1_a,LV,1,2,3,4\n", "line 3: a second box"),
        ("case,structure,x_min,y_min,x_max,y_max\np2_a,LV,1,2,3,4\n", "no box for case p1_a"),
        ("case,structure,x_min,y_min,x_max,y_max\np1_a,LV,1,2,99,4\n", "within an image 40 pixels wide and 20 high"),
        ("case,structure,x_min,y_min,x_max,y_max\np1_a,RV,1,2,3,4\n", "no structure RV"),
    ],
)
def test_a_wrong_file_of_boxes_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "boxes.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises((DataError, ConfigError), match=message):
        open_prompts(FilePrompts(kind="from_file", path=path), SCHEMA).boxes(case())


def mask_folder(folder: Path) -> Path:
    labels = np.zeros((20, 40), dtype=np.uint8)
    labels[4:15, 8:31] = 2
    labels[6:12, 10:21] = 1
    write_labels(folder / "p1_a.nii.gz", labels, Geometry.unknown(2), SCHEMA)
    write_labels(folder / "p2_a.nii.gz", labels * 0, Geometry.unknown(2), SCHEMA)
    return folder


def test_boxes_of_masks(tmp_path: Path) -> None:
    folder = mask_folder(tmp_path / "masks")
    plain = open_prompts(MaskPrompts(kind="from_masks", path=folder), SCHEMA)
    assert plain.boxes(case()).tolist() == [[10, 6, 20, 11], [8, 4, 30, 14]]
    assert np.isnan(plain.boxes(case("p2_a"))).all()
    wide = open_prompts(MaskPrompts(kind="from_masks", path=folder, margin=5), SCHEMA)
    assert wide.boxes(case()).tolist() == [[5, 1, 25, 16], [3, 0, 35, 19]]
    with pytest.raises(DataError, match="no mask of case p3_a"):
        plain.boxes(case("p3_a"))
    write_labels(folder / "p1_a.png", np.zeros((20, 40), dtype=np.uint8), Geometry.unknown(2), SCHEMA)
    with pytest.raises(DataError, match=r"two masks have the name p1_a \(p1_a.nii.gz, p1_a.png\); remove one"):
        open_prompts(MaskPrompts(kind="from_masks", path=folder), SCHEMA)


def test_masks_are_found_by_the_rule_of_all_commands(tmp_path: Path) -> None:
    """In folders below too; and of two of one name it is not for chance to say which is meant."""
    mask_folder(tmp_path / "masks" / "labels")
    settings = MaskPrompts(kind="from_masks", path=tmp_path / "masks")
    assert open_prompts(settings, SCHEMA).boxes(case()).tolist() == [[10, 6, 20, 11], [8, 4, 30, 14]]
    write_labels(tmp_path / "masks" / "labels" / "p1_a.nii", np.zeros((20, 40), np.uint8), Geometry.unknown(2), SCHEMA)
    with pytest.raises(DataError, match="two masks have the name p1_a"):
        open_prompts(settings, SCHEMA)


def test_a_box_takes_in_what_its_structure_contains(tmp_path: Path) -> None:
    source = open_prompts(
        MaskPrompts(kind="from_masks", path=mask_folder(tmp_path / "m")), SCHEMA, contains={"LV": ("MYO",)}
    )
    assert source.boxes(case())[0].tolist() == [8, 4, 30, 14]


def test_jitter_is_bounded_and_the_same_for_a_case_each_time(tmp_path: Path) -> None:
    folder = mask_folder(tmp_path / "masks")
    exact = open_prompts(MaskPrompts(kind="from_masks", path=folder), SCHEMA).boxes(case())
    moved = [
        open_prompts(MaskPrompts(kind="from_masks", path=folder, jitter=3, seed=seed), SCHEMA).boxes(case())
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(moved[0], moved[1])
    assert not np.array_equal(moved[0], moved[2])
    assert 0 < np.abs(moved[0] - exact).max() <= 3


def test_channels_without_any_box_stand_for_the_whole_image() -> None:
    boxes, there = boxes_of(torch.zeros(1, 1, 8, 12))
    assert not there.any()
    assert boxes[0, 0].tolist() == [0, 0, 11, 7]


def test_boxes_of_a_mask_take_in_what_a_prompt_contains(schema: LabelSchema) -> None:
    labels = np.zeros((20, 30), dtype=np.uint8)
    labels[5:9, 10:14], labels[3:6, 8:10] = schema.index_of("LV"), schema.index_of("MYO")
    boxes = boxes_of_mask(labels, schema, {"MYO": ("LV",), "LA": ("LV",)})
    by_name = dict(zip(schema.structures, boxes.tolist(), strict=True))
    assert by_name["LV"] == [10, 5, 13, 8]
    assert by_name["MYO"] == [8, 3, 13, 8]
    # It is not there, whatever would lie within it.
    assert np.isnan(by_name["LA"]).all()


def test_frames_have_the_boxes_of_their_places_in_a_sequence_of_masks(tmp_path: Path) -> None:
    masks = np.zeros((3, 20, 40), dtype=np.uint8)
    masks[0, 6:12, 10:21] = 1
    masks[2, 4:15, 8:31] = 2
    write_sequence(tmp_path / "p1_4CH.nii.gz", masks, Geometry.unknown(2), None)
    source = open_prompts(MaskPrompts(kind="from_masks", path=tmp_path), SCHEMA)
    clip = Clip("p1_4CH", "p1", np.zeros((3, 1, 20, 40), dtype=np.float32), None, Geometry.unknown(2))
    first, middle, last = (source.boxes(clip.frame(index)) for index in range(3))
    assert first[0].tolist() == [10, 6, 20, 11]
    assert last[1].tolist() == [8, 4, 30, 14]
    assert np.isnan(middle).all()
    assert source.knows("p1_4CH_frame001")
    assert not source.knows("p2_4CH_frame001")
    assert source.content_hash("p1_4CH_frame000") != source.content_hash("p1_4CH_frame001")
    with pytest.raises(DataError, match="has masks of 3 frames, and none of frame 7"):
        source.boxes(replace(clip.frame(0), case_id="p1_4CH_frame007"))


def test_a_single_mask_with_the_name_of_a_clip_is_refused(tmp_path: Path) -> None:
    write_labels(tmp_path / "p1_a.nii.gz", np.zeros((20, 40), dtype=np.uint8), Geometry.unknown(2), SCHEMA)
    source = open_prompts(MaskPrompts(kind="from_masks", path=tmp_path), SCHEMA)
    with pytest.raises(DataError, match=r"p1_a.nii.gz: has the name of a clip and is no sequence of masks"):
        source.boxes(replace(case(), case_id="p1_a_frame000"))
