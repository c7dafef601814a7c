from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.shared_work import context_of_squares, squares

from medfm_rl.data.files import write_json
from medfm_rl.errors import DataError
from medfm_rl.processes.team import ALONE
from medfm_rl.reward.collection import ImageSet, ReviewedImages
from medfm_rl.settings import FeedbackSettings
from medfm_rl.workflows.adapt.choosing.cross_fit import CrossFit, cross_fit, why_none_decide
from medfm_rl.workflows.adapt.context import Domains


def of(*gains: float) -> CrossFit:
    names = tuple(f"p{index}" for index in range(len(gains)))
    return CrossFit(names, (0.8,) * len(gains), tuple(0.8 + gain for gain in gains))


def test_the_p_value_is_that_of_all_signs() -> None:
    """(1/2)^4 = .0625, (1/2)^3 = .125."""
    assert of(0.01, 0.02, 0.03, 0.04).p_value == pytest.approx(1 / 16)
    assert of(0.01, 0.02, 0.03).p_value == pytest.approx(1 / 8)


def test_the_typical_gain_is_the_median_of_the_means_of_all_pairs() -> None:
    """1, 2, 6 give 1, 1.5, 3.5, 2, 4, 6: between 2 and 3.5."""
    assert of(0.01, 0.02, 0.06).typical_gain == pytest.approx(0.0275)
    assert of(0.01, 0.02, 0.03, 0.04).typical_gain == pytest.approx(0.025)


def test_one_lost_mask_does_not_hide_what_the_others_gain() -> None:
    lost = of(-0.02, 0.027, 0.105, 0.108, -0.232, 0.008, 0.22, 0.065)
    assert lost.p_value > 0.1
    assert lost.is_better


def test_one_lucky_patient_is_not_evidence() -> None:
    lucky = of(0.3, -0.01, -0.02, -0.015, -0.012, -0.011, -0.013, -0.014)
    assert np.mean(np.subtract(lucky.after, lucky.before)) > 0.02
    assert not lucky.is_better


def test_what_is_hardly_a_gain_is_not_worth_a_change() -> None:
    """However sure: every change makes some cases worse."""
    small = of(0.001, 0.002, 0.003, 0.0015, 0.004, 0.0025, 0.0035, 0.001)
    assert small.p_value < 0.01
    assert not small.is_better
    assert not of(0.0, 0.0, 0.0, 0.0).is_better
    assert of(0.0, 0.0, 0.0, 0.0).p_value == 1.0


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    of(0.01, 0.02).write(tmp_path / "cross-fit.json")
    assert CrossFit.read(tmp_path / "cross-fit.json") == of(0.01, 0.02)
    write_json(tmp_path / "other.json", {"format": 1})
    with pytest.raises(DataError, match=r"other\.json: not a comparison on reviewed patients.*resume the run"):
        CrossFit.read(tmp_path / "other.json")


def squares_accepted_of(folder: Path, *accepted: int) -> tuple[CrossFit | None, tuple[str, ...]]:
    """What comes of six reviewed patients, some of whom have masks that were only accepted."""
    (images, masks), context = squares(), context_of_squares(ALONE, folder, feedback=FeedbackSettings(store="s"))
    names = tuple(f"p{row}" for row in range(len(images)))
    shown = ImageSet(images, names, names)
    trust = tuple(0.5 if row in accepted else 1.0 for row in range(len(images)))
    reviewed = ReviewedImages(shown, masks, trust, frozenset(names[row] for row in accepted))
    return cross_fit(context, Domains(shown, shown, None, reviewed)), names


def test_only_patients_whose_masks_were_drawn_are_compared_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The model that made an accepted mask agrees with it by itself."""
    found, names = squares_accepted_of(tmp_path / "two", 0, 3)
    assert found is not None
    assert found.patients == tuple(name for row, name in enumerate(names) if row not in (0, 3))
    with caplog.at_level("INFO"):
        assert squares_accepted_of(tmp_path / "three", 0, 3, 4)[0] is None
    assert "3 patients have masks that reviewers drew or corrected, and it takes 4" in caplog.text


def test_corrected_patients_decide_unless_more_had_every_mask_accepted() -> None:
    assert why_none_decide(3, 0) is not None
    assert why_none_decide(4, 4) is None
    assert "accepted every mask of 5 patients and corrected some of 4" in str(why_none_decide(4, 5))
