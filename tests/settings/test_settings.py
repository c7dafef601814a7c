from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

import medfm_rl
from medfm_rl import settings
from medfm_rl.errors import ConfigError
from medfm_rl.settings import (
    AdaptConfig,
    DataSettings,
    FeedbackSettings,
    IntensitySettings,
    NetworkSettings,
    PreprocessingSettings,
    Settings,
)
from medfm_rl.settings.files import load_config

KINDS = [
    kind
    for _, kind in inspect.getmembers(settings, inspect.isclass)
    if issubclass(kind, Settings) and kind is not Settings
]
FIELDS = [(kind, name) for kind in KINDS for name in kind.model_fields]
MINIMUM = {"segmenter": {"folder": "model"}, "target": {"path": "target"}, "output": "run"}


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_every_field_has_a_description(kind: type[Settings], name: str) -> None:
    description = kind.model_fields[name].description
    assert description
    assert description.endswith(".")


@pytest.mark.parametrize("kind", KINDS)
def test_every_group_says_what_it_is(kind: type[Settings]) -> None:
    assert kind.__doc__
    assert kind.__doc__ != Settings.__doc__


def without_validators(path: Path) -> str:
    """The code of a module but for what only checks fields: that is no use of them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            node.body = [
                part
                for part in node.body
                if not any("validator" in ast.unparse(each) for each in getattr(part, "decorator_list", ()))
            ] or [ast.Pass()]
    return ast.unparse(tree)


def test_every_field_is_read_somewhere() -> None:
    """A setting without effect is a promise that nobody keeps."""
    package = Path(medfm_rl.__file__).parent
    code = "\n".join(without_validators(path) for path in package.rglob("*.py"))
    unread = [f"{kind.__name__}.{name}" for kind, name in FIELDS if not re.search(rf"\.{name}\b", code)]
    assert unread == []


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_fields_are_refused_at_every_level(kind: type[Settings]) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({"no_such_field": 1})
    assert "extra_forbidden" in {error["type"] for error in caught.value.errors()}


def test_settings_cannot_be_changed_under_way() -> None:
    config = AdaptConfig.model_validate(MINIMUM)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        config.ppo.n_epochs = 1


def test_defaults_are_valid_themselves() -> None:
    """Pydantic does not check defaults: writing them out and reading them does."""
    config = AdaptConfig.model_validate(MINIMUM)
    assert AdaptConfig.model_validate(config.model_dump(mode="json")) == config
    for kind in KINDS:
        # An intensity needs one of several fields, and no one of them.
        if kind is not IntensitySettings and not any(field.is_required() for field in kind.model_fields.values()):
            assert kind.model_validate(kind().model_dump(mode="json")) == kind()


@pytest.mark.parametrize("taken", ["model", "target"])
def test_the_output_must_not_be_an_input(taken: str) -> None:
    with pytest.raises(ValidationError, match=f"output {taken} is also an input"):
        AdaptConfig.model_validate({**MINIMUM, "output": taken})


@pytest.mark.parametrize("size", [(), (32,), (8, 8, 8, 8), (0, 32), (-16, 32)])
def test_an_impossible_input_size_is_refused(size: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="size"):
        PreprocessingSettings(size=size)


@pytest.mark.parametrize("channels", [(), (16,), (16, 0), (16, -4)])
def test_an_impossible_network_is_refused(channels: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="channels"):
        NetworkSettings(channels=channels)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize(
    ("group", "name"), [("ppo", "learning_rate"), ("reward", "pessimism"), ("reward", "error_weight")]
)
def test_numbers_that_are_not_finite_are_refused(group: str, name: str, value: float) -> None:
    with pytest.raises(ValidationError, match=name):
        AdaptConfig.model_validate({**MINIMUM, group: {name: value}})


def test_a_patient_pattern_is_a_regular_expression_with_a_group() -> None:
    assert DataSettings(path=Path("x"), patient_pattern=r"^(\w+?)-").patient_pattern == r"^(\w+?)-"
    for wrong in ("(", "patient"):
        with pytest.raises(ValidationError, match="patient_pattern"):
            DataSettings(path=Path("x"), patient_pattern=wrong)


@pytest.mark.parametrize(
    "store",
    [
        "postgresql://me:secret@host/db",
        "postgresql+psycopg://me:se/cret@host:5432/db",
        "postgresql://host/db?user=me&password=secret",
    ],
)
def test_a_store_with_a_password_is_refused_and_the_password_not_told(store: str, tmp_path: Path) -> None:
    path = tmp_path / "feedback.yaml"
    path.write_text(f"store: {store}\n")
    with pytest.raises(ConfigError, match=r"store has a password in its URL.*PGPASSWORD or ~/\.pgpass") as caught:
        load_config(path, FeedbackSettings)
    assert "cret" not in str(caught.value)
    with pytest.raises(ValidationError) as raised:
        FeedbackSettings(store=store)
    assert "cret" not in str(raised.value)


@pytest.mark.parametrize(
    "store", ["feedback.sqlite", "postgresql://me@host:5432/db", "postgresql://me@/db?host=/run/x"]
)
def test_a_store_without_a_password_is_taken(store: str) -> None:
    assert FeedbackSettings(store=store).store == store


def test_a_kind_of_feedback_that_is_not_known_is_told_once(tmp_path: Path) -> None:
    path = tmp_path / "feedback.yaml"
    path.write_text("store: s.sqlite\nkinds: [mask]\n")
    with pytest.raises(ConfigError, match="kinds") as caught:
        load_config(path, FeedbackSettings)
    assert len(str(caught.value).splitlines()) == 2
    path.write_text("store: s.sqlite\nkinds: []\n")
    with pytest.raises(ConfigError, match="names no kind of feedback"):
        load_config(path, FeedbackSettings)
