from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medfm_rl.reward.actions import ActionRecords
from medfm_rl.reward.collection import ActionSampler, ImageSet, perturb_weights
from medfm_rl.reward.origins import GROUND_TRUTH, Reference
from medfm_rl.reward.sources import ExpertMasks, UnlabelledTargetImages
from medfm_rl.settings import CollectSettings
from medfm_rl.types import IGNORED
from medfm_rl.workflows.adapt.stages.shown_images import Mirrored

K = 4
KINDS = {
    "exploration",
    "weight noise",
    "perturbed image",
    "warped policy",
    "reference",
    "warped reference",
    "blob",
    "swapped",
    "dropped",
}


class Thresholds(nn.Module):
    """Class c where the grey value is nearest to c, up to a little batch norm and dropout that must stay frozen."""

    def __init__(self, spatial_dims: int = 2) -> None:
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if spatial_dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.layers = nn.Sequential(norm(1), nn.Dropout(0.5), conv(1, K, 1))
        classes = torch.arange(float(K))
        with torch.no_grad():
            # -(x - c)^2 up to what all classes share, twenty times sharper.
            self.layers[2].weight.copy_(20 * 2 * classes.reshape(K, *(1,) * (spatial_dims + 1)))
            self.layers[2].bias.copy_(-20 * classes**2)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.layers(images)
        return result


class Scripted(nn.Module):
    """Sees one class everywhere, the next of a list at each call; copies share the list."""

    def __init__(self, classes: list[int]) -> None:
        super().__init__()
        answers: Iterator[int] = iter(classes)
        self.answer: Callable[[], int] = lambda: next(answers, 0)

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), K, *images.shape[2:])
        logits[:, self.answer()] = 10.0
        return logits


class StubPrior:
    """A shape prior that says class 3 everywhere and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Tensor] = []

    def project(self, actions: Tensor) -> Tensor:
        self.asked.append(actions)
        return torch.full_like(actions, 3)


def explored(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Stripes, which nothing else here makes."""
    labels = torch.zeros(logits.shape[0], *logits.shape[2:], dtype=torch.int64)
    labels[..., ::2] = 1
    return labels


def make_sampler(segmenter: nn.Module | None = None, settings: CollectSettings | None = None) -> ActionSampler:
    settings = CollectSettings(actions_per_image=5) if settings is None else settings
    return ActionSampler((segmenter or Thresholds()).eval(), settings, explored, torch.device("cpu"))


