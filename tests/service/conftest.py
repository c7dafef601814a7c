from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.desk import DeskFolder, make_desk_folder
from support.desk_client import open_desk

from medfm_rl.service.desk import Desk


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> DeskFolder:
    return make_desk_folder(tmp_path_factory.mktemp("desk"))


@pytest.fixture
def folder(made_once: DeskFolder, tmp_path: Path) -> DeskFolder:
    """The same images and scores, and a store of its own."""
    for path in made_once.store.parent.glob("feedback.sqlite*"):
        if path.is_file():
            shutil.copy(path, tmp_path / path.name)
    own = {**vars(made_once), "store": tmp_path / "feedback.sqlite"}
    return DeskFolder(**own)


@pytest.fixture
def desk(folder: DeskFolder) -> Desk:
    return open_desk(folder)
