from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.shared_work import work

from medfm_rl.errors import ConfigError
from medfm_rl.processes.joining import joined_team
from medfm_rl.processes.launch import run_side_by_side
from medfm_rl.processes.team import ALONE, Team

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes came to."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("two processes need two cores")
    output = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))
        failure = run_side_by_side([sys.executable, "-m", "support.shared_work", str(output)], 2)
    assert failure is None, failure
    return output


def test_two_processes_come_to_the_weights_of_one(of_two: Path, tmp_path: Path) -> None:
    """PPO with both baselines, several minibatches and fewer images than processes; fine-tuning likewise."""
    found, expected = load_file(of_two / "work.safetensors"), work(ALONE, tmp_path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_a_team_passes_on_what_each_has(of_two: Path) -> None:
    said = {name: value.tolist() for name, value in load_file(of_two / "talk.safetensors").items()}
    assert said == {
        "talk.squares": [1, 4, 9, 16, 25],
        "talk.gathered": [0, 1],
        "talk.led": 7,
        "talk.summed": [2.0, 2.0],
        # The other process had no gradient of it.
        "talk.gradient": [1.0, 2.0, 3.0],
        "talk.crew": [0, 2, 0, 1],
    }


def test_what_another_process_tells_its_log_the_leader_tells(of_two: Path) -> None:
    lines = (of_two / "told.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if "squared" in line] == [
        "squared 1",
        "squared 3",
        "squared 5",
        "process 2: squared 2",
        "process 2: squared 4",
    ]


@pytest.mark.parametrize("count", [0, 1, 3, 16])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_row_is_of_one_process(count: int, size: int) -> None:
    shares = [range(count)[Team(range(size), rank).rows(count)] for rank in range(size)]
    assert [row for share in shares for row in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_RANK is ''.*unset WORLD_SIZE"),
        (
            {"WORLD_SIZE": "999", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "999"},
            "999 processes.* give at most",
        ),
    ],
)
def test_what_cannot_be_a_team_is_refused(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message), joined_team(CPU):
        pass


def test_a_process_alone_is_a_team_of_one() -> None:
    with joined_team(CPU) as team:
        assert team is ALONE
