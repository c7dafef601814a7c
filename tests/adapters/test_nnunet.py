"""nnU-Net through its own files, functions and commands; every network is tiny and none was trained."""

from __future__ import annotations

import copy
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from medfm_rl.adapters import NnUNetAdapter, TorchModuleAdapter
from medfm_rl.adapters.base import without_gradient
from medfm_rl.adapters.loading import exported_settings, load_segmenter
from medfm_rl.adapters.nnunet.adapter import PROVENANCE
from medfm_rl.adapters.nnunet.summary import summarise
from medfm_rl.data.files import hash_file, hash_folder
from medfm_rl.data.images import write_labels
from medfm_rl.envs import SegmentationVecEnv
from medfm_rl.errors import DataError, MissingExtraError, ModelError
from medfm_rl.networks import hash_weights
from medfm_rl.policies import DensePPO
from medfm_rl.settings import NnUNetSettings, PPOHyperparameters, PreprocessingSettings
from medfm_rl.types import Case, Geometry

pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed (extra nnunet)")
from support.nnunet_models import (
    FLAT,
    LABELS,
    MODELS,
    VOLUME,
    dataset,
    nnunet_masks,
    nnunet_predict,
    plans,
    read,
    read_labels,
    region_dataset,
    volumetric,
    write_case,
    write_model,
)

pytestmark = pytest.mark.nnunet

ORDER_KEY = "regions_class_order"
OBLIQUE = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)


@pytest.fixture
def flat(tmp_path: Path) -> Case:
    return read(write_case(tmp_path / "images" / "p1_a_0000.nii.gz", *FLAT))


@pytest.fixture
def volume(tmp_path: Path) -> Case:
    return read(write_case(tmp_path / "images" / "p1_v_0000.nii.gz", *VOLUME))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", plans(2, [32, 32], [0.8, 0.8]))


@pytest.fixture(params=MODELS)
def adapter_and_case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[NnUNetAdapter, Case]:
    plan, folds, kind = MODELS[request.param]
    folder = write_model(tmp_path / "some model", plan(), folds=folds)
    case: Case = request.getfixturevalue(kind)
    return NnUNetAdapter(folder), case


def test_logits_with_gradients_are_those_of_nnunet(adapter_and_case: tuple[NnUNetAdapter, Case]) -> None:
    """nnU-Net adds up tiles in half precision: a pixel between two classes may fall to the other side."""
    adapter, case = adapter_and_case
    adapter.mirroring = False
    sample = adapter.preprocess(case)
    official = adapter.predict_logits(sample)
    logits = adapter(sample.image[None])[0]
    assert logits.requires_grad
    assert float((logits.argmax(dim=0) != official.argmax(dim=0)).float().mean()) < 0.005
    # In the corners of a volume its weights are so small that half precision leaves whole numbers of the logits.
    inner = (slice(None), *(slice(4, -4) for _ in case.shape))
    assert torch.allclose(logits[inner], official[inner].float(), atol=0.02 * float(official.abs().max()))


def test_every_parameter_but_unused_heads_learns(model: Path, flat: Case) -> None:
    adapter = NnUNetAdapter(model)
    image = adapter.preprocess(flat).image[None]
    everything = dict(adapter.named_parameters())
    unused = without_gradient(adapter, everything, image)
    assert sorted(unused) == [f"networks.0.decoder.seg_layers.0.{part}" for part in ("bias", "weight")]
    assert adapter.trainable("all").keys() == everything.keys() - set(unused)
    assert all(".norm." in name for name in adapter.trainable("norm"))
    assert all(".decoder." in name for name in adapter.trainable("decoder"))


