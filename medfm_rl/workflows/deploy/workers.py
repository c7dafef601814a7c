"""Cases side by side: workers leave masks, maps and records, and the call goes through them as if it had been here.

A worker does for its cases what a repeated call would do, and adds nothing to tables or to the audit log. The call
itself goes through all cases in their order; it finds the records, says what was said of each, writes the rest, and
handles what no worker has. So there is one way to every result, and all is written in the order of one process.
"""

from __future__ import annotations

import logging
import platform
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from medfm_rl.data import notices
from medfm_rl.data.files import remove_abandoned, scratch_folder
from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import DataError
from medfm_rl.progress import Progress
from medfm_rl.runs.case_records import CaseRecords
from medfm_rl.version import __version__
from medfm_rl.workflows.deploy.worker import Order, Outcome, Piece, Place, WorkerError

if TYPE_CHECKING:
    from medfm_rl.workflows.deploy.ray_cluster import Cluster

_LOG = logging.getLogger(__name__)
_MOST_DEATHS = 3
"""Of workers over one case alone, before it is the case that is at fault."""
_MOST_DEATHS_TOGETHER = 2
"""Over several cases, before they are handed out one by one to find the one at fault: the first may have been chance,
and what is computed in other company differs in its last digits."""
_MOST_AT_ONCE = 16
"""Cases: more make the way to a worker and back no cheaper, for it takes about a millisecond."""
_PATIENCE = 180.0
"""Seconds without any worker after which it is said that none is there."""
_FULL_MEMORY = re.compile("running low on memory|OutOfMemory")
"""Words of Ray where it ends a worker before the system does."""
Stage = Literal["looking", "preparing", "working"]
Portion = tuple[Piece, ...]
"""What one worker handles at once."""


@dataclass
class _Worker:
    """A worker, and what it is doing.

    Attributes:
        handle: Of the cluster.
        place: Host and process, once it has said so.
        process: Its number, once it has said so, where it is on this machine.
        stage: What it was last told to do.
        crew: For whom.
        portion: What it is handling.
    """

    handle: Any
    place: str = "a worker"
    process: int | None = None
    stage: Stage = "looking"
    crew: Crew | None = None
    portion: Portion = ()


class Workers:
    """Processes that handle cases side by side, for one call after the other; they end with the block.

        with Workers("4") as workers:
            score(run, files, out, workers=workers)

    Args:
        where: How many on this machine, such as "4", or a Ray cluster, ray://HOST:PORT.
        device: Where their networks run: auto, cpu, cuda or mps. The model of the call itself may be on the CPU.

    Attributes:
        processes: Numbers of all that have started, by the machine that they are on; some may have ended.

    Raises:
        ConfigError: `where` is neither.
        MissingExtraError: Ray is not installed.
        WorkerError: No cluster answers.
    """

    def __init__(self, where: str, device: str = "auto") -> None:
        from medfm_rl.workflows.deploy.ray_cluster import Cluster

        self.device = device
        self.cluster: Cluster = Cluster(where, device)
        self.free: list[_Worker] = []
        self.starting: dict[Any, _Worker] = {}
        self.processes: list[int] = []

    @property
    def count(self) -> int:
        """How many there are to be."""
        return self.cluster.hire.count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in (*self.free, *self.starting.values()):
            self.cluster.kill(worker.handle)
        self.free.clear()
        self.starting.clear()
        self.cluster.close()


class Nobody:
    """In place of a crew where there are no workers: nothing is handed out, and nobody is waited for.

    Attributes:
        works: Whether somebody else handles what is handed out.
    """

    works = False

    def give(self, portions: Iterable[Portion]) -> None:
        """Hands out nothing."""

    def give_singly(self, files: Sequence[CaseFile], content_of: Callable[[CaseFile], Any] = lambda file: file) -> None:
        """Hands out nothing."""

    def wait_for(self, name: str) -> None:
        """Waits for nobody: the caller handles the piece."""


NOBODY: Final = Nobody()


