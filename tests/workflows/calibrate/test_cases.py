"""Assessed cases on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medfm_rl.quality.calibration_case import CalibrationCase
from medfm_rl.quality.evidence import Evidence
from medfm_rl.structures import exclusive
from medfm_rl.workflows.calibrate.cases import Spool

MAPPED = Path("/proc/self/maps")


def case(number: int) -> CalibrationCase:
    generator = torch.Generator().manual_seed(number)
    action = torch.randint(2, (8, 8), generator=generator, dtype=torch.uint8)
    maps = [torch.rand(8, 8, generator=generator) for _ in range(2)]
    numbers = np.arange(3, dtype=np.float64)
    evidence = Evidence(action, *maps, None, numbers, -numbers, (), exclusive(2))
    return CalibrationCase.of(f"p{number}", evidence, action == 1, np.ones(1, np.float32))


def test_a_case_comes_back_as_it_was_added(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for number in range(3):
        spool.add(case(number))
    for number, found in enumerate(spool.cases):
        (evidence, right), (known, known_right) = found.load(), case(number).load()
        assert (found.patient_id, found.pixels) == (f"p{number}", 64)
        for name in ("action", "mean_map", "spread"):
            torch.testing.assert_close(getattr(evidence, name), getattr(known, name), rtol=0, atol=0)
        torch.testing.assert_close(right, known_right, rtol=0, atol=0)
        assert evidence.confidence is None
        assert evidence.given is None
        assert evidence.structures == known.structures
        np.testing.assert_array_equal(evidence.appearance, known.appearance)


@pytest.mark.skipif(not MAPPED.exists(), reason="this system does not say which files are in memory (/proc/self/maps)")
def test_maps_are_in_memory_while_somebody_looks_at_them_and_no_longer(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for number in range(3):
        spool.add(case(number))
    assert str(tmp_path) not in MAPPED.read_text()
    evidence, right = spool.cases[1].load()
    assert "000001.pt" in MAPPED.read_text()
    del evidence, right
    assert str(tmp_path) not in MAPPED.read_text()
