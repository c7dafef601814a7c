from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.clip_files import COUNT, SIZE, greys, ventricles

from medfm_rl.data.clips.reading import ClipKind, find_clip, find_numbered
from medfm_rl.data.clips.sequences import read_sequence, write_sequence
from medfm_rl.data.images import read_image, read_pixels, write_labels
from medfm_rl.data.labels import read_labels
from medfm_rl.data.layouts import find_cases
from medfm_rl.errors import DataError
from medfm_rl.settings import DataSettings
from medfm_rl.types import Geometry, LabelSchema

PLANE = Geometry((0.5, 0.3), (4.0, -2.0), (1.0, 0.0, 0.0, 1.0))
TIMES = tuple((np.arange(COUNT) * 0.04).tolist())


@settings(max_examples=20, deadline=None)
@given(
    spacing=st.none() | st.tuples(st.floats(0.1, 3), st.floats(0.1, 3)),
    step=st.none() | st.floats(0.005, 2),
    turned=st.booleans(),
)
def test_a_sequence_comes_back_with_grid_and_times(
    tmp_path_factory: pytest.TempPathFactory, spacing: tuple[float, float] | None, step: float | None, turned: bool
) -> None:
    path = tmp_path_factory.mktemp("sequence") / "a.nii.gz"
    direction = (0.0, -1.0, 1.0, 0.0) if turned else (1.0, 0.0, 0.0, 1.0)
    geometry = Geometry(spacing, (4.0, -2.0), direction) if spacing else Geometry.unknown(2)
    times = None if step is None else tuple((np.arange(3) * step).tolist())
    frames = np.random.default_rng(0).integers(0, 255, (3, 4, 5)).astype(np.uint8)
    write_sequence(path, frames, geometry, times)
    read, found, grid = read_sequence(path)
    assert np.array_equal(read[:, 0], frames)
    assert found == (None if times is None else pytest.approx(times, rel=1e-5))
    assert (grid.spacing is None) == (spacing is None)
    assert grid.plane.matches(geometry.plane, frames.shape[1:])


def test_time_is_the_fourth_axis_for_other_tools(tmp_path: Path) -> None:
    write_sequence(tmp_path / "a.nii.gz", greys(), PLANE, TIMES)
    image = nib.load(tmp_path / "a.nii.gz")
    assert image.shape == (SIZE[1], SIZE[0], 1, COUNT)
    assert image.header.get_zooms() == pytest.approx((0.5, 0.3, 1.0, 0.04))
    assert image.header.get_xyzt_units() == ("mm", "sec")


def test_a_fourth_axis_is_a_clip_and_a_third_one_only_by_its_name_or_by_who_knows(tmp_path: Path) -> None:
    write_sequence(tmp_path / "a.nii.gz", greys(), PLANE, TIMES)
    found = find_clip(tmp_path / "a.nii.gz")
    assert found is not None
    assert (found.kind, found.count) == (ClipKind.SEQUENCE, COUNT)
    for name in ("a.mhd", "patient0001_4CH_half_sequence.mhd", "patient0001_2CH_sequence.nii.gz"):
        image = sitk.GetImageFromArray(greys())
        image.SetSpacing((0.5, 0.3, 1.0))
        sitk.WriteImage(image, str(tmp_path / name))
    volume = tmp_path / "a.mhd"
    assert find_clip(volume) is None
    assert read_image(volume)[1].ndim == 3
    known = find_clip(volume, planes_over_time=True)
    assert known is not None
    for clip in (known, *(find_clip(tmp_path / name) for name in ("patient0001_4CH_half_sequence.mhd",))):
        assert clip is not None
        read = clip.read("a", "p")
        assert np.array_equal(read.frames[:, 0], greys())
        assert read.times is None
        assert read.geometry.spacing == (0.5, 0.3)
    assert find_clip(tmp_path / "patient0001_2CH_sequence.nii.gz") is not None


def test_the_mask_of_a_frame_is_its_place_in_the_sequence(tmp_path: Path) -> None:
    schema, path = LabelSchema(("background", "LV"), (0, 7)), tmp_path / "a.nii.gz"
    write_sequence(path, ventricles().astype(np.uint8) * 7, PLANE, TIMES)
    for frame in (0, 5):
        labels = read_labels(path, schema, SIZE, PLANE, frame=frame)
        assert np.array_equal(labels, ventricles()[frame])
    with pytest.raises(DataError, match=rf"has masks of {COUNT} frames, and none of frame {COUNT}"):
        read_labels(path, schema, SIZE, PLANE, frame=COUNT)
    with pytest.raises(DataError, match=r"its pixels are .* mm, and those of its clip"):
        read_labels(path, schema, SIZE, Geometry((1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0)), frame=0)


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry((0.5, 0.3), (4.0, -2.0 + 0.3 * (SIZE[0] - 1)), (1.0, 0.0, 0.0, -1.0)),
        Geometry((0.5, 0.3), (46.0, -2.0), (1.0, 0.0, 0.0, 1.0)),
    ],
)
def test_a_sequence_of_masks_that_lies_elsewhere_is_refused_as_a_still_is(tmp_path: Path, geometry: Geometry) -> None:
    schema, masks = LabelSchema(("background", "LV"), (0, 1)), ventricles().astype(np.uint8)
    write_sequence(tmp_path / "clip.nii.gz", masks, geometry, TIMES)
    write_labels(tmp_path / "still.nii.gz", masks[0], geometry, schema)
    with pytest.raises(DataError, match=r"clip\.nii\.gz: the mask lies elsewhere in space than its image"):
        read_labels(tmp_path / "clip.nii.gz", schema, SIZE, PLANE, frame=0)
    with pytest.raises(DataError, match=r"still\.nii\.gz: the mask lies elsewhere in space than its image"):
        read_labels(tmp_path / "still.nii.gz", schema, SIZE, PLANE)


