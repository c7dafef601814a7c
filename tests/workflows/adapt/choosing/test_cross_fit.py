from __future__ import annotations

from pathlib import Path

import pytest

from medfm_rl.data.files import write_json
from medfm_rl.errors import DataError
from medfm_rl.workflows.adapt.choosing.cross_fit import CrossFit


def of(*gains: float) -> CrossFit:
    names = tuple(f"p{index}" for index in range(len(gains)))
    return CrossFit(names, (0.8,) * len(gains), tuple(0.8 + gain for gain in gains))


def test_four_patients_who_all_gain_are_enough() -> None:
    """(1/2)^4 = .0625; with three, (1/2)^3 = .125, nothing would be."""
    assert of(0.01, 0.02, 0.03, 0.04).p_value == pytest.approx(1 / 16)
    assert of(0.01, 0.02, 0.03, 0.04).is_better
    assert of(0.01, 0.02, 0.03).p_value == pytest.approx(1 / 8)
    assert not of(0.01, 0.02, 0.03).is_better


def test_one_lucky_patient_is_not_evidence() -> None:
    """Its rank is the highest, and the ranks of the others are against it."""
    lucky = of(0.3, -0.01, -0.02, -0.015, -0.012, -0.011, -0.013, -0.014)
    assert lucky.gain > 0
    assert not lucky.is_better


def test_many_who_gain_a_little_are() -> None:
    assert of(0.001, 0.002, 0.003, 0.0015, 0.004, 0.0025, 0.0035, -0.0005).is_better


def test_no_difference_is_not_better() -> None:
    assert of(0.0, 0.0, 0.0, 0.0).p_value == 1.0


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    of(0.01, 0.02).write(tmp_path / "cross-fit.json")
    assert CrossFit.read(tmp_path / "cross-fit.json") == of(0.01, 0.02)
    write_json(tmp_path / "other.json", {"format": 1})
    with pytest.raises(DataError, match=r"other\.json: not a comparison on reviewed patients.*resume the run"):
        CrossFit.read(tmp_path / "other.json")
