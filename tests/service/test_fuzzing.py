"""Whatever is sent by the description of the service, it makes no mistake: never a 500. SIMULATED cases."""

from __future__ import annotations

from pathlib import Path

from benchmarks.desk.fuzzing import fuzz


def test_no_request_makes_the_service_fail(tmp_path: Path) -> None:
    """A few for each route; the benchmark makes thousands."""
    found = fuzz(tmp_path, 150)
    assert found["failed"] == []
    assert found["requests"] >= 100
    assert {200, 201, 404, 422} <= found["codes"].keys()
    assert max(found["codes"]) < 500
