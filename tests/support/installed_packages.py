"""Packages of other people, installed into a folder of their own for the length of a test."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from medfm_rl.settings import kinds

DOCS = Path(__file__).parents[2] / "docs" / "extending.md"


def write_documented_package(folder: Path) -> Path:
    """The files that `docs/extending.md` shows, each below its name."""
    text = DOCS.read_text(encoding="utf-8")
    found = re.findall(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    folder.mkdir(parents=True)
    for name, content in found:
        (folder / name).write_text(content, encoding="utf-8")
    return folder


def install(source: Path, target: Path) -> Path:
    """Installs a package as pip does, without network; returns the folder to put on the path."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-build-isolation", "--no-deps"]
    subprocess.run([*command, "--target", str(target), str(source)], check=True, capture_output=True)
    return target


def declare(target: Path, package: str, name: str, value: str, code: str = "") -> Path:
    """An installed package, by hand, that declares an entry point.

    Args:
        target: The folder to put on the path.
        package: Name of the package.
        name: Name of the kind.
        value: Where the entry point leads.
        code: Content of the module that is named like the package.
    """
    info = target / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{kinds.GROUP}]\n{name} = {value}\n")
    (target / f"{package}.py").write_text(code)
    return target
