"""Each case for itself: what goes wrong with one leaves that one out, by name, and costs no other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import DataError, UserError
from medfm_rl.progress import Progress

_LOG = logging.getLogger(__name__)
OF_ONE_CASE = (OSError, ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError)
"""What the libraries that read, resample, segment and write an image raise because of what is in it, or where it is."""
T = TypeVar("T")


class UnforeseenError(DataError):
    """An error of one case that no check of ours has foreseen; its cause is the error itself."""


@contextmanager
def case_alone(case_id: str) -> Iterator[None]:
    """Makes an error of the block one of a case, that names it; where none of ours says it, the traceback is logged.

    Raises:
        UserError: As in the block.
        UnforeseenError: In place of another error of it.
    """
    try:
        yield
    except UserError:
        raise
    except OF_ONE_CASE as error:
        _LOG.warning("case %s is left out:", case_id, exc_info=error)
        found = f"{type(error).__name__}: {error}"
        raise UnforeseenError(f"case {case_id}: {found}; repair this image, or take it out") from error


def each_case(
    files: Sequence[CaseFile], handle: Callable[[CaseFile], T], stage: str, progress: Progress
) -> tuple[dict[str, T], dict[str, str]]:
    """Handles cases one by one.

    Why a case is left out is logged when it happens: a batch may run for hours. What is wrong with a clip is wrong with
    each of its frames, and is logged once.

    Where every one of them ends with an error that nothing has foreseen, it is not the cases that are at fault, and
    the first of these errors is raised.

    Args:
        files: The cases.
        handle: Does what is to be done with one.
        stage: Name of it, for the progress.
        progress: Told how far it is.

    Returns:
        By case: what came of it, and why nothing did.
    """
    results: dict[str, T] = {}
    problems: dict[str, str] = {}
    said: set[tuple[str, str]] = set()
    unforeseen: BaseException | None = None
    for done, file in enumerate(files, 1):
        try:
            with case_alone(file.case_id):
                results[file.case_id] = handle(file)
            unforeseen = None
        except UserError as error:
            first = not results and not problems
            if first or not isinstance(error, UnforeseenError):
                unforeseen = error.__cause__ if isinstance(error, UnforeseenError) else None
            whose = f"case {file.case_id}" if file.frame is None else f"clip {file.clip_id}"
            if not isinstance(error, UnforeseenError) and (whose, str(error)) not in said:
                said.add((whose, str(error)))
                _LOG.warning("left out: %s", error if file.case_id in str(error) else f"{whose}: {error}")
            problems[file.case_id] = str(error)
        progress(stage, done, len(files))
    if unforeseen is not None:
        raise unforeseen
    return results, problems
