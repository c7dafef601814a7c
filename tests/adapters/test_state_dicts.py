"""Weights as training code leaves them: taken where one set fits, or named with the line that says which is meant."""

from __future__ import annotations

import argparse
import collections
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.adapters.checkpoints import read_content, save_state
from medfm_rl.adapters.state_dicts import Place, load_weights
from medfm_rl.errors import ModelError
from medfm_rl.settings import NetworkSettings, PreprocessingSettings
from medfm_rl.types import LabelSchema


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(nn.Conv2d(2, 2, 1)))


WEIGHTS = dict(network().state_dict())
OTHERS = dict(network(1).state_dict())


def named(prefix: str, state: dict[str, Tensor] = WEIGHTS) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def loaded(folder: Path, content: Any, place: Place | None = None) -> Place:
    """Loads a file into a network of other weights, and compares."""
    path = folder / "weights.pt"
    torch.save(content, path)
    module = network(2)
    found = load_weights(module, path, place, "segmenter.json")
    assert all(torch.equal(value, WEIGHTS[name]) for name, value in module.state_dict().items())
    return found


@pytest.mark.parametrize(
    "content",
    [
        {"net": WEIGHTS},
        {"network_weights": WEIGHTS, "optimizer_state": {"state": {0: {"step": torch.ones(1)}}, "param_groups": []}},
        {"state_dict": WEIGHTS, "epoch": 3},
        {"model": {"state_dict": WEIGHTS}},
        {"model": WEIGHTS, "model_ema": WEIGHTS},
        named("module._orig_mod."),
        named("_orig_mod.module."),
        {"state_dict": {**named("net."), "loss.weight": torch.ones(4)}, "pytorch-lightning_version": "2.2.0"},
        collections.OrderedDict(WEIGHTS),
    ],
    ids=["net", "nnU-Net", "epoch", "nested", "ema", "compiled", "parallel", "lightning", "ordered"],
)
def test_weights_are_found_where_training_code_leaves_them(tmp_path: Path, content: Any) -> None:
    loaded(tmp_path, content)


@pytest.mark.parametrize("beside", [argparse.Namespace(lr=1e-3), collections.defaultdict(list, {"loss": [1.0]})])
def test_what_would_run_code_beside_the_weights_is_refused_with_what_to_write(tmp_path: Path, beside: Any) -> None:
    with pytest.raises(ModelError, match=r"would run code.*Save the state dict alone into another file: torch\.save"):
        loaded(tmp_path, {"state_dict": WEIGHTS, "beside": beside})


keys = st.text("abcdefgh_-", min_size=1, max_size=6)
wrappers = st.lists(st.sampled_from(["module.", "_orig_mod.", "model.", "net.", "network."]), max_size=3).map("".join)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.lists(keys, max_size=3), prefix=wrappers, beside=keys, twice=st.booleans(), other=st.booleans())
def test_a_state_dict_loads_however_it_is_wrapped_or_the_lines_that_load_it_are_named(
    tmp_path: Path, path: list[str], prefix: str, beside: str, twice: bool, other: bool
) -> None:
    """Beside it there may be the same weights once more, or others of the same network."""
    place = Place(tuple(path), prefix)
    content = place.put(WEIGHTS, {"epoch": 7})
    second = Place((*path[:-1], f"other {beside}"), prefix)
    if twice:
        content = second.put(OTHERS if other else WEIGHTS, content)
    if twice and other:
        with pytest.raises(ModelError, match="holds 2 sets of weights") as error:
            loaded(tmp_path, content)
        lines = str(error.value).splitlines()[1:]
        assert set(lines) == {place.line, second.line}
        told = [json.loads(f"{{{line}}}") for line in lines]
        (meant,) = [found for found in told if found["weights_keys"] == path]
        loaded(tmp_path, content, Place(tuple(meant["weights_keys"]), meant["weights_prefix"]))
    else:
        assert loaded(tmp_path, content) in (place, second)


