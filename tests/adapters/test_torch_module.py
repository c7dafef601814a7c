from __future__ import annotations

import copy
import json
import pickle
import resource
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from support.on_cuda import assert_the_gpu_gives_the_masks_of_the_cpu
from torch import Tensor, nn

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.data.files import hash_file
from medfm_rl.errors import DataError, ModelError
from medfm_rl.settings import NetworkSettings, PreprocessingSettings
from medfm_rl.types import Case, Geometry, LabelSchema

SCHEMA = LabelSchema.from_structures({"LV": 1, "MYO": 2})
K = SCHEMA.num_classes
POINTWISE = {"factory": "torch.nn:Conv2d", "arguments": {"in_channels": 1, "out_channels": K, "kernel_size": 1}}


def preprocessing(size: tuple[int, ...] = (16, 16), **changes: Any) -> PreprocessingSettings:
    return PreprocessingSettings(size=size, **changes)


def pointwise_adapter(ndim: int = 2, **changes: Any) -> TorchModuleAdapter:
    """Logits (0, 10 x - 5, -1): the first structure is where the image is brighter than 0.5."""
    conv = (nn.Conv2d if ndim == 2 else nn.Conv3d)(1, K, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([0.0, 10.0, 0.0]).reshape(conv.weight.shape))
        conv.bias.copy_(torch.tensor([0.0, -5.0, -1.0]))  # type: ignore[union-attr]
    return TorchModuleAdapter(conv, SCHEMA, preprocessing((16,) * ndim, **changes)).eval()


def unet(norm: str = "batch", channels: tuple[int, ...] = (4, 8, 8), residual_units: int = 1, ndim: int = 2):
    torch.manual_seed(0)
    network = NetworkSettings(channels=channels, norm=norm, residual_units=residual_units)  # type: ignore[arg-type]
    return TorchModuleAdapter.build_unet(network, SCHEMA, preprocessing((8,) * ndim)).eval()


def scripted(module: nn.Module, freeze: bool = False) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script: nn.Module = torch.jit.script(module)
        return torch.jit.freeze(script.eval()) if freeze else script


