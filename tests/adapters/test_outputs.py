"""Networks as users have them: several outputs, one logit, intensities of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Compose, ScaleIntensityRange
from torch import Tensor, nn

from medfm_rl.adapters import TorchModuleAdapter, check_adapter
from medfm_rl.adapters.obstacles import find_obstacles
from medfm_rl.errors import DataError, ModelError
from medfm_rl.settings import PreprocessingSettings
from medfm_rl.types import Case, Geometry, LabelSchema

CPU = torch.device("cpu")
VESSELS = LabelSchema.from_structures({"vessel": 1})
NATIVE = {"size": [4, 4], "grid": "native"}


class Several(nn.Module):
    """A 1 x 1 convolution to `classes` logits, beside an output of a coarser level."""

    def __init__(self, form: str = "dict", classes: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, classes, 1)
        self.form = form

    def forward(self, images: Tensor) -> Any:
        logits = self.conv(images)
        coarse = logits[..., ::2, ::2]
        return {"dict": {"out": logits, "aux": coarse}, "tuple": (coarse, logits), "tensor": logits}[self.form]


def folder_of(folder: Path, output: Any = None, form: str = "dict", classes: int = 2, **intensity: Any) -> Path:
    folder.mkdir()
    description = {
        "format": 1,
        "kind": "torch",
        "network": {"factory": f"{__name__}:Several", "arguments": {"form": form, "classes": classes}},
        "weights": "net.pt",
        "schema": {"names": ["background", "vessel"], "ids": [0, 255]},
        "preprocessing": {**NATIVE, **intensity},
        **({} if output is None else {"output": output}),
    }
    (folder / "segmenter.json").write_text(json.dumps(description))
    torch.save(Several(form, classes).state_dict(), folder / "net.pt")
    return folder


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__, _this_module()))


def _this_module() -> Any:
    import types

    module = types.ModuleType(__name__)
    module.__dict__.update(globals())
    return module


def case_of(values: np.ndarray, name: str = "p1_a") -> Case:
    return Case(name, "p1", values.astype(np.float32), Geometry.unknown(values.ndim - 1))


RAMP = np.linspace(0, 255, 16, dtype=np.float32).reshape(1, 4, 4)


# Several outputs


@pytest.mark.parametrize(("form", "output"), [("dict", "out"), ("tuple", 1), ("tuple", -1)])
def test_the_named_output_is_the_logits_and_stays_so_through_export(tmp_path: Path, form: str, output: Any) -> None:
    adapter = TorchModuleAdapter.load(folder_of(tmp_path / "in", output, form))
    images = torch.rand(2, 1, 4, 4)
    assert torch.equal(adapter(images), Several().conv(images))
    assert find_obstacles(adapter, CPU) == ()
    adapter.export(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "segmenter.json").read_text())["output"] == output
    assert torch.equal(TorchModuleAdapter.load(tmp_path / "out")(images), adapter(images))
    assert adapter.inference_settings()["output"] == output
    check_adapter(adapter, case_of(np.random.default_rng(0).normal(size=(1, 8, 8))))


@pytest.mark.parametrize(
    ("form", "output", "message"),
    [
        ("dict", "logits", r"no output 'logits', it returns 'out', 'aux'; correct output in segmenter\.json"),
        ("tuple", 2, r"no output 2, it returns 2 by their places, 0 to 1"),
        ("tuple", "out", r"no output 'out', it returns 2 by their places"),
        ("tensor", 0, r"names output 0, and the network returns one tensor; remove"),
        ("dict", None, r'returns a dict; say in segmenter\.json which .* "output": "out"'),
        ("dict", "aux", r"resample them to the size of the image"),
    ],
)
def test_an_output_that_is_not_there_is_named_with_those_that_are(
    tmp_path: Path, form: str, output: Any, message: str
) -> None:
    adapter = TorchModuleAdapter.load(folder_of(tmp_path / "in", output, form))
    with pytest.raises(ModelError, match=message):
        adapter(torch.rand(1, 1, 4, 4))


@pytest.mark.parametrize("output", [True, 1.5, ["out"]])
def test_an_output_that_is_neither_key_nor_place_is_refused(tmp_path: Path, output: Any) -> None:
    with pytest.raises(ModelError, match="output: is the key or the place"):
        TorchModuleAdapter.load(folder_of(tmp_path / "in", output))


# One logit


def test_one_logit_gives_the_probabilities_of_its_sigmoid(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", form="tensor", classes=1, intensity="none")
    adapter, images = TorchModuleAdapter.load(folder), torch.randn(2, 1, 4, 4)
    z = adapter.module(images)[:, 0]
    assert torch.allclose(adapter(images).softmax(dim=1)[:, 1], z.sigmoid(), atol=1e-6)
    case = case_of(np.random.default_rng(1).normal(size=(1, 8, 8)))
    (whole,) = adapter.module(torch.from_numpy(case.image)[None])
    assert np.array_equal(adapter.segment(case), (whole[0] > 0).numpy())
    check_adapter(adapter, case)


def test_one_logit_for_two_structures_is_named() -> None:
    schema = LabelSchema.from_structures({"artery": 1, "vein": 2})
    adapter = TorchModuleAdapter(Several("tensor", 1), schema, PreprocessingSettings(**NATIVE))
    with pytest.raises(ModelError, match=r"one logit is enough for one structure: schema of segmenter\.json names 2"):
        adapter(torch.rand(1, 1, 4, 4))


def test_the_probability_of_a_sigmoid_is_told_from_a_logit() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Sigmoid())
    adapter = TorchModuleAdapter(network, VESSELS, PreprocessingSettings(**NATIVE)).eval()
    (obstacle,) = find_obstacles(adapter, CPU)
    assert "sigmoid" in obstacle


# Intensities

MONAI_CHAIN = Compose([ScaleIntensityRange(0, 255, -1, 1)])


def smaller(image: Tensor) -> Tensor:
    return image[..., 1:]


def fails(image: Tensor) -> Tensor:
    raise KeyError("image")


@pytest.mark.parametrize(
    ("intensity", "expected"),
    [
        ({"mean": 127.5, "std": 127.5}, (RAMP - 127.5) / 127.5),
        ({"mean": [127.5], "std": [51.0]}, (RAMP - 127.5) / 51),
        ({"divide": 255}, RAMP / 255),
        ({"window": [51, 204]}, np.clip((RAMP - 51) / 153, 0, 1)),
        # Of 16 values at equal steps of 17 the 20th percentile is 3 steps above the first.
        ({"percentiles": [20, 80]}, np.clip((RAMP - 51) / 153, 0, 1)),
        ({"transform": f"{__name__}:MONAI_CHAIN"}, RAMP / 127.5 - 1),
    ],
)
def test_intensities_are_those_that_the_user_writes(tmp_path: Path, intensity: Any, expected: np.ndarray) -> None:
    adapter = TorchModuleAdapter.load(folder_of(tmp_path / "in", "out", intensity=intensity))
    assert np.allclose(adapter.preprocess(case_of(RAMP)).image, expected, atol=1e-5)
    adapter.export(tmp_path / "out")
    again = TorchModuleAdapter.load(tmp_path / "out")
    assert torch.equal(again.preprocess(case_of(RAMP)).image, adapter.preprocess(case_of(RAMP)).image)
    written = json.loads((tmp_path / "out" / "segmenter.json").read_text())["preprocessing"]["intensity"]
    assert written == intensity


def test_each_channel_has_the_mean_and_deviation_of_its_own() -> None:
    settings = PreprocessingSettings(**NATIVE, intensity={"mean": [1, 2, 3], "std": [1, 2, 4]})  # type: ignore[arg-type]
    adapter = TorchModuleAdapter(nn.Conv2d(3, 2, 1), VESSELS, settings, in_channels=3)
    colours = np.stack([np.full((4, 4), value) + np.eye(4) for value in (1, 2, 3)])
    shown = adapter.preprocess(case_of(colours)).image
    assert torch.allclose(shown[:, 0, 0], torch.tensor([1.0, 0.5, 0.25]))


@pytest.mark.parametrize(
    ("intensity", "message"),
    [
        ({"mean": 1}, r"intensity: one of mean with std, window, .* not mean"),
        ({"mean": 1, "std": 0}, r"intensity: std must be above 0"),
        ({"divide": 255, "window": [0, 1]}, r"not divide with window"),
        ({}, "is needed"),
        ({"window": [5, 5]}, r"window \[5, 5\]: the first must be lower"),
        ({"percentiles": [1, 101]}, "percentiles must lie between 0 and 100"),
        ({"mean": [1, 2], "std": 1}, r"mean has 2 numbers and the images have 1 channels"),
        ({"scale": 255}, r"intensity\.scale: there is no such field"),
        ("z-score", r"intensity: Input should be 'zscore', 'minmax' or 'none', not 'z-score'"),
        ({"transform": "chain"}, "written as package.module:name"),
        ({"transform": "no_such_module:chain"}, r"'no_such_module:chain' cannot be imported .* PYTHONPATH"),
        ({"transform": f"{__name__}:RAMP"}, r"is ndarray; a transform or a function"),
    ],
)
def test_intensities_that_say_nothing_or_two_things_are_named(tmp_path: Path, intensity: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        TorchModuleAdapter.load(folder_of(tmp_path / "in", "out", intensity=intensity))


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [("smaller", ModelError, r"gives shape \(1, 4, 3\) for an image"), ("fails", DataError, "case p1_a: .* fails on")],
)
def test_a_transform_that_changes_more_than_intensities_is_named(
    tmp_path: Path, name: str, kind: type[Exception], message: str
) -> None:
    intensity = {"transform": f"{__name__}:{name}"}
    adapter = TorchModuleAdapter.load(folder_of(tmp_path / "in", "out", intensity=intensity))
    with pytest.raises(kind, match=message):
        adapter.preprocess(case_of(RAMP))


def test_a_channel_of_one_value_has_no_percentiles(tmp_path: Path) -> None:
    adapter = TorchModuleAdapter.load(folder_of(tmp_path / "in", "out", intensity={"percentiles": [1, 99]}))
    with pytest.raises(DataError, match="a channel has one value only"):
        adapter.preprocess(case_of(np.ones((1, 4, 4))))
