"""Cascades of nnU-Net: real files with small networks of both stages, against nnU-Net's own predictor."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from medfm_rl.adapters import NnUNetAdapter
from medfm_rl.adapters.loading import exported_settings, load_segmenter, portable_settings, read_beside, settings_at
from medfm_rl.adapters.nnunet.cascade import INNER, labels_again
from medfm_rl.adapters.nnunet.summary import summarise
from medfm_rl.augmentation.appearance import randomise_appearance
from medfm_rl.augmentation.shape import augment_pair
from medfm_rl.data.files import hash_folder
from medfm_rl.data.images import write_labels
from medfm_rl.errors import ConfigError, DataError, ModelError
from medfm_rl.settings import AdaptConfig, NnUNetSettings, PreviousStageSettings
from medfm_rl.settings.files import load_config
from medfm_rl.types import Case

pytest.importorskip("nnunetv2", reason="nnunetv2 is not installed (extra nnunet)")
from support.nnunet_models import (
    VOLUME,
    cascaded,
    dataset,
    plans,
    read,
    read_labels,
    region_dataset,
    write_cascade,
    write_case,
    write_model,
)

pytestmark = pytest.mark.nnunet
OBLIQUE = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)
CASCADES: dict[str, tuple[dict[str, Any], dict[str, Any] | None, tuple[int, ...]]] = {
    "two folds": ({}, None, (0, 1)),
    "transposed": ({"transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2]}, None, (0,)),
    "reoriented": ({"image_reader_writer": "NibabelIOWithReorient"}, None, (0,)),
    "regions": ({}, region_dataset(), (0,)),
}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_case(tmp_path / "images" / "p1_v_0000.nii.gz", *VOLUME, direction=OBLIQUE)


@pytest.fixture
def case(image: Path) -> Case:
    return read(image)


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return write_cascade(tmp_path / "Dataset001_Tiny")


def nnunet_masks(model: Path, images: Path, out: Path, before: Path | None, folds: tuple[int, ...] = (0,)) -> Path:
    """What nnU-Net's own predictor writes for the files in a folder, in this process."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), folds)
    out.mkdir()
    predictor.predict_from_files_sequential(
        str(images), str(out), folder_with_segs_from_prev_stage=None if before is None else str(before)
    )
    return out


def stage_beside(second: Path) -> Path:
    return second.with_name("nnUNetTrainer__nnUNetPlans__3d_lowres")


@pytest.mark.parametrize("kind", CASCADES)
def test_masks_of_a_cascade_are_those_of_nnunet(kind: str, tmp_path: Path, image: Path, case: Case) -> None:
    changes, description, folds = CASCADES[kind]
    second = write_cascade(tmp_path / "Dataset001_Tiny", description, folds, **changes)
    before = nnunet_masks(stage_beside(second), image.parent, tmp_path / "lowres", None, folds)
    expected = nnunet_masks(second, image.parent, tmp_path / "fullres", before, folds)
    adapter = NnUNetAdapter(second)
    assert (adapter.intensity_channels, adapter.in_channels) == (1, 4 if kind == "regions" else 3)
    ours = adapter.schema.to_ids(adapter.segment(case))
    assert len(np.unique(ours)) > 1
    assert np.array_equal(ours, read_labels(expected / "p1_v.nii.gz"))
    # The masks of the first stage as files give the same.
    of_files = NnUNetAdapter(second, previous_stage=PreviousStageSettings(masks=before))
    assert np.array_equal(of_files.schema.to_ids(of_files.segment(case)), ours)
    # And they matter: without what the first stage saw the mask is another one.
    empty = tmp_path / "empty"
    write_labels(empty / "p1_v.nii.gz", np.zeros(case.shape, np.uint8), case.geometry, adapter.schema)
    without = NnUNetAdapter(second, previous_stage=PreviousStageSettings(masks=empty))
    assert not np.array_equal(without.schema.to_ids(without.segment(case)), ours)


