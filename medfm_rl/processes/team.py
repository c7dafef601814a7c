"""The processes that share a run: each has its part of a batch, a list or a sum, and all come to the same result.

Every process draws the same random numbers for the whole of a batch and works on its own rows of it, so that nothing
depends on how many there are but the order in which numbers are added. The first one, the leader, writes the run.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, TypeVar, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from medfm_rl.errors import ProcessesError

Item = TypeVar("Item")
Result = TypeVar("Result")
LONGEST_WAIT: Final = timedelta(days=2)
"""While one process works alone. One that ends is noticed at once, by its connection."""
LONGEST_STEP: Final = timedelta(minutes=30)
"""Of a sum of gradients, for which all are at the same step."""
_PACKAGE: Final = logging.getLogger("medfm_rl")


@final
class Team:
    """The processes that share a run, as one of them sees them. A team of one does nothing that costs anything.

    What all call together, all have to call in the same order: everything but `rows` and `deal`.

    Args:
        members: Numbers of the processes in the whole of them; this one's place among them is its `rank`.
        rank: Place of this process, counted from 0.
        talk: Group in which objects are passed on; None for a team of one.
        sums: Group in which tensors are added; None for a team of one.
        supervised: Whether somebody else says so when a process has ended.

    Attributes:
        size: How many there are.
    """

    def __init__(
        self,
        members: Sequence[int] = (0,),
        rank: int = 0,
        talk: dist.ProcessGroup | None = None,
        sums: dist.ProcessGroup | None = None,
        supervised: bool = False,
    ) -> None:
        self.members = tuple(members)
        self.rank = rank
        self.size = len(self.members)
        self._talk = talk
        self._sums = sums
        self._supervised = supervised

    @property
    def leads(self) -> bool:
        """Whether this process writes what all have made."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """Which of so many rows this process works on; none where there are fewer rows than processes."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def deal(self, items: Sequence[Item]) -> Sequence[Item]:
        """Which of the items this process works on, one after the other."""
        return items if self.size == 1 else items[self.rank :: self.size]

    def interleave(self, made: Iterable[Result], count: int) -> Iterator[Result]:
        """What all have made of items that were dealt, in the order of the items; few of them are in memory at once.

        Args:
            made: What this process makes of its items, in their order.
            count: How many items there are for all.
        """
        if self.size == 1:
            yield from made
            return
        own = iter(made)
        for start in range(0, count, self.size):
            those = min(self.size, count - start)
            found: list[Any] = self.gather(next(own) if self.rank < those else None)
            yield from found[:those]

    def share_out(self, items: Sequence[Item], work: Callable[[Item], Result]) -> Iterator[Result]:
        """What `work` makes of each item, in their order, each in one of the processes; to be taken to the end.

        What it tells the log there, the leader's log tells afterwards.
        """
        if self.size == 1:
            yield from map(work, items)
            return
        with _listening(not self.leads) as told:
            made = [work(item) for item in self.deal(items)]
        for rank, lines in enumerate(self.gather(told)):
            for name, level, message in lines if self.leads else ():
                logging.getLogger(name).log(level, "process %d: %s", rank + 1, message)
        yield from self.interleave(made, len(items))

    def gather(self, value: Result) -> list[Result]:
        """The values of all processes."""
        if self._talk is None:
            return [value]
        found: list[Any] = [None] * self.size
        with self._reaching():
            dist.all_gather_object(found, value, group=self._talk)
        return found

    def from_leader(self, make: Callable[[], Result]) -> Result:
        """What the leader makes; the others wait for it, however long it takes."""
        if self._talk is None:
            return make()
        made: list[Any] = [make() if self.leads else None]
        with self._reaching():
            dist.broadcast_object_list(made, src=self.members[0], group=self._talk, device=torch.device("cpu"))
        result: Result = made[0]
        return result

    def wait(self) -> None:
        """Waits until all have come here."""
        self.gather(None)

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes; to the last bit the same in each."""
        if self._sums is None:
            return value
        total = value.detach().clone()
        with self._reaching():
            dist.all_reduce(total, group=self._sums)
        return total

    def sum_gradients(self, parameters: Iterable[Parameter]) -> None:
        """Replaces the gradients by their sums over all processes, some of which may have none."""
        if self._sums is None:
            return
        kinds: dict[torch.dtype, list[Parameter]] = {}
        for parameter in parameters:
            kinds.setdefault(parameter.dtype, []).append(parameter)
        for those in kinds.values():
            # A parameter without a gradient in all of them must stay without: an optimiser would move it by its decay.
            there = those[0].new_tensor([float(parameter.grad is not None) for parameter in those])
            found = [torch.zeros_like(one) if one.grad is None else one.grad for one in those]
            total = self.sum(torch.cat([there, *(gradient.detach().reshape(-1) for gradient in found)]))
            counts, *sums = total.split([len(those), *(one.numel() for one in those)])
            for one, gradient, count in zip(those, sums, counts.tolist(), strict=True):
                one.grad = gradient.view_as(one) if count > 0 else None

    def crew(self, works: int) -> tuple[Sequence[int], Team]:
        """Which of so many pieces of work this process has a part in, and the team that it does them in.

        With more processes than pieces several share one; otherwise each does its pieces alone. A crew has no crews.
        """
        if self.size <= works or self._talk is None or self._sums is None:
            return self.deal(range(works)), ALONE if self.size > 1 else self
        own, crew = self.rank % works, self
        with self._reaching():
            for work in range(works):
                members = self.members[work::works]
                talk = dist.new_group(list(members), LONGEST_WAIT, dist.get_backend(self._talk))
                sums = dist.new_group(list(members), LONGEST_STEP, dist.get_backend(self._sums))
                if work == own:
                    # Who is no member of a group gets a number in its place.
                    assert not isinstance(talk, int)
                    assert not isinstance(sums, int)
                    crew = Team(members, self.rank // works, talk, sums, self._supervised)
        return [own], crew

    def require_same(self, facts: Mapping[str, str], place: str, remedy: str) -> None:
        """Compares what each process knows.

        Args:
            facts: By what it is called in the message.
            place: Where this process is.
            remedy: What to do about a difference.

        Raises:
            ProcessesError: They differ; the message says what and where. Every process raises it, and one shows it.
        """
        found = self.gather((place, dict(facts)))
        first, expected = found[0]
        for rank, (where, said) in enumerate(found):
            names = sorted({*expected, *said})
            differences = [
                f"{name} is {said.get(name, 'missing')} and not {expected.get(name, 'missing')}"
                for name in names
                if said.get(name) != expected.get(name)
            ]
            if differences:
                raise ProcessesError(
                    f"process {rank + 1} of {self.size} ({where}) is at other work than process 1 ({first}): "
                    f"{'; '.join(differences)}; {remedy}",
                    shown_elsewhere=not self.leads,
                )

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        """Turns what PyTorch says of a process that has gone into an error that says what to do."""
        try:
            yield
        except RuntimeError as error:
            raise ProcessesError(
                f"process {self.rank + 1} of {self.size} waited for another one, which has ended or does not answer "
                f"({str(error).splitlines()[0][:200]}): its own message says why. What was finished is kept: run the "
                "same command again (adapt: with --resume)",
                shown_elsewhere=self._supervised or not self.leads,
            ) from error


ALONE: Final = Team()
"""The team of a process that works alone."""

_Told = list[tuple[str, int, str]]


class _Listener(logging.Handler):
    """Keeps what is logged: of what, how grave, and the message."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.told: _Told = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append((record.name, record.levelno, record.getMessage()))


@contextmanager
def _listening(wanted: bool) -> Iterator[_Told]:
    """What the package tells within the block, for another process to tell; nothing where that is not wanted."""
    if not wanted:
        yield []
        return
    listener, level = _Listener(), _PACKAGE.level
    _PACKAGE.addHandler(listener)
    _PACKAGE.setLevel(logging.INFO)
    try:
        yield listener.told
    finally:
        _PACKAGE.setLevel(level)
        _PACKAGE.removeHandler(listener)
