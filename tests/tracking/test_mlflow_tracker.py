from __future__ import annotations

import importlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import medfm_rl
from medfm_rl.errors import MissingExtraError, TrackingError
from medfm_rl.settings import TrackingSettings
from medfm_rl.tracking import DataRecord, NullTracker, mlflow_tracker, open_tracker, open_within, require_store

# MLflow and SQLAlchemy warn of their own future; what medfm-rl does is warned of elsewhere.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
AUTO = TrackingSettings(uri="auto", experiment="tests")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "adapted"
    folder.mkdir()
    return folder


def records(run_folder: Path) -> dict[str, Any]:
    """All runs of the store beside a run folder, by name."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run_folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tests")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs), "a run was recorded twice"
    return {str(run.info.run_name): run for run in runs}


def test_a_run_records_settings_numbers_and_files(run_folder: Path) -> None:
    picture = run_folder / "report.html"
    picture.write_text("<p>report</p>")
    with open_tracker(AUTO, run_folder) as tracker:
        tracker.log_params({"ppo": {"updates": 40, "critic": None}, "empty": {}})
        for step, value in enumerate([0.5, 0.7]):
            tracker.log_metrics({"reward": value}, step)
        tracker.log_artifact(picture, "pictures")
    run = records(run_folder)["adapted"]
    assert run.info.status == "FINISHED"
    assert {name: run.data.params[name] for name in ("ppo.updates", "ppo.critic", "empty")} == {
        "ppo.updates": "40",
        "ppo.critic": "None",
        "empty": "{}",
    }
    assert run.data.metrics == {"reward": 0.7}
    assert run.data.params["environment.torch"].startswith("2.")
    assert run.data.params["environment.git_commit"]
    stored = list((run_folder.parent / "mlflow-artifacts").rglob("pictures/report.html"))
    assert [path.read_text() for path in stored] == ["<p>report</p>"]


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit_of_everything(folder: Path) -> str:
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--allow-empty", "--no-verify", "--message", "everything")
    return git(folder, "rev-parse", "HEAD")


def recorded_commit(package_root: Path, working_folder: Path, **variables: str) -> str:
    """What is recorded by the package below a folder, called from another one."""
    program = (
        "import medfm_rl; from medfm_rl.tracking.environment import environment; "
        f"assert medfm_rl.__file__.startswith({str(package_root)!r}); print(environment()['git_commit'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(package_root), **variables}
    command = [sys.executable, "-W", "ignore", "-c", program]
    found = subprocess.run(
        command, cwd=working_folder, env=environment, check=True, capture_output=True, text=True
    ).stdout
    return found.strip()


def test_the_recorded_commit_is_that_of_the_package_and_not_of_the_working_folder(tmp_path: Path) -> None:
    project, checkout = tmp_path / "project", tmp_path / "checkout"
    shutil.copytree(Path(medfm_rl.__file__).parent, checkout / "medfm_rl", ignore=shutil.ignore_patterns("__pycache__"))
    project.mkdir()
    other, own = commit_of_everything(project), commit_of_everything(checkout)
    assert own != other
    assert recorded_commit(checkout, project) == own
    # As in a hook of the other repository.
    assert recorded_commit(checkout, project, GIT_DIR=str(project / ".git")) == own


def test_a_package_that_is_installed_within_a_checkout_of_something_else_has_no_commit(tmp_path: Path) -> None:
    installed = tmp_path / "site-packages"
    shutil.copytree(
        Path(medfm_rl.__file__).parent, installed / "medfm_rl", ignore=shutil.ignore_patterns("__pycache__")
    )
    commit_of_everything(tmp_path)
    assert recorded_commit(installed, tmp_path) == "not a checkout"


def test_runs_within_a_run_name_their_parent(run_folder: Path) -> None:
    with (
        open_tracker(AUTO, run_folder) as tracker,
        tracker.child("iteration-0") as iteration,
        iteration.child("ppo") as stage,
    ):
        stage.log_metrics({"kl": 0.1}, 3)
    runs = records(run_folder)
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    assert parents == {
        "adapted": None,
        "iteration-0": runs["adapted"].info.run_id,
        "ppo": runs["iteration-0"].info.run_id,
    }
    assert runs["ppo"].data.metrics == {"kl": 0.1}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_a_resumed_run_goes_on_with_its_records(run_folder: Path) -> None:

    def interrupted() -> None:
        with open_tracker(AUTO, run_folder) as tracker, tracker.child("iteration-0") as iteration:
            iteration.log_metrics({"reward": 0.1}, 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    runs = records(run_folder)
    assert {name: run.info.status for name, run in runs.items()} == {"adapted": "KILLED", "iteration-0": "KILLED"}
    with open_tracker(AUTO, run_folder) as tracker, tracker.child("iteration-0") as iteration:
        iteration.log_metrics({"reward": 0.2}, 1)
    again = records(run_folder)
    assert {name: run.info.run_id for name, run in again.items()} == {n: run.info.run_id for n, run in runs.items()}
    assert {run.info.status for run in again.values()} == {"FINISHED"}
    assert again["iteration-0"].data.metrics == {"reward": 0.2}


def test_a_run_that_fails_is_recorded_as_failed(run_folder: Path) -> None:
    with pytest.raises(ValueError, match="broken"), open_tracker(AUTO, run_folder):
        raise ValueError("broken")
    assert records(run_folder)["adapted"].info.status == "FAILED"


def test_a_run_that_the_store_has_lost_is_recorded_anew(run_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run_folder / "mlflow_run_id").write_text("0123456789abcdef0123456789abcdef\n")
    with caplog.at_level(logging.WARNING), open_tracker(AUTO, run_folder):
        pass
    assert "a new one is started" in caplog.text
    assert (run_folder / "mlflow_run_id").read_text().strip() == records(run_folder)["adapted"].info.run_id


def test_long_values_are_cut_and_say_so(run_folder: Path) -> None:
    with open_tracker(AUTO, run_folder) as tracker:
        tracker.log_params({"long": "x" * 10_000})
    value = records(run_folder)["adapted"].data.params["long"]
    assert len(value) == 500
    assert value.endswith("x...")


@contextmanager
def silent_server() -> Iterator[int]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_server_that_is_not_there_or_does_not_answer_is_named_soon(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_tracker, "_CONNECT_SECONDS", 0.3)
    # Its import alone takes seconds.
    importlib.import_module("mlflow")
    with silent_server() as port:
        uris = [f"http://127.0.0.1:{port}", f"https://127.0.0.1:{port}"]
        with socket.create_server(("127.0.0.1", 0)) as closed:
            uris.append(f"http://127.0.0.1:{closed.getsockname()[1]}")
        for uri in uris:
            start = time.perf_counter()
            with (
                pytest.raises(TrackingError, match=f"tracking.uri {uri}.*does not answer.*tracking.uri to null"),
                open_tracker(TrackingSettings(uri=uri), run_folder),
            ):
                pytest.fail("there is nothing to record to")
            # MLflow itself tries for minutes.
            assert time.perf_counter() - start < 10


@pytest.mark.parametrize("uri", ["127.0.0.1:5000", "tracking.internal", "runs/mlruns"])
def test_an_address_that_does_not_say_what_it_is_is_refused(run_folder: Path, uri: str) -> None:
    """MLflow would make a folder of that name."""
    settings = TrackingSettings(uri=uri)
    with pytest.raises(TrackingError, match=rf"tracking\.uri {uri}: .*http://{uri} for a server, sqlite:///{uri}"):
        require_store(settings)
    with pytest.raises(TrackingError, match="does not say what it is"), open_tracker(settings, run_folder):
        pytest.fail("there is nothing to record to")


def test_asking_whether_there_is_a_store_writes_nothing(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for uri in (None, "auto", f"sqlite:///{tmp_path / 'mlflow.db'}", (tmp_path / "mlruns").as_uri()):
        require_store(TrackingSettings(uri=uri))
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(TrackingError, match="the MLflow server does not answer"):
        require_store(TrackingSettings(uri=f"http://127.0.0.1:{port}"))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_store_that_is_not_a_data_base_is_named(run_folder: Path) -> None:
    (run_folder / "mlflow.db").write_bytes(b"this is no SQLite file, whatever its name says" * 40)
    uri = f"sqlite:///{run_folder / 'mlflow.db'}"
    with (
        pytest.raises(TrackingError, match=r"tracking\.uri .*mlflow\.db: MLflow refuses"),
        open_tracker(TrackingSettings(uri=uri), run_folder),
    ):
        pytest.fail("there is nothing to record to")


def test_a_setting_that_changed_keeps_its_first_value_and_the_records_go_on(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """MLflow refuses other values: after an update of a package, say, a run is resumed in another environment."""
    with open_tracker(AUTO, run_folder) as tracker:
        tracker.log_params({"version": "1"})
    with caplog.at_level(logging.WARNING), open_tracker(AUTO, run_folder) as tracker:
        tracker.log_params({"version": "2"})
        tracker.log_metrics({"reward": 0.5}, 0)
    run = records(run_folder)["adapted"]
    assert (run.data.params["version"], run.data.metrics) == ("1", {"reward": 0.5})
    assert "version was recorded with another value before" in caplog.text


def test_names_of_structures_are_recorded_whatever_characters_they_have(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), open_tracker(AUTO, run_folder) as tracker:
        tracker.log_metrics({"dice_left ventricle (LV)": 0.9, "dice_A, B + C & Ü": 0.8, "x" * 300: 0.7}, 0)
        tracker.log_params({"structures": {"left ventricle (LV)": 1}})
    run = records(run_folder)["adapted"]
    assert run.data.metrics == {"dice_left ventricle _LV_": 0.9, "dice_A_ B _ C _ Ü": 0.8, "x" * 250: 0.7}
    assert run.data.params["structures.left ventricle _LV_"] == "1"
    assert (run.info.status, caplog.text) == ("FINISHED", "")


def test_a_value_that_the_store_does_not_take_costs_a_warning_and_nothing_else(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A path that leads upwards is no name, and a word no number."""
    with caplog.at_level(logging.WARNING), open_tracker(AUTO, run_folder) as tracker:
        tracker.log_metrics({"../up": 0.1, "word": "high", "reward": 0.5}, 0)  # type: ignore[dict-item]
        tracker.log_params({"../up": 1, "seed": 0})
        with tracker.child("ppo"):
            pass
    runs = records(run_folder)
    assert runs["adapted"].data.metrics == {"reward": 0.5}
    assert runs["adapted"].data.params["seed"] == "0"
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert caplog.text.count("MLflow does not take a record") == 3
    assert "another value" not in caplog.text
    assert "stopped answering" not in caplog.text


