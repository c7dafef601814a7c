from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medfm_rl.adapters import SegmenterAdapter, TorchModuleAdapter
from medfm_rl.anatomy.cleaning import clean_up
from medfm_rl.anatomy.profiles import Anatomy, load_anatomy
from medfm_rl.anatomy.rules import Profile
from medfm_rl.correction import CaseCorrector, Verifier
from medfm_rl.correction.corrector import appearances
from medfm_rl.correction.published import (
    AugmentationAverage,
    Intent,
    LargestComponents,
    Memo,
    NoCorrection,
    ShapeProjection,
    Tent,
)
from medfm_rl.errors import ModelError
from medfm_rl.reward.network import RewardNet
from medfm_rl.reward.shape_prior import ShapePrior
from medfm_rl.settings import CorrectionSettings, NetworkSettings, PreprocessingSettings
from medfm_rl.types import Case, LabelSchema

SETTINGS = CorrectionSettings(steps=3, weight_learning_rate=0.05)


@pytest.fixture
def batch_norm(schema: LabelSchema) -> TorchModuleAdapter:
    torch.manual_seed(0)
    network = NetworkSettings(channels=(4, 8), residual_units=0, norm="batch")
    return TorchModuleAdapter.build_unet(network, schema, PreprocessingSettings(size=(16, 16))).eval()


def judge_for(adapter: SegmenterAdapter) -> Verifier:
    network = RewardNet(NetworkSettings(channels=(4, 8), residual_units=0), adapter.schema.num_classes)
    return Verifier(network, load_anatomy("generic", adapter.schema), SETTINGS)


def correctors(adapter: SegmenterAdapter) -> list[CaseCorrector]:
    verifier = judge_for(adapter)
    torch.manual_seed(3)
    prior = ShapePrior(adapter.schema.num_classes, adapter.patch_size, 4)
    return [
        NoCorrection(adapter, verifier),
        AugmentationAverage(adapter, verifier),
        Tent(adapter, verifier),
        Intent(adapter, verifier),
        Memo(adapter, verifier),
        LargestComponents(adapter, verifier),
        ShapeProjection(adapter, verifier, prior),
    ]


def digest(adapter: TorchModuleAdapter) -> str:
    found = hashlib.sha256()
    for name, value in adapter.state_dict().items():
        found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("index", range(7))
def test_a_baseline_leaves_the_segmenter_and_proposes_the_same_twice(
    index: int, batch_norm: TorchModuleAdapter, make_case: Callable[..., Case]
) -> None:
    case, before = make_case(shape=(20, 24)), digest(batch_norm)
    corrector = correctors(batch_norm)[index]
    first = corrector.correct(case)
    corrector.correct(make_case(shape=(20, 24), name="p2_a", seed=1))
    again = corrector.correct(case)
    assert digest(batch_norm) == before
    assert not batch_norm.training
    assert first.after.shape == (20, 24)
    np.testing.assert_array_equal(first.after, again.after)
    np.testing.assert_array_equal(first.before, batch_norm.segment(case))
    assert np.array_equal(first.after, first.before) == isinstance(corrector, NoCorrection)


@pytest.mark.parametrize("index", range(7))
def test_a_mask_that_another_segmenter_made_is_the_original(
    index: int, batch_norm: TorchModuleAdapter, make_case: Callable[..., Case]
) -> None:
    given = np.zeros((20, 24), dtype=np.uint8)
    given[2:8, 2:8], given[10:18, 2:20], given[0, 0] = 1, 2, 1
    corrector = correctors(batch_norm)[index]
    result = corrector.correct(make_case(shape=(20, 24)), original=given)
    np.testing.assert_array_equal(result.before, given)
    assert np.array_equal(result.after, given) == isinstance(corrector, NoCorrection)
    if isinstance(corrector, LargestComponents):
        np.testing.assert_array_equal(result.after, clean_up(given, corrector.verifier.anatomy))
        assert result.after[0, 0] == 0


def test_the_average_is_of_the_image_and_its_appearances(
    batch_norm: TorchModuleAdapter, make_case: Callable[..., Case]
) -> None:
    case = make_case(shape=(16, 16))
    sample = batch_norm.preprocess(case)
    images = [sample.image, *appearances(sample, 7, 1)]
    mean = torch.stack([batch_norm.predict_logits(replace(sample, image=image)).softmax(0) for image in images]).mean(0)
    found = AugmentationAverage(batch_norm, judge_for(batch_norm)).correct(case)
    np.testing.assert_array_equal(found.after, mean.argmax(dim=0).numpy())


def test_methods_of_normalisation_refuse_a_segmenter_that_has_none(schema: LabelSchema) -> None:
    adapter = TorchModuleAdapter(nn.Conv2d(1, 4, 1), schema, PreprocessingSettings(size=(16, 16))).eval()
    verifier = judge_for(adapter)
    with pytest.raises(ModelError, match="no batch normalisation"):
        Intent(adapter, verifier)
    with pytest.raises(ModelError, match="no normalisation with a scale and a shift"):
        Tent(adapter, verifier)


