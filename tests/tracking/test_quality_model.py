from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from medfm_rl.data.layouts import find_cases
from medfm_rl.errors import DataError, ModelError
from medfm_rl.quality.controller import QualityController
from medfm_rl.settings import DataSettings
from medfm_rl.tracking.quality_model import save_quality_model

# MLflow and its friends warn of their own future.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("batch", [2, 3, 16])
def test_a_served_model_gives_the_verdicts_of_the_controller(
    quality_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """However many of them are assessed at once."""
    import pandas
    from mlflow import pyfunc

    monkeypatch.setattr("medfm_rl.quality.submission._BATCH", batch)
    save_quality_model(quality_run, tmp_path / "served")
    files = find_cases(DataSettings(path=quality_run.parent / "data"))[:3]
    table = pandas.DataFrame(
        [{"image": str(f.image_paths[0]), "mask": str(f.label_path), "patient": f.patient_id} for f in files]
    )
    found = pyfunc.load_model(str(tmp_path / "served")).predict(table)
    controller = QualityController.load(quality_run)
    for row, file in zip(found.to_dict("records"), files, strict=True):
        labelled = file.read_labelled(controller.schema)
        expected = controller.assess(labelled.case, labelled.ground_truth)
        assert row["predicted_dice"] == pytest.approx(expected.mean.predicted_dice)
        assert (row["case"], row["verdict"]) == (file.case_id, expected.verdict)
        assert "90% of the intervals" in row["promised"]


def test_images_of_patients_that_are_not_known_are_not_all_of_one_person(quality_run: Path, tmp_path: Path) -> None:
    import pandas
    from mlflow import pyfunc

    save_quality_model(quality_run, tmp_path / "served")
    served = pyfunc.load_model(str(tmp_path / "served"))
    files = find_cases(DataSettings(path=quality_run.parent / "data"))[:24:4]
    rows = []
    for number, file in enumerate(files):
        # All have one name, in folders of their own.
        folder = tmp_path / f"patient{number}"
        folder.mkdir()
        places = {"image": file.image_paths[0], "mask": file.label_path}
        rows.append({name: str(shutil.copy(path, folder / f"{name}.nii.gz")) for name, path in places.items()})
    unknown = [None, float("nan"), pandas.NA] * 2
    without = served.predict(pandas.DataFrame(rows))
    pandas.testing.assert_frame_equal(served.predict(pandas.DataFrame(rows).assign(patient=unknown)), without)
    # Six patients are enough for the test of a batch; one is not.
    one = served.predict(pandas.DataFrame(rows).assign(patient="nan"))
    assert "untested" in one["promised"][0]
    assert "untested" not in without["promised"][0]


def test_rows_keep_their_index_and_one_that_cannot_be_judged_is_referred(quality_run: Path, tmp_path: Path) -> None:
    import pandas
    from mlflow import pyfunc

    save_quality_model(quality_run, tmp_path / "served")
    files = find_cases(DataSettings(path=quality_run.parent / "data"))[:4]
    rows = [{"image": str(file.image_paths[0]), "mask": str(file.label_path)} for file in files]
    rows[1]["mask"], rows[2]["image"] = str(tmp_path / "nothing.nii.gz"), None
    found = pyfunc.load_model(str(tmp_path / "served")).predict(pandas.DataFrame(rows, index=[7, 3, 5, 9]))
    assert found.index.tolist() == [7, 3, 5, 9]
    assert found["predicted_dice"].isna().tolist() == [False, True, True, False]
    assert found["verdict"][3] == found["verdict"][5] == "refer"
    assert "nothing.nii.gz: there is no such file" in found["reasons"][3]
    assert "no path in the column image" in found["reasons"][5]
    assert found["case"][9] == files[3].case_id


@pytest.mark.parametrize(
    ("columns", "named"), [(["mask"], "no column image;"), (["path"], "no column image and no column mask;")]
)
def test_a_table_without_paths_is_refused_and_the_missing_columns_are_named(
    quality_run: Path, tmp_path: Path, columns: list[str], named: str
) -> None:
    import pandas
    from mlflow import pyfunc

    save_quality_model(quality_run, tmp_path / "served")
    with pytest.raises(DataError, match=named):
        pyfunc.load_model(str(tmp_path / "served")).predict(pandas.DataFrame({name: ["a"] for name in columns}))


def test_a_run_without_a_quality_model_and_a_full_folder_are_refused(quality_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a finished run"):
        save_quality_model(tmp_path, tmp_path / "served")
    (tmp_path / "other" / "model" / "fold_0").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"quality\.json: there is no such file"):
        save_quality_model(tmp_path / "other", tmp_path / "served")
    (tmp_path / "thing").write_text("")
    with pytest.raises(DataError, match="not empty"):
        save_quality_model(quality_run, tmp_path)
