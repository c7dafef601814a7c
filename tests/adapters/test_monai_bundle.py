"""MONAI bundles through MONAI's own parser, transforms and inferers; the networks are tiny and random."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import UNet
from safetensors.torch import save_file
from support.monai_bundles import case_of, configuration, write_bundle
from support.on_cuda import assert_the_gpu_gives_the_masks_of_the_cpu

from medfm_rl.adapters import MonaiBundleAdapter
from medfm_rl.adapters.loading import exported_settings, load_segmenter
from medfm_rl.data.files import hash_file, hash_folder
from medfm_rl.errors import DataError, ModelError
from medfm_rl.networks import hash_weights
from medfm_rl.settings import MonaiBundleSettings
from medfm_rl.types import Case, Geometry, GridAxes

KINDS = {
    "volumes": (3, 1, None),
    "volumes, nested": (3, 1, "model"),
    "volumes of two channels": (3, 2, None),
    "images": (2, 1, "state_dict"),
    "images of two channels": (2, 2, None),
}


@pytest.fixture(params=KINDS)
def adapter_and_case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[MonaiBundleAdapter, Case]:
    dimensions, channels, container = KINDS[request.param]
    bundle = write_bundle(tmp_path / "bundle", dimensions, channels, container)
    return MonaiBundleAdapter(bundle), case_of(dimensions, channels, tmp_path / "images")


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=8, deadline=None)
@given(
    axes=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    codes=st.sampled_from(["RAS", "LPS", "SPL", "AIR"]),
)
def test_a_mask_of_the_network_is_turned_back_as_its_file_lies(
    tmp_path_factory: pytest.TempPathFactory, axes: list[int], signs: tuple[float, ...], codes: str
) -> None:
    bundle = write_bundle(tmp_path_factory.mktemp("monai") / "bundle", 3)
    path = bundle / "configs" / "inference.json"
    config = json.loads(path.read_text())
    transforms = config["preprocessing"]["transforms"]
    orientation = next(step for step in transforms if step["_target_"] == "Orientationd")
    orientation["axcodes"] = codes
    transforms.remove(next(step for step in transforms if step["_target_"] == "Spacingd"))
    path.write_text(json.dumps(config))
    adapter = MonaiBundleAdapter(bundle)
    rng, shape = np.random.default_rng(0), (16, 17, 18)
    direction = tuple((np.eye(3)[axes] * signs).ravel().tolist())
    geometry = Geometry((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), direction)
    sample = adapter.preprocess(Case("a", "a", rng.normal(size=(1, *shape)).astype(np.float32), geometry))
    mask = rng.integers(0, 3, shape).astype(np.uint8)
    on_grid = adapter.preprocess_labels(mask, sample).numpy()
    assert np.array_equal(adapter.grid_axes(sample).in_image(on_grid), mask)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("spacing", [(0.9, 1.1), None])
def test_a_plane_of_the_network_has_rows_and_columns_of_the_image(
    tmp_path: Path, spacing: tuple[float, ...] | None
) -> None:
    adapter = MonaiBundleAdapter(write_bundle(tmp_path / "bundle", 2))
    case = case_of(2, 1, tmp_path / "images")
    sample = adapter.preprocess(replace(case, geometry=replace(case.geometry, spacing=spacing, header=None)))
    assert adapter.grid_axes(sample) == GridAxes((1, 0), (False, False))


def official_mask(bundle: Path, images: Path, weights: dict[str, torch.Tensor]) -> np.ndarray:
    """What MONAI makes of the bundle: its transforms, its inferer, its postprocessing."""
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser["device"] = "cpu"
    network = parser.get_parsed_content("network")
    network.load_state_dict(weights)
    files = [str(path) for path in sorted(images.iterdir())]
    data = parser.get_parsed_content("preprocessing")({"image": files if len(files) > 1 else files[0]})
    with torch.no_grad():
        data["pred"] = parser.get_parsed_content("inferer")(inputs=data["image"][None], network=network.eval())[0]
    restored = np.asarray(parser.get_parsed_content("postprocessing")(data)["pred"])[0]
    return restored.transpose(*reversed(range(restored.ndim)))


@pytest.mark.filterwarnings("ignore")
def test_masks_are_those_of_monai_before_and_after_a_change(
    adapter_and_case: tuple[MonaiBundleAdapter, Case], tmp_path: Path
) -> None:
    adapter, case = adapter_and_case
    before = hash_folder(adapter.folder)
    first = adapter.segment(case)
    assert np.array_equal(first, official_mask(adapter.folder, tmp_path / "images", adapter.network.state_dict()))
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1)
    adapter.export(tmp_path / "out")
    content = torch.load(tmp_path / "out" / "models" / "model.pt", weights_only=True)
    original = torch.load(adapter.folder / "models" / "model.pt", weights_only=True)
    assert content.keys() == original.keys()
    nested = next((key for key in ("model", "state_dict") if key in content), None)
    if nested:
        assert content["epoch"] == 3
    state = content[nested] if nested else content
    changed = adapter.segment(case)
    assert np.array_equal(changed, official_mask(tmp_path / "out", tmp_path / "images", state))
    assert not np.array_equal(first, changed)
    assert not (tmp_path / "out" / "models" / "model.ts").exists()
    assert hash_folder(adapter.folder) == before


@pytest.mark.filterwarnings("ignore")
def test_masks_for_training_lie_on_the_image(adapter_and_case: tuple[MonaiBundleAdapter, Case]) -> None:
    adapter, case = adapter_and_case
    bright = (case.image[0] > np.percentile(case.image[0], 75)).astype(np.uint8)
    sample = adapter.preprocess(case)
    mask = adapter.preprocess_labels(bright, sample)
    inside, outside = sample.image[0][mask == 1], sample.image[0][mask == 0]
    assert float(inside.median()) > float(outside.quantile(0.9))


@pytest.mark.cuda
@pytest.mark.filterwarnings("ignore")
def test_a_gpu_gives_the_masks_of_the_cpu(tmp_path: Path) -> None:
    """Also where the bundle's inferer says where tiles and results are to be."""
    bundle = write_bundle(tmp_path / "bundle", 3)
    path = bundle / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["inferer"] |= {"sw_device": "@device", "device": "@device"}
    path.write_text(json.dumps(config))
    case = case_of(3, 1, tmp_path / "images")
    assert_the_gpu_gives_the_masks_of_the_cpu(MonaiBundleAdapter(bundle), case)


