"""What a time budget cuts, by a clock that only passes of the segmenter move: one second each."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.anatomy.rules import Profile
from medfm_rl.correction import (
    CaseCorrector,
    Verifier,
    ViewVote,
    corrector,
    optimiser,
    published,
    view_vote,
    views,
)
from medfm_rl.correction.methods import make_corrector
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.reward.shape_prior import ShapePrior
from medfm_rl.settings import CorrectionSettings, NetworkSettings, RewardSettings
from medfm_rl.types import Case


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    now = SimpleNamespace(seconds=0.0)
    forward = TorchModuleAdapter.forward

    def slow(self: TorchModuleAdapter, *arguments: object) -> Tensor:
        now.seconds += 1
        return forward(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(TorchModuleAdapter, "forward", slow)
    for module in (corrector, optimiser, published, view_vote, views):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


def make(method: str, batch_unet: TorchModuleAdapter, seconds: float, others: bool = False) -> CaseCorrector:
    settings = CorrectionSettings.model_validate(
        {
            "method": method,
            "seconds": seconds,
            "views": 6,
            "steps": 4,
            "patience": 9,
            "optimise": "norm",
            "weight_learning_rate": 0.05,
        }
        | {"max_change": 1.0, "tolerance": 0.9, "margin": 0.0}
    )
    torch.manual_seed(1)
    reward, judging = (RewardNet(NetworkSettings(channels=(4, 8), residual_units=0), 4).eval() for _ in range(2))
    ensemble = RewardEnsemble([reward], RewardSettings())
    verifier = Verifier(judging, Anatomy("test", Profile.model_validate({"rules": []}), batch_unet.schema), settings)
    if method == "views":
        tent = [published.Tent(batch_unet, verifier)] if others else []
        return ViewVote(batch_unet, ensemble, verifier, tent)

    def shape_prior() -> ShapePrior:
        raise AssertionError("none of these ways needs a shape prior")

    return make_corrector(batch_unet, ensemble, verifier, shape_prior)


@pytest.mark.usefixtures("clock")
def test_half_of_the_time_is_for_the_vote_and_the_rest_for_the_judge(
    batch_unet: TorchModuleAdapter, case: Case
) -> None:
    """The case takes a second; a view begins while not more than 5 are over, and one of the verifier while not 10."""
    result = make("views", batch_unet, 10).correct(case)
    # From 1, 2, 3, 4 and 5 s on; from 6, 7, 8, 9 and 10 s on.
    assert result.views == 5
    assert result.verification is not None
    assert result.verification.views == 5
    assert (result.cut, result.stopped, result.accepted) == (True, "time", False)
    assert result.reasons[0] == "time: the verifier could look at 5 of 6 views, and accepts nothing on fewer"
    assert result.reasons[-1] == "time: the budget of 10 s ended early"


@pytest.mark.usefixtures("clock")
def test_a_budget_that_cuts_nothing_changes_nothing(batch_unet: TorchModuleAdapter, case: Case) -> None:
    """1 + 6 + 6 passes: with 12 s the sixth view begins at 6 s, and the last of the verifier at 12 s."""
    just, ample = (make("views", batch_unet, seconds).correct(case) for seconds in (12, 1e6))
    assert just.seconds == 13
    np.testing.assert_array_equal(just.after, ample.after)
    assert just.verification == ample.verification
    assert (just.views, just.stopped, just.cut) == (6, "done", False)
    assert just.verification is not None
    assert just.verification.views == 6
    assert not any("time" in reason for reason in just.reasons)


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("method", ["tta", "tent", "memo", "optimise"])
def test_a_method_that_ran_out_of_time_says_so(method: str, batch_unet: TorchModuleAdapter, case: Case) -> None:
    cut, whole = (make(method, batch_unet, seconds).correct(case) for seconds in (4, 1e6))
    assert cut.cut
    assert not cut.accepted
    assert not whole.cut
    assert cut.seconds < whole.seconds


@pytest.mark.usefixtures("clock")
def test_a_method_that_nothing_can_cut_takes_the_time_of_the_judge(batch_unet: TorchModuleAdapter, case: Case) -> None:
    result = make("intent", batch_unet, 4).correct(case)
    assert result.verification is not None
    assert result.verification.views == 1
    assert (result.stopped, result.accepted) == ("time", False)
    assert make("intent", batch_unet, 1e6).correct(case).stopped == "done"


@pytest.mark.usefixtures("clock")
def test_a_vote_of_whom_another_method_was_cut_is_cut(batch_unet: TorchModuleAdapter, case: Case) -> None:
    """Case and six views take 7 s; of four steps of TENT the third would begin at 9 s, when 17 / 2 are over."""
    result = make("views", batch_unet, 17, others=True).correct(case)
    assert result.views == 6
    assert len(result.gains) == 8
    assert result.verification is not None
    assert result.cut
    assert not make("views", batch_unet, 1e6, others=True).correct(case).cut


@pytest.mark.usefixtures("clock")
def test_the_last_step_of_the_optimiser_is_no_cut(batch_unet: TorchModuleAdapter, case: Case) -> None:
    ample = make("optimise", batch_unet, 1e6).correct(case)
    assert (ample.stopped, ample.views) == ("steps", 0)
    assert len(ample.gains) == 5
