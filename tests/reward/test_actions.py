from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from medfm_rl.data.stored_rows import ArrayStore
from medfm_rl.errors import DataError
from medfm_rl.reward.actions import ActionRecords
from medfm_rl.reward.dataset import ActionDataset
from medfm_rl.reward.origins import GROUND_TRUTH, ActionOrigin, Reference, ShardKey, origins_to_json
from medfm_rl.reward.patient_split import patient_folds
from medfm_rl.reward.shards import open_shard

Records = Callable[..., ActionRecords]
CONSENSUS = Reference("consensus", 0.25)
A, B = ShardKey(0, "source", 0), ShardKey(0, "target", 0)


def assert_same(ours: ActionRecords, theirs: ActionRecords) -> None:
    assert ours.origins == theirs.origins
    for name in ("images", "actions", "references", "certainty"):
        assert getattr(ours, name).dtype == getattr(theirs, name).dtype, name
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def all_of(dataset: ActionDataset) -> ActionRecords:
    return ActionRecords.concatenate([dataset.read(key) for key in dataset.shards()])


def origins_of(patients: list[str]) -> ActionRecords:
    """Records of one pixel each: only their patients matter."""
    one = torch.zeros(len(patients), 1, 1)
    origins = tuple(ActionOrigin(f"{p}_{row}", p, CONSENSUS, ("policy",)) for row, p in enumerate(patients))
    return ActionRecords(one[:, None], one[:, None].byte(), one.byte(), one, origins)


