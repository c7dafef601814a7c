from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from support.ray_cluster import running_cluster, without_tokens

from medfm_rl.data.images import read_image, write_image
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.data.mask_files import find_masks
from medfm_rl.errors import ConfigError, DataError, MissingExtraError
from medfm_rl.progress import silent
from medfm_rl.reward.network import RewardNet
from medfm_rl.runs.case_records import CaseRecords
from medfm_rl.runs.finished import load_run
from medfm_rl.runs.models import ModelInMemory
from medfm_rl.settings import CorrectionSettings, DataSettings, NetworkSettings
from medfm_rl.version import __version__
from medfm_rl.workflows.deploy.choose import ChooseRequest, choose
from medfm_rl.workflows.deploy.correct import CorrectRequest, correct
from medfm_rl.workflows.deploy.predict import predict
from medfm_rl.workflows.deploy.score import ScoreRequest, score
from medfm_rl.workflows.deploy.worker import Piece, WorkerError
from medfm_rl.workflows.deploy.workers import Workers, at_work, require_same_version

_LONGEST_COMMAND = 240

SETTINGS = CorrectionSettings(steps=2, smoothness=1, learning_rate=5.0, seconds=600)
SHOWS_SECONDS = {"corrections.csv", "corrections.json", "report.html"}


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """Two workers on this machine, for all tests: starting them takes seconds."""
    # Not imported here: what it may do is said before.
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed (extra ray)")
    with Workers("2", "cpu") as found:
        yield found


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """As the workers have: sums go in another order with more."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(quality_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run with a verifier of its own."""
    folder = tmp_path_factory.mktemp("workers") / "run"
    shutil.copytree(quality_run, folder)
    torch.manual_seed(7)
    RewardNet(NetworkSettings(channels=(4, 8), residual_units=0), 4).save(folder / "reward" / "held-out")
    return folder


@pytest.fixture
def images(quality_run: Path, tmp_path: Path) -> Path:
    """Twenty cases with their masks: more than are assessed together."""
    for part in ("images", "labels"):
        (tmp_path / "data" / part).mkdir(parents=True)
        for path in sorted((quality_run.parent / "data" / part).iterdir())[:20]:
            shutil.copy(path, tmp_path / "data" / part)
    return tmp_path / "data"


def cases_of(images: Path) -> list[CaseFile]:
    return find_cases(DataSettings(path=images / "images"))


def left_in(out: Path) -> dict[str, Any]:
    """Everything that lies in an output folder, but for the times and the name of the folder."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_dir():
            continue
        content = path.read_bytes().replace(str(out).encode(), b"OUT")
        match path.suffix:
            case ".jsonl":
                found[name] = [without_times(json.loads(line)) for line in content.splitlines()]
            case ".json":
                found[name] = without_times(json.loads(content))
            case ".csv":
                found[name] = [without_times(row) for row in csv.DictReader(io.StringIO(content.decode()))]
            case ".html":
                found[name] = len(content) if name == "report.html" and (out / "corrections.json").exists() else content
            case _:
                found[name] = content
    return found


def without_times(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: without_times(value) for name, value in content.items() if name not in ("time", "seconds")}
    return [without_times(value) for value in content] if isinstance(content, list) else content


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = left_in(one), left_in(other)
    assert list(ours) == list(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


def said_of_cases(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged, but for how the workers themselves are."""
    return [record.getMessage() for record in caplog.records if not record.name.endswith(".workers")]


def killing(workers: Workers) -> Callable[[str, int, int], None]:
    """A progress that kills a worker when the first case is done."""
    killed: list[int] = []

    def told(stage: str, done: int, total: int) -> None:
        if stage != "starting workers" and not killed:
            killed.append(workers.processes[-1])
            os.kill(killed[0], signal.SIGKILL)

    return told


