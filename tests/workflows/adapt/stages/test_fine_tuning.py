from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from medfm_rl.adapters import add_low_rank
from medfm_rl.adapters.lora import low_rank_parameters
from medfm_rl.augmentation.appearance import randomise_appearance
from medfm_rl.data.stored_rows import RowsFolder, StoredRows
from medfm_rl.settings import FineTuningSettings, LoRASettings
from medfm_rl.workflows.adapt.stages.fine_tuning import FineTuningImages, blend_with_initial, fine_tune

CPU = torch.device("cpu")


def make_source() -> tuple[Tensor, Tensor]:
    """Bright squares on a dark background, and their masks."""
    masks = torch.zeros(12, 16, 16, dtype=torch.uint8)
    for row in range(12):
        masks[row, 2 + row % 4 : 10 + row % 4, 3:11] = 1
    return masks[:, None].float() * 2 - 0.5, masks


def make_segmenter() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))


def run(segmenter: nn.Module, seed: int = 0, **settings: float) -> None:
    parameters = [parameter for parameter in segmenter.parameters() if parameter.requires_grad]
    images, masks = make_source()
    values = {"steps": 60, "batch_size": 6, "learning_rate": 0.02, **settings}
    shown = FineTuningImages((images, masks), 0.3 * images + 0.2)
    fine_tune(segmenter, parameters, shown, FineTuningSettings(**values), seed)


def accuracy(segmenter: nn.Module, images: Tensor, masks: Tensor) -> float:
    with torch.no_grad():
        return float((segmenter(images).argmax(dim=1) == masks).float().mean())


def test_images_in_the_look_of_the_target_are_segmented_afterwards() -> None:
    segmenter = make_segmenter()
    images, masks = make_source()
    target = 0.3 * images + 0.2
    before = accuracy(segmenter, target, masks)
    run(segmenter)
    assert accuracy(segmenter, target, masks) > max(0.95, before)


def test_batch_statistics_stay_those_of_the_pretrained_network() -> None:
    segmenter = make_segmenter()
    before = {name: value.clone() for name, value in segmenter.named_buffers()}
    run(segmenter, steps=3)
    assert all(torch.equal(value, before[name]) for name, value in segmenter.named_buffers())
    assert not segmenter.training


def test_only_the_chosen_parameters_move() -> None:
    segmenter = make_segmenter()
    segmenter[0].requires_grad_(False)
    before = {name: value.clone() for name, value in segmenter.named_parameters()}
    run(segmenter, steps=3)
    moved = {name for name, value in segmenter.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"1.weight", "1.bias", "3.weight", "3.bias"}


def test_the_same_seed_gives_the_same_weights() -> None:
    results = []
    for seed in (0, 0, 1):
        segmenter = make_segmenter()
        run(segmenter, seed=seed, steps=5)
        results.append(segmenter[0].weight.detach().clone())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def weights_after(**settings: float) -> Tensor:
    segmenter = make_segmenter()
    run(segmenter, **settings)
    return segmenter[0].weight.detach()


def test_target_images_join_at_their_time_and_with_their_weight() -> None:
    without = weights_after(steps=6, target_weight=0)
    assert torch.equal(weights_after(steps=6, target_start=1.0), without)
    assert not torch.equal(weights_after(steps=6, target_start=0.5), without)


def test_target_masks_are_those_of_the_segmenter_when_they_join() -> None:
    """A segmenter that is right about the target stays right when it learns from nothing else."""
    segmenter = make_segmenter()
    run(segmenter)
    images, masks = make_source()
    target = 0.3 * images + 0.2
    before = accuracy(segmenter, target, masks)
    # Source masks that are wrong everywhere teach the opposite, unless the target outweighs them.
    for weight, compare in ((0.0, float.__lt__), (20.0, float.__ge__)):
        learner = make_segmenter()
        learner.load_state_dict(segmenter.state_dict())
        settings = FineTuningSettings(
            steps=60, batch_size=6, learning_rate=0.02, target_start=0.0, target_weight=weight, source_share=0.0
        )
        fine_tune(learner, list(learner.parameters()), FineTuningImages((images, 1 - masks), target), settings, 0)
        assert compare(accuracy(learner, target, masks), before - 0.05)


def test_without_a_source_the_segmenter_learns_from_its_own_masks_in_other_looks() -> None:
    """It keeps what it knows of the target, and answers its random looks better than before."""
    segmenter = make_segmenter()
    run(segmenter, source_share=0.0, appearance_strength=0.0)
    images, masks = make_source()
    target = 0.3 * images + 0.2
    looks = randomise_appearance(target, None, 3.0, torch.Generator().manual_seed(1))
    plain, changed = accuracy(segmenter, target, masks), accuracy(segmenter, looks, masks)
    settings = FineTuningSettings(steps=80, batch_size=6, learning_rate=0.02, appearance_strength=3.0, source_share=0.0)
    fine_tune(segmenter, list(segmenter.parameters()), FineTuningImages(None, target), settings, 0)
    assert accuracy(segmenter, target, masks) > plain - 0.02
    assert accuracy(segmenter, looks, masks) > changed


