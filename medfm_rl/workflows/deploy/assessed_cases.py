"""What `scores.json` says of each case, for what looks at cases one by one: promises, inference and streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfm_rl.data.json_text import parse_json
from medfm_rl.errors import DataError
from medfm_rl.metrics.scores import MEAN
from medfm_rl.workflows.deploy.scores_file import Scores


@dataclass(frozen=True)
class AssessedCase:
    """A mask as it was assessed.

    Attributes:
        case: Name of the case.
        patient: Its patient.
        verdict: accept, correct or refer.
        mask: Hash of the mask.
        predicted: Predicted mean Dice by the quality model alone, whatever reviewed patients have moved it to; None
            where the mask lacks a structure.
        of_structures: The same by structure.
        mean_reward: Mean probability of being right in and around the structures.
        shift_distance: How far it is from the calibration cases.
        broken_rules: Names of the anatomy rules that it breaks.
        look: What the image looks like, `quality.appearance`; empty in a file that an older version wrote.
        simulated: Whether the image was made by a simulation.
    """

    case: str
    patient: str
    verdict: str
    mask: str
    predicted: float | None
    of_structures: Mapping[str, float | None]
    mean_reward: float
    shift_distance: float
    broken_rules: tuple[str, ...]
    look: tuple[float, ...]
    simulated: bool


def read_assessed(path: Path) -> tuple[Scores, list[AssessedCase]]:
    """Reads a `scores.json`, with the cases that could be assessed in their order.

    Raises:
        DataError: It is no such file, or of a newer version.
    """
    scores = Scores.read(path)
    content = parse_json(path.read_text(encoding="utf-8"))
    try:
        return scores, [_assessed(case, bool(content.get("simulated"))) for case in content["cases"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: a case lacks what `medfm-rl score` writes ({error!r}); score the images with this version"
        ) from error


def _assessed(case: dict[str, Any], simulated: bool) -> AssessedCase:
    mean = next(score for score in case["scores"] if score["structure"] == MEAN)
    values = case.get("unmoved") or [score["predicted_dice"] for score in case["scores"]]
    names = [str(score["structure"]) for score in case["scores"]]
    predicted = {name: _number(value) for name, value in zip(names, values, strict=True)}
    return AssessedCase(
        case=str(case["case_id"]),
        patient=str(case["patient_id"]),
        verdict=str(case["verdict"]),
        mask=str(case["mask"]),
        predicted=predicted.pop(MEAN),
        of_structures=predicted,
        mean_reward=float(mean["mean_reward"]),
        shift_distance=float(case["shift_distance"]),
        broken_rules=tuple(str(rule["rule"]) for rule in case["rules"] if not rule["passed"]),
        look=tuple(float(number) for number in case.get("look", ())),
        simulated=simulated,
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