def remove(path: str) -> Callable[[Path], object]:
    return lambda folder: (folder / path).unlink()


def change(path: str, *keys: str, to: Any = None) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / path).read_text())
        inner = content
        for key in keys[:-1]:
            inner = inner[key]
        if to is None:
            del inner[keys[-1]]
        else:
            inner[keys[-1]] = to
        (folder / path).write_text(json.dumps(content))

    return edit


CONFIG, META = "configs/inference.json", "configs/metadata.json"
PREDICTION = ("network_data_format", "outputs", "pred")
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no metadata": (remove(META), "not a MONAI bundle"),
    "no configuration": (remove(CONFIG), r"no configs/inference\.json"),
    "no weights": (remove("models/model.pt"), r"model\.pt: there is no such checkpoint"),
    "truncated": (lambda folder: (folder / "models" / "model.pt").write_bytes(b"PK"), "damaged or truncated"),
    "no network": (change(CONFIG, "network"), "there is no network"),
    "network of nobody": (change(CONFIG, "network_def", "_target_", to="NoSuchNet"), "network cannot be built"),
    "other network": (change(CONFIG, "network_def", "channels", to=[4, 16]), "other shapes"),
    "no classes": (change(META, *PREDICTION, "channel_def"), "channel_def"),
    "too few names": (change(META, *PREDICTION, "channel_def", to={"0": "background"}), "must name 3 channels"),
    "sigmoid": (
        change(CONFIG, "postprocessing", "transforms", to=[{"_target_": "Activationsd", "sigmoid": True}]),
        "must name 3 structures that may overlap, and no background",
    ),
    "no size": (change(CONFIG, "inferer", to={"_target_": "SimpleInferer"}), ""),
}


