"""Models in JSON files, and what is said of those that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field

from medfm_rl.data.files import write_versioned_json
from medfm_rl.data.json_models import read_model
from medfm_rl.errors import ModelError


class Part(BaseModel):
    size: int = Field(gt=0)


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    parts: dict[str, Part] = Field(default_factory=dict)


def test_a_model_comes_back_as_it_was_written(tmp_path: Path) -> None:
    whole = Whole(name="heart", parts={"LV": Part(size=3)})
    write_versioned_json(tmp_path / "whole.json", 2, whole.model_dump(mode="json"))
    assert read_model(tmp_path / "whole.json", Whole, 2, "a whole", "write it again") == whole


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "name: this field is needed"),
        ({"name": "heart", "age": 1}, "age: there is no such field; correct its name or remove it"),
        ({"name": "heart", "parts": {"LV": {"size": 0}}}, "parts.LV.size: Input should be greater than 0, not 0"),
    ],
)
def test_the_first_field_that_is_wrong_is_named(tmp_path: Path, content: dict[str, object], said: str) -> None:
    path = tmp_path / "whole.json"
    path.write_text(json.dumps({"format": 1, **content}))
    with pytest.raises(ModelError) as raised:
        read_model(path, Whole, 1, "a whole", "write it again")
    assert str(raised.value) == f"{path}: not a whole ({said}); write it again"


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "whole.json"
    path.write_text(json.dumps({"format": 2, "name": "heart"}))
    with pytest.raises(ModelError, match="newer version"):
        read_model(path, Whole, 1, "a whole", "write it again")
