from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from medfm_rl.data.images import write_image, write_labels
from medfm_rl.data.layouts import SIMULATION_RECORD, CaseFile, find_cases, is_simulated, require_masks, split_by_patient
from medfm_rl.errors import DataError
from medfm_rl.settings import DataSettings
from medfm_rl.types import Geometry, LabelSchema

GEOMETRY = Geometry((0.5, 0.8), (10.0, -3.0), (1.0, 0.0, 0.0, 1.0))
SHAPE = (4, 5)


def write_scan(path: Path, start: float = 0.0) -> None:
    pixels = start + np.arange(np.prod(SHAPE)).reshape(SHAPE)
    write_image(path, pixels.astype(np.uint8 if path.suffix == ".png" else np.float32), GEOMETRY)


def write_mask(path: Path, schema: LabelSchema, label: int = 1) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:3, 1:3] = label
    write_labels(path, labels, GEOMETRY, schema)


def found(path: Path, **changes: Any) -> list[CaseFile]:
    return find_cases(DataSettings(path=path, **changes))


def by_id(cases: list[CaseFile]) -> dict[str, CaseFile]:
    return {case.case_id: case for case in cases}


@pytest.fixture
def nnunet(tmp_path: Path, schema: LabelSchema) -> Path:
    """Two training cases, one of them labelled, and one test case, with two channels each."""
    root = tmp_path / "Dataset001_Heart"
    for folder, name in (("imagesTr", "heart_001"), ("imagesTr", "heart_002"), ("imagesTs", "heart_003")):
        for channel in range(2):
            write_scan(root / folder / f"{name}_{channel:04d}.nii.gz", 100.0 * channel)
    write_mask(root / "labelsTr" / "heart_001.nii.gz", schema, label=2)
    description = {
        "channel_names": {"0": "T1", "1": "T2"},
        "file_ending": ".nii.gz",
        "labels": {"background": 0, "LV": 1, "MYO": 2, "LA": 3},
    }
    (root / "dataset.json").write_text(json.dumps(description))
    return root


@pytest.fixture(params=[".mhd", ".nii.gz"])
def camus(request: pytest.FixtureRequest, tmp_path: Path, schema: LabelSchema) -> Path:
    """Two patients, both views and phases, with a sequence and the facts that each release ships beside them."""
    root = tmp_path / "camus"
    suffix = ".mha" if request.param == ".mhd" else request.param
    for number, quality in ((1, "Good"), (2, "Poor")):
        patient = f"patient{number:04d}"
        for view in ("2CH", "4CH"):
            write_scan(root / patient / f"{patient}_{view}_half_sequence{suffix}")
            (root / patient / f"Info_{view}.cfg").write_text(f"ED: 1\nES: 14\nImageQuality: {quality}\nLVef: 53\n")
            for phase in ("ED", "ES"):
                write_scan(root / patient / f"{patient}_{view}_{phase}{suffix}")
                write_mask(root / patient / f"{patient}_{view}_{phase}_gt{suffix}", schema)
    if request.param == ".mhd":
        for path in root.glob("*/*.mha"):
            sitk.WriteImage(sitk.ReadImage(str(path)), str(path.with_suffix(".mhd")))
            path.unlink()
    return root


# nnU-Net raw data


def test_nnunet_raw_data_is_recognised_and_read_channel_by_channel(nnunet: Path, schema: LabelSchema) -> None:
    cases = found(nnunet)
    assert [case.case_id for case in cases] == ["heart_001", "heart_002", "heart_003"]
    labelled = cases[0].read_labelled(schema)
    assert labelled.case.image.shape == (2, *SHAPE)
    assert labelled.case.image[:, 0, 0].tolist() == [0.0, 100.0]
    assert labelled.case.geometry.matches(GEOMETRY)
    assert labelled.ground_truth.sum() == 4 * 2


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["heart_001", "heart_002"]),
        ("test", ["heart_003"]),
        ("all", ["heart_001", "heart_002", "heart_003"]),
    ],
)
def test_nnunet_split_picks_the_folder(nnunet: Path, split: str, names: list[str]) -> None:
    assert [case.case_id for case in found(nnunet, split=split)] == names


