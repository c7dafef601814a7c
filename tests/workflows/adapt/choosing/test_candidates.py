from __future__ import annotations

from medfm_rl.workflows.adapt.choosing.candidates import CandidatePool


def test_an_iteration_goes_on_from_the_trajectory_of_the_policy_that_won() -> None:
    """The judge of the first iteration took the first of two averages: the second checkpoint is in nothing after it."""
    start = CandidatePool.start(fine_tuned=True)
    assert (start.names, start.incumbent) == (["source", "fine-tuning"], "fine-tuning")
    assert start.trajectory == ("fine-tuning",)
    first = start.joined_by(["a1", "a2"], ["p1", "p2"])
    assert (first.incumbent, first.trajectory) == ("a1", ("fine-tuning", "p1"))
    second = first.won_by("a1").joined_by(["b1", "b2"], ["q1", "q2"])
    assert second.names == ["source", "fine-tuning", "a1", "a2", "b1", "b2"]
    assert second.trajectories["b1"] == ("fine-tuning", "p1", "q1")
    assert second.trajectories["b2"] == ("fine-tuning", "p1", "q1", "q2")
    assert second.trajectories["a2"] == ("fine-tuning", "p1", "p2")


def test_all_checkpoints_are_averaged_where_the_last_average_won() -> None:
    first = CandidatePool.start(fine_tuned=True).joined_by(["a1", "a2"], ["p1", "p2"]).won_by("a2")
    assert first.joined_by(["b1"], ["q1"]).trajectories["b1"] == ("fine-tuning", "p1", "p2", "q1")


def test_a_candidate_of_an_earlier_iteration_may_win_again() -> None:
    second = CandidatePool.start(fine_tuned=True).joined_by(["a1"], ["p1"]).joined_by(["b1"], ["q1"])
    assert second.incumbent == "b1"
    third = second.won_by("a1").joined_by(["c1"], ["r1"])
    assert third.trajectories["c1"] == ("fine-tuning", "p1", "r1")
    assert second.won_by("fine-tuning").joined_by(["c1"], ["r1"]).trajectories["c1"] == ("fine-tuning", "r1")


def test_the_source_policy_stays_to_be_beaten_where_it_is_returned_to() -> None:
    first = CandidatePool.start(fine_tuned=True).joined_by(["a1"], ["p1"]).won_by("source")
    second = first.joined_by(["b1", "b2"], ["q1", "q2"])
    assert (second.incumbent, second.trajectory) == ("source", ("source",))
    assert second.trajectories["b2"] == ("source", "q1", "q2")
    cold = CandidatePool.start(fine_tuned=False)
    assert (cold.names, cold.incumbent) == (["source"], "source")
    assert cold.joined_by(["a1"], ["p1"]).incumbent == "source"
