"""What every benchmark writes: where it ran, its results as JSON, and a table beside it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("medfm-rl", "torch", "monai", "stable-baselines3", "gymnasium", "numpy", "scipy")


def quiet(stage: str, done: int, total: int) -> None:
    """Progress that says when a stage has ended, and nothing in between."""
    if done == total:
        print(f"  {stage}: {total}", flush=True)


def environment() -> dict[str, Any]:
    """Machine, versions and commit; where a copy of the project has no repository, MEDFM_RL_COMMIT says of which."""
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=RESULTS.parent
    )
    changed = subprocess.run(
        # Results that another benchmark has just written change nothing that runs.
        ["git", "status", "--porcelain", "--", "../medfm_rl", ".", ":!results"],
        capture_output=True,
        text=True,
        check=False,
        cwd=RESULTS.parent,
    )
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{gpu}",
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in _PACKAGES},
        "commit": commit.stdout.strip() or os.environ.get("MEDFM_RL_COMMIT", ""),
        # Nobody knows where there is no repository.
        "uncommitted_changes": bool(changed.stdout.strip()) if changed.returncode == 0 else None,
    }


def write_results(
    name: str, started_in: dict[str, Any], seeds: list[int], results: Any, summary: dict[str, Any], table: str
) -> None:
    """Writes `results/NAME.json` and `results/NAME.md`, and prints the table.

    Args:
        name: Of the benchmark.
        started_in: `environment()` when the benchmark started: the code that ran, not what is there when it ends.
        seeds: Of the runs.
        results: Everything.
        summary: The figures that others quote.
        table: Markdown.
    """
    RESULTS.mkdir(exist_ok=True)
    content = {
        "environment": started_in,
        "command": " ".join(["python", *sys.argv]),
        "seeds": seeds,
        "results": results,
        "summary": summary,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(table)
    print(json.dumps(content["environment"]))
    print(table)