def test_nnunet_cases_are_patients_of_their_own_unless_a_pattern_says_otherwise(nnunet: Path) -> None:
    """`heart_001` and `heart_002` share what is before the underscore, and are two patients all the same."""
    assert [case.patient_id for case in found(nnunet)] == ["heart_001", "heart_002", "heart_003"]
    assert [case.patient_id for case in found(nnunet, patient_pattern=r"_(\d+)$")] == ["001", "002", "003"]


def test_a_case_without_a_mask_can_be_segmented_but_not_learnt_from(nnunet: Path, schema: LabelSchema) -> None:
    unlabelled = by_id(found(nnunet))["heart_002"]
    assert unlabelled.label_path is None
    assert unlabelled.read().image.shape == (2, *SHAPE)
    with pytest.raises(DataError, match=r"heart_002: there is no mask .*heart_002_0000\.nii\.gz; labelled data"):
        unlabelled.read_labelled(schema)


def test_images_for_testing_without_masks_say_how_to_leave_them_out(nnunet: Path, schema: LabelSchema) -> None:
    cases = [case for case in found(nnunet) if case.case_id != "heart_002"]
    with pytest.raises(
        DataError, match=r"heart_003_0000.* \(1 of 2 images have none\).*split: train \(--split train\)"
    ):
        require_masks(cases, "evaluation")
    require_masks(cases[:1], "evaluation")


@pytest.mark.parametrize("channel", [0, 1])
def test_a_missing_channel_is_named_and_the_case_does_not_vanish(nnunet: Path, channel: int) -> None:
    missing = nnunet / "imagesTr" / f"heart_002_{channel:04d}.nii.gz"
    missing.unlink()
    case = by_id(found(nnunet))["heart_002"]
    with pytest.raises(DataError, match=f"{missing.name}: there is no such file"):
        case.read()


def test_a_mask_without_its_image_is_named_in_nnunet_too(nnunet: Path, schema: LabelSchema) -> None:
    write_mask(nnunet / "labelsTr" / "heart_009.nii.gz", schema)
    cases = by_id(found(nnunet))
    with pytest.raises(DataError, match=r"heart_009\.nii\.gz: there is no image of that name"):
        cases.pop("heart_009").read()
    assert [case.read().shape for case in cases.values()] == [SHAPE] * 3


def test_a_name_in_both_parts_of_nnunet_data_is_refused_only_where_both_are_wanted(nnunet: Path) -> None:
    for channel in range(2):
        write_scan(nnunet / "imagesTs" / f"heart_001_{channel:04d}.nii.gz")
    assert [case.case_id for case in found(nnunet, split="test")] == ["heart_001", "heart_003"]
    cases = by_id(found(nnunet))
    assert sorted(cases) == ["heart_001", "heart_002", "heart_003"]
    with pytest.raises(DataError, match="two images have the name heart_001"):
        cases["heart_001"].read()


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"channel_names": ["CT"]}', '{"file_ending": ".png"}', '{"file_ending": ".png", "channel_names": {}}'],
    ids=["broken", "list", "no ending", "no channels", "empty channels"],
)
def test_a_dataset_json_that_says_too_little_is_named_with_what_it_needs(nnunet: Path, content: str) -> None:
    (nnunet / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=r"dataset\.json: an nnU-Net data set needs file_ending and channel_names"):
        found(nnunet)


def test_asking_for_nnunet_where_there_is_none_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"neither dataset\.json nor an image CASE_0000"):
        found(tmp_path, layout="nnunet")


def write_images(folder: Path, *names: str) -> Path:
    for name in names:
        write_scan(folder / f"{name}.nii.gz")
    return folder


def test_images_named_for_nnunet_are_cases_without_the_number(tmp_path: Path, schema: LabelSchema) -> None:
    write_images(tmp_path / "images", "p1_a_0000", "p1_b_0000", "p2_0000")
    write_mask(tmp_path / "labels" / "p1_b.nii.gz", schema)
    for root in (tmp_path, tmp_path / "images"):
        cases = by_id(found(root))
        assert {name: case.patient_id for name, case in cases.items()} == {"p1_a": "p1", "p1_b": "p1", "p2": "p2"}
    assert by_id(found(tmp_path))["p1_b"].label_path == tmp_path / "labels" / "p1_b.nii.gz"


