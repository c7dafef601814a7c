from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfm_rl.data.files import write_json
from medfm_rl.errors import DataError
from medfm_rl.runs.folder import RunFolder
from medfm_rl.workflows.adapt.choosing.decision import table_of
from medfm_rl.workflows.adapt.choosing.selection import (
    Candidate,
    Comparison,
    Opinion,
    Selection,
    select,
    worth_of_signals,
)
from medfm_rl.workflows.adapt.choosing.signals import REWARD, RULES, SHAPES, SIGNALS, VIEWS
from medfm_rl.workflows.adapt.final_report import read_decision

PATIENTS = [f"p{i}" for i in range(10)]
BASE = np.linspace(0.5, 0.8, 10)


def said(**gains: float) -> Comparison:
    """What the signals say of a candidate: the same gain on every image, 0 where none is given."""
    names = {"rules": RULES, "views": VIEWS, "shapes": SHAPES, "reward": REWARD}
    by_signal = {names[name]: gain for name, gain in gains.items()}
    return {signal: (BASE, BASE + by_signal.get(signal, 0.0)) for signal in SIGNALS}


def choose(incumbent: str, margin: float = 0.005, worth: dict[str, float] | None = None, **said_of: Comparison) -> str:
    names = {name.replace("_", "-"): values for name, values in said_of.items()}
    return select(names, PATIENTS, 0.95, margin, incumbent, worth).chosen


def test_one_signal_never_decides_however_sure_it_is() -> None:
    """A learned reward was sure of the source model on fundus images, where the adapted one was 11 points better."""
    assert choose("fine-tuning", source=said(reward=0.3), fine_tuning=said()) == "fine-tuning"
    assert choose("fine-tuning", source=said(reward=0.3, views=0.02), fine_tuning=said()) == "source"


def test_signals_that_are_sure_of_the_opposite_count_against() -> None:
    assert choose("fine-tuning", source=said(reward=0.1, views=0.1, rules=-0.1), fine_tuning=said()) == "fine-tuning"
    assert choose("fine-tuning", source=said(reward=0.1, views=0.1, shapes=0.1, rules=-0.1), fine_tuning=said()) == (
        "source"
    )


def test_a_gain_within_the_margin_does_not_count() -> None:
    """Sure as it is: what PPO makes pleases the held-out reward a little in any case."""
    of_ppo = said(reward=0.008, views=0.008)
    assert choose("fine-tuning", 0.01, source=said(), fine_tuning=said(), ppo=of_ppo) == "fine-tuning"
    assert choose("fine-tuning", 0.005, source=said(), fine_tuning=said(), ppo=of_ppo) == "ppo"


def test_signals_that_are_worth_nothing_are_not_heard() -> None:
    worth = {RULES: 0.4, VIEWS: 0.0, SHAPES: 0.3, REWARD: 0.5}
    of_source = said(reward=0.1, views=0.1)
    assert choose("fine-tuning", source=of_source, fine_tuning=said()) == "source"
    assert choose("fine-tuning", worth=worth, source=of_source, fine_tuning=said()) == "fine-tuning"


def test_more_signals_win_and_then_the_larger_gains() -> None:
    few, many, more = (
        said(reward=0.2, views=0.2),
        said(reward=0.02, views=0.02, shapes=0.02),
        said(reward=0.3, views=0.3),
    )
    assert choose("source", source=said(), few=few, many=many) == "many"
    assert choose("source", source=said(), few=few, more=more) == "more"


def test_where_the_source_is_surely_better_it_comes_back_whatever_else_is_better_still() -> None:
    of_source, of_ppo = said(reward=0.05, views=0.05), said(reward=0.1, views=0.1, shapes=0.1)
    assert choose("fine-tuning", source=of_source, fine_tuning=said(), ppo=of_ppo) == "source"


def test_many_images_of_one_patient_are_one_piece_of_evidence() -> None:
    """20 images gain and 2 lose, but the 20 are of one patient among three: (2 / 3) ** 3 = .296 of the draws lose."""
    patients = [*["p0"] * 20, "p1", "p2"]
    before = np.full(22, 0.5)
    after = np.concatenate([np.full(20, 0.6), [0.45, 0.45]])
    opinion = Opinion.of(before, after, patients, 0.0)
    assert opinion.gain > 0
    assert opinion.better == pytest.approx(1 - (2 / 3) ** 3, abs=0.02)
    assert opinion.worse == pytest.approx((2 / 3) ** 3, abs=0.02)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.floats(0, 1), min_size=6, max_size=6), min_size=4, max_size=4))
def test_the_choice_is_deterministic_and_has_two_signals_behind_it(rows: list[list[float]]) -> None:
    before = np.full(6, 0.5)
    of_other = {signal: (before, np.array(row)) for signal, row in zip(SIGNALS, rows, strict=True)}
    of_source = dict.fromkeys(SIGNALS, (before, before))
    first, second = (
        select({"source": of_source, "other": of_other}, list("abcdef"), 0.9, 0.0, "source") for _ in range(2)
    )
    assert first == second
    better, worse = first.of("other").sure(0.9, SIGNALS)
    assert (first.chosen == "other") == (len(better) - len(worse) >= 2)


def test_reviewed_patients_overrule_every_signal() -> None:
    of_all = said(reward=0.1, views=0.1, shapes=0.1, rules=0.1)
    against = select({"source": of_all, "fine-tuning": said()}, PATIENTS, 0.95, 0.0, "fine-tuning")
    assert against.chosen == "source"
    assert against.decided_by_patients(True, 0.02, 0.01).chosen == "fine-tuning"
    assert against.decided_by_patients(False, -0.01, 0.4).chosen == "source"