@settings(deadline=None, max_examples=15)
@given(
    shape=st.sampled_from([(4, 6), (3, 4, 5)]),
    channels=st.integers(1, 2),
    actions=st.integers(1, 3),
    patients=st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=3),
    reference=st.sampled_from([GROUND_TRUTH, CONSENSUS, Reference("shape prior", 1.0), Reference("none", 0.0)]),
)
def test_records_come_back_as_they_were_appended(
    shape: tuple[int, ...], channels: int, actions: int, patients: list[str], reference: Reference
) -> None:
    generator = torch.Generator().manual_seed(0)
    count = len(patients)
    records = ActionRecords(
        torch.randn(count, channels, *shape, generator=generator).half().float(),
        torch.randint(0, 256, (count, actions, *shape), generator=generator).byte(),
        torch.randint(0, 256, (count, *shape), generator=generator).byte(),
        torch.randint(0, 5, (count, *shape), generator=generator) / 4,
        tuple(
            ActionOrigin(f"{patient}/{row}", patient, reference, ("policy",) * actions)
            for row, patient in enumerate(patients)
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        ActionDataset(Path(folder)).append(A, records)
        assert_same(ActionDataset(Path(folder)).read(A), records)


@pytest.mark.parametrize(
    ("scale", "offset", "stored"),
    [
        (1.0, 0.0, torch.float16),
        # Hounsfield units: float16 has steps of 2 beyond 2048.
        (4000.0, -1000.0, torch.float16),
        # The smallest number of float16 above 0 is 6e-8.
        (2e-8, 0.0, torch.float32),
        (1e-6, 0.0, torch.float32),
        # Steps of 32 beyond 32768.
        (200.0, 60000.0, torch.float32),
    ],
)
def test_images_keep_a_hundredth_of_their_range_in_whatever_units(
    tmp_path: Path, make_records: Records, scale: float, offset: float, stored: torch.dtype
) -> None:
    records = make_records()
    images = offset + scale * torch.rand(records.images.shape, generator=torch.Generator().manual_seed(0))
    dataset = ActionDataset(tmp_path)
    dataset.append(B, dataclasses.replace(records, images=images))
    assert open_shard(tmp_path / f"{B}.safetensors", ArrayStore(tmp_path / "images")).image(0).dtype == stored
    assert (dataset.read(B).images - images).abs().max() <= 0.01 * scale


def test_images_beyond_half_precision_do_not_become_infinite(tmp_path: Path, make_records: Records) -> None:
    """A 16-bit image that is not normalised goes up to 65535, float16 to 65504."""
    records = dataclasses.replace(make_records(), images=torch.full((2, 1, 16, 16), 65535.0))
    dataset = ActionDataset(tmp_path)
    dataset.append(A, records)
    assert torch.equal(dataset.read(A).images, records.images)


def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path, make_records: Records) -> None:
    dataset = ActionDataset(tmp_path)
    late, early = make_records(("p3",), seed=1), make_records(seed=2)
    dataset.append(ShardKey(1, "target", 0), late)
    dataset.append(A, early)
    assert dataset.shards() == [A, ShardKey(1, "target", 0)]
    assert dataset.shards(1) == [ShardKey(1, "target", 0)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "00-source-000000.safetensors",
        "01-target-000000.safetensors",
        "images",
    ]
    assert_same(all_of(dataset), ActionRecords.concatenate([early, late]))


def test_a_shard_is_never_written_twice(tmp_path: Path, make_records: Records) -> None:
    dataset = ActionDataset(tmp_path)
    dataset.append(A, make_records())
    before = dataset.content_hash()
    with pytest.raises(ValueError, match="append-only"):
        dataset.append(A, make_records(seed=1))
    assert dataset.content_hash() == before


@given(
    iteration=st.integers(0, 300),
    source=st.from_regex(r"[a-z]+(-[a-z]+)*", fullmatch=True),
    offset=st.integers(0, 10**7),
)
def test_a_key_comes_back_from_its_name(iteration: int, source: str, offset: int) -> None:
    key = ShardKey(iteration, source, offset)
    assert ShardKey.parse(str(key)) == key


def test_shards_have_the_names_of_version_0_1() -> None:
    assert str(ShardKey(0, "source", 0)) == "00-source-000000"
    assert str(ShardKey(12, "target", 300)) == "12-target-000300"


@pytest.mark.parametrize("key", [(-1, "source", 0), (0, "source", -1), (0, "", 0), (0, "../outside", 0), (0, "a-", 0)])
def test_a_key_whose_shard_would_be_lost_is_refused(key: tuple[int, str, int]) -> None:
    with pytest.raises(ValueError, match="do not name a shard"):
        ShardKey(*key)


def test_a_file_that_is_no_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(DataError, match=r"weights\.safetensors: .* put what is no part of the .* elsewhere"):
        ActionDataset(tmp_path).shards()


def test_a_process_killed_while_it_appends_loses_nothing_earlier(tmp_path: Path, make_records: Records) -> None:
    dataset = ActionDataset(tmp_path)
    dataset.append(A, make_records())
    before = dataset.content_hash()
    script = f"""
import os, pathlib, signal, torch
from medfm_rl.reward.dataset import ActionDataset
from medfm_rl.reward.origins import ShardKey
write = pathlib.Path.write_bytes
def write_half_and_die(path, content):
    write(path, content[: len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
pathlib.Path.write_bytes = write_half_and_die
dataset = ActionDataset(pathlib.Path({str(tmp_path)!r}))
dataset.append(ShardKey(0, "target", 0), dataset.read(ShardKey(0, "source", 0)))
"""
    result = subprocess.run([sys.executable, "-c", script], check=False)
    assert result.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("*.safetensors"))) == 2, "half a file was to be left behind"

    reopened = ActionDataset(tmp_path)
    assert reopened.shards() == [A]
    assert reopened.content_hash() == before
    assert_same(all_of(reopened), make_records())
    reopened.append(B, make_records(seed=1))
    assert_same(reopened.read(B), make_records(seed=1))


def test_a_full_disk_is_said_and_leaves_what_was_there(
    tmp_path: Path, make_records: Records, full_disk: Callable[[], AbstractContextManager[None]]
) -> None:
    dataset = ActionDataset(tmp_path)
    dataset.append(A, make_records())
    before = dataset.content_hash()
    with full_disk(), pytest.raises(DataError, match=r"00-target-000000\.safetensors: cannot be written"):
        dataset.append(B, make_records())
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["00-source-000000.safetensors"]
    assert dataset.content_hash() == before


def test_the_hash_is_that_of_the_content(tmp_path: Path, make_records: Records) -> None:
    def hash_of(name: str, records: ActionRecords, key: ShardKey = A) -> str:
        dataset = ActionDataset(tmp_path / name)
        dataset.append(key, records)
        return dataset.content_hash()

    records = make_records()
    first = hash_of("first", records)
    assert hash_of("same content elsewhere", make_records()) == first
    flipped = records.actions.clone()
    flipped[1, 1, 3, 3] = (flipped[1, 1, 3, 3] + 1) % 3
    relabelled = (dataclasses.replace(records.origins[0], reference=CONSENSUS), *records.origins[1:])
    others = [
        hash_of("one pixel", dataclasses.replace(records, actions=flipped)),
        hash_of("another reference", dataclasses.replace(records, origins=relabelled)),
        hash_of("another name", records, B),
        ActionDataset(tmp_path / "empty").content_hash(),
    ]
    assert len({first, *others}) == 5


