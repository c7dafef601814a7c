from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfm_rl.data.each_case import each_case
from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import DataError, ModelError, UserError
from medfm_rl.progress import silent

ERRORS = [None, DataError, ModelError, PermissionError, ValueError, IndexError]


def files_of(count: int) -> list[CaseFile]:
    return [CaseFile(f"c{index}", "p", ()) for index in range(count)]


@settings(deadline=None)
@given(st.lists(st.sampled_from(ERRORS), min_size=1, max_size=8).filter(lambda errors: None in errors))
def test_what_goes_wrong_with_some_costs_no_other(errors: list[type[Exception] | None]) -> None:
    files = files_of(len(errors))
    fate = {file.case_id: error for file, error in zip(files, errors, strict=True)}
    seen: list[int] = []

    def handle(file: CaseFile) -> str:
        error = fate[file.case_id]
        if error is not None:
            raise error("it went wrong")
        return f"done {file.case_id}"

    results, problems = each_case(files, handle, "handling", lambda _, done, total: seen.append(done))
    assert results == {name: f"done {name}" for name, error in fate.items() if error is None}
    assert list(problems) == [name for name, error in fate.items() if error is not None]
    for name, problem in problems.items():
        assert "it went wrong" in problem
        assert issubclass(fate[name] or object, UserError) or name in problem
    assert seen == list(range(1, len(files) + 1))


def test_an_error_that_nothing_foresaw_names_its_case_and_keeps_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def handle(file: CaseFile) -> None:
        if file.case_id == "c1":
            raise ValueError("spacing must be positive")

    _, problems = each_case(files_of(3), handle, "handling", silent)
    assert problems == {"c1": "case c1: ValueError: spacing must be positive; repair this image, or take it out"}
    assert "Traceback" in caplog.text


def test_what_is_wrong_with_a_clip_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    frames = [CaseFile(f"p1_frame{index:03d}", "p1", (), clip_id="p1", frame=index) for index in range(5)]

    def handle(file: CaseFile) -> None:
        raise DataError("loop.avi: it is cut off" if file.frame != 3 else "the mask of p1_frame003 is empty")

    _, problems = each_case(frames, handle, "handling", silent)
    assert len(problems) == 5
    assert [record.getMessage() for record in caplog.records] == [
        "left out: clip p1: loop.avi: it is cut off",
        "left out: the mask of p1_frame003 is empty",
    ]


def test_what_is_left_out_is_said_when_it_happens_and_once(caplog: pytest.LogCaptureFixture) -> None:
    said: list[int] = []

    def handle(file: CaseFile) -> None:
        said.append(len(caplog.records))
        if file.case_id == "c3":
            raise DataError("damaged")
        if file.case_id != "c2":
            raise DataError(f"{file.case_id}.png: damaged") if file.case_id != "c1" else ValueError("other")

    each_case(files_of(4), handle, "handling", silent)
    assert said == [0, 1, 2, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "left out: c0.png: damaged",
        "case c1 is left out:",
        "left out: case c3: damaged",
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_where_every_case_ends_so_it_is_a_defect_and_raised(count: int) -> None:
    def handle(file: CaseFile) -> None:
        raise RuntimeError(f"expected Float but found Half in {file.case_id}")

    with pytest.raises(RuntimeError, match="found Half in c0"):
        each_case(files_of(count), handle, "handling", silent)


def test_a_defect_that_is_none_of_a_case_is_not_hidden() -> None:
    def handle(file: CaseFile) -> None:
        raise AssertionError(file.case_id)

    with pytest.raises(AssertionError, match="c0"):
        each_case(files_of(2), handle, "handling", silent)


def test_a_case_that_cannot_be_used_among_others_that_end_unforeseen_is_named() -> None:
    def handle(file: CaseFile) -> None:
        raise DataError("damaged") if file.case_id == "c1" else ValueError("other")

    _, problems = each_case(files_of(3), handle, "handling", silent)
    assert list(problems) == ["c0", "c1", "c2"]