def test_the_worth_of_a_signal_is_its_rank_correlation_with_true_gains() -> None:
    """Of 40 pairs: one signal is the truth on another scale, one its opposite, one has nothing to do with it."""
    drawn = np.random.default_rng(0)
    gains = drawn.normal(size=40)
    zeros = np.zeros(40)
    comparison = {
        RULES: (zeros, 3 * gains),
        VIEWS: (zeros, -gains),
        SHAPES: (zeros, drawn.normal(size=40)),
        REWARD: (zeros, zeros),
    }
    worth = worth_of_signals([comparison], [(zeros, gains)])
    assert worth[RULES] == pytest.approx(1.0)
    assert (worth[VIEWS], worth[SHAPES], worth[REWARD]) == (0, 0, 0)


def test_the_decision_comes_back_as_it_was_written(tmp_path: Path) -> None:
    worth = {RULES: 0.4, VIEWS: 0.0, SHAPES: 0.3, REWARD: 0.5}
    selection = select({"source": said(), "a": said(rules=0.1, reward=0.1)}, PATIENTS, 0.95, 0.0, "source", worth)
    selection.decided_by_patients(True, 0.01, 0.03).write(tmp_path / "selection.json")
    content = json.loads((tmp_path / "selection.json").read_text())
    assert content["chosen"] == "a"
    assert content["candidates"][1]["opinions"][RULES]["score"] == pytest.approx(0.75)
    assert Selection.read(tmp_path / "selection.json") == selection.decided_by_patients(True, 0.01, 0.03)


def test_a_decision_of_version_0_1_is_read_under_the_names_of_today(tmp_path: Path) -> None:
    """It heard the held-out reward alone."""
    path = tmp_path / "selection.json"
    candidates = [
        {"name": "source", "score": 0.5, "gain": -0.1, "confidence": 0.0},
        {"name": "warm-up", "score": 0.6, "gain": 0.0, "confidence": 0.0},
    ]
    write_json(path, {"chosen": "warm-up", "incumbent": "warm-up", "candidates": candidates})
    selection = Selection.read(path)
    assert (selection.chosen, selection.incumbent, selection.heard) == ("fine-tuning", "fine-tuning", (REWARD,))
    assert selection.candidates == (
        Candidate("source", {REWARD: Opinion(0.5, -0.1, 0.0, 0.0)}),
        Candidate("fine-tuning", {REWARD: Opinion(0.6, 0.0, 0.0, 0.0)}),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"format": 4}, "format 4 was written by a newer version of medfm-rl; update"),
        ({"chosen": "source"}, "not a decision between candidates .* resume the run"),
        ([], "not a JSON object; .* resume the run"),
    ],
)
def test_a_decision_that_cannot_be_read_is_named(tmp_path: Path, content: object, message: str) -> None:
    write_json(tmp_path / "selection.json", content)
    with pytest.raises(DataError, match=rf"selection\.json: {message}"):
        Selection.read(tmp_path / "selection.json")


def in_words(tmp_path: Path, selection: Selection) -> str:
    run = RunFolder(tmp_path)
    selection.write(run.selection(0))
    return read_decision(run)


PPO = "iteration-00/candidates/00010"


@pytest.mark.parametrize(
    ("incumbent", "said_of", "words"),
    [
        ("source", {}, "Two signals agreed on none of the 2 candidates: the source model was returned unchanged."),
        (
            PPO,
            {"source": said(views=0.1, reward=0.1, shapes=0.1, rules=-0.1)},
            "Views and shape prior and held-out reward prefer the source model to the average of the weights up to "
            "update 10 of PPO in iteration 1 (iteration-00/candidates/00010), against rules",
        ),
        ("fine-tuning", {}, "the policy after the fine-tuning was returned: no two signals agreed on another of the 2"),
        (
            "fine-tuning",
            {PPO: said(rules=0.1, views=0.1)},
            "Rules and views prefer the average of the weights up to update 10",
        ),
    ],
)
def test_the_decision_in_words_says_who_was_for_what(
    tmp_path: Path, incumbent: str, said_of: dict[str, Comparison], words: str
) -> None:
    of_all = {"source": said(), "fine-tuning": said(), PPO: said(), **said_of}
    assert words in in_words(tmp_path, select(of_all, PATIENTS, 0.95, 0.0, incumbent))


def test_the_decision_in_words_says_what_reviewed_patients_showed(tmp_path: Path) -> None:
    selection = select({"source": said(), "fine-tuning": said()}, PATIENTS, 0.95, 0.0, "fine-tuning")
    told = in_words(tmp_path, selection.decided_by_patients(False, 0.001, 0.3))
    assert "gains +0.1 points of Dice by adapting" in told
    assert "0.3 would be worth it: the source model was returned unchanged" in told
    told = in_words(tmp_path / "again", selection.decided_by_patients(True, 0.021, 0.004))
    assert "gains +2.1 points of Dice by adapting (p = 0.004)" in told


def test_disagreements_are_named_and_the_table_shows_them() -> None:
    of_all = {"source": said(reward=0.1, rules=-0.2), "fine-tuning": said()}
    selection = select(of_all, PATIENTS, 0.95, 0.0, "fine-tuning")
    assert selection.disagreements(0.95) == ["source beside fine-tuning: held-out reward prefers it, rules does not"]
    source, tuned = table_of(selection)
    assert (source.chosen, tuned.chosen) == (False, True)
    assert source.opinions[REWARD][1:] == (True, False)
    assert source.opinions[RULES][1:] == (False, True)
