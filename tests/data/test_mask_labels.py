from __future__ import annotations

import pytest

from medfm_rl.data.mask_labels import parse_mask_labels
from medfm_rl.errors import ConfigError
from medfm_rl.types import LabelSchema


def test_integers_belong_to_the_structures_that_are_named(
    schema: LabelSchema, caplog: pytest.LogCaptureFixture
) -> None:
    assert parse_mask_labels("LA=3,LV = 255, MYO=1", schema) == LabelSchema.from_structures(
        {"LA": 3, "LV": 255, "MYO": 1}
    )
    assert caplog.text == ""
    assert parse_mask_labels("LV=0,background=255", schema) == LabelSchema.from_structures({"LV": 0}, 255)
    assert "does not name MYO and LA" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be NAME=INTEGER"),
        ("LV", "--labels LV: must be NAME=INTEGER"),
        ("LV=1,", "must be NAME=INTEGER"),
        ("=1", "must be NAME=INTEGER"),
        ("LV=x", "from 0 to 255"),
        ("LV=-1", "from 0 to 255"),
        ("LV=256", "from 0 to 255"),
        ("LV=1.0", "from 0 to 255"),
        ("RV=1", "there is no RV; the run segments LV, MYO, LA"),
        ("LV=1,LV=2", "LV is there twice"),
        ("LV=1,MYO=1", "1 stands for LV and for MYO"),
        ("LV=0", "0 stands for background and for LV; say what is background by background=INTEGER"),
        ("background=1", "names no structure"),
    ],
)
def test_what_cannot_be_meant_is_refused(schema: LabelSchema, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_mask_labels(text, schema)
