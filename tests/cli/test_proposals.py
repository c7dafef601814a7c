"""`medfm-rl propose` as its user meets it."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from medfm_rl import cli
from medfm_rl.feedback import FeedbackError


@pytest.fixture
def images(quality_run: Path, tmp_path: Path) -> Path:
    """Two images of each of six patients, in names that only a pattern tells apart."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, path in enumerate(sorted((quality_run.parent / "data" / "images").iterdir())[:12]):
        shutil.copy(path, folder / f"study-p{number // 2}-{number % 2}.nii.gz")
    return folder


def propose(run: Path, images: Path, out: Path, *options: str) -> Result:
    pattern = ("--patient-pattern", "(p[0-9]+)", "--device", "cpu")
    arguments = ["propose", str(run), "--images", str(images), "--out", str(out), *pattern, *options]
    return CliRunner(env={"COLUMNS": "200"}).invoke(cli.app, arguments, catch_exceptions=False)


def test_it_prints_both_lists_and_commands_that_put_them_into_a_store(
    quality_run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    done = propose(quality_run, images, out, "--budget", "2", "--audit", "2")
    assert done.exit_code == 0, done.output
    assert "Audit: drawn at random" in done.stdout
    assert "Drawn at random from 6 patients with seed 0" in done.stdout
    assert f"Page: {out / 'report.html'}" in done.stdout
    commands = [line.strip() for line in done.stdout.splitlines() if line.startswith("  medfm-rl feedback add")]
    assert [command.split()[-1] for command in commands] == ["audit", "informative"]

    lists = json.loads((out / "proposals.json").read_text())
    monkeypatch.chdir(tmp_path)
    for command in commands:
        drawn = command.split()[-1]
        (tmp_path / f"corrected-{drawn}").mkdir()
        for patient in lists[drawn]["patients"]:
            for case in patient["cases"]:
                shutil.copy(case["mask_file"], tmp_path / f"corrected-{drawn}")
        added = CliRunner().invoke(cli.app, shlex.split(command)[1:], catch_exceptions=False)
        assert added.exit_code == 0, added.output
        assert "Added: 4 verdicts" in added.stdout

    again = propose(
        quality_run, images, out, "--budget", "2", "--audit", "0", "--json", "--feedback", "feedback.sqlite"
    )
    assert again.exit_code == 0, again.output
    content = json.loads(again.stdout)
    assert len(content["left_out"]) == 4
    assert len(content["informative"]["patients"]) == 2


def test_a_store_that_is_not_there_is_an_error(quality_run: Path, images: Path, tmp_path: Path) -> None:
    """A wrong name would propose again who was reviewed."""
    with pytest.raises(FeedbackError, match="there is no store"):
        propose(quality_run, images, tmp_path / "out", "--feedback", str(tmp_path / "wrong.sqlite"))


def test_an_image_that_cannot_be_read_ends_it_with_code_2_and_the_lists_are_there(
    quality_run: Path, images: Path, tmp_path: Path
) -> None:
    (images / "study-p0-0.nii.gz").write_bytes(b"no image")
    done = propose(quality_run, images, tmp_path / "out", "--by", "random", "--audit", "6", "--budget", "0")
    assert done.exit_code == 2
    assert "study-p0-0" in done.stderr
    assert "p0" in done.stdout
    assert (tmp_path / "out" / "audit.csv").read_text().count("\n") == 12
