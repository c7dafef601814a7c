from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.adaptation.ejection_fraction import Agreement, agreement, patient_fractions, published_fractions
from medfm_rl.anatomy.discs import DISCS, Discs, ejection_fraction, measure_discs


def ellipse(
    long: float, short: float, tilt: float = 0.0, aspect: float = 1.0, half: bool = False
) -> npt.NDArray[np.bool_]:
    """Semi-axes in pixels, the long one down the rows before it is tilted; `half` keeps what is above the centre.

    `aspect` stretches the columns, as pixels that are not square do.
    """
    rows, columns = np.mgrid[:160, :160] - 79.5
    columns = columns / aspect
    along = rows * np.cos(tilt) + columns * np.sin(tilt)
    across = columns * np.cos(tilt) - rows * np.sin(tilt)
    inside = (along / long) ** 2 + (across / short) ** 2 <= 1
    return inside & (along <= 0) if half else inside


def disks(mask: npt.NDArray[np.bool_]) -> Discs:
    found = measure_discs(mask)
    assert found is not None
    return found


def test_an_ellipse_has_its_length_and_diameters() -> None:
    found = disks(ellipse(60, 25))
    assert found.length == pytest.approx(120, abs=1.5)
    # At the middle of disk i of 20 the ellipse is 2 b sqrt(1 - ((i + 0.5) / 10 - 1)^2) wide.
    expected = 50 * np.sqrt(1 - ((np.arange(DISCS) + 0.5) / 10 - 1) ** 2)
    assert np.allclose(found.diameters, expected, atol=1.5)
    # The sum of the disks is the volume of the spheroid, 4/3 pi a b^2 (midpoint rule: half a percent off).
    volume = np.pi / 4 * np.square(found.diameters).sum() * found.length / DISCS
    assert volume == pytest.approx(4 / 3 * np.pi * 60 * 25**2, rel=0.02)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("tilt", [0.0, 0.3, -0.5])
def test_a_contracting_ellipsoid_ejects_its_known_share(tilt: float, half: bool) -> None:
    # The volume of a spheroid and of its half is proportional to a b^2: (48 * 20^2) / (60 * 28^2) = .408.
    ed, es = disks(ellipse(60, 28, tilt, half=half)), disks(ellipse(48, 20, tilt, half=half))
    assert ejection_fraction([ed], [es], "own") == pytest.approx(100 * (1 - 48 * 20**2 / (60 * 28**2)), abs=1.5)
    # With the length of ED for both phases only the diameters count: (20 / 28)^2 = .510.
    assert ejection_fraction([ed], [es], "common") == pytest.approx(100 * (1 - (20 / 28) ** 2), abs=1.5)


def test_a_small_ventricle_is_not_counted_in_whole_rows() -> None:
    # 24 rows in 20 disks: whole rows would make some disks twice as wide as their neighbours.
    found = disks(ellipse(12, 8))
    expected = 16 * np.sqrt(1 - ((np.arange(DISCS) + 0.5) / 10 - 1) ** 2)
    assert np.allclose(found.diameters[2:-2], expected[2:-2], atol=1.8)


@pytest.mark.parametrize("length", ["own", "common"])
def test_pixels_that_are_not_square_cancel(length: str) -> None:
    square = ejection_fraction([disks(ellipse(60, 26))], [disks(ellipse(50, 19))], length)  # type: ignore[arg-type]
    narrow = ejection_fraction(
        [disks(ellipse(60, 26, aspect=0.75))],
        [disks(ellipse(50, 19, aspect=0.75))],
        length,  # type: ignore[arg-type]
    )
    assert narrow == pytest.approx(square, abs=1.0)


def test_two_views_share_the_diameters_of_both() -> None:
    # Ellipsoids with semi-axes (60, 28, 22) and (48, 20, 18): 1 - 48 * 20 * 18 / (60 * 28 * 22).
    ed, es = [disks(ellipse(60, 28)), disks(ellipse(60, 22))], [disks(ellipse(48, 20)), disks(ellipse(48, 18))]
    assert ejection_fraction(ed, es, "own") == pytest.approx(100 * (1 - 48 * 20 * 18 / (60 * 28 * 22)), abs=1.5)
    # Another magnification of one view changes nothing.
    scaled = [
        [frames[0], Discs(1.5 * frames[1].length, tuple(1.5 * width for width in frames[1].diameters))]
        for frames in (ed, es)
    ]
    for length in ("own", "common"):
        assert ejection_fraction(*scaled, length) == pytest.approx(ejection_fraction(ed, es, length))  # type: ignore[arg-type]


