"""The verdict of each clip of a scored batch, from those of its frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from medfm_rl.workflows.deploy.clip_evidence import ClipEvidence
from medfm_rl.workflows.deploy.scoring import Scoring

CLIPS_FILE: Final = "clips.csv"
_WORST_FIRST = ("refer", "correct", "accept")
_COLUMNS = (
    *("clip_id", "patient_id", "frames", "accept", "correct", "refer", "verdict", "worst_frame", "predicted_dice"),
    *("lowest_agreement", "least_agreeing_frame", "broken_over_time", "doubts"),
)


@dataclass(frozen=True)
class ClipVerdict:
    """A clip in a scored batch.

    Attributes:
        clip_id: The clip.
        patient_id: Its patient.
        counts: Its frames by verdict; a frame that could not be assessed is referred.
        worst_frame: Case id of the frame that decides: of those with the worst verdict, that of the lowest predicted
            Dice, or one that could not be assessed.
        predicted_dice: Predicted mean Dice of that frame, or None.
        over_time: What time says of its masks; None where a frame or its mask is missing.
    """

    clip_id: str
    patient_id: str
    counts: Mapping[str, int]
    worst_frame: str
    predicted_dice: float | None
    over_time: ClipEvidence | None = None

    @property
    def verdict(self) -> str:
        """The worst of the verdicts of its frames, since a beat is measured in all of them.

        Frames that are accepted one by one and break a rule over time are to be corrected: one of them is wrong. A clip
        that shows no whole beat, or not one plane without a break, is referred: no mask mends that.
        """
        if self.over_time is not None and self.over_time.doubts:
            return "refer"
        worst = next(verdict for verdict in _WORST_FIRST if self.counts[verdict])
        return "correct" if worst == "accept" and self.over_time is not None and self.over_time.broken else worst

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, by the names of the table."""
        found = self.over_time
        return {
            "patient_id": self.patient_id,
            "frames": dict(self.counts),
            "verdict": self.verdict,
            "worst_frame": self.worst_frame,
            "predicted_dice": self.predicted_dice,
            "lowest_agreement": None if found is None else found.least[1],
            "least_agreeing_frame": None if found is None else found.least[0],
            "broken_over_time": [] if found is None else list(found.broken),
            "doubts": [] if found is None else list(found.doubts),
            "agreement": {} if found is None else dict(found.agreement),
        }


def clip_verdicts(scoring: Scoring) -> list[ClipVerdict]:
    """The verdict of each clip, in the order of the cases; nothing where no case is a frame."""
    if all(file.clip_id is None for file in scoring.files):
        return []
    found: dict[str, tuple[str, float | None]] = {
        report.case_id: (report.verdict, report.mean.predicted_dice) for report in scoring.batch.reports
    }
    found |= dict.fromkeys(scoring.unassessed, ("refer", None))
    frames: dict[str, list[str]] = {}
    for case_id, trace in scoring.traces.items():
        if trace.file.clip_id is not None and case_id in found:
            frames.setdefault(trace.file.clip_id, []).append(case_id)

    def badness(case_id: str) -> tuple[int, float]:
        verdict, dice = found[case_id]
        return _WORST_FIRST.index(verdict), -1.0 if dice is None else dice

    verdicts = []
    for clip_id, names in frames.items():
        counts = {verdict: sum(found[name][0] == verdict for name in names) for verdict in _WORST_FIRST}
        worst = min(names, key=badness)
        patient = scoring.traces[names[0]].file.patient_id
        verdicts.append(ClipVerdict(clip_id, patient, counts, worst, found[worst][1], scoring.over_time.get(clip_id)))
    return verdicts


def clip_table(scoring: Scoring) -> str | None:
    """A row for each clip, as CSV; None where no case is a frame of one."""
    verdicts = clip_verdicts(scoring)
    if not verdicts:
        return None
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    for clip in verdicts:
        writer.writerow(
            {
                "clip_id": clip.clip_id,
                "patient_id": clip.patient_id,
                "frames": sum(clip.counts.values()),
                **clip.counts,
                "verdict": clip.verdict,
                "worst_frame": clip.worst_frame,
                "predicted_dice": "" if clip.predicted_dice is None else clip.predicted_dice,
                **_over_time(clip.over_time),
            }
        )
    return text.getvalue()


def _over_time(evidence: ClipEvidence | None) -> dict[str, object]:
    if evidence is None:
        return {}
    frame, agreement = evidence.least
    return {
        "lowest_agreement": agreement,
        "least_agreeing_frame": frame,
        "broken_over_time": "; ".join(evidence.broken),
        "doubts": "; ".join(evidence.doubts),
    }
