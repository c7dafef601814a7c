from __future__ import annotations

import pytest

from medfm_rl.data.json_text import parse_json


def test_a_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'a' is given twice"):
        parse_json('{"b": {"a": 1, "a": 2}}')


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_what_nests_without_end_is_refused(opening: str, closing: str) -> None:
    with pytest.raises(ValueError, match="nest too deeply"):
        parse_json(opening * 100_000 + "1" + closing * 100_000)


@pytest.mark.parametrize("text", ['\ufeff{"a": 1}', b'\xef\xbb\xbf{"a": 1}', '{"a": 1}'.encode("utf-16")])
def test_a_byte_order_mark_is_none_of_the_content(text: str | bytes) -> None:
    assert parse_json(text) == {"a": 1}
