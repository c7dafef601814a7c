"""The code of an MLflow quality model. MLflow runs this file when it loads the model: nothing is unpickled."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from medfm_rl.data.images import image_stem, read_image
from medfm_rl.data.labels import read_labels
from medfm_rl.errors import DataError, UserError
from medfm_rl.quality.reports import QualityReport
from medfm_rl.quality.submission import Submission, is_a_batch
from medfm_rl.tracking.quality_model import load_served
from medfm_rl.types import Case

_COLUMNS = ["case", "predicted_dice", "low", "high", "verdict", "reasons", "guarantee", "action", "promised"]


class QualityPythonModel(PythonModel):  # type: ignore[misc]
    """Assesses the masks of a table."""

    def load_context(self, context: Any) -> None:
        """Loads the run that came with the model, onto a GPU where there is one."""
        self.controller = load_served(Path(context.artifacts["run"]), device="auto")

    def predict(self, context: Any, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Assesses each row's mask as one of a batch.

        Args:
            context: Context of MLflow.
            model_input: A data frame with the columns `image` and `mask`, paths, and `patient`, where it is known of
                some or all; an image of a patient that is not known is one of its own.
            params: None are known.

        Returns:
            A data frame with the mask's predicted mean Dice, the interval, verdict with reasons, guarantee, action and
            what is promised, with the index of the table. A mask that cannot be assessed is referred, and its reasons
            say why.

        Raises:
            DataError: A column is missing.
        """
        del context, params
        missing = [column for column in ("image", "mask") if column not in model_input.columns]
        if missing:
            raise DataError(
                f"the table has no column {' and no column '.join(missing)}; give paths in the columns image and mask, "
                "and in patient who each image is of, where that is known"
            )
        records, lacking = model_input.to_dict("records"), model_input.isna().to_dict("records")
        assessed: list[int] = []
        reports: list[QualityReport] = []
        waiting: list[Submission] = []
        found: list[dict[str, Any]] = [{} for _ in records]
        for place, (row, lacks) in enumerate(zip(records, lacking, strict=True)):
            try:
                waiting.append(self._submission(row, lacks))
            except UserError as error:
                name = image_stem(Path(str(row["image"])))
                found[place] = {"case": name, "verdict": "refer", "reasons": str(error), "action": "refer"}
                continue
            assessed.append(place)
            if is_a_batch(waiting):
                reports += self.controller.assess_batch(waiting)
                waiting = []
        reports += self.controller.assess_batch(waiting)
        batch = self.controller.settle(reports)
        promised = "; ".join(map(str, batch.promises))
        for place, report in zip(assessed, batch.reports, strict=True):
            found[place] = {
                "case": report.case_id,
                "predicted_dice": report.mean.predicted_dice,
                "low": report.mean.low,
                "high": report.mean.high,
                "verdict": report.verdict,
                "reasons": "; ".join(report.reasons),
                "guarantee": report.guarantee,
                "action": report.action,
                "promised": promised,
            }
        return type(model_input)(found, index=model_input.index, columns=_COLUMNS)

    def _submission(self, row: Mapping[str, Any], lacks: Mapping[str, bool]) -> Submission:
        """A row's mask, ready to be assessed.

        Raises:
            UserError: A path is missing, a file cannot be read, or image and mask do not belong together.
        """
        for column in ("image", "mask"):
            if lacks[column]:
                raise DataError(f"there is no path in the column {column}")
        path = Path(row["image"])
        pixels, geometry = read_image(path)
        # Images of nobody known are not all of one person, and files of several people may share a name.
        patient = str(path) if lacks.get("patient", True) else str(row["patient"])
        case = Case(image_stem(path), patient, pixels, geometry)
        labels = read_labels(Path(row["mask"]), self.controller.schema, case.shape, geometry)
        return self.controller.submit(case, labels)


set_model(QualityPythonModel())