class Waves(nn.Module):
    """Right where its weight is near a whole number, and wrong half-way between two; or from some weight on."""

    def __init__(self, right_from: float | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.right_from = right_from

    def forward(self, images: Tensor) -> Tensor:
        sign = torch.cos(2 * torch.pi * self.weight) if self.right_from is None else self.weight - self.right_from
        return torch.cat([torch.zeros_like(images), images * sign], dim=1)


def test_weights_are_blended_with_the_initial_ones_as_far_as_costs_nothing_on_the_source() -> None:
    masks = make_source()[1]
    images = masks[:, None].float() * 2 - 1
    segmenter, initial = Waves(), {"weight": torch.zeros(())}
    # .6 and .7 are on the wrong side of the wave, .8 is not.
    assert blend_with_initial(segmenter, initial, 0.4, (images, masks), CPU) == pytest.approx(0.2)
    assert segmenter.weight.item() == pytest.approx(0.8)
    # Where nothing is known the share is taken as it is.
    segmenter = Waves()
    assert blend_with_initial(segmenter, initial, 0.4, None, CPU) == pytest.approx(0.4)
    # Where every step back costs, none is made.
    segmenter = Waves(right_from=0.99)
    assert blend_with_initial(segmenter, initial, 0.4, (images, masks), CPU) == 0.0
    assert segmenter.weight.item() == 1.0


def test_the_result_has_the_share_of_the_source() -> None:
    initial = make_segmenter()[0].weight.detach()
    plain = weights_after(steps=5, target_weight=0, source_share=0.0)
    drawn = weights_after(steps=5, target_weight=0, source_share=0.25)
    torch.testing.assert_close(drawn, 0.25 * initial + 0.75 * plain)


@pytest.mark.parametrize("low_rank", [False, True])
def test_the_result_is_the_mean_of_the_weights_after_the_last_quarter_of_the_steps(low_rank: bool) -> None:
    segmenter = make_segmenter()
    if low_rank:
        parameters = dict(segmenter.named_parameters())
        add_low_rank(segmenter, parameters, LoRASettings(rank=2), torch.Generator().manual_seed(0))
    images, masks = make_source()
    seen: list[Tensor] = []
    fine_tune(
        segmenter,
        list((low_rank_parameters(segmenter) or dict(segmenter.named_parameters())).values()),
        FineTuningImages((images, masks), 0.3 * images + 0.2),
        FineTuningSettings(steps=8, batch_size=6, learning_rate=0.02, source_share=0.0),
        0,
        lambda *_: seen.append(segmenter[0].weight.detach().clone()),
    )
    assert len(seen) == 8
    torch.testing.assert_close(segmenter[0].weight.detach(), (seen[6] + seen[7]) / 2)
    assert not torch.equal(seen[6], seen[7])


def test_what_will_be_used_on_mirrored_images_learns_from_them() -> None:
    """Squares lie to the left in the source; a network that also looks at mirrored images has to know the right too."""
    images, masks = make_source()
    found = []
    for axes in ((), (1,)):
        torch.manual_seed(0)
        # It sees where it is: the columns are an input of their own.
        segmenter = nn.Sequential(nn.Conv2d(2, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 2, 5, padding=2))
        placed = torch.cat([images, torch.linspace(-1, 1, 16).expand_as(images)], dim=1)
        settings = FineTuningSettings(
            steps=80, batch_size=6, learning_rate=0.02, source_share=0.0, shape_strength=0.0, elastic=0.0
        )
        shown = FineTuningImages((placed, masks), placed, intensity_channels=1, mirror_axes=axes)
        fine_tune(segmenter, list(segmenter.parameters()), shown, settings, 0)
        mirrored = accuracy(segmenter, placed.flip(3), masks.flip(2))
        found.append(mirrored)
    assert found[1] > max(0.95, found[0])


def test_a_loss_that_is_not_finite_names_the_setting() -> None:
    segmenter = make_segmenter()
    with torch.no_grad():
        segmenter[3].weight[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"fine_tuning\.learning_rate"):
        run(segmenter, steps=1)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_step_that_is_cut_learns_as_a_whole_one(monkeypatch: pytest.MonkeyPatch, recompute: bool) -> None:
    images, masks = make_source()
    found = []
    for at_once in (16, 2):
        monkeypatch.setattr(
            "medfm_rl.workflows.adapt.stages.fine_tuning.images_at_once",
            lambda grid, most=16, size=at_once: min(size, most),
        )
        segmenter = make_segmenter()
        fine_tune(
            segmenter,
            list(segmenter.parameters()),
            FineTuningImages((images, masks), 0.3 * images + 0.2),
            FineTuningSettings(steps=6, batch_size=6, target_batch_size=3, learning_rate=0.01),
            0,
            recompute=recompute,
        )
        found.append(segmenter.state_dict())
    assert all(torch.allclose(value, found[1][name], atol=1e-4) for name, value in found[0].items())


def test_images_on_the_disk_teach_as_those_in_memory(tmp_path: Path) -> None:
    images, masks = make_source()
    place = RowsFolder(tmp_path)
    states = []
    for stored in (False, True):
        segmenter, target = make_segmenter(), 0.3 * images + 0.2
        shown = FineTuningImages((images, masks), target)
        if stored:
            rows = [
                StoredRows.of(tmp_path / f"{index}.rows", each) for index, each in enumerate((images, masks, target))
            ]
            shown = FineTuningImages((rows[0], rows[1]), rows[2], place=place)
        fine_tune(segmenter, list(segmenter.parameters()), shown, FineTuningSettings(steps=6, batch_size=6), 0)
        states.append(segmenter.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
