from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.tiny_runs import tiny_config, train_tiny_source

from medfm_rl.data.files import hash_folder
from medfm_rl.errors import ProcessesError
from medfm_rl.processes.team import ALONE, Team
from medfm_rl.reward.dataset import ActionDataset
from medfm_rl.runs.folder import RunFolder
from medfm_rl.runs.inputs import read_inputs, write_inputs
from medfm_rl.settings import AdaptConfig, CollectSettings, PPOSettings, SourceTrainingSettings
from medfm_rl.settings.files import dump_config
from medfm_rl.workflows.adapt.choosing.selection import Selection
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.adapt.together import require_same_files, require_same_settings

two_cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two processes need two cores")


@pytest.fixture(scope="module")
def model(simulated_echo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    training = SourceTrainingSettings(epochs=2, batch_size=8, learning_rate=1e-2)
    return train_tiny_source(simulated_echo, tmp_path_factory.mktemp("model") / "source", training)


def short_config(echo: Path, model: Path, output: Path) -> AdaptConfig:
    """One iteration, with fewer images at the end of a rollout than a batch has."""
    return tiny_config(
        echo,
        model,
        output,
        iterations=1,
        collect=CollectSettings(source_images=9, target_images=6, actions_per_image=3, shard_images=3),
        ppo=PPOSettings(updates=2, n_envs=3, eval_every=1),
    )


@pytest.fixture(scope="module")
def alone(simulated_echo: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    return adapt(short_config(simulated_echo, model, tmp_path_factory.mktemp("alone") / "run")).path


def require_same_result(run: Path, expected: Path) -> None:
    for name in ("model/weights.safetensors", "fine-tuning/actor.safetensors", "reward/member-1/weights.safetensors"):
        found, wanted = load_file(run / name), load_file(expected / name)
        for key, value in wanted.items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4, msg=f"{name}: {key}")
    own, other = (Selection.read(RunFolder(path).last_selection) for path in (run, expected))
    assert own.chosen == other.chosen
    collected, there = (ActionDataset(path / "actions") for path in (run, expected))
    assert collected.shards() == there.shards()
    same = [(collected.read(key).actions == there.read(key).actions).flatten() for key in there.shards()]
    assert torch.cat(same).float().mean() > 0.999
    assert hash_folder(run / "shape_prior") == hash_folder(expected / "shape_prior")


def command(config: AdaptConfig, *launcher: str, options: tuple[str, ...] = ()) -> list[str]:
    file = config.output.parent / "adapt.yaml"
    file.write_text(dump_config(config), encoding="utf-8")
    return [sys.executable, *launcher, "-m", "medfm_rl", "adapt", str(file), *options]


@two_cores
@pytest.mark.slow
def test_two_processes_of_torchrun_come_to_the_result_of_one(
    simulated_echo: Path, model: Path, alone: Path, tmp_path: Path
) -> None:
    config = short_config(simulated_echo, model, tmp_path / "run")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    ended = subprocess.run(command(config, *launcher), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    require_same_result(config.output, alone)
    assert ended.stdout.count("Adapted segmenter: ") == 1
    log = (config.output / "log.txt").read_text(encoding="utf-8")
    assert "2 processes share the run" in log
    # One network is trained in the other process, and its losses are told all the same.
    assert len(re.findall(r"process 2: reward network \S+: temperature", log)) == 1
    assert len(re.findall(r"reward network \S+: temperature", log)) == 3


@two_cores
@pytest.mark.slow
def test_a_run_that_lost_a_process_goes_on_with_one_as_if_nothing_had_been(
    simulated_echo: Path, model: Path, alone: Path, tmp_path: Path
) -> None:
    config = short_config(simulated_echo, model, tmp_path / "run")
    with running(command(config, options=("--devices", "2"))) as process:
        wait_until(lambda: (config.output / "fine-tuning").exists(), process)
        children = numbers_of_children(process.pid)
        assert len(children) == 2
        os.kill(next(number for number in children if b"RANK=1\0" in environment_of(number)), signal.SIGKILL)
        _, told = process.communicate(timeout=240)
    assert process.returncode not in (0, None)
    assert re.search(r"Error: process 2 of 2 \(number \d+\) was ended by SIGKILL.*--resume", told)
    assert "Traceback" not in told
    assert not any(map(is_there, children))
    assert not (config.output / "model").exists()
    adapt(config, resume=True)
    require_same_result(config.output, alone)


def test_processes_with_other_settings_are_refused_by_the_name_of_the_setting(
    simulated_echo: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = short_config(simulated_echo, model, tmp_path / "run")
    require_same_settings(config, ALONE)
    there = team_with(monkeypatch, lambda value: value)
    require_same_settings(config, there)

    def otherwise(value: tuple[str, dict[str, str]]) -> tuple[str, dict[str, str]]:
        return value[0], {**value[1], "ppo.updates": "40"}

    other = team_with(monkeypatch, otherwise)
    with pytest.raises(
        ProcessesError, match=r"process 2 of 2 .*: ppo.updates is 2 and not 40; start all with the same"
    ):
        require_same_settings(config, other)


def test_processes_that_see_other_files_are_refused_by_the_name_of_a_file(
    simulated_echo: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = short_config(simulated_echo, model, tmp_path / "run")
    run, scratch = RunFolder(config.output), config.output / "images"
    scratch.mkdir(parents=True)
    inputs = read_inputs(config, lambda *_: None)
    write_inputs(run.inputs, inputs)
    team = team_with(monkeypatch, lambda value: (value[0], None))
    require_same_files(config, run, scratch, team)
    file = next(iter(inputs["target.path"].files))
    inputs["target.path"].files[file] = "another"
    write_inputs(run.inputs, inputs)
    with pytest.raises(
        ProcessesError, match=rf"it sees other files than process 1 \(target.path: 1 file changed, {file}"
    ):
        require_same_files(config, run, scratch, team)
    scratch.rmdir()
    with pytest.raises(ProcessesError, match=r"does not see .*images, .* a drive that all machines mount"):
        require_same_files(config, run, scratch, team)


def team_with(monkeypatch: pytest.MonkeyPatch, leader: object) -> Team:
    """The second of two processes, beside a leader that says what a function makes of what this one says."""
    assert callable(leader)
    monkeypatch.setattr(Team, "gather", lambda self, value: [leader(value), value])
    return Team((0, 1), 1)


@contextmanager
def running(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process, which ends with the block."""
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(true: object, process: subprocess.Popen[str]) -> None:
    assert callable(true)
    until = time.monotonic() + 240
    while not true():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def numbers_of_children(number: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{number}/task/{number}/children").read_text().split()]


def environment_of(number: int) -> bytes:
    return Path(f"/proc/{number}/environ").read_bytes()


def is_there(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