class Crew:
    """Workers at the work of one call.

    Args:
        workers: The workers.
        order: The work.
        maker: Hashes of what makes the results here.
        place: What they have to see.
        records: Where they leave what they made.
        progress: Told how many have started.
    """

    works = True

    def __init__(
        self,
        workers: Workers,
        order: Order,
        maker: Mapping[str, Any],
        place: Place,
        records: CaseRecords,
        progress: Progress,
    ) -> None:
        self._workers = workers
        self._cluster = workers.cluster
        self._order = (order, dict(maker), place, workers.device)
        self._records = records
        self._progress = progress
        self._open: deque[Portion] = deque()
        self._pending: dict[Any, _Worker] = {}
        self._idle: list[_Worker] = []
        self._outcomes: dict[str, Outcome] = {}
        self._cases: dict[str, tuple[str, ...]] = {}
        self._deaths: Counter[tuple[str, ...]] = Counter()
        self._deaths_in_a_row = 0
        self._ready = 0
        self.lost = False

    def give(self, portions: Iterable[Portion]) -> None:
        """Hands out work; what was handed out before goes on."""
        for portion in portions:
            self._open.append(portion)
            self._cases |= {piece.name: piece.cases for piece in portion}
        self._employ()

    def give_singly(self, files: Sequence[CaseFile], content_of: Callable[[CaseFile], Any] = lambda file: file) -> None:
        """Hands out cases that are handled one by one, so few at once that no worker waits long for the last.

        Args:
            files: The cases.
            content_of: What the task takes of each.
        """
        size = max(1, min(_MOST_AT_ONCE, len(files) // (8 * self._workers.count)))
        pieces = [Piece(file.case_id, content_of(file), (file.case_id,)) for file in files]
        self.give([tuple(pieces[start : start + size]) for start in range(0, len(pieces), size)])

    def wait_for(self, name: str) -> Any:
        """Waits until a piece has been handled, and says what was said of it meanwhile.

        Returns:
            What the worker said besides.

        Raises:
            UserError: It could not be handled, as where it had been handled here; or there are no workers.
        """
        cases = self._cases.pop(name)
        self._turn(0)
        while name not in self._outcomes:
            if not self._turn(_PATIENCE) and not self._ready:
                _LOG.warning("no worker has started in %.0f s: is %s busy?", _PATIENCE, self._cluster.name)
        outcome = self._outcomes.pop(name)
        for told in outcome.told:
            if told.logger == notices.__name__:
                notices.warn_once(told.message)
            else:
                logging.getLogger(told.logger).log(told.level, "%s", told.message)
        if outcome.error is not None:
            raise outcome.error from outcome.cause
        if outcome.said is None and not all(map(self._records.is_complete, cases)):
            _LOG.warning(
                "case %s: a worker has handled it, and what it made is not to be seen here (a slow network drive?): it "
                "is handled again",
                name,
            )
        return outcome.said

    def end(self) -> None:
        """Lets the workers go; those that are still handling something are ended, and write nothing more."""
        for pending, worker in self._pending.items():
            if worker.stage == "working":
                self._cluster.kill(worker.handle, pending, worker.process)
                self.lost = True
            else:
                self._workers.starting[pending] = worker
        self._workers.free += self._idle
        self._pending, self._idle = {}, []

    def _employ(self) -> None:
        """Takes as many workers as there is work for, those first that are there already."""
        while self._idle and self._open:
            self._hand_over(self._idle.pop())
        wanted = min(self._workers.count, len(self._open) + len(self._pending))
        if wanted and self._ready == 0:
            self._progress("starting workers", 0, wanted)
        while len(self._pending) + len(self._idle) < wanted:
            if self._workers.free:
                self._prepare(self._workers.free.pop())
            elif self._workers.starting:
                pending, worker = self._workers.starting.popitem()
                self._pending[pending] = worker
            else:
                worker = _Worker(self._cluster.start_worker())
                self._pending[worker.handle.look.remote(self._cluster.hire.threads)] = worker

    def _prepare(self, worker: _Worker) -> None:
        worker.stage, worker.crew, worker.portion = "preparing", self, ()
        self._pending[worker.handle.prepare.remote(*self._order)] = worker

    def _hand_over(self, worker: _Worker) -> None:
        worker.stage, worker.portion = "working", self._open.popleft()
        self._pending[worker.handle.handle.remote(worker.portion)] = worker

    def _turn(self, seconds: float) -> bool:
        """Takes the answers that are there, and hands out what is next; says whether there was one."""
        ready = self._cluster.wait(list(self._pending), seconds) if self._pending else []
        for pending in ready:
            from medfm_rl.workflows.deploy.ray_cluster import WorkerDiedError

            worker = self._pending.pop(pending)
            try:
                answer = self._cluster.answer(pending)
            except WorkerDiedError as error:
                self._bury(worker, str(error))
                continue
            self._go_on(worker, answer)
        return bool(ready)

    def _go_on(self, worker: _Worker, answer: Any) -> None:
        if worker.stage == "looking":
            worker.place = f"the worker on {answer['host']} (process {answer['pid']})"
            worker.process = answer["pid"] if answer["host"] == platform.node() else None
            self._workers.processes.append(answer["pid"])
            require_same_version(worker.place, answer)
        if worker.crew is not self:
            self._prepare(worker)
            return
        if worker.stage == "preparing":
            if answer is not None:
                raise WorkerError(f"{worker.place}: {answer}")
            self._ready += 1
            self._progress("starting workers", self._ready, max(self._ready, len(self._pending) + len(self._idle) + 1))
        else:
            self._deaths_in_a_row = 0
            self._outcomes |= answer
        if self._open:
            self._hand_over(worker)
        else:
            self._idle.append(worker)

    def _bury(self, worker: _Worker, reason: str) -> None:
        """Takes note of a worker that died, and has another one do what it had begun."""
        self.lost = True
        self._cluster.await_end(worker.process)
        self._deaths_in_a_row += 1
        memory = "; the memory of its machine was full" if _FULL_MEMORY.search(reason) else ""
        if self._deaths_in_a_row > (_MOST_DEATHS + _MOST_DEATHS_TOGETHER) * self._workers.count:
            raise WorkerError(
                f"{worker.place} died{memory}, as {self._deaths_in_a_row - 1} had before without a case handled in "
                f"between; give fewer workers, or leave out --workers. The last words: {reason}"
            )
        names = tuple(piece.name for piece in worker.portion)
        _LOG.warning("%s died%s%s", worker.place, f" over {', '.join(names)}" if names else "", memory)
        if names:
            self._deaths[names] += 1
            self._hand_out_again(worker.portion, self._deaths[names], memory)
        self._employ()

    def _hand_out_again(self, portion: Portion, deaths: int, memory: str) -> None:
        """Hands out again what so many workers died over: together first, then one by one, then no more."""
        if len(portion) > 1 and deaths == _MOST_DEATHS_TOGETHER:
            self._open.extendleft((piece,) for piece in reversed(portion))
        elif len(portion) == 1 and deaths == _MOST_DEATHS:
            name = portion[0].name
            self._outcomes[name] = Outcome(error=_deadly(name, memory))
            # What is wrong has a name now: the next case has all of its tries.
            self._deaths_in_a_row = 0
        else:
            self._open.appendleft(portion)


@contextmanager
def at_work(
    workers: Workers | None,
    order: Order | None,
    maker: Mapping[str, Any],
    seen: Sequence[Path],
    records: CaseRecords,
    progress: Progress,
) -> Iterator[Crew | Nobody]:
    """Has workers ready for the work of a call, as long as the block runs.

    The caller keeps others out of the output folder. Whatever ends the block, no worker of this machine writes there
    afterwards, and nothing half lies there. What one of another machine had begun goes with the next call.

    Args:
        workers: The workers; None: there are none.
        order: The work; None where there are none.
        maker: Hashes of what makes the results here, as JSON values.
        seen: Files and folders that they have to see.
        records: Where they leave what they made.
        progress: Told how many have started.

    Raises:
        WorkerError: They have another version, do not see the files, or die.
    """
    if workers is None or order is None:
        yield NOBODY
        return
    crew: Crew | None = None
    try:
        with scratch_folder(records.out, "workers") as token:
            crew = Crew(workers, order, maker, Place(Path.cwd(), token, tuple(seen)), records, progress)
            try:
                yield crew
            finally:
                crew.end()
    finally:
        if crew is not None and crew.lost:
            remove_abandoned(records.out)


def seen_by_all(files: Sequence[CaseFile], *others: Path | None) -> list[Path]:
    """What workers have to see of the inputs of a call: the first image and the last, and other files or folders.

    Whether they see each of the others shows when they read it.
    """
    ends = [path for file in (files[0], files[-1]) for path in file.image_paths if path.exists()]
    return [*ends, *(path for path in others if path is not None)]


def require_same_version(place: str, found: Mapping[str, Any]) -> None:
    """Refuses a worker that has another version of medfm-rl, or none.

    Args:
        place: Names the worker.
        found: What it said of itself.

    Raises:
        WorkerError: It is so.
    """
    if found["medfm_rl"] == __version__:
        return
    problem = f" ({found['problem']})" if found.get("problem") else ""
    has = f"medfm-rl {found['medfm_rl']}" if found["medfm_rl"] else f"no medfm-rl of this version{problem}"
    raise WorkerError(f"{place}: has {has}, and here is {__version__}; install {__version__} there")


def _deadly(name: str, memory: str) -> DataError:
    return DataError(
        f"case {name}: {_MOST_DEATHS} workers died over it, one after the other{memory}; repair this image, or take it "
        "out, or give fewer workers, which have more memory each"
    )