@pytest.mark.ray
def test_predict_leaves_the_same_as_one_process_and_names_what_fails_once(
    workers: Workers, run: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = cases_of(images)
    broken = files[3].image_paths[0]
    broken.write_bytes(b"no image")
    alone = predict(load_run(run, "cpu"), files, tmp_path / "one")
    said = said_of_cases(caplog)
    caplog.clear()
    told: list[tuple[str, int, int]] = []
    together = predict(load_run(run, "cpu"), files, tmp_path / "two", lambda *step: told.append(step), workers)
    assert together == alone
    assert len(together) == 1
    assert said_of_cases(caplog) == said
    assert [step for step in told if step[0] == "predicting"] == [("predicting", done, 20) for done in range(1, 21)]
    assert told[0][:2] == ("starting workers", 0)
    assert_same(tmp_path / "one", tmp_path / "two")
    log = (tmp_path / "two" / "audit.jsonl").read_text()
    # A repeated call finds all but the broken one done, with workers and without.
    for again in (workers, None):
        assert predict(load_run(run, "cpu"), files, tmp_path / "two", silent, again) == alone
    assert len((tmp_path / "two" / "audit.jsonl").read_text().splitlines()) == len(log.splitlines()) + 2


@pytest.mark.ray
def test_a_worker_that_is_killed_costs_no_case(
    workers: Workers, run: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = cases_of(images)
    predict(load_run(run, "cpu"), files, tmp_path / "one")
    before = len(workers.processes)
    assert predict(load_run(run, "cpu"), files, tmp_path / "two", killing(workers), workers) == []
    assert_same(tmp_path / "one", tmp_path / "two")
    if len(workers.processes) > before:
        assert "died" in caplog.text


@pytest.mark.ray
@pytest.mark.parametrize("given", [True, False])
def test_score_leaves_the_same_as_one_process(
    workers: Workers, run: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, given: bool
) -> None:
    files = cases_of(images)
    if given:
        files[2].image_paths[0].write_bytes(b"no image")
        masks = find_masks(images / "labels", files)
        masks[files[17].case_id].write_bytes(b"no mask")
        drawn, grid = read_image(masks[files[5].case_id])
        write_image(masks[files[5].case_id], np.zeros(drawn.shape[1:], np.uint8), grid)
    request = ScoreRequest(masks=find_masks(images / "labels", files) if given else None)
    one, two = tmp_path / "one", tmp_path / "two"
    caplog.clear()
    alone = score(load_run(run, "cpu"), files, one, request)
    said = said_of_cases(caplog)
    caplog.clear()
    together = score(load_run(run, "cpu"), files, two, request, silent, workers)
    assert said_of_cases(caplog) == said
    assert together.problems == alone.problems
    assert len(together.problems) == (2 if given else 0)
    if given:
        assert any(line.startswith("images: 1 of 18 masks is empty") for line in said)
    assert_same(one, two)
    shutil.rmtree(one)
    shutil.copytree(two, one)
    # What is known of the images is known in a repeated call, too.
    caplog.clear()
    score(load_run(run, "cpu"), files, one, request)
    assert [line for line in said if line.startswith("images: ")] == [
        line for line in said_of_cases(caplog) if line.startswith("images: ")
    ]


@pytest.mark.ray
def test_correct_scores_and_corrects_as_one_process_does(
    workers: Workers, run: Path, images: Path, tmp_path: Path
) -> None:
    files = cases_of(images)[:5]
    for name, request in (("scored", CorrectRequest(SETTINGS)), ("all", CorrectRequest(SETTINGS, every=True))):
        one, two = tmp_path / f"{name}-one", tmp_path / f"{name}-two"
        alone = correct(load_run(run, "cpu"), files, one, request)
        together = correct(load_run(run, "cpu"), files, two, request, silent, workers)
        assert together.problems == alone.problems == {}
        assert together.untouched == alone.untouched
        assert_same(one, two)


@pytest.mark.ray
def test_choose_scores_both_sets_of_masks_as_one_process_does(
    workers: Workers, run: Path, images: Path, tmp_path: Path
) -> None:
    files = cases_of(images)[:5]
    request = ChooseRequest(find_masks(images / "labels", files))
    for out, hands in ((tmp_path / "one", None), (tmp_path / "two", workers)):
        choose(load_run(run, "cpu"), files, out, request, silent, hands)
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.ray
def test_an_interrupted_call_leaves_nothing_half_and_goes_on(
    workers: Workers, run: Path, images: Path, tmp_path: Path
) -> None:
    files, out = cases_of(images), tmp_path / "two"
    predict(load_run(run, "cpu"), files, tmp_path / "one")

    def interrupting(stage: str, done: int, total: int) -> None:
        if (stage, done) == ("predicting", 4):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(load_run(run, "cpu"), files, out, interrupting, workers)
    made = {path.name for path in out.rglob("*") if path.is_file()}
    assert not [name for name in made if name.startswith(".")]
    assert len((out / "audit.jsonl").read_text().splitlines()) == 4
    assert predict(load_run(run, "cpu"), files, out, silent, workers) == []
    assert_same(tmp_path / "one", out)


@pytest.mark.ray
def test_a_model_in_memory_is_refused_before_anything_is_written(
    workers: Workers, run: Path, images: Path, tmp_path: Path
) -> None:
    model = ModelInMemory(load_run(run, "cpu").segmenter)
    with pytest.raises(ConfigError, match=r"lies in the memory of this process alone.*export it to a folder"):
        predict(model, cases_of(images), tmp_path / "out", silent, workers)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def cluster() -> Iterator[str]:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed (extra ray)")
    with running_cluster(_LONGEST_COMMAND) as address:
        yield address


@pytest.mark.ray
def test_the_command_on_a_cluster_leaves_the_same_as_one_process(
    cluster: str, run: Path, images: Path, tmp_path: Path
) -> None:
    """In a process of its own: the cores of the Ray of these tests are taken by workers that wait."""
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted((images / "images").iterdir())[:3]:
        shutil.copy(path, few)
    environment = {**without_tokens(), "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    arguments = [str(run), str(few), str(tmp_path / "two"), "--device", "cpu", "--workers", cluster]
    subprocess.run(
        [sys.executable, "-m", "medfm_rl", "predict", *arguments], check=True, timeout=_LONGEST_COMMAND, env=environment
    )
    predict(load_run(run, "cpu"), find_cases(DataSettings(path=few)), tmp_path / "one")
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.ray
def test_a_case_that_kills_workers_is_named_and_the_others_are_done(
    workers: Workers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Deadly:
        """Its own class, and not that of a module: so it is sent whole."""

        maker: ClassVar[dict[str, str]] = {}

        def load(self, device: str) -> Any:
            return self

        def take(self, content: str) -> None:
            import os

            if content == "b":
                os._exit(1)

        def finish(self) -> dict[str, str]:
            return dict.fromkeys("abcd", "said")

    records = CaseRecords(tmp_path, "test")
    with at_work(workers, Deadly(), {}, [], records, silent) as crew:
        assert crew.works
        crew.give([tuple(Piece(name, name, ()) for name in "ab"), tuple(Piece(name, name, ()) for name in "cd")])
        assert [crew.wait_for(name) for name in "acd"] == ["said"] * 3
        with pytest.raises(DataError, match="case b: 3 workers died over it"):
            crew.wait_for("b")
    assert caplog.text.count("died over") == 5
    assert caplog.text.count("died over a, b") == 2


@pytest.mark.ray
def test_cases_of_a_worker_that_died_by_chance_are_handled_in_the_same_company(
    workers: Workers, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class DiesOnce:
        """Its own class, and not that of a module: so it is sent whole."""

        maker: ClassVar[dict[str, str]] = {}

        def __init__(self, mark: Path) -> None:
            self.mark = mark
            self.taken: list[str] = []

        def load(self, device: str) -> Any:
            return self

        def take(self, content: str) -> None:
            import os

            if not self.mark.exists():
                self.mark.touch()
                os._exit(1)
            self.taken.append(content)

        def finish(self) -> dict[str, str]:
            company = "".join(self.taken)
            names, self.taken = self.taken, []
            return dict.fromkeys(names, company)

    records = CaseRecords(tmp_path, "test")
    with at_work(workers, DiesOnce(tmp_path / "died"), {}, [], records, silent) as crew:
        crew.give([tuple(Piece(name, name, ()) for name in "abc")])
        assert [crew.wait_for(name) for name in "abc"] == ["abc"] * 3
    assert caplog.text.count("died over a, b, c") == 1


@pytest.mark.ray
def test_a_worker_that_was_busy_is_gone_when_the_call_has_ended(workers: Workers, tmp_path: Path) -> None:
    """Ray says that it has ended a worker before its process has: it would still be writing where others begin."""

    class Endless:
        maker: ClassVar[dict[str, str]] = {}

        def load(self, device: str) -> Any:
            return self

        def take(self, place: Path | None) -> None:
            import os

            if place is None:
                return
            place.write_text(f"{os.getpid()}")
            while True:
                place.with_name("more").write_text("writing")

        def finish(self) -> dict[str, str]:
            return {}

    written = tmp_path / "process"
    with at_work(workers, Endless(), {}, [], CaseRecords(tmp_path, "test"), silent) as crew:
        crew.give([(Piece("endless", written, ()),)])
        for number in range(10_000):
            # The workers are told what to do while one of the others is waited for.
            crew.give([(Piece(f"{number}", None, ()),)])
            crew.wait_for(f"{number}")
            if written.exists() and written.read_text():
                break
    with pytest.raises(ProcessLookupError):
        os.kill(int(written.read_text()), 0)


@pytest.mark.ray
def test_workers_that_see_other_files_or_networks_are_refused(workers: Workers, run: Path, tmp_path: Path) -> None:
    class Empty:
        maker: ClassVar[dict[str, str]] = {"weights": "theirs"}

        def load(self, device: str) -> Any:
            return self

    def use(maker: dict[str, str], seen: list[Path]) -> None:
        with at_work(workers, Empty(), maker, seen, CaseRecords(tmp_path, "test"), silent) as crew:
            assert crew.works
            crew.give([(Piece("a", "a", ()),)])
            crew.wait_for("a")

    with pytest.raises(WorkerError, match=r"the worker on .* \(process [0-9]+\): does not see .*elsewhere; images, "):
        use({"weights": "theirs"}, [tmp_path / "elsewhere"])
    with pytest.raises(WorkerError, match=r"has loaded other networks or settings than are here \(weights\)"):
        use({"weights": "ours"}, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("0", "--workers 0: must be 1 or more"),
        ("-2", "--workers -2: must be 1 or more"),
        ("many", "--workers many: must be a number of processes on this machine"),
        ("http://host", "--workers http://host: must be a number .* ray://HOST:10001"),
    ],
)
def test_what_is_no_number_of_workers_and_no_cluster_is_refused(where: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Workers(where)


@pytest.mark.ray
@pytest.mark.parametrize("failures", [0, 2])
def test_a_session_that_a_head_fails_to_start_is_asked_for_again(
    failures: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = fail_to_begin(monkeypatch, failures)
    with Workers("ray://head.example:10001") as workers:
        assert workers.count == 2
    assert asked == ["ray://head.example:10001"] * (failures + 1)
    said = [record.getMessage() for record in caplog.records if "trying again" in record.getMessage()]
    again = "ray://head.example:10001 has not started a session (failed: PID 7: zombie); trying again"
    assert said == [again] * failures


@pytest.mark.ray
def test_a_head_that_starts_no_session_is_named_with_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = fail_to_begin(monkeypatch, 3)
    with pytest.raises(WorkerError, match=r"ray://head\.example:10001: no Ray cluster .*\(failed: PID 7: zombie\)"):
        Workers("ray://head.example:10001")
    assert len(asked) == 3


def fail_to_begin(monkeypatch: pytest.MonkeyPatch, failures: int) -> list[str]:
    """A head of eight cores that fails to start so many sessions; the addresses that it is asked at.

    Ray itself is not imported: workers of this machine want to say things to it before that.
    """
    if importlib.util.find_spec("grpc") is None:
        pytest.skip("Ray's client is not installed (extra ray)")
    asked: list[str] = []

    def begin(address: str, **_: Any) -> None:
        asked.append(address)
        if len(asked) <= failures:
            raise ConnectionAbortedError("failed:\nTraceback (most recent call last):\n  File x\nPID 7: zombie\n")

    ray = SimpleNamespace(
        init=begin,
        shutdown=lambda: None,
        is_initialized=lambda: False,
        cluster_resources=lambda: {"CPU": 8.0},
        remote=lambda **_: lambda worker: worker,
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    return asked


def test_a_missing_ray_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'medfm-rl\[ray\]'"):
        Workers("2")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"medfm_rl": "0.0.1"}, f"has medfm-rl 0.0.1, and here is {__version__}; install {__version__} there"),
        ({"medfm_rl": None, "problem": "No module named 'medfm_rl'"}, r"has no medfm-rl of this version \(No module"),
    ],
)
def test_another_version_on_a_worker_is_refused(found: dict[str, Any], message: str) -> None:
    require_same_version("the worker on a (process 1)", {"medfm_rl": __version__})
    with pytest.raises(WorkerError, match=message):
        require_same_version("the worker on a (process 1)", found)
