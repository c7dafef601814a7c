from __future__ import annotations

import numpy as np
import pytest

from medfm_rl.anatomy.cleaning import clean_up
from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.anatomy.rules import ComponentsRule, HolesRule, Profile
from medfm_rl.types import LabelSchema

NESTED = LabelSchema.from_regions({"whole": (1, 2), "core": (2,)}, order=(1, 2))
FREE = LabelSchema.of_regions(("whole", "core"))


def tidy(schema: LabelSchema, structure: str, labels: list[list[int]]) -> list[list[int]]:
    rules = (ComponentsRule(structure=structure, most=1), HolesRule(structure=structure, most=0))
    found: list[list[int]] = clean_up(
        np.array(labels, dtype=np.uint8), Anatomy("own", Profile(rules=rules), schema)
    ).tolist()
    return found


@pytest.mark.parametrize(
    ("schema", "structure", "labels", "expected"),
    [
        # 1 whole, 2 core, 3 both. Without the whole nothing is written of a core where integers are nested.
        (NESTED, "whole", [[1, 1, 1, 0, 3]], [[1, 1, 1, 0, 0]]),
        (FREE, "whole", [[1, 1, 1, 0, 3]], [[1, 1, 1, 0, 2]]),
        (FREE, "core", [[3, 3, 1, 1, 3]], [[3, 3, 1, 1, 1]]),
        (NESTED, "core", [[3, 3, 1, 1, 3]], [[3, 3, 1, 1, 1]]),
        # A hole of the core is in the whole; where nothing is, the core brings the whole with it.
        (NESTED, "core", [[3, 3, 3], [3, 1, 3], [3, 3, 3]], [[3, 3, 3], [3, 3, 3], [3, 3, 3]]),
        (NESTED, "core", [[3, 3, 3], [3, 0, 3], [3, 3, 3]], [[3, 3, 3], [3, 3, 3], [3, 3, 3]]),
        (FREE, "core", [[3, 3, 3], [3, 0, 3], [3, 3, 3]], [[3, 3, 3], [3, 2, 3], [3, 3, 3]]),
    ],
)
def test_structures_that_overlap_are_tidied_each_by_itself(
    schema: LabelSchema, structure: str, labels: list[list[int]], expected: list[list[int]]
) -> None:
    assert tidy(schema, structure, labels) == expected
