"""What goes wrong with feedback."""

from __future__ import annotations

from medfm_rl.errors import UserError


class FeedbackError(UserError):
    """Feedback that cannot be used, or a store that does not take or give it; the message names the entry."""