def test_channels_alone_are_one_case_where_it_is_told_or_the_folder_is_nnunets(tmp_path: Path) -> None:
    """Numbers that go on are frames of an echo as well as channels of an MRI."""
    names = [f"p{patient}_{channel:04d}" for patient in (1, 2) for channel in range(3)]
    assert len(found(write_images(tmp_path / "scans", *names))) == 6
    for cases in (
        found(tmp_path / "scans", layout="nnunet"),
        found(write_images(tmp_path / "imagesTs", *names)),
    ):
        assert [case.case_id for case in cases] == ["p1", "p2"]
        assert [path.name for path in cases[1].image_paths] == [f"p2_{channel:04d}.nii.gz" for channel in range(3)]
        assert cases[0].read().image.shape == (3, *SHAPE)


def test_masks_that_carry_the_number_too_keep_it(tmp_path: Path, schema: LabelSchema) -> None:
    write_images(tmp_path / "images", "p1_0000", "p2_0000")
    write_mask(tmp_path / "labels" / "p1_0000.nii.gz", schema)
    assert [case.case_id for case in found(tmp_path)] == ["p1_0000", "p2_0000"]


def test_channels_alone_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "imagesTs", "p1_0000", "p1_0001", "p2_0001")
    with pytest.raises(DataError, match=r"p2_0000\.nii\.gz: there is no such file"):
        by_id(found(folder))["p2"].read()
    write_scan(folder / "p1_0001.mha")
    with pytest.raises(DataError, match=r"p1_0001\..*two files of this channel"):
        by_id(found(folder))["p1"].read()
    (folder / "p1_0001.mha").unlink()
    write_images(folder, "scout")
    cases = by_id(found(folder))
    with pytest.raises(DataError, match=r"scout\.nii\.gz: nnU-Net names images CASE_0000"):
        cases["scout"].read()
    assert cases["p1"].read().image.shape == (2, *SHAPE)


# CAMUS


def test_both_releases_of_camus_are_recognised_with_views_phases_and_quality(camus: Path, schema: LabelSchema) -> None:
    cases = found(camus)
    assert len(cases) == 8
    assert [case.case_id for case in cases][:4] == [
        f"patient0001_{view}_{phase}" for view in ("2CH", "4CH") for phase in ("ED", "ES")
    ]
    assert {case.patient_id for case in cases} == {"patient0001", "patient0002"}
    assert by_id(cases)["patient0002_4CH_ES"].tags == {"view": "4CH", "phase": "ES", "quality": "Poor"}
    for case in cases:
        labelled = case.read_labelled(schema)
        assert labelled.ground_truth.sum() == 4
        assert labelled.case.patient_id == case.patient_id
        assert labelled.case.tags == case.tags


def test_camus_is_filtered_by_what_is_known_of_a_case(camus: Path) -> None:
    wanted = found(camus, where={"view": "4CH", "phase": "ED"})
    assert [case.case_id for case in wanted] == ["patient0001_4CH_ED", "patient0002_4CH_ED"]


def test_a_filter_that_leaves_nothing_says_what_there_is(camus: Path) -> None:
    with pytest.raises(DataError, match=r"no case has \{'view': '3CH'\}.*'view': \['2CH', '4CH'\]"):
        found(camus, where={"view": "3CH"})


def test_camus_without_masks_is_unlabelled(camus: Path) -> None:
    for path in camus.glob("*/*_gt.*"):
        path.unlink()
    assert [case.label_path for case in found(camus)] == [None] * 8


def test_a_camus_mask_without_its_image_is_named(camus: Path) -> None:
    (lost,) = (p for p in camus.glob("patient0001/patient0001_2CH_ED.*") if p.suffix in (".mhd", ".gz"))
    lost.unlink()
    cases = by_id(found(camus))
    with pytest.raises(DataError, match=r"patient0001_2CH_ED_gt.*: there is no image of that name"):
        cases.pop("patient0001_2CH_ED").read()
    assert len(cases) == 7


