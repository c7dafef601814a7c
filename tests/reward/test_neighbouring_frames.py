from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medfm_rl.networks import argmax_classes
from medfm_rl.reward.collection import ActionSampler, ImageSet
from medfm_rl.reward.origins import Reference, origins_from_json, origins_to_json
from medfm_rl.reward.shape_prior import ShapePrior
from medfm_rl.reward.sources import NeighbouringFrames
from medfm_rl.settings import CollectSettings
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

    return NeighbouringFrames(sampler, images()[0], [[1, 2, 3, 4, 5]], is_valid, EmptyPrior())


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
