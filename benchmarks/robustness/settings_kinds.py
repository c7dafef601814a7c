"""Settings and anatomy in YAML; PyYAML is the oracle, and every value that a file gives has to arrive."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.robustness.comparing import SCHEMA, given_values_disagree
from benchmarks.robustness.kind import Fault, Kind
from benchmarks.robustness.text_faults import JSON, TEXT
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.settings import AdaptConfig
from medfm_rl.settings.files import load_config

_SETTINGS = {
    "segmenter": {"kind": "torch", "folder": "source"},
    "target": {"path": "data/b", "where": {"view": "4CH"}},
    "source": {"path": "data/a"},
    "output": "run",
    "iterations": 2,
    "reward": {"ensemble": 2, "steps": 40, "pessimism": 0.5, "network": {"channels": [4, 8], "residual_units": 0}},
    "ppo": {"updates": 4, "learning_rate": 0.001},
    "seed": 7,
    "device": "cpu",
}
_ANATOMY = {"rules": [{"kind": "components", "structure": "LV", "most": 1.0, "source": "one part"}]}


def _write_yaml(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def _read_settings(path: Path) -> Any:
    return load_config(path, AdaptConfig).model_dump(mode="json")


def _yaml(path: Path) -> Any:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {} if content is None else content


def yaml_line(path: Path, rng: np.random.Generator) -> None:
    """A line has another value: of another type, a tag, an anchor, or one that YAML takes for something else."""
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    if not lines:
        return
    values = (
        *(
            "2001-99-99",
            "0x_",
            "!!int abc",
            "!!float x",
            "!!timestamp x",
            "!!bool maybe",
            "!!python/object:os.system x",
        ),
        *(
            "!!binary '=='",
            "&a [*a]",
            "*missing",
            "[" * 3000,
            "{" * 3000,
            "? ? ? x",
            "'",
            '"\\x',
            "no",
            "off",
            "1:60:99",
        ),
        *(
            "<<: *x",
            "1e999",
            "-.inf",
            ".nan",
            "1" * 5000,
            "~",
            "|",
            ">-",
            "!!set {a, a}",
            "!!omap [a]",
            "0o7",
            "1_000",
            "@a",
        ),
        *("\u2028", "\x85", "{a: 1, a: 2}", "[1, 2", "-1", "0", "1.5", "true", '"2"', "[]", "{}", "\0"),
    )
    place = int(rng.integers(len(lines)))
    lines[place] = f"{lines[place].partition(':')[0]}: {values[rng.integers(len(values))]}"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def yaml_bomb(path: Path, rng: np.random.Generator) -> None:
    """Aliases of aliases stand for billions of values, or merge them."""
    count = int(rng.integers(20, 40))
    if rng.random() < 0.5:
        bomb = ["a0: &a0 {k: 1}"] + [f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, count)]
    else:
        bomb = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, count)]
    text = path.read_text(errors="replace") if path.is_file() and rng.random() < 0.5 else ""
    path.write_text("\n".join([*bomb, text]))


def as_json(fault: Fault) -> Fault:
    """The fault of JSON in a file of YAML, of which JSON is a part."""

    def changed(path: Path, rng: np.random.Generator) -> None:
        try:
            content = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, ValueError, OSError):
            return
        path.write_text(json.dumps(content, indent=1))
        fault(path, rng)

    changed.__name__ = getattr(fault, "__name__", "fault")
    return changed


_YAML: tuple[Fault, ...] = (*(yaml_line,) * 8, yaml_bomb, yaml_bomb, *(as_json(fault) for fault in JSON[:9]), *TEXT)


def _read_anatomy(path: Path) -> Any:
    return {"rules": [rule.model_dump(mode="json") for rule in load_anatomy(str(path), SCHEMA).rules]}


def _anatomy_disagree(found: dict[str, Any], expected: dict[str, Any]) -> str:
    if len(found["rules"]) != len(expected["rules"]):
        return "another number of rules"
    return next(filter(None, map(given_values_disagree, found["rules"], expected["rules"])), "")


def kinds() -> list[Kind]:
    """Every file of YAML that a command reads."""
    return [
        Kind(
            "settings, YAML",
            partial(_write_yaml, name="adapt.yaml", content=_SETTINGS),
            _YAML,
            _read_settings,
            _yaml,
            given_values_disagree,
        ),
        Kind(
            "anatomy, YAML",
            partial(_write_yaml, name="anatomy.yaml", content=_ANATOMY),
            _YAML,
            _read_anatomy,
            _yaml,
            _anatomy_disagree,
        ),
    ]
