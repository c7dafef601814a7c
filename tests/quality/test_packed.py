from __future__ import annotations

from dataclasses import replace

from medfm_rl.anatomy.profiles import RuleResult
from medfm_rl.quality.packed import InTurn, PackedReports, packed
from medfm_rl.quality.reports import QualityReport, StructureScore


def report_of(name: str, dice: float | None) -> QualityReport:
    scores = (
        StructureScore("LV", dice, None, None, 0.25, 0.125, (3, 4)),
        StructureScore("mean", dice, None, None, 0.25, 0.1, (0, 1)),
    )
    words = "words that all of them have, " * 40
    rule = RuleResult("one piece", "LV", None, 1.0, None, 1.0, "pieces", "drawn by hand", True)
    return QualityReport(name, name[:2], scores, (rule,) * 8, 0.1 + 0.2, 1e-17, "accept", (words,), (0.1, 1 / 3))


def test_reports_come_back_as_they_were_in_a_small_part_of_the_memory() -> None:
    reports = [report_of(f"p{number}_a", None if number % 3 == 0 else number / 7) for number in range(50)]
    kept = packed(reports)
    assert len(kept) == 50
    for found, given in zip(kept, reports, strict=True):
        assert vars(replace(found, reward_map=given.reward_map)) == vars(given)
    assert [found.case_id for found in kept[1:3]] == ["p1_a", "p2_a"]
    assert kept[-1].case_id == "p49_a"
    by_case = PackedReports(reports)
    sizes = [len(text) for text in by_case._packed.values()]
    assert sum(sizes[1:]) / len(sizes[1:]) < 250
    by_case["p1_a"] = replace(reports[1], verdict="refer")
    del by_case["p0_a"]
    assert [found.verdict for found in by_case.in_order(["p2_a", "p1_a"])] == ["accept", "refer"]
    assert "p0_a" not in by_case


def test_items_are_made_in_turn() -> None:
    made: list[int] = []

    def item(index: int) -> int:
        made.append(index)
        return index * index

    squares = InTurn(4, item)
    assert made == []
    assert list(squares) == [0, 1, 4, 9]
    assert squares[-1] == 9
    assert list(squares[1:3]) == [1, 4]
    assert made == [0, 1, 2, 3, 3, 1, 2]
