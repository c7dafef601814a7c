"""What goes wrong with feedback."""

from __future__ import annotations

from medfm_rl.errors import StorageError, UserError


class FeedbackError(UserError):
    """Feedback that cannot be used, or a store that does not take or give it; the message names the entry."""


class StoreError(FeedbackError, StorageError):
    """A store that takes and gives nothing at the moment: a full disk, or a database that went away."""
