from __future__ import annotations

from pathlib import Path

import pytest

from medfm_rl.data.layouts import find_cases
from medfm_rl.errors import DataError, ModelError
from medfm_rl.quality import QualityController
from medfm_rl.settings import DataSettings
from medfm_rl.tracking.quality_model import save_quality_model

# MLflow and its friends warn of their own future.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_served_model_gives_the_verdicts_of_the_controller(quality_run: Path, tmp_path: Path) -> None:
    import pandas
    from mlflow import pyfunc

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


def test_a_run_without_a_quality_model_and_a_full_folder_are_refused(quality_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a finished run"):
        save_quality_model(tmp_path, tmp_path / "served")
    (tmp_path / "other" / "model" / "fold_0").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"quality\.json: there is no such file"):
        save_quality_model(tmp_path / "other", tmp_path / "served")
    (tmp_path / "thing").write_text("")
    with pytest.raises(DataError, match="not empty"):
        save_quality_model(quality_run, tmp_path)
