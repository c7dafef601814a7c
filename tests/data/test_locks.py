"""Any number of processes at once on one folder or log: each works, or says at once that another does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medfm_rl.data.files import append_lines, remove_abandoned, replace_folder_on_success, replace_on_success
from medfm_rl.data.locks import LOCK, alone_in, alone_making, is_unused
from medfm_rl.errors import DataError

HOLD = (
    "import sys; from pathlib import Path; from medfm_rl.data.locks import *\n"
    "with globals()[sys.argv[2]](Path(sys.argv[1])):\n"
    "    print('held', flush=True); sys.stdin.read()\n"
)
APPEND = (
    "import sys; from pathlib import Path; from medfm_rl.data.files import append_lines\n"
    "for step in range(int(sys.argv[3])):\n"
    "    append_lines(Path(sys.argv[1]), [{'of': sys.argv[2], 'step': step, 'filling': 'x' * 5000}] * 2)\n"
    "    print(step, flush=True)\n"
)


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("way", [alone_in, alone_making])
def test_who_comes_second_is_told_who_is_at_work_and_a_killed_process_leaves_no_lock(tmp_path: Path, way) -> None:
    folder = tmp_path / "run"
    with python(HOLD, folder, way.__name__) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(DataError, match=rf"run: another process is at work here \(process {other.pid} on .+, since"),
            way(folder),
        ):
            pytest.fail("the block must not start")
        other.kill()
    with way(folder):
        pass


def test_a_folder_can_be_asked_for_again_within_and_is_free_afterwards(tmp_path: Path) -> None:
    with alone_in(tmp_path), alone_in(tmp_path):
        (tmp_path / "result").write_text("")
    with python(HOLD, tmp_path, "alone_in") as other:
        assert other.communicate("")[0] == "held\n"


def test_a_call_that_fails_before_it_writes_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stopped"), alone_in(tmp_path / "out"):
        raise ValueError("stopped")
    assert not (tmp_path / "out").exists()
    with alone_in(tmp_path):
        assert is_unused(tmp_path)
    assert is_unused(tmp_path)
    with alone_in(tmp_path / "kept"):
        (tmp_path / "kept" / "a").write_text("")
    assert not is_unused(tmp_path / "kept")


def test_a_lock_beside_a_new_folder_goes_and_does_not_keep_it_from_its_place(tmp_path: Path) -> None:
    with alone_making(tmp_path / "model"), replace_folder_on_success(tmp_path / "model") as temporary:
        (temporary / "weights").write_text("w")
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "weights"]


def test_many_processes_append_to_one_log_and_no_line_is_lost(tmp_path: Path) -> None:
    log, steps = tmp_path / "audit.jsonl", 15
    others = [python(APPEND, log, name, steps) for name in "abcd"]
    for other in others:
        assert other.communicate()[1] == ""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    found = [(line["of"], line["step"]) for line in lines]
    assert sorted(found) == sorted((name, step) for name in "abcd" for step in range(steps) for _ in range(2))


def test_lines_of_a_process_that_is_killed_do_not_spoil_those_of_others(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    for _ in range(3):
        with python(APPEND, log, "killed", 10_000) as other:
            assert other.stdout is not None
            other.stdout.readline()
            told = int(other.stdout.readline())
            os.kill(other.pid, signal.SIGKILL)
    append_lines(log, [{"of": "survivor"}])
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[-1] == {"of": "survivor"}
    assert sum(line["of"] == "killed" for line in lines) >= 3 * 2 * (told + 1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=st.integers(0, 3), cut=st.integers(0, 40_000), text=st.text(max_size=50), size=st.integers(0, 40_000))
def test_a_line_that_was_torn_anywhere_is_there_whole_or_not_at_all(
    tmp_path: Path, before: int, cut: int, text: str, size: int
) -> None:
    """A write that a kill cuts short leaves the first bytes of it."""
    log = tmp_path / "audit.jsonl"
    log.unlink(missing_ok=True)
    whole = [{"line": index, "text": text} for index in range(before)]
    append_lines(log, whole)
    torn = (json.dumps({"text": text, "filling": "x" * size}) + "\n").encode()
    with log.open("ab") as file:
        file.write(torn[: min(cut, len(torn) - 1)])
    append_lines(log, [{"last": True}])
    found = [json.loads(line) for line in log.read_bytes().decode().splitlines()]
    # Without its end alone, a line is whole.
    kept = [json.loads(torn)] if cut >= len(torn) - 1 else []
    assert found == [*whole, *kept, {"last": True}]


def test_one_place_written_by_many_at_once_holds_what_one_of_them_wrote(tmp_path: Path) -> None:
    """In containers that share a folder all of them can have one number."""
    place = tmp_path / "a.json"
    with replace_on_success(place) as first, replace_on_success(place) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert place.read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_lies_in_a_folder_with_a_lock_of_its_own_is_not_taken_for_abandoned(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    with alone_in(tmp_path / "evaluation"), replace_on_success(tmp_path / "evaluation" / "a") as begun:
        begun.write_text("half")
        assert (tmp_path / "evaluation" / LOCK).exists()
        remove_abandoned(tmp_path)
        assert begun.exists()


def test_the_longest_names_that_a_file_can_have_are_written(tmp_path: Path) -> None:
    place = tmp_path / ("é" * 120 + ".json")
    with replace_on_success(place) as temporary:
        assert temporary.suffix == ".json"
        temporary.write_text("{}")
    assert place.read_text() == "{}"
