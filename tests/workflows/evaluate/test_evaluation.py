from __future__ import annotations

import csv
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from support.grey_reader import make_reward, make_segmenter

from medfm_rl.adapters import Sample, TorchModuleAdapter
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.data.files import hash_folder
from medfm_rl.data.images import read_image, write_image
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.errors import ConfigError, DataError, ModelError
from medfm_rl.metrics.scores import CaseScore, Evaluation, compare, summarise
from medfm_rl.networks import choose_device
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.runs.finished import load_model
from medfm_rl.runs.models import ModelInMemory
from medfm_rl.settings import DataSettings
from medfm_rl.types import Geometry, LabelSchema
from medfm_rl.workflows.deploy.predict import predict, segment_with_reward
from medfm_rl.workflows.evaluate.comparison import Comparison, compare_models
from medfm_rl.workflows.evaluate.evaluation import evaluate_segmenter, write_evaluation

# Spacing is (x, y): a pixel is 0.5 mm wide and 2 mm high.
MILLIMETRES = Geometry((0.5, 2.0), (3.0, -4.0), (1.0, 0.0, 0.0, 1.0))
PIXELS = Geometry.unknown(2)


def silent(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def square(column: int, side: int = 4, value: int = 1) -> np.ndarray:
    image = np.zeros((16, 16), np.uint8)
    image[4 : 4 + side, column : column + side] = value
    return image


def save(folder: Path, name: str, image: np.ndarray, truth: np.ndarray | None, geometry: Geometry) -> None:
    """Image with class indices as grey values, truth with the integers of the schema."""
    suffix = ".png" if geometry.spacing is None else ".nii.gz"
    write_image(folder / "images" / f"{name}{suffix}", image, geometry)
    if truth is not None:
        write_image(folder / "labels" / f"{name}{suffix}", 10 * truth, geometry)


def draw(folder: Path, geometry: Geometry) -> list[CaseFile]:
    """p1: `a` moved by one column, `b` as it is. p2: both as they are."""
    low = np.roll(square(2, value=2), 7, axis=0)
    save(folder, "p1_x", square(5) + low, square(4) + low, geometry)
    save(folder, "p2_x", square(4) + low, square(4) + low, geometry)
    return find_cases(DataSettings(path=folder))


def score(files: list[CaseFile], segmenter: TorchModuleAdapter) -> Evaluation:
    return evaluate_segmenter(segmenter, files, load_anatomy("generic", segmenter.schema), silent)


@pytest.mark.parametrize(("geometry", "unit", "step"), [(MILLIMETRES, "mm", 0.5), (PIXELS, "px", 1.0)])
def test_scores_by_hand(tmp_path: Path, geometry: Geometry, unit: str, step: float) -> None:
    """Two 4 x 4 squares, one column apart: Dice 2 * 12 / 32.

    Of the 12 border pixels of each, 4 in the outer column and the inner 2 of the opposite one are one column away from
    the other's border, the others are on it: HD95 is one column, ASSD half a column.
    """
    evaluation = score(draw(tmp_path, geometry), make_segmenter(0, 1, 2))
    moved, right, mean = evaluation.scores[:3]
    assert [(row.case_id, row.patient_id, row.structure) for row in evaluation.scores] == [
        (f"p{patient}_x", f"p{patient}", structure) for patient in (1, 2) for structure in ("a", "b", "mean")
    ]
    assert (moved.dice, moved.hd95, moved.assd) == pytest.approx((0.75, step, step / 2))
    assert (right.dice, right.hd95, right.assd) == (1, 0, 0)
    assert (mean.dice, mean.hd95, mean.assd) == pytest.approx((0.875, step / 2, step / 4))
    assert all((row.dice, row.hd95, row.assd) == (1, 0, 0) for row in evaluation.scores[3:])
    assert {row.unit for row in evaluation.scores} == {unit}
    assert all(row.valid for row in evaluation.scores)
    assert [row.structure for row in evaluation.summary] == ["a", "b", "mean"]
    assert evaluation.summary[0].dice == pytest.approx(0.875)
    assert evaluation.summary[0].hd95 == pytest.approx(step / 2)


def test_the_files_hold_every_case_and_structure(tmp_path: Path) -> None:
    files = draw(tmp_path / "data", MILLIMETRES)
    write_evaluation(tmp_path / "out", {"mine": score(files, make_segmenter(0, 1, 2))}, None)
    with (tmp_path / "out" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["case_id"], row["structure"]) for row in rows] == [
        ("mine", f"p{patient}_x", structure) for patient in (1, 2) for structure in ("a", "b", "mean")
    ]
    assert float(rows[0]["dice"]) == pytest.approx(0.75)
    assert float(rows[0]["hd95"]) == pytest.approx(0.5)
    assert {row["unit"] for row in rows} == {"mm"}
    assert {row["valid"] for row in rows} == {"True"}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["structure"] for row in summary["models"]["mine"]] == ["a", "b", "mean"]
    assert summary["models"]["mine"][0]["dice"] == pytest.approx(0.875)
    assert summary["dice_difference"] == {}


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is no JSON")