class Lost:
    """A client that does not answer any more."""

    def __init__(self) -> None:
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        from mlflow.exceptions import MlflowException

        def fail(*_: object, **__: object) -> None:
            self.calls += 1
            raise MlflowException("connection refused")

        return fail


def test_a_store_that_goes_away_costs_the_records_and_one_warning_but_not_the_run(
    run_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lost = Lost()
    with caplog.at_level(logging.WARNING), open_tracker(AUTO, run_folder) as tracker:
        tracker._store.client = lost  # type: ignore[attr-defined]
        with tracker.child("iteration-0") as iteration:
            iteration.log_metrics({"reward": 0.5}, 0)
        tracker.log_params({"a": 1})
        tracker.log_artifact(run_folder)
    assert lost.calls == 1
    assert caplog.text.count("stopped answering") == 1


def test_without_a_store_nothing_is_recorded_nor_imported(run_folder: Path) -> None:
    before = set(sys.modules)
    with open_tracker(TrackingSettings(uri=None), run_folder) as tracker:
        assert isinstance(tracker, NullTracker)
        tracker.log_params({"a": 1})
        tracker.log_metrics({"b": 1.0}, 0)
        tracker.log_artifact(run_folder / "missing")
        with tracker.child("iteration-0") as iteration:
            assert iteration is tracker
    assert not {name for name in set(sys.modules) - before if name.startswith("mlflow")}
    assert list(run_folder.iterdir()) == []


def test_a_missing_mlflow_says_what_to_install(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'medfm-rl\[tracking\]'"), open_tracker(AUTO, run_folder):
        pytest.fail("there is nothing to record with")


def test_a_data_set_is_recorded_once_and_without_a_name_in_it(run_folder: Path) -> None:
    data = DataRecord("/data/site", "ab" * 32, cases=24, patients=6)
    for _ in range(2):
        with open_tracker(AUTO, run_folder) as tracker:
            tracker.log_data("target", data)
    run = records(run_folder)["adapted"]
    assert {name: value for name, value in run.data.params.items() if name.startswith("data.")} == {
        "data.target.path": "/data/site",
        "data.target.hash": "ab" * 32,
        "data.target.cases": "24",
        "data.target.patients": "6",
    }
    (found,) = run.inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("target", ("ab" * 32)[:36])
    assert "file:///data/site" in found.dataset.source
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "target")]