def test_tent_takes_any_normalisation_with_a_scale_and_a_shift(
    schema: LabelSchema, make_case: Callable[..., Case]
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    adapter = TorchModuleAdapter(module, schema, PreprocessingSettings(size=(16, 16))).eval()
    found = Tent(adapter, judge_for(adapter)).correct(make_case(shape=(16, 16)))
    assert not np.array_equal(found.after, found.before)
    with pytest.raises(ModelError, match="no batch normalisation"):
        Intent(adapter, judge_for(adapter))


def test_memo_brings_the_appearances_to_agree(batch_norm: TorchModuleAdapter, make_case: Callable[..., Case]) -> None:
    """The entropy of the mean over the appearances is what MEMO lowers; here it is measured from outside."""
    seen: list[TorchModuleAdapter] = []

    class Watched(TorchModuleAdapter):
        def restore(self, logits: Tensor, sample: object) -> np.ndarray:
            seen.append(self)
            return super().restore(logits, sample)  # type: ignore[arg-type]

        def __deepcopy__(self, memo: dict[int, object]) -> TorchModuleAdapter:
            twin = super().__deepcopy__(memo)
            twin.__class__ = Watched
            return twin

    batch_norm.__class__ = Watched
    case = make_case(shape=(16, 16))
    Memo(batch_norm, judge_for(batch_norm)).correct(case)
    sample = batch_norm.preprocess(case)
    views = torch.stack([sample.image, *appearances(sample, 7, 1)])

    def entropy(network: nn.Module) -> float:
        with torch.no_grad():
            mean = network(views).softmax(dim=1).mean(dim=0)
        return float(-(mean * mean.log()).sum(dim=0).mean())

    assert seen[-1] is not batch_norm
    assert entropy(seen[-1]) < entropy(batch_norm) - 0.01


def test_the_shape_prior_refuses_images_larger_than_the_masks_it_knows(
    schema: LabelSchema, make_case: Callable[..., Case]
) -> None:
    torch.manual_seed(0)
    network = NetworkSettings(channels=(4, 8), residual_units=0)
    preprocessing = PreprocessingSettings(size=(16, 16), grid="native")
    adapter = TorchModuleAdapter.build_unet(network, schema, preprocessing).eval()
    corrector = ShapeProjection(adapter, judge_for(adapter), ShapePrior(4, (16, 16), 4))
    with pytest.raises(ModelError, match="the shape prior knows masks of"):
        corrector.correct(make_case(shape=(20, 24)))


def anatomy(schema: LabelSchema, *rules: dict[str, object], planes: bool = False) -> Anatomy:
    return Anatomy("test", Profile.model_validate({"rules": rules, "planes": planes}), schema)


def test_tidying_keeps_as_many_parts_as_the_rule_says_and_fills_holes(schema: LabelSchema) -> None:
    labels = np.zeros((12, 12), np.uint8)
    labels[1:6, 1:6] = 1
    labels[3, 3] = 0  # a hole
    labels[8:11, 1:4] = 1  # a second part
    labels[8, 8] = 1  # a third
    labels[1:6, 8:11] = 2
    labels[3, 9] = 1  # within MYO
    once = {"kind": "components", "structure": "LV", "most": 1}
    twice = {"kind": "components", "structure": "LV", "most": 2}
    hole = {"kind": "holes", "structure": "LV", "most": 0.01}
    wall = {"kind": "holes", "structure": "MYO", "most": 0.01}
    wanted = labels.copy()
    wanted[3, 3] = 1
    np.testing.assert_array_equal(clean_up(labels, anatomy(schema, hole)), wanted)
    wanted[8, 8] = 0
    wanted[3, 9] = 2
    np.testing.assert_array_equal(clean_up(labels, anatomy(schema, twice, hole, wall)), wanted)
    wanted[8:11, 1:4] = 0
    tidied = clean_up(labels, anatomy(schema, once, hole, wall))
    np.testing.assert_array_equal(tidied, wanted)
    np.testing.assert_array_equal(clean_up(tidied, anatomy(schema, once, hole, wall)), tidied)
    # Without a rule nothing says that a part or a hole is one too many.
    np.testing.assert_array_equal(clean_up(labels, anatomy(schema)), labels)
    assert labels[3, 3] == 0


def test_a_hole_between_two_structures_gets_the_nearer_one(schema: LabelSchema) -> None:
    labels = np.zeros((7, 9), np.uint8)
    labels[1:6, 1:4], labels[1:6, 4:8] = 1, 2
    labels[3, 2:6] = 0
    tidied = clean_up(labels, anatomy(schema, {"kind": "holes", "structure": "LV+MYO", "most": 0.01}))
    assert tidied[3].tolist() == [0, 1, 1, 1, 2, 2, 2, 2, 0]


def test_a_hole_in_what_lies_in_another_structure_is_filled_with_the_inner_one(schema: LabelSchema) -> None:
    labels = np.zeros((11, 11), np.uint8)
    labels[1:10, 1:10], labels[3:8, 3:8], labels[5, 5] = 1, 2, 0
    tidied = clean_up(labels, anatomy(schema, {"kind": "holes", "structure": "LV", "most": 0.01, "of": "background"}))
    wanted = labels.copy()
    wanted[5, 5] = 2
    np.testing.assert_array_equal(tidied, wanted)


def test_volumes_are_tidied_as_they_are_checked(schema: LabelSchema) -> None:
    labels = np.zeros((2, 6, 6), np.uint8)
    labels[0, 1:4, 1:4] = 1
    labels[1, 4, 4] = 1
    rule = {"kind": "components", "structure": "LV", "most": 1}
    assert clean_up(labels, anatomy(schema, rule))[1].sum() == 0
    np.testing.assert_array_equal(clean_up(labels, anatomy(schema, rule, planes=True)), labels)
