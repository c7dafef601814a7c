from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.reward_reports import report_on

from medfm_rl.errors import DataError
from medfm_rl.reward.training_report import RewardTrainingReport


def assert_same(ours: RewardTrainingReport, theirs: RewardTrainingReport) -> None:
    for name, value in vars(ours).items():
        other = getattr(theirs, name)
        if name.startswith("reliability"):
            assert all(np.array_equal(array, getattr(other, part)) for part, array in vars(value).items())
        else:
            assert value == other


def test_a_report_comes_back_as_it_was_written_also_where_version_0_1_did(tmp_path: Path) -> None:
    report, path = report_on(["a", "b"], ["c"]), tmp_path / "member-0.json"
    report.write(path)
    assert_same(RewardTrainingReport.read(path), report)
    content = json.loads(path.read_text())
    assert content.pop("format") == 2
    path.write_text(json.dumps(content))
    assert_same(RewardTrainingReport.read(path), report)
    assert report.patients == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "format 3 was written by a newer version of medfm-rl; update"),
        ({"losses": [1]}, "not the report of a reward network"),
        ({"reliability_after": {"colour": []}}, "not the report of a reward network"),
        ({"colour": "red"}, "not the report of a reward network"),
    ],
)
def test_a_report_that_cannot_be_read_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "member-0.json"
    report_on(["a"], ["b"]).write(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=rf"member-0\.json: {message}"):
        RewardTrainingReport.read(path)