def test_reading_does_not_change_the_hash(tmp_path: Path, make_records: Records) -> None:
    dataset = ActionDataset(tmp_path)
    dataset.append(A, make_records())
    before = dataset.content_hash()
    dataset.read(A)
    dataset.shards()
    assert dataset.content_hash() == before


def test_appending_after_reopening_ends_as_without_a_break(tmp_path: Path, make_records: Records) -> None:
    shards = {ShardKey(0, "source", index): make_records(seed=index) for index in range(4)}
    straight = ActionDataset(tmp_path / "straight")
    for key, records in shards.items():
        straight.append(key, records)
    ActionDataset(tmp_path / "broken").append(A, shards[A])
    resumed = ActionDataset(tmp_path / "broken")
    for key in shards.keys() - set(resumed.shards()):
        resumed.append(key, shards[key])
    assert resumed.content_hash() == straight.content_hash()


def written(origins: list[dict[str, object]], number: int = 2) -> str:
    return json.dumps({"format": number, "origins": origins})


def former_shard(path: Path, records: ActionRecords) -> None:
    """A shard as it was written before images lay beside it."""
    tensors = {
        "images": records.images.half(),
        "actions": records.actions,
        "references": records.references,
        "certainty": records.certainty.half(),
    }
    save_file(tensors, path, metadata={"origins": json.dumps({**origins_to_json(records.origins), "format": 2})})


def damage(path: Path, how: str, packed: bool) -> None:
    tensors = load_file(path)
    if packed and how not in ("truncated", "empty", "text", "no origins", "origins are no JSON"):
        with safe_open(path, framework="pt") as file:
            content = json.loads(file.metadata()["origins"])
        match how:
            case "an origin with a strange field":
                content["origins"][0]["colour"] = "red"
            case "a kind of reference that there is not":
                content["origins"][0]["reference"]["kind"] = "rumour"
            case "too few origins":
                del content["origins"][0]
            case "no actions":
                tensors = {name: value for name, value in tensors.items() if not name.startswith("actions")}
        save_file(tensors, path, metadata={"origins": json.dumps(content)})
        return
    reference = {"kind": "expert mask", "trust": 1.0}
    origin = {"case_id": "c", "patient_id": "p", "reference": reference, "actions": ["policy"]}
    match how:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-100])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("not a shard")
        case "no origins":
            save_file(tensors, path)
        case "origins are no JSON":
            save_file(tensors, path, metadata={"origins": "[{"})
        case "an origin with a strange field":
            save_file(tensors, path, metadata={"origins": written([{**origin, "colour": "red"}] * 2)})
        case "a kind of reference that there is not":
            stranger = {**origin, "reference": {**reference, "kind": "rumour"}}
            save_file(tensors, path, metadata={"origins": written([stranger] * 2)})
        case "too few origins":
            save_file(tensors, path, metadata={"origins": written([origin])})
        case "no actions":
            del tensors["actions"]
            save_file(tensors, path, metadata={"origins": written([])})


