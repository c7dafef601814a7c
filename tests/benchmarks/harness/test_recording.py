from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from benchmarks.harness.recording import BENCHMARKS, environment, once


def test_a_part_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    assert once(tmp_path / "part.json", lambda: {"value": 1}) == {"value": 1}
    assert once(tmp_path / "part.json", lambda: {"value": 2}) == {"value": 1}


def test_numbers_that_are_not_finite_are_read_as_none(tmp_path: Path) -> None:
    made = once(tmp_path / "part.json", lambda: {"known": 0.5, "unknown": [float("nan"), float("inf")]})
    assert made == {"known": 0.5, "unknown": [None, None]}


def test_the_command_is_written_as_it_can_be_typed(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "tool.py").write_text(
        "from benchmarks.harness.recording import called_as\nprint(called_as())\n"
    )
    command = [sys.executable, "-m", "room.tool", "--seeds", "0"]
    path = {"PYTHONPATH": f"{tmp_path}:{BENCHMARKS.parent}", "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=path)
    assert done.stdout.strip() == "python -m room.tool --seeds 0"


def test_the_environment_names_versions_and_machine() -> None:
    found = environment()
    assert {"torch", "medfm-rl"} <= found["versions"].keys()
    assert "cores" in found["machine"]
