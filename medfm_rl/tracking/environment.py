"""Versions that a result depends on, and what MLflow may tell others of this machine: nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import medfm_rl

_PACKAGES = ("medfm-rl", "torch", "monai", "stable-baselines3", "gymnasium", "numpy", "SimpleITK", "mlflow")


def stay_quiet() -> None:
    """Keeps MLflow from sending usage statistics; to be called before it is imported."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")


def environment() -> dict[str, str]:
    """Versions of the packages that make a result, of Python, and the commit of this package where it is a checkout."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    versions["python"] = platform.python_version()
    versions["git_commit"] = _git_commit()
    return versions


def _git_commit() -> str:
    """The commit that this package runs from, and not that of whatever repository somebody works in."""
    root = Path(medfm_rl.__file__).resolve().parents[1]
    # Git also looks in the folders above: an installed package may lie within a checkout of something else.
    if not (root / ".git").exists():
        return "not a checkout"
    # A hook of another repository calls with variables that name that repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            timeout=5,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return found.stdout.strip() or "unknown"