def test_a_prefix_that_can_be_another_network_has_to_be_said(tmp_path: Path) -> None:
    content = {"state_dict": {**named("student."), "head.weight": torch.ones(1)}}
    line = '"weights_keys": ["state_dict"], "weights_prefix": "student."'
    with pytest.raises(ModelError, match=r"'student\.' stands before .*\n") as error:
        loaded(tmp_path, content)
    assert str(error.value).splitlines()[1] == line
    loaded(tmp_path, content, Place(("state_dict",), "student."))


def test_tensors_of_another_network_are_left_out_with_a_warning(tmp_path: Path, caplog) -> None:
    loaded(tmp_path, {"state_dict": {**named("net."), "loss.weight": torch.ones(4), "loss.bias": torch.ones(4)}})
    assert "holds more than the network, which is left out: 2 tensors, the first loss.bias" in caplog.text


def test_names_that_do_not_fit_are_counted_without_the_wrapper(tmp_path: Path) -> None:
    changed = {("2.1" + name[3:] if name.startswith("2.0") else name): value for name, value in WEIGHTS.items()}
    changed["0.weight"] = torch.ones(3, 1, 3, 3)
    with pytest.raises(ModelError) as error:
        loaded(tmp_path, {"model": named("module.", changed)})
    assert str(error.value).endswith(
        "does not fit the network: misses 2 tensors, the first 2.0.bias; has the unknown 2 tensors, the first "
        "2.1.bias; has other shapes for 1 tensors, the first 0.weight"
    )


def test_a_place_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r'no tensors under \["ema"\]; there are under \["model"\]'):
        loaded(tmp_path, {"model": WEIGHTS}, Place(("ema",)))


def test_an_exported_segmenter_keeps_the_place_of_its_weights(tmp_path: Path) -> None:
    unet, schema = NetworkSettings(channels=(4, 8), residual_units=0), LabelSchema.from_structures({"LV": 1})
    made = TorchModuleAdapter.build_unet(unet, schema, PreprocessingSettings(size=(16, 16)))
    made.weights = "net.pt"
    made.export(tmp_path / "a")
    state = dict(made.module.state_dict())
    torch.save({"ema": named("student.", state), "model": named("student.", state)}, tmp_path / "a" / "net.pt")
    description = json.loads((tmp_path / "a" / "segmenter.json").read_text())
    line = {"weights_keys": ["ema"], "weights_prefix": "student."}
    (tmp_path / "a" / "segmenter.json").write_text(json.dumps({**description, **line}))
    TorchModuleAdapter.load(tmp_path / "a").export(tmp_path / "b")
    assert read_content(tmp_path / "b" / "net.pt")["ema"].keys() == named("student.", state).keys()
    again = TorchModuleAdapter.load(tmp_path / "b").module.state_dict()
    assert all(torch.equal(again[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights_keys": "ema"}, "weights_keys: Input should be a valid tuple, not 'ema'"),
        ({"weights_prefix": 3}, "weights_prefix: Input should be a valid string, not 3"),
        ({"weights_keys": [1]}, r"weights_keys\.0: Input should be a valid string, not 1"),
    ],
)
def test_a_line_that_says_no_place_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    unet, schema = NetworkSettings(channels=(4, 8), residual_units=0), LabelSchema.from_structures({"LV": 1})
    TorchModuleAdapter.build_unet(unet, schema, PreprocessingSettings(size=(16, 16))).export(tmp_path / "a")
    path = tmp_path / "a" / "segmenter.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    with pytest.raises(ModelError, match=message):
        TorchModuleAdapter.load(tmp_path / "a")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_are_written_in_the_format_of_their_name(tmp_path: Path, suffix: str) -> None:
    """A promptable segmenter whose checkpoint is named so comes back under the same name."""
    save_state({"weight": torch.arange(6.0).reshape(2, 3)}, tmp_path / f"net{suffix}")
    assert torch.equal(read_content(tmp_path / f"net{suffix}")["weight"], torch.arange(6.0).reshape(2, 3))
