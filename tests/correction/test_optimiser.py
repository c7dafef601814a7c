from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.anatomy.rules import Profile
from medfm_rl.correction import TestTimeOptimiser, Verifier
from medfm_rl.errors import ModelError
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.settings import CorrectionSettings, NetworkSettings, PreprocessingSettings, RewardSettings
from medfm_rl.types import Case, LabelSchema

SCOPES = ("logits", "norm", "decoder", "all")


class Oracle(RewardNet):
    """Says of each pixel whether it is of the wanted class: log-odds 3 where it is, -3 where it is not."""

    def __init__(self, wanted: Tensor) -> None:
        super().__init__(NetworkSettings(channels=(4, 8), residual_units=0), 4)
        self.wanted = wanted
        self.calls = 0

    def _logits(self, images: Tensor, memberships: Tensor) -> Tensor:
        self.calls += 1
        index = self.wanted.long().expand(len(images), *self.wanted.shape)[:, None]
        return 6 * memberships.gather(1, index)[:, 0] - 3


class Failing(Oracle):
    """An oracle that fails in the middle of the optimisation."""

    def __init__(self, wanted: Tensor, error: type[BaseException]) -> None:
        super().__init__(wanted)
        self.error = error

    def _logits(self, images: Tensor, memberships: Tensor) -> Tensor:
        if self.calls >= 4:
            raise self.error
        return super()._logits(images, memberships)


def digest(adapter: TorchModuleAdapter) -> str:
    found = hashlib.sha256()
    for name, value in adapter.state_dict().items():
        found.update(name.encode() + value.numpy().tobytes())
    found.update(repr([module.training for module in adapter.modules()]).encode())
    found.update(repr([(value.requires_grad, value.grad is None) for value in adapter.parameters()]).encode())
    return found.hexdigest()


@pytest.fixture
def wanted() -> Tensor:
    """Three structures side by side on background."""
    labels = torch.zeros(16, 16, dtype=torch.uint8)
    labels[3:13, 2:6], labels[3:13, 6:10], labels[3:13, 10:14] = 1, 2, 3
    return labels


def ensemble(*members: RewardNet) -> RewardEnsemble:
    return RewardEnsemble(members, RewardSettings())


def make_optimiser(
    adapter: TorchModuleAdapter,
    reward: RewardNet,
    verifier: RewardNet,
    rules: str = "",
    **settings: object,
) -> TestTimeOptimiser:
    values = CorrectionSettings.model_validate({"max_change": 1.0, "smoothness": 1, "kl_coef": 0.0, **settings})
    limits = {"most": 1} if rules == "components" else {}
    profile = Profile.model_validate({"rules": [] if not rules else [{"kind": rules, "structure": "LV", **limits}]})
    return TestTimeOptimiser(
        adapter, ensemble(reward), Verifier(verifier, Anatomy("test", profile, adapter.schema), values)
    )


@pytest.mark.parametrize("scope", SCOPES)
def test_the_segmenter_is_bit_identical_afterwards(
    scope: str, batch_unet: TorchModuleAdapter, case: Case, wanted: Tensor
) -> None:
    batch_unet.train()
    before, mask = digest(batch_unet), batch_unet.segment(case)
    settings = {"optimise": scope, "steps": 5, "weight_learning_rate": 0.05}
    result = make_optimiser(batch_unet, Oracle(wanted), Oracle(wanted), **settings).correct(case)
    assert not np.array_equal(result.after, result.before), "nothing was optimised, so nothing was tested"
    assert digest(batch_unet) == before
    np.testing.assert_array_equal(batch_unet.segment(case), mask)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_segmenter_is_bit_identical_after_an_exception_and_ctrl_c(
    scope: str, error: type[BaseException], batch_unet: TorchModuleAdapter, case: Case, wanted: Tensor
) -> None:
    before, mask = digest(batch_unet), batch_unet.segment(case)
    optimiser = make_optimiser(batch_unet, Failing(wanted, error), Oracle(wanted), optimise=scope, steps=9)
    with pytest.raises(error):
        optimiser.correct(case)
    assert digest(batch_unet) == before
    np.testing.assert_array_equal(batch_unet.segment(case), mask)


def test_the_first_step_competes_with_a_mask_that_another_segmenter_made(
    batch_unet: TorchModuleAdapter, case: Case
) -> None:
    own = batch_unet.segment(case)
    reward, verifier = Oracle(torch.from_numpy(own)), Oracle(torch.from_numpy(own))
    given = ((own + 1) % 4).astype(np.uint8)
    result = make_optimiser(batch_unet, reward, verifier, steps=1, learning_rate=1e-6).correct(case, original=given)
    np.testing.assert_array_equal(result.before, given)
    assert result.gains[0] > 0.5
    np.testing.assert_array_equal(result.after, own)
    assert make_optimiser(batch_unet, reward, verifier, steps=1).correct(case).gains[0] == 0.0