@pytest.mark.parametrize("count", [COUNT - 1, COUNT + 1])
def test_a_sequence_of_masks_of_another_number_of_frames_is_refused(tmp_path: Path, count: int) -> None:
    write_sequence(tmp_path / "images" / "p1.nii.gz", greys(), PLANE, TIMES)
    write_sequence(tmp_path / "labels" / "p1.nii.gz", ventricles(count).astype(np.uint8), PLANE, None)
    file = find_cases(DataSettings(path=tmp_path))[0]
    with pytest.raises(DataError, match=rf"has masks of {count} frames, and its clip has {COUNT}"):
        file.read_labelled(LabelSchema(("background", "LV"), (0, 1)))


@pytest.mark.parametrize("coloured", [False, True])
def test_a_nifti_clip_in_colours_is_brought_to_grey_or_refused(tmp_path: Path, coloured: bool) -> None:
    colours = np.repeat(greys()[..., None], 3, axis=-1)
    if coloured:
        colours[4, 8:24, 8:24] = (220, 20, 20)
    values = np.ascontiguousarray(colours.transpose(2, 1, 0, 3)).view([(name, "u1") for name in "RGB"])[..., 0]
    nib.save(nib.Nifti1Image(values[:, :, None], np.eye(4)), tmp_path / "a.nii.gz")
    found = find_clip(tmp_path / "a.nii.gz")
    assert found is not None
    if coloured:
        with pytest.raises(DataError, match=r"a\.nii\.gz, frame 4: .* coloured"):
            found.read("a", "p")
    else:
        assert np.array_equal(found.read("a", "p").frames[:, 0], greys())


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opacity_of_pictures_is_dropped_where_it_hides_nothing(tmp_path: Path, mode: str) -> None:
    for index, frame in enumerate(greys()[:3]):
        Image.fromarray(frame).convert(mode).save(tmp_path / f"{index}.png")
    found = find_numbered(tmp_path)
    assert found is not None
    assert np.array_equal(found.read("a", "p").frames[:, 0], greys()[:3])
    picture = Image.fromarray(greys()[0]).convert(mode)
    picture.putalpha(200)
    picture.save(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"0\.png: is transparent in part"):
        found.read("a", "p")


def test_colours_of_pictures_with_opacity_are_refused(tmp_path: Path) -> None:
    for index, frame in enumerate(greys()[:3]):
        colours = np.repeat(frame[..., None], 3, axis=-1)
        colours[8:24, 8:24] = (220, 20, 20)
        Image.fromarray(colours).convert("RGBA").save(tmp_path / f"{index}.png")
    found = find_numbered(tmp_path)
    assert found is not None
    with pytest.raises(DataError, match=r"0\.png: .* coloured"):
        found.read("a", "p")


def test_numbered_pictures_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    frames = greys()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"f{index + 1}.png")
    found = find_numbered(tmp_path)
    assert found is not None
    clip = found.read("a", "p")
    assert np.array_equal(clip.frames[:, 0], frames)
    assert clip.geometry.spacing is None
    Image.fromarray(frames[0, :10]).save(tmp_path / "f99.png")
    found = find_numbered(tmp_path)
    assert found is not None
    with pytest.raises(DataError, match="its frames have several sizes"):
        found.read("a", "p")
    Image.fromarray(frames[0]).save(tmp_path / "x99.png")
    with pytest.raises(DataError, match="has the same number"):
        find_numbered(tmp_path)
    (tmp_path / "x99.png").rename(tmp_path / "x98.png")
    with pytest.raises(DataError, match=r"holds the frames of several clips by their names \(f1\.png, x98\.png\)"):
        find_numbered(tmp_path)
    Image.fromarray(frames[0]).save(tmp_path / "plain.png")
    assert find_numbered(tmp_path) is None


@pytest.mark.parametrize(
    ("numbers", "missing"),
    [((0, 1, 2, 3, 8, 9), [range(4, 8)]), ((1, 3, 5, 9), [range(7, 9, 2)]), ((2, 4, 6), []), ((7, 8), [])],
)
def test_numbers_that_no_picture_has_are_told(tmp_path: Path, numbers: tuple[int, ...], missing: list[range]) -> None:
    for number in numbers:
        Image.fromarray(greys()[0]).save(tmp_path / f"f{number}.png")
    found = find_numbered(tmp_path)
    assert found is not None
    assert found.missing_numbers() == missing


def test_a_clip_of_one_value_or_with_nan_is_refused_and_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    for values, message in ((np.zeros((3, 4, 5)), "every pixel has the value 0"), (np.full((3, 4, 5), np.nan), "NaN")):
        write_sequence(path, values.astype(np.float32), PLANE, None)
        found = find_clip(path)
        assert found is not None
        with pytest.raises(DataError, match=message):
            found.read("a", "p")
    write_sequence(path, greys(), PLANE, None)
    found = find_clip(path)
    assert found is not None
    before = found.hash()
    assert found.read("a", "p").frames.max() == greys().max()
    write_sequence(path, greys() // 2, PLANE, None)
    assert found.read("a", "p").frames.max() == greys().max() // 2
    assert found.hash() != before


def test_a_video_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.avi").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a\.avi: a video is a clip"):
        read_pixels(tmp_path / "a.avi")
