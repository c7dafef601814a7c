"""Weights: safetensors and torch files with other tensors, numbers, names or objects than the network has."""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from benchmarks.robustness.comparing import SCHEMA
from benchmarks.robustness.file_faults import FILES
from benchmarks.robustness.kind import Fault, Kind, UnreadableError
from benchmarks.robustness.text_faults import JSON
from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.reward.network import RewardNet
from medfm_rl.reward.shape_prior import ShapePrior
from medfm_rl.settings import NetworkSettings, PreprocessingSettings

_TINY = NetworkSettings(channels=(4, 8), residual_units=0)


def _make_segmenter(folder: Path, name: str) -> Path:
    torch.manual_seed(0)
    adapter = TorchModuleAdapter.build_unet(_TINY, SCHEMA, PreprocessingSettings(size=(16, 16)))
    adapter.eval().export(folder / "segmenter")
    made = folder / "segmenter"
    if name != "weights.safetensors":
        torch.save(load_file(made / "weights.safetensors"), made / name)
        (made / "weights.safetensors").unlink()
        content = json.loads((made / "segmenter.json").read_text())
        (made / "segmenter.json").write_text(json.dumps({**content, "weights": name}))
    return made / name


def _make_described(folder: Path) -> Path:
    return _make_segmenter(folder, "weights.safetensors").with_name("segmenter.json")


def _make_network(folder: Path, prior: bool) -> Path:
    torch.manual_seed(0)
    network = ShapePrior(4, (16, 16), 4) if prior else RewardNet(_TINY, 4)
    network.save(folder / "network")
    return folder / "network" / "weights.safetensors"


def _load(path: Path) -> dict[str, Tensor] | None:
    if not path.is_file():
        return None
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    except Exception:  # noqa: BLE001 - damaged already
        return None
    return state if isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values()) else None


def _save(path: Path, state: Any) -> None:
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path)


def other_tensor(path: Path, rng: np.random.Generator) -> None:
    """A tensor has another shape, another kind of number, or values that are none."""
    state = _load(path)
    if not state:
        return
    names = sorted(state)
    name = names[rng.integers(len(names))]
    value = state[name]
    changes: list[Callable[[], Tensor]] = [
        *(value.double, value.half, value.bfloat16, value.int, value.bool, value.flatten, value.sum, value.clone),
        *(lambda: value * float("nan"), lambda: value + float("inf"), lambda: value[..., None], lambda: value[:0]),
        *(lambda: value.to(torch.float8_e4m3fn), lambda: value.to(torch.complex64), lambda: value.to(torch.uint8)),
        *(
            lambda: value.to(torch.int64),
            lambda: torch.cat([value, value]),
            lambda: value.T if value.ndim == 2 else value,
        ),
    ]
    state[name] = changes[rng.integers(len(changes))]().contiguous()
    _save(path, state)


def other_names(path: Path, rng: np.random.Generator) -> None:
    """A tensor is missing, has another name, or there is one more."""
    state = _load(path)
    if not state:
        return
    names = sorted(state)
    name = names[rng.integers(len(names))]
    match rng.integers(4):
        case 0:
            del state[name]
        case 1:
            state[f"module.{name}"] = state.pop(name)
        case 2:
            state["é\u0301" * 200] = state[name].clone()
        case _:
            state = {f"model.{key}": value for key, value in state.items()}
    _save(path, state)


def safetensors_header(path: Path, rng: np.random.Generator) -> None:
    """The header of a safetensors file says another length, type, shape or place."""
    content = path.read_bytes() if path.is_file() else b""
    if path.suffix != ".safetensors" or len(content) < 9:
        return
    size = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + size])
    except ValueError:
        return
    names = sorted(name for name in header if name != "__metadata__")
    name = names[rng.integers(len(names))]
    entry = header[name]
    match rng.integers(7):
        case 0:
            entry["shape"] = [[2**40], [-1], [], [2**63, 2**63], ["a"]][rng.integers(5)]
        case 1:
            entry["dtype"] = ["F64", "I32", "F8_E4M3", "BOOL", "X", 3][rng.integers(6)]
        case 2:
            entry["data_offsets"] = [[0, 2**62], [-1, 4], [8, 4], [0, 4], [], ["a", "b"]][rng.integers(6)]
        case 3:
            header["__metadata__"] = {"format": ["pt", "np", 3, None][rng.integers(4)]}
        case 4:
            other = names[rng.integers(len(names))]
            header[name], header[other] = header[other], header[name]
        case 5:
            header[name] = []
        case _:
            lengths = (0, 2**63, 2**64 - 1, size - 1, size + 7, 10**9)
            path.write_bytes(struct.pack("<Q", lengths[rng.integers(len(lengths))]) + content[8:])
            return
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code of a stranger",))