def test_a_distance_that_does_not_exist_is_null_in_json(tmp_path: Path) -> None:
    """The model never finds `b`; a mean over nothing must not become a number or break other JSON readers."""
    files = draw(tmp_path / "data", PIXELS)
    evaluation = score(files, make_segmenter(0, 1, 99))
    assert math.isnan(evaluation.of("b")[0].hd95)
    assert evaluation.of("b")[0].dice == 0
    assert not evaluation.of("b")[0].valid
    write_evaluation(tmp_path / "out", {"mine": evaluation}, None)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(), parse_constant=refuse)
    row = summary["models"]["mine"][1]
    assert (row["dice"], row["hd95"], row["assd"], row["undefined"]) == (0, None, None, 2)


def test_structures_that_ground_truths_lack_are_named_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("p1_x", "p2_x"):
        save(tmp_path / "data", name, square(5), square(5), PIXELS)
    evaluation = score(find_cases(DataSettings(path=tmp_path / "data")), make_segmenter(0, 1, 2))
    assert (
        "b: 2 of 2 ground truths lack it. By convention their Dice is 1 where the mask lacks it too (2)" in caplog.text
    )
    write_evaluation(tmp_path / "out", {"mine": evaluation}, None)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(), parse_constant=refuse)
    assert [(row["absent"], row["dice_in_truth"]) for row in summary["models"]["mine"]] == [
        (0, 1),
        (2, None),
        (2, None),
    ]
    with (tmp_path / "out" / "scores.csv").open() as file:
        assert [row["in_truth"] for row in csv.DictReader(file)] == ["True", "False", "False"] * 2


def test_images_with_and_without_spacing_are_not_averaged(tmp_path: Path) -> None:
    save(tmp_path, "p1_x", square(5) + square(10, 2, 2), square(4) + square(10, 2, 2), MILLIMETRES)
    save(tmp_path, "p2_x", square(5) + square(10, 2, 2), square(4) + square(10, 2, 2), PIXELS)
    evaluation = score(find_cases(DataSettings(path=tmp_path)), make_segmenter(0, 1, 2))
    assert [row.unit for row in evaluation.of("a")] == ["mm", "px"]
    assert evaluation.summary[0].unit == "mixed"
    assert math.isnan(evaluation.summary[0].hd95)
    assert evaluation.summary[0].dice == pytest.approx(0.75)


def test_a_case_without_ground_truth_is_named(tmp_path: Path) -> None:
    draw(tmp_path, PIXELS)
    save(tmp_path, "p3_x", square(5), None, PIXELS)
    evaluation = score(find_cases(DataSettings(path=tmp_path)), make_segmenter(0, 1, 2))
    assert [row.dice for row in evaluation.of("a")] == pytest.approx([0.75, 1])
    assert list(evaluation.problems) == ["p3_x"]
    assert re.search(r"there is no mask for .*p3_x\.png; labelled data", evaluation.problems["p3_x"])
    for path in (tmp_path / "labels").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"there is no mask for .*p1_x\.png \(3 of 3 images have none\); labelled data"):
        score(find_cases(DataSettings(path=tmp_path)), make_segmenter(0, 1, 2))


