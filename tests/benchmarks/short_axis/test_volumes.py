from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.harness.laboratory import files_of
from benchmarks.harness.packs import VENTRICLE_SCHEMA
from benchmarks.harness.shifts import ventricle_patients
from benchmarks.short_axis.volumes import acdc_volumes, centre, stack, sunnybrook_volumes, write_parts

PARTS = ("source", "source-held-out", "target", "held-out")


def test_a_volume_of_acdc_has_the_slices_with_a_ventricle_and_the_cavity_alone() -> None:
    found = {name: (image, mask) for name, image, mask in acdc_volumes(["p003"])}
    assert list(found) == ["p003_f01", "p003_f12"]
    image, mask = found["p003_f01"]
    assert image[:, 0, 0].tolist() == [2, 3, 4, 5]
    assert mask.sum(axis=(1, 2)).tolist() == [400] * 4
    assert set(np.unique(mask)) == {0, 1}


def test_slices_of_sunnybrook_are_stacked_by_phase_in_their_order() -> None:
    found = {name: image[:, 0, 0].tolist() for name, image, _ in sunnybrook_volumes(["SC-HF-I-04"])}
    assert found == {"SC-HF-I-04_07": [2, 1, 3], "SC-HF-I-04_19": [4, 5]}


def test_a_stack_with_a_gap_is_no_volume() -> None:
    assert stack("p001_f01", np.array([3, 4, 5])).tolist() == [3, 4, 5]
    with pytest.raises(SystemExit, match=r"p001_f01: .*\[3, 5\]"):
        stack("p001_f01", np.array([3, 5]))
    with pytest.raises(SystemExit, match="without a gap"):
        stack("p001_f01", np.array([], dtype=int))


@given(st.integers(128, 150), st.integers(128, 150))
def test_the_middle_of_a_slice_is_kept(height: int, width: int) -> None:
    plane = np.zeros((1, height, width), np.uint8)
    plane[0, height // 2, width // 2] = 1
    kept = centre(plane, 1.5)
    assert kept.shape == (1, 128, 128)
    assert np.abs(np.argwhere(kept)[0, 1:] - 64).max() <= 1


def test_the_parts_are_those_of_the_shift_in_2d(tmp_path: Path) -> None:
    most = dict.fromkeys(PARTS, 3)
    parts = write_parts(tmp_path, most)
    patients = ventricle_patients()
    assert set(parts) == set(patients) == set(PARTS)
    for part, folder in parts.items():
        assert {file.patient_id for file in files_of(folder)} == set(patients[part][:3])
    source = files_of(parts["source"])[0].read_labelled(VENTRICLE_SCHEMA)
    assert (source.case.shape, source.case.geometry.spacing) == ((4, 128, 128), pytest.approx((1.5, 1.5, 8.0)))
    target = files_of(parts["target"])[0].read_labelled(VENTRICLE_SCHEMA)
    assert target.case.geometry.spacing == pytest.approx((1.25, 1.25, 8.0))
    assert target.case.shape[1:] == (154, 154)


def test_parts_are_written_once_and_others_are_refused(tmp_path: Path) -> None:
    parts = write_parts(tmp_path, dict.fromkeys(PARTS, 1))
    image = files_of(parts["target"])[0].image_paths[0]
    written = image.stat().st_mtime_ns
    assert write_parts(tmp_path, dict.fromkeys(PARTS, 1)) == parts
    assert image.stat().st_mtime_ns == written
    with pytest.raises(SystemExit, match="holds other patients"):
        write_parts(tmp_path, dict.fromkeys(PARTS, 2))


def test_patients_whose_contours_are_off_are_in_no_part() -> None:
    everyone = {patient for patients in ventricle_patients().values() for patient in patients}
    assert len(everyone) == 40 + 10 + 12 + 11
    assert everyone.isdisjoint({"SC-N-06", "SC-HF-NI-13"})
