from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.robustness import supervision
from benchmarks.robustness.children import kill_after, run
from benchmarks.robustness.contents import contents, differences
from benchmarks.robustness.every_kind import every_kind
from benchmarks.robustness.kind import ABORT, HANG, READ, REFUSED, SILENT, TRACEBACK, Kind, damage
from benchmarks.robustness.supervision import Job, judge_all
from medfm_rl.errors import DataError


def read(path: Path) -> Any:
    """Does what the file says."""
    match path.read_text():
        case "abort":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(60)
        case "raise":
            raise ValueError("raised")
        case "refuse":
            raise DataError(f"{path}: refused")
        case "refuse without a name":
            raise DataError("refused")
        case "memory":
            return len(bytes(range(256)) * 2**21) * 0
    return 0 if path.read_text() == "right" else 1


def kind(text: str) -> Kind:
    def make(folder: Path) -> Path:
        (folder / "a.txt").write_text(text)
        return folder / "a.txt"

    return Kind(text, make, (), read, lambda _: 0, lambda ours, theirs: "" if ours == theirs else "differs")


def test_each_way_to_fail_is_counted_and_costs_no_other_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "LIMIT_S", 3.0)
    words = ("right", "abort", "right", "hang", "raise", "refuse", "refuse without a name", "memory", "wrong", "right")
    found = list(judge_all([Job(kind(word), 0) for word in words], lambda *_: None))
    expected = (READ, ABORT, READ, HANG, TRACEBACK, REFUSED, TRACEBACK, HANG, SILENT, READ)
    assert [outcome.result for outcome in found] == list(expected)
    assert found[1].detail == "SIGKILL"


def test_an_input_is_the_same_each_time(tmp_path: Path) -> None:
    chosen = next(kind for kind in every_kind() if kind.name == "PNG image, L")
    for number in (0, 1, 7):
        twice = []
        for name in "ab":
            folder = tmp_path / f"{number}{name}"
            folder.mkdir()
            path, faults = damage(chosen, number, folder)
            twice.append((faults, path.read_bytes()))
        assert twice[0] == twice[1]


def test_the_names_of_kinds_are_distinct() -> None:
    names = [kind.name for kind in every_kind()]
    assert len(set(names)) == len(names) >= 30


def test_times_do_not_count_where_results_are_compared_and_everything_else_does(tmp_path: Path) -> None:
    def written(name: str, time: str, value: float) -> dict[str, str]:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a.json").write_text(json.dumps({"created": time, "value": value, "inner": [{"seconds": len(name)}]}))
        (folder / "a.csv").write_text(f"case,seconds,value\na,{len(name)},{value}\n")
        (folder / "report.html").write_text(f"<p>{time}: {value} in {len(name)}.5 s</p>")
        (folder / "audit.jsonl").write_text(name)
        return contents(folder)

    first = written("first", "2026-01-01T10:00:00+00:00", 1.0)
    assert differences(first, written("a second one", "2026-01-02T11:00:00+00:00", 1.0)) == []
    assert differences(first, written("third", "2026-01-01T10:00:00+00:00", 2.0)) == ["a.csv", "a.json", "report.html"]


def test_a_child_is_killed_at_its_moment_and_a_failed_one_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert kill_after(lambda: time.sleep(60), log, 0.2)
    assert not kill_after(lambda: None, log, 30)
    with pytest.raises(RuntimeError, match="ended with 1"):
        run(lambda: read(tmp_path / "missing"), log)