def test_the_channels_are_what_the_first_stage_saw_and_it_does_not_learn(second: Path, case: Case) -> None:
    adapter = NnUNetAdapter(second)
    image = adapter.preprocess(case).image
    assert set(image[1:].unique().tolist()) == {0.0, 1.0}
    assert bool((image[1:].sum(dim=0) <= 1).all())
    first = NnUNetAdapter(stage_beside(second))
    seen = first.segment(case)
    for label in (1, 2):
        share = float(image[label].mean()) * image[label].numel() * np.prod([2.0, 1.0, 1.0])
        of_first = float((seen == label).sum()) * np.prod([3.0, 0.9, 0.8])
        assert share == pytest.approx(of_first, rel=0.15, abs=30)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == sum(
        parameter.numel() for parameter in NnUNetAdapter(second).networks.parameters()
    )
    assert all(name.startswith("networks.") for name in adapter.state_dict())


def test_an_export_holds_the_first_stage_and_is_the_same_anywhere(second: Path, image: Path, case: Case) -> None:
    root, before = image.parent.parent, hash_folder(second.parent)
    settings = NnUNetSettings(folder=second)
    adapter = load_segmenter(settings)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.05)
    mask = adapter.segment(case)
    adapter.export(root / "out")
    assert hash_folder(second.parent) == before
    inner = root / "out" / INNER / stage_beside(second).name
    assert hash_folder(inner) == hash_folder(stage_beside(second))
    lowres = nnunet_masks(inner, image.parent, root / "lowres", None)
    fullres = nnunet_masks(root / "out", image.parent, root / "fullres", lowres)
    assert np.array_equal(mask, read_labels(fullres / "p1_v.nii.gz"))
    # On another machine there is nothing but the export.
    shutil.move(second.parent, root / "gone")
    again = load_segmenter(exported_settings(settings, root / "out"))
    assert np.array_equal(again.segment(case), mask)
    again.export(root / "twice")
    assert (root / "twice" / INNER / inner.name / "plans.json").exists()
    shutil.rmtree(root / "out" / INNER)
    with pytest.raises(ModelError, match=r"folder of the first stage is gone"):
        again.export(root / "third")
    assert not (root / "third").exists()


def test_a_first_stage_elsewhere_is_named_and_its_place_stays_behind(second: Path, tmp_path: Path, case: Case) -> None:
    elsewhere = tmp_path / "elsewhere"
    expected = NnUNetAdapter(second).segment(case)
    stage_beside(second).rename(elsewhere)
    (elsewhere / "fold_0" / "checkpoint_final.pth").rename(elsewhere / "fold_0" / "checkpoint_best.pth")
    stage = PreviousStageSettings(folder=elsewhere, checkpoint="checkpoint_best.pth", folds=(0,))
    settings = NnUNetSettings(folder=second, previous_stage=stage)
    adapter = load_segmenter(settings)
    assert np.array_equal(adapter.segment(case), expected)
    assert read_beside(settings) == {"previous_stage.folder": elsewhere.resolve()}
    adapter.export(tmp_path / "out")
    exported = exported_settings(settings, tmp_path / "out")
    assert read_beside(exported) == {}
    assert np.array_equal(load_segmenter(exported).segment(case), expected)
    assert str(elsewhere) not in portable_settings(settings)
    again = settings_at(portable_settings(exported), tmp_path / "out", tmp_path)
    assert np.array_equal(load_segmenter(again).segment(case), expected)


def test_what_is_read_beside_a_second_stage(second: Path, tmp_path: Path) -> None:
    found = read_beside(NnUNetSettings(folder=second))
    assert found == {"previous_stage.folder": stage_beside(second).resolve()}
    # Plans of a cascade lie beside the first stage and single networks too.
    assert read_beside(NnUNetSettings(folder=stage_beside(second))) == {}
    masks = NnUNetSettings(folder=second, previous_stage=PreviousStageSettings(masks=tmp_path))
    assert read_beside(masks) == {"previous_stage.masks": tmp_path.resolve()}


