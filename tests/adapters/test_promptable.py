"""Promptable segmenters: kept embeddings, channels that are no grey values, and the tool's own estimate."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from support.on_cuda import assert_the_gpu_gives_the_masks_of_the_cpu
from support.promptable_models import TinyPromptable, write_tiny

from medfm_rl.adapters.embeddings import EmbeddingCache
from medfm_rl.adapters.sam.prompts import boxes_of
from medfm_rl.augmentation.appearance import randomise_appearance
from medfm_rl.augmentation.shape import augment_pair
from medfm_rl.correction.optimiser import _WeightSearch
from medfm_rl.envs import SegmentationVecEnv
from medfm_rl.errors import ModelError
from medfm_rl.policies import DensePPO
from medfm_rl.quality.baselines import BoxAgreement, PredictedIoU
from medfm_rl.reward.network import RewardNet
from medfm_rl.settings import (
    CorrectionSettings,
    FilePrompts,
    NetworkSettings,
    PPOHyperparameters,
    PromptableDescription,
)
from medfm_rl.types import Case, Geometry

BOXES = {"LV": [0.2, 0.2, 0.6, 0.7], "LA": [0.3, 0.7, 0.7, 0.95]}
DESCRIPTION = PromptableDescription.model_validate(
    {"kind": "litemedsam", "structures": {"LV": 1, "LA": 2}, "prompts": {"kind": "fixed", "boxes": BOXES}}
)


@pytest.fixture
def tiny() -> TinyPromptable:
    TinyPromptable.encoded.clear()
    return TinyPromptable(DESCRIPTION).eval()


def test_prompts_of_the_settings_are_found_again_from_the_exported_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path of the caller's, exported as it stands, would count from the exported folder."""
    segmenter = write_tiny(tmp_path / "models" / "tiny", {"kind": "fixed", "boxes": BOXES}, {"LV": 1, "LA": 2})
    (tmp_path / "boxes.json").write_text('{"p0": {"LV": [3, 4, 20, 25]}}')
    monkeypatch.chdir(tmp_path)
    prompts = FilePrompts(kind="from_file", path=Path("boxes.json"))
    adapter = TinyPromptable.load(segmenter, prompts)
    adapter.export(tmp_path / "runs" / "model")
    monkeypatch.chdir(tmp_path / "runs")
    exported = TinyPromptable.load(tmp_path / "runs" / "model")
    assert torch.equal(images_of(exported, 1), images_of(adapter, 1))
    assert exported.prompt_hash("p0") == adapter.prompt_hash("p0")


def images_of(adapter: TinyPromptable, count: int) -> torch.Tensor:
    cases = [
        Case(
            f"p{index}",
            f"p{index}",
            np.random.default_rng(index).normal(size=(1, 40, 36)).astype(np.float32),
            Geometry.unknown(2),
        )
        for index in range(count)
    ]
    return torch.stack([adapter.preprocess(case).image for case in cases])


def freeze_encoder(adapter: TinyPromptable) -> None:
    adapter.requires_grad_(False)
    for parameter in adapter.trainable("decoder").values():
        parameter.requires_grad_(True)


def silent(_: TinyPromptable, embeddings: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, None]:
    """The decoder of a tool that makes no estimate."""
    del embeddings
    return torch.zeros(*boxes.shape[:2], 32, 32), None


