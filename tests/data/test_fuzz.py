"""Damaged inputs of every kind: read with the values of an oracle, or refused by an error that names the file.

The kinds and their faults are those of `benchmarks.robustness`, which tries thousands; here are a few of each.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from benchmarks.robustness.every_kind import every_kind
from benchmarks.robustness.kind import READ, REFUSED, Kind, judge

KINDS = every_kind()
NUMBERS = 14


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damaged_inputs_are_read_as_an_oracle_reads_them_or_refused(kind: Kind, tmp_path: Path) -> None:
    outcomes = []
    with warnings.catch_warnings():
        # Of libraries, about what is odd in an input.
        warnings.simplefilter("ignore")
        for number in range(NUMBERS):
            folder = tmp_path / f"{number}"
            folder.mkdir()
            outcomes.append(judge(kind, number, folder))
    assert outcomes[0].result == READ
    assert [outcome for outcome in outcomes if outcome.result not in (READ, REFUSED)] == []