def test_masks_are_told_apart_by_what_the_first_stage_is(second: Path, tmp_path: Path, case: Case) -> None:
    own = NnUNetAdapter(second).inference_settings()
    assert own == NnUNetAdapter(second).inference_settings()
    path = stage_beside(second) / "fold_0" / "checkpoint_final.pth"
    content = torch.load(path, weights_only=False)
    for value in content["network_weights"].values():
        value.add_(0.1)
    torch.save(content, path)
    assert NnUNetAdapter(second).inference_settings() != own
    masks = tmp_path / "masks"
    adapter = NnUNetAdapter(second)
    assert adapter.prompt_hash("p1_v") is None
    empty = np.zeros(case.shape, np.uint8)
    write_labels(masks / "p1_v.nii.gz", empty, case.geometry, adapter.schema)
    of_files = NnUNetAdapter(second, previous_stage=PreviousStageSettings(masks=masks))
    before = of_files.prompt_hash("p1_v")
    empty[0, 0, 0] = 1
    write_labels(masks / "p1_v.nii.gz", empty, case.geometry, adapter.schema)
    assert before != of_files.prompt_hash("p1_v")


def test_a_first_stage_that_is_missing_or_does_not_fit_is_named_with_the_remedy(second: Path, tmp_path: Path) -> None:
    lowres = stage_beside(second)

    def refuses(message: str, **stage: Any) -> None:
        with pytest.raises(ModelError, match=message):
            NnUNetAdapter(second, previous_stage=PreviousStageSettings(**stage))

    refuses("itself; give the model folder of 3d_lowres", folder=second)
    refuses("no such folder", folder=tmp_path / "nowhere")
    fullres = write_model(tmp_path / "other", cascaded(), configuration="3d_fullres")
    refuses("its configuration is 3d_fullres, 3d_lowres is needed", folder=fullres)
    others = dataset({"background": 0, "LV": 2, "MYO": 1})
    refuses(
        r"its labels are .*; give the first stage",
        folder=write_model(tmp_path / "labels", cascaded(), others, configuration="3d_lowres"),
    )
    shutil.copytree(lowres, lowres.with_name("mine__nnUNetPlans__3d_lowres"))
    lowres.rename(lowres.with_name("yours__nnUNetPlans__3d_lowres"))
    refuses("can be any of mine__nnUNetPlans__3d_lowres, yours__")
    shutil.rmtree(lowres.with_name("mine__nnUNetPlans__3d_lowres"))
    assert NnUNetAdapter(second).previous is not None
    shutil.rmtree(lowres.with_name("yours__nnUNetPlans__3d_lowres"))
    refuses(
        r"3d_cascade_fullres is the second stage of a cascade.*3d_lowres.*is missing: there is no "
        rf"{lowres.name} beside it; give its model folder in segmenter\.previous_stage\.folder"
    )
    summary = summarise("nnunet", second, lambda: NnUNetAdapter(second))
    assert "is missing" in summary.obstacles[0]
    single = write_model(tmp_path / "single", plans(2, [32, 32], [1.0, 1.0]))
    with pytest.raises(ModelError, match=r"2d is no second stage of a cascade; leave out segmenter\.previous_stage"):
        NnUNetAdapter(single, previous_stage=PreviousStageSettings(folder=second))


def test_a_summary_tells_the_first_stage(second: Path) -> None:
    summary = summarise("nnunet", second, lambda: NnUNetAdapter(second))
    assert summary.obstacles == ()
    assert summary.rows["configuration"] == "3d_cascade_fullres"
    assert summary.rows["previous stage"] == str(stage_beside(second))


