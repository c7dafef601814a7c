"""The command line as its user meets it: what is printed, the exit code and the files."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml
from safetensors.torch import save_file
from support.commands import run_command
from typer.main import get_command
from typer.testing import CliRunner

from medfm_rl import __version__, cli
from medfm_rl.adapters.kinds import KINDS
from medfm_rl.cli.console import show_progress
from medfm_rl.data.files import hash_folder
from medfm_rl.data.images import read_image, write_image
from medfm_rl.errors import ConfigError
from medfm_rl.settings import AdaptConfig, TrainSourceConfig
from medfm_rl.settings.files import load_config
from medfm_rl.types import Geometry

COMMANDS = [
    "init",
    "train-judge",
    "train-source",
    "adapt",
    "apply-delta",
    "evaluate",
    "predict",
    "propose",
    "score",
    "correct",
    "choose",
    "calibrate",
    "calibrate-correction",
    "check",
    "desk",
    "desk-user",
    "export",
    "feedback",
    "inspect",
    "measure",
    "monitor",
    "stream",
    "simulate-vendor",
    "demo",
]


class Result(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`medfm-rl ARGUMENTS` in this process, through the same entry point, on a terminal of 200 columns."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["medfm-rl", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        code = stopped.value.code
        assert isinstance(code, int)
        return Result(code, *capsys.readouterr())

    return call


def in_a_process(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medfm_rl", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", env=environment, cwd=folder, timeout=200
    )


def settings_for_training(data: Path, output: Path) -> dict[str, Any]:
    return {
        "data": {"path": str(data)},
        "structures": {"LV": 1, "MYO": 2, "LA": 3},
        "output": str(output),
        "network": {"channels": [4, 8], "residual_units": 0},
        "preprocessing": {"size": [32, 32]},
        "training": {"epochs": 6, "batch_size": 8, "learning_rate": 0.01},
        "device": "cpu",
    }


def settings_for_adapting(echo: Path, model: Path, output: Path) -> dict[str, Any]:
    network = {"channels": [4, 8], "residual_units": 0}
    return {
        "segmenter": {"folder": str(model)},
        "target": {"path": str(echo / "b")},
        "source": {"path": str(echo / "a")},
        "evaluation": {"path": str(echo / "b")},
        "output": str(output),
        "iterations": 1,
        "fine_tuning": {"steps": 2, "batch_size": 4},
        "collect": {"source_images": 12, "target_images": 8, "actions_per_image": 2},
        "shape_prior": {"epochs": 1, "latent": 4},
        "reward": {"network": network, "ensemble": 1, "steps": 2, "validate_every": 2},
        "ppo": {"updates": 2, "n_envs": 2, "n_epochs": 1, "eval_every": 1},
        "tracking": {"uri": None},
        "device": "cpu",
    }


def write(path: Path, values: object) -> Path:
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def model(simulated_echo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter that `medfm-rl train-source` made in a process of its own."""
    folder = tmp_path_factory.mktemp("trained")
    config = write(folder / "train.yaml", settings_for_training(simulated_echo / "a", folder / "source"))
    done = run_command("train-source", config, folder=folder, variables={"COLUMNS": "200"})
    assert done.returncode == 0, done.stderr
    summary, *places = done.stdout.splitlines()
    assert "steps of 8 images on 20 images of 5 patients; the weights after step" in summary
    assert "Dice on 4 images of 1 patient that no step learned from: LV 0." in summary
    assert places == [f"Segmenter: {folder / 'source'}", f"Report: {folder / 'source.training' / 'report.html'}"]
    assert "validation Dice LV 0." in done.stderr
    assert "training the source model" in done.stderr
    return folder / "source"


