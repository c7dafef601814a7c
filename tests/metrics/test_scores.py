from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.errors import DataError
from medfm_rl.metrics.scores import MEAN, CaseScore, Evaluation, compare, score_case, summarise
from medfm_rl.types import Case, Geometry, LabelMap, LabelSchema

SCHEMA = LabelSchema.from_structures({"LV": 1, "MYO": 2})
ANATOMY = load_anatomy("complete", SCHEMA)


def case(shape: tuple[int, ...], spacing: tuple[float, ...] | None) -> Case:
    ndim = len(shape)
    geometry = Geometry(spacing, (0.0,) * ndim, tuple(np.eye(ndim).ravel()))
    return Case("p1_a", "p1", np.zeros((1, *shape), np.float32), geometry)


def masks() -> tuple[LabelMap, LabelMap]:
    """LV: one pixel against the pixel below it. MYO: a bar of four columns against its first two."""
    prediction, truth = np.zeros((8, 9), np.uint8), np.zeros((8, 9), np.uint8)
    prediction[1, 1] = truth[2, 1] = 1
    prediction[6, 2:6] = 2
    truth[6, 2:4] = 2
    return prediction, truth


def score(case_id: str, dice: float, structure: str = MEAN, **changes: object) -> CaseScore:
    values: dict[str, object] = {"hd95": 1.0, "assd": 0.5, "unit": "mm", "valid": True}
    patient = case_id.split("_")[0]
    return CaseScore(case_id, patient, structure, dice, **(values | changes))  # type: ignore[arg-type]


def evaluation(*scores: CaseScore) -> Evaluation:
    return Evaluation(scores, summarise(scores))


def test_scores_per_structure_and_their_mean_by_hand() -> None:
    # Spacing is (x, y): columns are 0.5 mm apart, rows 2 mm.
    rows = score_case(case((8, 9), (0.5, 2.0)), *masks(), SCHEMA, ANATOMY)
    assert [(row.case_id, row.patient_id, row.structure) for row in rows] == [
        ("p1_a", "p1", name) for name in ("LV", "MYO", MEAN)
    ]
    # MYO: the columns lie 0, 0, 0.5 and 1 mm off, and 0, 0 back. The 95th percentile of four is at 2.85 from 0.
    assert [row.dice for row in rows] == pytest.approx([0, 4 / 6, 2 / 6])
    assert [row.hd95 for row in rows] == pytest.approx([2, 0.5 + 0.85 * 0.5, (2 + 0.925) / 2])
    assert [row.assd for row in rows] == pytest.approx([2, 1.5 / 6, (2 + 0.25) / 2])
    assert {row.unit for row in rows} == {"mm"}
    assert all(row.valid for row in rows)


def test_unknown_spacing_gives_pixels_and_says_so() -> None:
    rows = score_case(case((8, 9), None), *masks(), SCHEMA, ANATOMY)
    assert {row.unit for row in rows} == {"px"}
    assert [row.assd for row in rows[:2]] == pytest.approx([1, 3 / 6])


def test_volumes_have_the_spacing_of_their_slices() -> None:
    prediction, truth = np.zeros((4, 5, 6), np.uint8), np.zeros((4, 5, 6), np.uint8)
    prediction[0, 2, 2] = truth[2, 2, 2] = 1
    row, *_ = score_case(case((4, 5, 6), (0.5, 0.7, 3.0)), prediction, truth, SCHEMA, ANATOMY)
    assert row.hd95 == pytest.approx(6)


def test_a_structure_that_one_mask_lacks_has_no_distance_and_neither_has_the_mean() -> None:
    prediction, truth = masks()
    prediction[prediction == 1] = 0
    lv, myo, mean = score_case(case((8, 9), (0.5, 2.0)), prediction, truth, SCHEMA, ANATOMY)
    assert lv.dice == 0
    assert np.isnan([lv.hd95, lv.assd, mean.hd95, mean.assd]).all()
    assert np.isfinite([myo.hd95, myo.assd]).all()
    assert mean.dice == pytest.approx(2 / 6)
    assert not any(row.valid for row in (lv, myo, mean))


def test_a_ground_truth_without_a_structure_is_told_apart() -> None:
    prediction, truth = masks()
    scores = []
    for name, has_lv, found in (("p1_a", True, True), ("p2_a", False, True), ("p3_a", False, False)):
        mask, expert = prediction.copy(), truth.copy()
        expert[1, 1], expert[2, 1] = has_lv, 0
        mask[1, 1] = found
        of = replace(case((8, 9), None), case_id=name)
        scores += score_case(of, mask, expert, SCHEMA, ANATOMY)
    measured = evaluation(*scores)
    assert [(row.dice, row.in_truth) for row in measured.of("LV")] == [(1, True), (0, False), (1, False)]
    assert [row.in_truth for row in measured.of("MYO")] == [True] * 3
    assert [row.in_truth for row in measured.of(MEAN)] == [True, False, False]
    lv, myo, _ = measured.summary
    assert (lv.absent, lv.dice_in_truth, myo.absent) == (2, 1, 0)
    assert lv.dice == pytest.approx(2 / 3)
    assert measured.absences() == [
        "LV: 2 of 3 ground truths lack it. By convention their Dice is 1 where the mask lacks it too (1), and 0 where "
        "it has some (1); over the others (1) the mean is 1.000. In scores.csv, in_truth tells them apart"
    ]
    assert "no other is left" in evaluation(*scores[3:]).absences()[0]
    assert evaluation(*scores[:3]).absences() == []


