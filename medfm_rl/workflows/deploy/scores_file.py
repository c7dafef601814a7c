"""`scores.json`: verdicts and scores of a batch for programs, written by `score`, read by `correct` and `propose`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

from medfm_rl.data.files import hash_file, json_with_list, read_versioned_json, write_parts
from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import DataError
from medfm_rl.quality import QualityReport, State
from medfm_rl.quality.reports import Action, Verdict
from medfm_rl.version import __version__
from medfm_rl.workflows.deploy.clip_verdicts import clip_verdicts
from medfm_rl.workflows.deploy.scoring import CaseTrace, Scoring

SCORES_FILE: Final = "scores.json"
_FORMAT = 5
"""Formats 3 and 4 have no guarantee, action and policy; what was accepted there was to be used."""
_FORMER: Final[Mapping[str, Action]] = {"accept": "use", "correct": "correct", "refer": "refer"}
_ADVICE = "score the images with this version"


def batch_columns(scoring: Scoring) -> dict[str, Any]:
    """Everything that holds for the whole batch, by the names that tables and JSON share."""
    batch = scoring.batch
    return {
        "batch_state": batch.state,
        "batch_guarantee": batch.guarantee,
        "batch_patients": batch.patients,
        "batch_meaning": batch.meaning,
    }


def interval_state(scoring: Scoring) -> str:
    """Whether the intervals hold: of the promises the first is theirs."""
    return scoring.batch.promises[0].status


def places(trace: CaseTrace) -> dict[str, Any]:
    """The files of image and mask."""
    mask = None if trace.mask is None else str(trace.mask)
    return {"image_files": [str(path) for path in trace.file.image_paths], "mask_file": mask}


def write_scores(path: Path, scoring: Scoring, simulated: bool) -> None:
    """Writes the file, which says of simulated images that they are."""
    scorer, traces = scoring.scorer, scoring.traces
    problems = {
        case_id: {
            "problem": found.problem,
            "patient_id": traces[case_id].file.patient_id,
            "verdict": "refer",
            "reason_code": found.cause,
            "guarantee": None,
            "action": "refer",
            **places(traces[case_id]),
        }
        for case_id, found in scoring.unassessed.items()
    }
    clips = {clip.clip_id: clip.to_json() for clip in clip_verdicts(scoring)}
    content = {
        "format": _FORMAT,
        "medfm_rl": __version__,
        "calibrated_on": scorer.model.origin,
        "quality": scorer.quality_hash,
        "segmenter": scorer.segmenter,
        **batch_columns(scoring),
        "batch_shift_probability": scoring.batch.shift_probability,
        "batch_evidence": scoring.batch.evidence,
        "policy": scorer.policy.model_dump(mode="json"),
        **scorer.reviews,
        "stream": None if scoring.place is None else str(scoring.place.path),
        "interval_state": interval_state(scoring),
        "promises": [vars(promise) for promise in scoring.batch.promises],
        "cases": [],
        "problems": problems,
        **({"clips": clips} if clips else {}),
        **({"simulated": True} if simulated else {}),
    }
    write_parts(path, json_with_list(content, "cases", map(partial(_case, scoring), scoring.batch.reports)))


def _case(scoring: Scoring, report: QualityReport) -> dict[str, Any]:
    content, trace = report.to_json(), scoring.traces[report.case_id]
    del content["embedding"]
    return {**content, **places(trace), "mask": trace.mask_hash, "audit": scoring.is_drawn(report.case_id)}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:40]!r} where a text is wanted")
    return value


def _predicted(case: Mapping[str, Any]) -> dict[str, float | None]:
    found = {_text(score["structure"]): score["predicted_dice"] for score in case.get("scores", ())}
    if not all(value is None or (isinstance(value, int | float) and 0 <= value <= 1) for value in found.values()):
        raise ValueError(f"a predicted Dice of case {case['case_id']} is no number from 0 to 1")
    return {name: None if value is None else float(value) for name, value in found.items()}


def _action(case: Mapping[str, Any]) -> str:
    """What is done with a case; the verdict said so before there were policies."""
    return _text(case["action"]) if "action" in case else _FORMER.get(case["verdict"], "")


@dataclass(frozen=True)
class Scores:
    """The result of scoring, as in `scores.json`.

    Attributes:
        path: The file.
        state: State of the batch.
        verdicts: By case; one that could not be assessed was referred.
        actions: By case, what the policy does with it.
        quality: SHA-256 of the `quality.json` that assessed, which names the reward networks.
        segmenter: Hash of the one that made the masks; None where they came as files.
        masks: By case, hash of the mask that was assessed.
        mask_files: By case, its file, where one is known.
        predicted: By case and structure, predicted Dice; None where the mask lacks the structure. `correct` asks for
            none, and works where there are none.
        against_time: Frames that agree least with their neighbours in a clip that breaks a rule over time, whatever
            their own verdict.
    """

    path: Path
    state: State
    verdicts: Mapping[str, str]
    actions: Mapping[str, str]
    quality: str
    segmenter: str | None
    masks: Mapping[str, str]
    mask_files: Mapping[str, Path]
    predicted: Mapping[str, Mapping[str, float | None]]
    against_time: frozenset[str] = frozenset()

    @classmethod
    def read(cls, path: Path) -> Scores:
        """Reads the file.

        Raises:
            DataError: It is no such file, or of a newer version.
        """
        content = read_versioned_json(path, _FORMAT, _ADVICE)
        try:
            cases = content["cases"]
            verdicts = {_text(case["case_id"]): _text(case["verdict"]) for case in cases}
            actions = {_text(case["case_id"]): _action(case) for case in cases}
            problems = dict.fromkeys(dict(content["problems"]), "refer")
            if len(verdicts) < len(cases) or verdicts.keys() & problems.keys():
                raise ValueError("a case is there twice")
            if content["batch_state"] not in get_args(State) or not set(verdicts.values()) <= set(get_args(Verdict)):
                raise ValueError("it has a state or a verdict that is not known")
            if not set(actions.values()) <= set(get_args(Action)):
                raise ValueError("it has an action that is not known")
            return cls(
                path,
                content["batch_state"],
                {**verdicts, **problems},
                {**actions, **problems},
                _text(content["quality"]),
                None if content["segmenter"] is None else _text(content["segmenter"]),
                {_text(case["case_id"]): _text(case["mask"]) for case in cases},
                {_text(case["case_id"]): Path(_text(case["mask_file"])) for case in cases if case.get("mask_file")},
                {_text(case["case_id"]): _predicted(case) for case in cases},
                frozenset(
                    _text(clip["least_agreeing_frame"])
                    for clip in dict(content.get("clips", {})).values()
                    if clip["verdict"] == "correct" and clip["broken_over_time"]
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path}: not a scores.json of `medfm-rl score` ({error}); {_ADVICE}") from error

    def marked(self, files: Sequence[CaseFile]) -> list[CaseFile]:
        """Those that are to be corrected; of a clip that breaks a rule over time the least agreeing frame, too.

        Raises:
            DataError: One of them has no verdict.
        """
        missing = [file.case_id for file in files if file.case_id not in self.verdicts]
        if missing:
            raise DataError(
                f"{self.path}: has no score of {len(missing)} images, {missing[0]} for one; score these images, or "
                "take every case by --all"
            )
        return [file for file in files if self.actions[file.case_id] == "correct" or file.case_id in self.against_time]

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
