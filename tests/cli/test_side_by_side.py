from __future__ import annotations

import pytest
import typer

from medfm_rl.cli import side_by_side
from medfm_rl.cli.side_by_side import start_side_by_side
from medfm_rl.errors import ConfigError
from medfm_rl.processes.launch import PEER_LOST, Failure


def end_with(failure: Failure | None, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code where a process of three has failed so."""
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr(side_by_side, "run_side_by_side", lambda command, count: failure)
    try:
        assert start_side_by_side(["adapt", "adapt.yaml"], 3)
    except typer.Exit as ended:
        return ended.exit_code
    return 0


def test_one_process_is_this_one() -> None:
    assert not start_side_by_side(["adapt", "adapt.yaml"], 1)


def test_more_processes_than_cores_are_refused_before_any_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(ConfigError, match="--devices 3: this machine has 2 cores"):
        start_side_by_side(["adapt", "adapt.yaml"], 3)


def test_within_torchrun_the_option_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="--devices 2: torchrun has started 4 processes"):
        start_side_by_side(["adapt", "adapt.yaml"], 2)


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (None, 0, ""),
        (Failure(0, 3, 5, 2, ""), 2, ""),
        (Failure(0, 3, 5, 130, ""), 130, ""),
        (Failure(1, 3, 5, 2, "Error: a.png: is no image"), 2, "Error: a.png: is no image\n"),
        (Failure(1, 3, 5, -9, ""), 1, "Error: process 2 of 3 (number 5) was ended by SIGKILL; is the memory full?"),
        (
            Failure(2, 3, 5, 1, "Traceback"),
            1,
            "process 3 of 3 (number 5) has failed, and the others were ended. It said:",
        ),
        (Failure(0, 3, 5, PEER_LOST, ""), 1, "process 1 of 3 (number 5) has lost the connection"),
    ],
)
def test_a_failure_is_told_once(
    failure: Failure | None,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert end_with(failure, monkeypatch) == code
    told = capsys.readouterr().err
    assert message in told
    assert bool(told) == bool(message)
