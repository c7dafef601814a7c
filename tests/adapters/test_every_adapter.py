"""Every check of the conformance suite, on a segmenter of every kind."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.adapter_cases import CASES, OPTIONAL, marked

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.conformance import CHECKS, run_check
from medfm_rl.adapters.kinds import KINDS
from medfm_rl.adapters.loading import exported_settings, load_segmenter, recognise
from medfm_rl.settings import SegmenterSettings
from medfm_rl.settings.kinds import BUILT_IN
from medfm_rl.types import Case

pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = [marked(name, KINDS[case.kind].extra) for name, case in CASES.items()]


@dataclass(frozen=True)
class Loaded:
    """A segmenter of the table, loaded from its folder by its settings."""

    settings: SegmenterSettings
    adapter: SegmenterAdapter
    case: Case


@pytest.fixture(scope="module", params=NAMES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Shared by the checks: each leaves a segmenter as it was."""
    listed = CASES[request.param]
    for package in OPTIONAL.get(KINDS[listed.kind].extra or "", ()):
        pytest.importorskip(package)
    root = tmp_path_factory.mktemp("segmenter")
    settings = KINDS[listed.kind].at(listed.write(root)).model_copy(update=dict(listed.settings))
    return Loaded(settings, load_segmenter(settings), listed.image(root))


def load_again(settings: SegmenterSettings, folder: Path) -> SegmenterAdapter:
    return load_segmenter(exported_settings(settings, folder))


@pytest.mark.parametrize("check", CHECKS)
def test_it_keeps_every_promise_of_an_adapter(loaded: Loaded, check: str) -> None:
    run_check(check, loaded.adapter, loaded.case, partial(load_again, loaded.settings))


def test_a_folder_tells_its_kind_and_what_is_exported_gives_the_same_masks(loaded: Loaded, tmp_path: Path) -> None:
    # A folder of TotalSegmentator is one of nnU-Net: nothing in it says who runs it.
    known_as = "nnunet" if loaded.settings.kind == "totalsegmentator" else loaded.settings.kind
    loaded.adapter.export(tmp_path / "out")
    for folder in (loaded.settings.folder, tmp_path / "out"):
        assert recognise(folder).kind == known_as
    again = load_again(loaded.settings, tmp_path / "out")
    assert type(again) is type(loaded.adapter)
    assert np.array_equal(again.segment(loaded.case), loaded.adapter.segment(loaded.case))


def test_the_tables_have_the_same_kinds_and_each_of_them_is_checked() -> None:
    assert {name: kind.settings for name, kind in KINDS.items()} == dict(BUILT_IN)
    assert {case.kind for case in CASES.values()} == KINDS.keys()