def make_images(count: int = 3, shape: tuple[int, ...] = (16, 16), seed: int = 0) -> tuple[ImageSet, Tensor]:
    """Boxes of classes 1 to 3 on the background, with some noise; and their masks."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, *shape, dtype=torch.uint8)
    for mask in masks:
        for label in (1, 2, 3):
            corner = [int(torch.randint(0, side // 2, (), generator=generator)) for side in shape]
            mask[tuple(slice(c, c + side // 3) for c, side in zip(corner, shape, strict=True))] = label
    images = masks[:, None] + 0.1 * torch.randn(count, 1, *shape, generator=generator)
    names = tuple(f"case{row}" for row in range(count))
    return ImageSet(images, names, tuple(f"patient{row // 2}" for row in range(count))), masks


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def from_source(
    sampler: ActionSampler, count: int = 3, seed: int = 0, shape: tuple[int, ...] = (16, 16)
) -> ActionRecords:
    sources, masks = make_images(count, shape)
    source = ExpertMasks(sampler, sources, masks, make_images(4, shape, seed=1)[0].images, count)
    return source.collect(range(count), seeded(seed))


def target_source(sampler: ActionSampler, images: ImageSet, **changes: Any) -> UnlabelledTargetImages:
    return UnlabelledTargetImages(
        sampler, images, **{"is_valid": lambda mask, axes: True, "shape_prior": StubPrior(), **changes}
    )


def from_target(
    sampler: ActionSampler, count: int = 3, seed: int = 0, shape: tuple[int, ...] = (16, 16)
) -> ActionRecords:
    return target_source(sampler, make_images(count, shape)[0]).collect(range(count), seeded(seed))


COLLECT = pytest.mark.parametrize("collect", [from_source, from_target])


@COLLECT
@pytest.mark.parametrize("shape", [(16, 12), (8, 9, 10)])
def test_records_hold_the_actions_asked_for_within_the_classes(
    collect: Callable[..., ActionRecords], shape: tuple[int, ...]
) -> None:
    sampler = make_sampler(Thresholds(len(shape)), CollectSettings(actions_per_image=7))
    records = collect(sampler, 4, shape=shape)
    assert records.images.shape == (4, 1, *shape)
    assert records.actions.shape == (4, 7, *shape)
    assert records.actions.dtype == records.references.dtype == torch.uint8
    assert int(records.actions.max()) < K
    assert [origin.case_id for origin in records.origins] == ["case0", "case1", "case2", "case3"]
    assert [origin.patient_id for origin in records.origins] == ["patient0", "patient0", "patient1", "patient1"]
    for tensor in (records.images, records.actions, records.references, records.certainty):
        assert not tensor.requires_grad
        assert tensor.isfinite().all()


@COLLECT
def test_every_way_to_make_an_action_occurs_and_is_what_its_name_says(collect: Callable[..., ActionRecords]) -> None:
    segmenter = Thresholds()
    records = collect(make_sampler(segmenter, settings=CollectSettings(actions_per_image=20)), 20)
    assert {kind for origin in records.origins for kind in origin.actions} == KINDS | {"policy"}
    own = segmenter(records.images).argmax(dim=1).byte()
    stripes = explored(torch.zeros(1, K, 16, 16), seeded())[0]
    differs = dict.fromkeys(KINDS, 0)
    for row, origin in enumerate(records.origins):
        assert origin.actions[0] == "policy"
        assert origin.actions.count("policy") == 1
        reference = records.references[row]
        for kind, action in zip(origin.actions, records.actions[row], strict=True):
            if kind == "policy":
                assert torch.equal(action, own[row])
                continue
            differs[kind] += not torch.equal(action, own[row])
            match kind:
                case "exploration":
                    assert torch.equal(action, stripes.byte())
                case "reference":
                    assert torch.equal(action, reference)
                case "swapped":
                    assert any(torch.equal(action, other) for other in own)
                case "dropped":
                    gone = set(reference.unique().tolist()) - set(action.unique().tolist())
                    assert len(gone) == 1
                    assert torch.equal(action, torch.where(reference == gone.pop(), 0, reference))
                case "warped policy":
                    assert set(action.unique().tolist()) <= set(own[row].unique().tolist())
                case "warped reference":
                    assert set(action.unique().tolist()) <= set(reference.unique().tolist())
                case "blob":
                    assert len(action[action != own[row]].unique()) <= 1
    # On the target the reference is nearly what the policy says.
    assert all(differs[kind] > 0 for kind in KINDS - {"reference"}), differs


@COLLECT
def test_the_same_seed_collects_the_same(collect: Callable[..., ActionRecords]) -> None:
    torch.manual_seed(0)
    first = collect(make_sampler())
    torch.manual_seed(99)
    same, other = collect(make_sampler()), collect(make_sampler(), seed=1)
    for name in ("images", "actions", "references", "certainty"):
        assert torch.equal(getattr(first, name), getattr(same, name)), name
    assert first.origins == same.origins
    assert not torch.equal(first.actions, other.actions)


@COLLECT
def test_collecting_changes_neither_the_policy_nor_the_images(collect: Callable[..., ActionRecords]) -> None:
    segmenter, images = Thresholds(), make_images()
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    records = collect(make_sampler(segmenter))
    assert all(torch.equal(value, before[name]) for name, value in segmenter.state_dict().items())
    assert all(parameter.requires_grad for parameter in segmenter.parameters())
    assert all(parameter.grad is None for parameter in segmenter.parameters())
    records.actions.zero_()
    records.references.zero_()
    again = make_images()
    assert torch.equal(images[0].images, again[0].images)
    assert torch.equal(images[1], again[1])


# Source


def test_source_images_come_in_a_new_look_with_their_ground_truth_untouched() -> None:
    sources, masks = make_images()
    records = from_source(make_sampler())
    assert torch.equal(records.references, masks)
    assert (records.certainty == 1).all()
    for row in range(3):
        assert not torch.allclose(records.images[row], sources.images[row], atol=0.05)
    assert {origin.reference for origin in records.origins} == {GROUND_TRUTH}


def test_source_images_come_as_they_are_where_no_appearance_is_asked_for() -> None:
    records = from_source(make_sampler(settings=CollectSettings(appearance_strength=0)))
    assert torch.equal(records.images, make_images()[0].images)


def test_the_policy_is_asked_about_the_look_that_is_kept() -> None:
    """A mask of the original image beside the changed one would teach what the policy never does."""
    segmenter = Thresholds()
    records = from_source(make_sampler(segmenter), 20)
    assert torch.equal(records.actions[:, 0], segmenter(records.images).argmax(dim=1).byte())
    original = segmenter(make_images(20)[0].images).argmax(dim=1).byte()
    assert not torch.equal(records.actions[:, 0], original)


# Target


def test_target_records_need_no_ground_truth_and_show_the_images_as_they_are() -> None:
    assert [field.name for field in fields(UnlabelledTargetImages)] == ["sampler", "images", "is_valid", "shape_prior"]
    records = from_target(make_sampler())
    assert torch.equal(records.images, make_images()[0].images)
    assert {origin.reference for origin in records.origins} == {Reference("consensus", 0.25)}


def test_a_policy_that_is_sure_of_itself_gives_its_mask_as_reference_and_full_trust_within() -> None:
    settings = CollectSettings(weight_noise=0.0, appearance_strength=0.0, reference_trust=0.4)
    segmenter, (targets, _) = Thresholds(), make_images(6, (32, 32))
    records = target_source(make_sampler(segmenter, settings), targets).collect(range(6), seeded())
    own = segmenter(targets.images).argmax(dim=1)
    same = records.references == own
    # Rescaling by a tenth moves contours and nothing else.
    assert float(same.float().mean()) > 0.9
    assert float(records.certainty.max()) == pytest.approx(0.4)
    assert 0.5 < float((records.certainty > 0).float().mean()) < 1
    # What the views do not agree on lies near the contours.
    wrong = float(same[records.certainty == 0].float().mean())
    assert wrong < float(same[records.certainty > 0].float().mean())


@pytest.mark.parametrize(
    ("votes", "agreement", "reference", "certainty"),
    [
        ([1, 1, 1, 1, 1], 0.8, 1, 0.25 * 1.0),
        ([1, 1, 1, 1, 2], 0.8, 1, 0.25 * 0.8),
        ([2, 1, 2, 1, 1], 0.8, 1, 0.0),
        ([2, 1, 2, 1, 1], 0.6, 1, 0.25 * 0.6),
        ([2, 1, 2, 1, 1], 0.0, 1, 0.25 * 0.6),
        ([3, 1, 1, 1, 1], 1.0, 1, 0.0),
    ],
)
def test_a_reference_is_trusted_as_far_as_the_views_agree(
    votes: list[int], agreement: float, reference: int, certainty: float
) -> None:
    """The policy's own view and four others vote; the trust is 0.25."""
    settings = CollectSettings(reference_agreement=agreement, reference_trust=0.25)
    records = from_target(make_sampler(Scripted(votes), settings=settings), 2)
    assert (records.references == reference).all()
    torch.testing.assert_close(records.certainty, torch.full((2, 16, 16), certainty))