def test_the_tool_is_asked_about_any_mask_by_the_boxes_of_its_structures(
    tiny: TinyPromptable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From an IoU of .25 comes a Dice of .4, and a structure that the mask lacks has none."""
    action = torch.zeros(32, 32, dtype=torch.uint8)
    action[4:9, 6:20] = 1
    asked = []

    def judged(_: TinyPromptable, embeddings: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(boxes[0].tolist())
        return torch.zeros(1, 2, 32, 32), torch.full((1, 2), 0.25)

    monkeypatch.setattr(TinyPromptable, "decode", judged)
    estimate = tiny.own_estimate(images_of(tiny, 1)[0], action)
    assert estimate is not None
    assert estimate.tolist() == pytest.approx([0.4, 0.0])
    assert asked[0][0] == [6, 4, 19, 8]
    monkeypatch.setattr(TinyPromptable, "decode", silent)
    assert tiny.own_estimate(images_of(tiny, 1)[0], action) is None


def test_to_ask_about_a_mask_that_was_just_made_encodes_nothing(tiny: TinyPromptable) -> None:
    image = images_of(tiny, 1)
    freeze_encoder(tiny)
    action = tiny(image)[0].argmax(dim=0)
    tiny.own_estimate(image[0], action)
    assert TinyPromptable.encoded == [1]


def test_a_frozen_encoder_runs_once_for_an_image(tiny: TinyPromptable) -> None:
    images = images_of(tiny, 3)
    # With gradients of the encoder nothing is kept.
    expected = tiny(images).detach()
    freeze_encoder(tiny)
    tiny.encoded.clear()
    for rows in ([0, 1], [1, 2], [2, 0, 1], [1, 1]):
        assert torch.allclose(tiny(images[rows]), expected[rows], atol=1e-6)
    assert tiny.encoded == [2, 1]
    tiny(images[:2]).sum().backward()
    assert all(parameter.grad is not None for parameter in tiny.trainable("decoder").values())


def test_an_encoder_that_learns_holds_one_image_at_a_time(tiny: TinyPromptable) -> None:
    """Each image is encoded once, and again in the backward pass; the gradients are those of the batch."""
    images = images_of(tiny, 3)
    parameters = list(tiny.trainable("all").values())
    logits = tiny.module.encoder(images[:, :1])
    boxes, _ = tiny._boxes(images, None)
    expected = torch.autograd.grad(tiny.decode(logits, boxes)[0].square().mean(), parameters)
    tiny.encoded.clear()
    embeddings = tiny._embeddings(images)
    assert tiny.encoded == [1, 1, 1]
    found = torch.autograd.grad(tiny.decode(embeddings, boxes)[0].square().mean(), parameters)
    assert tiny.encoded == [1] * 6
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_an_encoder_with_statistics_of_the_batch_sees_the_batch(tiny: TinyPromptable) -> None:
    tiny.module.encoder[1] = torch.nn.BatchNorm2d(6)
    images = images_of(tiny, 3)
    for training, expected in ((True, [3]), (False, [1, 1, 1])):
        tiny.encoded.clear()
        tiny.train(training)
        tiny(images)
        assert tiny.encoded == expected


def test_structures_within_others_learn(tiny: TinyPromptable) -> None:
    tiny.description = DESCRIPTION.model_copy(update={"contains": {"LA": ("LV",)}})
    tiny(images_of(tiny, 2)).log_softmax(dim=1)[:, 2].sum().backward()
    assert all(parameter.grad is not None for parameter in tiny.trainable("all").values())


def test_other_boxes_need_no_other_embedding(tiny: TinyPromptable) -> None:
    freeze_encoder(tiny)
    images = images_of(tiny, 1)
    one = tiny(images)
    images[:, 1:] = images[:, 1:].roll(3, dims=-1)
    assert not torch.equal(tiny(images), one)
    assert tiny.encoded == [1]


def test_other_weights_need_another_embedding(tiny: TinyPromptable) -> None:
    freeze_encoder(tiny)
    images = images_of(tiny, 1)
    before = tiny(images)
    other = copy.deepcopy(tiny)
    with torch.no_grad():
        next(other.module.encoder.parameters()).add_(1)
    changed = other(images)
    assert not torch.equal(changed, before)
    tiny.load_state_dict(other.state_dict())
    assert torch.equal(tiny(images), changed)


def test_the_images_of_the_last_calls_are_kept_and_no_more() -> None:
    made: list[int] = []

    def encode(images: torch.Tensor) -> torch.Tensor:
        made.append(len(images))
        return 2 * images

    cache, images = EmbeddingCache(least=2), torch.arange(4.0)[:, None]
    for rows in ([0, 1], [2], [0], [1, 2, 3], [1, 2, 3]):
        assert torch.equal(cache.of(images[rows], encode, "frozen"), 2 * images[rows])
    # Image 0 was pushed out by 2, 1 by 0; a larger batch is kept whole.
    assert made == [2, 1, 1, 2]
    cache.of(images[:1], encode, "other weights")
    assert made[-1] == 1


def test_many_images_are_encoded_a_few_at_a_time() -> None:
    made: list[int] = []

    def encode(images: torch.Tensor) -> torch.Tensor:
        made.append(len(images))
        return 2 * images

    images = torch.arange(10.0)[:, None]
    assert torch.equal(EmbeddingCache().of(images, encode, "frozen"), 2 * images)
    assert made == [4, 4, 2]


def test_an_encoder_that_ppo_has_moved_gives_other_embeddings(tiny: TinyPromptable) -> None:
    """The cache goes by the count of writes to a weight, which the optimiser's fused kernel does not raise."""
    images = images_of(tiny, 4)
    env = SegmentationVecEnv(images.numpy(), lambda _, actions: (actions > 0).float(), 3, n_envs=4)
    ppo = DensePPO(env, tiny, PPOHyperparameters(kl_coef=0.0, learning_rate=1e-1), device="cpu")
    with torch.no_grad():
        before = tiny(images)
    ppo.learn(4)
    with torch.no_grad():
        after = tiny(images)
        # With gradients some processors take another kernel, which rounds otherwise.
        copied = copy.deepcopy(tiny)(images)
    assert not torch.equal(after, before)
    assert torch.equal(after, copied)


@pytest.mark.cuda
def test_a_gpu_gives_the_masks_of_the_cpu(tiny: TinyPromptable) -> None:
    image = np.random.default_rng(0).normal(size=(1, 40, 36)).astype(np.float32)
    assert_the_gpu_gives_the_masks_of_the_cpu(tiny, Case("p", "p", image, Geometry.unknown(2)))


@pytest.mark.parametrize(("scope", "expected"), [("decoder", 4), ("all", 4 * 5 * 2)])
def test_inner_epochs_of_ppo_run_a_frozen_encoder_once(tiny: TinyPromptable, scope: str, expected: int) -> None:
    """One that learns runs in each of them, and again in its backward pass."""
    images = images_of(tiny, 4)
    env = SegmentationVecEnv(images.numpy(), lambda _, actions: (actions > 0).float(), 3, n_envs=4)
    trainable = list(tiny.trainable(scope).values())  # type: ignore[arg-type]
    settings = PPOHyperparameters(kl_coef=0.0, n_epochs=5, learning_rate=1e-2)
    ppo = DensePPO(env, tiny, settings, trainable=trainable, device="cpu")
    ppo.learn(4)
    assert sum(tiny.encoded) == expected


def test_steps_on_weights_of_the_decoder_run_the_encoder_once(tiny: TinyPromptable) -> None:
    search = _WeightSearch(tiny, images_of(tiny, 1)[0], "decoder", CorrectionSettings(optimise="decoder"))
    optimiser = torch.optim.SGD(search.parameters, 0.1)
    first = search.logits()
    for _ in range(3):
        search.logits().square().sum().backward()
        optimiser.step()
    assert not torch.equal(search.logits(), first)
    assert sum(tiny.encoded) == 1


def test_another_appearance_leaves_boxes_alone(tiny: TinyPromptable) -> None:
    images, generator = images_of(tiny, 8), torch.Generator().manual_seed(0)
    shown = randomise_appearance(images, images.flip(0), 1.0, generator, tiny.intensity_channels)
    assert torch.equal(shown[:, 1:], images[:, 1:])
    assert all(not torch.equal(*pair) for pair in zip(shown[:, 0], images[:, 0], strict=True))


def test_boxes_move_with_the_image_and_keep_their_values(tiny: TinyPromptable) -> None:
    images, generator = images_of(tiny, 6), torch.Generator().manual_seed(0)
    # A structure that fills its box moves as the box does.
    labels = (images[:, 1] > 0.5).to(torch.uint8)
    moved, target = augment_pair(images, labels, generator, strength=2.0, channels=tiny.intensity_channels)
    assert 0 <= moved[:, 1:].min() <= moved[:, 1:].max() <= 1
    boxes, there = boxes_of(moved[:, 1:2])
    assert there.all()
    assert not torch.allclose(boxes, boxes_of(images[:, 1:2])[0], atol=0.5)
    for box, mask in zip(boxes[:, 0], target, strict=True):
        rows, columns = torch.nonzero(mask.any(dim=1))[:, 0], torch.nonzero(mask.any(dim=0))[:, 0]
        found = torch.stack([columns[0], rows[0], columns[-1], rows[-1]]).float()
        assert (box - found).abs().max() <= 1.5


def test_reward_networks_do_not_see_boxes(tiny: TinyPromptable) -> None:
    torch.manual_seed(0)
    net = RewardNet(NetworkSettings(channels=(4, 8), residual_units=0), 3, tiny.intensity_channels).eval()
    images = images_of(tiny, 2)
    actions = torch.randint(3, (2, 32, 32), generator=torch.Generator().manual_seed(0))
    without = images.clone()
    without[:, 1:] = 0
    assert torch.equal(net(images, actions), net(without, actions))


def test_boxes_that_hardly_move_agree_and_those_that_do_do_not(tiny: TinyPromptable) -> None:
    image = images_of(tiny, 1)[0]
    with torch.no_grad():
        action = tiny(image[None])[0].argmax(dim=0).to(torch.uint8)
    assert BoxAgreement(tiny, jitter=0.0).estimate(image, action) == pytest.approx(1.0)
    scores = [BoxAgreement(tiny, jitter=jitter).estimate(image, action) for jitter in (1.0, 3.0, 8.0)]
    assert sorted(scores, reverse=True) == scores
    assert scores[-1] < 0.9
    assert BoxAgreement(tiny, jitter=3.0).estimate(image, action) == scores[1]


def test_the_own_estimate_is_of_the_structures_that_have_a_box(tiny: TinyPromptable) -> None:
    image = images_of(tiny, 1)[0]
    estimates = tiny.predicted_iou(image[None])[0]
    assert ((estimates > 0) & (estimates < 1)).all()
    action = torch.zeros(32, 32, dtype=torch.uint8)
    assert PredictedIoU(tiny).estimate(image, action) == pytest.approx(float(estimates.mean()))
    image[2] = 0
    assert tiny.predicted_iou(image[None])[0].isnan().tolist() == [False, True]
    assert PredictedIoU(tiny).estimate(image, action) == pytest.approx(float(estimates[0]))
    image[1] = 0
    assert PredictedIoU(tiny).estimate(image, action) == 0.0


def test_a_tool_without_an_estimate_says_so(tiny: TinyPromptable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TinyPromptable, "decode", silent)
    with pytest.raises(ModelError, match="makes no estimate of its own masks"):
        tiny.predicted_iou(images_of(tiny, 1))