def test_no_case_sees_the_weights_of_another(
    batch_unet: TorchModuleAdapter, make_case: Callable[..., Case], wanted: Tensor
) -> None:
    one, two = make_case(shape=(16, 16)), make_case(shape=(16, 16), name="p2_a", seed=1)
    optimiser = make_optimiser(batch_unet, Oracle(wanted), Oracle(wanted), optimise="all", steps=5)
    alone = optimiser.correct(two)
    optimiser.correct(one)
    again = optimiser.correct(two)
    np.testing.assert_array_equal(alone.after, again.after)
    assert alone.gains == again.gains


@pytest.mark.parametrize("scope", SCOPES)
def test_step_zero_competes_and_the_original_comes_back(scope: str, batch_unet: TorchModuleAdapter, case: Case) -> None:
    """The reward is highest for the original: whatever the optimiser tries is worse."""
    original = torch.from_numpy(batch_unet.segment(case))
    result = make_optimiser(
        batch_unet, Oracle(original), Oracle(original), optimise=scope, steps=5, learning_rate=50.0
    ).correct(case)
    assert result.step == 0
    assert not result.accepted
    assert result.verification is None
    assert result.reasons == ("nothing better than the original was found",)
    np.testing.assert_array_equal(result.mask, original.numpy())


def test_the_best_step_is_kept_and_not_the_last(batch_unet: TorchModuleAdapter, case: Case, wanted: Tensor) -> None:
    class Fickle(Oracle):
        """Wants something else from its fifth call on."""

        def _logits(self, images: Tensor, memberships: Tensor) -> Tensor:
            verified = super()._logits(images, memberships)
            return verified if self.calls < 5 else verified - 9

    result = make_optimiser(batch_unet, Fickle(wanted), Oracle(wanted), steps=7, learning_rate=1.0).correct(case)
    assert 0 < result.step < 7
    assert result.gains[result.step] == max(result.gains)
    assert result.gains[0] == 0.0
    assert len(result.gains) == 8
    assert result.stopped == "steps"


def test_the_reward_is_followed_and_a_judge_that_agrees_accepts(
    batch_unet: TorchModuleAdapter, case: Case, wanted: Tensor
) -> None:
    result = make_optimiser(batch_unet, Oracle(wanted), Oracle(wanted), steps=60, learning_rate=1.0).correct(case)
    assert result.accepted
    assert result.mask is result.after
    assert (result.before == wanted.numpy()).mean() < 0.6
    assert (result.after == wanted.numpy()).mean() > 0.95
    assert result.verification is not None
    assert result.verification.gain > 0.2
    assert result.verification.change > 0.2
    assert result.seconds > 0


def test_a_judge_that_disagrees_gives_the_original_back(
    batch_unet: TorchModuleAdapter, case: Case, wanted: Tensor
) -> None:
    original = torch.from_numpy(batch_unet.segment(case))
    result = make_optimiser(batch_unet, Oracle(wanted), Oracle(original), steps=20, learning_rate=1.0).correct(case)
    assert not np.array_equal(result.after, result.before)
    assert not result.accepted
    np.testing.assert_array_equal(result.mask, original.numpy())
    assert "the verifier expects a change of Dice of -" in result.reasons[0]


def test_what_breaks_a_rule_or_moves_too_far_is_not_accepted(
    batch_unet: TorchModuleAdapter, case: Case, wanted: Tensor
) -> None:
    without = wanted.clone()
    without[wanted == 1] = 0
    options = {"steps": 60, "learning_rate": 1.0}
    broken = make_optimiser(batch_unet, Oracle(without), Oracle(without), rules="present", **options).correct(case)
    assert not broken.accepted
    assert any(reason.startswith("present of LV") for reason in broken.reasons)
    far = make_optimiser(batch_unet, Oracle(wanted), Oracle(wanted), max_change=0.05, **options).correct(case)
    assert not far.accepted
    assert far.reasons == (
        f"it is too far from the original: 1 - Dice is {far.verification.change:.3f}, at most 0.05 is allowed",
    )


def test_the_time_of_a_case_is_kept(batch_unet: TorchModuleAdapter, case: Case, wanted: Tensor) -> None:
    result = make_optimiser(batch_unet, Oracle(wanted), Oracle(wanted), seconds=1e-6, steps=1000).correct(case)
    assert result.stopped == "time"
    assert len(result.gains) == 1


