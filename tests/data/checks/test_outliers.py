"""Which numbers are unlike the others, by numbers that were worked out by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from medfm_rl.data.checks.outliers import unlike_most, unlike_the_others


def of(*values: float) -> dict[int, tuple[float]]:
    return {place: (value,) for place, value in enumerate(values)}


def test_the_limit_is_3_and_a_half_robust_deviations() -> None:
    """Median 3, distances 2, 1, 0, 1, 2 and that of the last: MAD 1.5 of six, so the limit is 3.5 x 1.4826 x 1.5."""
    limit = 3.5 * 1.4826 * 1.5
    # Of 1, 2, 3, 4, 5 and x > 4 the median is 3.5; distances are 2.5, 1.5, .5, .5, 1.5, so the MAD is 1.5.
    assert unlike_the_others(of(1, 2, 3, 4, 5, 3.5 + limit - 0.01), least=0) == {}
    assert unlike_the_others(of(1, 2, 3, 4, 5, 3.5 + limit + 0.01), least=0) == {5: [True]}


def test_where_most_are_equal_the_least_distance_decides() -> None:
    assert unlike_the_others(of(1, 1, 1, 1.05), least=0.1) == {}
    assert unlike_the_others(of(1, 1, 1, 1.2), least=0.1) == {3: [True]}


def test_each_place_has_a_median_of_its_own() -> None:
    rows = {"a": (0.0, 10.0), "b": (0.0, 10.0), "c": (5.0, 10.0), "d": (0.0, 0.0)}
    assert unlike_the_others(rows, least=(1, 1)) == {"c": [True, False], "d": [False, True]}


def test_two_are_not_most() -> None:
    assert unlike_the_others(of(1, 1000), least=0) == {}
    assert unlike_most({"a": 1, "b": 2}) is None


def test_most_are_more_than_half() -> None:
    assert unlike_most(dict(enumerate("aab"))) == ("a", {2: "b"})
    assert unlike_most(dict(enumerate("aabb"))) is None
    assert unlike_most(dict(enumerate("aaa"))) is None
    assert unlike_most({}) is None


@given(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=30), st.floats(-1e3, 1e3))
def test_never_are_more_than_half_unlike_the_others(values: list[float], shift: float) -> None:
    found = unlike_the_others(of(*values), least=0)
    assert 2 * len(found) <= len(values)
    assert unlike_the_others(of(*(value + shift for value in values)), least=1e-3).keys() <= set(range(len(values)))