def test_validity_is_that_of_the_prediction() -> None:
    prediction, truth = masks()
    broken = np.zeros_like(truth)
    rows = score_case(case((8, 9), None), prediction, broken, SCHEMA, ANATOMY)
    assert all(row.valid for row in rows)


def test_a_summary_by_hand() -> None:
    # Dice 0, 0.1 ... 1: the 10th percentile of eleven values is the second.
    scores = [
        score(f"p{i}_a", i / 10, hd95=float(i) if i else np.nan, assd=i / 2 if i else np.nan, valid=i >= 5)
        for i in range(11)
    ]
    (summary,) = summarise(scores)
    assert summary.structure == MEAN
    assert summary.cases == 11
    assert summary.dice == pytest.approx(0.5)
    assert summary.dice_p10 == pytest.approx(0.1)
    assert summary.hd95 == pytest.approx(5.5)
    assert summary.assd == pytest.approx(2.75)
    assert summary.undefined == 1
    assert summary.unit == "mm"
    assert summary.validity == pytest.approx(6 / 11)


def test_summaries_keep_structures_apart_and_in_order() -> None:
    summaries = summarise(
        [
            score("p1_a", 0.2, "MYO"),
            score("p1_a", 0.8, "LV"),
            score("p1_a", 0.5),
            score("p2_a", 0.4, "MYO"),
            score("p2_a", 0.9, "LV"),
            score("p2_a", 0.65),
        ]
    )
    assert [(summary.structure, summary.cases) for summary in summaries] == [("MYO", 2), ("LV", 2), (MEAN, 2)]
    assert [summary.dice for summary in summaries] == pytest.approx([0.3, 0.85, 0.575])


def test_millimetres_and_pixels_are_not_averaged() -> None:
    (summary,) = summarise([score("p1_a", 0.5, unit="mm"), score("p2_a", 0.7, unit="px")])
    assert summary.unit == "mixed"
    assert np.isnan([summary.hd95, summary.assd]).all()
    assert summary.dice == pytest.approx(0.6)


def test_a_summary_without_any_distance_is_nan_without_a_warning() -> None:
    (summary,) = summarise([score("p1_a", 0.0, hd95=np.nan, assd=np.nan)])
    assert np.isnan([summary.hd95, summary.assd]).all()
    assert summary.undefined == 1
    assert summarise([]) == ()


def test_a_comparison_is_after_minus_before_per_structure() -> None:
    before = evaluation(*(score(f"p{i}_a", 0.5, name) for i in range(5) for name in ("LV", MEAN)))
    gains = {"LV": 0.25, MEAN: 0.125}
    after = evaluation(*(score(f"p{i}_a", 0.5 + gains[name], name) for i in range(5) for name in ("LV", MEAN)))
    differences = compare(before, after)
    assert list(differences) == ["LV", MEAN]
    for name, gain in gains.items():
        found = differences[name]
        assert (found.low, found.mean, found.high) == pytest.approx((gain, gain, gain))
        assert found.patients == 5


def test_a_comparison_resamples_patients() -> None:
    before = evaluation(*(score(f"p{patient}_{phase}", 0.5) for patient in range(3) for phase in ("ED", "ES")))
    after = evaluation(*(score(f"p{patient}_{phase}", 0.6) for patient in range(3) for phase in ("ED", "ES")))
    assert compare(before, after)[MEAN].patients == 3


def test_cases_are_paired_by_name_not_by_order() -> None:
    values = {"p1_a": 0.1, "p2_a": 0.5, "p3_a": 0.9}
    before = evaluation(*(score(name, value) for name, value in values.items()))
    after = evaluation(*(score(name, value + 0.05) for name, value in reversed(values.items())))
    found = compare(before, after)[MEAN]
    assert (found.low, found.high) == pytest.approx((0.05, 0.05))


def test_other_cases_are_refused_and_named() -> None:
    before = evaluation(*(score(name, 0.5) for name in ("p1_a", "p2_a", "p3_a")))
    after = evaluation(*(score(name, 0.5) for name in ("p1_a", "p2_a", "p4_a")))
    with pytest.raises(DataError, match=r"not evaluated on the same cases \(differing: p3_a, p4_a\)"):
        compare(before, after)
    with pytest.raises(DataError, match="differing: p3_a"):
        compare(before, evaluation(*before.scores[:2]))


def test_other_structures_are_refused_and_named() -> None:
    before = evaluation(*(score(f"p{i}_a", 0.5, name) for i in range(3) for name in ("LV", MEAN)))
    after = evaluation(*(score(f"p{i}_a", 0.5, name) for i in range(3) for name in ("LA", MEAN)))
    with pytest.raises(DataError, match=r"same structures \(LV, mean and LA, mean\)"):
        compare(before, after)


def test_one_patient_gives_no_interval() -> None:
    one = evaluation(score("p1_ED", 0.5), score("p1_ES", 0.6))
    with pytest.raises(DataError, match=r"no interval can be given: .* at least 2"):
        compare(one, one)


def test_a_truth_of_one_structure_is_compared_in_that_one() -> None:
    prediction, truth = masks()
    every = score_case(case((8, 9), (0.5, 2.0)), prediction, truth, SCHEMA, ANATOMY)
    first, second, _ = every
    assert first.dice != second.dice
    found = score_case(case((8, 9), (0.5, 2.0)), prediction, truth, SCHEMA, ANATOMY, (second.structure,))
    assert found[0] == second
    assert [row.structure for row in found] == [second.structure, every[-1].structure]
    assert found[1].dice == second.dice
