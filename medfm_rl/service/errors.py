"""What the service refuses, with the status that a program sees and the remedy that a person reads."""

from __future__ import annotations

from medfm_rl.errors import UserError


class DeskError(UserError):
    """Something that the service does not do as it was asked.

    Attributes:
        status: Status of HTTP.
        code: For a program: a word that stays the same.
        message: What is wrong.
        remedy: What to do.
        after: Seconds after which it can be tried again; None where waiting does not help.
    """

    def __init__(self, status: int, code: str, message: str, remedy: str, after: int | None = None) -> None:
        super().__init__(f"{message}; {remedy}")
        self.status = status
        self.code = code
        self.message = message
        self.remedy = remedy
        self.after = after


def not_found(what: str, remedy: str = "reload the page: the queue may have changed") -> DeskError:
    """What to raise where something that was asked for is not there."""
    return DeskError(404, "not_found", f"there is no such {what}", remedy)


def in_parts(error: UserError) -> tuple[str, str]:
    """Fault and remedy of any error of ours, which its message has in this order."""
    if isinstance(error, DeskError):
        return error.message, error.remedy
    fault, _, remedy = str(error).partition("; ")
    return fault, remedy or "see the log of the service"