def test_it_stops_where_nothing_gets_better(batch_unet: TorchModuleAdapter, case: Case) -> None:
    original = torch.from_numpy(batch_unet.segment(case))
    result = make_optimiser(batch_unet, Oracle(original), Oracle(original), steps=100, patience=3).correct(case)
    assert result.stopped == "patience"
    assert len(result.gains) == 4


def test_the_kl_term_holds_the_mask_near_the_deployed_one(
    batch_unet: TorchModuleAdapter, case: Case, wanted: Tensor
) -> None:
    def changed(kl_coef: float) -> int:
        settings = {"steps": 20, "learning_rate": 0.3, "kl_coef": kl_coef, "patience": 20}
        result = make_optimiser(batch_unet, Oracle(wanted), Oracle(wanted), **settings).correct(case)
        return int((result.after != result.before).sum())

    assert changed(100.0) < changed(0.0)


def test_a_judge_that_was_optimised_against_is_refused(batch_unet: TorchModuleAdapter, wanted: Tensor) -> None:
    network = Oracle(wanted)
    twin = Oracle(wanted)
    twin.load_state_dict(network.state_dict())
    twin.temperature.fill_(2.0)
    for verifier in (network, twin):
        with pytest.raises(ModelError, match="one of the reward networks"):
            make_optimiser(batch_unet, network, verifier)


@pytest.mark.parametrize("scope", SCOPES)
def test_ppo_follows_the_reward_and_leaves_the_segmenter(
    scope: str, batch_unet: TorchModuleAdapter, case: Case, wanted: Tensor
) -> None:
    before = digest(batch_unet)
    settings = {"objective": "ppo", "optimise": scope, "steps": 8, "learning_rate": 0.5, "weight_learning_rate": 0.02}
    optimiser = make_optimiser(batch_unet, Oracle(wanted), Oracle(wanted), **settings)
    result, again = optimiser.correct(case), optimiser.correct(case)
    assert digest(batch_unet) == before
    assert result.gains[result.step] > 0.03
    assert (result.after == wanted.numpy()).mean() > (result.before == wanted.numpy()).mean() + 0.03
    np.testing.assert_array_equal(result.after, again.after)


def test_ppo_judges_on_the_case_as_it_is(batch_unet: TorchModuleAdapter, case: Case, wanted: Tensor) -> None:
    shown: list[Tensor] = []

    class Watching(Oracle):
        def _logits(self, images: Tensor, memberships: Tensor) -> Tensor:
            shown.append(images)
            return super()._logits(images, memberships)

    make_optimiser(batch_unet, Watching(wanted), Oracle(wanted), objective="ppo", optimise="all", steps=2).correct(case)
    image = batch_unet.preprocess(case).image[None]
    # Original, looks at three steps, and two rollouts of four draws and four argmax actions.
    assert [len(each) for each in shown] == [1, 1, 4, 4, 1, 4, 4, 1]
    assert all(torch.equal(each, image.expand_as(each)) for each in shown)


def test_a_loss_that_is_not_finite_ends_with_the_best_so_far(
    batch_unet: TorchModuleAdapter, case: Case, wanted: Tensor
) -> None:
    class Broken(Oracle):
        def _logits(self, images: Tensor, memberships: Tensor) -> Tensor:
            verified = super()._logits(images, memberships)
            return verified if self.calls < 4 else verified * float("nan")

    result = make_optimiser(batch_unet, Broken(wanted), Oracle(wanted), steps=5, learning_rate=1.0).correct(case)
    assert result.stopped == "not finite"
    assert result.step == 1


def test_what_the_rules_say_of_parts_is_done_to_what_is_proposed(
    batch_unet: TorchModuleAdapter, case: Case, wanted: Tensor
) -> None:
    speck = wanted.clone()
    speck[0, 15] = 1
    result = make_optimiser(
        batch_unet, Oracle(speck), Oracle(wanted), rules="components", steps=60, learning_rate=1.0
    ).correct(case)
    assert result.accepted
    assert result.after[0, 15] == 0


def test_volumes_and_images_larger_than_the_patch_are_covered(
    schema: LabelSchema, make_case: Callable[..., Case]
) -> None:
    torch.manual_seed(0)
    adapter = TorchModuleAdapter.build_unet(
        NetworkSettings(channels=(4, 8), residual_units=0),
        schema,
        PreprocessingSettings(size=(16, 16), grid="native"),
    ).eval()
    torch.manual_seed(1)
    networks = [RewardNet(NetworkSettings(channels=(4, 8), residual_units=0), 4).eval() for _ in range(2)]
    for scope in ("logits", "all"):
        result = make_optimiser(adapter, networks[0], networks[1], optimise=scope, steps=3).correct(make_case((20, 24)))
        assert result.before.shape == result.after.shape == (20, 24)
        assert len(result.gains) == 4
