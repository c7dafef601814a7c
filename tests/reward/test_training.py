from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from support.precision import single_precision
from torch import Tensor, nn
from torch.nn import functional as F

from medfm_rl.errors import DataError
from medfm_rl.metrics.calibration import expected_calibration_error
from medfm_rl.reward.actions import ActionRecords
from medfm_rl.reward.corruption import add_blob, warp
from medfm_rl.reward.network import RewardNet
from medfm_rl.reward.origins import GROUND_TRUTH, ActionOrigin, Reference
from medfm_rl.reward.patient_split import SplitRecords, hold_out
from medfm_rl.reward.training import _Kept, contour_weights, fit_temperature, reward_loss, train_reward
from medfm_rl.reward.training_report import RewardTrainingReport
from medfm_rl.seeding import derive_seed
from medfm_rl.settings import NetworkSettings, RewardSettings

CPU = torch.device("cpu")
TINY = NetworkSettings(channels=(4, 8), residual_units=0)
K = 3


class ConstantReward(RewardNet):
    """One number for every pixel, and nothing else to learn."""

    def __init__(self, start: float = 0.0) -> None:
        super().__init__(TINY, K)
        self.network = nn.Identity()
        self.level = nn.Parameter(torch.tensor(start))

    def forward(self, images: Tensor, actions: Tensor) -> Tensor:
        return self.level.expand(actions.shape) + 0.0


class SharpReward(RewardNet):
    """Knows the log-odds, which stand in the image, and says three times as much."""

    def __init__(self) -> None:
        super().__init__(TINY, K)
        self.network = nn.Identity()
        self.gain = nn.Parameter(torch.tensor(3.0))

    def forward(self, images: Tensor, actions: Tensor) -> Tensor:
        return self.gain * images[:, 0]


def made(**changes: Any) -> RewardSettings:
    arguments: dict[str, Any] = {
        "network": TINY,
        "steps": 1,
        "validate_every": 50,
        "patience": 100,
        "learning_rate": 1e-9,
        "validation_fraction": 0.5,
    }
    return RewardSettings(**{**arguments, **changes})


def make_net(seed: int = 0, dropout: float = 0.0, spatial_dims: int = 2, norm: str = "instance") -> RewardNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = NetworkSettings(channels=(8, 16), residual_units=0, dropout=dropout, norm=norm)  # type: ignore[arg-type]
        return RewardNet(network, K, spatial_dims=spatial_dims)


def origins(patients: list[str], domain: str = "source", actions: int = 1) -> tuple[ActionOrigin, ...]:
    reference = GROUND_TRUTH if domain == "source" else Reference("consensus", 0.25)
    return tuple(
        ActionOrigin(f"{patient}_{row}", patient, reference, ("policy",) * actions)
        for row, patient in enumerate(patients)
    )


def records_of(
    patients: list[str], images: Tensor, right: Tensor, domain: str = "source", certainty: float = 1.0
) -> ActionRecords:
    """All actions are class 0; the reference says 0 where they are right and 1 where they are not."""
    actions = torch.zeros(len(patients), 1, *right.shape[1:], dtype=torch.uint8)
    return ActionRecords(
        images, actions, (~right).byte(), torch.full(right.shape, certainty), origins(patients, domain)
    )


def honest_records(
    count: int = 8, domain: str = "source", flipped: bool = False, certainty: float = 1.0, seed: int = 0
) -> ActionRecords:
    """The image holds the true log-odds that each pixel of the action is right."""
    generator = torch.Generator().manual_seed(seed)
    log_odds = 1.5 * torch.randn(count, 1, 48, 48, generator=generator)
    right = torch.rand(count, 48, 48, generator=generator) < torch.sigmoid(log_odds[:, 0])
    patients = [f"{domain}{index}" for index in range(count)]
    return records_of(patients, log_odds, ~right if flipped else right, domain, certainty)


