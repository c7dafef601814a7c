"""The side of a worker: it loads what an order names, handles cases, and gives back what was said of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from medfm_rl.data.each_case import case_alone
from medfm_rl.errors import UserError


class WorkerError(UserError):
    """Workers that cannot be had, or cannot do the work; the message says where and what to do."""


class Task(Protocol):
    """Handles cases in a worker as a repeated call of one process would, with records and without the audit log."""

    @property
    def maker(self) -> Mapping[str, Any]:
        """Hashes of what makes the results, as JSON values: those of the call that is served have to be equal."""

    def take(self, content: Any) -> None:
        """Handles a case, or keeps it for `finish`.

        Raises:
            UserError: It cannot be handled.
        """

    def finish(self) -> Mapping[str, Any]:
        """Handles what was kept; gives by case what the call is to know besides the record."""


class Order(Protocol):
    """The work of a call, as it is sent to workers."""

    def load(self, device: str) -> Task:
        """Loads what the work needs.

        Raises:
            UserError: It cannot be loaded.
        """


@dataclass(frozen=True)
class Piece:
    """What is handled in one go: a case, or a clip.

    Attributes:
        name: By which the call asks for it.
        content: What the task takes.
        cases: Those of which it leaves records.
    """

    name: str
    content: Any
    cases: tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """The files that a worker has to see as the call sees them.

    Attributes:
        folder: The working folder of the call, from which relative paths count.
        token: A folder that is there as long as the call waits for its workers, and keeps others out.
        seen: Files and folders that are there.
    """

    folder: Path
    token: Path
    seen: tuple[Path, ...]

    def missing(self) -> Path | None:
        """One that is not there."""
        if self.folder.is_dir():
            os.chdir(self.folder)
        return next((path for path in (self.token, *self.seen) if not path.exists()), None)


@dataclass(frozen=True)
class Told:
    """A line that was logged, with its traceback."""

    logger: str
    level: int
    message: str


@dataclass(frozen=True)
class Outcome:
    """What came of a piece; where there is no error, records say it.

    Attributes:
        told: What was logged meanwhile.
        error: Why it could not be handled.
        cause: What had caused that, where no check of ours had foreseen it.
        said: What the call is to know besides.
    """

    told: tuple[Told, ...] = ()
    error: UserError | None = None
    cause: BaseException | None = None
    said: Any = None


class Servant:
    """A worker's process: does the work of one call after the other."""

    def __init__(self) -> None:
        self._task: Task | None = None
        self._place: Place | None = None

    def prepare(self, order: Order, maker: Mapping[str, Any], place: Place, device: str) -> str | None:
        """Loads what a call needs; says why that is not possible."""
        self._task, self._place = None, place
        missing = place.missing()
        if missing is not None:
            return (
                f"does not see {missing}; images, models and output have to lie on a drive that all machines mount in "
                "the same place"
            )
        try:
            task = order.load(device)
        except UserError as error:
            return str(error)
        if task.maker != maker:
            differing = sorted(name for name in maker if task.maker.get(name) != maker[name])
            return (
                f"has loaded other networks or settings than are here ({', '.join(differing)}); mount the same file "
                "system there, and install the same packages"
            )
        self._task = task
        return None

    def handle(self, pieces: Sequence[Piece]) -> dict[str, Outcome]:
        """Handles pieces in their order."""
        assert self._task is not None
        assert self._place is not None
        outcomes = {}
        for piece in pieces:
            if not self._place.token.exists():
                raise WorkerError("the call that this worker serves has ended, and others may be writing where it was")
            with _listening() as told:
                outcomes[piece.name] = self._take(piece, told)
        with _listening() as told:
            said = self._task.finish()
        last = pieces[-1].name
        for name, outcome in outcomes.items():
            more = tuple(told) if name == last else ()
            outcomes[name] = Outcome((*outcome.told, *more), outcome.error, outcome.cause, said.get(name))
        return outcomes

    def _take(self, piece: Piece, told: list[Told]) -> Outcome:
        assert self._task is not None
        try:
            with case_alone(piece.name):
                self._task.take(piece.content)
        except UserError as error:
            cause = error.__cause__
            return Outcome(tuple(told), error, cause if cause is None or _travels(cause) else RuntimeError(repr(cause)))
        return Outcome(tuple(told))


class _Listener(logging.Handler):
    def __init__(self, told: list[Told]) -> None:
        super().__init__()
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        self._told.append(Told(record.name, record.levelno, self.format(record)))


@contextmanager
def _listening() -> Iterator[list[Told]]:
    """Gives a list that takes up what the package logs in the block; nothing of it goes anywhere else."""
    told: list[Told] = []
    log, listener = logging.getLogger("medfm_rl"), _Listener(told)
    level, passed_on = log.level, log.propagate
    log.addHandler(listener)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield told
    finally:
        log.propagate = passed_on
        log.setLevel(level)
        log.removeHandler(listener)


def _travels(error: BaseException) -> bool:
    """Whether an error is surely the same after it was sent to another process: Python's own, with plain words."""
    plain = (str, bytes, int, float, type(None))
    return type(error).__module__ == "builtins" and all(isinstance(each, plain) for each in error.args)
