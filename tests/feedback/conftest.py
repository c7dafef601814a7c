"""Stores in a file and on a server."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from support.postgresql_server import Server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a store can be made."""
    if request.param == "sqlite":
        return tmp_path / "feedback.sqlite"
    running: Server = request.getfixturevalue("server")
    return running.new_database(f"test_{uuid.uuid4().hex}")
