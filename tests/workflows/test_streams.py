"""`medfm-rl stream` and `medfm-rl monitor` from end to end."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.score_files import write_scores_file

from medfm_rl import cli
from medfm_rl.errors import ConfigError
from medfm_rl.quality.drift import mask_key
from medfm_rl.quality.promises import Grounds, PromiseTarget, ReviewedMask, prove
from medfm_rl.runs.scores import Scores
from medfm_rl.runs.stream_history import read_stream
from medfm_rl.runs.stream_state import add_reviews
from medfm_rl.workflows.streams import monitor, stream_names, stream_scores

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`medfm-rl ARGUMENTS` in this process: exit code, and what was said.

    Draws are foreseen: a stream in which nothing changes has a false alarm now and then, and is allowed to.
    """
    monkeypatch.setattr("medfm_rl.seeding.unforeseen_seed", lambda: 0)

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["medfm-rl", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return int(stopped.value.code or 0), captured.out + captured.err

    return call


def cases(first: int, count: int, distance: float = 1.0) -> list[tuple[str, str, float, float]]:
    generator = np.random.default_rng(first)
    return [
        (f"c{n}", f"p{n}", float(0.9 + 0.02 * generator.normal()), float(distance + 0.1 * generator.normal()))
        for n in range(first, first + count)
    ]


@pytest.fixture
def quiet(tmp_path: Path) -> Path:
    """A stream of 60 studies of one scanner."""
    scores = write_scores_file(tmp_path / "scores.json", cases(0, 60))
    stream_scores(tmp_path / "ge.jsonl", scores, "ge-1", "apical", "north", audit_share=0.2)
    return tmp_path / "ge.jsonl"


def promised(folder: Path) -> Path:
    """A run with a promise for masks that meet every rule, which those above do not, from the first 24 of them."""
    masks = [ReviewedMask(f"c{n}", f"p{n}", 0.8, True, 0.9) for n in range(24)]
    evidence = Grounds(
        quality_hash="a" * 64,
        scores_hash="s",
        feedback="f",
        feedback_hash="h",
        reviewers=("r1", "r2"),
        masks=tuple(mask_key(f"c{n}", f"mask of c{n}") for n in range(24)),
    )
    prove(masks, PromiseTarget()).model_copy(update={"evidence": evidence}).write(folder / "promise.json")
    return folder


def test_what_a_scores_file_says_of_each_case(tmp_path: Path) -> None:
    scores = Scores.read(write_scores_file(tmp_path / "scores.json", cases(0, 2)))
    assert scores.quality == "a" * 64
    assert [(name, case.patient_id, case.broken_rules) for name, case in scores.cases.items()] == [
        ("c0", "p0", ("size",)),
        ("c1", "p1", ("size",)),
    ]


def test_adding_scores_names_what_is_drawn_and_can_be_repeated(tmp_path: Path, command: Command) -> None:
    scores = write_scores_file(tmp_path / "scores.json", cases(0, 30))
    half = tmp_path / "half.yaml"
    half.write_text("audit_share: 0.5")
    arguments = ("stream", "add", tmp_path / "ge.jsonl", "--scores", scores, "--scanner", "ge-1", "--policy", half)
    code, said = command(*arguments)
    assert code == 0, said
    assert "Added: 30 studies with 30 masks; 0 were there already" in said
    drawn = [case.case for case in read_stream(tmp_path / "ge.jsonl").open_audits]
    assert drawn
    assert f"Drawn for audit: {', '.join(drawn)}" in said
    assert "no change found in 30 studies" in said
    assert "Added: 0 studies with 0 masks; 30 were there already" in command(*arguments)[1]


def test_a_stream_without_a_scanner_is_warned_of_and_another_scanner_refused(tmp_path: Path, command: Command) -> None:
    first = write_scores_file(tmp_path / "first.json", cases(0, 3))
    code, said = command("stream", "add", tmp_path / "x.jsonl", "--scores", first)
    assert (code, "nobody has said which scanner" in said) == (0, True)
    code, said = command("stream", "add", tmp_path / "x.jsonl", "--scores", first, "--scanner", "ge-1")
    assert (code, "is of scanner unknown" in said) == (2, True)
    (tmp_path / "more.yaml").write_text("audit_share: 2")
    code, said = command("stream", "add", tmp_path / "y.jsonl", "--scores", first, "--policy", tmp_path / "more.yaml")
    assert (code, "audit_share" in said) == (2, True)


def test_the_page_shows_a_quiet_stream_and_its_promise(quiet: Path, tmp_path: Path, command: Command) -> None:
    page = tmp_path / "monitor.html"
    code, said = command("monitor", quiet, "--run", promised(tmp_path), "--page", page, "--fail-on", "alarm")
    assert code == 0, said
    assert "promise: in force" in said
    text = page.read_text()
    assert "ge-1" in text
    assert "no change found in 60 studies" in text
    assert "<strong>in force</strong>" in text
    assert text.count("<img") == 1
    assert "http" not in text


def test_a_change_is_named_on_the_page_withdraws_the_promise_and_ends_with_code_3(
    quiet: Path, tmp_path: Path, command: Command
) -> None:
    stream_scores(quiet, write_scores_file(tmp_path / "later.json", cases(60, 12, distance=3.0)))
    code, said = command(
        "monitor", quiet, "--run", promised(tmp_path), "--page", tmp_path / "m.html", "--fail-on", "alarm"
    )
    assert code == 3
    assert "by appearance: images are less like those of the calibration" in said
    assert "promise: withdrawn" in said
    code, said = command("stream", "restart", quiet, "--reason", "new probe, checked")
    assert code == 0
    views = monitor([quiet])
    assert views[0].drift.alarm is None
    assert views[0].drift_words == "too short to tell: 0 studies and reviews"


def test_bad_audits_withdraw_a_promise(tmp_path: Path) -> None:
    scores = write_scores_file(tmp_path / "scores.json", cases(0, 40))
    text = scores.read_text().replace('"passed": false', '"passed": true')
    scores.write_text(text)
    stream_scores(tmp_path / "ge.jsonl", scores, "ge-1", audit_share=1.0)
    keys = [study.cases[0].key for study in read_stream(tmp_path / "ge.jsonl").studies]
    add_reviews(tmp_path / "ge.jsonl", {keys[0]: 0.9})
    run = promised(tmp_path)
    assert monitor([tmp_path / "ge.jsonl"], run=run)[0].state.standing == "in force"
    add_reviews(tmp_path / "ge.jsonl", {keys[1]: 0.2, keys[2]: 0.3, keys[3]: 0.1})
    view = monitor([tmp_path / "ge.jsonl"], run=run)[0]
    assert (view.state.standing, view.under_promise, view.bad_under_promise) == ("withdrawn", 4, 3)
    assert "3 of 4 patients have accepted masks that are bad" in view.state.reason


def test_a_stream_of_simulated_images_says_so_wherever_it_shows(quiet: Path, tmp_path: Path, command: Command) -> None:
    scores = write_scores_file(tmp_path / "simulated.json", cases(0, 3))
    content = json.loads(scores.read_text())
    scores.write_text(json.dumps({**content, "simulated": True}))
    drawn = tmp_path / "drawn.jsonl"
    stream_scores(drawn, scores, "ge-1", "apical", "north")
    assert all(case.simulated for case in read_stream(drawn).cases.values())
    banner = "SIMULATED DATA: every image on this page"
    for streams, marked, whole in (([drawn], 1, True), ([quiet, drawn], 1, False), ([quiet], 0, False)):
        page = tmp_path / "page.html"
        _, said = command("monitor", *streams, "--page", page)
        assert said.count("(SIMULATED DATA)") == marked
        assert page.read_text().count("<h2>drawn (SIMULATED)</h2>") == marked
        assert (banner in page.read_text()) == whole
    assert "simulated" not in quiet.read_text()


def test_prometheus_reads_what_is_written(quiet: Path, tmp_path: Path) -> None:
    monitor([quiet], prometheus=tmp_path / "streams.prom")
    text = (tmp_path / "streams.prom").read_text()
    sample = re.compile(r'medfm_rl_stream_\w+\{(\w+="[^"]*",?)+\} [-+.e0-9]+')
    lines = text.splitlines()
    assert all(line.startswith(("# HELP", "# TYPE")) or sample.fullmatch(line) for line in lines)
    label = '{stream="ge",scanner="ge-1",protocol="apical",site="north"}'
    assert f"medfm_rl_stream_studies{label} 60" in lines
    assert f"medfm_rl_stream_alarm{label} 0" in lines
    assert "reviewed_mean_dice{" not in text


def test_streams_of_one_file_name_are_told_apart_by_their_folders(
    quiet: Path, tmp_path: Path, command: Command
) -> None:
    north, south, rv = (tmp_path / place for place in ("north/ge.jsonl", "south/ge.jsonl", "south/rv.jsonl"))
    for place in (north, south, rv):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(quiet.read_bytes())
    places, page = ("--prometheus", tmp_path / "streams.prom"), tmp_path / "monitor.html"
    code, said = command("monitor", north, south, rv, *places, "--page", page)
    assert code == 0, said
    samples = [line.split()[0] for line in (tmp_path / "streams.prom").read_text().splitlines() if line[0] != "#"]
    assert len(samples) == len(set(samples))
    names = ["north/ge", "south/ge", "rv"]
    assert re.findall(r'medfm_rl_stream_studies\{stream="([^"]*)"', "\n".join(samples)) == names
    assert re.findall(r"<h2>(.*)</h2>", page.read_text()) == ["By scanner", *names]
    assert all(f"{name} (scanner ge-1" in said for name in names)


def test_streams_in_one_folder_whose_suffixes_alone_differ_keep_them(tmp_path: Path) -> None:
    assert stream_names([tmp_path / "ge.jsonl", tmp_path / "ge.json", tmp_path / "rv.jsonl"]) == [
        "ge.jsonl",
        "ge.json",
        "rv",
    ]


def test_a_stream_that_is_given_twice_is_refused(quiet: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is given twice"):
        monitor([quiet, quiet])
    (tmp_path / "link.jsonl").symlink_to(quiet)
    with pytest.raises(ConfigError, match=r"link\.jsonl: is the same file as .*ge\.jsonl"):
        monitor([quiet, tmp_path / "link.jsonl"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_mlflow_records_a_stream_as_one_run(quiet: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monitor([quiet], mlflow=uri)
    stream_scores(quiet, write_scores_file(tmp_path / "later.json", cases(60, 3)))
    monitor([quiet], mlflow=uri)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("medfm-rl")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1
    assert runs[0].data.params["scanner"] == "ge-1"
    history = client.get_metric_history(runs[0].info.run_id, "studies")
    assert [(each.step, each.value) for each in history] == [(60, 60), (63, 63)]
