"""What reviewers and reports said of target cases: a store that is only added to, and the ways into and out of it."""

from medfm_rl.feedback.entries import (
    KINDS,
    CorrectedMask,
    Entry,
    Feedback,
    Grade,
    Measurement,
    Preference,
    Removal,
    Verdict,
)
from medfm_rl.feedback.errors import FeedbackError
from medfm_rl.feedback.masks import Mask
from medfm_rl.feedback.store import Added, FeedbackStore

__all__ = [
    "KINDS",
    "Added",
    "CorrectedMask",
    "Entry",
    "Feedback",
    "FeedbackError",
    "FeedbackStore",
    "Grade",
    "Mask",
    "Measurement",
    "Preference",
    "Removal",
    "Verdict",
]
