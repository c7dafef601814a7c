"""Output of the commands, and the codes that they end with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import typer

from medfm_rl.progress import spoken_time

if TYPE_CHECKING:
    from medfm_rl.progress import Progress
    from medfm_rl.workflows.deploy.correction_outputs import Corrections
    from medfm_rl.workflows.deploy.scoring import Scoring

USER_MISTAKE = 2
REFERRED = 3
INTERRUPTED = 130
_SECONDS_BETWEEN_LINES = 30


class _Told(logging.Handler):
    """Shows what the package tells and warns of, by a function that prints a line."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__()
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show(self.format(record))


@contextmanager
def _telling(show: Callable[[str], None]) -> Iterator[None]:
    """Shows losses, scores and warnings as they come."""
    log, handler = logging.getLogger("medfm_rl"), _Told(show)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.setLevel(level)
        log.removeHandler(handler)


@contextmanager
def show_progress() -> Iterator[Progress]:
    """A bar per stage, on standard error; lines where that is a file, for jobs that nobody watches live."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        with _telling(lambda line: typer.echo(line, err=True)):
            yield _lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    tasks: dict[str, TaskID] = {}
    with (
        Progress(*columns, console=console) as bars,
        _telling(lambda line: console.print(line, markup=False, highlight=False)),
    ):

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            # A stage can come again, with more or less to do.
            bars.update(tasks[stage], completed=done, total=total)

        yield show


def _lines() -> Progress:
    """Tells of the first and the last step of a stage, of how far it is in between, and how long it will still take."""
    told: dict[str, float] = {}
    began: dict[str, tuple[float, int]] = {}

    def show(stage: str, done: int, total: int) -> None:
        now = monotonic()
        if stage not in told or done == total or now - told[stage] > _SECONDS_BETWEEN_LINES:
            started, before = began.setdefault(stage, (now, done))
            # A stage that comes again begins anew.
            if done < before:
                started, before = began[stage] = (now, done)
            told[stage] = now
            left = (total - done) * (now - started) / (done - before) if done > before else 0
            soon = f", about {spoken_time(left)} left" if left >= 1 else ""
            typer.echo(f"{stage}: {done} of {total}{soon}", err=True)

    return show


def print_comparison(rows: Any, title: str, names: tuple[str, str] = ("source", "adapted")) -> None:
    """Prints a table of two models by their names, structure by structure."""
    from rich.console import Console

    from medfm_rl.reports.tables import comparison_table

    Console().print(comparison_table(rows, title, names))


def print_scoring(scoring: Scoring) -> None:
    """Prints what is promised of a batch, how many masks have which verdict, and what the policy does with them."""
    batch = scoring.batch
    place = scoring.place
    if place is None:
        typer.echo(f"Batch: {batch.state}; {batch.meaning}")
    else:
        again = f", {place.repeated} masks were there already" if place.repeated else ""
        typer.echo(f"Stream {place.path}: {place.studies} studies, {place.added} of them new{again}; {batch.meaning}")
        typer.echo(f"An accept is at most {batch.guarantee}: {batch.evidence}")
    for promise in batch.promises:
        typer.echo(f"{promise} ({promise.reason})")
    counts = [f"{verdict} {scoring.count(verdict)}" for verdict in ("accept", "correct", "refer")]
    typer.echo(f"Verdict: {', '.join(counts)}")
    worth = {kind: scoring.accepted(kind) for kind in ("proven", "expected", "suspended")}
    if scoring.count("accept"):
        typer.echo("Accepted: " + ", ".join(f"{number} {kind}" for kind, number in worth.items() if number))
    typer.echo(
        f"Policy {scoring.scorer.policy.name}: "
        + ", ".join(f"{action} {scoring.acted(action)}" for action in ("use", "correct", "refer"))
    )
    if place is not None and place.drawn:
        typer.echo(f"Drawn for audit: {', '.join(sorted(place.drawn))}")


def print_corrections(corrections: Corrections, out: Path) -> None:
    """Prints what was corrected; ends with code 2 where a case could not be handled."""
    for problem in dict.fromkeys(corrections.problems.values()):
        typer.echo(f"Could not be handled: {problem}", err=True)
    typer.echo(
        f"{corrections.count('corrected')} corrected, {corrections.count('proposed')} proposed, "
        f"{corrections.count('referred')} referred with the original mask, {corrections.untouched} not taken, "
        f"{len(corrections.problems)} could not be handled"
    )
    if corrections.cut:
        cases = "case" if corrections.cut == 1 else "cases"
        typer.echo(
            f"The time budget ended early for {corrections.cut} {cases}: nothing is promised of them; repeat the "
            "command on a machine that is less busy, or with more time (--budget)"
        )
    typer.echo(f"Harm: {corrections.promise}")
    typer.echo(f"Corrections: {out / 'corrections.csv'}\nReport: {out / 'report.html'}\nMasks: {out / 'labels'}")
    if corrections.problems:
        raise typer.Exit(USER_MISTAKE)