def test_masks_of_the_first_stage_that_cannot_be_used_are_named(second: Path, tmp_path: Path, case: Case) -> None:
    masks = tmp_path / "masks"
    adapter = NnUNetAdapter(second)
    with pytest.raises(DataError, match="no such folder"):
        NnUNetAdapter(second, previous_stage=PreviousStageSettings(masks=masks))
    masks.mkdir()
    stage = PreviousStageSettings(masks=masks)
    with pytest.raises(DataError, match=r"masks: there is no mask of case p1_v by the first stage; add it"):
        NnUNetAdapter(second, previous_stage=stage).preprocess(case)
    with pytest.raises(DataError, match="there is no mask of case p1_v"):
        NnUNetAdapter(second, previous_stage=stage).prompt_hash("p1_v")
    path = masks / "p1_v.nii.gz"
    wide = dataset({"background": 0, **{f"s{index}": index for index in range(1, 6)}})
    schema = NnUNetAdapter(write_model(tmp_path / "wide", plans(2, [32, 32], [1.0, 1.0]), wide)).schema
    write_labels(path, np.full(case.shape, 5, np.uint8), case.geometry, schema)
    with pytest.raises(DataError, match=r"p1_v\.nii\.gz: holds 5, and the labels of the cascade are 0, 1, 2"):
        NnUNetAdapter(second, previous_stage=stage).preprocess(case)
    write_labels(path, np.zeros((3, 4, 5), np.uint8), case.geometry, adapter.schema)
    with pytest.raises(DataError, match="the mask has size"):
        NnUNetAdapter(second, previous_stage=stage).preprocess(case)


def test_settings_name_a_model_or_its_masks(tmp_path: Path) -> None:
    content = {"target": {"path": "data"}, "output": "run"}
    file = tmp_path / "adapt.yaml"

    def load(**stage: Any) -> AdaptConfig:
        segmenter = {"kind": "nnunet", "folder": "model", "previous_stage": stage}
        file.write_text(json.dumps({**content, "segmenter": segmenter}))
        return load_config(file, AdaptConfig)

    assert load(masks="masks").segmenter == NnUNetSettings(
        folder=Path("model"), previous_stage=PreviousStageSettings(masks=Path("masks"))
    )
    with pytest.raises(ConfigError, match=r"previous_stage: give either masks, or the model that makes them"):
        load(masks="masks", folder="first")


def one_hot(rng: np.random.Generator, shape: tuple[int, ...], labels: int) -> torch.Tensor:
    mask = torch.from_numpy(rng.integers(0, labels + 1, shape))
    return F.one_hot(mask, labels + 1).movedim(-1, 1)[:, 1:].float()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), labels=st.integers(1, 4), volume=st.booleans())
def test_labels_are_kept_and_shares_become_the_largest(seed: int, labels: int, volume: bool) -> None:
    rng = np.random.default_rng(seed)
    shape = (2, 6, 8, 7)[: 4 if volume else 3]
    channels = one_hot(rng, shape, labels)
    images = torch.cat([torch.from_numpy(rng.normal(size=(shape[0], 1, *shape[1:]))).float(), channels], dim=1)
    assert torch.equal(labels_again(images, 1), images)
    shares = 0.7 * images + 0.3 * torch.cat([images[:, :1], one_hot(rng, shape, labels)], dim=1)
    again = labels_again(shares, 1)
    assert torch.equal(again[:, 1:], channels)
    assert torch.equal(again[:, :1], shares[:, :1])


def test_an_image_in_another_look_and_shape_keeps_labels_that_lie_on_it() -> None:
    """Seven eighths of a pixel are the label, as nearest-neighbour interpolation of the mask itself has it."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(4, 40, 48, dtype=torch.uint8)
    mask[:, 10:30, 12:36] = 1
    mask[:, 16:24, 20:30] = 2
    channels = torch.stack([mask == 1, mask == 2], dim=1).float()
    images = torch.cat([torch.randn(4, 1, 40, 48, generator=generator), channels], dim=1)
    shown = randomise_appearance(images, images, 1.0, generator, 1)
    assert torch.equal(shown[:, 1:], channels)
    assert not torch.equal(shown[:, :1], images[:, :1])
    moved, target = augment_pair(shown, mask, generator, 1.0, 0.05, 1)
    again = labels_again(moved, 1)
    assert set(again[:, 1:].unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(target, mask)
    differs = (again[:, 1] + 2 * again[:, 2] != target).float().mean()
    assert float(differs) < 0.01
