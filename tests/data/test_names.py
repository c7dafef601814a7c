from __future__ import annotations

import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medfm_rl.data.files import replace_on_success, write_text
from medfm_rl.data.images import hash_image, read_image, write_labels
from medfm_rl.data.layouts import find_cases
from medfm_rl.data.names import LONGEST, case_name, file_of_case, is_text, text_of
from medfm_rl.settings import DataSettings
from medfm_rl.types import Geometry, LabelSchema

# Bytes that a file system takes as a name, hidden files aside.
file_names = st.binary(min_size=1, max_size=240).map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_"))
file_names = file_names.filter(lambda name: not name.startswith(b"."))


@given(st.text())
@example("Mu\u0308ller")
@example("x" * 300)
@example("心" * 100)
def test_a_case_name_is_short_and_the_same_in_every_normal_form(text: str) -> None:
    text = text.encode(errors="replace").decode()
    name = case_name(text)
    assert len(name.encode()) <= LONGEST
    assert not {"/", "\0"} & set(name)
    assert case_name(name) == name
    for form in ("NFC", "NFD"):
        assert case_name(unicodedata.normalize(form, text)) == name


@given(st.text(alphabet="aü心", min_size=100, max_size=300), st.text(alphabet="bß", min_size=1, max_size=9))
def test_long_names_that_begin_alike_stay_apart(beginning: str, end: str) -> None:
    assert case_name(beginning + end) != case_name(beginning + end + "c")


@given(file_names)
@example(b"M\xfcller_1")
def test_any_name_that_a_system_has_is_text_afterwards(name: bytes) -> None:
    text = text_of(os.fsdecode(name))
    assert text.encode()
    if is_text(Path(os.fsdecode(name))):
        assert text == name.decode()
    else:
        assert "%" in text


def test_bytes_that_are_no_text_are_given_as_numbers() -> None:
    assert text_of(os.fsdecode(b"M\xfcller_1")) == "M%FCller_1"
    assert text_of("Müller") == "Müller"


def write_scan(path: Path) -> np.ndarray:
    pixels = np.arange(20, dtype=np.float32).reshape(4, 5)
    with TemporaryDirectory() as folder:
        sitk.WriteImage(sitk.GetImageFromArray(pixels), f"{folder}/plain.nii.gz")
        shutil.move(f"{folder}/plain.nii.gz", path)
    return pixels


@settings(max_examples=15, deadline=None)
@given(file_names)
@example(b"M\xfcller_1")
@example(b"$x_{$ [bold] %s {y} *?\n")
@example(b"a" * 240)
def test_an_image_of_any_name_is_found_read_hashed_and_has_a_mask_of_its_name(
    tmp_path_factory: pytest.TempPathFactory, name: bytes
) -> None:
    root = tmp_path_factory.mktemp("any")
    (root / "images").mkdir()
    pixels = write_scan(root / "images" / os.fsdecode(name + b".nii.gz"))
    (case,) = find_cases(DataSettings(path=root))
    assert case.problem is None
    assert np.array_equal(case.read().image[0], pixels)
    assert len(hash_image(case.image_paths[0])) == 64
    mask = file_of_case(root / "labels", case.case_id, ".nii.gz")
    schema = LabelSchema.from_structures({"LV": 1})
    write_labels(mask, (pixels > 9).astype(np.uint8), case.read().geometry, schema)
    (labelled,) = find_cases(DataSettings(path=root))
    assert labelled.read_labelled(schema).ground_truth.sum() == 10


@pytest.mark.parametrize("compressed", [False, True])
def test_the_pixels_of_an_mhd_are_found_beside_one_whose_name_is_no_text(tmp_path: Path, compressed: bool) -> None:
    pixels = np.arange(20, dtype=np.uint8).reshape(4, 5)
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(tmp_path / "x.mhd"), useCompression=compressed)
    path = tmp_path / os.fsdecode(b"M\xfcller.mhd")
    (tmp_path / "x.mhd").rename(path)
    assert np.array_equal(read_image(path)[0][0], pixels)


def test_a_folder_whose_name_is_no_text_is_read_and_written_to(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"Gr\xf6\xdfe")
    folder.mkdir()
    pixels = write_scan(folder / "a.nii.gz")
    assert np.array_equal(read_image(folder / "a.nii.gz")[0][0], pixels)
    schema = LabelSchema.from_structures({"LV": 1})
    write_labels(folder / "b.nii.gz", (pixels > 9).astype(np.uint8), Geometry.unknown(2), schema)
    assert read_image(folder / "b.nii.gz")[0].sum() == 10
    assert sorted(path.name for path in folder.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_a_name_of_255_bytes_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 124 + ".nii.gz")
    assert len(path.name.encode()) == 255
    with replace_on_success(path) as temporary:
        assert temporary.name.endswith(".nii.gz")
        temporary.write_bytes(b"whole")
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_a_text_that_names_such_a_file_is_written_as_utf_8(tmp_path: Path) -> None:
    write_text(tmp_path / "table.csv", f"{os.fsdecode(bytes([0xFC]))},1\n")
    assert (tmp_path / "table.csv").read_text(encoding="utf-8") == "\\udcfc,1\n"


def test_names_are_the_same_in_a_locale_of_ascii_alone(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write_scan(tmp_path / "images" / "Müller_心.nii.gz")
    script = """
import sys, pathlib
from medfm_rl.data.layouts import find_cases
from medfm_rl.data.images import write_labels
from medfm_rl.data.names import file_of_case
from medfm_rl.settings import DataSettings
from medfm_rl.types import LabelSchema
assert sys.getfilesystemencoding() != "utf-8"
root = pathlib.Path(sys.argv[1])
(case,) = find_cases(DataSettings(path=root))
found = case.read()
path = file_of_case(root / "labels", case.case_id, ".nii.gz")
write_labels(path, (found.image[0] > 9).astype("uint8"), found.geometry, LabelSchema.from_structures({"LV": 1}))
print(ascii(case.case_id))
"""
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    package = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, **locale, "PYTHONPATH": package},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ascii("Müller_心")
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["Müller_心.nii.gz"]


def test_half_a_character_of_json_is_no_text() -> None:
    assert case_name("p\ud800") == "p%D800"
    assert case_name("p\udcff") == "p%FF"
