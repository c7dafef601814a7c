from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from medfm_rl.errors import ConfigError
from medfm_rl.settings import AdaptConfig, DataSettings, PPOSettings, Settings, TorchSettings, TrainSourceConfig
from medfm_rl.settings.files import commented_config, dump_config, load_config
from medfm_rl.settings.yaml_text import read_yaml

ADAPT: dict[str, Any] = {
    "segmenter": {"folder": "models/source"},
    "target": {"path": "data/target"},
    "source": {"path": "data/source"},
    "output": "runs/adapted",
}
TRAIN: dict[str, Any] = {
    "data": {"path": "data/source"},
    "structures": {"MYO": 2, "LV": 1, "LA": 3},
    "output": "models/source",
}


def write(folder: Path, content: object) -> Path:
    path = folder / "settings.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def refusal(path: Path, kind: type[Settings] = AdaptConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, kind)
    message = str(caught.value)
    assert message.startswith(str(path))
    return message


@pytest.mark.parametrize(("kind", "values"), [(AdaptConfig, ADAPT), (TrainSourceConfig, TRAIN)])
def test_the_commented_file_validates_to_the_defaults(
    tmp_path: Path, kind: type[Settings], values: dict[str, Any]
) -> None:
    loaded = load_config(write(tmp_path, commented_config(kind, values)), kind)
    assert loaded == kind.model_validate(values)


def leaves(kind: type[BaseModel], values: BaseModel) -> list[tuple[str, str]]:
    """Every field below a model as (name, description), in order."""
    found = []
    for name, field in kind.model_fields.items():
        found.append((name, field.description or ""))
        value = getattr(values, name)
        if isinstance(value, BaseModel):
            found += leaves(type(value), value)
    return found


@pytest.mark.parametrize(("kind", "values"), [(AdaptConfig, ADAPT), (TrainSourceConfig, TRAIN)])
def test_the_commented_file_names_and_explains_every_field(kind: type[Settings], values: dict[str, Any]) -> None:
    """In the order of the settings, each field right below its own description, and nothing besides."""
    expected = leaves(kind, kind.model_validate(values))
    written, comment = [], ""
    for line in commented_config(kind, values).splitlines():
        if line.lstrip().startswith("#"):
            comment += " " + line.lstrip("# ")
        elif line.strip():
            written.append((line.strip().partition(":")[0], " ".join(comment.split())))
            comment = ""
        else:
            comment = ""
    assert written == [(name, " ".join(description.split())) for name, description in expected]


def test_structures_keep_their_order(tmp_path: Path) -> None:
    """It says which class index a structure gets."""
    loaded = load_config(write(tmp_path, commented_config(TrainSourceConfig, TRAIN)), TrainSourceConfig)
    assert list(loaded.structures) == ["MYO", "LV", "LA"]
    again = load_config(write(tmp_path, dump_config(loaded)), TrainSourceConfig)
    assert list(again.structures) == ["MYO", "LV", "LA"]


@settings(max_examples=25, deadline=None)
@given(
    path=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12).filter(
        lambda text: text.strip() and Path(text).name
    ),
    where=st.dictionaries(st.text(max_size=5), st.sampled_from(["4CH", "yes", "1", "null", "a: b", "# no"])),
    rate=st.floats(1e-12, 1e3),
    target_kl=st.none() | st.floats(1e-6, 1.0),
    seed=st.integers(0, 2**40),
)
def test_settings_survive_a_file(
    tmp_path_factory: pytest.TempPathFactory,
    path: str,
    where: dict[str, str],
    rate: float,
    target_kl: float | None,
    seed: int,
) -> None:
    config = AdaptConfig(
        segmenter=TorchSettings(folder=Path("model")),
        target=DataSettings(path=Path(path), where=where),
        output=Path("run"),
        ppo=PPOSettings(learning_rate=rate, target_kl=target_kl),
        seed=seed,
    )
    folder = tmp_path_factory.mktemp("settings")
    assert load_config(write(folder, dump_config(config)), AdaptConfig) == config
    values = config.model_dump(mode="json")
    assert load_config(write(folder, commented_config(AdaptConfig, values)), AdaptConfig) == config


