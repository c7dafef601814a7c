"""The file of a stream: added to by any number of processes, and damaged by none."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from medfm_rl.choices import PromiseUnit
from medfm_rl.errors import DataError
from medfm_rl.quality.promises import PromiseTarget, ReviewedMask, prove
from medfm_rl.runs.stream_history import StreamIdentity, Study, StudyCase, read_stream
from medfm_rl.runs.stream_promise import losses_under
from medfm_rl.runs.stream_state import add_reviews, add_studies, restart

IDENTITY = StreamIdentity("ge-1", "apical", "north", "a" * 64, 0, 0.05)
NOW = datetime(2026, 5, 1, tzinfo=UTC)


def case(name: str, distance: float = 1.0, verdict: str = "accept") -> StudyCase:
    return StudyCase(name, f"mask of {name}", verdict, 0.9, 0.95, distance, ())


def many(first: int, count: int, distance: float = 1.0) -> dict[str, list[StudyCase]]:
    return {f"p{n}": [case(f"c{n}", distance + 0.01 * ((7 * n) % 13))] for n in range(first, first + count)}


def changed(line: int, of_case: bool = False, **values: object) -> Callable[[list[str]], list[str]]:
    """Puts other values into a line of a stream, or into the first case of a study."""

    def change(lines: list[str]) -> list[str]:
        content = json.loads(lines[line])
        (content["cases"][0] if of_case else content).update(values)
        return [*lines[:line], json.dumps(content), *lines[line + 1 :]]

    return change


def add_from_a_process(path: Path, first: int) -> None:
    for number in range(first, first + 5):
        add_studies(path, IDENTITY, many(number, 1))


def test_what_was_added_comes_back_and_is_not_added_twice(tmp_path: Path) -> None:
    path = tmp_path / "ge.jsonl"
    studies, repeated = add_studies(path, IDENTITY, many(0, 3), NOW)
    assert (len(studies), repeated) == (3, 0)
    assert add_studies(path, IDENTITY, many(0, 4), NOW)[1] == 3
    history = read_stream(path)
    assert [study.patient for study in history.studies] == ["p0", "p1", "p2", "p3"]
    assert history.studies[:3] == studies
    assert (history.name, history.identity) == ("ge", IDENTITY)


def test_a_patient_who_comes_again_is_recorded_and_not_tested(tmp_path: Path) -> None:
    path = tmp_path / "ge.jsonl"
    add_studies(path, IDENTITY, {"p0": [case("a")]}, NOW)
    add_studies(path, IDENTITY, {"p0": [case("b")]}, NOW)
    assert [study.tested for study in read_stream(path).studies] == [True, False]
    assert read_stream(path).drift().studies == 1


def test_what_images_look_like_comes_back_and_counts_by_study(tmp_path: Path) -> None:
    path = tmp_path / "ge.jsonl"
    seen = [replace(case("a"), look=(0.5, 1.0)), replace(case("b"), look=(1.5, -1.0)), case("c")]
    add_studies(path, IDENTITY, {"p0": seen, "p1": [case("d")]}, NOW)
    first, second = read_stream(path).studies
    assert first.numbers["look"] == (1.0, 0.0)
    # The mean is kept, and not what each image looks like.
    assert path.read_text().count("look") == 2
    # Of a mask that an older version added it is not known.
    assert "look" not in second.numbers
    assert read_stream(path).drift().studies == 2


def test_streams_of_the_version_before_are_read_and_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "ge.jsonl"
    add_studies(path, IDENTITY, many(0, 2), NOW)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["format"] = 2
    for line in lines[1:]:
        del line["look"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [study.look for study in read_stream(path).studies] == [(), ()]
    add_studies(path, IDENTITY, {"p9": [replace(case("z"), look=(0.5, 1.0))]}, NOW)
    history = read_stream(path)
    assert history.studies[2].look == (0.5, 1.0)
    assert history.drift().studies == 3


def test_looks_that_cannot_be_compared_are_refused_before_they_are_added(tmp_path: Path) -> None:
    path = tmp_path / "ge.jsonl"
    add_studies(path, IDENTITY, {"p0": [replace(case("a"), look=(0.5, 1.0))]}, NOW)
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"patient p1 are described by \[1, 2\] numbers"):
        add_studies(path, IDENTITY, {"p1": [replace(case("b"), look=(0.5,))]}, NOW)
    with pytest.raises(DataError, match=r"patient p2 are described by \[2, 3\] numbers"):
        add_studies(path, IDENTITY, {"p2": [replace(case("c"), look=(1, 2)), replace(case("d"), look=(1, 2, 3))]}, NOW)
    assert path.read_bytes() == before


def test_processes_add_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "ge.jsonl"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add_from_a_process, args=(path, 5 * n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(read_stream(path).cases) == sorted(each.key for own in many(0, 15).values() for each in own)


def test_a_last_line_that_was_cut_short_is_named_and_added_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ge.jsonl"
    add_studies(path, IDENTITY, many(0, 2), NOW)
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    history = read_stream(path)
    assert (history.cut_short, len(history.studies)) == (3, 1)
    assert "line 3, the last one, was cut short" in caplog.text
    add_studies(path, IDENTITY, many(0, 2), NOW)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0], lines[1][:-9], lines[2]], "line 2 is damaged"),
        (lambda lines: [lines[0], json.dumps({"kind": "visit", "time": NOW.isoformat()})], "no kind of line"),
        (lambda lines: lines[1:], "does not say what it is of"),
        (lambda lines: [json.dumps({**json.loads(lines[0]), "format": 9}), *lines[1:]], "newer version"),
        (changed(0, audit_share="5 %"), "line 1 lacks .*audit_share is '5 %', where a number is needed"),
        (changed(0, seed="7"), "line 1 lacks .*seed is '7', where a number"),
        (changed(1, time="2026-05-01T00:00:00"), "line 2 lacks .*has no offset from UTC"),
        (changed(1, time=None), "line 2 lacks .*time is None, where text is needed"),
        (changed(1, tested="no"), "line 2 lacks .*tested is 'no', where true or false"),
        (changed(2, of_case=True, mean_reward=None), "line 3 lacks .*mean_reward is None, where a number"),
        (changed(2, of_case=True, predicted="0.9"), "line 3 lacks .*predicted is '0.9', where a number or null"),
        (changed(2, of_case=True, shift_distance=True), "line 3 lacks .*shift_distance is True, where a number"),
        (changed(2, of_case=True, broken_rules=[1]), "line 3 lacks .*broken_rules does not hold text alone"),
        (changed(2, look=["dark"]), "line 3 lacks .*look does not hold a number alone"),
        (changed(2, cases=["c1"]), "line 3 lacks .*a case is no JSON object"),
        (
            lambda lines: [
                lines[0],
                lines[1].replace('"look": []', '"look": [1.0]'),
                lines[2].replace('"look": []', '"look": [1.0, 2.0]'),
            ],
            "line 3 lacks what a stream has there .*other numbers than those before",
        ),
    ],
)
def test_damage_and_newer_versions_are_refused(tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "ge.jsonl"
    add_studies(path, IDENTITY, many(0, 2), NOW)
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(DataError, match=message):
        read_stream(path)


def test_a_clock_that_runs_backwards_is_said_and_clocks_that_differ_a_little_are_not(tmp_path: Path) -> None:
    path = tmp_path / "ge.jsonl"
    add_studies(path, IDENTITY, many(0, 1), NOW)
    add_studies(path, IDENTITY, many(1, 1), NOW - timedelta(minutes=2))
    assert read_stream(path).last_time == NOW
    with pytest.raises(DataError, match="the clock runs backwards"):
        add_studies(path, IDENTITY, many(2, 1), NOW - timedelta(hours=1))


def test_a_time_without_an_offset_is_that_of_this_machine(tmp_path: Path) -> None:
    path = tmp_path / "ge.jsonl"
    noon = datetime(2026, 5, 1, 12)
    add_studies(path, IDENTITY, many(0, 1), noon)
    assert read_stream(path).last_time == noon.astimezone()


@pytest.mark.parametrize("changes", [{"scanner": "ge-2"}, {"site": "south"}, {"quality": "b" * 64}])
def test_a_stream_is_of_one_scanner_and_one_quality_model(tmp_path: Path, changes: dict[str, str]) -> None:
    path = tmp_path / "ge.jsonl"
    add_studies(path, IDENTITY, many(0, 1), NOW)
    with pytest.raises(DataError, match="another stream"):
        add_studies(path, replace(IDENTITY, **changes), many(1, 1), NOW)


def test_a_share_of_the_accepted_is_drawn_and_open_until_reviewed(tmp_path: Path) -> None:
    path = tmp_path / "ge.jsonl"
    cases = {f"p{n}": [case(f"c{n}", verdict="accept" if n % 2 else "correct")] for n in range(400)}
    add_studies(path, replace(IDENTITY, audit_share=0.2), cases, NOW)
    drawn = read_stream(path).open_audits
    assert 20 <= len(drawn) <= 60
    assert all(each.verdict == "accept" for each in drawn)
    assert add_reviews(path, {drawn[0].key: 0.9}, NOW) == 1
    assert add_reviews(path, {drawn[0].key: 0.9}, NOW) == 0
    assert len(read_stream(path).open_audits) == len(drawn) - 1
    with pytest.raises(DataError, match="not of this stream"):
        add_reviews(path, {"stranger": 0.9}, NOW)


def test_the_masks_of_a_patient_are_one_review_and_what_comes_later_of_him_is_not_tested(tmp_path: Path) -> None:
    path = tmp_path / "ge.jsonl"
    add_studies(path, IDENTITY, {"p0": [case("a"), case("b"), case("c")], "p1": [case("d")]}, NOW)
    add_reviews(path, {case("a").key: 0.9, case("d").key: 0.7, case("b").key: 0.5}, NOW)
    add_reviews(path, {case("c").key: 0.1}, NOW + timedelta(hours=1))
    history = read_stream(path)
    assert [(event.patient, event.dice) for event in history.first_reviews()] == [("p0", 0.7), ("p1", 0.7)]
    # Two studies and two patients reviewed.
    assert history.drift().studies == 4
    add_reviews(path, {case("b").key: 0.7}, NOW + timedelta(hours=2))
    history = read_stream(path)
    # What the test saw of him stays what it saw.
    assert [event.dice for event in history.tested if not isinstance(event, Study)] == [0.7, 0.7]


def test_reviews_of_all_masks_of_patients_who_stay_the_same_are_no_change(tmp_path: Path) -> None:
    rng, alarms = np.random.default_rng(0), 0
    for number in range(10):
        path = tmp_path / f"{number}.jsonl"
        masks = {f"p{n}": [case(f"{n} {m}") for m in range(4)] for n in range(40)}
        add_studies(path, replace(IDENTITY, seed=number), masks, NOW)
        dice = {
            each.key: float(np.clip(0.9 + 0.02 * (patient + 0.2 * rng.normal()), 0, 1))
            for of_patient in masks.values()
            for patient in [rng.normal()]
            for each in of_patient
        }
        add_reviews(path, dice, NOW)
        alarms += read_stream(path).drift().alarm is not None
    assert alarms == 0


@pytest.mark.parametrize(("unit", "losses"), [("mean", [0.5, 0.0]), ("worst", [1.0, 0.0])])
def test_a_patient_loses_as_in_the_proof_of_the_promise(tmp_path: Path, unit: PromiseUnit, losses: list[float]) -> None:
    path = tmp_path / "ge.jsonl"
    add_studies(path, IDENTITY, {"p0": [case("a"), case("b")], "p1": [case("d")]}, NOW)
    add_reviews(path, {case("a").key: 0.9, case("b").key: 0.5, case("d").key: 0.9}, NOW)
    proof = [ReviewedMask(f"c{n}", f"q{n}", 0.5, True, 0.9) for n in range(30)]
    promise = prove(proof, PromiseTarget(dice=0.8, unit=unit))
    assert losses_under(read_stream(path), promise) == losses
    # A mask that was looked at again counts as it was found in the end.
    add_reviews(path, {case("b").key: 0.9}, NOW)
    assert losses_under(read_stream(path), promise) == [0.0, 0.0]


def test_a_mask_that_the_promise_does_not_speak_of_takes_no_patient_out(tmp_path: Path) -> None:
    path = tmp_path / "ge.jsonl"
    promise = prove([ReviewedMask(f"c{n}", f"q{n}", 0.9, True, 0.9) for n in range(30)], PromiseTarget(dice=0.8))
    low = replace(case("low"), predicted=0.3)
    add_studies(path, IDENTITY, {"p0": [low, case("a")]}, NOW)
    add_reviews(path, {low.key: 0.9}, NOW)
    add_reviews(path, {case("a").key: 0.1}, NOW)
    assert losses_under(read_stream(path), promise) == [1.0]
    # Two calls are two, also of one moment: the second is no part of the first.
    assert [event.dice for event in read_stream(path).first_reviews()] == [0.9]


def test_masks_from_before_a_stream_began_anew_do_not_stand_for_later_ones(tmp_path: Path) -> None:
    path = tmp_path / "ge.jsonl"
    promise = prove([ReviewedMask(f"c{n}", f"q{n}", 0.9, True, 0.9) for n in range(30)], PromiseTarget(dice=0.8))
    add_studies(path, IDENTITY, {"p0": [case("a")]}, NOW)
    restart(path, "new probe", NOW)
    add_reviews(path, {case("a").key: 0.9}, NOW)
    assert read_stream(path).tested == []
    add_studies(path, IDENTITY, {"p0": [case("b")]}, NOW)
    add_reviews(path, {case("b").key: 0.1}, NOW)
    assert losses_under(read_stream(path), promise) == [1.0]


def test_a_review_of_a_mask_that_no_line_has_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "ge.jsonl"
    add_studies(path, IDENTITY, many(0, 2), NOW)
    add_reviews(path, {case("c1").key: 0.9}, NOW)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2] + lines[3:]))
    with pytest.raises(DataError, match=r"line 3 lacks.*no line before has"):
        read_stream(path)


def test_a_change_raises_an_alarm_until_the_stream_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "ge.jsonl"
    add_studies(path, IDENTITY, many(0, 60), NOW)
    assert read_stream(path).drift().alarm is None
    add_studies(path, IDENTITY, many(60, 15, distance=5.0), NOW)
    alarm = read_stream(path).drift().alarm
    assert alarm is not None
    assert (alarm.since, alarm.signal) == (61, "appearance")
    restart(path, "new probe, checked", NOW)
    assert read_stream(path).drift().alarm is None
    with pytest.raises(DataError, match="for a reason"):
        restart(path, " ", NOW)
