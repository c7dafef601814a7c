from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from support.clip_files import write_stills_as_clip

from medfm_rl.data.layouts import find_cases
from medfm_rl.data.mask_files import find_masks
from medfm_rl.runs.finished import load_run
from medfm_rl.settings import DataSettings
from medfm_rl.workflows.deploy.score import ScoreRequest, score


def test_a_clip_has_the_verdict_of_its_worst_frame(quality_run: Path, tmp_path: Path) -> None:
    write_stills_as_clip(quality_run.parent / "data", tmp_path, lambda mask: np.where(mask == 1, 0, mask))
    files = find_cases(DataSettings(path=tmp_path / "images"))
    given = find_masks(tmp_path / "masks", files)
    score(load_run(quality_run, "cpu"), files, tmp_path / "out", ScoreRequest(masks=given))
    with (tmp_path / "out" / "clips.csv").open() as table:
        (row,) = csv.DictReader(table)
    with (tmp_path / "out" / "scores.csv").open() as table:
        verdicts = {line["case_id"]: line["verdict"] for line in csv.DictReader(table)}
    assert set(verdicts) == {f"p1_4CH_frame00{index}" for index in range(3)}
    assert verdicts["p1_4CH_frame001"] != "accept"
    assert (row["clip_id"], row["patient_id"], row["frames"]) == ("p1_4CH", "p1", "3")
    worst = next(verdict for verdict in ("refer", "correct", "accept") if verdict in verdicts.values())
    assert row["verdict"] == worst == verdicts[row["worst_frame"]]
    assert {name: int(row[name]) for name in ("accept", "correct", "refer")} == {
        name: list(verdicts.values()).count(name) for name in ("accept", "correct", "refer")
    }
