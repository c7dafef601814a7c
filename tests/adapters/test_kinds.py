"""The table of kinds, and kinds that other packages bring."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.installed_packages import declare

from medfm_rl.adapters import kinds as table
from medfm_rl.adapters.loading import load_segmenter, recognise
from medfm_rl.errors import ConfigError, ModelError
from medfm_rl.settings import AdaptConfig, SegmenterSettings, TorchSettings, kinds
from medfm_rl.settings.files import load_config

Declare = Callable[..., None]
ENTRY = """
from typing import Literal
from medfm_rl.adapters.kinds import SegmenterKind
from medfm_rl.settings import SegmenterSettings

class Mine(SegmenterSettings):
    kind: Literal["mine"] = "mine"

KIND = SegmenterKind(Mine, load=None, recognises=lambda folder: (folder / "mine.txt").exists())
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Declare]:
    """Installs packages of one module each."""
    target = tmp_path / "site"
    target.mkdir()
    monkeypatch.syspath_prepend(target)

    def add(package: str, name: str = "mine", value: str | None = None, code: str = ENTRY) -> None:
        declare(target, package, name, value or f"{package}:KIND", code)
        monkeypatch.delitem(sys.modules, package, raising=False)
        kinds._entry_points.cache_clear()

    yield add
    kinds._entry_points.cache_clear()


def load_yaml(tmp_path: Path, kind: str) -> SegmenterSettings:
    file = tmp_path / "adapt.yaml"
    file.write_text(f"segmenter: {{kind: {kind}, folder: model}}\ntarget: {{path: data}}\noutput: run\n")
    return load_config(file, AdaptConfig).segmenter


def test_a_kind_of_another_package_is_one_like_the_others(installed: Declare, tmp_path: Path) -> None:
    installed("package_a")
    assert kinds.brought_kinds() == ("mine",)
    assert "package_a" not in sys.modules
    settings = load_yaml(tmp_path, "mine")
    assert type(settings).__name__ == "Mine"
    assert table.kind_of(settings).settings is type(settings)
    distribution = kinds.package_of("mine")
    assert distribution is not None
    assert (distribution.name, distribution.version) == ("package_a", "1.0")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").touch()
    assert recognise(tmp_path / "model").kind == "mine"


def test_a_package_that_is_not_asked_for_is_not_imported(installed: Declare, tmp_path: Path) -> None:
    installed("broken", code="raise RuntimeError('imported')")
    assert load_yaml(tmp_path, "torch") == TorchSettings(folder=Path("model"))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "segmenter.json").write_text('{"kind": "torch"}')
    assert recognise(tmp_path / "model").kind == "torch"


@pytest.mark.parametrize(
    ("value", "code", "message"),
    [
        (None, "import nowhere_to_be_found", "cannot be imported .*ModuleNotFoundError"),
        (None, "raise RuntimeError('old')", "cannot be imported .*RuntimeError: old"),
        (None, "KIND = (", "cannot be imported .*SyntaxError"),
        ("package_a:OTHER", ENTRY, "cannot be imported .*AttributeError"),
        (None, "KIND = 3", "is int; it has to be a SegmenterKind"),
        (None, ENTRY.replace('"mine"', '"yours"'), "is of kind yours; entry point and kind need the same name"),
        (
            None,
            ENTRY.replace('= "mine"\n', '= "mine"\n    size: int\n'),
            "TypeError: Mine: a default is needed for size",
        ),
        (None, ENTRY.replace('Literal["mine"]', "str"), "TypeError: Mine: the type of `kind` must be a Literal"),
        (None, ENTRY.replace("SegmenterKind(Mine", "SegmenterKind(int"), "are a subclass of SegmenterSettings"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_named_with_its_package(
    installed: Declare, tmp_path: Path, value: str | None, code: str, message: str
) -> None:
    installed("package_a", value=value, code=code)
    with pytest.raises(ConfigError, match=f"(?s)segmenter kind mine: .* of the package package_a .*{message}"):
        load_yaml(tmp_path, "mine")
    # The folder is of no built-in kind: the other package has to be asked.
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match="package_a"):
        recognise(tmp_path / "model")


def test_two_packages_with_a_kind_of_one_name_are_named(installed: Declare, tmp_path: Path) -> None:
    installed("package_a")
    installed("package_b")
    with pytest.raises(ConfigError, match=r"mine: is brought by package_. and by package_.; uninstall"):
        load_yaml(tmp_path, "mine")
    assert load_yaml(tmp_path, "nnunet").kind == "nnunet"


def test_a_package_cannot_take_the_name_of_a_built_in_kind(installed: Declare, tmp_path: Path) -> None:
    installed("package_a", name="torch", code=ENTRY.replace('"mine"', '"torch"'))
    with pytest.raises(ConfigError, match="torch: is brought by medfm-rl and by package_a"):
        load_yaml(tmp_path, "torch")


def test_an_unknown_kind_is_told_all_kinds_and_who_brings_them(installed: Declare, tmp_path: Path) -> None:
    installed("package_a")
    known = r"kind must be one of torch, nnunet, .*, biomedparse, mine \(of the package package_a\)"
    with pytest.raises(ConfigError, match=f"segmenter: {known}"):
        load_yaml(tmp_path, "nowhere")
    (tmp_path / "segmenter.json").write_text('{"kind": "nowhere"}')
    with pytest.raises(ModelError, match=rf"segmenter\.json: {known}; not nowhere"):
        recognise(tmp_path)
    assert kinds.kind_lines()[-1] == "mine: brought by the package package_a."


def test_a_kind_that_is_no_longer_installed_is_named(tmp_path: Path) -> None:
    class Gone(SegmenterSettings):
        kind: str = "gone"

    with pytest.raises(ModelError, match=r"kind must be one of torch, .*; not gone"):
        load_segmenter(Gone(folder=tmp_path))


def test_every_extra_is_one_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = {kind.extra for kind in table.KINDS.values()} - {None}
    assert extras == {"nnunet", "medsam", "biomedparse"}
    assert extras <= project["optional-dependencies"].keys()


def test_each_kind_is_explained_in_a_line_that_starts_with_its_name() -> None:
    lines = kinds.kind_lines()
    assert [line.partition(":")[0] for line in lines] == list(table.KINDS)
    assert all(len(line) > len(name) + 5 for line, name in zip(lines, table.KINDS, strict=True))