def official_mask(adapter: NnUNetAdapter, path: Path, folds: tuple[int, ...] = (0,)) -> np.ndarray:
    """nnU-Net's own way from a file to a mask, in this process."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(adapter.folder), folds)
    image, properties = predictor.plans_manager.image_reader_writer_class().read_images([str(path)])
    mask = predictor.predict_single_npy_array(image, properties)
    return np.asarray(mask)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "3d, reoriented"])
def test_masks_are_those_of_nnunet(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    plan, folds, of = MODELS[kind]
    adapter = NnUNetAdapter(write_model(tmp_path / "some model", plan(), folds=folds))
    case: Case = request.getfixturevalue(of)
    expected = official_mask(adapter, tmp_path / "images" / f"{case.case_id}_0000.nii.gz", folds)
    ours = adapter.segment(case)
    assert len(np.unique(ours)) > 1
    assert np.array_equal(ours, expected.reshape(ours.shape))


@pytest.mark.parametrize("kind", ["2d, two folds", "3d"])
def test_masks_of_regions_are_those_of_nnunet(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    plan, folds, of = MODELS[kind]
    adapter = NnUNetAdapter(write_model(tmp_path / "some model", plan(), region_dataset(), folds=folds))
    assert (adapter.schema.structures, adapter.schema.num_classes) == (("whole", "core", "enhancing"), 8)
    case: Case = request.getfixturevalue(of)
    expected = official_mask(adapter, tmp_path / "images" / f"{case.case_id}_0000.nii.gz", folds)
    ours = adapter.schema.to_ids(adapter.segment(case))
    assert len(np.unique(ours)) > 1
    assert np.array_equal(ours, expected.reshape(ours.shape))


def test_regions_that_cannot_be_written_are_refused_with_what_is_missing(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", plans(2, [32, 32], [1.0, 1.0]), region_dataset())
    whole = json.loads((folder / "dataset.json").read_text())

    def refuses(said: str, **changes: Any) -> None:
        (folder / "dataset.json").write_text(json.dumps({**whole, **changes}))
        with pytest.raises(ModelError, match=said):
            NnUNetAdapter(folder)

    refuses(r"regions_class_order, the integer that is written for each of the 3 .* is missing", **{ORDER_KEY: None})
    refuses(r"regions_class_order.* is \[1, 2\]", **{ORDER_KEY: [1, 2]})
    refuses("do not agree", **{ORDER_KEY: [1, 2, 9]})
    refuses(
        r"dataset\.json: labels and regions_class_order: 'core' and 'enhancing' are both .* 2, .*'enhancing' is lost",
        **{ORDER_KEY: [1, 2, 2]},
    )
    refuses("do not agree", labels={"background": 0, "whole": [0, 1], "core": 2, "rim": 3})
    many = {"background": 0, **{f"s{index}": [index, 7] for index in range(1, 7)}}
    refuses("6 structures overlap.*at most 5", labels=many, regions_class_order=[1, 2, 3, 4, 5, 6])


def test_reoriented_volumes_give_the_masks_that_nnunet_writes(tmp_path: Path) -> None:
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

    path = write_case(tmp_path / "images" / "p1_v_0000.nii.gz", (9, 40, 36), (0.8, 0.9, 3.0), direction=OBLIQUE)
    plan = volumetric(image_reader_writer="NibabelIOWithReorient")
    adapter = NnUNetAdapter(write_model(tmp_path / "model", plan))
    _, properties = NibabelIOWithReorient().read_images([str(path)])
    NibabelIOWithReorient().write_seg(official_mask(adapter, path), str(tmp_path / "mask.nii.gz"), properties)
    assert np.array_equal(adapter.segment(read(path)), read_labels(tmp_path / "mask.nii.gz"))


def test_masks_for_training_lie_on_the_image(adapter_and_case: tuple[NnUNetAdapter, Case]) -> None:
    """A mask of the bright pixels stays on the bright pixels through every step, and comes back."""
    adapter, case = adapter_and_case
    bright = (case.image[0] > np.percentile(case.image[0], 70)).astype(np.uint8)
    sample = adapter.preprocess(case)
    mask = adapter.preprocess_labels(bright, sample)
    assert mask.shape == sample.image.shape[1:]
    assert mask.dtype == torch.uint8
    inside, outside = sample.image[0][mask == 1], sample.image[0][sample.content][mask[sample.content] == 0]
    assert float(inside.quantile(0.1)) > float(outside.quantile(0.8))
    certain = 10 * torch.nn.functional.one_hot(mask.long(), adapter.schema.num_classes).movedim(-1, 0).float()
    again = adapter.restore(certain, sample)
    overlap = 2 * np.sum((again == 1) & (bright == 1)) / (np.sum(again == 1) + np.sum(bright == 1))
    assert overlap > 0.93


def test_a_mirrored_average_is_not_part_of_the_gradients(model: Path, flat: Case) -> None:
    adapter = NnUNetAdapter(model)
    sample = adapter.preprocess(flat)
    mirrored = adapter.predict_logits(sample)
    adapter.mirroring = False
    assert not torch.equal(mirrored, adapter.predict_logits(sample))


def test_how_convolutions_are_done_on_a_gpu_is_left_as_it_was(
    model: Path, flat: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nnU-Net sets it for the whole process; no GPU is needed to see that."""
    adapter = NnUNetAdapter.load(model)
    sample = adapter.preprocess(flat)
    seen: list[bool] = []

    def infer(self: Any, data: Tensor) -> Tensor:
        seen.append(torch.backends.cudnn.benchmark)
        return torch.zeros(len(LABELS), *data.shape[1:])

    monkeypatch.setattr(NnUNetAdapter, "device", torch.device("cuda"))
    monkeypatch.setattr(
        "nnunetv2.inference.predict_from_raw_data.nnUNetPredictor.predict_sliding_window_return_logits", infer
    )
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    adapter.predict_logits(sample)
    assert seen == [True] * len(adapter.networks)
    assert not torch.backends.cudnn.benchmark


