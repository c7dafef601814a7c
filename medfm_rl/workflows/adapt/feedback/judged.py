"""Verdicts, grades and preferences on masks of the target, as a run keeps them: by case and hash of the mask."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from medfm_rl.data.layouts import CaseFile
from medfm_rl.feedback import Feedback, Grade, Preference, Verdict
from medfm_rl.feedback.entries import BEST_GRADE
from medfm_rl.runs.learned_feedback import JudgedCase, PreferredCase
from medfm_rl.settings import FeedbackSettings

_ORDER: Final = ("case_id", "mask", "better", "worse", "structure", "scale", "value")


def judged_cases(
    entries: Iterable[Feedback], case_of: Mapping[str, CaseFile], settings: FeedbackSettings
) -> tuple[JudgedCase, ...]:
    """Verdicts and grades that teach, those of every reviewer.

    Acceptances are among the verdicts: where a reviewer draws the line is seen from both of its sides.

    Args:
        entries: Of the target.
        case_of: Cases by the hash of their image.
        settings: What is learned, and how far it is trusted.
    """
    found = []
    for entry in entries:
        if entry.image_sha256 is None:
            continue
        file = case_of[entry.image_sha256]
        where = (file.case_id, file.patient_id)
        if isinstance(entry, Verdict) and "verdicts" in settings.kinds:
            value = float(entry.decision == "accept")
            found.append(
                JudgedCase(*where, entry.mask_sha256, entry.structure, "verdict", value, settings.verdict_trust)
            )
        elif isinstance(entry, Grade) and "grades" in settings.kinds:
            value = entry.grade / BEST_GRADE
            found.append(JudgedCase(*where, entry.mask_sha256, entry.structure, "grade", value, settings.grade_trust))
    return tuple(sorted(found, key=_place))


def preferred_cases(
    entries: Iterable[Feedback], case_of: Mapping[str, CaseFile], settings: FeedbackSettings
) -> tuple[PreferredCase, ...]:
    """Preferences that teach, those of every reviewer; the arguments are those of `judged_cases`."""
    found = []
    for entry in entries:
        if isinstance(entry, Preference) and entry.image_sha256 is not None and "preferences" in settings.kinds:
            file = case_of[entry.image_sha256]
            pair = (entry.better_sha256, entry.worse_sha256)
            found.append(
                PreferredCase(file.case_id, file.patient_id, *pair, entry.structure, settings.preference_trust)
            )
    return tuple(sorted(found, key=_place))


def _place(case: JudgedCase | PreferredCase) -> tuple[str, ...]:
    """An order that does not depend on when something was said."""
    return tuple(str(getattr(case, name, "")) for name in _ORDER)