def test_a_reference_that_breaks_the_rules_comes_from_the_shape_prior() -> None:
    """Of 4 images the second and the last break them; nobody voted for what the prior says there."""
    prior = StubPrior()
    verdicts = iter([True, False, True, False])
    source = target_source(
        make_sampler(Scripted([1] * 5)),
        make_images(4)[0],
        shape_prior=prior,
        is_valid=lambda mask, axes: next(verdicts),
    )
    records = source.collect(range(4), seeded())
    assert [origin.reference.kind for origin in records.origins] == ["consensus", "shape prior"] * 2
    assert {origin.reference.trust for origin in records.origins} == {0.25}
    assert [int(mask.unique()) for mask in records.references] == [1, 3, 1, 3]
    torch.testing.assert_close(records.certainty[::2], torch.full((2, 16, 16), 0.25))
    assert not records.certainty[1::2].any()
    assert [len(asked) for asked in prior.asked] == [2]


def test_valid_references_do_not_ask_the_shape_prior() -> None:
    prior, seen = StubPrior(), []
    source = target_source(
        make_sampler(),
        make_images()[0],
        shape_prior=prior,
        is_valid=lambda mask, axes: bool(seen.append(mask.shape)) or True,
    )
    source.collect(range(3), seeded())
    assert prior.asked == []
    assert seen == [(16, 16)] * 3