def save_script(module: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(module, str(path))


def write_folder(
    folder: Path, network: dict[str, Any] = POINTWISE, weights: str = "weights.safetensors", **changes: Any
) -> Path:
    """A segmenter folder as a user writes it by hand, without its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    description = {
        "format": 1,
        "kind": "torch",
        "network": network,
        "weights": weights,
        "in_channels": 1,
        "schema": {"names": ["background", "LV", "MYO"], "ids": [0, 1, 2]},
        "preprocessing": {"size": [16, 16]},
    }
    (folder / "segmenter.json").write_text(json.dumps({**description, **changes}))
    return folder


def pointwise_state() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"weight": torch.randn(K, 1, 1, 1), "bias": torch.randn(K)}


@torch.no_grad()
def logits_of(adapter: TorchModuleAdapter, seed: int = 3) -> Tensor:
    images = torch.randn(2, adapter.in_channels, *adapter.patch_size, generator=torch.Generator().manual_seed(seed))
    result: Tensor = adapter(images)
    return result


# From a folder and back


def test_a_folder_written_by_hand_gives_the_network_that_it_describes(tmp_path: Path) -> None:
    write_folder(tmp_path)
    state = pointwise_state()
    save_file(state, tmp_path / "weights.safetensors")
    adapter = TorchModuleAdapter.load(tmp_path)
    images = torch.rand(2, 1, 16, 16)
    # A 1 x 1 convolution by hand.
    expected = images * state["weight"].reshape(1, K, 1, 1) + state["bias"].reshape(1, K, 1, 1)
    assert torch.allclose(adapter(images), expected, atol=1e-6)
    assert not adapter.training
    assert adapter.schema == SCHEMA
    assert adapter.patch_size == (16, 16)


@pytest.mark.parametrize("container", [None, "state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_checkpoint_keeps_its_format_through_load_and_export(
    tmp_path: Path, container: str | None, suffix: str
) -> None:
    state = pointwise_state()
    folder = write_folder(tmp_path / "in", weights=f"net{suffix}")
    torch.save({container: state, "epoch": 7} if container else state, folder / f"net{suffix}")
    adapter = TorchModuleAdapter.load(folder)
    with torch.no_grad():
        adapter.module.bias.add_(1.0)
    adapter.export(tmp_path / "out")
    saved = torch.load(tmp_path / "out" / f"net{suffix}", weights_only=True)
    inner = saved[container] if container else saved
    assert set(inner) == {"weight", "bias"}
    assert torch.equal(inner["weight"], state["weight"])
    assert torch.equal(inner["bias"], state["bias"] + 1.0)
    assert torch.equal(logits_of(TorchModuleAdapter.load(tmp_path / "out")), logits_of(adapter))


def test_numbers_of_numpy_beside_the_weights_are_read_as_every_other_segmenter_reads_them(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, weights="net.pth")
    state = pointwise_state()
    torch.save({"state_dict": state, "best_metric": np.float64(0.9), "epochs": np.arange(3)}, folder / "net.pth")
    found = TorchModuleAdapter.load(folder).module.state_dict()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_what_a_checkpoint_holds_besides_is_named_in_one_line_without_colours(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, weights="net.pth")
    torch.save({"state_dict": pointwise_state(), "made": Path("by whom")}, folder / "net.pth")
    with pytest.raises(ModelError, match=r"would run code.*Save the state dict alone into another file") as caught:
        TorchModuleAdapter.load(folder)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("residual_units", [0, 2])
def test_a_unet_comes_back_bit_for_bit(tmp_path: Path, ndim: int, residual_units: int) -> None:
    adapter = unet(residual_units=residual_units, ndim=ndim)
    adapter.train()
    adapter(torch.randn(4, 1, *adapter.patch_size))  # Batch statistics belong to the weights too.
    adapter.eval().export(tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"segmenter.json", "weights.safetensors"}
    loaded = TorchModuleAdapter.load(tmp_path / "model")
    assert torch.equal(logits_of(loaded), logits_of(adapter))
    saved = load_file(tmp_path / "model" / "weights.safetensors")
    assert set(saved) == set(adapter.module.state_dict())
    assert loaded.trainable("decoder").keys() == adapter.trainable("decoder").keys()


def test_the_exported_description_says_all_that_loading_needs(tmp_path: Path) -> None:
    schema = LabelSchema(("background", "LV"), (0, 255))
    settings = preprocessing((8, 16), grid="native", intensity="minmax")
    TorchModuleAdapter.build_unet(NetworkSettings(channels=(4, 8)), schema, settings, in_channels=2).export(
        tmp_path / "model"
    )
    description = json.loads((tmp_path / "model" / "segmenter.json").read_text())
    assert set(description) == {
        "format", "kind", "network", "weights", "in_channels", "schema", "preprocessing", "decoder_prefixes",
    }  # fmt: skip
    loaded = TorchModuleAdapter.load(tmp_path / "model")
    assert (loaded.schema, loaded.preprocessing, loaded.in_channels) == (schema, settings, 2)


def test_another_libraries_network_is_built_by_its_own_name(tmp_path: Path) -> None:
    arguments = {
        "spatial_dims": 2, "in_channels": 1, "out_channels": K, "channels": [4, 8], "strides": [2], "norm": "BATCH",
    }  # fmt: skip
    from monai.networks.nets import UNet

    torch.manual_seed(0)
    module = UNet(**arguments).eval()
    folder = write_folder(
        tmp_path,
        network={"factory": "monai.networks.nets:UNet", "arguments": arguments},
        weights="net.pth",
        decoder_prefixes=["model.2."],
    )
    torch.save({"state_dict": module.state_dict()}, folder / "net.pth")
    adapter = TorchModuleAdapter.load(folder)
    images = torch.randn(2, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(adapter(images), module(images))
    assert set(adapter.trainable("decoder")) == {
        f"module.{name}" for name, _ in module.named_parameters() if name.startswith("model.2.")
    }


@pytest.mark.parametrize("kind", ["weights", "torchscript"])
@pytest.mark.parametrize("place", ["absolute", "../up/net.pt", "sub/net.pt"])
def test_weights_from_elsewhere_are_read_and_the_export_lies_in_its_own_folder(
    tmp_path: Path, place: str, kind: str
) -> None:
    """The path of the source, taken over as it stands, would have the export written onto the source."""
    name = str(tmp_path / "mine" / "net.pt") if place == "absolute" else place
    network = {"torchscript": name} if kind == "torchscript" else POINTWISE
    folder = write_folder(tmp_path / "in", network=network, weights=name)
    path = (folder / name).resolve()
    path.parent.mkdir(exist_ok=True)
    if kind == "torchscript":
        save_script(scripted(nn.Conv2d(1, K, 1)), path)
    else:
        torch.save(pointwise_state(), path)
    before = hash_file(path)
    adapter = TorchModuleAdapter.load(folder)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(1.0)
    adapter.export(tmp_path / "runs" / "out")
    assert hash_file(path) == before
    files = {path.name for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert files == {"segmenter.json", "net.pt"}
    assert torch.equal(logits_of(TorchModuleAdapter.load(tmp_path / "runs" / "out")), logits_of(adapter))


def test_weights_that_share_memory_can_be_exported(tmp_path: Path) -> None:
    adapter = unet(norm="batch", channels=(4, 8), residual_units=0)
    parameters = dict(adapter.module.named_parameters())
    first, second = [name for name in parameters if "adn.N.weight" in name][:2]
    wide = nn.Parameter(torch.rand(20))
    for name, values in ((first, wide[: parameters[first].numel()]), (second, wide[: parameters[second].numel()])):
        owner, _, _ = name.rpartition(".")
        adapter.module.get_submodule(owner).weight = nn.Parameter(values.data)
    adapter.export(tmp_path / "model")
    assert torch.equal(logits_of(TorchModuleAdapter.load(tmp_path / "model")), logits_of(adapter))


def test_an_adapter_that_cannot_be_built_again_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="argument `network`"):
        pointwise_adapter().export(tmp_path / "model")
    assert not (tmp_path / "model").exists()


# TorchScript


@pytest.fixture
def script_folder(tmp_path: Path) -> Path:
    folder = write_folder(tmp_path / "script", network={"torchscript": "net.pt"})
    torch.manual_seed(2)
    module = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, K, 1))
    save_script(scripted(module), folder / "net.pt")
    return folder


def test_a_torchscript_file_is_adapted_and_stays_one(tmp_path: Path, script_folder: Path) -> None:
    adapter = TorchModuleAdapter.load(script_folder)
    before = logits_of(adapter)
    with torch.no_grad():
        for parameter in adapter.trainable("all").values():
            parameter.add_(0.1)
    adapter.export(tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"segmenter.json", "net.pt"}
    assert torch.equal(logits_of(TorchModuleAdapter.load(tmp_path / "out")), logits_of(adapter))
    assert not torch.equal(logits_of(adapter), before)
    assert torch.equal(logits_of(TorchModuleAdapter.load(script_folder)), before)


@pytest.mark.parametrize("error", [None, ValueError])
def test_the_mode_of_a_network_is_after_an_inference_what_it_was(
    make_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None
) -> None:
    """Batch normalisation in training mode would take the statistics of the image, and dropout draw."""
    adapter = unet()
    sample = adapter.preprocess(make_case((20, 24)))
    expected = adapter.predict_logits(sample)
    seen: list[bool] = []

    def look(*_: object) -> None:
        seen.append(any(module.training for module in adapter.modules()))
        if error is not None:
            raise error

    adapter.train()
    handle = adapter.module.register_forward_pre_hook(look)
    with pytest.raises(error) if error is not None else nullcontext():
        assert torch.equal(adapter.predict_logits(sample), expected)
    handle.remove()
    assert seen == [False]
    assert all(module.training for module in adapter.modules())
    adapter.eval()
    next(adapter.module.children()).train()
    assert torch.equal(adapter.predict_logits(sample), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("script", [True, False], ids=["TorchScript", "module"])
def test_a_gpu_gives_the_masks_of_the_cpu(script_folder: Path, make_case: Callable[..., Case], script: bool) -> None:
    adapter = TorchModuleAdapter.load(script_folder) if script else unet(ndim=3)
    assert_the_gpu_gives_the_masks_of_the_cpu(adapter, make_case((20, 24) if script else (10, 12, 9)))


def test_a_torchscript_module_given_by_hand_is_exported_under_its_own_name(tmp_path: Path) -> None:
    script = scripted(nn.Conv2d(1, K, 1))
    adapter = TorchModuleAdapter(script, SCHEMA, preprocessing(), network={"torchscript": "mine.pt"}).eval()
    adapter.export(tmp_path / "model")
    assert torch.equal(logits_of(TorchModuleAdapter.load(tmp_path / "model")), logits_of(adapter))


def test_a_copy_of_a_torchscript_segmenter_shares_nothing_with_it(script_folder: Path) -> None:
    adapter = TorchModuleAdapter.load(script_folder)
    before = logits_of(adapter)
    twin = copy.deepcopy(adapter)
    assert torch.equal(logits_of(twin), before)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert torch.equal(logits_of(adapter), before)


def test_a_frozen_torchscript_file_predicts_and_says_that_it_cannot_learn(
    tmp_path: Path, make_case: Callable[..., Case]
) -> None:
    folder = write_folder(tmp_path, network={"torchscript": "net.pt"})
    module = pointwise_adapter().module
    save_script(scripted(module, freeze=True), folder / "net.pt")
    adapter = TorchModuleAdapter.load(folder)
    case = make_case((16, 16))
    # The same pixels through the network before it was frozen.
    plain = TorchModuleAdapter(module, SCHEMA, preprocessing()).segment(case)
    assert np.array_equal(adapter.segment(case), plain)
    assert np.array_equal(copy.deepcopy(adapter).segment(case), plain)
    with pytest.raises(ModelError, match="no parameters in the scope 'all'"):
        adapter.trainable("all")


def test_frozen_torchscript_files_of_other_weights_are_not_one_segmenter(tmp_path: Path) -> None:
    """Their weights are constants of the code: a state dict would say that they are the same."""
    folder, found = write_folder(tmp_path, network={"torchscript": "net.pt"}), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_script(scripted(nn.Conv2d(1, K, 1), freeze=True), folder / "net.pt")
        first, second = TorchModuleAdapter.load(folder), TorchModuleAdapter.load(folder)
        assert first.inference_settings() == second.inference_settings()
        found.append(first.inference_settings())
    assert found[0] != found[1]


# Images in, label maps out


def a_geometry(draw: st.DrawFn, ndim: int) -> Geometry:
    spacing = tuple(draw(st.floats(0.1, 8.0)) for _ in range(ndim))
    origin = tuple(draw(st.floats(-200.0, 200.0)) for _ in range(ndim))
    matrix = np.random.default_rng(draw(st.integers(0, 999))).normal(size=(ndim, ndim))
    return Geometry(spacing, origin, tuple(np.linalg.qr(matrix)[0].ravel().tolist()))


@st.composite
def cases(draw: st.DrawFn, low: int, high: int) -> Case:
    ndim = draw(st.sampled_from([2, 3]))
    shape = tuple(draw(st.integers(low, high)) for _ in range(ndim))
    image = np.random.default_rng(draw(st.integers(0, 999))).uniform(size=(1, *shape)).astype(np.float32)
    return Case("p1_a", "p1", image, a_geometry(draw, ndim))


@settings(deadline=None, max_examples=25)
@given(case=cases(5, 40))
def test_on_the_native_grid_each_pixel_keeps_its_place(case: Case) -> None:
    """Shapes smaller and larger than the patch of 16, odd, anisotropic, turned in space."""
    adapter = pointwise_adapter(len(case.shape), grid="native", intensity="none")
    sample = adapter.preprocess(case)
    assert sample.geometry == case.geometry
    assert (sample.case_id, sample.patient_id, sample.native_shape) == ("p1_a", "p1", case.shape)
    clear = np.abs(case.image[0] - 0.5) > 1e-3
    assert np.array_equal(adapter.segment(case)[clear], (case.image[0] > 0.5)[clear].astype(np.uint8))
    size = sample.image.shape[1:]
    assert np.array_equal(adapter.restore_map(sample.image[0], sample), case.image[0])
    labels = (case.image[0] * K).astype(np.uint8)
    on_grid = adapter.preprocess_labels(labels, sample)
    assert on_grid.shape == size
    logits = nn.functional.one_hot(on_grid.long(), K).movedim(-1, 0).float()
    assert np.array_equal(adapter.restore(logits, sample), labels)


@settings(deadline=None, max_examples=25)
@given(case=cases(9, 40), axis=st.integers(0, 2))
def test_resizing_there_and_back_shifts_nothing(case: Case, axis: int) -> None:
    """Linear resampling keeps a ramp where no border is near, but for what its sampled kernel adds (0.03 seen)."""
    axis %= len(case.shape)
    ramp = np.indices(case.shape)[axis]
    adapter = pointwise_adapter(len(case.shape), intensity="none")
    sample = adapter.preprocess(Case("a", "a", ramp[None].astype(np.float32), case.geometry))
    assert sample.image.shape == (1, *adapter.patch_size)
    assert sample.geometry == case.geometry
    back = adapter.restore_map(sample.image[0], sample)
    assert back.shape == case.shape
    # Three pixels of the coarser grid: the reach of the filters from the border.
    inner = tuple(
        slice(margin, side - margin) for side in case.shape for margin in [int(np.ceil(3 * max(1, side / 16)))]
    )
    assert np.allclose(back[inner], ramp[inner], atol=0.1)


@pytest.mark.parametrize("shape", [(48, 32), (16, 48), (16, 16), (8, 8)])
def test_a_mask_goes_to_the_networks_grid_and_back(shape: tuple[int, ...]) -> None:
    adapter = pointwise_adapter()
    labels = np.zeros(shape, np.uint8)
    labels[shape[0] // 4 : shape[0] // 2, shape[1] // 4 :] = 2
    sample = adapter.preprocess(Case("a", "a", np.random.rand(1, *shape).astype(np.float32), Geometry.unknown(2)))  # noqa: NPY002
    mask = adapter.preprocess_labels(labels, sample)
    assert mask.dtype == torch.uint8
    expected = torch.zeros(16, 16, dtype=torch.uint8)
    expected[4:8, 4:] = 2
    assert torch.equal(mask, expected)
    logits = 10 * nn.functional.one_hot(mask.long(), K).movedim(-1, 0).float()
    # The contour lies between two pixels of the coarse grid: it may come back one coarse pixel away at most.
    wrong = adapter.restore(logits, sample) != labels
    assert wrong.mean() <= 0.07 * max(1.0, shape[0] / 16 / 3)
    assert not wrong[: shape[0] // 8].any()


@pytest.mark.parametrize(
    ("intensity", "expected"),
    # Of 0, 1, 2, 3: mean 1.5 and sample variance 5 / 3.
    [("none", [0.0, 1.0, 2.0, 3.0]), ("minmax", [0, 1 / 3, 2 / 3, 1]), ("zscore", [-1.1619, -0.3873, 0.3873, 1.1619])],
)
def test_each_channel_is_normalised_by_itself(intensity: str, expected: list[float]) -> None:
    conv = nn.Conv2d(2, K, 1)
    settings = preprocessing((2, 2), intensity=intensity)
    adapter = TorchModuleAdapter(conv, SCHEMA, settings, in_channels=2)
    image = np.arange(4, dtype=np.float32).reshape(1, 2, 2)
    sample = adapter.preprocess(Case("a", "a", np.concatenate([image, image]), Geometry.unknown(2)))
    assert torch.allclose(sample.image.reshape(2, 4), torch.tensor([expected] * 2), atol=1e-3)
    other = adapter.preprocess(Case("a", "a", np.concatenate([image, 100 * image]), Geometry.unknown(2)))
    assert torch.allclose(other.image[0], sample.image[0], atol=1e-6)
    if intensity != "none":
        assert torch.allclose(other.image[1], sample.image[1], atol=1e-4)


@pytest.mark.parametrize(
    "view",
    [lambda a: a[:, ::-1], lambda a: np.broadcast_to(a, a.shape), lambda a: a.astype(np.float64)],
    ids=["flipped", "read-only", "float64"],
)
def test_an_image_may_be_any_kind_of_array(view: Callable[[np.ndarray], np.ndarray]) -> None:
    image = view(np.random.default_rng(0).uniform(size=(1, 16, 16)).astype(np.float32))
    sample = pointwise_adapter(grid="native", intensity="none").preprocess(Case("a", "a", image, Geometry.unknown(2)))
    assert sample.image.dtype == torch.float32
    assert np.array_equal(sample.image.numpy(), image.astype(np.float32))
    before = image.copy()
    sample.image.zero_()
    assert np.array_equal(image, before)


@pytest.mark.parametrize("shape", [(37, 50), (16, 17), (20, 33, 18)])
def test_sliding_over_a_large_image_agrees_with_a_whole_pass_of_a_pointwise_network(shape: tuple[int, ...]) -> None:
    adapter = pointwise_adapter(len(shape), grid="native")
    images = torch.randn(2, 1, *shape, requires_grad=True)
    logits = adapter(images)
    assert torch.allclose(logits, adapter.module(images), atol=1e-4)
    logits.sum().backward()
    assert images.grad is not None
    # The gradient of each pixel is the sum of the weights, 10, however many patches cover it.
    assert torch.allclose(images.grad, torch.full_like(images, 10.0), atol=1e-3)


def test_segmenting_leaves_the_mode_as_it_was(make_case: Callable[..., Case]) -> None:
    adapter = unet().train()
    before = {name: value.clone() for name, value in adapter.state_dict().items()}
    first, second = adapter.segment(make_case()), adapter.segment(make_case())
    assert adapter.training
    assert np.array_equal(first, second)
    assert all(torch.equal(value, before[name]) for name, value in adapter.state_dict().items())


@pytest.mark.parametrize(
    ("shape", "channels", "message"),
    [
        ((16, 16), 3, r"case p1_a: the image has 3 channels and the segmenter takes 1"),
        ((4, 16, 16), 1, r"case p1_a: the image is 3-D and the segmenter 2-D"),
    ],
)
def test_an_image_that_the_segmenter_does_not_take_is_named(
    make_case: Callable[..., Case], shape: tuple[int, ...], channels: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        pointwise_adapter().preprocess(make_case(shape, channels))


@pytest.mark.parametrize("intensity", ["zscore", "minmax"])
def test_a_channel_of_one_value_is_named_rather_than_divided_by_zero(intensity: str) -> None:
    image = np.stack([np.ones((16, 16)), np.eye(16)]).astype(np.float32)
    adapter = TorchModuleAdapter(nn.Conv2d(2, K, 1), SCHEMA, preprocessing(intensity=intensity), in_channels=2)
    with pytest.raises(DataError, match="case dark: a channel has one value only"):
        adapter.preprocess(Case("dark", "p", image, Geometry.unknown(2)))


def test_a_network_with_other_classes_than_the_schema_is_named() -> None:
    adapter = TorchModuleAdapter(nn.Conv2d(1, K + 1, 1), SCHEMA, preprocessing())
    with pytest.raises(ModelError, match=r"shape \(2, 4, 16, 16\), \(2, 3, 16, 16\) are needed .* background, LV, MYO"):
        adapter(torch.randn(2, 1, 16, 16))


def test_a_whole_pickled_network_is_refused_with_how_to_save_its_weights(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, weights="net.pt")
    torch.save(nn.Conv2d(1, K, 1), folder / "net.pt")
    with pytest.raises(ModelError, match=r"net\.pt: .*Conv2d.*torch\.save\(model\.state_dict\(\), 'weights\.pt'\)"):
        TorchModuleAdapter.load(folder)


# What fine-tuning may change


@pytest.mark.parametrize("scope", ["all", "norm", "decoder"])
def test_every_trainable_parameter_receives_a_gradient(scope: str) -> None:
    adapter = unet()
    parameters = adapter.trainable(scope)  # type: ignore[arg-type]
    adapter(torch.randn(2, 1, 8, 8)).square().sum().backward()
    assert parameters
    assert [name for name, value in parameters.items() if value.grad is None or not value.grad.any()] == []
    assert {name: id(value) for name, value in adapter.named_parameters() if name in parameters} == {
        name: id(value) for name, value in parameters.items()
    }


class WithAuxiliaryHead(nn.Module):
    """As torchvision's DeepLabV3: what comes beside the output that is taken has layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, K, 1)
        self.auxiliary = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, K, 1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.encoder(images)
        return {"out": self.head(features), "aux": self.auxiliary(features)}


def test_structures_that_could_not_be_read_again_are_not_exported(tmp_path: Path) -> None:
    """The integers of an nnU-Net of regions, where a core outside of the whole has none."""
    nested = LabelSchema.from_regions({"whole": (1, 2), "core": (2,)}, order=(1, 2))
    build = {"factory": "torch.nn:Conv2d", "arguments": {"in_channels": 1, "out_channels": 2, "kernel_size": 1}}
    adapter = TorchModuleAdapter(nn.Conv2d(1, 2, 1), nested, preprocessing(), network=build)
    with pytest.raises(ModelError, match=r"no integer of its own for each of .*LabelSchema\.of_regions"):
        adapter.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    adapter.schema = LabelSchema.of_regions(["whole", "core"])
    adapter.export(tmp_path / "out")
    assert TorchModuleAdapter.load(tmp_path / "out").schema == adapter.schema


class KeepsFeatures(nn.Module):
    """As networks do whose feature maps somebody looks at later."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Conv2d(1, 4, 1), nn.Conv2d(4, K, 1)
        self.all: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.features = self.encoder(images)
        self.all[:] = [self.features, self.features * 2]
        logits: Tensor = self.head(self.features)
        return logits


def test_a_network_that_keeps_its_features_is_copied_after_a_pass_with_gradients() -> None:
    adapter = TorchModuleAdapter(KeepsFeatures(), SCHEMA, preprocessing())
    images = torch.randn(1, 1, 8, 8)
    expected = adapter(images)
    twin = copy.deepcopy(adapter)
    assert torch.equal(twin(images), expected)
    assert adapter.module.features.requires_grad


def test_layers_of_an_output_that_is_not_taken_keep_their_weights() -> None:
    adapter = TorchModuleAdapter(WithAuxiliaryHead(), SCHEMA, preprocessing(), output="out").requires_grad_(False)
    adapter.train()
    expected = {name for name, _ in adapter.named_parameters() if "auxiliary" not in name}
    assert adapter.trainable("all").keys() == expected
    assert adapter.trainable("norm").keys() == {"module.encoder.1.weight", "module.encoder.1.bias"}
    assert copy.deepcopy(adapter).trainable("all").keys() == expected
    # Nothing else has changed.
    assert adapter.training
    assert not any(parameter.requires_grad for parameter in adapter.parameters())
    assert int(adapter.module.encoder[1].num_batches_tracked) == 0


@pytest.mark.parametrize("channels", [(4, 8), (4, 8, 8), (4, 8, 8, 8)])
@pytest.mark.parametrize("residual_units", [0, 1])
def test_the_decoder_is_all_that_comes_after_the_deepest_level(channels: tuple[int, ...], residual_units: int) -> None:
    """Shown by what the deepest feature map depends on, not by names."""
    size = 2 ** (len(channels) - 1) * 2
    torch.manual_seed(0)
    adapter = TorchModuleAdapter.build_unet(
        NetworkSettings(channels=channels, norm="batch", residual_units=residual_units),
        SCHEMA,
        preprocessing((size, size)),
    ).eval()
    deepest = adapter.module.get_submodule(".".join(["model", *["1.submodule"] * (len(channels) - 1)]))
    seen: list[Tensor] = []
    deepest.register_forward_hook(lambda module, args, output: seen.append(output))
    adapter(torch.randn(2, 1, size, size))
    encoder = {
        name
        for (name, value), gradient in zip(
            adapter.named_parameters(),
            torch.autograd.grad(seen[0].square().sum(), list(adapter.parameters()), allow_unused=True),
            strict=True,
        )
        if gradient is not None
    }
    assert set(adapter.trainable("decoder")) == {name for name, _ in adapter.named_parameters()} - encoder
    assert encoder


def test_the_norm_scope_holds_scale_and_shift_of_every_normalisation_and_nothing_else() -> None:
    adapter = TorchModuleAdapter(
        nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.GroupNorm(2, 4),
            nn.InstanceNorm2d(4, affine=True),
            nn.PReLU(),
            nn.LayerNorm(16),
            nn.Conv2d(4, K, 1),
        ),
        SCHEMA,
        preprocessing(),
    )
    assert set(adapter.trainable("norm")) == {f"module.{i}.{leaf}" for i in (1, 2, 3, 5) for leaf in ("weight", "bias")}


@pytest.mark.parametrize(("scope", "norm"), [("norm", "instance"), ("decoder", None)])
def test_a_scope_that_the_network_lacks_is_refused_with_a_way_out(scope: str, norm: str | None) -> None:
    """Instance norm has no parameters here, and nobody said where the decoder of a bare module lies."""
    adapter = unet(norm=norm) if norm else pointwise_adapter()
    with pytest.raises(ModelError, match=f"scope '{scope}'; use segmenter.train: all"):
        adapter.trainable(scope)  # type: ignore[arg-type]


def test_a_copy_keeps_layers_that_were_frozen_in_evaluation_mode() -> None:
    adapter = unet().train()
    frozen = [module for module in adapter.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in frozen:
        module.eval()
    twin = copy.deepcopy(adapter)
    assert twin.training
    assert [module.training for module in twin.modules()] == [module.training for module in adapter.modules()]


# What is wrong with a folder


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("weights", ["weights.pt", "weights.pth", "weights.safetensors", "weights.bin"])
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path, weights: str, writer: str) -> None:
    folder, marker = write_folder(tmp_path / "model", weights=weights), tmp_path / "ran"
    content = {"state_dict": pointwise_state(), "extra": Bomb(marker)}
    if writer == "torch":
        torch.save(content, folder / weights)
    else:
        (folder / weights).write_bytes(pickle.dumps(content))
    with pytest.raises(ModelError, match=f"{weights}: (holds more than tensors|a damaged)"):
        TorchModuleAdapter.load(folder)
    assert not marker.exists()


def with_nan(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state["bias"][0] = torch.nan
    return state


def write_state(state: Any, path: Path) -> None:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"weight": s["weight"]}, "does not fit the network: misses 1 tensors, the first bias"),
        (lambda s: {**s, "more": torch.ones(1)}, "does not fit the network: has the unknown 1 tensors, the first more"),
        (lambda s: {**s, "bias": torch.ones(9)}, "does not fit the network: has other shapes for 1 .* bias"),
        (
            lambda s: {"weight": s["weight"], "more": torch.ones(1)},
            "does not fit the network: misses 1 tensors, the first bias; has the unknown 1 tensors, the first more",
        ),
        (
            lambda s: {f"net.module.{name}": value for name, value in {**s, "more": torch.ones(1)}.items()},
            "does not fit the network: has the unknown 1 tensors, the first more",
        ),
        (with_nan, "bias holds NaN or infinite values"),
        (lambda s: {**s, "bias": s["bias"] / 0}, "bias holds NaN or infinite values"),
    ],
    ids=["missing", "unknown", "shape", "missing and unknown", "prefix", "nan", "inf"],
)
def test_weights_that_do_not_fit_are_named(
    tmp_path: Path, suffix: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str
) -> None:
    folder = write_folder(tmp_path, weights=f"net{suffix}")
    write_state(change(pointwise_state()), folder / f"net{suffix}")
    with pytest.raises(ModelError, match=rf"net\{suffix}: {message}"):
        TorchModuleAdapter.load(folder)


@pytest.mark.parametrize(
    "content",
    [[1, 2], torch.ones(3), {"weight": [1.0], "bias": [2.0]}, {"state_dict": {1: 2, "a": 3}}, None],
    ids=["list", "tensor", "lists", "mixed keys", "none"],
)
def test_a_checkpoint_of_something_else_is_named_with_what_is_needed(tmp_path: Path, content: object) -> None:
    folder = write_folder(tmp_path, weights="net.pt")
    torch.save(content, folder / "net.pt")
    message = r"net\.pt: (not a state dict: tensors by name are needed, .*state_dict|holds .*, a dictionary is needed)"
    with pytest.raises(ModelError, match=message):
        TorchModuleAdapter.load(folder)


GARBAGE = [
    b"",
    b"not a checkpoint",
    b"\x00" * 200,
    b"\x80\x02",
    b"PK\x03\x04" + b"\x01" * 100,
    b"\x80\x02}q\x00.",
    b"h\x05.",
]


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt"])
@pytest.mark.parametrize("content", GARBAGE)
def test_bytes_that_are_no_checkpoint_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    folder = write_folder(tmp_path, weights=name)
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name}: (a damaged|holds)"):
        TorchModuleAdapter.load(folder)


@settings(deadline=None, max_examples=25)
@given(content=st.binary(max_size=200), prefix=st.sampled_from([b"", b"\x80\x02", b"\x80\x02c", b"PK\x03\x04"]))
def test_no_bytes_at_all_get_past_the_checkpoint_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, prefix: bytes
) -> None:
    folder = write_folder(tmp_path_factory.mktemp("garbage"), weights="net.pt")
    (folder / "net.pt").write_bytes(prefix + content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ModelError, match=r"net\.pt"):
            TorchModuleAdapter.load(folder)


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt"])
def test_a_truncated_missing_or_misplaced_checkpoint_is_named(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path, weights=name)
    with pytest.raises(ModelError, match=f"{name}: there is no such checkpoint; there is none"):
        TorchModuleAdapter.load(folder)
    write_state(pointwise_state(), folder / name)
    (folder / name).write_bytes((folder / name).read_bytes()[:-20])
    with pytest.raises(ModelError, match=f"{name}: a damaged"):
        TorchModuleAdapter.load(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(ModelError, match=f"{name}: there is no such checkpoint"):
        TorchModuleAdapter.load(folder)


@pytest.mark.parametrize("content", [None, b"", b"not a script"])
def test_what_is_no_torchscript_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    folder = write_folder(tmp_path, network={"torchscript": "net.pt"})
    if content is not None:
        (folder / "net.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"net\.pt: not a TorchScript file"):
        TorchModuleAdapter.load(folder)


def test_a_checkpoint_in_the_place_of_a_torchscript_file_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, network={"torchscript": "net.pt"})
    torch.save(pointwise_state(), folder / "net.pt")
    with pytest.raises(ModelError, match=r"net\.pt: not a TorchScript file"):
        TorchModuleAdapter.load(folder)


def test_a_torchscript_file_with_nan_in_it_is_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, network={"torchscript": "net.pt"})
    conv = nn.Conv2d(1, K, 1)
    conv.bias.data[0] = torch.nan  # type: ignore[union-attr]
    save_script(scripted(conv), folder / "net.pt")
    with pytest.raises(ModelError, match=r"net\.pt: bias holds NaN"):
        TorchModuleAdapter.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "nnunet"}, r"segmenter\.json: .*kind: Input should be 'torch', not 'nnunet'"),
        ({"format": 2}, r"segmenter\.json: format 2 was written by a newer version"),
        ({"schema": {"names": ["LV"], "ids": [1]}}, r"segmenter\.json: .*schema: .*background"),
        ({"schema": []}, r"segmenter\.json: .*schema: Input should be a valid dict"),
        ({"schema": {"names": ["background", "LV"], "ids": [0, "1"]}}, r"segmenter\.json: .*schema\.ids\.1: .*not '1'"),
        ({"in_channels": 0}, r"segmenter\.json: .*in_channels: .* greater than or equal to 1, not 0"),
        ({"in_channels": 1.5}, r"segmenter\.json: .*in_channels: Input should be a valid integer, not 1\.5"),
        ({"decoder_prefixes": "up"}, r"segmenter\.json: .*decoder_prefixes: Input should be a valid tuple, not 'up'"),
        ({"preprocessing": {"size": [16, 16], "sise": 1}}, r"segmenter\.json: .*preprocessing\.sise: there is no such"),
        ({"preprocesing": {}}, r"segmenter\.json: .*preprocesing: there is no such field; correct its name"),
        ({"network": {**POINTWISE, "weigths": "x"}}, r"segmenter\.json: .*network: is one of .*weigths"),
        ({"network": {**POINTWISE, "unet": {}}}, r"segmenter\.json: .*network: is one of .*'factory', 'unet'"),
        ({"network": {"magic": 1}}, r"segmenter\.json: .*network: is one of unet, factory .*; not \['magic'\]"),
        (
            {"network": {"unet": {"chanels": [4, 8]}}},
            r"segmenter\.json: .*network\.unet\.chanels: there is no such field",
        ),
        ({"network": {"factory": "no.such:thing"}}, r"segmenter\.json: factory 'no\.such:thing' cannot be called"),
        ({"network": {"factory": "torch.nn"}}, r"segmenter\.json: factory 'torch\.nn' cannot be called"),
        ({"network": {"factory": "torch.nn:Conv2d"}}, r"segmenter\.json: factory .* cannot be called"),
        ({"network": {"factory": "builtins:dict"}}, r"segmenter\.json: factory .* returned dict, not a torch module"),
    ],
)
def test_a_wrong_field_of_the_description_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_folder(tmp_path, **changes)
    save_file(pointwise_state(), tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match=f"(?s){message}"):
        TorchModuleAdapter.load(tmp_path)


@pytest.mark.parametrize("field", ["schema", "preprocessing", "network"])
def test_a_missing_field_of_the_description_is_named(tmp_path: Path, field: str) -> None:
    write_folder(tmp_path)
    description = json.loads((tmp_path / "segmenter.json").read_text())
    del description[field]
    (tmp_path / "segmenter.json").write_text(json.dumps(description))
    with pytest.raises(ModelError, match=rf"segmenter\.json: .*{field}: this field is needed"):
        TorchModuleAdapter.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "model: not a segmenter folder, there is no segmenter.json"),
        (b"{", r"segmenter\.json: not a JSON file"),
        (b"\xff\xfe", r"segmenter\.json: not a JSON file"),
        (b"[]", r"segmenter\.json: not a JSON object"),
    ],
)
def test_a_folder_that_is_no_segmenter_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    if content is not None:
        (folder / "segmenter.json").write_bytes(content)
    with pytest.raises(ModelError, match=message):
        TorchModuleAdapter.load(folder)


@pytest.mark.parametrize("size", [(18, 16), (16, 6)])
def test_a_size_that_the_unet_cannot_halve_is_refused_with_its_divisor(size: tuple[int, int]) -> None:
    with pytest.raises(ModelError, match=r"preprocessing\.size .*multiple of 4 for a UNet with 3 levels"):
        TorchModuleAdapter.build_unet(NetworkSettings(channels=(4, 8, 8)), SCHEMA, preprocessing(size))


# Writing


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Files cannot grow beyond `size` bytes: the nearest thing to a full disk that needs no rights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def large_adapter(kind: str) -> TorchModuleAdapter:
    conv = nn.Conv2d(1, K, 101)
    if kind == "script":
        return TorchModuleAdapter(scripted(conv), SCHEMA, preprocessing(), network={"torchscript": "net.pt"})
    return TorchModuleAdapter(conv, SCHEMA, preprocessing(), network=POINTWISE, weights=f"net.{kind}")


@pytest.mark.parametrize("kind", ["safetensors", "pt", "script"])
def test_a_full_disk_is_named_and_leaves_no_half_of_a_segmenter(tmp_path: Path, kind: str) -> None:
    adapter = large_adapter(kind)
    with files_limited_to(8192), pytest.raises(DataError, match=r"model.*cannot be written"):
        adapter.export(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    adapter.export(tmp_path / "model")
    assert len(list((tmp_path / "model").iterdir())) == 2


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    with pytest.raises(DataError, match="already exists and is not empty"):
        unet().export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]