@pytest.fixture(scope="module")
def adapted(simulated_echo: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run of `medfm-rl adapt`, and what it printed."""
    folder = tmp_path_factory.mktemp("adapted")
    # The tiny model makes no mask that a strict profile would call valid.
    lenient = write(folder / "lenient.yaml", {"rules": [{"kind": "present", "structure": "background"}]})
    values = {**settings_for_adapting(simulated_echo, model, folder / "run"), "anatomy": str(lenient)}
    config = write(folder / "adapt.yaml", values)
    done = CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, ["adapt", str(config)], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return folder / "run", Result(done.exit_code, done.stdout, done.stderr)


def refused(result: Result, *words: str) -> None:
    """Exit code 2, nothing on stdout, and one message on stderr that has all the words."""
    assert result.code == 2, result
    assert result.out == ""
    assert "Traceback" not in result.err
    message = result.err.strip()
    # Notices of what looks suspicious in the data may come before.
    assert message[message.index("Error: ") - 1 : message.index("Error: ")] in ("", "\n")
    assert message.count("Error") == 1
    for word in words:
        assert word in message


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_its_arguments(run: Run, command: str) -> None:
    result = run(command, "--help")
    assert (result.code, result.err) == (0, "")
    described = get_command(cli.app).commands[command]  # type: ignore[attr-defined]
    assert described.help.split(".")[0].split(":")[0] in " ".join(result.out.split())
    for parameter in described.params:
        if getattr(parameter, "hidden", False):
            continue
        assert parameter.help or parameter.name == "help", parameter.name
        shown = parameter.opts[0] if parameter.param_type_name == "option" else parameter.metavar or parameter.name
        assert shown.lower() in result.out.lower(), shown


@pytest.mark.parametrize(
    ("arguments", "option", "allowed"),
    [
        (("init", "--kind", "x"), "--kind", "'adapt', 'train-source'"),
        (("evaluate", "MODEL", "B", "--layout", "x"), "--layout", "'auto', 'nnunet', 'camus', 'folder', 'clips', "),
        (("evaluate", "MODEL", "B", "--split", "x"), "--split", "'all', 'train', 'test'"),
        (("inspect", "MODEL", "--device", "x"), "--device", "'auto', 'cpu', 'cuda', 'mps'"),
        (("correct", "RUN", "--images", "B", "--out", "OUT", "--method", "x"), "--method", "'views', 'optimise', "),
        (("correct", "RUN", "--images", "B", "--out", "OUT", "--objective", "x"), "--objective", "'reward', 'ppo'"),
        (("calibrate", "RUN", "--unit", "x"), "--unit", "'mean', 'worst'"),
        (("score", "RUN", "--images", "B", "--out", "OUT", "--fail-on", "x"), "--fail-on", "'refer'"),
        (("propose", "RUN", "--images", "B", "--out", "OUT", "--by", "x"), "--by", "'gain', 'clasp', 'random'"),
        (("desk-user", "r1", "--store", "STORE", "--role", "x"), "--role", "'reviewer', 'lead', 'administrator'"),
        (("feedback", "add", "STORE", "--drawn", "x"), "--drawn", "'audit', 'informative', 'other'"),
        (("feedback", "list", "STORE", "--consensus", "x"), "--consensus", "'staple', 'majority'"),
    ],
)
def test_a_word_that_is_no_choice_is_refused_with_those_that_are(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], option: str, allowed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert f"Invalid value for '{option}': " in result.err
    assert f"'x' is not one of {allowed}" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [("desk",), ("desk-user", "r1")])
def test_commands_of_the_desk_say_which_extra_they_need(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "argon2" else found(name))
    refused(run(*command, "--store", tmp_path / "feedback.sqlite"), "pip install 'medfm-rl[desk]'")


def test_no_password_is_asked_for_where_there_is_no_store(run: Run, tmp_path: Path) -> None:
    refused(run("desk-user", "r1", "--store", tmp_path / "feedback.sqlite"), "there is no store")


def test_the_help_lists_exactly_the_commands(run: Run) -> None:
    assert sorted(get_command(cli.app).commands) == sorted(COMMANDS)  # type: ignore[attr-defined]
    text = run("--help").out
    assert all(f" {command} " in text for command in COMMANDS)


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version") == (0, f"{__version__}\n", "")


@pytest.mark.parametrize(("kind", "settings"), [("adapt", AdaptConfig), ("train-source", TrainSourceConfig)])
def test_init_writes_a_commented_file_that_validates(run: Run, tmp_path: Path, kind: str, settings: Any) -> None:
    path = tmp_path / "mine.yaml"
    result = run("init", path, "--kind", kind)
    assert result.code == 0
    assert f"medfm-rl {kind} {path}" in result.out
    load_config(path, settings)
    text = path.read_text()
    for name in settings.model_fields:
        assert f"\n{name}:" in text
    assert text.count("#") > len(settings.model_fields)


def test_init_leaves_an_existing_file_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("precious")
    refused(run("init", tmp_path / "mine.yaml"), "mine.yaml: already exists")
    assert (tmp_path / "mine.yaml").read_text() == "precious"


@pytest.mark.parametrize("command", ["adapt", "train-source"])
def test_a_missing_or_wrong_settings_file_is_a_users_mistake(run: Run, tmp_path: Path, command: str) -> None:
    refused(run(command, tmp_path / "nothing.yaml"), "nothing.yaml: there is no such file", "medfm-rl init")
    path = write(tmp_path / "wrong.yaml", {"sedd": 1, "output": 3, "seed": "x"})
    refused(
        run(command, path),
        "wrong.yaml",
        "sedd: there is no such field",
        "output: Input is not a valid path",
        "seed: Input should be a valid integer",
    )
    path.write_text("a: [1")
    refused(run(command, path), "wrong.yaml: cannot be read as YAML")


def test_the_real_process_ends_like_that_too(tmp_path: Path) -> None:
    done = in_a_process("adapt", "nothing.yaml", folder=tmp_path)
    refused(Result(done.returncode, done.stdout, done.stderr), "nothing.yaml")
    assert len(done.stderr.splitlines()) == 1
    done = in_a_process("no-such-command", folder=tmp_path)
    assert done.returncode == 2
    assert "no-such-command" in done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"segmenter": {"folder": "/nothing"}}, ["/nothing: there is no such folder"]),
        ({"target": {"path": "/nothing"}}, ["/nothing: there is no such folder"]),
        ({"source": {"path": "/nothing"}}, ["/nothing: there is no such folder"]),
        ({"evaluation": {"path": "EMPTY"}}, ["empty: no image found"]),
        ({"evaluation": {"path": "UNLABELLED"}}, ["evaluation: there is no mask for", "(24 of 24 images have none)"]),
        ({"source": {"path": "UNLABELLED"}}, ["source: there is no mask for"]),
        ({"anatomy": "kidney"}, ["anatomy 'kidney'", "echo_apical"]),
        ({"anatomy": "lungs"}, ["anatomy lungs", "'lung'", "LV, MYO, LA"]),
        ({"target": {"path": "B", "patient_pattern": "^(x+)"}}, ["patient_pattern", "'sim0101_2CH_ED'"]),
        ({"target": {"path": "B", "where": {"view": "5CH"}}}, ["no case has {'view': '5CH'}"]),
        (
            {"target": {"path": "B", "patient_pattern": "^(sim)"}},
            ["target: ", "/b: ", "at least 2 patients", "1 (sim with ", "set patient_pattern"],
        ),
        ({"evaluation": {"path": "B", "patient_pattern": "^(sim)"}}, ["evaluation: ", "one patient"]),
        ({"segmenter": {"folder": "MODEL", "train": "best"}}, ["segmenter.train", "not 'best'"]),
    ],
)
def test_a_mistake_in_a_run_is_told_before_a_folder_is_made(
    run: Run, simulated_echo: Path, model: Path, tmp_path: Path, change: dict[str, Any], words: list[str]
) -> None:
    """So the corrected settings can be used without --resume and without deleting anything."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "unlabelled").mkdir()
    (tmp_path / "unlabelled" / "images").symlink_to(simulated_echo / "b" / "images")
    places = {
        "EMPTY": tmp_path / "empty",
        "UNLABELLED": tmp_path / "unlabelled",
        "B": simulated_echo / "b",
        "MODEL": model,
    }
    values = settings_for_adapting(simulated_echo, model, tmp_path / "run")
    for name, content in change.items():
        if isinstance(content, dict):
            content = {
                key: str(places.get(str(value), value)) if isinstance(value, str) else value
                for key, value in content.items()
            }
        values[name] = content
    refused(run("adapt", write(tmp_path / "adapt.yaml", values)), *words)
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_refused(run: Run, simulated_echo: Path, model: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "precious.txt").write_text("kept")
    adapt = write(tmp_path / "adapt.yaml", settings_for_adapting(simulated_echo, model, taken))
    refused(run("adapt", adapt), "taken: the folder is not empty")
    train = write(tmp_path / "train.yaml", settings_for_training(simulated_echo / "a", taken))
    refused(run("train-source", train), f"output {taken}: the folder is not empty")
    refused(run("demo", "--out", taken), "taken: is not empty and holds no demo")
    assert [path.name for path in taken.iterdir()] == ["precious.txt"]


def test_a_training_that_diverges_names_the_setting(run: Run, simulated_echo: Path, tmp_path: Path) -> None:
    values = settings_for_training(simulated_echo / "a", tmp_path / "model")
    values["training"]["learning_rate"] = 1e30
    result = run("train-source", write(tmp_path / "train.yaml", values))
    assert (result.code, "Traceback" in result.err) == (2, False)
    assert "Error: the training loss is not finite; lower training.learning_rate" in result.err
    assert not (tmp_path / "model").exists()


def test_adapt_prints_the_comparison_and_where_the_results_are(
    adapted: tuple[Path, Result], simulated_echo: Path
) -> None:
    folder, done = adapted
    assert f"Adapted segmenter: {folder / 'model'}" in done.out
    assert f"Report: {folder / 'report.html'}" in done.out
    assert "(SIMULATED DATA)" in done.out
    assert (folder / "report.html").exists()
    rows = [line.split("│")[1].strip() for line in done.out.splitlines() if line.count("│") > 2]
    assert rows == ["LV", "MYO", "LA", "mean"]
    for stage in (
        "collecting actions",
        "reward network member-0",
        "PPO 1/1",
        "selection",
        "evaluating the adapted model",
    ):
        assert stage in done.err
        assert stage not in done.out


def test_a_second_start_asks_for_resume(run: Run, adapted: tuple[Path, Result]) -> None:
    folder, _ = adapted
    before = hash_folder(folder)
    refused(run("adapt", folder.parent / "adapt.yaml"), "--resume")
    assert hash_folder(folder) == before


def test_evaluate_scores_one_model(run: Run, simulated_echo: Path, model: Path, tmp_path: Path) -> None:
    result = run("evaluate", model, simulated_echo / "b", "--out", tmp_path / "scores")
    assert result.code == 0
    for word in ("LV", "MYO", "LA", "mean", "HD95", "ASSD", " mm", "SIMULATED DATA", "scores.csv"):
        assert word in result.out
    with (tmp_path / "scores" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 * 4
    summary = json.loads((tmp_path / "scores" / "summary.json").read_text())
    assert list(summary["models"]) == [str(model)]
    mean = next(row for row in summary["models"][str(model)] if row["structure"] == "mean")
    assert mean["dice"] == pytest.approx(np.mean([float(row["dice"]) for row in rows if row["structure"] == "mean"]))
    assert f"{mean['dice']:.3f}" in result.out


def test_evaluate_compares_a_run_with_the_model_it_came_from(
    run: Run,
    adapted: tuple[Path, Result],
    simulated_echo: Path,
    model: Path,
    tmp_path: Path,
) -> None:
    folder, _ = adapted
    result = run(
        "evaluate", folder, simulated_echo / "b", "--against", model, "--out", tmp_path, "--anatomy", "echo_apical"
    )
    assert result.code == 0
    assert "95 % interval" in result.out
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert list(summary["models"]) == [str(model), str(folder)]
    assert set(summary["dice_difference"]) == {"LV", "MYO", "LA", "mean"}
    # The run has written the same comparison.
    own = json.loads((folder / "evaluation" / "summary.json").read_text())
    assert summary["dice_difference"] == own["dice_difference"]
    scores = [[row["dice"] for row in content] for content in summary["models"].values()]
    assert scores == [[row["dice"] for row in content] for content in own["models"].values()]


def test_evaluate_takes_the_patients_from_the_names_as_told_and_keeps_only_the_cases_asked_for(
    run: Run, simulated_echo: Path, model: Path, tmp_path: Path
) -> None:
    patients = ("--patient-pattern", "^sim(01[0-9]+)_")
    result = run("evaluate", model, simulated_echo / "b", *patients, "--out", tmp_path)
    assert result.code == 0
    with (tmp_path / "scores.csv").open() as file:
        assert {row["patient_id"] for row in csv.DictReader(file)} == {f"010{number}" for number in range(1, 7)}
    camus = tmp_path / "camus"
    for kind, ending in (("images", ""), ("labels", "_gt")):
        for path in (simulated_echo / "b" / kind).iterdir():
            number, view, phase = path.name.removesuffix(".nii.gz").split("_")
            folder = camus / number.replace("sim", "patient")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / f"{folder.name}_{view}_{phase}{ending}.nii.gz")
    some = ("--where", "view=4CH", "--where", "phase=ED")
    assert run("evaluate", model, camus, *some, "--out", tmp_path / "some").code == 0
    with (tmp_path / "some" / "scores.csv").open() as file:
        assert {row["case_id"] for row in csv.DictReader(file)} == {f"patient010{n}_4CH_ED" for n in range(1, 7)}


CHOICE = {"--layout", "--patient-pattern", "--split", "--where"}


def test_every_command_that_reads_a_folder_of_images_has_the_same_options_to_choose_cases() -> None:
    commands = dict(get_command(cli.app).commands)  # type: ignore[attr-defined]
    commands |= {
        f"{group} {name}": part for group in ("feedback", "stream") for name, part in commands[group].commands.items()
    }
    options = {name: {option for each in command.params for option in each.opts} for name, command in commands.items()}
    choosing = {name for name, known in options.items() if known >= CHOICE}
    assert {name for name, known in options.items() if known & CHOICE} == choosing
    # A desk finds images by the scores that it is given.
    assert {name for name, known in options.items() if "--images" in known} <= choosing | {"desk"}
    assert choosing >= {"predict", "evaluate", "check", "simulate-vendor", "calibrate-correction"}


def test_cases_are_chosen_by_their_tags_in_commands_that_segment(run: Run, model: Path, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (32, 32)).astype(np.uint8)
    for patient in ("patient0001", "patient0002"):
        for view in ("2CH", "4CH"):
            place = tmp_path / "data" / patient / f"{patient}_{view}_ED.nii.gz"
            write_image(place, noise, Geometry.unknown(2))
    out = tmp_path / "out"
    assert run("predict", model, tmp_path / "data", out, "--where", "view=4CH").code == 0
    names = sorted(path.name for path in (out / "labels").glob("*.nii.gz"))
    assert names == ["patient0001_4CH_ED.nii.gz", "patient0002_4CH_ED.nii.gz"]
    refused(run("predict", model, tmp_path / "data", out, "--where", "view=5CH"), "no case has {'view': '5CH'}")


def test_a_choice_of_cases_without_a_folder_is_refused(run: Run, model: Path, tmp_path: Path) -> None:
    said = ("--split, --where: would have no effect; only with --images",)
    refused(run("inspect", model, "--where", "view=4CH", "--split", "train"), *said)
    refused(
        run("feedback", "add", tmp_path / "f.sqlite", "--reviewer", "r1", "--where", "a=b", "--split", "test"), *said
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "MODEL", "B", "OUT"],
        ["predict", "MODEL", "B", "OUT", "--correct"],
        ["score", "RUN", "--images", "B", "--model", "MODEL", "--out", "OUT"],
        ["correct", "RUN", "--images", "B", "--out", "OUT"],
        ["calibrate", "RUN", "--labelled", "B"],
        ["calibrate-correction", "RUN", "--labelled", "B"],
    ],
    ids=lambda arguments: " ".join(word for word in arguments if word.islower()),
)
def test_each_command_that_reads_cases_takes_their_patients_as_told(
    run: Run, adapted: tuple[Path, Result], simulated_echo: Path, model: Path, tmp_path: Path, arguments: list[str]
) -> None:
    places = {"MODEL": model, "RUN": adapted[0], "B": simulated_echo / "b", "OUT": tmp_path / "out"}
    result = run(*[places.get(word, word) for word in arguments], "--patient-pattern", "^(x)")
    assert result.code == 2
    assert f"{simulated_echo / 'b'}: patient_pattern '^(x)' finds no patient in the case name" in result.err