def test_two_models_are_compared_on_the_same_cases(tmp_path: Path) -> None:
    """The first model calls every structure the other one; the second is right but for one column."""
    files = draw(tmp_path / "data", MILLIMETRES)
    comparison = compare_models(make_segmenter(0, 2, 1), make_segmenter(0, 1, 2), files, "generic", silent)
    rows = comparison.rows()
    assert [row.structure for row in rows] == ["a", "b", "mean"]
    assert [row.before for row in rows] == [0, 0, 0]
    assert [row.after for row in rows] == pytest.approx([0.875, 1, 0.9375])
    assert [row.difference.mean for row in rows] == pytest.approx([0.875, 1, 0.9375])
    assert (rows[0].difference.low, rows[0].difference.high) == pytest.approx((0.75, 1))
    assert rows[0].difference.patients == 2
    assert rows[1].hd95_after == "0.0 mm"
    write_evaluation(tmp_path / "out", {"old": comparison.before, "new": comparison.after}, comparison.differences)
    with (tmp_path / "out" / "scores.csv").open() as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["old"] * 6 + ["new"] * 6
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["models"]) == {"old", "new"}
    assert summary["dice_difference"]["b"]["mean"] == 1


def test_distances_are_compared_over_the_cases_in_which_both_models_have_one() -> None:
    """The second model finds what the first has missed, far away: that does not make it worse than the first."""
    old, new = (
        tuple(
            CaseScore(f"c{number}", f"p{number}", "a", overlap, far, far, "mm", True)
            for number, (overlap, far) in enumerate(cases)
        )
        for cases in ([(0.8, 2.0), (0.9, 4.0), (0.0, math.nan)], [(0.8, 3.0), (0.9, 4.0), (0.6, 30.0)])
    )
    before, after = (Evaluation(scores, summarise(scores)) for scores in (old, new))
    (row,) = Comparison(before, after, compare(before, after)).rows()
    assert (row.hd95_before, row.hd95_after) == ("3.0 mm (2 of 3 cases)", "3.5 mm (2 of 3 cases)")
    (alone,) = Comparison(before, before, compare(before, before)).rows()
    assert alone.hd95_before == alone.hd95_after == "3.0 mm (2 of 3 cases)"


def test_structures_are_paired_by_name(tmp_path: Path) -> None:
    """The second model knows the same structures in another order: 1 stands for `b` in it, and 2 for `a`."""
    files = draw(tmp_path, PIXELS)
    swapped = make_segmenter(0, 2, 1, schema=LabelSchema(("background", "b", "a"), (0, 20, 10)))
    comparison = compare_models(make_segmenter(0, 1, 2), swapped, files, "generic", silent)
    for row in comparison.rows():
        assert row.before == row.after == {"a": 0.875, "b": 1.0, "mean": 0.9375}[row.structure]
        assert row.hd95_before == row.hd95_after
        assert row.difference.mean == 0


def test_models_of_other_structures_cannot_be_compared(tmp_path: Path) -> None:
    files = draw(tmp_path, PIXELS)
    other = make_segmenter(0, 1, 2, schema=LabelSchema(("background", "a", "c"), (0, 10, 20)))
    with pytest.raises(ModelError, match=r"\(a, b and a, c\)"):
        compare_models(make_segmenter(0, 1, 2), other, files, "generic", silent)


def test_one_patient_gives_no_interval(tmp_path: Path) -> None:
    save(tmp_path, "p1_x", square(5), square(4), PIXELS)
    save(tmp_path, "p1_y", square(5), square(4), PIXELS)
    files = find_cases(DataSettings(path=tmp_path))
    with pytest.raises(DataError, match=r"at least 2 patients; patients found: 1 \(p1: p1_x and 1 more\)"):
        compare_models(make_segmenter(0, 1, 2), make_segmenter(0, 1, 2), files, "generic", silent)


def test_predictions_have_the_integers_and_the_grid_of_the_data(tmp_path: Path) -> None:
    files = draw(tmp_path / "data", MILLIMETRES)
    assert predict(ModelInMemory(make_segmenter(0, 1, 2), make_reward()), files, tmp_path / "out", silent) == []
    for file in files:
        image, geometry = read_image(file.image_paths)
        labels, own = read_image(tmp_path / "out" / "labels" / f"{file.case_id}.nii.gz")
        assert own.matches(geometry)
        assert own.spacing == pytest.approx((0.5, 2.0))
        assert np.array_equal(labels, 10 * image)
        reward_map, own = read_image(tmp_path / "out" / "rewards" / f"{file.case_id}.nii.gz")
        assert own.matches(geometry)
        assert reward_map.shape == image.shape
        assert 0 <= reward_map.min() < reward_map.max() <= 1