def one_logit(folder: Path, *steps: dict[str, Any]) -> Path:
    """Makes a bundle one of a single structure with one logit, as those of the model zoo write it."""
    config = json.loads((folder / CONFIG).read_text())
    config["network_def"]["out_channels"] = 1
    invert = next(step for step in config["postprocessing"]["transforms"] if step["_target_"] == "Invertd")
    config["postprocessing"]["transforms"] = [
        {"_target_": "Activationsd", "keys": "pred", "sigmoid": True},
        invert,
        {"_target_": "AsDiscreted", "keys": "pred", "threshold": 0.5},
        *steps,
    ]
    (folder / CONFIG).write_text(json.dumps(config))
    described = json.loads((folder / META).read_text())
    described["network_data_format"]["outputs"]["pred"] = {"num_channels": 1, "channel_def": {"0": "tumour"}}
    (folder / META).write_text(json.dumps(described))
    torch.manual_seed(1)
    parser_network = UNet(2, 1, 1, channels=[4, 8], strides=[2], norm="instance")
    torch.save(parser_network.state_dict(), folder / "models" / "model.pt")
    return folder


@pytest.mark.filterwarnings("ignore")
def test_masks_of_a_bundle_with_one_logit_are_those_of_monai(tmp_path: Path) -> None:
    adapter = MonaiBundleAdapter(one_logit(write_bundle(tmp_path / "bundle", 2)))
    case = case_of(2, 1, tmp_path / "images")
    assert adapter.schema.integers == {"background": 0, "tumour": 1}
    expected = official_mask(adapter.folder, tmp_path / "images", adapter.network.state_dict())
    assert 0 < expected.mean() < 1
    assert np.array_equal(adapter.segment(case), expected)
    images = torch.randn(2, 1, 16, 16)
    assert torch.allclose(adapter(images).softmax(dim=1)[:, 1:], adapter.network(images).sigmoid(), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda folder: one_logit(folder, {"_target_": "AsDiscreted", "threshold": 0.3}),
            r"at 0\.3, .* threshold to 0\.5",
        ),
        (
            lambda folder: change(META, *PREDICTION, "channel_def", to={"0": "a", "1": "b"})(one_logit(folder)),
            "must name the one structure of an output of 1 channel, not a, b",
        ),
    ],
)
def test_one_logit_that_is_cut_elsewhere_or_has_two_names_is_refused(
    tmp_path: Path, break_it: Callable[[Path], object], message: str
) -> None:
    folder = write_bundle(tmp_path / "bundle", 2)
    break_it(folder)
    with pytest.raises(ModelError, match=message):
        MonaiBundleAdapter(folder)


def test_steps_after_the_decision_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_bundle(tmp_path / "bundle", 2)
    MonaiBundleAdapter(folder)
    assert not any("also does" in message for message in caplog.messages)
    content = json.loads((folder / CONFIG).read_text())
    content["postprocessing"]["transforms"] += [
        {"_target_": "monai.transforms.KeepLargestConnectedComponentd", "keys": "pred"},
        {"_target_": "FillHolesd", "keys": "pred", "_disabled_": True},
        {"_target_": "SaveImaged", "keys": "pred"},
    ]
    (folder / CONFIG).write_text(json.dumps(content))
    MonaiBundleAdapter(folder)
    assert sum("also does KeepLargestConnectedComponentd, which" in message for message in caplog.messages) == 1


@pytest.mark.filterwarnings("ignore")
def test_a_postprocessing_that_stands_elsewhere_is_found(tmp_path: Path) -> None:
    """A sigmoid that is not seen would make a softmax of structures that overlap."""
    folder = write_bundle(tmp_path / "bundle", 2, overlap=True)
    content = json.loads((folder / CONFIG).read_text())
    content["post"] = {
        "steps": content["postprocessing"]["transforms"],
        "first": content["postprocessing"]["transforms"][0],
    }
    content["post"]["steps"][0] = "@post#first"
    content["postprocessing"]["transforms"] = "@post#steps"
    (folder / CONFIG).write_text(json.dumps(content))
    assert MonaiBundleAdapter(folder).schema.overlaps
    content["postprocessing"]["transforms"] = "$@post#steps + []"
    (folder / CONFIG).write_text(json.dumps(content))
    with pytest.raises(ModelError, match="does not say whether the outputs go through a softmax or a sigmoid"):
        MonaiBundleAdapter(folder)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", [True, False])
