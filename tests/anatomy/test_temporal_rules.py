from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medfm_rl.anatomy.clips import measure_clip
from medfm_rl.anatomy.temporal_rules import (
    TemporalResult,
    TemporalRule,
    TemporalRules,
    departures,
    learn_temporal_rules,
)
from medfm_rl.errors import ConfigError
from medfm_rl.types import LabelSchema

SCHEMA = LabelSchema(("background", "LV", "MYO"), (0, 1, 2))


def test_a_departure_by_hand() -> None:
    # Scaled to a range of 9.9 to 14.14: the middle lies 4 above its neighbours.
    assert departures(np.array([10.0, 14.0, 10.0])).tolist() == pytest.approx([4 / (14.14 - 9.9)])
    assert len(departures(np.array([1.0, 2.0]))) == 0


def test_limits_are_learned_from_what_clips_measure_and_kept_where_none_does(tmp_path: Path) -> None:
    rules = TemporalRules.of_literature(SCHEMA, "LV")
    assert [(rule.structure, rule.most) for rule in rules.rules if rule.measure == "area"] == [
        ("LV", 0.2),
        ("MYO", 0.4),
    ]
    clips = [
        [
            TemporalResult("area", "LV", 0.01 * index, 0.2, "", 1, "", True),
            TemporalResult("distance to neighbours", "MYO", 100.0, np.inf, "px", 1, "", True),
        ]
        for index in range(1, 301)
    ]
    learned = learn_temporal_rules(clips, rules, quantile=0.01)
    by_name = {(rule.measure, rule.structure): rule for rule in learned.rules}
    assert by_name["area", "LV"].most == pytest.approx(2.98)
    assert by_name["area", "LV"].source == "99 % of 300 clips"
    assert by_name["area", "MYO"].most == 0.4
    # Pixels are no mm.
    assert by_name["distance to neighbours", "MYO"].most == 7.0
    path = tmp_path / "rules.yaml"
    path.write_text(learned.to_yaml(), encoding="utf-8")
    assert TemporalRules.read(path) == learned
    with pytest.raises(ValueError, match="at least one clip"):
        learn_temporal_rules([], rules)


def test_rules_of_a_file_replace_those_of_the_literature() -> None:
    masks = np.zeros((6, 20, 20), np.uint8)
    for index, mask in enumerate(masks):
        mask[4 : 14 + index % 2, 5:12] = 1
    strict = TemporalRules(rules=(TemporalRule(measure="length", structure="LV", most=0.01),))
    found = measure_clip(masks, SCHEMA, "LV", None, strict)
    assert [(rule.rule, rule.passed) for rule in found.rules] == [("jump of the length", False)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rules: [{measure: weight, structure: LV, most: 1}]", "rules.0.measure"),
        ("rules: [{measure: area, structure: LV, most: -1}]", "rules.0.most"),
        ("- 1", "(whole file)"),
        ("rules: [", "cannot be read as YAML"),
    ],
)
def test_a_file_that_holds_no_rules_is_refused_with_its_fault(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=problem):
        TemporalRules.read(path)


def test_rules_about_what_the_masks_do_not_have_are_refused() -> None:
    for rule, problem in (
        (TemporalRule(measure="area", structure="RV", most=1), "area of 'RV'; the masks have LV, MYO"),
        (TemporalRule(measure="length", structure="MYO", most=1), "in the ventricle .LV. alone"),
    ):
        with pytest.raises(ConfigError, match=problem):
            TemporalRules(rules=(rule,)).require_known(SCHEMA, "LV", "rules.yaml")