def test_a_model_without_reward_writes_label_maps_alone(tmp_path: Path) -> None:
    files = draw(tmp_path / "data", MILLIMETRES)
    predict(ModelInMemory(make_segmenter(0, 1, 2), None), files, tmp_path / "out", silent)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"audit.jsonl", "cases", "labels"}


def error_of_a_full_memory() -> Exception:
    try:
        torch.empty(10**14)
    except RuntimeError as error:
        return error
    raise AssertionError("this machine has 400 TB of memory")


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), error_of_a_full_memory()]
)
def test_a_case_that_does_not_fit_into_the_memory_keeps_no_other_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    files = draw(tmp_path / "data", MILLIMETRES)
    infer = TorchModuleAdapter.predict_logits

    def too_large(self: TorchModuleAdapter, sample: Sample) -> torch.Tensor:
        if sample.case_id == files[0].case_id:
            raise error
        return infer(self, sample)

    monkeypatch.setattr(TorchModuleAdapter, "predict_logits", too_large)
    problems = predict(ModelInMemory(make_segmenter(0, 1, 2), make_reward()), files, tmp_path / "out", silent)
    assert problems == [f"case {files[0].case_id}: too large for the memory of cpu"]
    assert [path.name for path in (tmp_path / "out" / "labels").iterdir()] == [f"{files[1].case_id}.nii.gz"]


def test_an_error_of_a_network_is_not_taken_for_a_full_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: TorchModuleAdapter, sample: Sample) -> torch.Tensor:
        raise RuntimeError("expected scalar type Float but found Half")

    monkeypatch.setattr(TorchModuleAdapter, "predict_logits", broken)
    with pytest.raises(RuntimeError, match="expected scalar type"):
        predict(
            ModelInMemory(make_segmenter(0, 1, 2), None), draw(tmp_path / "data", MILLIMETRES), tmp_path / "out", silent
        )


def test_an_interrupted_prediction_goes_on(tmp_path: Path) -> None:
    """Cases that are there are kept, the others are made."""
    files = draw(tmp_path / "data", MILLIMETRES)
    model = ModelInMemory(make_segmenter(0, 1, 2), make_reward())

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(model, files, tmp_path / "out", interrupt)
    first = tmp_path / "out" / "labels" / "p1_x.nii.gz"
    before = first.stat().st_mtime_ns
    predict(model, files, tmp_path / "out", silent)
    assert first.stat().st_mtime_ns == before
    assert len(list((tmp_path / "out" / "rewards").iterdir())) == 2


def test_masks_of_another_model_are_not_taken_for_those_of_this_one(tmp_path: Path) -> None:
    files, out = draw(tmp_path / "data", MILLIMETRES), tmp_path / "out"
    predict(ModelInMemory(make_segmenter(0, 1, 2), None), files, out, silent)
    before = hash_folder(out)
    other = make_segmenter(0, 1, 2)
    other.preprocessing = other.preprocessing.model_copy(update={"intensity": "minmax"})
    for model in (
        ModelInMemory(make_segmenter(0, 2, 1), None),
        ModelInMemory(other, None),
        ModelInMemory(make_segmenter(0, 1, 2), make_reward()),
    ):
        with pytest.raises(DataError, match=r"p1_x\.nii\.gz: another model made it, .* its own output folder"):
            predict(model, files, out, silent)
    assert hash_folder(out) == before


def test_masks_that_nobody_knows_the_maker_of_are_left_alone(tmp_path: Path) -> None:
    files, out = draw(tmp_path / "data", MILLIMETRES), tmp_path / "out"
    model = ModelInMemory(make_segmenter(0, 1, 2), None)
    predict(model, files, out, silent)
    shutil.rmtree(out / "cases")
    before = hash_folder(out)
    with pytest.raises(DataError, match=r"p1_x\.nii\.gz: is there already and no record says what made it"):
        predict(model, files, out, silent)
    assert hash_folder(out) == before