@pytest.mark.parametrize(
    "how",
    [
        "truncated",
        "empty",
        "text",
        "no origins",
        "origins are no JSON",
        "an origin with a strange field",
        "a kind of reference that there is not",
        "too few origins",
        "no actions",
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_a_damaged_shard_is_named_with_what_to_do(
    tmp_path: Path, make_records: Records, how: str, packed: bool
) -> None:
    dataset, path = ActionDataset(tmp_path), tmp_path / "00-source-000000.safetensors"
    if packed:
        dataset.append(A, make_records())
    else:
        former_shard(path, make_records())
        assert_same(dataset.read(A), make_records())
    damage(path, how, packed)
    with pytest.raises(DataError, match=r"00-source-000000\.safetensors: not a shard .* delete it and collect again"):
        dataset.read(A)


def test_a_shard_of_version_0_1_is_read(tmp_path: Path, make_records: Records) -> None:
    """It said the domain, called expert masks ground truth, and had no trust but in the certainty of the pixels."""
    records = make_records(("p1", "p2", "p3"))
    certainty = torch.ones(3, 16, 16)
    certainty[1, :8], certainty[1, 8:], certainty[2] = 0.25, 0.2, 0.0
    dataset = ActionDataset(tmp_path)
    path = tmp_path / "00-source-000000.safetensors"
    former_shard(path, dataclasses.replace(records, certainty=certainty))
    kinds = [("source", "ground truth"), ("target", "consensus"), ("target", "shape prior")]
    origins = [
        {"case_id": "c", "patient_id": "p", "domain": domain, "reference": kind, "actions": ["policy", "blob"]}
        for domain, kind in kinds
    ]
    save_file(load_file(path), path, metadata={"origins": json.dumps(origins)})
    found = dataset.read(A)
    references = [GROUND_TRUTH, CONSENSUS, Reference("shape prior", 0.0)]
    assert found.origins == tuple(ActionOrigin("c", "p", reference, ("policy", "blob")) for reference in references)
    assert len(found.with_ground_truth()) == 1


def test_a_shard_of_a_newer_version_says_to_update(tmp_path: Path, make_records: Records) -> None:
    dataset = ActionDataset(tmp_path)
    dataset.append(A, make_records())
    path = tmp_path / "00-source-000000.safetensors"
    save_file(load_file(path), path, metadata={"origins": written([], number=4)})
    with pytest.raises(DataError, match=r"00-source-000000\.safetensors: format 4 was written by a newer .*; update$"):
        dataset.read(A)


@pytest.mark.parametrize(("kind", "trust"), [("rumour", 0.5), ("consensus", 1.1), ("consensus", -0.1), ("none", 0.1)])
def test_a_reference_that_cannot_be_is_refused(kind: str, trust: float) -> None:
    with pytest.raises(ValueError, match="reference"):
        Reference(kind, trust)  # type: ignore[arg-type]


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"00-target-000000\.safetensors"):
        ActionDataset(tmp_path).read(B)


@pytest.mark.parametrize(
    "changes",
    [
        {"images": torch.zeros(3, 1, 16, 16)},
        {"images": torch.zeros(2, 1, 16, 15)},
        {"actions": torch.zeros(2, 3, 16, 16, dtype=torch.uint8)},
        {"actions": torch.zeros(2, 2, 8, 16, dtype=torch.uint8)},
        {"references": torch.zeros(2, 16, 17, dtype=torch.uint8)},
        {"certainty": torch.zeros(2, 17, 16)},
        {"certainty": torch.zeros(1, 16, 16)},
        {"origins": ()},
    ],
)
def test_records_that_do_not_fit_together_are_refused(make_records: Records, changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="records do not fit together"):
        dataclasses.replace(make_records(), **changes)  # type: ignore[arg-type]


def test_records_are_picked_by_patient_reference_and_row(make_records: Records) -> None:
    source, target = make_records(("p1", "p2", "p1")), make_records(("p2", "p4"), reference=CONSENSUS, seed=1)
    records = ActionRecords.concatenate([source, target])
    assert [origin.case_id for origin in records.of_patients(["p2"]).origins] == ["p2_1", "p2_0"]
    assert torch.equal(records.of_patients(["p2"]).images[1], target.images[0])
    assert_same(records.with_ground_truth(), source)
    assert_same(records.where(range(3)), source)
    assert len(records.of_patients([])) == 0


@settings(deadline=None, max_examples=40)
@given(
    patients=st.lists(st.sampled_from([f"p{index}" for index in range(12)]), min_size=4, max_size=30),
    folds=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_the_same_patient_is_never_in_two_folds(patients: list[str], folds: int, seed: int) -> None:
    records = origins_of(patients)
    if len(set(patients)) < folds:
        with pytest.raises(DataError, match=f"{len(set(patients))} patients cannot be split into {folds} parts"):
            patient_folds(records.origins, folds, seed)
        return
    dealt = patient_folds(records.origins, folds, seed)
    assert sorted(patient for fold in dealt for patient in fold) == sorted(set(patients))
    sizes = [len(fold) for fold in dealt]
    assert max(sizes) - min(sizes) <= 1
    parts = [records.of_patients(fold) for fold in dealt]
    assert sum(len(part) for part in parts) == len(patients)
    assert patient_folds(records.origins, folds, seed) == dealt


def test_folds_depend_on_the_seed_and_not_on_the_order_of_the_records() -> None:
    patients = [f"p{index}" for index in range(10)]
    folds = patient_folds(origins_of(patients).origins, 2, seed=0)
    assert patient_folds(origins_of(patients[::-1]).origins, 2, seed=0) == folds
    assert any(patient_folds(origins_of(patients).origins, 2, seed=seed) != folds for seed in range(1, 5))
