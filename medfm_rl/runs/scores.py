"""`scores.json`, as `score` writes it and all read it that goes on from there: commands, streams and the desk.

Without PyTorch: what takes seconds and hundreds of megabytes to load, a desk does not need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from medfm_rl.anatomy.profiles import RuleResult
from medfm_rl.data.files import hash_file
from medfm_rl.data.json_models import read_model
from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import DataError
from medfm_rl.metrics.scores import MEAN
from medfm_rl.quality.reports import Action, Guarantee, State, StructureScore, Verdict

SCORES_FILE: Final = "scores.json"
SCORES_FORMAT: Final = 5
"""Formats 3 and 4 have no guarantee, action and policy; what was accepted there was to be used."""
_FORMER: Final[Mapping[str, Action]] = {"accept": "use", "correct": "correct", "refer": "refer"}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class AssessedMask(_Part):
    """A mask as it was assessed.

    Attributes:
        case_id: Name of the case.
        patient_id: Its patient.
        mask: Hash of its labels.
        verdict: What the evidence says.
        action: What the policy does with it; the verdict said so before there were policies.
        scores: Of each structure, and of the mean.
        rules: What each anatomy rule measured.
        shift_distance: How far it is from the calibration cases.
        guarantee: What the verdict is worth; None in a file that an older version wrote.
        reasons: Of the verdict, in words.
        unmoved: Predicted Dice of each score before reviewed patients moved it; empty where none did.
        look: What the image looks like, `quality.appearance`; empty in a file that an older version wrote.
        image_files: The image.
        mask_file: The mask; None where it is not known.
    """

    case_id: str
    patient_id: str
    mask: str
    verdict: Verdict
    action: Action
    scores: tuple[StructureScore, ...]
    rules: tuple[RuleResult, ...]
    shift_distance: float
    guarantee: Guarantee | None = None
    reasons: tuple[str, ...] = ()
    unmoved: tuple[float | None, ...] = ()
    look: tuple[float, ...] = ()
    image_files: tuple[Path, ...] = ()
    mask_file: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _does_what_the_verdict_says(cls, content: Any) -> Any:
        if not isinstance(content, dict) or content.get("action") is not None:
            return content
        return {**content, "action": _FORMER.get(str(content.get("verdict")))}

    @field_validator("scores")
    @classmethod
    def _has_the_mean(cls, scores: tuple[StructureScore, ...]) -> tuple[StructureScore, ...]:
        if MEAN not in [score.structure for score in scores]:
            raise ValueError("there is none of the mean over the structures")
        if not all(score.predicted_dice is None or 0 <= score.predicted_dice <= 1 for score in scores):
            raise ValueError("a predicted Dice is no number from 0 to 1")
        return scores

    @model_validator(mode="after")
    def _is_moved_in_all_scores(self) -> Self:
        if self.unmoved and len(self.unmoved) != len(self.scores):
            raise ValueError(f"unmoved has {len(self.unmoved)} numbers, and there are {len(self.scores)} scores")
        return self

    @property
    def mean(self) -> StructureScore:
        """The score of the mean over the structures."""
        return next(score for score in self.scores if score.structure == MEAN)

    @property
    def predicted(self) -> dict[str, float | None]:
        """Predicted Dice of each structure and the mean; None where the mask lacks the structure."""
        return {score.structure: score.predicted_dice for score in self.scores}

    @property
    def as_calibrated(self) -> dict[str, float | None]:
        """The same by the quality model alone, whatever reviewed patients have moved it to: promises are about that."""
        return dict(zip(self.predicted, self.unmoved, strict=True)) if self.unmoved else self.predicted

    @property
    def broken_rules(self) -> tuple[str, ...]:
        """Names of the anatomy rules that it breaks."""
        return tuple(rule.rule for rule in self.rules if not rule.passed)


class UnassessedMask(_Part):
    """A case whose mask could not be assessed, and was referred.

    Attributes:
        problem: Why it could not.
        patient_id: Its patient; None in a file that an older version wrote.
        image_files: The image.
        mask_file: The mask; None where it is not known.
    """

    problem: str
    patient_id: str | None = None
    image_files: tuple[Path, ...] = ()
    mask_file: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _is_more_than_its_problem(cls, content: Any) -> Any:
        return {"problem": content} if isinstance(content, str) else content


class _Clip(_Part):
    verdict: Verdict
    least_agreeing_frame: str | None
    broken_over_time: tuple[str, ...]


class _Content(_Part):
    batch_state: State
    quality: str
    segmenter: str | None
    cases: tuple[AssessedMask, ...]
    problems: dict[str, UnassessedMask]
    clips: dict[str, _Clip] = Field(default_factory=dict)
    simulated: bool = False

    @model_validator(mode="after")
    def _has_every_case_once(self) -> Self:
        names = {case.case_id for case in self.cases}
        if len(names) < len(self.cases) or names & self.problems.keys():
            raise ValueError("a case is there twice")
        return self


@dataclass(frozen=True)
class Scores:
    """The result of scoring, as in `scores.json`.

    Attributes:
        path: The file.
        state: State of the batch.
        quality: SHA-256 of the `quality.json` that assessed, which names the reward networks.
        segmenter: Hash of the one that made the masks; None where they came as files.
        cases: Those that were assessed, by name, in their order.
        problems: Those that could not be, by name.
        against_time: Frames that agree least with their neighbours in a clip that breaks a rule over time, whatever
            their own verdict.
        simulated: Whether the images were made by a simulation.
    """

    path: Path
    state: State
    quality: str
    segmenter: str | None
    cases: Mapping[str, AssessedMask]
    problems: Mapping[str, UnassessedMask]
    against_time: frozenset[str]
    simulated: bool

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads the file.

        Raises:
            DataError: It is no such file, or of a newer version.
        """
        advice = "score the images with this version"
        content = read_model(path, _Content, SCORES_FORMAT, "a scores.json of `medfm-rl score`", advice, DataError)
        against_time = (
            clip.least_agreeing_frame
            for clip in content.clips.values()
            if clip.verdict == "correct" and clip.broken_over_time
        )
        return cls(
            path,
            content.batch_state,
            content.quality,
            content.segmenter,
            {case.case_id: case for case in content.cases},
            content.problems,
            frozenset(frame for frame in against_time if frame is not None),
            content.simulated,
        )

    @property
    def mask_files(self) -> dict[str, Path]:
        """By case, the file of the mask that was assessed, where one is known."""
        return {name: case.mask_file for name, case in self.cases.items() if case.mask_file is not None}

    def marked(self, files: Sequence[CaseFile]) -> list[CaseFile]:
        """Those that are to be corrected; of a clip that breaks a rule over time the least agreeing frame, too.

        Raises:
            DataError: One of them has no verdict.
        """
        known = self.cases.keys() | self.problems.keys()
        missing = [file.case_id for file in files if file.case_id not in known]
        if missing:
            raise DataError(
                f"{self.path}: has no score of {len(missing)} images, {missing[0]} for one; score these images, or "
                "take every case by --all"
            )
        marked = {name for name, case in self.cases.items() if case.action == "correct"} | self.against_time
        return [file for file in files if file.case_id in marked]

    def require_quality(self, quality: Path) -> None:
        """Refuses what another quality model said than that of a run.

        Args:
            quality: `quality.json` of the run.

        Raises:
            DataError: Another one assessed, or this one was changed since.
        """
        if not quality.exists() or hash_file(quality) != self.quality:
            raise DataError(
                f"{self.path}: was not made with {quality} as it is now: another run made it, or it was calibrated "
                f"again; score the images by `medfm-rl score {quality.parent}`, or leave out --scores to have it done"
            )

    def require_segmenter(self, made_by: str, run: Path) -> None:
        """Refuses scores of masks that the segmenter of a run, with that hash, has not made.

        Raises:
            DataError: They are of such masks.
        """
        if self.segmenter != made_by:
            maker = "came as files" if self.segmenter is None else "another segmenter made"
            raise DataError(
                f"{self.path}: is of masks that {maker}, and not the segmenter of {run}; give the masks that were "
                "scored by --masks, so that it is they that are corrected"
            )
