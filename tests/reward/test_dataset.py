"""D_R on the disk: what is asked for is read, and training cannot tell it from records in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from medfm_rl.errors import DataError
from medfm_rl.reward.actions import ActionRecords
from medfm_rl.reward.corruption import add_blob, warp
from medfm_rl.reward.dataset import ActionDataset
from medfm_rl.reward.network import RewardNet
from medfm_rl.reward.origins import GROUND_TRUTH, ActionOrigin, Reference, ShardKey, origins_to_json
from medfm_rl.reward.patient_split import SplitRecords
from medfm_rl.reward.training import train_reward
from medfm_rl.settings import NetworkSettings, RewardSettings

Records = Callable[..., ActionRecords]
CPU = torch.device("cpu")
FIRST, SECOND = ShardKey(0, "source", 0), ShardKey(0, "target", 0)
CONSENSUS = Reference("consensus", 0.25)


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def images_in(folder: Path) -> list[Path]:
    return sorted((folder / "images").rglob("*.packed"))


@pytest.fixture
def stored(tmp_path: Path, make_records: Records) -> tuple[ActionDataset, ActionRecords]:
    """A data set of two shards, the first of which an earlier version wrote, and the same in memory."""
    old = make_records(("p1", "p2", "p3"), seed=1)
    new = make_records(("p2", "p4"), reference=CONSENSUS, seed=2)
    content = {
        "images": old.images.half(),
        "actions": old.actions,
        "references": old.references,
        "certainty": old.certainty.half(),
    }
    origins = json.dumps({**origins_to_json(old.origins), "format": 2})
    save_file(content, tmp_path / f"{FIRST}.safetensors", metadata={"origins": origins})
    dataset = ActionDataset(tmp_path)
    dataset.append(SECOND, new)
    return dataset, ActionRecords.concatenate([old, new])


def test_records_on_the_disk_are_those_in_memory(stored: tuple[ActionDataset, ActionRecords]) -> None:
    dataset, memory = stored
    disk = dataset.records()
    assert disk.origins == memory.origins == dataset.origins()
    assert (disk.actions_per_image, disk.spatial_dims) == (2, 2)
    assert disk.highest_labels() == memory.highest_labels()
    assert disk.highest_certainties() == memory.highest_certainties()
    for ours, theirs in (
        (disk, memory),
        (disk.of_patients(["p2", "p4"]), memory.of_patients(["p2", "p4"])),
        (disk.with_ground_truth(), memory.with_ground_truth()),
    ):
        rows, choice = torch.arange(len(theirs)).flip(0), torch.arange(len(theirs)) % 2
        for name, values in vars(theirs.batch(rows, choice)).items():
            found = getattr(ours.batch(rows, choice), name)
            assert found.dtype == values.dtype
            assert torch.equal(found, values), name
    assert len(disk.of_patients([])) == 0
    assert disk.of_patients([]).highest_labels() == []


def test_a_reward_network_learns_the_same_from_the_disk(tmp_path: Path) -> None:
    """Bit for bit, its calibration too."""
    generator = torch.Generator().manual_seed(0)
    references = torch.zeros(8, 16, 16, dtype=torch.uint8)
    references[:, 4:10, 5:12] = 1
    actions = torch.stack(
        [
            torch.stack([add_blob(warp(mask, generator, 0.06), 3, generator, 0.3) for _ in range(3)])
            for mask in references
        ]
    )
    images = (references[:, None] + 0.1 * torch.randn(8, 1, 16, 16, generator=generator)).half().float()
    origins = tuple(ActionOrigin(f"c{row}", f"p{row}", GROUND_TRUTH, ("policy",) * 3) for row in range(8))
    memory = ActionRecords(images, actions, references, torch.ones(references.shape), origins)
    dataset = ActionDataset(tmp_path)
    dataset.append(FIRST, memory)
    settings = RewardSettings(
        network=NetworkSettings(channels=(4, 8), residual_units=0, dropout=0.2), steps=6, validate_every=3, batch_size=4
    )
    nets = []
    for records in (memory, dataset.records()):
        torch.manual_seed(0)
        net = RewardNet(settings.network, 3)
        report = train_reward(net, SplitRecords.hold_out(records, {"p0", "p1"}), settings, 0, CPU)
        nets.append((net.state_dict(), report.losses, report.ece_after))
    (state, *told), (other, *other_told) = nets
    assert told == other_told
    assert all(torch.equal(value, other[name]) for name, value in state.items())


def test_an_image_that_comes_again_is_on_the_disk_once(tmp_path: Path, make_records: Records) -> None:
    dataset, records = ActionDataset(tmp_path), make_records(("p1", "p2", "p3"))
    dataset.append(FIRST, records)
    assert len(images_in(tmp_path)) == 3
    again = ActionRecords(
        records.images[[0, 0, 2]], 2 - records.actions, records.references, records.certainty, records.origins
    )
    dataset.append(SECOND, again)
    assert len(images_in(tmp_path)) == 3
    assert torch.equal(dataset.read(SECOND).images, again.images)


@pytest.mark.parametrize("how", ["gone", "truncated", "other"])
def test_an_image_that_is_not_what_its_name_says_is_named(tmp_path: Path, make_records: Records, how: str) -> None:
    dataset = ActionDataset(tmp_path)
    dataset.append(FIRST, make_records())
    first, second = images_in(tmp_path)
    match how:
        case "gone":
            first.unlink()
        case "truncated":
            first.write_bytes(first.read_bytes()[:-20])
        case "other":
            first.write_bytes(second.read_bytes())
    with pytest.raises(DataError, match=rf"{first.name}: .*delete the folder actions and resume"):
        dataset.read(FIRST)


def test_a_packed_action_that_is_damaged_is_named_when_it_is_read(tmp_path: Path, make_records: Records) -> None:
    dataset, path = ActionDataset(tmp_path), tmp_path / f"{FIRST}.safetensors"
    dataset.append(FIRST, make_records())
    content = bytearray(path.read_bytes())
    # The header of a safetensors file has its length before it; what follows is packed.
    first = 8 + int.from_bytes(content[:8], "little")
    content[first : first + 16] = bytes(16)
    path.write_bytes(bytes(content))
    records = dataset.records()
    with pytest.raises(DataError, match=r"00-source-000000\.safetensors: not a shard .* delete it and collect again"):
        records.actions_of([0], [0])


def test_shards_of_other_sizes_are_refused(tmp_path: Path, make_records: Records) -> None:
    dataset = ActionDataset(tmp_path)
    dataset.append(FIRST, make_records())
    dataset.append(SECOND, make_records(shape=(16, 24)))
    with pytest.raises(DataError, match=r"different shapes .*00-source.* \(1, 16, 16\) .*\(1, 16, 24\)"):
        dataset.records()


def test_an_integer_map_of_128_cubed_takes_some_tens_of_kilobytes(tmp_path: Path) -> None:
    """Nested ellipsoids, warped as policies are wrong: 2 MB each as they are."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, 128)] * 3, indexing="ij")
    radius = (axes[0] ** 2 + 1.4 * axes[1] ** 2 + 1.8 * axes[2] ** 2).sqrt()
    mask = (radius < 0.8).byte() + (radius < 0.6).byte() + (radius < 0.3).byte()
    generator = torch.Generator().manual_seed(0)
    actions = torch.stack([mask, warp(mask, generator), add_blob(mask, 4, generator), warp(mask, generator)])[None]
    records = ActionRecords(
        torch.zeros(1, 1, 128, 128, 128),
        actions,
        mask[None],
        torch.ones(1, 128, 128, 128),
        (ActionOrigin("c", "p", GROUND_TRUTH, ("policy",) * 4),),
    )
    dataset = ActionDataset(tmp_path)
    dataset.append(FIRST, records)
    assert disk_bytes(tmp_path) / 5 < 64_000
    assert np.array_equal(dataset.read(FIRST).actions.numpy(), actions.numpy())