@pytest.mark.data
def test_the_real_camus_sample_keeps_its_millimetres(real_data: Path, schema: LabelSchema) -> None:
    folder = real_data / "camus_native"
    if not folder.is_dir():
        pytest.skip(f"the native sample of CAMUS is not in {real_data}")
    cases = found(folder)
    assert [case.case_id for case in cases] == [
        f"patient0001_{view}_{phase}" for view in ("2CH", "4CH") for phase in ("ED", "ES")
    ]
    for case in cases:
        assert case.tags["quality"] in ("Good", "Medium", "Poor")
        labelled = case.read_labelled(schema)
        assert labelled.case.image.shape[0] == 1
        assert labelled.case.geometry.ndim == 2
        # The mhd headers of this release: 0.308 mm across and 0.154 mm along the beam.
        assert labelled.case.geometry.array_spacing == pytest.approx((0.154, 0.308))
        assert set(np.unique(labelled.ground_truth)) == {0, 1, 2, 3}


# A plain folder


def test_images_and_labels_of_the_same_name_belong_together(tmp_path: Path, schema: LabelSchema) -> None:
    for name in ("p2_b", "p1_a"):
        write_scan(tmp_path / "images" / f"{name}.png")
    write_mask(tmp_path / "labels" / "p1_a.png", schema)
    cases = found(tmp_path)
    assert [(case.case_id, case.patient_id) for case in cases] == [("p1_a", "p1"), ("p2_b", "p2")]
    assert cases[0].read_labelled(schema).ground_truth.sum() == 4
    assert cases[1].label_path is None


def test_a_mask_may_have_another_format_than_its_image(tmp_path: Path, schema: LabelSchema) -> None:
    write_scan(tmp_path / "images" / "p1.nii.gz")
    write_mask(tmp_path / "labels" / "p1.mha", schema)
    (case,) = found(tmp_path)
    assert case.read_labelled(schema).ground_truth.sum() == 4


