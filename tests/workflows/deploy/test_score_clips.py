from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.clip_files import greys, ventricles, write_stills_as_clip

from medfm_rl.data.layouts import find_cases
from medfm_rl.data.mask_files import find_masks
from medfm_rl.runs.finished import load_run
from medfm_rl.settings import DataSettings
from medfm_rl.types import Clip, Geometry, LabelSchema
from medfm_rl.workflows.deploy.clip_evidence import ClipEvidence, evidence_of_clip
from medfm_rl.workflows.deploy.clip_verdicts import ClipVerdict
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
    assert worst == verdicts[row["worst_frame"]]
    assert {name: int(row[name]) for name in ("accept", "correct", "refer")} == {
        name: list(verdicts.values()).count(name) for name in ("accept", "correct", "refer")
    }


def evidence(broken: tuple[str, ...] = (), doubts: tuple[str, ...] = ()) -> ClipEvidence:
    return ClipEvidence({"c_frame000": 0.9}, broken, doubts)


@pytest.mark.parametrize(
    ("counts", "over_time", "verdict"),
    [
        ({"accept": 3, "correct": 1, "refer": 0}, evidence(), "correct"),
        ({"accept": 4, "correct": 0, "refer": 0}, evidence(), "accept"),
        ({"accept": 4, "correct": 0, "refer": 0}, evidence(broken=("a jump",)), "correct"),
        ({"accept": 4, "correct": 0, "refer": 0}, evidence(doubts=("no beat",)), "refer"),
        ({"accept": 4, "correct": 0, "refer": 0}, None, "accept"),
    ],
)
def test_the_verdict_of_a_clip(counts: dict[str, int], over_time: ClipEvidence | None, verdict: str) -> None:
    assert ClipVerdict("c", "p", counts, "c_frame000", 0.9, over_time).verdict == verdict


def test_a_clip_without_a_beat_or_with_a_cut_is_in_doubt() -> None:
    schema = LabelSchema.from_structures({"LV": 1})
    masks = ventricles().astype(np.uint8)
    clip = Clip("c", "p", greys().astype(np.float32)[:, None], None, Geometry.unknown(2))
    assert evidence_of_clip(clip, masks, schema).doubts == ()
    (said,) = evidence_of_clip(clip, np.repeat(masks[:1], len(masks), axis=0), schema).doubts
    assert "shows none" in said
    gaps = replace(clip, times=tuple(np.arange(len(masks)) + 5.0 * (np.arange(len(masks)) > 5)))
    assert evidence_of_clip(gaps, masks, schema).doubts == ("frames are missing after frame 5, by their times",)
