"""The quality model that a run leaves by default, where the grid of the networks is not that of the images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from support.nnunet_models import dataset, draw, plans, write_model
from support.reward_reports import report_on

from medfm_rl.adapters import Sample, TorchModuleAdapter
from medfm_rl.adapters.nnunet.adapter import NnUNetAdapter
from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.data.images import write_image, write_labels
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.quality.controller import QualityController
from medfm_rl.quality.model import QualityModel
from medfm_rl.reward.network import RewardNet
from medfm_rl.runs.finished import load_run
from medfm_rl.runs.folder import RunFolder
from medfm_rl.settings import AdaptConfig, DataSettings, NetworkSettings, NnUNetSettings, PreprocessingSettings
from medfm_rl.settings.files import dump_config, load_config
from medfm_rl.types import Geometry, LabelSchema
from medfm_rl.workflows.calibrate.from_source import write_default_quality

NETWORK = NetworkSettings(channels=(4, 8), residual_units=0)


def quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def run_on(quality_run: Path, folder: Path, **changes: Any) -> tuple[RunFolder, AdaptConfig, list[CaseFile]]:
    """A finished run without a quality model on the first eight patients, the segmenter on another grid."""
    shutil.copytree(quality_run, folder / "run")
    run = RunFolder(folder / "run")
    run.quality.unlink()
    description = json.loads((run.model / "segmenter.json").read_text())
    description["preprocessing"] = {**description["preprocessing"], "grid": "native", **changes}
    (run.model / "segmenter.json").write_text(json.dumps(description))
    for part in ("images", "labels"):
        (folder / "source" / part).mkdir(parents=True)
        for path in sorted((quality_run.parent / "data" / part).iterdir())[: 8 * 4]:
            shutil.copy(path, folder / "source" / part)
    rewards_have_seen(run, [])
    source = DataSettings(path=folder / "source")
    config = load_config(run.config_file, AdaptConfig)
    return run, config.model_copy(update={"source": source, "target": source}), find_cases(source)


def rewards_have_seen(run: RunFolder, patients: list[str]) -> None:
    for member in range(2):
        report_on(patients).write(run.reward(0, f"member-{member}").with_suffix(".json"))


def learned_size(model: QualityModel, structure: str) -> tuple[str, tuple[float | None, float | None]]:
    (rule,) = [rule for rule in model.profile.rules if rule.kind == "size" and rule.structure == structure]
    return rule.measured_in, rule.limits()


def limits_of(values: list[float]) -> tuple[float, float]:
    """Extremes as far out as 99.9 % of a normal distribution, where the largest of n is at n / (n + 1)."""
    normal, middle = NormalDist(), float(np.median(values))
    stretch = normal.inv_cdf(0.999) / normal.inv_cdf(len(values) / (len(values) + 1))
    return max(0.0, middle - stretch * (middle - min(values))), middle + stretch * (max(values) - middle)


# Images have 32 x 32 pixels: they are padded to the first, and covered by patches of the second.
@pytest.mark.parametrize("size", [[48, 64], [16, 16]], ids=["padded", "tiled"])
def test_default_limits_are_those_of_expert_masks_on_their_own_grid(
    quality_run: Path, tmp_path: Path, size: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config, files = run_on(quality_run, tmp_path, size=size)
    checked: list[tuple[tuple[int, ...], object]] = []

    def check(self: Anatomy, labels: np.ndarray, spacing: tuple[float, ...] | None = None) -> object:
        checked.append((labels.shape, spacing))
        return original(self, labels, spacing)

    original = Anatomy.check
    monkeypatch.setattr(Anatomy, "check", check)
    model = write_default_quality(load_run(run.path, "cpu"), config, quiet)
    monkeypatch.undo()
    assert model is not None
    assert (model.patients, model.cases) == (8, 8 * 4 * 3)
    labelled = [file.read_labelled(model.label_schema) for file in files]
    spacing = labelled[0].case.geometry.array_spacing
    assert spacing is not None
    assert set(checked) == {((32, 32), spacing)}
    for index, structure in enumerate(model.label_schema.structures, 1):
        sizes = [np.prod(spacing) * (item.ground_truth == index).sum() for item in labelled]
        measured_in, limits = learned_size(model, structure)
        assert measured_in == "mm"
        assert limits == pytest.approx(limits_of(sizes))
    for item in labelled:
        checked_again = model.bound_anatomy().check(item.ground_truth, spacing)
        learned = [rule.passed for rule in checked_again if rule.source.endswith("masks")]
        assert len(learned) > 3
        assert all(learned)
    assert not list(run.path.glob(".unfinished-*"))
    # It serves what is scored.
    report = QualityController.load(run.path).assess(labelled[0].case, labelled[0].ground_truth)
    assert report.reward_map.shape == (32, 32)


def test_default_limits_are_shares_where_a_target_image_has_no_millimetres(quality_run: Path, tmp_path: Path) -> None:
    run, config, files = run_on(quality_run, tmp_path, size=[48, 64])
    (tmp_path / "target").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32)).astype(np.uint8)
    write_image(tmp_path / "target" / "p1_a.png", pixels, Geometry.unknown(2))
    model = write_default_quality(
        load_run(
            run.path,
            "cpu",
        ),
        config.model_copy(update={"target": DataSettings(path=tmp_path / "target")}),
        quiet,
    )
    assert model is not None
    masks = [file.read_labelled(model.label_schema).ground_truth for file in files]
    measured_in, limits = learned_size(model, "LV")
    assert measured_in == "share"
    assert limits == pytest.approx(limits_of([(mask == 1).mean() for mask in masks]))


def test_volumes_larger_than_the_patch_have_a_default(quality_run: Path, tmp_path: Path) -> None:
    shutil.copytree(quality_run, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    run.quality.unlink()
    schema = LabelSchema.from_structures({"a": 1})
    geometry = Geometry((0.5, 1.0, 2.0), (0.0,) * 3, tuple(np.eye(3).ravel().tolist()))
    rng = np.random.default_rng(0)
    # Of different sizes, smaller and larger than the patch.
    shapes = [(8, 24, 20), (12, 16, 16), (6, 18, 16), (10, 20, 24)] * 2
    for part in ("images", "labels"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for number, shape in enumerate(shapes):
        mask = np.zeros(shape, np.uint8)
        mask[2:5, 4:14, 4 : 10 + number % 4] = 1
        image = (rng.normal(size=shape) + 3 * mask).astype(np.float32)
        write_image(tmp_path / "data" / "images" / f"p{number}_a.nii.gz", image, geometry)
        write_labels(tmp_path / "data" / "labels" / f"p{number}_a.nii.gz", mask, geometry, schema)
    torch.manual_seed(0)
    preprocessing = PreprocessingSettings(size=(8, 16, 16), grid="native")
    shutil.rmtree(run.model)
    TorchModuleAdapter.build_unet(NETWORK, schema, preprocessing).export(run.model)
    for member in range(2):
        shutil.rmtree(run.final_reward / f"member-{member}")
        RewardNet(NETWORK, 2, spatial_dims=3).save(run.final_reward / f"member-{member}")
    rewards_have_seen(run, [])
    data = DataSettings(path=tmp_path / "data")
    config = load_config(run.config_file, AdaptConfig).model_copy(update={"source": data, "target": data})
    model = write_default_quality(load_run(run.path, "cpu"), config, quiet)
    assert model is not None
    assert (model.patients, model.cases) == (8, 24)
    # 3 x 10 x (6 to 9) voxels of 1 mm^3.
    assert learned_size(model, "a") == ("mm", pytest.approx(limits_of([180, 210, 240, 270] * 2)))


def test_slices_of_a_volume_have_a_default_and_one_look(
    quality_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 2-D nnU-Net, which crops, resamples and pads slices larger than its patch."""
    shutil.copytree(quality_run, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    run.quality.unlink()
    shutil.rmtree(run.model)
    write_model(run.model, plans(2, [32, 32], [0.8, 0.8]), dataset({"background": 0, "a": 1}))
    schema = LabelSchema.from_structures({"a": 1})
    geometry = Geometry((0.9, 0.8, 2.0), (0.0,) * 3, tuple(np.eye(3).ravel().tolist()))
    for part in ("images", "labels"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for number in range(8):
        # Every slice is the same.
        image = np.repeat(draw((37, 40), number)[None], 3, axis=0)
        mask = (image > np.percentile(image, 75)).astype(np.uint8)
        write_image(tmp_path / "data" / "images" / f"p{number}_a.nii.gz", image, geometry)
        write_labels(tmp_path / "data" / "labels" / f"p{number}_a.nii.gz", mask, geometry, schema)
    for member in range(2):
        shutil.rmtree(run.final_reward / f"member-{member}")
        RewardNet(NETWORK, 2).save(run.final_reward / f"member-{member}")
    rewards_have_seen(run, [])
    data = DataSettings(path=tmp_path / "data")
    config = load_config(run.config_file, AdaptConfig).model_copy(
        update={"source": data, "target": data, "segmenter": NnUNetSettings(kind="nnunet", folder=run.model)}
    )
    run.config_file.write_text(dump_config(config))
    shown: list[torch.Tensor] = []

    def predict(self: NnUNetAdapter, sample: Sample) -> torch.Tensor:
        shown.append(sample.image)
        return original(self, sample)

    original = NnUNetAdapter.predict_logits
    monkeypatch.setattr(NnUNetAdapter, "predict_logits", predict)
    model = write_default_quality(load_run(run.path, "cpu"), config, quiet)
    assert model is not None
    assert model.cases == 24
    assert learned_size(model, "a")[0] == "mm"
    # Once by the segmenter in each of three looks, and by a perturbed copy in two of them.
    assert len(shown) == 8 * 5
    for image in shown:
        torch.testing.assert_close(image, image[:, :1].expand_as(image))
    assert len({image.numpy().tobytes() for image in shown}) == 8 * 3
