from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medfm_rl.processes.launch import PEER_LOST, Failure, _at_fault, run_side_by_side

RANK = "import os, sys, time; rank = int(os.environ['RANK']);"


def run(program: str, count: int = 3) -> Failure | None:
    return run_side_by_side([sys.executable, "-c", RANK + program], count)


def test_all_end_well() -> None:
    assert run("sys.exit(0)") is None


def test_the_others_end_with_the_first_that_fails(tmp_path: Path) -> None:
    """And what it said is handed on; those that lost it are not at fault."""
    began = time.monotonic()
    ends = f"print('bad', file=sys.stderr) or sys.exit(2) if rank == 1 else sys.exit({PEER_LOST}) if rank == 2"
    failure = run(f"{ends} else time.sleep(60)")
    assert failure is not None
    assert (failure.rank, failure.code, failure.said, failure.signal) == (1, 2, "bad", None)
    assert time.monotonic() - began < 30


def test_a_process_that_is_killed_is_named_by_its_signal() -> None:
    failure = run("os.kill(os.getpid(), 9) if rank == 2 else time.sleep(60)")
    assert failure is not None
    assert (failure.rank, failure.signal) == (2, "SIGKILL")


@pytest.mark.parametrize(
    ("codes", "patient", "rank"),
    [
        ([None, None], True, None),
        ([None, 0], True, None),
        ([0, 0], True, None),
        ([2, 2], True, 0),
        # The first may be about to say the same.
        ([None, 2], True, None),
        ([None, 2], False, 1),
        ([PEER_LOST, 2], True, 1),
        ([None, PEER_LOST], True, None),
        ([None, PEER_LOST], False, 1),
        ([PEER_LOST, -9], True, 1),
        ([None, -9], True, 1),
    ],
)
def test_one_process_is_at_fault(codes: list[int | None], patient: bool, rank: int | None) -> None:
    assert _at_fault(codes, patient) == rank


def test_one_that_does_not_listen_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medfm_rl.processes.launch._FAREWELL", 0.5)
    failure = run("import signal; signal.signal(2, signal.SIG_IGN); sys.exit(1) if rank == 1 else time.sleep(60)", 2)
    assert failure is not None
    assert failure.rank == 1


def test_each_knows_its_place_and_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS")
    wanted = f"open(os.path.join({str(tmp_path)!r}, str(rank)), 'w').write(' '.join(os.environ[n] for n in {names!r}))"
    assert run(wanted, 2) is None
    threads = max(1, (os.cpu_count() or 1) // 2)
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [f"{r} {r} 2 2 {threads}" for r in range(2)]


def test_none_outlives_the_one_that_started_them(tmp_path: Path) -> None:
    """Even where that one is killed and can do nothing more."""
    child = (
        "import os, time, pathlib; from medfm_rl.processes.launch import end_with_supervisor; end_with_supervisor();"
        f"pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).write_text(str(os.getpid())); time.sleep(120)"
    )
    parent = (
        "import sys; from medfm_rl.processes.launch import run_side_by_side;"
        f"run_side_by_side([sys.executable, '-c', {child!r}], 2)"
    )
    with subprocess.Popen([sys.executable, "-c", parent]) as process:
        places = [tmp_path / str(rank) for rank in range(2)]
        _wait_until(lambda: all(place.exists() and place.read_text() for place in places))
        process.send_signal(signal.SIGKILL)
    numbers = [int(place.read_text()) for place in places]
    _wait_until(lambda: not any(_runs(number) for number in numbers))


def _wait_until(true: object) -> None:
    assert callable(true)
    until = time.monotonic() + 240
    while not true():
        assert time.monotonic() < until
        time.sleep(0.2)


def _runs(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
