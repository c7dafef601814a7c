"""The configuration of the documents as a module: it draws pages that are not kept."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def docs_configuration() -> ModuleType:
    """`docs/conf.py`, executed anew."""
    spec = importlib.util.spec_from_file_location("docs_configuration", ROOT / "docs" / "conf.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