def test_images_alone_are_a_data_set(tmp_path: Path) -> None:
    write_scan(tmp_path / "b.nii.gz")
    write_scan(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("no image")
    assert [case.case_id for case in found(tmp_path)] == ["a", "b"]


def test_a_mask_without_its_image_is_named(tmp_path: Path, schema: LabelSchema) -> None:
    write_scan(tmp_path / "images" / "a.png")
    write_mask(tmp_path / "labels" / "b.png", schema)
    with pytest.raises(DataError, match=r"labels/b\.png: there is no image of that name in .*images"):
        found(tmp_path)


def test_hidden_files_are_not_data(tmp_path: Path, schema: LabelSchema, nnunet: Path) -> None:
    """macOS puts `._NAME` beside each file on foreign disks."""
    plain = tmp_path / "plain"
    write_scan(plain / "images" / "a.png")
    write_mask(plain / "labels" / "a.png", schema)
    for path in (
        plain / "images" / "._a.png",
        plain / "labels" / "._a.png",
        nnunet / "imagesTr" / "._heart_001_0000.nii.gz",
        nnunet / "labelsTr" / "._heart_001.nii.gz",
    ):
        path.write_bytes(b"\x00\x05\x16\x07")
    assert [case.case_id for case in found(plain)] == ["a"]
    assert [case.case_id for case in found(nnunet, split="train")] == ["heart_001", "heart_002"]


@pytest.mark.parametrize("folder", ["images", "labels"])
def test_two_files_of_one_name_are_refused_rather_than_one_of_them_lost(
    tmp_path: Path, schema: LabelSchema, folder: str
) -> None:
    write_scan(tmp_path / "images" / "a.png")
    write_mask(tmp_path / "labels" / "a.png", schema)
    if folder == "images":
        write_scan(tmp_path / "images" / "a.nii.gz")
    else:
        write_mask(tmp_path / "labels" / "a.nii.gz", schema)
    with pytest.raises(DataError, match=rf"{folder}.*two (images|masks) have the name a"):
        found(tmp_path)


def write_dicom_series(folder: Path, slices: int = 3, suffix: str = ".dcm") -> None:
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    writer.SetImageIO("GDCMImageIO")
    for index in range(slices):
        image = sitk.GetImageFromArray(np.arange(20, dtype=np.int16).reshape(1, 4, 5) + 100 * index)
        image.SetSpacing((0.5, 0.8, 2.0))
        for tag, value in {
            "0008|0060": "MR",
            "0020|000d": "1.2.3",
            "0020|000e": "1.2.3.4",
            "0020|0032": f"0\\0\\{2 * index}",
            "0020|0013": str(index + 1),
        }.items():
            image.SetMetaData(tag, value)
        # Names run against the slices' positions: the order is that of the patient, not of the files.
        writer.SetFileName(str(folder / f"{slices - index}{suffix}"))
        writer.Execute(image)


@pytest.mark.parametrize("suffix", [".dcm", ".DCM"])
@pytest.mark.parametrize("name", ["p1_t1", "patient01"])
def test_each_sub_folder_of_dicom_slices_is_one_case(tmp_path: Path, name: str, suffix: str) -> None:
    write_dicom_series(tmp_path / name, suffix=suffix)
    write_dicom_series(tmp_path / "zz", suffix=suffix)
    cases = found(tmp_path)
    assert [case.case_id for case in cases] == [name, "zz"]
    case = cases[0].read()
    assert case.patient_id == name.split("_")[0]
    assert case.image.shape == (1, 3, 4, 5)
    assert case.image[0, :, 0, 0].tolist() == [0.0, 100.0, 200.0]
    assert case.geometry.array_spacing == pytest.approx((2.0, 0.8, 0.5))


# What is wrong with a folder


@pytest.mark.parametrize("layout", ["auto", "folder", "camus"])
def test_a_folder_without_images_is_named(tmp_path: Path, layout: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing to see")
    with pytest.raises(DataError, match="empty: no image found"):
        found(tmp_path / "empty", layout=layout)


@pytest.mark.parametrize(("series", "names"), [("slices", ["1", "2", "3"]), ("root/slices", ["slices"])])
@pytest.mark.parametrize("suffix", ["", ".4711", ".IMA"])
def test_dicom_files_are_known_by_their_content(tmp_path: Path, series: str, names: list[str], suffix: str) -> None:
    write_dicom_series(tmp_path / "written" / "x")
    (tmp_path / series).mkdir(parents=True)
    for path in (tmp_path / "written" / "x").iterdir():
        path.rename(tmp_path / series / f"{path.stem}{suffix}")
    cases = found(tmp_path / series.split("/")[0])
    assert [case.case_id.removesuffix(suffix) for case in cases] == names
    assert cases[0].read().image.shape[-2:] == SHAPE


def test_a_missing_folder_and_a_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shutil.make_archive(str(tmp_path / "data"), "zip", tmp_path, "file")
    for name, problem in (
        ("nowhere", "there is no such folder"),
        ("file", "this is a file; give the folder"),
        ("data.zip", "this is an archive; unpack it, and give the folder"),
    ):
        with pytest.raises(DataError, match=f"{name}: {problem}"):
            found(tmp_path / name)


@pytest.mark.parametrize("pattern", [r"^case(\d+)", r"^(q)?p", r"^(\d*)"], ids=["no match", "unused", "empty"])
def test_a_pattern_that_finds_no_patient_names_the_case(tmp_path: Path, pattern: str) -> None:
    write_scan(tmp_path / "p1_a.png")
    with pytest.raises(DataError, match=rf"{tmp_path}: patient_pattern .*'p1_a'"):
        found(tmp_path, patient_pattern=pattern)


@pytest.mark.parametrize("names", [["case_001", "case_002"], ["CHNCXR_0001_0", "CHNCXR_0002_1"]])
def test_a_data_set_that_seems_to_show_one_patient_gives_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: list[str]
) -> None:
    for name in names:
        write_scan(tmp_path / f"{name}.png")
    found(tmp_path)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    patient = names[0].split("_")[0]
    for words in (
        f"{tmp_path}: all 2 cases",
        f"1 ({patient}: {names[0]} and 1 more)",
        "patient_pattern",
        "--patient-pattern",
    ):
        assert words in record.getMessage()
    caplog.clear()
    cases = found(tmp_path, patient_pattern=r"_(\d+)")
    assert [case.patient_id for case in cases] == [name.split("_")[1] for name in names]
    assert not caplog.records


def test_one_case_or_some_of_a_patient_among_others_give_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_scan(tmp_path / "p1_a.png")
    found(tmp_path)
    write_scan(tmp_path / "p1_b.png")
    write_scan(tmp_path / "p2_a.png")
    found(tmp_path)
    assert not caplog.records


@pytest.mark.parametrize("layout", ["auto", "folder", "nnunet"])
def test_a_split_of_data_without_parts_is_refused(tmp_path: Path, layout: str) -> None:
    write_scan(tmp_path / "p1_0000.png")
    with pytest.raises(DataError, match=r"split test is for nnU-Net data sets with a dataset\.json"):
        found(tmp_path, layout=layout, split="test")


def test_reading_a_case_does_not_touch_its_mask(tmp_path: Path, schema: LabelSchema) -> None:
    write_scan(tmp_path / "images" / "a.png")
    write_mask(tmp_path / "labels" / "a.png", schema)
    (case,) = found(tmp_path)
    (tmp_path / "labels" / "a.png").write_bytes(b"unreadable")
    assert case.read().image.shape == (1, *SHAPE)
    with pytest.raises(DataError, match=r"labels/a\.png: cannot be read"):
        case.read_labelled(schema)


def test_simulated_data_is_known_by_its_record_from_the_root_and_from_its_images(tmp_path: Path) -> None:
    (tmp_path / "data" / "images").mkdir(parents=True)
    assert not is_simulated(tmp_path / "data")
    (tmp_path / "data" / SIMULATION_RECORD).write_text("{}")
    assert is_simulated(tmp_path / "data")
    assert is_simulated(tmp_path / "data" / "images")
    assert not is_simulated(tmp_path)


# Splits


@settings(deadline=None, max_examples=50)
@given(
    patients=st.lists(st.integers(0, 15), min_size=2, max_size=40).filter(lambda values: len(set(values)) > 1),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
def test_a_split_keeps_patients_whole_loses_nothing_and_respects_the_fraction(
    patients: list[int], fraction: float, seed: int
) -> None:
    cases = [SimpleNamespace(patient_id=f"p{patient}", index=index) for index, patient in enumerate(patients)]
    first, second = split_by_patient(cases, fraction, seed)
    assert sorted(case.index for case in first + second) == list(range(len(cases)))
    assert [case.index for case in first] == sorted(case.index for case in first)
    assert [case.index for case in second] == sorted(case.index for case in second)
    sides = [{case.patient_id for case in side} for side in (first, second)]
    assert not sides[0] & sides[1]
    assert all(sides)
    # Half a patient of rounding, or one patient where a side would be empty.
    number = len(set(patients))
    assert abs(len(sides[1]) - fraction * number) <= (0.5 if 0.5 < fraction * number < number - 0.5 else 1)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), order=st.permutations(list(range(12))))
