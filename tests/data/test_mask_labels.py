from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medfm_rl.data.mask_labels import labels_in_masks, parse_mask_labels, write_class_names
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


def test_what_lies_in_several_structures_is_named_by_all_of_them(caplog: pytest.LogCaptureFixture) -> None:
    regions = LabelSchema.of_regions(("WT", "TC", "ET"))
    told = parse_mask_labels("WT=1,WT+TC=7", regions)
    assert told.indices_in(regions)[told.to_indices(np.array([0, 1, 7]))].tolist() == [0, 1, 3]
    assert "does not name ET" in caplog.text
    with pytest.raises(ConfigError, match=r"there is no WT\+core"):
        parse_mask_labels("WT+core=1", regions)


def test_what_the_integers_mean_is_written_beside_masks_and_read_again(tmp_path: Path) -> None:
    regions = LabelSchema.of_regions(("WT", "TC"))
    write_class_names(tmp_path, LabelSchema.from_structures({"LV": 1}))
    assert list(tmp_path.iterdir()) == []
    write_class_names(tmp_path, regions)
    found = labels_in_masks(None, {"a": tmp_path / "a.nii.gz"}, regions)
    assert found is not None
    assert found.indices_in(regions)[found.to_indices(np.arange(4))].tolist() == [0, 1, 2, 3]
