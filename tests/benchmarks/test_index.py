"""The index of the benchmarks against the tree, the records and the documents."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.harness.recording import BENCHMARKS, RESULTS

ROOT = BENCHMARKS.parent
INDEX = (BENCHMARKS / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


class Row(NamedTuple):
    module: str
    measures: str
    result: str
    quoted: str
    time: str

    @property
    def name(self) -> str:
        """Of the result; empty where none is kept."""
        found = re.match(r"`([\w-]+)`", self.result)
        return found[1] if found else ""


def table(heading: str) -> list[list[str]]:
    """The rows below a heading of the index."""
    section = INDEX.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


ROWS = [Row(*cells) for cells in table("Index")]


def targets(cell: str) -> list[Path]:
    return [(BENCHMARKS / target).resolve() for target in re.findall(r"\]\(([^)]+)\)", cell)]


def is_benchmark(path: Path) -> bool:
    """Whether a module can be run."""
    tests = [node.test for node in ast.parse(path.read_text()).body if isinstance(node, ast.If)]
    return any(ast.unparse(test) == "__name__ == '__main__'" for test in tests)


def test_every_benchmark_is_listed_and_nothing_else() -> None:
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in BENCHMARKS.rglob("*.py")
        if is_benchmark(path)
    }
    assert len(modules) >= 9
    assert {row.module.strip("`") for row in ROWS} == modules


def test_every_file_of_the_results_is_listed_in_one_row() -> None:
    listed = [target for row in ROWS for target in targets(row.result)]
    assert sorted(listed) == sorted(path for path in RESULTS.iterdir() if "-quick." not in path.name)
    assert all({target.stem for target in targets(row.result)} <= {row.name} for row in ROWS)


def quoting(name: str) -> set[Path]:
    """Pages that name a file of a result."""
    return {page for page in PAGES if re.search(rf"results/{re.escape(name)}\.(md|json|png)", page.read_text())}


@pytest.mark.parametrize("row", [row for row in ROWS if row.name], ids=lambda row: row.name)
def test_the_places_that_quote_a_result_are_those_that_name_it(row: Row) -> None:
    places = set(targets(row.quoted))
    assert places
    assert places == quoting(row.name)


@pytest.mark.parametrize("row", [row for row in ROWS if row.name], ids=lambda row: row.name)
def test_a_result_names_the_keys_of_its_summary(row: Row) -> None:
    cells = dict(table("Summary of each JSON"))
    summary = json.loads((RESULTS / f"{row.name}.json").read_text())["summary"]
    assert re.findall(r"`([^`]+)`", cells[f"`{row.name}`"]) == list(summary)


def test_the_pages_name_only_modules_and_files_of_the_benchmarks_that_there_are() -> None:
    pages = [*PAGES, BENCHMARKS / "README.md"]
    modules = {name for page in pages for name in re.findall(r"\bbenchmarks(?:\.[a-z_0-9]+)+", page.read_text())}
    assert len(modules) >= 9
    assert [name for name in sorted(modules) if importlib.util.find_spec(name) is None] == []
    files = {name for page in PAGES for name in re.findall(r"\bbenchmarks/[\w/.-]+\w", page.read_text())}
    assert len(files) >= 10
    assert [name for name in sorted(files) if not (ROOT / name).exists()] == []