def test_masks_of_overlapping_structures_are_those_of_the_bundle(tmp_path: Path, first: bool) -> None:
    """Its own network, inferer and postprocessing give a channel for each structure; ours are their bit masks."""
    folder = write_bundle(tmp_path / "bundle", 3, overlap=True)
    if not first:
        content = json.loads((folder / CONFIG).read_text())
        steps = content["postprocessing"]["transforms"]
        steps[0], steps[1] = steps[1], steps[0]
        (folder / CONFIG).write_text(json.dumps(content))
    adapter, case = MonaiBundleAdapter(folder), case_of(3, 1, tmp_path / "images")
    assert adapter.schema.integers["core+enhancing"] == 5
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(folder / CONFIG))
    parser["device"] = "cpu"
    data = parser.get_parsed_content("preprocessing")({"image": str(next((tmp_path / "images").iterdir()))})
    with torch.no_grad():
        data["pred"] = parser.get_parsed_content("inferer")(data["image"][None], adapter.network)[0]
    own = np.asarray(parser.get_parsed_content("postprocessing")(data)["pred"]).transpose(0, 3, 2, 1)
    ours = adapter.segment(case)
    assert len(np.unique(ours)) > 3
    assert [np.array_equal(own[bit], ours >> bit & 1) for bit in range(3)] == [True] * 3


@pytest.mark.filterwarnings("ignore")
def test_overlapping_structures_that_are_cut_elsewhere_than_at_a_half_are_refused(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle", 2, overlap=True)
    change(CONFIG, "postprocessing", "transforms", to=[{"sigmoid": True}, {"threshold": 0.3}])(folder)
    with pytest.raises(ModelError, match=r"cuts the probability at 0\.3.*set threshold to 0\.5"):
        MonaiBundleAdapter(folder)


@pytest.mark.filterwarnings("ignore")
def test_weights_in_safetensors_stay_so(tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle", 2)
    old = folder / "models" / "model.pt"
    save_file(torch.load(old, weights_only=True), folder / "models" / "model.safetensors")
    old.unlink()
    bundle = MonaiBundleAdapter(folder, "model.safetensors")
    bundle.export(tmp_path / "out")
    again = MonaiBundleAdapter(tmp_path / "out", "model.safetensors")
    assert hash_weights(again) == hash_weights(bundle)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("place", "exported"),
    [
        ("absolute", "net.pt"),
        ("../../mine/net.pt", "net.pt"),
        # Within the bundle the name stays: its configuration may refer to it.
        ("fold0/net.pt", "fold0/net.pt"),
        ("../net.pt", "../net.pt"),
    ],
)
def test_weights_from_elsewhere_are_read_and_the_export_lies_in_its_own_folder(
    tmp_path: Path, place: str, exported: str
) -> None:
    folder = write_bundle(tmp_path / "bundle", 2)
    name = str(tmp_path / "mine" / "net.pt") if place == "absolute" else place
    path = (folder / "models" / name).resolve()
    path.parent.mkdir(exist_ok=True)
    (folder / "models" / "model.pt").rename(path)
    before = hash_file(path)
    settings = MonaiBundleSettings(kind="monai-bundle", folder=folder, weights=name)
    adapter = load_segmenter(settings)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(1.0)
    adapter.export(tmp_path / "runs" / "out")
    assert hash_file(path) == before
    assert (tmp_path / "runs" / "out" / "models" / exported).is_file()
    again = exported_settings(settings, tmp_path / "runs" / "out")
    assert again == MonaiBundleSettings(kind="monai-bundle", folder=tmp_path / "runs" / "out", weights=exported)
    assert hash_weights(load_segmenter(again)) == hash_weights(adapter)


@pytest.mark.filterwarnings("ignore")
def test_heads_of_deep_supervision_keep_their_weights(tmp_path: Path) -> None:
    from monai.networks.nets import DynUNet

    bundle = write_bundle(tmp_path / "bundle", 2)
    network = {
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": 3,
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 4, 4],
        "deep_supervision": True,
    }
    change("configs/inference.json", "network_def", to={"_target_": "DynUNet", **network})(bundle)
    torch.save(DynUNet(**network).state_dict(), bundle / "models" / "model.pt")
    adapter = MonaiBundleAdapter(bundle)
    left_out = {name for name, _ in adapter.named_parameters()} - adapter.trainable("all").keys()
    assert left_out == {f"network.deep_supervision_heads.0.conv.conv.{part}" for part in ("weight", "bias")}
    # The network keeps what its heads gave.
    images = torch.zeros(1, 1, *adapter.patch_size)
    logits = adapter(images)
    assert torch.equal(copy.deepcopy(adapter)(images), logits)


