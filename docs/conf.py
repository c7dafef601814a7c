"""Sphinx configuration. What the code knows better is made from the code: settings, rooms, commands, drawings."""

from __future__ import annotations

import ast
import html
import inspect
import textwrap
import tomllib
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args, get_origin

from docutils import nodes
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from sphinx.util.docutils import SphinxDirective

from medfm_rl import __version__, settings

ROOT = Path(__file__).parents[1]

project = "medfm-rl"
author = "The medfm-rl authors"
copyright = "2026, The medfm-rl authors"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "medfm-rl"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
# Signatures name their defaults as the code does, and single backticks are code as in the sources.
autodoc_preserve_defaults = True
default_role = "code"
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3


def _settings_page() -> str:
    lines = ["# Settings", "", "Made from `medfm_rl.settings`; `medfm-rl init` writes a file with these comments.", ""]
    for name, kind in inspect.getmembers(settings, inspect.isclass):
        if not issubclass(kind, BaseModel) or not kind.model_fields:
            continue
        lines += [f"## {name}", "", inspect.cleandoc(kind.__doc__ or ""), "", "| field | default | |", "|---|---|---|"]
        for field, info in kind.model_fields.items():
            default = info.get_default(call_default_factory=True, validated_data={})
            shown = "required" if default is PydanticUndefined else f"`{_short(default)}`"
            lines.append(f"| `{info.alias or field}` | {shown} | {info.description} |")
        lines.append("")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return "see below" if isinstance(value, BaseModel) else str(value)


def _commands_page() -> str:
    """Every command with its arguments and options, as `--help` has them."""
    from typer.main import get_command

    from medfm_rl.cli import app

    lines = ["# Command line", "", "Made from the commands themselves; `medfm-rl COMMAND --help` prints the same.", ""]
    commands = dict(get_command(app).commands)  # type: ignore[attr-defined]
    for group, command in list(commands.items()):
        commands |= {f"{group} {name}": part for name, part in getattr(command, "commands", {}).items()}
    for name, command in sorted(commands.items()):
        lines += [f"## {name}", "", inspect.cleandoc(command.help or ""), "", "| | |", "|---|---|"]
        for parameter in command.params:
            argument = parameter.param_type_name == "argument"
            shown = parameter.name.upper() if argument else ", ".join(parameter.opts)
            record = getattr(parameter, "help", None) or ""
            words = [] if parameter.metavar else _words(parameter.type_descriptor.annotation)
            listed = f" One of {', '.join(words)}." if words else ""
            lines.append(f"| `{shown}` | {record.replace('|', ' or ')}{listed} |")
        lines.append("")
    return "\n".join(lines)


def _words(hint: Any) -> list[str]:
    """The words that an option has to be one of, by its type."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [word for part in get_args(hint) for word in _words(part)]


def layers() -> list[list[str]]:
    """The rooms of the package from top to bottom, as import-linter checks them; those of a row are independent."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rows = next(contract["layers"] for contract in contracts if contract.get("containers") == ["medfm_rl"])
    return [[name.strip() for name in row.split("|")] for row in rows]


def purpose(room: str) -> str:
    """First line of a room's docstring."""
    package = ROOT / "medfm_rl" / room / "__init__.py"
    source = package if package.exists() else ROOT / "medfm_rl" / f"{room}.py"
    return (ast.get_docstring(ast.parse(source.read_text())) or "").partition("\n")[0]


class Step(NamedTuple):
    """A step of a walk: the function, what it does, what it leaves; steps of the loop come again."""

    function: str
    text: str
    leaves: str
    repeated: bool

    @classmethod
    def parse(cls, line: str) -> Self:
        """From `function | text | file`, with `*` before what comes again."""
        function, text, leaves = (part.strip() for part in line.removeprefix("*").split("|"))
        return cls(function, text, leaves, line.startswith("*"))


class Rooms(SphinxDirective):
    """The rooms: a drawing of who may import whom, and a line on each."""

    def run(self) -> list[nodes.Node]:
        rows = [f"| `{name}` | {purpose(name)} |" for row in layers() for name in row]
        table = "\n".join(["| room | |", "|---|---|", *rows])
        return [nodes.raw("", draw_layers(layers()), format="html"), *self.parse_text_to_nodes(table)]


class Walk(SphinxDirective):
    """A drawing of functions that are called one after the other."""

    has_content = True
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        steps = [Step.parse(line) for line in self.content if line.strip()]
        return [nodes.raw("", draw_walk(self.arguments[0], steps), format="html")]


