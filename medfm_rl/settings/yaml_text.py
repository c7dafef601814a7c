"""YAML in which no key stands twice: of two values one would be ignored without a word."""

from __future__ import annotations

import itertools
from typing import Any

import yaml

_MOST_VALUES = 100_000
_NO_VALUE = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)


class RepeatedKeyError(yaml.YAMLError):
    """A key stands twice in one mapping; the message says where."""


class UnusableError(yaml.YAMLError):
    """The text is YAML and stands for no value that could be used; the message says why."""


class _StrictLoader(yaml.SafeLoader):
    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        # By node, how many values it stands for, those of its aliases among them.
        self._values: dict[int, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        assert node is not None
        if is_alias and id(node) not in self._values:
            raise UnusableError(f"a value in line {node.start_mark.line + 1} holds itself")
        if not is_alias:
            parts = node.value if isinstance(node, yaml.CollectionNode) else ()
            inner = itertools.chain.from_iterable(parts) if isinstance(node, yaml.MappingNode) else parts
            self._values[id(node)] = 1 + sum(self._values[id(part)] for part in inner)
            if self._values[id(node)] > _MOST_VALUES:
                raise UnusableError(f"its aliases stand for more than {_MOST_VALUES} values")
        return node

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
    except _NO_VALUE as error:
        # Among them dates that there are not, numbers of thousands of digits, and lists in lists without end.
        raise UnusableError(f"a value cannot be read ({type(error).__name__}: {error})") from error
    finally:
        loader.dispose()
