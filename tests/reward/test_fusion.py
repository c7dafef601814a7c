from __future__ import annotations

import json
from pathlib import Path

import pytest

from medfm_rl.errors import ModelError
from medfm_rl.reward.fusion import read_fusion, write_fusion
from medfm_rl.settings import RewardSettings


def test_how_networks_are_fused_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_fusion(tmp_path, ["member-0", "member-1"], RewardSettings(fusion="min", pessimism=1.5, steps=3))
    settings, members = read_fusion(tmp_path)
    assert (settings.fusion, settings.pessimism, members) == ("min", 1.5, ["member-0", "member-1"])


def test_what_version_0_1_wrote_is_read(tmp_path: Path) -> None:
    content = {"members": ["member-0"], "fusion": "mean_minus_std", "pessimism": 0.5}
    (tmp_path / "fusion.json").write_text(json.dumps(content))
    settings, members = read_fusion(tmp_path)
    assert (settings.fusion, settings.pessimism, members) == ("mean_minus_std", 0.5, ["member-0"])


def test_what_a_newer_version_wrote_says_to_update(tmp_path: Path) -> None:
    (tmp_path / "fusion.json").write_text('{"format": 3}')
    with pytest.raises(ModelError, match=r"fusion\.json: format 3 was written by a newer version of medfm-rl; update"):
        read_fusion(tmp_path)
