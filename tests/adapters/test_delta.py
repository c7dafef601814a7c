"""Changes alone: as small as their rank, and with the segmenter they are of the adapted one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from medfm_rl.adapters import TorchModuleAdapter, add_low_rank
from medfm_rl.adapters.delta import apply_delta, read_delta, write_delta
from medfm_rl.adapters.lora import low_rank_parameters
from medfm_rl.errors import ModelError
from medfm_rl.networks import hash_weights
from medfm_rl.settings import LoRASettings, PreprocessingSettings
from medfm_rl.types import LabelSchema

SCHEMA = LabelSchema.from_structures({"LV": 1})


def make(seed: int = 0) -> TorchModuleAdapter:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 2, 1)
    )
    return TorchModuleAdapter(network, SCHEMA, PreprocessingSettings(size=(8, 8))).eval()


def with_low_rank_changes(*seeds: int) -> TorchModuleAdapter:
    """The mean of several changes of rank 2, as averages of checkpoints are."""
    states = []
    for seed in seeds:
        changed = make()
        add_low_rank(changed, changed.trainable("all"), LoRASettings(rank=2), torch.Generator().manual_seed(seed))
        with torch.no_grad():
            for parameter in low_rank_parameters(changed).values():
                parameter.copy_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
        states.append(changed.state_dict())
    result = make()
    result.load_state_dict({name: sum(state[name] for state in states) / len(states) for name in states[0]})
    return result


def test_a_mean_of_low_rank_changes_is_a_small_file_that_gives_the_adapted_weights(tmp_path: Path) -> None:
    before, after, path = make(), with_low_rank_changes(1, 2), tmp_path / "delta.safetensors"
    write_delta(path, before, after, "{}")
    changes = read_delta(path).changes
    assert torch.linalg.matrix_rank(changes["module.2.weight"], rtol=1e-6) == 4
    # 32 x 32 x 9 numbers as 4 x (32 + 288).
    assert path.stat().st_size < 0.3 * sum(value.nbytes for value in after.state_dict().values())
    restored = make()
    apply_delta(restored, read_delta(path), path)
    for name, value in restored.state_dict().items():
        torch.testing.assert_close(value, after.state_dict()[name], rtol=0, atol=1e-6)
    image = torch.randn(1, 1, 8, 8)
    assert torch.equal(restored(image).argmax(dim=1), after(image).argmax(dim=1))


def test_a_change_of_full_rank_is_kept_whole_and_what_did_not_change_is_left_out(tmp_path: Path) -> None:
    before, after, path = make(), make(), tmp_path / "delta.safetensors"
    with torch.no_grad():
        after.module[2].weight.add_(torch.randn(32, 32, 3, 3))  # type: ignore[index, operator]
        after.module[0].bias.add_(1.0)  # type: ignore[index, operator]
    write_delta(path, before, after, "{}")
    assert set(read_delta(path).changes) == {"module.2.weight", "module.0.bias"}
    restored = make()
    apply_delta(restored, read_delta(path), path)
    for name, value in restored.state_dict().items():
        torch.testing.assert_close(value, after.state_dict()[name], rtol=0, atol=1e-6)


def test_changes_of_other_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    write_delta(path, make(), with_low_rank_changes(1), "{}")
    other = make(1)
    unchanged = hash_weights(other)
    with pytest.raises(ModelError, match="of other weights"):
        apply_delta(other, read_delta(path), path)
    assert hash_weights(other) == unchanged


def test_what_is_no_file_of_changes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "delta.safetensors"
    with pytest.raises(ModelError, match="not a file of changes"):
        read_delta(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="not a file of changes"):
        read_delta(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="not a file of changes that `medfm-rl export --delta`"):
        read_delta(path)


def test_segmenters_of_different_networks_have_no_change(tmp_path: Path) -> None:
    other = TorchModuleAdapter(nn.Conv2d(1, 2, 1), SCHEMA, PreprocessingSettings(size=(8, 8)))
    with pytest.raises(ModelError, match="not of one network"):
        write_delta(tmp_path / "delta.safetensors", make(), other, "{}")
    assert not (tmp_path / "delta.safetensors").exists()


def test_the_hash_of_weights_is_that_of_their_bytes_whatever_their_type() -> None:
    network = nn.BatchNorm2d(3)
    parts = [name.encode() + value.numpy().tobytes() for name, value in sorted(network.state_dict().items())]
    assert hash_weights(network) == hashlib.sha256(b"".join(parts)).hexdigest()
    rounded = make().bfloat16()
    assert hash_weights(rounded) == hash_weights(make().bfloat16())
    assert hash_weights(rounded) != hash_weights(make(1).bfloat16())