def toy_records(
    patients: int = 12, actions: int = 3, spatial_dims: int = 2, seed: int = 0, prefix: str = "p"
) -> ActionRecords:
    """Boxes within boxes whose grey value is their class; the actions are moved or carry blobs."""
    generator = torch.Generator().manual_seed(seed)
    side = 16 if spatial_dims == 2 else 8
    references = torch.zeros(patients, *(side,) * spatial_dims, dtype=torch.uint8)
    for mask in references:
        corner = torch.randint(1, side // 3, (spatial_dims,), generator=generator).tolist()
        mask[tuple(slice(c, c + side // 2) for c in corner)] = 1
        mask[tuple(slice(c + 1, c + side // 4 + 1) for c in corner)] = 2
    images = references[:, None] + 0.1 * torch.randn(patients, 1, *references.shape[1:], generator=generator)
    tried = torch.stack(
        [
            torch.stack([add_blob(warp(mask, generator, 0.06), K, generator, 0.3) for _ in range(actions)])
            for mask in references
        ]
    )
    names = [f"{prefix}{index}" for index in range(patients)]
    return ActionRecords(images, tried, references, torch.ones(references.shape), origins(names, actions=actions))


def trained(net: RewardNet, records: ActionRecords, settings: RewardSettings, seed: int) -> RewardTrainingReport:
    """Trains a network on a part of the patients; returns the report on it."""
    held_out = hold_out(records.origins, settings.validation_fraction, derive_seed(seed, "split"))
    return train_reward(net, SplitRecords.hold_out(records, held_out), settings, seed, CPU)


def pixels(net: RewardNet, records: ActionRecords) -> tuple[Tensor, Tensor]:
    """Logits and outcomes of all pixels of all actions."""
    with torch.no_grad():
        logits = [net(records.images, records.actions[:, index]) for index in range(records.actions.shape[1])]
    right = (records.actions == records.references[:, None]).float()
    return torch.stack(logits, dim=1).flatten(), right.flatten()


def negative_log_likelihood(logits: Tensor, right: Tensor, temperature: float) -> float:
    return float(F.binary_cross_entropy_with_logits(logits.double() / temperature, right.double()))


# The loss


@settings(deadline=None, max_examples=25)
@given(wrong=st.integers(1, 99), error_weight=st.floats(1, 20), region_weight=st.floats(0.1, 10))
def test_the_loss_is_lowest_at_the_true_log_odds(wrong: int, error_weight: float, region_weight: float) -> None:
    """100 pixels that look the same, of which some are wrong: log((100 - wrong) / wrong), whatever errors weigh."""
    right = torch.ones(1, 100, dtype=torch.float64)
    right[0, :wrong] = 0
    truth = math.log((100 - wrong) / wrong)

    def slope(value: float) -> float:
        level = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        loss = reward_loss(level.expand(1, 100), right, torch.full((1, 100), region_weight), error_weight)
        return float(torch.autograd.grad(loss, level)[0])

    assert slope(truth) == pytest.approx(0, abs=1e-6)
    assert slope(truth - 0.5) < -1e-4
    assert slope(truth + 0.5) > 1e-4


def test_the_loss_of_two_pixels_by_hand() -> None:
    """z = 0 and wrong pixels three times: the logit becomes -ln 3, so the probability 1/4.

    The right pixel of weight 1 costs ln 4, the wrong one of weight 2 costs 3 * 2 * ln(4/3); the weights sum to 3.
    """
    loss = reward_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0]]), 3.0)
    assert float(loss) == pytest.approx((math.log(4) + 6 * math.log(4 / 3)) / 3)


def test_confident_errors_cost_in_proportion_to_their_confidence() -> None:
    """A squared error after a sigmoid would cost 0.78 at z = 2 and 1 from there on, and teach nothing at z = 20."""
    z = torch.tensor([[2.0, 20.0]], requires_grad=True)
    costs = [float(reward_loss(value.detach()[None, None], torch.zeros(1, 1), torch.ones(1, 1), 1.0)) for value in z[0]]
    assert costs == pytest.approx([math.log1p(math.exp(2)), 20.0], rel=1e-5)
    reward_loss(z, torch.zeros(1, 2), torch.ones(1, 2), 1.0).backward()
    assert z.grad is not None
    assert float(z.grad[0, 1]) == pytest.approx(0.5, rel=1e-4), "1 for each of 2 pixels"


def test_a_batch_without_a_certain_pixel_costs_nothing() -> None:
    z = torch.randn(2, 4, requires_grad=True)
    loss = reward_loss(z, torch.zeros(2, 4), torch.zeros(2, 4), 3.0)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert z.grad is not None
    assert not z.grad.any()


def test_contours_weigh_more_two_pixels_to_either_side() -> None:
    action = torch.zeros(1, 9, 9, dtype=torch.uint8)
    action[0, :, 4:] = 2
    weights = contour_weights(action, K, 2.5)
    assert (weights[0] == torch.tensor([1, 1, 2.5, 2.5, 2.5, 2.5, 1, 1, 1])).all()
    assert (contour_weights(torch.ones(1, 9, 9, dtype=torch.uint8), K, 2.5) == 1).all(), "no contour, the edge is none"


@settings(deadline=None, max_examples=25)
@given(shape=st.sampled_from([(12, 9), (7, 8, 9)]), seed=st.integers(0, 1000))
def test_contour_weights_are_those_of_a_window_with_two_labels(shape: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    actions = np.where(rng.random((2, *shape)) < 0.01, rng.integers(0, K, (2, *shape)), 1).astype(np.uint8)
    window = (1, *(5,) * len(shape))
    near = ndimage.maximum_filter(actions, window, mode="nearest") != ndimage.minimum_filter(
        actions, window, mode="nearest"
    )
    np.testing.assert_array_equal(contour_weights(torch.from_numpy(actions), K, 3.0), np.where(near, 3.0, 1.0))


# The temperature


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 2.5])
def test_the_temperature_is_that_of_a_logistic_regression(sharpness: float) -> None:
    generator = torch.Generator().manual_seed(0)
    truth = 2 * torch.randn(5000, generator=generator)
    right = (torch.rand(5000, generator=generator) < torch.sigmoid(truth)).float()
    logits = sharpness * truth
    fitted = LogisticRegression(C=1e12, fit_intercept=False, tol=1e-10).fit(logits[:, None].numpy(), right.numpy())
    temperature = fit_temperature(logits, right)
    assert temperature == pytest.approx(1 / float(fitted.coef_[0, 0]), rel=1e-3)
    assert temperature == pytest.approx(sharpness, rel=0.1)


@settings(deadline=None, max_examples=25)
@given(
    pairs=st.lists(st.tuples(st.floats(-20, 20, width=32), st.booleans()), min_size=1, max_size=30),
)
def test_calibration_never_raises_the_negative_log_likelihood(pairs: list[tuple[float, bool]]) -> None:
    logits = torch.tensor([z for z, _ in pairs])
    right = torch.tensor([float(outcome) for _, outcome in pairs])
    temperature = fit_temperature(logits, right)
    assert 0.05 <= temperature <= 20
    after, before = (negative_log_likelihood(logits, right, value) for value in (temperature, 1.0))
    assert after <= before + 1e-6 * (1 + before)


@pytest.mark.parametrize(("outcome", "expected"), [(1.0, 0.05), (0.0, 20.0)])
def test_the_temperature_stays_finite_where_all_outcomes_are_alike(outcome: float, expected: float) -> None:
    temperature = fit_temperature(torch.full((10,), 3.0), torch.full((10,), outcome))
    assert temperature == pytest.approx(expected, rel=1e-3)


def test_calibration_corrects_an_overconfident_network_on_the_held_out_patients() -> None:
    records, net = honest_records(), SharpReward()
    report = trained(net, records, made(), seed=0)
    assert report.temperature == pytest.approx(3.0, rel=0.05)
    assert float(net.temperature) == pytest.approx(report.temperature)
    assert report.ece_before > 0.1
    assert report.ece_after < 0.02

    held_out = records.of_patients(report.validation_patients)
    logits, right = pixels(net, held_out)
    assert report.temperature == pytest.approx(fit_temperature(logits, right), rel=1e-6)
    assert negative_log_likelihood(logits, right, report.temperature) < negative_log_likelihood(logits, right, 1.0)
    # What was calibrated is what is used.
    used = net.reward_map(held_out.images, held_out.actions[:, 0]).flatten()
    assert report.ece_after == pytest.approx(expected_calibration_error(used.numpy(), right.numpy()), abs=1e-6)
    raw = torch.sigmoid(logits)
    assert report.ece_before == pytest.approx(expected_calibration_error(raw.numpy(), right.numpy()), abs=1e-6)
    for curve in (report.reliability_before, report.reliability_after):
        assert int(curve.count.sum()) == right.numel()


def test_references_that_are_no_ground_truth_do_not_calibrate_where_there_is_ground_truth() -> None:
    misleading = honest_records(domain="target", flipped=True, certainty=1.0, seed=1)
    records = ActionRecords.concatenate([honest_records(), misleading])
    report = trained(SharpReward(), records, made(), seed=0)
    assert report.temperature == pytest.approx(3.0, rel=0.05)
    assert {patient[:6] for patient in report.validation_patients} == {"source", "target"}


def test_without_ground_truth_the_most_certain_references_calibrate() -> None:
    records = honest_records(domain="target", certainty=0.25)
    references, certainty = records.references.clone(), records.certainty.clone()
    references[:, :20], certainty[:, :20] = 1 - references[:, :20], 0.05
    records = dataclasses.replace(records, references=references, certainty=certainty)
    report = trained(SharpReward(), records, made(), seed=0)
    assert report.temperature == pytest.approx(3.0, rel=0.05)


def test_references_that_are_certain_of_nothing_are_refused() -> None:
    records = honest_records(domain="target", certainty=0.0)
    with pytest.raises(DataError, match=r"certain of any pixel.* lower collect\.reference_agreement"):
        trained(SharpReward(), records, made(), seed=0)


# Training


def test_weights_of_errors_and_contours_do_not_bias_the_probability() -> None:
    """5 % of the pixels are wrong, anywhere; where errors or their contours weigh more, 0.95 is learnt all the same."""
    generator = torch.Generator().manual_seed(0)
    right = torch.rand(8, 32, 32, generator=generator) >= 0.05
    records = records_of([f"p{index}" for index in range(8)], torch.zeros(8, 1, 32, 32), right)
    # An action with a contour, right where it equals its reference.
    action = torch.zeros(32, 32, dtype=torch.uint8)
    action[8:24, 8:24] = 1
    references = torch.where(right, action, 2).byte()
    records = dataclasses.replace(records, actions=action.expand(8, 1, 32, 32), references=references)
    net = ConstantReward()
    changes = {"steps": 300, "learning_rate": 0.1, "error_weight": 5.0, "contour_weight": 6.0}
    trained(net, records, made(**changes), seed=0)
    assert float(torch.sigmoid(net.level)) == pytest.approx(0.95, abs=0.01)


def test_pixels_of_which_the_reference_is_not_certain_teach_nothing() -> None:
    def train(reference: int) -> tuple[RewardNet, RewardTrainingReport]:
        records = toy_records()
        certainty, references = records.certainty.clone(), records.references.clone()
        certainty[:, :8], references[:, :8] = 0.0, reference
        net = make_net()
        records = dataclasses.replace(records, certainty=certainty, references=references)
        return net, trained(net, records, made(steps=5, learning_rate=1e-2), seed=0)

    (ours, our_report), (theirs, their_report) = train(0), train(2)
    assert our_report.losses == their_report.losses
    assert our_report.temperature == their_report.temperature
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


def test_a_tiny_network_learns_to_find_the_wrong_pixels_of_new_patients() -> None:
    net = make_net()
    changes = {"steps": 200, "validate_every": 50, "learning_rate": 1e-2, "validation_fraction": 0.2}
    report = trained(net, toy_records(24), made(**changes), seed=0)
    new = toy_records(12, seed=1, prefix="new")
    logits, right = pixels(net, new)
    assert 0.6 < float(right.mean()) < 0.98, "mostly right, as actions are"
    probability = torch.sigmoid(logits / report.temperature)
    assert roc_auc_score(right.numpy(), probability.numpy()) > 0.95
    assert float(probability[right > 0.5].mean()) > 0.9
    assert float(probability[right < 0.5].mean()) < 0.4
    assert expected_calibration_error(probability.numpy(), right.numpy()) < 0.05
    assert report.losses[-1][1] < report.losses[0][1]


def test_volumes_are_learnt_too() -> None:
    net = make_net(spatial_dims=3)
    changes = {"steps": 60, "validate_every": 20, "learning_rate": 1e-2, "batch_size": 4}
    trained(net, toy_records(spatial_dims=3), made(**changes), seed=0)
    logits, right = pixels(net, toy_records(spatial_dims=3, seed=1))
    assert roc_auc_score(right.numpy(), logits.numpy()) > 0.8


def test_the_network_comes_back_frozen_and_in_evaluation_mode() -> None:
    net = make_net(dropout=0.5, norm="batch")
    records = toy_records()
    trained(net, records, made(), seed=0)
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first = net.reward_map(records.images, records.actions[:, 0])
    assert torch.equal(net.reward_map(records.images, records.actions[:, 0]), first)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_same_seed_gives_the_same_network_and_leaves_the_global_generator_alone() -> None:
    def train(seed: int, global_seed: int) -> tuple[dict[str, Tensor], RewardTrainingReport]:
        net = make_net(dropout=0.3)
        torch.manual_seed(global_seed)
        expected = torch.rand(3)
        torch.manual_seed(global_seed)
        report = trained(net, toy_records(), made(steps=6, learning_rate=1e-2), seed=seed)
        assert torch.equal(torch.rand(3), expected)
        return net.state_dict(), report

    (weights, report), (same, same_report), (other, _) = train(0, 0), train(0, 99), train(1, 0)
    assert report.losses == same_report.losses
    assert all(torch.equal(value, same[name]) for name, value in weights.items())
    assert not all(torch.equal(value, other[name]) for name, value in weights.items())


def early_stopping_records() -> ActionRecords:
    """Everything is wrong on the patients trained on and right on the others: each step makes the validation worse."""
    patients = [f"p{index}" for index in range(6)]
    everything = torch.ones(6, 8, 8, dtype=torch.bool)
    images = torch.zeros(6, 1, 8, 8)
    split = trained(ConstantReward(), records_of(patients, images, everything), made(), seed=0)
    right = everything & torch.tensor([patient in split.validation_patients for patient in patients])[:, None, None]
    return records_of(patients, images, right)


def test_training_stops_when_the_held_out_patients_say_so_and_keeps_the_best_weights() -> None:
    records, net = early_stopping_records(), ConstantReward(start=2.0)
    changes = {"steps": 100, "validate_every": 2, "patience": 3, "learning_rate": 0.05, "error_weight": 1.0}
    report = trained(net, records, made(**changes), seed=0)
    # The first validation is the best; three worse ones follow.
    validation = [loss for _, loss in report.losses]
    assert len(validation) == 4
    assert validation == sorted(validation)
    assert report.best_step == 2
    # All is right there: the loss is softplus(-z).
    assert validation[0] == pytest.approx(math.log1p(math.exp(-float(net.level))), rel=1e-5)


def test_training_that_gets_better_goes_to_the_last_step_and_says_how_far_it_is() -> None:
    calls: list[tuple[int, int]] = []
    right = torch.ones(4, 8, 8, dtype=torch.bool)
    records = records_of(["a", "b", "c", "d"], torch.zeros(4, 1, 8, 8), right)
    changes = {"steps": 7, "validate_every": 3, "patience": 1, "learning_rate": 0.05}
    split = SplitRecords.hold_out(records, ["a", "b"])
    report = train_reward(ConstantReward(), split, made(**changes), 0, CPU, lambda *done: calls.append(done))
    assert calls == [(3, 7), (6, 7), (7, 7)]
    assert report.best_step == 7
    assert len(report.losses) == 3


def test_the_validation_loss_does_not_depend_on_how_pixels_are_dealt_into_batches() -> None:
    records = honest_records()
    generator = torch.Generator().manual_seed(0)
    records = dataclasses.replace(records, certainty=torch.rand(8, 1, 1, generator=generator).expand(8, 48, 48).clone())
    losses = [trained(SharpReward(), records, made(batch_size=size), seed=0).losses[0][1] for size in (1, 3, 16)]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


class Listening(ConstantReward):
    """Notes which image, by its grey value, it was trained on with which action, by its class."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[tuple[int, int]] = []

    def forward(self, images: Tensor, actions: Tensor) -> Tensor:
        if self.training:
            self.heard += zip(images[:, 0, 0, 0].int().tolist(), actions[:, 0, 0].tolist(), strict=True)
        return super().forward(images, actions)


def test_every_image_comes_once_before_any_comes_again_and_with_each_of_its_actions_in_time() -> None:
    patients = [f"p{index}" for index in range(10)]
    images = torch.arange(10.0).reshape(10, 1, 1, 1).expand(10, 1, 8, 8)
    actions = torch.arange(K).byte().reshape(1, K, 1, 1).expand(10, K, 8, 8)
    records = ActionRecords(
        images, actions, torch.zeros(10, 8, 8).byte(), torch.ones(10, 8, 8), origins(patients, actions=K)
    )
    net = Listening()
    # 5 images to train on, 2 of them in a batch: 2 + 2 + 1, 20 times.
    report = trained(net, records, made(steps=60, batch_size=2), seed=0)
    rows = sorted(patients.index(patient) for patient in report.training_patients)
    passes = [net.heard[start : start + 5] for start in range(0, 100, 5)]
    assert all(sorted(image for image, _ in heard) == rows for heard in passes)
    assert {tuple(image for image, _ in heard) for heard in passes} != {tuple(rows)}, "the order was to be drawn"
    assert set(net.heard) == {(image, action) for image in rows for action in range(K)}


# The split


@settings(deadline=None, max_examples=25)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([f"p{index}" for index in range(8)]), st.sampled_from(["source", "target"])),
        min_size=2,
        max_size=16,
    ),
    fraction=st.floats(0.05, 0.85),
    seed=st.integers(0, 100),
)
def test_no_patient_is_both_trained_on_and_held_out(rows: list[tuple[str, str]], fraction: float, seed: int) -> None:
    right = torch.ones(1, 4, 4, dtype=torch.bool)
    records = ActionRecords.concatenate(
        [records_of([patient], torch.zeros(1, 1, 4, 4), right, domain) for patient, domain in rows]
    )
    patients = {patient for patient, _ in rows}
    settings_ = made(validation_fraction=fraction)
    if len(patients) < 2:
        with pytest.raises(DataError, match="at least 2 patients, there are 1"):
            trained(ConstantReward(), records, settings_, seed)
        return
    report = trained(ConstantReward(), records, settings_, seed)
    training, held_out = set(report.training_patients), set(report.validation_patients)
    assert training
    assert held_out
    assert training & held_out == set()
    assert training | held_out == patients
    with_truth = {patient for patient, domain in rows if domain == "source"}
    for group in (with_truth, patients - with_truth):
        if len(group) > 1:
            assert training & group, "each domain is learnt from"
            assert held_out & group, "each domain is held out"


@pytest.mark.parametrize("where", ["actions", "references"])
def test_a_label_that_the_network_does_not_know_is_refused_before_anything_is_learnt(where: str) -> None:
    records = toy_records(4)
    labels = getattr(records, where).clone()
    labels.view(-1)[-1] = K
    net = make_net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(DataError, match="holds label 3, the reward network knows the classes 0 to 2; collect it with"):
        trained(net, dataclasses.replace(records, **{where: labels}), made(), seed=0)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_loss_that_is_not_finite_is_an_error_and_no_network() -> None:
    records = toy_records(4)
    with pytest.raises(FloatingPointError, match=r"not finite; lower reward\.learning_rate or look at the images"):
        trained(make_net(), dataclasses.replace(records, images=records.images * float("nan")), made(), seed=0)


def test_a_batch_that_is_cut_teaches_as_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels count by their weight, of which a part may have more than another.

    Of what the networks say, for a bias before a normalisation has no gradient but rounding.
    """
    records = toy_records()
    records.certainty[::3] = 0.1
    nets = []
    for at_once in (16, 3):
        monkeypatch.setattr("medfm_rl.reward.training.images_at_once", lambda grid, most, size=at_once: min(size, most))
        net = make_net()
        with single_precision():
            trained(net, records, made(steps=4, learning_rate=1e-2, batch_size=8), 0)
        with torch.no_grad():
            nets.append(net(records.images, records.actions[:, 0]))
    assert nets[0].std() > 0.1
    assert torch.allclose(*nets, atol=1e-3)


def test_calibration_pixels_are_drawn_as_from_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medfm_rl.reward.training._MOST_CALIBRATION_PIXELS", 50)
    logits, right = torch.randn(700), torch.rand(700).round()
    kept = _Kept(700, torch.Generator().manual_seed(3))
    for part in (slice(0, 1), slice(1, 400), slice(400, 400), slice(400, 700)):
        kept.add(logits[part], right[part])
    drawn = torch.randint(700, (50,), generator=torch.Generator().manual_seed(3))
    assert torch.equal(kept.logits, logits[drawn])
    assert torch.equal(kept.right, right[drawn])