START = (
    "import sys; from pathlib import Path; from medfm_rl.settings import TrackingSettings\n"
    "from medfm_rl.tracking import open_tracker\n"
    "folder = Path(sys.argv[1]); folder.mkdir()\n"
    "with open_tracker(TrackingSettings(uri='auto', experiment='tests'), folder) as tracker:\n"
    "    for step in range(20):\n"
    "        tracker.log_params({f'setting{step}': step}); tracker.log_metrics({'loss': step}, step)\n"
)


def test_runs_that_start_at_once_make_one_store_and_lose_no_record(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", START]
    others = [
        subprocess.Popen([*command, str(tmp_path / name)], stderr=subprocess.PIPE, text=True)
        for name in ("a", "b", "c")
    ]
    for other in others:
        _, printed = other.communicate()
        assert other.returncode == 0, printed
        assert "without records" not in printed
    runs = records(tmp_path / "a")
    assert set(runs) == {"a", "b", "c"}
    for run in runs.values():
        assert run.data.metrics == {"loss": 19}
        assert {f"setting{step}" for step in range(20)} <= set(run.data.params)


def test_a_run_that_was_moved_without_its_store_says_so_and_makes_no_other(tmp_path: Path, run_folder: Path) -> None:
    with open_tracker(AUTO, run_folder):
        pass
    moved = tmp_path / "elsewhere" / "adapted"
    shutil.copytree(run_folder, moved)
    with (
        pytest.raises(TrackingError, match=r"elsewhere/mlflow\.db: is not there, and the records of adapted are in it"),
        open_within(AUTO, moved, "predict"),
    ):
        pytest.fail("the block must not start")
    assert [path.name for path in moved.parent.iterdir()] == ["adapted"]
