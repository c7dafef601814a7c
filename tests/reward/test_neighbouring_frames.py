from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medfm_rl.envs import RewardSource, SegmentationVecEnv
from medfm_rl.networks import argmax_classes
from medfm_rl.policies import DensePPO
from medfm_rl.reward.collection import ActionSampler, ImageSet
from medfm_rl.reward.consistency import ClipVotes, NeighbourWord
from medfm_rl.reward.informed import InformedReward
from medfm_rl.reward.measurements import ReportedValues, SizeGoal
from medfm_rl.reward.origins import Reference, origins_from_json, origins_to_json
from medfm_rl.reward.shape_prior import ShapePrior
from medfm_rl.reward.sources import NeighbouringFrames
from medfm_rl.settings import CollectSettings, PPOHyperparameters
from medfm_rl.types import GridAxes

SIZE = 24


class DarkIsInside(nn.Module):
    """Segments what is darker than the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor([1.0, -1.0]), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return -4 * (images - self.values[None, :, None, None]) ** 2


class EmptyPrior(ShapePrior):
    """Projects on an empty mask."""

    def __init__(self) -> None:
        nn.Module.__init__(self)

    def project(self, actions: Tensor, batch_size: int = 64) -> Tensor:
        return torch.zeros_like(actions)


def images() -> tuple[ImageSet, np.ndarray]:
    """A still, and a clip of five frames in which a bright bar lies over the disc of the third."""
    noise = np.random.default_rng(0).normal(1, 0.15, (SIZE, SIZE))
    rows, columns = np.mgrid[:SIZE, :SIZE]
    disc = (rows - 12) ** 2 + (columns - 12) ** 2 <= 49
    frames = np.repeat(np.where(disc, -1, noise)[None], 6, axis=0)
    frames[3, :, 13:16] = noise[:, 13:16]
    names = ("still", *(f"c_frame00{index}" for index in range(5)))
    found = torch.from_numpy(frames.astype(np.float32))[:, None]
    return ImageSet(found, names, ("p2", *("p1",) * 5)), disc


def source(valid: bool = True, **settings: float) -> NeighbouringFrames:
    sampler = ActionSampler(
        DarkIsInside().eval(),
        CollectSettings(actions_per_image=3, clip_images=7, **settings),  # type: ignore[arg-type]
        lambda logits, generator: argmax_classes(logits, dim=1),
        torch.device("cpu"),
    )

    def is_valid(mask: Tensor, axes: GridAxes) -> bool:
        return valid

    return NeighbouringFrames(sampler, images()[0], is_valid, EmptyPrior(), [[1, 2, 3, 4, 5]])


def test_a_frame_that_lost_a_part_is_taught_by_its_neighbours() -> None:
    made, (_, disc) = source(), images()
    assert (len(made), made.images_per_iteration, made.name) == (5, 7, "clip")
    records = made.collect([2, 0], torch.Generator().manual_seed(0))
    assert [origin.case_id for origin in records.origins] == ["c_frame002", "c_frame000"]
    assert {origin.reference for origin in records.origins} == {Reference("neighbours", 0.25)}
    reference, own = records.references[0].numpy(), records.actions[0, 0].numpy()
    assert own[12, 14] == 0
    assert reference[12, 14] == 1
    assert (reference == disc).mean() > 0.97
    # Where the frame and three of four votes say different things the reference counts less, or nothing.
    assert 0.0 <= float(records.certainty[0, 12, 14]) < float(records.certainty[0, 12, 8]) <= 0.25
    assert float(records.certainty[1, 12, 8]) == pytest.approx(0.25, abs=0.01)


def test_a_reference_that_breaks_the_rules_is_projected_on_the_shape_prior() -> None:
    records = source(valid=False).collect([1], torch.Generator().manual_seed(0))
    assert records.origins[0].reference == Reference("shape prior", 0.25)
    assert not records.references.any()


def test_references_by_neighbours_are_read_from_a_shard_as_they_were_written(tmp_path: Path) -> None:
    records = source().collect([1], torch.Generator().manual_seed(0))
    content = origins_to_json(records.origins)
    assert origins_from_json(tmp_path / "shard", content, records.certainty.numpy()) == records.origins


def votes() -> ClipVotes:
    segmenter = DarkIsInside()
    return ClipVotes(images()[0].images, [[1, 2, 3, 4, 5]], segmenter)


def unsure(shown: Tensor, actions: Tensor) -> Tensor:
    """A floor that says nothing."""
    del shown
    return torch.full(actions.shape, 0.5)


def test_actions_on_a_frame_are_rewarded_by_the_votes_of_its_neighbours() -> None:
    """The bar took pixel (12, 14) from the third frame: three of four votes say disc, and its own says the opposite."""
    _, disc = images()
    shown = {7: 3, 8: 0}
    reward = InformedReward(unsure, [NeighbourWord(votes(), shown, share=1.0)])
    assert isinstance(reward, RewardSource)
    whole, nothing = torch.from_numpy(disc).long(), torch.zeros(SIZE, SIZE, dtype=torch.int64)
    maps = reward.rewards(torch.zeros(3, 1, SIZE, SIZE), torch.stack([whole, nothing, whole]), [7, 7, 8])
    assert float(maps[0, 12, 14]) == pytest.approx(0.75, abs=0.01)
    assert float(maps[1, 12, 14]) == pytest.approx(0.25, abs=0.01)
    assert float(maps[0, 12, 8]) == pytest.approx(1.0, abs=0.01)
    # The still has no neighbours: the floor alone.
    assert maps[2].unique().tolist() == [0.5]
    # What the votes give to both classes is one.
    torch.testing.assert_close((maps[0] + maps[1])[whole == 1], torch.ones(int(whole.sum())))


def test_reports_and_neighbours_count_by_their_odds_in_any_order() -> None:
    """Odds against the floor: 1 for the report's 3/4, 3 for the neighbours' 1; the floor, 1/2, has 1 of 5."""
    _, disc = images()
    mask = torch.from_numpy(disc).long()
    pixels = float(mask.sum())
    reports = ReportedValues({0: [SizeGoal((1,), pixels + 4, 4.0)]})
    both = [reports, NeighbourWord(votes(), {0: 2}, share=0.75)]
    for informants in (both, both[::-1]):
        maps = InformedReward(unsure, informants).rewards(torch.zeros(1, 1, SIZE, SIZE), mask[None], [0])
        assert float(maps[0, 12, 8]) == pytest.approx((0.5 + 1 * 0.75 + 3 * 1) / 5, abs=0.01)
    with pytest.raises(ValueError, match="one informant at most"):
        InformedReward(unsure, [ReportedValues({}, share=1.0), NeighbourWord(votes(), {}, share=1.0)])


class DarkAndLearnt(nn.Module):
    """Dark pixels are inside, and what is learnt of each is added; it starts with the bar outside."""

    def __init__(self) -> None:
        super().__init__()
        self.correction = nn.Parameter(torch.zeros(SIZE, SIZE))

    def forward(self, shown: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(shown), -2 * shown + self.correction], dim=1)


def test_ppo_takes_back_what_one_frame_lost_without_a_learned_reward() -> None:
    _, disc = images()
    frame = images()[0].images[[3] * 8].numpy()
    reward = InformedReward(unsure, [NeighbourWord(votes(), dict.fromkeys(range(8), 3), share=1.0)])
    env = SegmentationVecEnv(frame, reward, 2, n_envs=8)
    policy = DarkAndLearnt()
    lost = torch.from_numpy(disc) & (policy(torch.from_numpy(frame[:1])).argmax(dim=1)[0] == 0)
    assert int(lost.sum()) >= 30
    chosen = PPOHyperparameters(learning_rate=0.2, kl_coef=0.0, exploration="independent")
    DensePPO(env, policy, chosen, seed=0, device="cpu").learn(8 * 20)
    found = policy(torch.from_numpy(frame[:1])).argmax(dim=1)[0] == 1
    assert float(found[lost].float().mean()) > 0.9
    assert float((found == torch.from_numpy(disc)).float().mean()) > 0.97