@pytest.mark.parametrize(
    ("changes", "place", "reason"),
    [
        ({"sedd": 3}, "sedd", "there is no such field"),
        ({"ppo": {"learning_rat": 0.1}}, "ppo.learning_rat", "there is no such field"),
        ({"ppo": {"learning_rate": -1}}, "ppo.learning_rate", "greater than 0, not -1"),
        ({"ppo": {"learning_rate": "fast"}}, "ppo.learning_rate", "valid number"),
        ({"ppo": {"learning_rate": float("inf")}}, "ppo.learning_rate", "finite number"),
        ({"reward": {"network": {"channels": [16, "x"]}}}, "reward.network.channels.1", "valid integer"),
        ({"reward": {"network": {"channels": [16, 0]}}}, "reward.network.channels.1", "greater than or equal to 1"),
        ({"reward": {"network": {"norm": "layer"}}}, "reward.network.norm", "'instance', 'batch' or 'group'"),
        (
            {"target": {"path": "x", "layout": "bids"}},
            "target.layout",
            "'auto', 'nnunet', 'camus', 'folder', 'clips' or 'echonet'",
        ),
        ({"target": {"path": "x", "patient_pattern": "(p"}}, "target.patient_pattern", "not a regular expression"),
        ({"target": {"path": "x", "patient_pattern": "p"}}, "target.patient_pattern", "needs a group"),
        ({"target": {}}, "target.path", "this field is needed"),
        ({"segmenter": "models/source"}, "segmenter", "not 'models/source'"),
        ({"iterations": 1.5}, "iterations", "valid integer"),
        ({"output": "data/target"}, "(whole file)", "output data/target is also an input"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(
    tmp_path: Path, changes: dict[str, object], place: str, reason: str
) -> None:
    lines = refusal(write(tmp_path, {**ADAPT, **changes})).splitlines()
    assert any(line.startswith(f"  {place}: ") and reason in line for line in lines), lines


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, {"segmenter": {"folder": "m"}, "seed": -1, "unheard_of": 1}))
    for place in ("target", "output", "seed", "unheard_of"):
        assert f"  {place}: " in message
    assert "segmenter" not in message


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    assert "medfm-rl init" in refusal(tmp_path / "nothing.yaml")


def test_what_is_no_yaml_is_refused_with_its_line(tmp_path: Path) -> None:
    assert "line 2" in refusal(write(tmp_path, "seed: 1\nsource: [1\n"))


@pytest.mark.parametrize("content", ["[1, 2]", "just words", "7"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    assert "(whole file)" in refusal(write(tmp_path, content))


def test_an_empty_file_names_the_needed_fields(tmp_path: Path) -> None:
    assert "  target: this field is needed" in refusal(write(tmp_path, ""))


def test_a_key_that_is_given_twice_is_refused_with_its_lines(tmp_path: Path) -> None:
    """Of two values the first would be ignored without a word."""
    path = tmp_path / "twice.yaml"
    path.write_text("target: {path: a}\nseed: 1\noutput: b\nseed: 2\n")
    with pytest.raises(ConfigError, match=r"twice\.yaml: seed is given twice, in lines 2 and 4; keep one"):
        load_config(path, AdaptConfig)
    path.write_text("ppo:\n  updates: 1\n  n_envs: 2\n  updates: 3\n")
    with pytest.raises(ConfigError, match="updates is given twice, in lines 2 and 4"):
        load_config(path, AdaptConfig)
    # The same name in two places is two settings.
    path.write_text("a: &a {x: 1}\nb: {<<: *a, x: 2}\nc: {<<: *a, y: 3}\n")
    assert read_yaml(path.read_text()) == {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 1, "y": 3}}


def test_bytes_and_folders_are_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    assert "cannot be read as YAML" in refusal(binary)
    assert "cannot be read as YAML" in refusal(tmp_path)


def test_yaml_cannot_run_code(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    text = f"seed: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{marker}']]\n"
    assert "cannot be read as YAML" in refusal(write(tmp_path, text))
    assert not marker.exists()
