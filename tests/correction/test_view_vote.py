from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from medfm_rl.adapters import Sample, TorchModuleAdapter
from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.anatomy.rules import Profile
from medfm_rl.correction import CaseCorrector, Original, Proposal, Verifier, ViewVote, view_vote
from medfm_rl.correction.methods import make_corrector
from medfm_rl.correction.views import segmented_views
from medfm_rl.errors import ModelError
from medfm_rl.quality.evidence import expected_dice, soft_dice
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.reward.shape_prior import ShapePrior
from medfm_rl.runs.finished import load_run
from medfm_rl.settings import CorrectionSettings, NetworkSettings, PreprocessingSettings, RewardSettings
from medfm_rl.structures import exclusive
from medfm_rl.types import Case, Geometry, LabelMap, LabelSchema


class Prefers(RewardNet):
    """Says of each pixel that it is right where it is of the wanted class, with log-odds 4."""

    def __init__(self, wanted: Tensor) -> None:
        super().__init__(NetworkSettings(channels=(4, 8), residual_units=0), 4)
        self.wanted = wanted

    def _logits(self, images: Tensor, memberships: Tensor) -> Tensor:
        index = self.wanted.long().expand(len(images), *self.wanted.shape)[:, None]
        return 8 * memberships.gather(1, index)[:, 0] - 4


def digest(adapter: TorchModuleAdapter) -> str:
    found = hashlib.sha256()
    for name, value in adapter.state_dict().items():
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()


def views_of(batch_unet: TorchModuleAdapter, case: Case, count: int, purpose: str) -> Tensor:
    """The original and its views, `(V + 1, K, 16, 16)`."""
    sample = batch_unet.preprocess(case)
    original = batch_unet.predict_logits(sample).softmax(dim=0)
    return torch.stack([original, *segmented_views(batch_unet, sample, original, count, purpose, math.inf)])


def make_vote(
    batch_unet: TorchModuleAdapter, reward: RewardNet, verifier: RewardNet, rules: str = "", **values: object
) -> ViewVote:
    settings = CorrectionSettings.model_validate({"views": 6, "max_change": 1.0, "tolerance": 0.9, **values})
    profile = Profile.model_validate({"rules": [{"kind": rules, "structure": "LV", "most": 1}] if rules else []})
    ensemble = RewardEnsemble([reward], RewardSettings())
    return ViewVote(batch_unet, ensemble, Verifier(verifier, Anatomy("test", profile, batch_unet.schema), settings))


def test_the_view_that_the_reward_networks_believe_decides(batch_unet: TorchModuleAdapter, case: Case) -> None:
    masks = views_of(batch_unet, case, 6, "views").argmax(dim=1)
    assert any(not torch.equal(masks[0], mask) for mask in masks[1:]), "the views are all alike: nothing is tested"
    for wanted in (2, 5):
        network = Prefers(masks[wanted])
        result = make_vote(batch_unet, network, Prefers(masks[0])).correct(case)
        assert result.step == wanted
        assert result.gains[0] == 0.0
        assert result.gains[wanted] == max(result.gains) > 0
        assert (result.after == masks[wanted].numpy()).mean() > (result.before == masks[wanted].numpy()).mean()
        assert result.stopped == "done"


def test_votes_are_weighed_by_expected_dice_and_agreement(batch_unet: TorchModuleAdapter, case: Case) -> None:
    """The weights, recomputed: exp(50 (E Dice + Dice with the mean view)), normalised."""
    votes = views_of(batch_unet, case, 6, "views")
    network = Prefers(votes[3].argmax(dim=0))
    worth = []
    for vote in votes:
        action = vote.argmax(dim=0)
        with torch.no_grad():
            reward_map = network.reward_map(batch_unet.preprocess(case).image[None], action[None])
        expected = expected_dice(reward_map, action[None], exclusive(4))[0].mean()
        worth.append(float(expected + soft_dice(votes.mean(dim=0), action, exclusive(4)).mean()))
    weights = np.exp(50 * (np.array(worth) - max(worth)))
    mean = np.tensordot(weights / weights.sum(), votes.numpy(), axes=1)
    result = make_vote(batch_unet, network, Prefers(votes[0].argmax(dim=0))).correct(case)
    np.testing.assert_array_equal(result.after, mean.argmax(axis=0))
    np.testing.assert_allclose(result.gains, (np.array(worth) - worth[0]) / 2, atol=1e-5)


