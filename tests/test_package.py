from __future__ import annotations

import ast
import inspect
import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml
from support.documents import docs_configuration

import medfm_rl
from medfm_rl import settings
from medfm_rl.runs.models import StoredModel
from medfm_rl.settings import Settings

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "medfm_rl").rglob("*.py"))
HEAVY = {"torch", "monai", "mlflow", "matplotlib", "SimpleITK", "scipy", "sklearn", "skimage", "stable_baselines3"}


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["medfm_rl", "medfm_rl.cli", "medfm_rl.settings", "medfm_rl.errors"])
def test_light_modules_load_no_heavy_package(module: str) -> None:
    assert not HEAVY & loaded_by(f"import {module}")


def test_a_desk_does_without_torch() -> None:
    assert not {"torch", "monai"} & loaded_by("import medfm_rl.service.app")


def test_what_public_functions_are_given_has_a_public_name() -> None:
    """Requests and settings, and what these hold in turn; a run, a model or a case comes from another function."""
    functions = [getattr(medfm_rl, name) for name in medfm_rl.__all__ if inspect.isfunction(getattr(medfm_rl, name))]
    assert {"adapt", "score", "correct", "calibrate"} <= {function.__name__ for function in functions}
    hints = [get_type_hints(function) for function in functions]
    given = [*hints]
    made = {cls for hint in hints for cls in classes_in(hint.get("return"))}
    found: set[type] = set()
    while given:
        hint = given.pop()
        for cls in classes_in([kind for name, kind in hint.items() if name != "return"]) - found:
            found.add(cls)
            if cls.__name__.endswith("Request"):
                given.append(get_type_hints(cls, localns={"StoredModel": StoredModel}))
    # Made by load_run, load_model and find_cases, or whatever segments; a segmenter is tested on any case.
    subclassed = {"Model", "StoredModel", "FinishedRun", "CaseFile", "SegmenterAdapter", "Case"}
    needed = {cls.__name__ for cls in found - made} - subclassed
    assert {"ScoreRequest", "CorrectRequest", "CalibrateRequest", "Gates", "Targets", "DataSettings"} <= needed
    assert needed <= set(medfm_rl.__all__)
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in needed if f"`{name}`" not in page and f"medfm_rl.{name}\n" not in page] == []


def classes_in(hint: object) -> set[type]:
    """Classes of this package in an annotation, or a list of annotations, however deep."""
    if isinstance(hint, type) and hint.__module__.startswith("medfm_rl"):
        return {hint}
    parts = hint if isinstance(hint, list) else get_args(hint)
    return {cls for part in parts for cls in classes_in(part)}


def test_settings_are_validated_before_anything_heavy_loads() -> None:
    """A typo in a settings file is told at once."""
    assert "torch" not in loaded_by("import medfm_rl.settings.files, medfm_rl.settings")


def test_help_answers_within_a_second() -> None:
    """Of a processor, and the best of three: what else the machine does is not ours."""

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    times = []
    for _ in range(3):
        before = spent()
        subprocess.run([sys.executable, "-m", "medfm_rl", "--help"], capture_output=True, check=True, cwd=ROOT)
        times.append(spent() - before)
    assert min(times) < 1.0, times


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "medfm_rl.version.__version__"}
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == medfm_rl.__version__
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = [heading for heading in headings if heading != "Unreleased"]
    # Before the first release there is nothing but what is unreleased.
    assert headings[0] in ("Unreleased", medfm_rl.__version__)
    assert released[:1] in ([], [medfm_rl.__version__])


def test_what_the_package_reads_from_itself_is_shipped() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["medfm_rl"]
    package = ROOT / "medfm_rl"
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    data = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert data <= shipped


def test_every_heavy_import_is_declared() -> None:
    """Whatever is imported can be installed by somebody who installs the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    declared = {re.split(r"[\[><=~ ]", name)[0].lower() for name in project["dependencies"] + extras}
    names = {"sklearn": "scikit-learn", "skimage": "scikit-image", "yaml": "pyyaml", "PIL": "pillow"}
    names["argon2"] = "argon2-cffi"
    # Dependencies that come with one that is declared, by its own promise.
    brought = {"pydantic_core": "pydantic", "starlette": "fastapi", "joserfc": "authlib", "grpc": "ray"}
    imported = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                imported.add(node.module.partition(".")[0])
    foreign = {name for name in imported if name not in sys.stdlib_module_names and name != "medfm_rl"}
    needed = {names.get(name, brought.get(name, name.replace("_", "-"))).lower() for name in foreign}
    assert {"torch", "gymnasium"} <= needed
    assert needed <= declared


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("folder", ["medfm_rl", "tests", "benchmarks", "examples"])
def test_no_file_is_a_drawer_for_everything(folder: str) -> None:
    for path in (ROOT / folder).rglob("*"):
        assert path.stem not in ("utils", "helpers", "common", "misc"), path


def test_the_library_does_not_print() -> None:
    printing = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in SOURCES
        for call in calls(path)
        if isinstance(call.func, ast.Name) and call.func.id == "print"
    ]
    assert printing == []


def test_nothing_is_unpickled() -> None:
    """Weights of strangers are data: `torch.load` runs what a file says only where a person said to trust it."""
    found = 0
    for path in SOURCES:
        for call in calls(path):
            name = ast.unparse(call.func)
            assert name not in ("pickle.load", "pickle.loads", "joblib.load", "eval", "exec"), f"{path}:{call.lineno}"
            if name == "torch.load":
                found += 1
                safe = [keyword.value for keyword in call.keywords if keyword.arg == "weights_only"]
                asked = "not trusted" if path.stem == "checkpoints" else "True"
                assert [ast.unparse(value) for value in safe] == [asked], f"{path}:{call.lineno}"
            if name in ("yaml.load", "np.load", "numpy.load"):
                assert "allow_pickle=True" not in ast.unparse(call), f"{path}:{call.lineno}"
                assert name != "yaml.load", f"{path}:{call.lineno}"
    assert found > 0


def test_no_handler_swallows_everything() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                names = "" if node.type is None else ast.unparse(node.type)
                narrow = names not in ("", "Exception", "BaseException")
                assert narrow or isinstance(node.body[-1], ast.Raise), f"{path}:{node.lineno}"


def test_the_page_of_settings_has_every_field_with_its_default() -> None:
    page: str = docs_configuration()._settings_page()
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    kinds = {name: kind for name, kind in inspect.getmembers(settings, inspect.isclass) if issubclass(kind, Settings)}
    assert sections.keys() == kinds.keys() - {"Settings"}
    for name, section in sections.items():
        rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \| .+ \|$", section, re.MULTILINE))
        by_name = {field.alias or own: field for own, field in kinds[name].model_fields.items()}
        assert rows.keys() == by_name.keys()
        for name_there, default in rows.items():
            assert (default == "required") == by_name[name_there].is_required()


def test_the_page_of_settings_is_made_and_not_kept() -> None:
    """A copy in the repository could disagree with the settings."""
    assert "docs/settings.md" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_readme_names_only_commands_that_exist() -> None:
    from typer.main import get_command

    from medfm_rl.cli import app

    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = {
        name
        for page in pages
        for name in re.findall(r"^\$ medfm-rl ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(named) >= 5
    assert named <= commands


def test_the_tests_that_the_method_page_names_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "method.md").read_text())
    assert len(named) >= 13
    missing = [f"{path}::{name}" for path, name in named if f"def {name}(" not in (ROOT / path).read_text()]
    assert missing == []