def test_a_source_without_images_of_the_target_cannot_lend_ground_truth_to_it() -> None:
    """The same image collected as source and as target: only the source record knows its mask."""
    sources, masks = make_images()
    wrong = masks.clone()
    wrong[:] = 3
    sampler = make_sampler(settings=CollectSettings(appearance_strength=0))
    source = ExpertMasks(sampler, sources, wrong, sources.images, 3).collect(range(3), seeded())
    target = target_source(sampler, sources).collect(range(3), seeded())
    assert (source.references == 3).all()
    assert float((target.references == masks).float().mean()) > 0.8


def test_a_source_shows_the_images_that_were_drawn_in_their_order() -> None:
    images, masks = make_images(5)
    sampler = make_sampler(settings=CollectSettings(appearance_strength=0, target_images=9))
    labelled, unlabelled = ExpertMasks(sampler, images, masks, images.images, 7), target_source(sampler, images)
    assert [(source.name, source.images_per_iteration, len(source)) for source in (labelled, unlabelled)] == [
        ("source", 7, 5),
        ("target", 9, 5),
    ]
    for source in (labelled, unlabelled):
        records = source.collect([3, 0, 3], seeded())
        assert [origin.case_id for origin in records.origins] == ["case3", "case0", "case3"]
        assert torch.equal(records.images, images.images[[3, 0, 3]])


# Weights and image sets


def test_weight_noise_is_relative_to_each_tensor_and_leaves_the_original() -> None:
    segmenter = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100))
    with torch.no_grad():
        segmenter[1].weight.mul_(50)
    before = {name: value.clone() for name, value in segmenter.state_dict().items()}
    noisy = perturb_weights(segmenter, 0.1, seeded()).state_dict()
    for name in ("0.weight", "1.weight"):
        noise = noisy[name] - before[name]
        # 10,000 draws: the standard deviation of their spread is 0.7 %.
        assert float(noise.std() / before[name].std()) == pytest.approx(0.1, rel=0.04)
        assert abs(float(noise.mean() / noise.std())) < 0.05
    assert all(torch.equal(value, before[name]) for name, value in segmenter.state_dict().items())
    again, other = (perturb_weights(segmenter, 0.1, seeded(seed)).state_dict() for seed in (0, 1))
    assert torch.equal(again["0.weight"], noisy["0.weight"])
    assert not torch.equal(other["0.weight"], noisy["0.weight"])


def test_weights_without_spread_and_single_numbers_stay() -> None:
    segmenter = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(1, 1, 1))
    noisy = perturb_weights(segmenter, 1.0, seeded()).state_dict()
    for name, value in segmenter.state_dict().items():
        assert torch.equal(noisy[name], value), name
    same = perturb_weights(Thresholds(), 0.0, seeded()).state_dict()
    assert all(torch.equal(same[name], value) for name, value in Thresholds().state_dict().items())


def test_an_image_set_gives_the_rows_asked_for_with_their_names() -> None:
    images, _ = make_images(5)
    picked = images[[3, 0, 3]]
    assert len(picked) == 3
    assert picked.case_ids == ("case3", "case0", "case3")
    assert picked.patient_ids == ("patient1", "patient0", "patient1")
    assert torch.equal(picked.images, torch.stack([images.images[row] for row in (3, 0, 3)]))


def test_pixels_of_which_a_mask_says_nothing_are_the_policys_own_and_teach_nothing() -> None:
    images, masks = make_images()
    masks[:, :, 8:] = IGNORED
    sampler = make_sampler()
    records = ExpertMasks(sampler, images, masks, images.images, 3).collect(range(3), seeded())
    assert bool((records.certainty[:, :, :8] == 1).all())
    assert not bool(records.certainty[:, :, 8:].any())
    assert torch.equal(records.references[:, :, :8], masks[:, :, :8])
    assert torch.equal(records.references[:, :, 8:], sampler.masks(records.images)[:, :, 8:])
    # No action has holes, and PPO's truth says again of which pixels it says nothing.
    assert max(records.highest_labels()) < K
    truth = Mirrored(records, (), seeded()).masks(range(3))
    assert torch.equal(truth, masks)
    flipped = Mirrored(records, (1,), torch.Generator().manual_seed(1))
    assert sorted(int((mask == IGNORED).sum()) for mask in flipped.masks(range(3))) == [128] * 3