def test_diameters_run_from_the_apex_down() -> None:
    # The half ellipsoid is widest at its cut, which is below.
    assert np.argmax(disks(ellipse(60, 28, half=True)).diameters) >= DISCS - 3


def test_specks_do_not_lengthen_the_ventricle() -> None:
    mask = ellipse(40, 20)
    mask[2:4, 2:4] = True
    assert disks(mask) == disks(ellipse(40, 20))


def test_a_single_pixel_is_measured() -> None:
    mask = np.zeros((8, 8), dtype=bool)
    mask[3, 4] = True
    found = disks(mask)
    assert found.length == pytest.approx(1.0, abs=0.5)
    assert np.isfinite(found.diameters).all()


def test_an_empty_ventricle_is_not_measured_and_is_counted() -> None:
    whole, small = disks(ellipse(60, 28)), disks(ellipse(48, 20))
    assert measure_discs(np.zeros((8, 8), dtype=bool)) is None
    names = ["p1_2CH_ED", "p1_2CH_ES", "p2_2CH_ED", "p2_2CH_ES", "p3_2CH_ED", "p3_2CH_ES"]
    fractions = patient_fractions(names, [whole, small, whole, None, None, small])
    assert fractions["p1"] == pytest.approx(ejection_fraction([whole], [small]))
    assert fractions["p2"] is None
    assert fractions["p3"] is None
    assert agreement(fractions, {"p1": 40.0, "p2": 40.0, "p3": 40.0}).not_measured == 2


def test_one_missing_view_leaves_the_patient_out() -> None:
    one = disks(ellipse(40, 20))
    names = ["p1_2CH_ED", "p1_2CH_ES", "p1_4CH_ED", "p1_4CH_ES"]
    assert patient_fractions(names, [one, one, one, None]) == {"p1": None}


def test_phases_are_paired_by_name_and_not_by_order() -> None:
    ed, es = disks(ellipse(60, 28)), disks(ellipse(48, 20))
    ordered = patient_fractions(["p1_2CH_ED", "p1_2CH_ES"], [ed, es])
    assert patient_fractions(["p1_2CH_ES", "p1_2CH_ED"], [es, ed]) == ordered
    assert ordered["p1"] is not None
    assert ordered["p1"] > 0


def test_a_view_with_one_phase_is_refused() -> None:
    with pytest.raises(ValueError, match="p1: an ejection fraction needs ED and ES"):
        patient_fractions(["p1_2CH_ED"], [disks(ellipse(40, 20))])


def test_agreement_by_hand() -> None:
    # Differences +10, -4 and none: mean absolute 7, bias +3.
    found = agreement({"p1": 60.0, "p2": 36.0, "p3": None}, {"p1": 50.0, "p2": 40.0, "p3": 30.0})
    assert found == Agreement(mae=7.0, bias=3.0, measured=2, not_measured=1)
    nothing = agreement({"p1": None}, {"p1": 50.0})
    assert np.isnan(nothing.mae)
    assert (nothing.measured, nothing.not_measured) == (0, 1)


def test_the_published_table_is_read_by_patient(tmp_path: Path) -> None:
    table = tmp_path / "info.csv"
    table.write_text("Patient,ED,EF,FrameRate\npatient0001,1,54,48.4\npatient0002,1,40.5,50.5\n")
    assert published_fractions(table) == {"patient0001": 54.0, "patient0002": 40.5}


@pytest.mark.data
def test_expert_masks_reproduce_the_published_table(real_data: Path) -> None:
    pack = np.load(real_data / "camus224_train250.npz")
    rows = slice(0, 240)
    names = [str(name) for name in pack["name"][rows]]
    published = published_fractions(real_data / "camus_patients_info.csv")
    measured = [measure_discs(mask == 1) for mask in pack["label"][rows]]
    common = agreement(patient_fractions(names, measured), published)
    assert common.measured == 60
    assert common.mae < 2
    assert abs(common.bias) < 1
    assert agreement(patient_fractions(names, measured, "own"), published).bias > 5