def test_a_split_depends_on_the_seed_and_the_patients_but_not_on_the_order_of_cases(
    seed: int, order: list[int]
) -> None:
    cases = [SimpleNamespace(patient_id=f"p{index // 2}") for index in range(12)]
    held_out = {case.patient_id for case in split_by_patient(cases, 0.5, seed)[1]}
    assert {case.patient_id for case in split_by_patient([cases[i] for i in order], 0.5, seed)[1]} == held_out


def test_other_seeds_give_other_splits() -> None:
    cases = [SimpleNamespace(patient_id=f"p{index}") for index in range(12)]
    splits = {tuple(case.patient_id for case in split_by_patient(cases, 0.5, seed)[1]) for seed in range(10)}
    assert len(splits) > 5


def test_too_few_patients_for_a_split_are_named_with_where_they_are_from_and_what_to_set() -> None:
    cases = [SimpleNamespace(patient_id="case")] * 3
    message = (
        r"target: data/b: .*at least 2 patients; patients found: 1 \(case with 3 images\)"
        r".*patient_pattern \(--patient-pattern\)"
    )
    with pytest.raises(DataError, match=message):
        split_by_patient(cases, 0.5, 0, "target: data/b")
    with pytest.raises(DataError, match="patients found: 0;"):
        split_by_patient([], 0.5, 0)