_WIDTH = 760
_STYLE = """<style>
.drawing { width: 100%; max-width: 760px; height: auto; font-family: var(--font-stack, sans-serif); font-size: 13px; }
.drawing text { fill: var(--color-foreground-primary, #222); }
.drawing .faint { fill: var(--color-foreground-muted, #666); font-size: 11.5px; }
.drawing .name { font-family: var(--font-stack--monospace, monospace); font-weight: 600; }
.drawing .box { fill: var(--color-background-secondary, #f6f6f6); stroke: var(--color-brand-primary, #2962ff); }
.drawing .file { fill: none; stroke: var(--color-foreground-border, #aaa); }
.drawing .line { fill: none; stroke: var(--color-foreground-muted, #666); stroke-width: 1.4; }
.drawing .head { fill: var(--color-foreground-muted, #666); }
</style>"""


def _svg(title: str, height: int, parts: list[str]) -> str:
    opening = f'<svg class="drawing" role="img" viewBox="0 0 {_WIDTH} {height}" xmlns="http://www.w3.org/2000/svg">'
    return "\n".join([_STYLE, opening, f"<title>{html.escape(title)}</title>", *parts, "</svg>"])


def _box(x: float, y: float, width: float, height: float, kind: str = "box") -> str:
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5"/>'


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _arrow(x: float, top: float, bottom: float) -> list[str]:
    head = f'<path class="head" d="M {x - 4:g} {bottom - 7:g} h 8 l -4 7 z"/>'
    return [f'<path class="line" d="M {x:g} {top:g} V {bottom - 6:g}"/>', head]


def draw_layers(rows: list[list[str]]) -> str:
    """One row of boxes for each layer, the highest at the top, and an arrow that says in which direction imports go."""
    left, pitch, high = 90, 46, 30
    parts = [*_arrow(40, 14, pitch * len(rows) - 20), _text(40, pitch * len(rows), "imports", "faint", "middle")]
    for index, row in enumerate(rows):
        top, width = 8 + index * pitch, (_WIDTH - left - 10 * (len(row) - 1)) / len(row)
        for place, name in enumerate(row):
            x = left + place * (width + 10)
            parts += [_box(x, top, width, high), _text(x + width / 2, top + 20, name, "name", "middle")]
    return _svg("Who may import whom: rooms import downwards only", pitch * len(rows) + 8, parts)


def draw_walk(title: str, steps: list[Step]) -> str:
    """A box for each function, from top to bottom; beside it what it does and the file that it leaves."""
    left, wide, beside, file_left, high, gap = 34, 286, 332, 604, 44, 16
    parts, bottom = [], 0
    for index, step in enumerate(steps):
        top = 4 + index * (high + gap)
        bottom = top + high
        module, _, name = step.function.removeprefix("medfm_rl.").rpartition(".")
        parts += [_box(left, top, wide, high), _text(left + 10, top + 18, name, "name")]
        parts.append(_text(left + 10, top + 35, module, "faint"))
        lines = textwrap.wrap(step.text, 40 if step.leaves else 62)
        start = top + high / 2 + 4.5 - 8 * (len(lines) - 1)
        parts += [_text(beside, start + 16 * number, line) for number, line in enumerate(lines)]
        if step.leaves:
            parts.append(_box(file_left, top + 7, _WIDTH - file_left - 2, high - 14, "file"))
            parts.append(_text((file_left + _WIDTH) / 2, top + high / 2 + 4, step.leaves, "faint", "middle"))
        if index + 1 < len(steps):
            parts += _arrow(left + wide / 2, bottom, bottom + gap)
    again = [index for index, step in enumerate(steps) if step.repeated]
    if again:
        start, end = (4 + index * (high + gap) + high / 2 for index in (again[0], again[-1]))
        parts.append(f'<path class="line" d="M {left} {end:g} H 14 V {start:g} H {left - 6}"/>')
        parts.append(f'<path class="head" d="M {left - 7} {start - 4:g} v 8 l 7 -4 z"/>')
    return _svg(title, bottom + 6, parts)


def setup(app: Any) -> None:
    for name, page in {"settings": _settings_page(), "command_line": _commands_page()}.items():
        (Path(__file__).parent / f"{name}.md").write_text(page)
    app.add_directive("rooms", Rooms)
    app.add_directive("walk", Walk)