@pytest.mark.parametrize("price", [2.0, 0.05])
def test_a_mask_that_breaks_a_rule_has_no_vote_where_another_is_worth_nearly_as_much(
    price: float, batch_unet: TorchModuleAdapter, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reward prefers a view by far; a rule that only another view meets leaves that one alone, at any price."""
    votes = views_of(batch_unet, case, 6, "views")
    allowed = votes[4].argmax(dim=0).numpy()
    vote = make_vote(batch_unet, Prefers(votes[2].argmax(dim=0)), Prefers(votes[0].argmax(dim=0)))
    monkeypatch.setattr(Anatomy, "is_valid", lambda _, labels, spacing: np.array_equal(labels, allowed))
    monkeypatch.setattr(view_vote, "_PRICE_OF_RULES", price)
    result = vote.correct(case)
    assert result.step == (4 if price == 2.0 else 2)
    assert np.array_equal(result.after, allowed) == (price == 2.0)


def test_the_segmenter_is_bit_identical_and_cases_do_not_see_each_other(
    batch_unet: TorchModuleAdapter, case: Case, make_case: Callable[..., Case]
) -> None:
    batch_unet.train()
    before = digest(batch_unet)
    wanted = torch.randint(0, 4, (16, 16), generator=torch.Generator().manual_seed(1))
    vote = make_vote(batch_unet, Prefers(wanted), Prefers(wanted))
    first = vote.correct(case)
    vote.correct(make_case(shape=(16, 16), name="p2_a", seed=1))
    again = vote.correct(case)
    assert digest(batch_unet) == before
    assert batch_unet.training
    np.testing.assert_array_equal(first.after, again.after)
    assert first.gains == again.gains
    assert first.verification == again.verification


def test_what_the_rules_say_of_parts_is_done_to_the_result(batch_unet: TorchModuleAdapter, case: Case) -> None:
    from scipy import ndimage

    wanted = torch.randint(0, 4, (16, 16), generator=torch.Generator().manual_seed(1))
    free = make_vote(batch_unet, Prefers(wanted), Prefers(wanted)).correct(case)
    tidied = make_vote(batch_unet, Prefers(wanted), Prefers(wanted), rules="components").correct(case)
    assert ndimage.label(free.after == 1)[1] > 1, "there is nothing to tidy"
    assert ndimage.label(tidied.after == 1)[1] == 1


def test_the_time_of_a_case_is_kept(batch_unet: TorchModuleAdapter, case: Case) -> None:
    wanted = torch.zeros(16, 16, dtype=torch.uint8)
    result = make_vote(batch_unet, Prefers(wanted), Prefers(wanted), seconds=1e-6, views=500).correct(case)
    assert result.stopped == "time"
    assert len(result.gains) == 2


def test_a_judge_whose_network_weighs_the_votes_is_refused(batch_unet: TorchModuleAdapter) -> None:
    network = Prefers(torch.zeros(16, 16))
    with pytest.raises(ModelError, match="one of the reward networks"):
        make_vote(batch_unet, network, network)


def test_images_larger_than_the_patch_are_covered(schema: LabelSchema, make_case: Callable[..., Case]) -> None:
    torch.manual_seed(0)
    batch_unet = TorchModuleAdapter.build_unet(
        NetworkSettings(channels=(4, 8), residual_units=0), schema, PreprocessingSettings(size=(16, 16), grid="native")
    ).eval()
    networks = [RewardNet(NetworkSettings(channels=(4, 8), residual_units=0), 4).eval() for _ in range(2)]
    result = make_vote(batch_unet, networks[0], networks[1], views=2).correct(make_case((20, 24)))
    assert result.before.shape == result.after.shape == (20, 24)
    assert len(result.gains) == 3


class Fixed(CaseCorrector):
    """Always proposes the same mask."""

    def __init__(self, adapter: TorchModuleAdapter, verifier: Verifier, labels: LabelMap) -> None:
        super().__init__(adapter, verifier)
        self.labels = labels

    def propose(self, sample: Sample, logits: Tensor, original: Original, deadline: float) -> Proposal:
        return Proposal(self.labels)


def test_proposals_of_others_vote(batch_unet: TorchModuleAdapter, case: Case) -> None:
    """The reward believes a mask that no view shows, and one of the others proposes it."""
    labels = np.zeros((16, 16), dtype=np.uint8)
    labels[4:12, 2:6], labels[4:12, 6:10], labels[4:12, 10:14] = 1, 2, 3
    network = Prefers(torch.from_numpy(labels))
    vote = make_vote(batch_unet, network, Prefers(torch.zeros(16, 16)))
    vote.others = [Fixed(batch_unet, vote.verifier, np.zeros_like(labels)), Fixed(batch_unet, vote.verifier, labels)]
    result = vote.correct(case)
    # The case as it is, six views, the first of the others, and then this one.
    assert result.step == 8
    assert len(result.gains) == 9
    np.testing.assert_array_equal(result.after, labels)
    assert make_vote(batch_unet, network, Prefers(torch.zeros(16, 16))).correct(case).step < 7


def test_a_mask_that_another_segmenter_made_votes_first(batch_unet: TorchModuleAdapter, case: Case) -> None:
    given = np.zeros((16, 16), dtype=np.uint8)
    given[4:12, 2:6], given[4:12, 6:10], given[4:12, 10:14] = 1, 2, 3
    result = make_vote(batch_unet, *(Prefers(torch.from_numpy(given)) for _ in range(2))).correct(case, original=given)
    # The mask that was given, the case as it is, six views.
    assert len(result.gains) == 8
    assert result.step == 0
    assert max(result.gains) == result.gains[0] == 0.0
    np.testing.assert_array_equal(result.before, given)
    np.testing.assert_array_equal(result.after, given)
    networks = (Prefers(torch.from_numpy(batch_unet.segment(case))) for _ in range(2))
    other = make_vote(batch_unet, *networks, margin=0.0).correct(case, original=given)
    assert other.step == 1
    assert other.accepted
    assert (other.mask == batch_unet.segment(case)).mean() > (given == batch_unet.segment(case)).mean()


def test_a_copy_with_the_statistics_of_the_case_votes_where_there_is_batch_normalisation(
    batch_unet: TorchModuleAdapter, case: Case, quality_run: Path, tmp_path: Path
) -> None:
    run, before = tmp_path / "run", digest(batch_unet)
    shutil.copytree(quality_run, run)
    torch.manual_seed(7)
    RewardNet(NetworkSettings(channels=(4, 8), residual_units=0), 4).save(run / "reward" / "held-out")
    settings = CorrectionSettings(views=2, steps=3)
    reward = RewardEnsemble.load(run / "reward")
    finished = load_run(run, "cpu")
    verifier = Verifier(finished.held_out_reward, finished.anatomy, settings)

    def shape_prior() -> ShapePrior:
        raise AssertionError("a vote of views needs no shape prior")

    corrector = make_corrector(batch_unet, reward, verifier, shape_prior)
    # The rules of this run are in millimetres.
    case = replace(case, geometry=Geometry((1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0)))
    result = corrector.correct(case)
    # The case as it is, two views, InTEnt and TENT.
    assert len(result.gains) == 5
    assert digest(batch_unet) == before
    instance = TorchModuleAdapter.build_unet(
        NetworkSettings(channels=(4, 8), residual_units=0), batch_unet.schema, PreprocessingSettings(size=(16, 16))
    ).eval()
    assert len(make_corrector(instance, reward, verifier, shape_prior).correct(case).gains) == 3