def test_numbers_that_half_precision_cannot_hold_are_the_case_s_problem(
    model: Path, flat: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = NnUNetAdapter.load(model)

    def overflow(self: Any, data: Tensor) -> Tensor:
        raise RuntimeError("Encountered inf in predicted array. Aborting...")

    monkeypatch.setattr(
        "nnunetv2.inference.predict_from_raw_data.nnUNetPredictor.predict_sliding_window_return_logits", overflow
    )
    with pytest.raises(DataError, match=f"case {flat.case_id}: .* half precision cannot hold"):
        adapter.predict_logits(adapter.preprocess(flat))


def test_copies_share_what_nnunet_knows_and_no_weight(model: Path) -> None:
    adapter = NnUNetAdapter(model)
    twin = copy.deepcopy(adapter)
    assert twin.tool is adapter.tool
    assert not {id(value) for value in twin.parameters()} & {id(value) for value in adapter.parameters()}


@dataclass(frozen=True)
class Exported:
    """Exports of two folds, unchanged and changed, and nnU-Net's masks with each: its command's of the changed one."""

    root: Path
    changed: NnUNetAdapter
    hash_before: str


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    root = tmp_path_factory.mktemp("exported")
    for name, seed in (("p1_a", 0), ("p2_b", 1)):
        write_case(root / "images" / f"{name}_0000.nii.gz", (37, 50 + seed), (0.7, 0.9), seed)
    plan = plans(2, [32, 32], [0.8, 0.8]) | {"transpose_forward": [0, 2, 1], "transpose_backward": [0, 2, 1]}
    base = write_model(root / "base", plan, folds=(0, 1, 2))
    (base / "fold_0" / "progress.png").write_bytes(b"a picture")
    (base / "fold_0" / "checkpoint_best.pth").write_bytes(b"another")
    (base / "fold_0" / "validation").mkdir()
    (base / "fold_0" / "validation" / "summary.json").write_text("{}")
    (base / "fold_0" / "validation" / "p9.nii.gz").write_bytes(b"a mask of the old weights")
    before = hash_folder(base)
    adapter = NnUNetAdapter(base, folds=(0, 1))
    adapter.export(root / "same")
    with torch.no_grad():
        for index, parameter in enumerate(adapter.trainable("all").values()):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    adapter.export(root / "changed")
    for name, write_masks in (("same", nnunet_masks), ("changed", nnunet_predict)):
        write_masks(root / name, root / "images", root / f"masks {name}", folds=(0, 1))
    return Exported(root, adapter, before)


@pytest.mark.slow
def test_an_export_without_a_change_gives_the_same_masks(exported: Exported) -> None:
    base = NnUNetAdapter(exported.root / "base", folds=(0, 1))
    for name in ("p1_a", "p2_b"):
        expected = official_mask(base, exported.root / "images" / f"{name}_0000.nii.gz", (0, 1))[0]
        assert np.array_equal(read_labels(exported.root / "masks same" / f"{name}.nii.gz"), expected)


@pytest.mark.slow
def test_the_command_of_nnunet_gives_our_masks_after_a_change(exported: Exported) -> None:
    for name in ("p1_a", "p2_b"):
        same, changed = (
            read_labels(exported.root / f"masks {kind}" / f"{name}.nii.gz") for kind in ("same", "changed")
        )
        ours = exported.changed.segment(read(exported.root / "images" / f"{name}_0000.nii.gz"))
        assert np.array_equal(ours, changed)
        assert (same != changed).mean() > 0.01


@pytest.mark.slow
def test_an_export_changes_every_alias_and_keeps_everything_else(exported: Exported) -> None:
    aliases = 0
    for fold in (0, 1):
        old, new = (
            torch.load(exported.root / name / f"fold_{fold}" / "checkpoint_final.pth", weights_only=False)
            for name in ("base", "changed")
        )
        assert new.keys() == old.keys() | {PROVENANCE}
        before, after = old["network_weights"], new["network_weights"]
        assert list(before) == list(after)
        for key, value in before.items():
            assert (value.shape, value.dtype) == (after[key].shape, after[key].dtype)
            learns = "seg_layers.0" not in key
            assert torch.equal(value, after[key]) != learns, key
        aliases += len(before) - len(dict(exported.changed.networks[fold].named_parameters()))
        assert {key: old[key] for key in ("trainer_name", "init_args", "current_epoch", "logging")} == {
            key: new[key] for key in ("trainer_name", "init_args", "current_epoch", "logging")
        }
    assert aliases > 0
    for name in ("plans.json", "dataset.json", "fold_0/progress.png", "fold_0/validation/summary.json"):
        assert (exported.root / "base" / name).read_bytes() == (exported.root / "changed" / name).read_bytes()


@pytest.mark.slow
def test_an_export_holds_nothing_that_was_not_adapted_and_leaves_the_base(exported: Exported) -> None:
    files = {path.relative_to(exported.root / "changed").as_posix() for path in (exported.root / "changed").rglob("*")}
    assert not {"fold_2", "fold_0/checkpoint_best.pth", "fold_0/validation/p9.nii.gz"} & files
    assert hash_folder(exported.root / "base") == exported.hash_before


def test_inference_uses_the_weights_of_now(model: Path, flat: Case) -> None:
    """nnU-Net's own method would load those of the file back into the network."""
    adapter, before = NnUNetAdapter(model), hash_folder(model)
    first = adapter.segment(flat)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.mul_(-1)
    changed = {name: value.clone() for name, value in adapter.state_dict().items()}
    assert not np.array_equal(first, adapter.segment(flat))
    assert all(torch.equal(value, changed[name]) for name, value in adapter.state_dict().items())
    assert hash_folder(model) == before


@pytest.fixture
def nnunet_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


def make_trainer(plan: dict[str, Any], places: Path) -> Any:
    """nnU-Net's trainer, ready to train; the names of files are all that it asks of the preprocessed data."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    data = places / "nnUNet_preprocessed" / "Dataset001_Tiny"
    (data / "nnUNetPlans_2d").mkdir(parents=True, exist_ok=True)
    (data / "nnUNetPlans_2d" / "case.b2nd").touch()
    (data / "dataset.json").write_text(json.dumps(dataset()))
    settings = copy.deepcopy(plan) | {"continue_training": False}
    trainer = nnUNetTrainer(settings, "2d", 0, dataset(), torch.device("cpu"))
    trainer.initialize()
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_training_goes_on_from_an_export(nnunet_places: Path) -> None:
    plan = plans(2, [32, 32], [0.8, 0.8])
    base = write_model(nnunet_places / "base", plan)
    trainer = make_trainer(plan, nnunet_places)
    batch = {"data": torch.randn(2, 1, 32, 32), "target": [torch.zeros(2, 1, 32 >> i, 32 >> i) for i in range(2)]}
    trainer.on_train_epoch_start()
    trainer.train_step(batch)
    trainer.save_checkpoint(str(base / "fold_0" / "checkpoint_final.pth"))
    adapter = NnUNetAdapter(base)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1)
    adapter.export(nnunet_places / "adapted")
    resumed = make_trainer(plan, nnunet_places)
    resumed.load_checkpoint(str(nnunet_places / "adapted" / "fold_0" / "checkpoint_final.pth"))
    weights = adapter.networks[0].state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in resumed.network.state_dict().items())
    assert resumed.current_epoch == trainer.current_epoch + 1
    assert np.isfinite(resumed.train_step(batch)["loss"])


def test_an_export_travels_through_the_zip_of_nnunet(nnunet_places: Path, flat: Case) -> None:
    from nnunetv2.model_sharing.model_export import export_pretrained_model
    from nnunetv2.model_sharing.model_import import install_model_from_zip_file

    base = write_model(nnunet_places / "base", plans(2, [32, 32], [0.8, 0.8]))
    (base / "fold_0" / "validation").mkdir()
    for name in ("fold_0/progress.png", "fold_0/validation/summary.json", "dataset_fingerprint.json"):
        (base / name).write_text("{}")
    results = nnunet_places / "nnUNet_results" / "Dataset001_Tiny"
    adapter = NnUNetAdapter(base)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1)
    place = results / "nnUNetTrainer__nnUNetPlans__2d"
    adapter.export(place)
    export_pretrained_model("Dataset001_Tiny", str(nnunet_places / "model.zip"), configurations=("2d",), folds=(0,))
    shutil.rmtree(results)
    assert zipfile.is_zipfile(nnunet_places / "model.zip")
    install_model_from_zip_file(str(nnunet_places / "model.zip"))
    assert np.array_equal(NnUNetAdapter(place).segment(flat), adapter.segment(flat))
    # The folder of the data set will do where there is one model in it.
    assert NnUNetAdapter(results).folder == place


def test_a_compiled_checkpoint_loads(tmp_path: Path, model: Path, flat: Case) -> None:
    path = model / "fold_0" / "checkpoint_final.pth"
    plain = NnUNetAdapter(model).segment(flat)
    content = torch.load(path, weights_only=False)
    content["network_weights"] = {f"_orig_mod.{name}": value for name, value in content["network_weights"].items()}
    torch.save(content, path)
    adapter = NnUNetAdapter(model)
    assert np.array_equal(adapter.segment(flat), plain)
    adapter.export(tmp_path / "out")
    state = torch.load(tmp_path / "out" / "fold_0" / "checkpoint_final.pth", weights_only=False)["network_weights"]
    assert not any(name.startswith("_orig_mod.") for name in state)


def test_a_checkpoint_from_elsewhere_is_read_and_the_export_lies_in_its_own_folder(model: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "mine" / "checkpoint_mine.pth"
    elsewhere.parent.mkdir()
    (model / "fold_0" / "checkpoint_final.pth").rename(elsewhere)
    shutil.copy(elsewhere, model / "fold_0" / "checkpoint_best.pth")
    before = hash_file(elsewhere)
    settings = NnUNetSettings(kind="nnunet", folder=model, checkpoint=str(elsewhere))
    adapter = load_segmenter(settings)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(1.0)
    adapter.export(tmp_path / "out")
    assert hash_file(elsewhere) == before
    assert [path.name for path in (tmp_path / "out" / "fold_0").iterdir()] == ["checkpoint_mine.pth"]
    again = exported_settings(settings, tmp_path / "out")
    assert again == NnUNetSettings(kind="nnunet", folder=tmp_path / "out", checkpoint="checkpoint_mine.pth")
    assert hash_weights(load_segmenter(again)) == hash_weights(adapter)


@pytest.mark.parametrize(("dimensions", "forward"), [(3, [2, 0, 1]), (3, [1, 0, 2]), (2, [0, 2, 1]), (2, [0, 1, 2])])
def test_a_mask_of_the_network_has_its_axes_in_the_order_of_the_image(
    tmp_path: Path, dimensions: int, forward: list[int]
) -> None:
    """A structure at the end of each axis in turn is there again, however nnU-Net transposes."""
    backward = np.argsort(forward).tolist()
    plan = plans(dimensions, [16] * dimensions, [1.0] * dimensions)
    plan |= {"transpose_forward": forward, "transpose_backward": backward}
    adapter = NnUNetAdapter(write_model(tmp_path / "model", plan))
    shape = (16, 20, 24)[-dimensions:]
    noise = np.random.default_rng(0).uniform(1, 2, size=(1, *shape)).astype(np.float32)
    identity = tuple(np.eye(dimensions).ravel().tolist())
    sample = adapter.preprocess(Case("a", "a", noise, Geometry((1.0,) * dimensions, (0.0,) * dimensions, identity)))
    for axis in range(dimensions):
        mask = np.zeros(shape, np.uint8)
        mask[(slice(None),) * axis + (slice(-4, None),)] = 1
        found = adapter.preprocess_labels(mask, sample).numpy()
        assert np.array_equal(adapter.grid_axes(sample).in_image(found), mask)


@settings(max_examples=25, deadline=None)
@given(
    axes=st.permutations([0, 1, 2]),
    signs=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3),
    forward=st.permutations([0, 1, 2]),
    canonical=st.booleans(),
)
def test_a_mask_of_the_network_is_turned_back_as_its_file_lies(
    tmp_path_factory: pytest.TempPathFactory,
    axes: list[int],
    signs: tuple[float, ...],
    forward: list[int],
    canonical: bool,
) -> None:
    """Whatever the orientation of the file, on canonical axes and transposed."""
    plan = plans(3, [16] * 3, [1.0] * 3)
    plan |= {"transpose_forward": forward, "transpose_backward": np.argsort(forward).tolist()}
    folder = write_model(tmp_path_factory.mktemp("nnunet") / "model", plan)
    adapter = NnUNetAdapter(folder, canonical=canonical)
    direction = tuple((np.eye(3)[axes] * signs).ravel().tolist())
    rng, shape = np.random.default_rng(0), (16, 20, 24)
    image = rng.uniform(1, 2, size=(1, *shape)).astype(np.float32)
    sample = adapter.preprocess(Case("a", "a", image, Geometry((1.0,) * 3, (0.0,) * 3, direction)))
    mask = rng.integers(0, 3, shape).astype(np.uint8)
    on_grid = adapter.preprocess_labels(mask, sample).numpy()
    assert np.array_equal(adapter.grid_axes(sample).in_image(on_grid), mask)
    # A slice of it, as a 2-D network sees it, is a plane of the image.
    grid_axes, place = adapter.grid_axes(sample), 3
    across = grid_axes.order[0]
    plane = mask.take(shape[across] - 1 - place if grid_axes.flipped[0] else place, axis=across)
    assert np.array_equal(grid_axes.in_image(on_grid[place]), plane)


def test_pixels_are_the_unit_of_a_model_of_png_images(tmp_path: Path, flat: Case) -> None:
    plan = plans(2, [32, 32], [1.0, 1.0]) | {"image_reader_writer": "NaturalImage2DIO"}
    adapter = NnUNetAdapter(write_model(tmp_path / "model", plan))
    png = replace(flat, geometry=Geometry.unknown(2))
    sample = adapter.preprocess(png)
    assert sample.image.shape[1:] == (37, 47)
    assert adapter.segment(png).shape == (37, 50)


def test_an_ignored_label_is_no_structure(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", plans(2, [32, 32], [1.0, 1.0]), dataset({**LABELS, "ignore": 3}))
    assert NnUNetAdapter(folder).schema.names == ("background", "LV", "MYO")


def test_ppo_moves_the_adapter_as_it_moves_the_bare_network(model: Path) -> None:
    adapter = NnUNetAdapter(model)
    bare = TorchModuleAdapter(
        copy.deepcopy(adapter.networks[0]), adapter.schema, PreprocessingSettings(size=(32, 32))
    ).eval()
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()
    truth = (images[:, 0] > 0).astype(np.uint8)

    def no_reward(images: Tensor, actions: Tensor) -> Tensor:
        raise AssertionError("every image has its truth here")

    def update(segmenter: nn.Module) -> None:
        env = SegmentationVecEnv(images, no_reward, 3, 4, references=truth)
        DensePPO(env, segmenter, PPOHyperparameters(learning_rate=1e-2), device="cpu", seed=0).learn(4)

    before = copy.deepcopy(adapter.networks[0].state_dict())
    update(adapter)
    update(bare)
    ours, theirs = adapter.networks[0].state_dict(), bare.module.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert not all(torch.equal(value, before[name]) for name, value in ours.items())


def cascade() -> dict[str, Any]:
    return plans(2, [32, 32], [1.0, 1.0], previous_stage="3d_lowres")


def test_what_cannot_be_adapted_is_refused_with_its_reason(tmp_path: Path) -> None:
    plan = plans(2, [32, 32], [1.0, 1.0])
    with pytest.raises(ModelError, match=r"second stage of a cascade.*3d_lowres"):
        NnUNetAdapter(write_model(tmp_path / "cascade", cascade()))
    with pytest.raises(ModelError, match="nnUNetTrainerOfNobody is not in the installed nnunetv2"):
        NnUNetAdapter(write_model(tmp_path / "trainer", plan, trainer="nnUNetTrainerOfNobody"))


class Dangerous:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(Path(os.environ["DANGER"])),)


def test_no_code_of_a_checkpoint_runs_unless_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    danger = tmp_path / "danger"
    monkeypatch.setenv("DANGER", str(danger))
    folder = write_model(tmp_path / "model", plans(2, [32, 32], [1.0, 1.0]), extra={"callback": Dangerous()})
    with pytest.raises(ModelError, match=r"run code.*mkdir.*segmenter\.trusted: true"):
        NnUNetAdapter(folder)
    assert not danger.exists()
    NnUNetAdapter(folder, trusted=True)
    assert danger.exists()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def poison(path: Path) -> None:
    content = torch.load(path, weights_only=False)
    next(iter(content["network_weights"].values()))[0] = torch.nan
    torch.save(content, path)


def narrow(folder: Path) -> None:
    content = json.loads((folder / "plans.json").read_text())
    content["configurations"]["2d_parent"]["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 16]
    (folder / "plans.json").write_text(json.dumps(content))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no plans": (lambda folder: (folder / "plans.json").unlink(), r"not a complete nnU-Net model.*no plans\.json"),
    "no data set": (lambda folder: (folder / "dataset.json").unlink(), r"no dataset\.json"),
    "plans no JSON": (lambda folder: (folder / "plans.json").write_text("{"), r"plans\.json: cannot be read as JSON"),
    "plans a list": (lambda folder: (folder / "plans.json").write_text("[]"), "holds list"),
    "plans empty": (lambda folder: (folder / "plans.json").write_text("{}"), "not what nnU-Net writes"),
    "other plans": (narrow, "has other shapes for"),
    "no fold": (lambda folder: shutil.rmtree(folder / "fold_0"), "no fold_X with a checkpoint"),
    "truncated": (lambda folder: truncate(folder / "fold_0" / "checkpoint_final.pth"), "damaged or truncated"),
    "empty": (lambda folder: (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b""), "damaged"),
    "NaN": (lambda folder: poison(folder / "fold_0" / "checkpoint_final.pth"), "NaN or infinite"),
    "no checkpoint of nnU-Net": (
        lambda folder: torch.save({"state_dict": {}}, folder / "fold_0" / "checkpoint_final.pth"),
        "not a checkpoint of nnU-Net v2",
    ),
    "only another": (
        lambda folder: (folder / "fold_0" / "checkpoint_final.pth").rename(folder / "fold_0" / "checkpoint_best.pth"),
        r"no such checkpoint; there is checkpoint_best\.pth",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_damaged_folder_is_named(model: Path, what: str) -> None:
    damage, message = BROKEN[what]
    damage(model)
    with pytest.raises(ModelError, match=message) as caught:
        NnUNetAdapter(model)
    assert str(model) in str(caught.value)


def test_a_missing_fold_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", plans(2, [32, 32], [1.0, 1.0]), folds=(0, 3))
    with pytest.raises(ModelError, match="there is no fold 1; folds that are there: 0, 3"):
        NnUNetAdapter(folder, folds=(0, 1))


def test_images_that_do_not_fit_are_refused(model: Path, tmp_path: Path, flat: Case) -> None:
    adapter = NnUNetAdapter(model)
    with pytest.raises(DataError, match="2 channels and the segmenter takes 1; a file per channel"):
        adapter.preprocess(replace(flat, image=np.concatenate([flat.image, flat.image])))
    with pytest.raises(DataError, match="does not say its spacing"):
        adapter.preprocess(replace(flat, geometry=Geometry.unknown(2)))
    with pytest.raises(DataError, match="2-D and the segmenter 3-D; give volumes"):
        NnUNetAdapter(write_model(tmp_path / "volumetric", volumetric())).preprocess(flat)


def test_an_export_is_whole_or_nothing(model: Path, tmp_path: Path, flat: Case) -> None:
    adapter = NnUNetAdapter(model)
    (model / "fold_0" / "checkpoint_final.pth").write_bytes(b"gone")
    with pytest.raises(ModelError):
        adapter.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    shutil.rmtree(model)
    with pytest.raises(ModelError, match="is gone"):
        adapter.export(tmp_path / "out")


def test_a_summary_says_what_it_is_and_why_not(model: Path, tmp_path: Path) -> None:
    summary = summarise("nnunet", model, lambda: NnUNetAdapter(model))
    assert summary.obstacles == ()
    expected = {"structures": "background 0, LV 1, MYO 2", "patch": "32 x 32", "trainer": "nnUNetTrainer"}
    assert expected.items() <= summary.rows.items()
    folder = write_model(tmp_path / "cascade", cascade())
    summary = summarise("nnunet", folder, lambda: NnUNetAdapter(folder))
    assert "cascade" in summary.obstacles[0]


def test_a_missing_package_names_its_extra(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'medfm-rl\[nnunet\]'"):
        NnUNetAdapter(model)


def test_nothing_is_printed(model: Path, flat: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    adapter = NnUNetAdapter(model)
    mask = adapter.segment(flat)
    write_labels(tmp_path / "mask.nii.gz", mask, flat.geometry, adapter.schema)
    assert capfd.readouterr() == ("", "")


def test_the_layout_of_totalsegmentator_is_kept(tmp_path: Path) -> None:
    """Adapted weights go where TotalSegmentator looks: below the folder that TOTALSEG_WEIGHTS_PATH names."""
    from medfm_rl.adapters.loading import load_segmenter
    from medfm_rl.settings import TotalSegmentatorSettings

    home = tmp_path / "results" / "Dataset297_TotalSegmentator_total_3mm_1559subj"
    inner = "nnUNetTrainer_4000epochs_NoMirroring__nnUNetPlans__3d_fullres"
    write_model(home / inner, volumetric())
    settings = TotalSegmentatorSettings(kind="totalsegmentator", folder=home, step_size=0.8)
    adapter = load_segmenter(settings)
    path = write_case(tmp_path / "images" / "p1_v_0000.nii.gz", *VOLUME, direction=OBLIQUE)
    case = read(path)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1)
    adapter.export(tmp_path / "out")
    place = tmp_path / "out" / home.name / inner
    assert (place / "plans.json").read_bytes() == (home / inner / "plans.json").read_bytes()
    again = load_segmenter(settings.model_copy(update={"folder": tmp_path / "out"}))
    assert np.array_equal(again.segment(case), adapter.segment(case))
    # The axes of the file do not matter: a volume that is turned gives the mask, turned.
    turned = replace(case, image=case.image[:, :, ::-1].copy(), geometry=flipped(case))
    assert (again.segment(turned)[:, ::-1] != again.segment(case)).mean() < 0.001


def flipped(case: Case) -> Geometry:
    """The geometry after the second array axis has been reversed, so that every voxel stays where it was."""
    geometry = case.geometry
    assert geometry.spacing is not None
    direction = np.array(geometry.direction).reshape(3, 3)
    step = direction[:, 1] * geometry.spacing[1] * (case.shape[1] - 1)
    direction[:, 1] *= -1
    origin = tuple(float(value) for value in np.array(geometry.origin) + step)
    return Geometry(geometry.spacing, origin, tuple(float(value) for value in direction.ravel()))
