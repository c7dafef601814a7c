"""The options that benchmarks share, and what follows from them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.laboratory import TRIAL, Budget, Laboratory
from benchmarks.harness.recording import RUNS, environment
from benchmarks.harness.shifts import SHIFTS, prepare


def plain_parser(description: str | None, threads: int = 2) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes.

    Args:
        description: The docstring of the module.
        threads: Of torch, by default.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=threads, help="of torch")
    return parser


def add_runs(parser: argparse.ArgumentParser) -> None:
    """Lets the user choose the folder of what is made on the way."""
    parser.add_argument("--runs", type=Path, help="where data, models and cells are kept (default: in benchmarks/runs)")


def add_seeds(parser: argparse.ArgumentParser) -> None:
    """Lets the user choose the seeds."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])


def add_quick(parser: Any) -> None:
    """Lets the user try a benchmark out: every part runs, the figures mean nothing."""
    parser.add_argument("--quick", action="store_true", help="every part in minutes; the figures mean nothing")


def begin(arguments: argparse.Namespace) -> dict[str, Any]:
    """Sets the threads of torch; returns the environment that the benchmark starts in."""
    torch.set_num_threads(arguments.threads)
    return environment()


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser with what the benchmarks on the cells of the adaptation benchmark take.

    Args:
        description: The docstring of the module.
    """
    parser = plain_parser(description)
    add_runs(parser)
    add_seeds(parser)
    add_quick(parser)
    parser.add_argument("--report-only", action="store_true", help="make no cell")
    return parser


def begin_on_shifts(arguments: argparse.Namespace, name: str) -> tuple[str, Path, dict[str, Any]]:
    """Starts a benchmark with a parser of `parser_of`.

    Args:
        arguments: Of the command line.
        name: Of the benchmark.

    Returns:
        The name of its results, the folder of data, models and cells, and the environment that it starts in.
    """
    suffix = "-quick" if arguments.quick else ""
    runs: Path = arguments.runs or RUNS / f"adaptation{suffix}"
    return f"{name}{suffix}", runs, begin(arguments)


def add_shifts(parser: argparse.ArgumentParser) -> None:
    """Lets the user choose among the shifts."""
    parser.add_argument("--shifts", nargs="+", choices=list(SHIFTS), default=list(SHIFTS), metavar="SHIFT")


def add_results(parser: argparse.ArgumentParser) -> None:
    """Lets the user keep the results beside others."""
    parser.add_argument("--results", metavar="NAME", help="write them under another name, beside those that there are")


def each_laboratory(arguments: argparse.Namespace, runs: Path, started_in: dict[str, Any]) -> Iterator[Laboratory]:
    """The shifts and seeds that were asked for, seed by seed: a benchmark that is cut short has every shift.

    Args:
        arguments: Of `parser_of` and `add_shifts`.
        runs: Data, models and cells are kept below it.
        started_in: The environment that cells are made in.
    """
    budget = TRIAL if arguments.quick else Budget()
    for seed in arguments.seeds:
        for name in arguments.shifts:
            print(f"{name}, seed {seed}", flush=True)
            yield Laboratory(prepare(name, runs / "data", budget.most_patients), seed, runs, budget, started_in)