def test_what_stands_beside_the_weights_is_exported_too(tmp_path: Path) -> None:
    bundle = MonaiBundleAdapter(write_bundle(tmp_path / "bundle", 2, container="state_dict"))
    bundle.export(tmp_path / "out")
    content = torch.load(tmp_path / "out" / "models" / "model.pt", weights_only=True)
    assert content.keys() == {"state_dict", "epoch"}
    assert content["epoch"] == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", BROKEN)
def test_a_bundle_that_cannot_be_adapted_is_named(tmp_path: Path, what: str) -> None:
    damage, message = BROKEN[what]
    folder = write_bundle(tmp_path / "bundle", 3)
    damage(folder)
    if what == "no size":
        # Without a sliding window the metadata says it.
        assert MonaiBundleAdapter(folder).patch_size == (16, 16, 16)
        change(META, "network_data_format", "inputs", "image", "spatial_shape", to=["*", "*", "*"])(folder)
        message = "size of the network's input is not known"
    with pytest.raises(ModelError, match=message) as caught:
        MonaiBundleAdapter(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("nested", [False, True])
def test_an_image_without_a_spacing_is_not_resampled_as_if_it_were_1_mm(tmp_path: Path, nested: bool) -> None:
    """Where nothing is resampled by mm, as in the bundle as it is, a PNG is welcome."""
    folder = write_bundle(tmp_path / "bundle", 2)
    image = np.random.default_rng(0).normal(size=(1, 20, 24)).astype(np.float32)
    case = Case("frame_7", "p1", image, Geometry.unknown(2))
    assert MonaiBundleAdapter(folder).preprocess(case).image.shape == (1, 32, 32)
    spacing: dict[str, Any] = {"_target_": "Spacingd", "keys": "image", "pixdim": [0.5, 0.5]}
    step = {"_target_": "Compose", "transforms": [spacing]} if nested else spacing
    change(CONFIG, "preprocessing", "transforms", to=[*configuration(2, 1)["preprocessing"]["transforms"], step])(
        folder
    )
    with pytest.raises(DataError, match=r"case frame_7: the file does not say its spacing.*bundle resamples by it"):
        MonaiBundleAdapter(folder).preprocess(case)
    known = replace(case, geometry=replace(case.geometry, spacing=(1.0, 1.0)))
    assert MonaiBundleAdapter(folder).preprocess(known).image.ndim == 3


@pytest.mark.filterwarnings("ignore")
def test_images_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    adapter = MonaiBundleAdapter(write_bundle(tmp_path / "bundle", 2))
    with pytest.raises(DataError, match="3-D and the segmenter 2-D"):
        adapter.preprocess(Case("v", "v", np.ones((1, 8, 8, 8), np.float32), Geometry.unknown(3)))
    flat = Case("v", "v", np.ones((2, 8, 8), np.float32), Geometry.unknown(2))
    with pytest.raises(DataError, match="2 channels and the segmenter takes 1"):
        adapter.preprocess(flat)
    assert copy.deepcopy(adapter).tool is adapter.tool
    assert replace(flat, case_id="w").shape == (8, 8)
