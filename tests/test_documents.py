"""What the documents say is so: examples run, names and links exist, drawings are those of the code."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import sys
import tomllib
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from support.documents import docs_configuration

from medfm_rl.data.ultrasound.phantom import simulate_dataset
from medfm_rl.data.ultrasound.vendors import vendor
from medfm_rl.settings import AdaptConfig

ROOT = Path(__file__).parents[1]
DOCS = sorted(set((ROOT / "docs").glob("*.md")) - {ROOT / "docs" / name for name in ("settings.md", "command_line.md")})
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def scripts(page: Path) -> list[str]:
    """The Python of a page but for files of packages, which a line before them names."""
    files = re.findall(
        r"^`[\w./]+`:\n\n```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    return [content for content in blocks(page, "python") if content not in files]


@pytest.fixture(scope="module")
def folders_of_the_examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of version 0.1, its source model, images and labelled images, under the names that pages use."""
    folder = tmp_path_factory.mktemp("examples")
    with zipfile.ZipFile(ROOT / "tests" / "golden" / "run.zip") as archive:
        archive.extractall(folder)
    for name, place in {"source": "models/source", "run": "runs/adapted"}.items():
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / name).rename(folder / place)
    (folder / "images").mkdir()
    for image in sorted((folder / "data" / "d" / "images").iterdir())[:3]:
        (folder / "images" / image.name).symlink_to(image)
    (folder / "labelled").symlink_to(folder / "data" / "d")
    simulate_dataset(folder / "calibration", vendor("handheld"), 8, seed=0, size=(32, 32), first=301)
    return folder


def run_examples(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Runs the Python of a page from top to bottom, beside the YAML files that it shows."""
    monkeypatch.chdir(folder)
    path = ROOT / "docs" / page
    for content in blocks(path, "yaml"):
        named = re.match(r"# (\w+\.yaml)\n", content)
        if named:
            (folder / named[1]).write_text(content)
    module = ModuleType("examples")
    monkeypatch.setitem(sys.modules, "examples", module)
    for content in scripts(path):
        exec(compile(content, str(path), "exec"), module.__dict__)
    return vars(module)


def test_the_example_of_the_python_interface_runs(
    folders_of_the_examples: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = {"channels": [4, 8], "residual_units": 0}
    settings = {
        "segmenter": {"folder": "models/source"},
        "target": {"path": "data/b"},
        "source": {"path": "data/a"},
        "output": "runs/new",
        "fine_tuning": {"steps": 2, "batch_size": 4},
        "collect": {"source_images": 12, "target_images": 8, "actions_per_image": 3, "shard_images": 6},
        "shape_prior": {"epochs": 1, "latent": 4},
        "reward": {"network": tiny, "steps": 4, "validate_every": 2},
        "ppo": {"updates": 2, "n_envs": 4, "eval_every": 2},
        "tracking": {"uri": None},
        "device": "cpu",
    }
    (folders_of_the_examples / "adapt.yaml").write_text(yaml.safe_dump(settings))
    names = run_examples("api.md", folders_of_the_examples, monkeypatch)
    assert len(names["images"]) == 3  # type: ignore[arg-type]
    assert (folders_of_the_examples / "corrected" / "corrections.json").exists()
    assert "no-such-run" in capsys.readouterr().out


# MLflow on its own type hints.
@pytest.mark.filterwarnings("ignore::UserWarning:mlflow", "ignore:Any type hint is inferred as AnyType")
@pytest.mark.parametrize("page", ["extending.md", "correction.md", "quality.md", "feedback.md"])
def test_the_examples_of_a_page_run(page: str, folders_of_the_examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scripts(ROOT / "docs" / page)
    run_examples(page, folders_of_the_examples, monkeypatch)


def resolved(name: str) -> object:
    """The module, or the attribute of a module, that a dotted name stands for; None where there is none."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            module: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        return functools.reduce(lambda found, part: getattr(found, part, None), parts[end:], module)
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_of_the_package_on_a_page_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = set(re.findall(r"\bmedfm_rl(?:\.\w+)+", text))
    # The group of entry points is no module.
    assert [name for name in sorted(names - {"medfm_rl.segmenters"}) if resolved(name) is None] == []
    files = set(re.findall(r"`((?:medfm_rl|tests|docs|benchmarks|examples)/[\w/.-]+)`", text))
    made = {"docs/_build/index.html", "benchmarks/runs"}
    assert [name for name in sorted(files - made) if not (ROOT / name).exists()] == []


def test_the_architecture_walks_through_functions_that_exist() -> None:
    steps = re.findall(r"^\*?(medfm_rl[\w.]+) \| ", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    assert len(steps) >= 20
    assert all(callable(resolved(step)) for step in steps)


def test_the_drawing_of_the_rooms_is_that_of_the_import_contract(docs_configuration: ModuleType) -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rooms = re.findall(r"\w+", " ".join(contracts[0]["layers"]))
    drawn = re.findall(r'class="name"[^>]*>(\w+)<', docs_configuration.draw_layers(docs_configuration.layers()))
    assert drawn == rooms
    assert all(docs_configuration.purpose(room) for room in rooms)


def test_a_drawn_walk_has_every_step_and_its_file_in_their_order(docs_configuration: ModuleType) -> None:
    steps = [docs_configuration.Step.parse(line) for line in ("a.first | begins | ", "*a.b.second | goes on | out/x")]
    drawing = docs_configuration.draw_walk("two steps", steps)
    assert re.findall(r'class="name"[^>]*>(\w+)<', drawing) == ["first", "second"]
    assert drawing.index("begins") < drawing.index("goes on") < drawing.index("out/x")
    assert [step.repeated for step in steps] == [False, True]


@pytest.fixture(name="docs_configuration")
def _docs_configuration() -> ModuleType:
    return docs_configuration()


def test_the_page_of_commands_has_every_command_and_option(docs_configuration: ModuleType) -> None:
    from typer.main import get_command

    from medfm_rl.cli import app

    page = docs_configuration._commands_page()
    sections = dict(re.findall(r"^## ([\w-]+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert sections.keys() == commands.keys()
    for name, command in commands.items():
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        assert options <= set(re.findall(r"--[\w-]+", sections[name]))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8"))
    broken = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert broken == []


def test_the_settings_in_the_readme_are_valid() -> None:
    (content,) = blocks(ROOT / "README.md", "yaml")
    assert len(content.splitlines()) <= 12
    AdaptConfig.model_validate(yaml.safe_load(content))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_one_word_stands_for_one_thing(page: Path) -> None:
    """Names of version 0.1 stand in backticks where a page says what became of them.

    A judge is what `train-judge` makes.
    """
    prose = re.sub(r"```.*?```|`[^`]*`|\([^)]*\)", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert re.findall(r"\b(?:judg(?!es?\b)\w+|rivals?|warm(?:s|ed)?[- ]?up)\b", prose, re.IGNORECASE) == []
