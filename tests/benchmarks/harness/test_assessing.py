from __future__ import annotations

import numpy as np

from benchmarks.harness.assessing import patient_bootstrap


def test_intervals_come_from_patients() -> None:
    values = np.array([1.0, 1.0, 0.0, 0.0])
    low, high = patient_bootstrap(lambda rows: float(values[rows].mean()), ["a", "a", "b", "b"])
    assert (low, high) == (0, 1)
