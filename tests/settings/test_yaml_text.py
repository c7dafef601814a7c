from __future__ import annotations

import pytest
import yaml

from medfm_rl.settings.yaml_text import read_yaml

MERGES = "\n".join(["a0: &a0 {k: 1}", *(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}" for i in range(1, 30))])
LISTS = "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40))])


@pytest.mark.parametrize("bomb", [MERGES, LISTS])
def test_aliases_that_stand_for_millions_of_values_are_refused_at_once(bomb: str) -> None:
    with pytest.raises(yaml.YAMLError, match="more than 100000 values"):
        read_yaml(bomb)


def test_a_few_aliases_are_read() -> None:
    assert read_yaml("a: &a [1, 2]\nb: *a\nc: &c {k: *a}\nd: {<<: *c, e: 3}") == {
        "a": [1, 2],
        "b": [1, 2],
        "c": {"k": [1, 2]},
        "d": {"k": [1, 2], "e": 3},
    }


def test_a_value_that_holds_itself_is_refused() -> None:
    with pytest.raises(yaml.YAMLError, match="line 2 holds itself"):
        read_yaml("a: 1\nb: &b [*b]")


@pytest.mark.parametrize(
    "value", ["2001-99-99", "0x_", "!!int abc", "!!bool maybe", "!!timestamp x", "1" * 5000, "[" * 5000 + "]" * 5000]
)
def test_what_looks_like_a_value_and_is_none_is_an_error_of_yaml(value: str) -> None:
    with pytest.raises(yaml.YAMLError):
        read_yaml(f"a: {value}")
