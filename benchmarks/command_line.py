"""What the benchmarks on the shifts ask on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from recording import environment
from shifts import SHIFTS, Shift, prepare


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser with what all of these benchmarks take.

    Args:
        description: The docstring of the script.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, help="where data, models and cells are kept; those of adaptation.py")
    parser.add_argument("--report-only", action="store_true", help="make no cell")
    parser.add_argument("--quick", action="store_true", help="budgets of a trial; other folder and results")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    return parser


def begin(arguments: argparse.Namespace, name: str) -> tuple[str, Path, dict[str, Any]]:
    """Sets the threads of torch.

    Args:
        arguments: Of `parser_of`.
        name: Of the benchmark.

    Returns:
        The name of its results, the folder of data, models and cells, and the environment that it starts in.
    """
    torch.set_num_threads(arguments.threads)
    suffix = "-quick" if arguments.quick else ""
    runs: Path = arguments.runs or Path(__file__).parent / "runs" / f"adaptation{suffix}"
    return f"{name}{suffix}", runs, environment()


def add_shifts(parser: argparse.ArgumentParser) -> None:
    """Lets the user choose among the shifts."""
    parser.add_argument("--shifts", nargs="+", choices=list(SHIFTS), default=list(SHIFTS), metavar="SHIFT")


def add_results(parser: argparse.ArgumentParser) -> None:
    """Lets the user keep the results beside others."""
    parser.add_argument("--results", metavar="NAME", help="write them under another name, beside those that there are")


def each_shift(arguments: argparse.Namespace, runs: Path, most_patients: int | None) -> Iterator[tuple[Shift, int]]:
    """The shifts and seeds that were asked for, seed by seed: a benchmark that is cut short has every shift.

    Args:
        arguments: Of `parser_of` and `add_shifts`.
        runs: Their images are written below it.
        most_patients: Cuts every part of a shift, for trials.
    """
    for seed in arguments.seeds:
        for name in arguments.shifts:
            print(f"{name}, seed {seed}", flush=True)
            yield prepare(name, runs / "data", most_patients), seed
