"""Places of results and runs, and the writing of results: environment, JSON, and a table."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from medfm_rl.data.files import write_json

BENCHMARKS = Path(__file__).parents[1]
RESULTS = BENCHMARKS / "results"
RUNS = BENCHMARKS / "runs"
"""Data, models and cells, unless `--runs` says otherwise; no part of the repository."""
_PACKAGES = ("medfm-rl", "torch", "monai", "stable-baselines3", "gymnasium", "numpy", "scipy")


def quiet(stage: str, done: int, total: int) -> None:
    """Progress that says when a stage has ended, and nothing in between."""
    if done == total:
        print(f"  {stage}: {total}", flush=True)


def environment() -> dict[str, Any]:
    """Machine, versions and commit; where a copy of the project has no repository, MEDFM_RL_COMMIT says of which."""
    commit = _git("rev-parse", "HEAD")
    # Results that another benchmark has just written change nothing that runs.
    changed = _git("status", "--porcelain", "--", "../medfm_rl", ".", ":!results")
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}",
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
        "commit": commit.stdout.strip() or os.environ.get("MEDFM_RL_COMMIT", ""),
        # Nobody knows where there is no repository.
        "uncommitted_changes": bool(changed.stdout.strip()) if changed.returncode == 0 else None,
    }


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=BENCHMARKS)


def called_as() -> str:
    """The command that started this process, as a reader would type it."""
    module = sys.modules["__main__"].__spec__
    program = Path(sys.argv[0]).name if module is None else f"-m {module.name}"
    return " ".join(["python", program, *sys.argv[1:]])


def write_results(
    name: str, started_in: dict[str, Any], seeds: list[int], results: Any, summary: dict[str, Any], table: str
) -> None:
    """Writes `results/NAME.json` and `results/NAME.md`, and prints the table.

    Args:
        name: Of the results.
        started_in: `environment()` when the benchmark started: the code that ran, not what is there when it ends.
        seeds: Of the runs.
        results: Everything.
        summary: The figures that others quote.
        table: Markdown.
    """
    RESULTS.mkdir(exist_ok=True)
    content = {
        "environment": started_in,
        "command": called_as(),
        "seeds": seeds,
        "results": results,
        "summary": summary,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(table)
    print(json.dumps(content["environment"]))
    print(table)


def print_results(summary: Mapping[str, Any], table: str) -> None:
    """Shows the figures of a trial, which are not kept."""
    print(json.dumps(summary, indent=2))
    print(table)


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The part of a benchmark that a file holds; made unless the file is there. NaN is written as null."""
    if not path.exists():
        print(f"  {path.stem}", flush=True)
        write_json(path, json.loads(json.dumps(make()), parse_constant=lambda _: None))
    return dict(json.loads(path.read_text()))
