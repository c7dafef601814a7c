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
_OF_ONE_CASE = (OSError, ValueError, ArithmeticError, LookupError, RuntimeError, MemoryError)
"""What the libraries that read, resample and write an image raise because of what is in it, or where it lies."""
T = TypeVar("T")


@contextmanager
def case_alone(case_id: str) -> Iterator[None]:
    """Makes an error of the block one of a case, that names it; where none of ours says it, the traceback is logged.

    Raises:
        UserError: As in the block, or in place of another error of it.
    """
    try:
        yield
    except UserError:
        raise
    except _OF_ONE_CASE as error:
        _LOG.warning("case %s is left out:", case_id, exc_info=error)
        raise DataError(
            f"case {case_id}: {type(error).__name__}: {error}; leave out this image, or repair it"
        ) from error


def each_case(
    files: Sequence[CaseFile], handle: Callable[[CaseFile], T], stage: str, progress: Progress
) -> tuple[dict[str, T], dict[str, str]]:
    """Handles cases one by one.

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
    for done, file in enumerate(files, 1):
        try:
            with case_alone(file.case_id):
                results[file.case_id] = handle(file)
        except UserError as error:
            problems[file.case_id] = str(error)
        progress(stage, done, len(files))
    return results, problems
