from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import ndimage
from torch import Tensor

from medfm_rl.errors import DataError, ModelError
from medfm_rl.reward.shape_prior import ShapePrior, train_shape_prior
from medfm_rl.settings import ShapePriorSettings

K = 3
CPU = torch.device("cpu")
QUICK = ShapePriorSettings(latent=4, epochs=1, batch_size=4)


def rings(count: int, seed: int, shape: tuple[int, ...] = (24, 28)) -> Tensor:
    """Class 1 within a ring of class 2, of many sizes and places."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.arange(side) for side in shape), indexing="ij")
    masks = np.zeros((count, *shape), np.uint8)
    for mask in masks:
        centre = [side / 2 + rng.uniform(-2, 2) for side in shape]
        distance = np.sqrt(sum((axis - middle) ** 2 for axis, middle in zip(axes, centre, strict=True)))
        radius = rng.uniform(0.25, 0.4) * min(shape)
        mask[distance < radius] = 2
        mask[distance < 0.6 * radius] = 1
    return torch.from_numpy(masks)


def dice(ours: Tensor, theirs: Tensor) -> float:
    """Mean over the structures."""
    values = []
    for label in range(1, K):
        a, b = ours == label, theirs == label
        values.append(2 * float((a & b).sum()) / float(a.sum() + b.sum()))
    return float(np.mean(values))


@pytest.fixture(scope="module")
def prior() -> ShapePrior:
    settings = ShapePriorSettings(latent=8, epochs=40, batch_size=16)
    return train_shape_prior(rings(96, seed=0), K, settings, seed=0, device=CPU)


def test_plausible_masks_come_back_nearly_as_they_were(prior: ShapePrior) -> None:
    masks = rings(16, seed=1)
    projected = prior.project(masks)
    assert projected.shape == masks.shape
    assert projected.dtype == torch.uint8
    scores = [dice(ours, theirs) for ours, theirs in zip(projected, masks, strict=True)]
    assert np.mean(scores) > 0.9
    # It answers each mask, and not with the mean of all.
    rolled = [dice(ours, theirs) for ours, theirs in zip(projected, masks.roll(1, 0), strict=True)]
    assert np.mean(rolled) < np.mean(scores) - 0.05


def broken(masks: Tensor, how: str) -> Tensor:
    masks = masks.clone()
    match how:
        case "an island":
            masks[:, 1:4, 1:4] = 1
        case "a hole":
            masks[:, 10:14, 12:16] = 0
        case "a blob on the ring":
            masks[:, 4:9, 12:17] = 1
    return masks


@pytest.mark.parametrize("how", ["an island", "a hole", "a blob on the ring"])
def test_broken_masks_are_repaired(prior: ShapePrior, how: str) -> None:
    masks = rings(16, seed=2)
    damaged = broken(masks, how)
    repaired = prior.project(damaged)
    assert float((damaged != masks).float().mean()) > 0.01
    assert np.mean([dice(ours, theirs) for ours, theirs in zip(repaired, masks, strict=True)]) > 0.8
    if how == "an island":
        assert all(ndimage.label(mask > 0)[1] == 1 for mask in repaired.numpy())
        # As if the island had never been there, but for pixels at the contours.
        assert float((repaired != prior.project(masks)).float().mean()) < 0.02
    if how == "a hole":
        filled = [ndimage.binary_fill_holes(mask > 0) for mask in repaired.numpy()]
        assert all((mask > 0).sum() == whole.sum() for mask, whole in zip(repaired.numpy(), filled, strict=True))


def test_a_projection_is_always_the_same_and_does_not_depend_on_batch_mates(prior: ShapePrior) -> None:
    masks = rings(4, seed=3)
    together = prior.project(masks)
    assert torch.equal(prior.project(masks), together)
    alone = torch.cat([prior.project(mask[None]) for mask in masks])
    # Convolutions of other batch sizes may round differently where two classes tie.
    assert float((alone != together).float().mean()) < 0.002


@pytest.mark.parametrize("fill", [0, 1, K - 1])
def test_masks_of_one_class_are_projected_too(prior: ShapePrior, fill: int) -> None:
    projected = prior.project(torch.full((1, 24, 28), fill, dtype=torch.uint8))
    assert projected.shape == (1, 24, 28)
    assert int(projected.max()) < K


def test_a_trained_prior_is_frozen_and_in_evaluation_mode(prior: ShapePrior) -> None:
    assert not any(module.training for module in prior.modules())
    assert not any(parameter.requires_grad for parameter in prior.parameters())


@pytest.mark.parametrize("shape", [(16, 16), (20, 45), (7, 9), (12, 16, 18)])
def test_any_grid_can_be_projected(shape: tuple[int, ...]) -> None:
    """Sides that the network cannot halve four times are resampled inside."""
    trained = train_shape_prior(rings(3, 0, shape), K, QUICK, seed=0, device=CPU)
    projected = trained.project(rings(2, 1, shape))
    assert projected.shape == (2, *shape)
    assert int(projected.max()) < K


def test_the_same_seed_gives_the_same_prior_and_leaves_the_global_generator_alone() -> None:
    def train(seed: int, global_seed: int) -> dict[str, Tensor]:
        torch.manual_seed(global_seed)
        expected = torch.rand(3)
        torch.manual_seed(global_seed)
        trained = train_shape_prior(rings(6, 0), K, QUICK, seed=seed, device=CPU)
        assert torch.equal(torch.rand(3), expected)
        return trained.state_dict()

    first, same, other = train(0, 0), train(0, 99), train(1, 0)
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


@pytest.mark.parametrize(("masks", "epochs", "batch_size"), [(1, 1, 16), (1, 3, 1), (5, 2, 2)])
def test_few_masks_and_few_epochs_train_and_say_how_far_they_are(masks: int, epochs: int, batch_size: int) -> None:
    calls: list[tuple[int, int]] = []
    settings = ShapePriorSettings(latent=2, epochs=epochs, batch_size=batch_size)
    train_shape_prior(rings(masks, 0), K, settings, 0, CPU, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(epoch + 1, epochs) for epoch in range(epochs)]


def test_no_valid_mask_to_learn_from_is_said() -> None:
    with pytest.raises(DataError, match="needs masks and there is none that the anatomy rules call valid"):
        train_shape_prior(rings(0, 0), K, QUICK, seed=0, device=CPU)


def test_a_saved_prior_projects_the_same_when_it_comes_back(tmp_path: Path, prior: ShapePrior) -> None:
    prior.save(tmp_path / "prior")
    loaded = ShapePrior.load(tmp_path / "prior")
    masks = rings(4, seed=4)
    one_hot = torch.nn.functional.one_hot(masks.long(), K).movedim(-1, 1).float()
    assert torch.equal(loaded(one_hot), prior(one_hot))
    assert torch.equal(loaded.project(masks), prior.project(masks))
    assert (loaded.num_classes, loaded.size, loaded.latent) == (K, (24, 28), 8)
    assert not loaded.training
    assert sorted(path.name for path in (tmp_path / "prior").iterdir()) == ["shape_prior.json", "weights.safetensors"]


def test_a_full_disk_leaves_no_half_prior(
    tmp_path: Path, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    with full_disk(), pytest.raises(DataError, match="prior: cannot be written"):
        ShapePrior(K, (16, 16), 2).save(tmp_path / "prior")
    assert list(tmp_path.iterdir()) == []


def damage(folder: Path, how: str) -> None:
    description, weights = folder / "shape_prior.json", folder / "weights.safetensors"
    content = json.loads(description.read_text())
    match how:
        case "no description":
            description.unlink()
        case "no weights":
            weights.unlink()
        case "half the weights":
            weights.write_bytes(weights.read_bytes()[:-50])
        case "a description that is no JSON":
            description.write_text("{")
        case "no size":
            description.write_text(json.dumps({**content, "size": None}))
        case "another code":
            description.write_text(json.dumps({**content, "latent": content["latent"] + 1}))


@pytest.mark.parametrize(
    "how",
    ["no description", "no weights", "half the weights", "a description that is no JSON", "no size", "another code"],
)
def test_a_folder_that_is_no_shape_prior_is_named(tmp_path: Path, how: str) -> None:
    ShapePrior(K, (16, 16), 2).save(tmp_path / "prior")
    assert load_file(tmp_path / "prior" / "weights.safetensors")
    damage(tmp_path / "prior", how)
    with pytest.raises(
        ModelError, match=r"(?s)prior(: not a shape prior |/shape_prior\.json: ).*delete the folder and resume"
    ):
        ShapePrior.load(tmp_path / "prior")
