"""Sphinx configuration; the settings page is made from the settings themselves."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from medfm_rl import __version__, settings

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
            lines.append(f"| `{field}` | {shown} | {info.description} |")
        lines.append("")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return "see below" if isinstance(value, BaseModel) else str(value)


def setup(app: Any) -> None:
    del app
    (Path(__file__).parent / "settings.md").write_text(_settings_page())