def test_evaluate_says_pixels_where_the_spacing_is_unknown(run: Run, model: Path, tmp_path: Path) -> None:
    for name in ("p1_x", "p2_x"):
        rng = np.random.default_rng(list(name.encode()))
        labels = np.zeros((32, 32), np.uint8)
        labels[4:14, 8:20], labels[14:20, 8:20], labels[20:28, 8:20] = 1, 2, 3
        noise = rng.integers(0, 255, (32, 32)).astype(np.uint8)
        write_image(tmp_path / "data" / "images" / f"{name}.png", noise, Geometry.unknown(2))
        write_image(tmp_path / "data" / "labels" / f"{name}.png", labels, Geometry.unknown(2))
    assert run("evaluate", model, tmp_path / "data", "--out", tmp_path / "scores").code == 0
    with (tmp_path / "scores" / "scores.csv").open() as file:
        assert {row["unit"] for row in csv.DictReader(file)} == {"px"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nothing", "B"], ["/nothing: there is no such folder"]),
        (["EMPTY", "B"], ["not a segmenter folder"]),
        (["MODEL", "EMPTY"], ["empty: no image found"]),
        (["MODEL", "/nothing"], ["/nothing: there is no such folder"]),
        (["MODEL", "B/images"], ["there is no mask for", "labelled data is needed"]),
        (["MODEL", "B", "--split", "test"], ["/b: split test is for nnU-Net data sets"]),
        (["MODEL", "B", "--where", "view"], ["--where view: must be TAG=VALUE"]),
        (["MODEL", "B", "--where", "view=5CH"], ["no case has {'view': '5CH'}"]),
        (["MODEL", "B", "--patient-pattern", "sim"], ["--patient-pattern sim: ", "needs a group"]),
        (["MODEL", "B", "--patient-pattern", "^(x)"], ["/b: patient_pattern '^(x)' finds no patient"]),
        (
            ["MODEL", "B", "--against", "MODEL", "--patient-pattern", "^(sim)"],
            ["/b/images: intervals need images of at least 2 patients", "1 (sim: ", "--patient-pattern"],
        ),
        (["MODEL", "B", "--anatomy", "kidney"], ["anatomy 'kidney'"]),
        (["MODEL", "B", "--against", "/nothing"], ["/nothing: there is no such folder"]),
    ],
)
def test_what_cannot_be_evaluated_is_named(
    run: Run, simulated_echo: Path, model: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    places = {
        "EMPTY": tmp_path / "empty",
        "MODEL": model,
        "B": simulated_echo / "b",
        "B/images": simulated_echo / "b" / "images",
    }
    result = run("evaluate", *[places.get(argument, argument) for argument in arguments], "--out", tmp_path / "scores")
    refused(result, *words)
    assert not (tmp_path / "scores").exists()


def test_predict_writes_masks_and_reward_maps_of_a_run(
    run: Run, adapted: tuple[Path, Result], simulated_echo: Path, tmp_path: Path
) -> None:
    folder, _ = adapted
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted((simulated_echo / "b" / "images").iterdir())[:2]:
        shutil.copy(path, images)
    result = run("predict", folder, images, tmp_path / "out")
    assert result.code == 0
    assert result.out.strip() == f"Label maps, as .nii.gz: {tmp_path / 'out' / 'labels'}"
    for path in images.iterdir():
        _, geometry = read_image(path)
        reward_map, own = read_image(tmp_path / "out" / "rewards" / path.name)
        assert own.matches(geometry)
        assert 0 <= reward_map.min() <= reward_map.max() <= 1
        assert (tmp_path / "out" / "labels" / path.name).exists()


def test_predict_segments_the_others_where_one_image_is_broken(
    run: Run, simulated_echo: Path, model: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(min((simulated_echo / "b" / "images").iterdir()), images / "good_1.nii.gz")
    (images / "broken_1.nii.gz").write_bytes(b"")
    result = run("predict", model, images, tmp_path / "out")
    assert result.code == 2
    assert "has no reward networks" in result.err
    assert "Left out: " in result.err
    assert "broken_1.nii.gz: the file is empty" in result.err
    assert [path.name for path in (tmp_path / "out" / "labels").iterdir()] == ["good_1.nii.gz"]
    (images / "good_1.nii.gz").unlink()
    result = run("predict", model, images, tmp_path / "other")
    assert result.code == 2
    assert "no case could be segmented" in result.err


def test_predict_wants_a_model_and_images(run: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(
        run("predict", tmp_path / "nothing", tmp_path / "empty", tmp_path / "out"), "nothing: there is no such folder"
    )
    result = run("predict", model, tmp_path / "empty", tmp_path / "out")
    assert result.code == 2
    assert "empty: no image found" in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_networks_run_on_the_device_that_is_asked_for(
    run: Run, simulated_echo: Path, model: Path, tmp_path: Path, command: str
) -> None:
    data = simulated_echo / "b"
    arguments = (data / "images", tmp_path / "out") if command == "predict" else (data, "--out", tmp_path / "out")
    missing = "mps" if not torch.backends.mps.is_available() else "cuda"
    refused(run(command, model, *arguments, "--device", missing), f"device: {missing} is not available")
    assert not (tmp_path / "out").exists()


def test_simulate_vendor_keeps_masks_and_marks_the_data(simulated_echo: Path, tmp_path: Path) -> None:
    source = tmp_path / "echo"
    for kind in ("images", "labels"):
        (source / kind).mkdir(parents=True)
        for path in sorted((simulated_echo / "a" / kind).iterdir())[:2]:
            shutil.copy(path, source / kind)
    done = run_command("simulate-vendor", source, "out", "--workers", 1, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert json.loads((out / "simulation.json").read_text())["simulated"] is True
    names = sorted(path.name for path in (source / "images").iterdir())
    assert sorted(path.name for path in (out / "images").iterdir()) == names
    for name in names:
        assert (out / "labels" / name).read_bytes() == (source / "labels" / name).read_bytes()
        before, after = read_image(source / "images" / name), read_image(out / "images" / name)
        assert after[1].matches(before[1])
        assert not np.array_equal(after[0], before[0])


def test_simulate_vendor_names_what_it_cannot_use(run: Run, simulated_echo: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    refused(
        run("simulate-vendor", simulated_echo / "a", out, "--vendor", "acme"),
        "unknown vendor 'acme'",
        "cart, portable, handheld, vintage",
    )
    refused(run("simulate-vendor", tmp_path / "empty", out), "empty: no image found")
    refused(run("simulate-vendor", tmp_path / "nothing", out), "nothing: there is no such folder")
    assert not out.exists()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("seed: wrong"), 2, "Error: seed: wrong"),
        (KeyboardInterrupt(), 130, "run the same command again (adapt: with --resume)"),
        (SystemExit(130), 130, "run the same command again (adapt: with --resume)"),
    ],
)
def test_errors_and_interruptions_end_without_a_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    def app() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    result = run("demo")
    assert result.code == code
    assert words in result.err
    assert "Traceback" not in result.err


def test_ctrl_c_within_a_command_says_what_is_kept() -> None:
    """In a process of its own: Typer handles the interruption before the entry point sees it."""
    program = (
        "import sys\n"
        "from medfm_rl import cli\n"
        "@cli.app.command('wait')\n"
        "def wait() -> None:\n"
        "    raise KeyboardInterrupt\n"
        "sys.argv = ['medfm-rl', 'wait']\n"
        "cli.main()\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 130
    assert "Interrupted. What was finished is kept" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_progress_in_a_file_is_told_in_lines_at_start_end_and_in_between(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter([0.0, 10.0, 31.0, 50.0, 52.0])
    monkeypatch.setattr("medfm_rl.cli.console.monotonic", lambda: next(now))
    with show_progress() as progress:
        for done in (1, 2, 3, 4, 5):
            progress("PPO", done, 5)
            told = capsys.readouterr().err
            # Two steps took 31 s: as many are left.
            soon = ", about 31 s left" if done == 3 else ""
            assert told == ("" if done in (2, 4) else f"PPO: {done} of 5{soon}\n")


def test_a_defect_of_ours_keeps_its_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def app() -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(RuntimeError, match="ours"):
        run("demo")


def test_score_refers_fails_on_demand_and_says_what_is_promised(run: Run, quality_run: Path, tmp_path: Path) -> None:
    data = quality_run.parent / "data"
    out = tmp_path / "scores"
    command = ("score", quality_run, "--images", data / "images", "--masks", data / "labels", "--out", out)
    found = run(*command)
    assert found.code == 0, found.err
    assert "90% of the intervals of predicted Dice hold the true Dice" in found.out
    assert f"Report: {out / 'report.html'}" in found.out
    referred = int(found.out.partition("refer ")[2].split()[0])
    with (out / "scores.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["structure"] in ("mean", "")]
    assert len(rows) == 96
    assert sum(row["verdict"] == "refer" for row in rows) == referred
    # Masks of an expert are no masks of the segmenter that was calibrated, and one that is missing is referred.
    masks = tmp_path / "masks"
    shutil.copytree(data / "labels", masks)
    next(masks.iterdir()).unlink()
    command = ("score", quality_run, "--images", data / "images", "--masks", masks, "--out", out, "--fail-on", "refer")
    found = run(*command)
    # A case that nobody has looked at is more than a mask that is referred.
    assert found.code == 2
    assert f"there is no mask of that name, or more than one, in {masks}" in found.err
    assert "1 of 96 cases could not be assessed" in found.err
    blank = next(masks.iterdir())
    sitk.WriteImage(sitk.ReadImage(str(blank)) * 0, str(blank))
    shutil.copytree(data / "labels", masks, dirs_exist_ok=True, ignore=lambda _, names: {blank.name} & set(names))
    found = run(*command)
    assert found.code == 3, found.err


def test_score_acts_on_verdicts_as_the_policy_says(run: Run, quality_run: Path, tmp_path: Path) -> None:
    data = quality_run.parent / "data"
    one = tmp_path / "one"
    one.mkdir()
    shutil.copy(sorted((data / "images").iterdir())[0], one)
    # Every mask is good enough.
    (tmp_path / "easy.yaml").write_text("limits: {mean: 0.0001}\nunproven: accept\nsuspended: refer\n")
    command = ("score", quality_run, "--images", one, "--model", quality_run, "--out", tmp_path / "out")
    found = run(*command, "--policy", tmp_path / "easy.yaml")
    assert found.code == 0, found.err
    assert "Batch: untested; the batch is of 1 patient" in found.out
    assert "Verdict: accept 1, correct 0, refer 0\nAccepted: 1 expected\nPolicy easy: use 1" in found.out
    (tmp_path / "easy.yaml").write_text("limits: {mean: 0.0001}\nunproven: refer\nsuspended: refer\n")
    found = run(*command, "--policy", tmp_path / "easy.yaml", "--fail-on", "refer")
    assert (found.code, "Policy easy: use 0, correct 0, refer 1" in found.out) == (3, True)
    for arguments, message in (
        (
            ("--policy", "hospital"),
            "policy hospital: there is no such file, and no policy of that name: give clinic or",
        ),
    ):
        refused = run(*command, *arguments)
        assert (refused.code, message in refused.err) == (2, True), refused.err


def test_score_says_which_arguments_do_not_go_together(run: Run, quality_run: Path, tmp_path: Path) -> None:
    images = ("--images", quality_run.parent / "data", "--out", tmp_path / "out")
    for arguments, message in (
        ((), "give either --masks"),
        (("--masks", "a", "--model", "b"), "give either --masks"),
        (("--model", quality_run, "--labels", "LV=1"), "they go with --masks"),
    ):
        found = run("score", quality_run, *images, *arguments)
        assert found.code == 2
        assert message in found.err


def test_score_without_a_quality_model_says_how_to_make_one(run: Run, quality_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(quality_run, copy)
    (copy / "quality.json").unlink()
    data = quality_run.parent / "data"
    found = run("score", copy, "--images", data, "--masks", data / "labels", "--out", tmp_path / "out")
    assert found.code == 2
    assert f"medfm-rl calibrate {copy} --labelled DIR" in found.err


def test_calibrate_keeps_the_previous_model_and_tells_its_errors(run: Run, quality_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(quality_run, copy)
    before = (copy / "quality.json").read_bytes()
    data = quality_run.parent / "data"
    found = run("calibrate", copy, "--labelled", data, "--dice", "0.6", "--device", "cpu")
    assert found.code == 0, found.err
    for name in ("LV", "MYO", "LA", "mean error", "bias", f"Quality model: {copy / 'quality.json'}"):
        assert name in found.out
    (kept,) = copy.glob("quality-*.json")
    assert kept.read_bytes() == before
    assert json.loads((copy / "quality.json").read_text())["targets"]["dice"] == 0.6
    found = run("calibrate", copy, "--labelled", data, "--alpha", "0.9")
    assert found.code == 2
    assert "--alpha 0.9: Input should be less than 0.5" in found.err
    found = run("calibrate", tmp_path, "--labelled", data)
    assert found.code == 2
    assert "not a finished run" in found.err


def test_inspect_says_what_a_torch_segmenter_is(run: Run, model: Path, tmp_path: Path) -> None:
    result = run("inspect", model)
    assert result.code == 0
    for words in ("torch", "background 0, LV 1, MYO 2, LA 3", "32 x 32", "It can be adapted."):
        assert words in result.out
    assert run("inspect", model, "--device", "cpu").code == 0
    refused(run("inspect", tmp_path), "not a segmenter folder")
    refused(run("inspect", tmp_path / "nothing"), "nothing: there is no such folder")
    refused(run("inspect", model / "segmenter.json"), "segmenter.json: this is a file; give the folder")


def test_inspect_runs_the_network_before_it_says_that_it_can_be_adapted(run: Run, model: Path, tmp_path: Path) -> None:
    """The description names three of the four classes that the network has."""
    shutil.copytree(model, tmp_path / "model")
    path = tmp_path / "model" / "segmenter.json"
    description = json.loads(path.read_text())
    arguments = {"in_channels": 1, "out_channels": 4, "kernel_size": 1}
    description |= {"network": {"factory": "torch.nn:Conv2d", "arguments": arguments}, "decoder_prefixes": []}
    description["schema"] = {"names": ["background", "LV", "MYO"], "ids": [0, 1, 2]}
    path.write_text(json.dumps(description))
    save_file(torch.nn.Conv2d(**arguments).state_dict(), tmp_path / "model" / "weights.safetensors")
    result = run("inspect", tmp_path / "model")
    assert result.code == 2
    assert "It cannot be adapted: " in result.err
    assert "its 4 outputs" in result.err
    assert "trying the network" in result.err
    assert "It can be adapted." not in result.out


def test_a_run_that_is_not_finished_is_told_from_one_that_is_none(
    run: Run, quality_run: Path, simulated_echo: Path, tmp_path: Path
) -> None:
    shutil.copy(quality_run / "config.yaml", tmp_path)
    images, out = ("--images", simulated_echo / "b"), ("--out", tmp_path / "out")
    for arguments in (
        ("inspect", tmp_path),
        ("evaluate", tmp_path, simulated_echo / "b", *out),
        ("export", tmp_path, "--to", tmp_path / "to"),
        ("score", tmp_path, *images, "--masks", simulated_echo / "b" / "labels", *out),
        ("correct", tmp_path, *images, *out),
        ("calibrate", tmp_path, "--labelled", simulated_echo / "b"),
        ("calibrate-correction", tmp_path, "--labelled", simulated_echo / "b"),
    ):
        refused(run(*arguments), "this run is not finished; go on with it by `medfm-rl adapt --resume`")


def test_evaluate_takes_the_anatomy_of_the_run_and_keeps_the_results_of_another_evaluation(
    run: Run, adapted: tuple[Path, Result], simulated_echo: Path, tmp_path: Path
) -> None:
    """The run's own profile calls every mask valid; a strict one does not call those of the tiny model so."""

    def validity(folder: Path) -> set[str]:
        with (folder / "scores.csv").open() as file:
            return {row["valid"] for row in csv.DictReader(file)}

    command = ("evaluate", adapted[0], simulated_echo / "b", "--out")
    assert run(*command, tmp_path / "own").code == 0
    assert validity(tmp_path / "own") == {"True"}
    assert run(*command, tmp_path / "strict", "--anatomy", "echo_apical").code == 0
    assert validity(tmp_path / "strict") != {"True"}
    before = hash_folder(tmp_path / "own")
    refused(run(*command, tmp_path / "own"), "own: holds the results of an evaluation", "--out")
    assert hash_folder(tmp_path / "own") == before


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("calibrate", "--feedback", "s.sqlite", "--coverage", "0.8", "--networks", "1"), "--networks, --coverage"),
        (("calibrate", "--feedback", "s.sqlite", "--track"), "--track"),
        (("calibrate", "--feedback", "s.sqlite", "--labels", "LV=1"), "--labels"),
        (("calibrate", "--labelled", "DATA", "--unit", "worst"), "--unit"),
        (("predict", "DATA", "OUT", "--scanner", "ge", "--site", "north"), "--scanner, --site"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    run: Run, simulated_echo: Path, tmp_path: Path, given: tuple[str, ...], named: str
) -> None:
    places = {"DATA": simulated_echo / "b", "OUT": tmp_path / "out"}
    command, *words = given
    refused(run(command, tmp_path, *[places.get(word, word) for word in words]), named)


@pytest.mark.parametrize("kind", KINDS)
def test_init_knows_every_kind_of_segmenter(run: Run, tmp_path: Path, kind: str) -> None:
    assert run("init", tmp_path / "mine.yaml", "--segmenter", kind).code == 0
    settings = load_config(tmp_path / "mine.yaml", AdaptConfig).segmenter
    assert settings == KINDS[kind].at("models/source")
    assert f"\n{kind}: " in "\n" + run("init", "--kinds").out


def test_init_writes_settings_for_the_kind_of_segmenter_that_is_asked_for(run: Run, tmp_path: Path) -> None:
    assert run("init", tmp_path / "mine.yaml", "--segmenter", "nnunet").code == 0
    config = load_config(tmp_path / "mine.yaml", AdaptConfig)
    assert config.segmenter.kind == "nnunet"
    refused(run("init", tmp_path / "other.yaml", "--segmenter", "keras"), "--segmenter keras: must be one of torch")
    refused(
        run("init", tmp_path / "other.yaml", "--kind", "train-source", "--segmenter", "nnunet"),
        "--segmenter nnunet: goes with --kind adapt",
    )
    assert not (tmp_path / "other.yaml").exists()


def test_a_stage_that_comes_again_with_more_to_do_shows_how_much(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Bars are for terminals.
    monkeypatch.setenv("FORCE_COLOR", "1")
    with show_progress() as progress:
        progress("hashing", 2, 2)
        progress("hashing", 5, 5)
    assert "5/5" in capsys.readouterr().err


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, np.random.default_rng(seed).integers(0, 255, (8, 9), dtype=np.uint8), Geometry.unknown(2))


def test_check_ends_with_0_where_all_can_be_used_however_suspicious(run: Run, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1), ("c", 1)):
        picture(tmp_path / "data" / f"{name}_1.png", seed)
    result = run("check", tmp_path / "data", "--json", tmp_path / "check.json", "--out", tmp_path / "out")
    assert result.code == 0
    assert "2 of 3 images are the very image of another patient" in result.out
    assert "All 3 cases can be used. 1 thing looks suspicious" in result.out
    assert "checking: 3 of 3" in result.err
    assert json.loads((tmp_path / "check.json").read_text()) == json.loads((tmp_path / "out/check.json").read_text())
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in result.out


def test_check_ends_with_2_where_something_cannot_be_used(run: Run, tmp_path: Path) -> None:
    for index in range(3):
        picture(tmp_path / f"{index}_1.png", index)
    (tmp_path / "1_1.png").write_bytes(b"no picture")
    result = run("check", tmp_path)
    assert result.code == 2
    assert "1_1.png: cannot be read" in result.out
    assert "2 of 3 cases can be used; 1 cannot" in result.out
    (tmp_path / "empty").mkdir()
    assert run("check", tmp_path / "empty").code == 2
