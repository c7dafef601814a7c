"""YAML in which no key stands twice: of two values one would be ignored without a word."""

from __future__ import annotations

from typing import Any

import yaml


class RepeatedKeyError(yaml.YAMLError):
    """A key stands twice in one mapping; the message says where."""


class _StrictLoader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and lines.setdefault(key.value, line) != line:
                raise RepeatedKeyError(f"{key.value} is given twice, in lines {lines[key.value]} and {line}; keep one")
        return node


def read_yaml(text: str) -> Any:
    """The content of a YAML text; nothing in it runs.

    Raises:
        yaml.YAMLError: It is none, or a key stands twice in one mapping.
    """
    loader = _StrictLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