def pickled_objects(path: Path, rng: np.random.Generator) -> None:
    """The file is a pickle: of code, of a module, or of other things than tensors by name."""
    state = _load(path) or {"a": torch.zeros(2)}
    contents: list[Any] = [
        *(
            {"state_dict": state, "hook": _Code()},
            _Code(),
            torch.nn.Conv2d(1, 1, 1),
            [state],
            5,
            None,
            {"state_dict": 3},
        ),
        *(
            {},
            OrderedDict(state),
            {"model": state, "epoch": 3},
            {"a": {"b": {"c": state}}},
            {1: torch.zeros(1)},
            {"a": "b"},
        ),
        *(
            {name: value.numpy() for name, value in state.items()},
            {name: value.to_sparse() for name, value in state.items()},
        ),
        {name: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.qint8) for name, value in state.items()},
        {name: torch.empty(value.shape, device="meta") for name, value in state.items()},
        {name: value.expand(3, *value.shape)[0] for name, value in state.items()},
    ]
    content = contents[rng.integers(len(contents))]
    if rng.random() < 0.2:
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=bool(rng.random() < 0.8))


def damaged_pickle(path: Path, rng: np.random.Generator) -> None:
    """The instructions of the pickle within a torch file are others."""
    if path.suffix == ".safetensors" or not path.is_file():
        return
    content = bytearray(path.read_bytes())
    start = content.find(b"\x80\x02")
    if start < 0:
        return
    for place in rng.integers(start, min(len(content), start + 1500), rng.integers(1, 4)):
        content[place] = rng.integers(256)
    path.write_bytes(content)


def other_format(path: Path, _: np.random.Generator) -> None:
    """The file is of the other format than its name says."""
    state = _load(path)
    if not state:
        return
    if path.suffix == ".safetensors":
        buffer = io.BytesIO()
        torch.save(state, buffer)
        path.write_bytes(buffer.getvalue())
    else:
        path.write_bytes(save(state))


_FAULTS: tuple[Fault, ...] = (*(other_tensor,) * 6, *(other_names,) * 2, other_format, *FILES)
_OF_SAFETENSORS = (*_FAULTS, *(safetensors_header,) * 5)
_OF_TORCH = (*_FAULTS, *(pickled_objects,) * 5, *(damaged_pickle,) * 4)


def _state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in module.state_dict().items()}


def _oracle(path: Path) -> dict[str, Tensor]:
    content = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    return _tensors(content)


def _tensors(content: Any) -> dict[str, Tensor]:
    """The tensors of a file by name, in whatever container."""
    found = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    for value in content.values():
        if not found and isinstance(value, dict):
            found = _tensors(value)
    return found


def _states_disagree(found: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """Every weight has to be that of the file, by the end of its name, to the precision of the network."""
    for name, value in found.items():
        names = [other for other in expected if other == name or other.endswith(f".{name}")]
        if not names:
            names = [other for other in expected if name.endswith(f".{other}")]
        if not names:
            return f"{name} is not in the file"
        other = expected[names[0]]
        if (
            other.is_floating_point() != value.is_floating_point()
            or other.is_complex()
            or not torch.isfinite(other.float()).all()
        ):
            return f"{name} is {other.dtype} in the file, or not finite"
        if not torch.equal(value, other.to(value.dtype)):
            return f"{name} has other values"
    return ""


def _described_oracle(path: Path) -> dict[str, Tensor]:
    """The weights are as they were; what is said of them has to be text, integers and names."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise UnreadableError("a key twice")
        return dict(pairs)

    content = json.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), object_pairs_hook=once)
    if not all(isinstance(name, str) for name in content["schema"]["names"]):
        raise UnreadableError("names")
    if not all(type(number) is int for number in content["schema"]["ids"]):
        raise UnreadableError("ids")
    return _oracle(path.parent / "weights.safetensors")


def kinds() -> list[Kind]:
    """Segmenters in both formats, their description, reward networks and shape priors."""

    def segmenter(path: Path) -> dict[str, Tensor]:
        return _state(TorchModuleAdapter.load(path.parent).module)

    made = [
        Kind(
            f"segmenter, {name}",
            partial(_make_segmenter, name=f"weights{name}"),
            faults,
            segmenter,
            _oracle,
            _states_disagree,
        )
        for name, faults in ((".safetensors", _OF_SAFETENSORS), (".pt", _OF_TORCH), (".pth", _OF_TORCH))
    ]
    described = Kind("segmenter.json", _make_described, JSON, segmenter, _described_oracle, _states_disagree)
    networks = [
        Kind(
            name,
            partial(_make_network, prior=prior),
            _OF_SAFETENSORS,
            lambda path, kind=kind: _state(kind.load(path.parent)),  # type: ignore[misc]
            _oracle,
            _states_disagree,
        )
        for name, prior, kind in (("reward network", False, RewardNet), ("shape prior", True, ShapePrior))
    ]
    return [*made, described, *networks]
