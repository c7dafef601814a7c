from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.baselines import BASELINES, Problem, input_style, pseudo_labels, rl4seg
from benchmarks.baselines.input_style import Average, Matched
from benchmarks.baselines.preferences import optimise_preferences, preference_loss
from benchmarks.baselines.problem import predict, steadiest, steadiness
from benchmarks.baselines.pseudo_labels import confident_labels
from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.reward.collection import ImageSet
from medfm_rl.reward.judgements import Comparison, JudgedMask, Judgements
from medfm_rl.settings import NetworkSettings, PreprocessingSettings, ShapePriorSettings
from medfm_rl.types import LabelSchema

SCHEMA = LabelSchema.from_structures({"disc": 1})
SIZE = (16, 16)


def discs(count: int, seed: int, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Bright discs in noise and where they are."""
    rng = np.random.default_rng(seed)
    axes = np.mgrid[: SIZE[0], : SIZE[1]]
    masks = np.stack(
        [np.hypot(axes[0] - rng.uniform(6, 10), axes[1] - rng.uniform(6, 10)) < rng.uniform(3, 5) for _ in range(count)]
    ).astype(np.uint8)
    images = 2.0 * masks + rng.normal(0, 0.3, masks.shape) + offset
    return torch.from_numpy(images[:, None].astype(np.float32)), torch.from_numpy(masks)


def image_set(images: Tensor) -> ImageSet:
    names = tuple(f"p{row}" for row in range(len(images)))
    return ImageSet(images, names, names)


def batch_norm_model() -> TorchModuleAdapter:
    torch.manual_seed(0)
    network = NetworkSettings(channels=(4, 8), residual_units=0, norm="batch")
    return TorchModuleAdapter.build_unet(
        network, SCHEMA, PreprocessingSettings(size=SIZE, intensity="none"), in_channels=1
    ).eval()


@pytest.fixture(scope="module")
def trained() -> TorchModuleAdapter:
    """Knows discs of the source; its batch statistics are those of the source."""
    model, (images, masks) = batch_norm_model(), discs(32, seed=0)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(images), masks.long())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def make_problem(model: TorchModuleAdapter, source_free: bool, offset: float = 0.5) -> Problem:
    source, masks = discs(24, seed=1)
    target, _ = discs(20, seed=2, offset=offset)
    labelled = None if source_free else (image_set(source), masks)
    return Problem(model, image_set(target), labelled, masks, load_anatomy("complete", SCHEMA), seed=3)


def no_progress(stage: str, done: int, total: int) -> None:
    assert 0 < done <= total, stage


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl4seg, "_ITERATIONS", 2)
    monkeypatch.setattr(rl4seg, "_PRIOR", ShapePriorSettings(epochs=30))
    monkeypatch.setattr(rl4seg, "_REWARD_STEPS", 50)
    monkeypatch.setattr(rl4seg, "_PPO_EPOCHS", 1)
    monkeypatch.setattr(rl4seg, "_NETWORK", NetworkSettings(channels=(8, 16, 32), norm="batch"))
    monkeypatch.setattr(pseudo_labels, "_STEPS_OF_A_ROUND", 25)
    monkeypatch.setattr(pseudo_labels, "_TEACHER_STEPS", 50)
    monkeypatch.setattr(input_style, "_STEPS_OF_A_BAND", 25)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_leaves_the_source_model_and_gives_the_same_twice(name: str, trained: TorchModuleAdapter) -> None:
    baseline = BASELINES[name]
    problem = make_problem(trained, baseline.source_free)
    before = copy.deepcopy(trained.state_dict())
    adapted = baseline.adapt(problem, no_progress)
    assert all(torch.equal(before[key], value) for key, value in trained.state_dict().items())
    assert not trained.training
    assert not adapted.training
    again = baseline.adapt(make_problem(trained, baseline.source_free), no_progress)
    images, masks = discs(8, seed=4, offset=0.5)
    with torch.no_grad():
        logits, plain = adapted(images), trained(images)
        assert torch.equal(again(images), logits)
    assert logits.shape == plain.shape
    assert bool(logits.isfinite().all())
    # It does something, and segments discs as before.
    assert not torch.allclose(logits, plain, atol=1e-4)
    assert float((logits.argmax(dim=1) == masks).float().mean()) > 0.9


def test_matched_images_have_the_grey_values_of_the_source_in_the_order_of_their_own() -> None:
    quantiles = torch.linspace(-1, 1, 256)[None]
    images = torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    matched = Matched(nn.Identity(), quantiles)(images)
    assert torch.equal(matched.flatten(2).sort(dim=2).values, quantiles.expand(2, 1, -1))
    assert torch.equal(matched.flatten(2).argsort(dim=2), images.flatten(2).argsort(dim=2))


class Constant(nn.Module):
    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits[None, :, None, None].expand(len(images), -1, *images.shape[2:])


def test_an_average_is_of_probabilities() -> None:
    average = Average([Constant([0.0, 0.0]), Constant([0.0, float(np.log(3))])])
    assert torch.allclose(average(torch.zeros(1, 1, 2, 2)).exp()[0, 1], torch.full((2, 2), (0.5 + 0.75) / 2))


def test_labels_are_kept_where_the_segmenter_is_sure() -> None:
    adapter = TorchModuleAdapter(Constant([0.0, 2.0]), SCHEMA, PreprocessingSettings(size=SIZE))
    images = torch.zeros(2, 1, *SIZE)
    # softmax(0, 2) is .88 for class 1.
    assert confident_labels(adapter, images, 0.8).unique().tolist() == [1]
    assert confident_labels(adapter, images, 0.9).unique().tolist() == [255]


def test_the_steadiest_candidate_is_valid_and_keeps_its_mind(trained: TorchModuleAdapter) -> None:
    problem = make_problem(trained, source_free=True)
    fickle = copy.deepcopy(trained)
    with torch.no_grad():
        for parameter in fickle.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * 0.5)
    # Always the same empty mask: steady, but the rules call it invalid.
    empty = TorchModuleAdapter(Constant([5.0, 0.0]), SCHEMA, PreprocessingSettings(size=SIZE))
    assert steadiness(empty, problem) == 0
    assert steadiness(trained, problem) > steadiness(fickle, problem)
    assert steadiest({"empty": empty, "fickle": fickle, "trained": trained}, problem) is trained


def corrected_by(prior: object) -> rl4seg._Correction:
    return rl4seg._Correction(prior, 0.95)  # type: ignore[arg-type]


def test_rl4seg_takes_good_masks_for_references_and_projections_of_bad_ones(trained: TorchModuleAdapter) -> None:
    problem = make_problem(trained, source_free=True)
    masks = predict(trained, problem.target.images)

    class Prior:
        """Gives the first half back, and a disc for the rest."""

        def project(self, actions: Tensor) -> Tensor:
            other = discs(1, seed=9)[1][0]
            return torch.stack([mask if row < 10 else other for row, mask in enumerate(actions)])

    records, good = rl4seg._collect(trained, corrected_by(Prior()), problem, torch.Generator().manual_seed(0))
    assert set(good) >= {row for row in range(10) if problem.anatomy.is_valid(masks[row].numpy())}
    bad = 20 - len(good)
    assert records is not None
    # Nine distorted masks for each good one (four of weights, two contrasts, two noises, one of another image).
    assert len(records.images) == bad + 9 * len(good)
    assert torch.equal(records.references[:bad], discs(1, seed=9)[1].expand(bad, -1, -1))
    assert records.actions.dtype == torch.uint8


class Unchanged:
    """A shape prior for which every mask is plausible."""

    def project(self, actions: Tensor) -> Tensor:
        return actions


def test_rl4seg_asks_of_a_good_mask_no_more_than_the_prior_gives_back_of_the_ground_truth(
    trained: TorchModuleAdapter,
) -> None:
    problem = make_problem(trained, source_free=True)

    class Shrunken:
        """Takes away the upper half of each mask."""

        def project(self, actions: Tensor) -> Tensor:
            kept = actions.clone()
            for mask in kept:
                rows = mask.any(dim=1).nonzero()
                mask[: int(rows.float().mean().ceil())] = 0
            return kept

    assert rl4seg._typical_agreement(Unchanged(), problem) == 0.95  # type: ignore[arg-type]
    # Half of a disc has a Dice of 2 (1/2) / (1 + 1/2) = 2/3 with the disc.
    assert rl4seg._typical_agreement(Shrunken(), problem) == pytest.approx(2 / 3, abs=0.08)  # type: ignore[arg-type]


def test_rl4seg_shows_no_empty_mask_to_the_reward_network(
    trained: TorchModuleAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_problem(trained, source_free=True)
    images, empty = problem.target.images, torch.zeros(20, *SIZE, dtype=torch.uint8)
    full = torch.ones_like(empty)
    monkeypatch.setattr(
        rl4seg, "_distorted", lambda policy, shown, generator: [empty[: len(shown)], full[: len(shown)]]
    )
    records, good = rl4seg._collect(trained, corrected_by(Unchanged()), problem, torch.Generator().manual_seed(0))
    assert records is not None
    assert 0 < len(good) <= len(images)
    # One full mask and that of another image for each good one.
    assert len(records.images) == 2 * len(good)
    assert bool(records.actions.flatten(1).any(dim=1).all())


def test_rl4seg_divides_noisy_images_by_their_maximum_and_keeps_the_mean_of_those_with_less_contrast(
    trained: TorchModuleAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_problem(trained, source_free=True).target.images
    shown: list[Tensor] = []
    monkeypatch.setattr(rl4seg, "predict", lambda policy, given: shown.append(given))
    with torch.no_grad():
        rl4seg._distorted(trained, images, torch.Generator().manual_seed(0))
    for factor, contrast in zip((0.7, 0.8), shown[4:6], strict=True):
        assert torch.allclose(contrast.mean(dim=(1, 2, 3)), images.mean(dim=(1, 2, 3)), atol=1e-5)
        assert torch.allclose(contrast.std(dim=(1, 2, 3)), factor * images.std(dim=(1, 2, 3)), atol=1e-5)
    for noisy in shown[6:]:
        assert torch.allclose(noisy.amax(dim=(1, 2, 3)), images.amax(dim=(1, 2, 3)), atol=1e-5)
        assert not torch.allclose(noisy, images, atol=0.1)


def test_rl4seg_halves_weights_and_leaves_biases() -> None:
    net = nn.Conv2d(1, 64, 9)
    weight, bias = net.weight.detach().clone(), net.bias.detach().clone()
    rl4seg.shrink_and_perturb(net, torch.Generator().manual_seed(0))
    noise = net.weight.detach() - weight / 2
    assert float(noise.mean()) == pytest.approx(0, abs=1e-3)
    assert float(noise.std()) == pytest.approx(0.01, rel=0.05)
    assert torch.equal(net.bias, bias)


def test_rl4seg_ends_an_iteration_with_its_best_epoch_and_keeps_references_and_records(
    trained: TorchModuleAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_problem(trained, source_free=True)
    monkeypatch.setattr(rl4seg, "_REWARD_STEPS", 25)
    policy = copy.deepcopy(trained)
    first = rl4seg._prepare(policy, corrected_by(Unchanged()), problem, None, 1, no_progress)
    assert first.references
    # No mask of an empty segmenter is valid; what the prior makes of it is.
    empty = TorchModuleAdapter(Constant([5.0, 0.0]), SCHEMA, PreprocessingSettings(size=SIZE))

    class Disc:
        def project(self, actions: Tensor) -> Tensor:
            return discs(1, seed=9)[1].expand(len(actions), -1, -1)

    second = rl4seg._prepare(empty, corrected_by(Disc()), problem, first, 2, no_progress)
    assert second.references.keys() == first.references.keys()
    assert [len(records.images) for records in second.collected] == [len(first.collected[0].images), 20]
    assert not all(map(torch.equal, first.reward.parameters(), second.reward.parameters()))
    # An iteration that finds nothing goes on with what there is; the first has nothing to go on with.
    third = rl4seg._prepare(empty, corrected_by(Unchanged()), problem, second, 3, no_progress)
    assert third.collected == second.collected
    with pytest.raises(RuntimeError, match="collects nothing"):
        rl4seg._prepare(empty, corrected_by(Unchanged()), problem, None, 1, no_progress)

    states: list[dict[str, Tensor]] = []
    rewards = iter((0.5, 0.9, 0.7))

    def mean_reward(policy: nn.Module, *_: object) -> float:
        assert not policy.training
        states.append(copy.deepcopy(policy.state_dict()))
        return next(rewards)

    monkeypatch.setattr(rl4seg, "_mean_reward", mean_reward)
    critic = rl4seg._new_network(problem, "critic", 1)
    recipe = rl4seg._Recipe(1e-3, train_mode=True, shrink=False)
    rl4seg._ppo(policy, critic, first, problem, recipe, 1, torch.Generator().manual_seed(0), no_progress)
    assert len(states) == 3
    # The second epoch; batch statistics moved on the way.
    assert all(torch.equal(value, states[1][name]) for name, value in policy.state_dict().items())
    moved = [name for name in states[0] if "running_mean" in name and not torch.equal(states[0][name], states[1][name])]
    assert moved


def test_preference_loss_is_of_the_mean_over_the_pixels_where_masks_differ() -> None:
    margin = torch.tensor([[[2.0, 4.0], [100.0, 100.0]], [[1.0, 1.0], [1.0, 1.0]]])
    compared = torch.tensor([[[True, True], [False, False]], [[False, False], [False, False]]])
    # -log sigmoid(3); the second comparison has no pixel and is not counted.
    assert float(preference_loss(margin, compared)) == pytest.approx(0.0485874, abs=1e-6)


def test_direct_preferences_make_the_better_mask_likelier_where_the_masks_differ(trained: TorchModuleAdapter) -> None:
    images, masks = discs(8, seed=5)
    wide = torch.nn.functional.max_pool2d(masks[:, None].float(), 3, stride=1, padding=1)[:, 0].to(torch.uint8)
    shown = [
        JudgedMask(images[row : row + 1], labels[row : row + 1], f"p{row}")
        for row in range(8)
        for labels in (masks, wide)
    ]
    said = tuple(Comparison(2 * row + 1, 2 * row, 1) for row in range(8))
    judgements = Judgements(tuple(shown), said, SCHEMA.classes, 1.0)
    tuned = optimise_preferences(trained, judgements, 1e-3, 20, seed=0)
    rim = (wide != masks)[:, None]
    with torch.no_grad():
        before, after = (model(images).softmax(dim=1)[:, 1:][rim].mean() for model in (trained, tuned))
    assert after > before + 0.05
    with pytest.raises(ValueError, match="nothing was compared"):
        optimise_preferences(trained, Judgements((), (), SCHEMA.classes, 1.0), 1e-3, 1, seed=0)