def test_a_mask_of_another_image_is_made_anew_and_one_that_a_person_changed_is_not_lost(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    files = draw(data, MILLIMETRES)
    model = ModelInMemory(make_segmenter(0, 1, 2), None)
    predict(model, files, out, silent)
    first, second = (out / "labels" / f"{file.case_id}.nii.gz" for file in files)
    write_image(files[0].image_paths[0], square(9), MILLIMETRES)
    assert predict(model, files, out, silent) == []
    assert np.array_equal(read_image(first)[0][0], 10 * square(9))
    edited = second.read_bytes()
    first.write_bytes(edited)
    for _ in range(2):
        (problem,) = predict(model, files, out, silent)
        assert problem.startswith(f"{first}: was changed after it was written")
    assert first.read_bytes() == edited


@pytest.mark.parametrize("pixels", ["p1.raw", "elsewhere.bin"])
def test_a_mask_of_pixels_that_were_replaced_below_their_header_is_made_anew(tmp_path: Path, pixels: str) -> None:
    (tmp_path / "data").mkdir()
    header = tmp_path / "data" / "p1.mhd"
    sitk.WriteImage(sitk.GetImageFromArray(square(4)), str(header))
    (header.parent / "p1.raw").rename(header.parent / pixels)
    header.write_text(header.read_text().replace("p1.raw", pixels))
    files, model = find_cases(DataSettings(path=header.parent)), ModelInMemory(make_segmenter(0, 1, 2), None)
    predict(model, files, tmp_path / "out", silent)
    (header.parent / pixels).write_bytes(square(9).tobytes())
    assert predict(model, files, tmp_path / "out", silent) == []
    assert np.array_equal(read_image(tmp_path / "out" / "labels" / "p1.nii.gz")[0][0], 10 * square(9))


def test_a_mask_that_was_begun_when_the_call_ended_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, out = draw(tmp_path / "data", MILLIMETRES), tmp_path / "out"
    model = ModelInMemory(make_segmenter(0, 1, 2), make_reward())

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("medfm_rl.workflows.deploy.predict.write_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict(model, files, out, silent)
    assert (out / "labels" / "p1_x.nii.gz").exists()
    assert predict(model, files, out, silent) == []
    assert len(list((out / "rewards").iterdir())) == 2


def test_the_reward_map_is_that_of_the_mask_that_is_returned(tmp_path: Path) -> None:
    case = draw(tmp_path, MILLIMETRES)[0].read()
    reward = make_reward()
    labels, reward_map = segment_with_reward(make_segmenter(0, 1, 2), reward, case)
    assert np.array_equal(labels, case.image[0])
    expected = reward(torch.from_numpy(case.image)[None], torch.from_numpy(labels)[None])[0]
    assert reward_map is not None
    assert np.allclose(reward_map, expected.numpy(), atol=1e-6)


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing: there is no such folder"):
        load_model(tmp_path / "nothing", "cpu")
    with pytest.raises(ModelError, match=r"not a segmenter folder, there is no segmenter\.json"):
        _ = load_model(tmp_path, "cpu").segmenter
    (tmp_path / "config.yaml").write_text("seed: 0")
    with pytest.raises(ModelError, match=r"not finished.*--resume"):
        load_model(tmp_path, "cpu")
    with pytest.raises(ModelError, match=r"config\.yaml: this is a file; give the folder that it lies in"):
        load_model(tmp_path / "config.yaml", "cpu")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"fusion": "min"}',
        '{"fusion": "best", "pessimism": 0.5, "members": ["member-0"]}',
        '{"fusion": "min", "pessimism": 0.5, "members": [1]}',
        '{"fusion": "min", "pessimism": 0.5, "members": []}',
        '{"fusion": "min", "pessimism": 0.5, "members": ["member-0"]}',
    ],
)
def test_a_damaged_reward_folder_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "fusion.json").write_text(content)
    with pytest.raises(ModelError, match=str(tmp_path)):
        RewardEnsemble.load(tmp_path)


def test_a_device_that_is_not_there_is_named() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(ConfigError, match=f"device: {missing} is not available"):
        choose_device(missing)
    with pytest.raises(ConfigError, match="device: gpu is none of auto, cpu, cuda and mps"):
        choose_device("gpu")
