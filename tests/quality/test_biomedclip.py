"""BiomedCLIP as a further look at the domain: a small trunk of the real class with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medfm_rl.data.layouts import find_cases
from medfm_rl.data.mask_files import find_masks
from medfm_rl.errors import DataError, MissingExtraError, ModelError
from medfm_rl.quality import biomedclip as module
from medfm_rl.quality.biomedclip import BiomedCLIP, _prepared
from medfm_rl.quality.gates import Gates
from medfm_rl.quality.model import Targets
from medfm_rl.runs.finished import load_run
from medfm_rl.settings import DataSettings
from medfm_rl.types import Case, Geometry
from medfm_rl.workflows.calibrate.quality import CalibrateRequest, calibrate
from medfm_rl.workflows.deploy.score import ScoreRequest, score

timm = pytest.importorskip("timm", reason="timm is not installed (extra biomedclip)")


def quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def tiny() -> nn.Module:
    torch.manual_seed(0)
    trunk: nn.Module = timm.create_model(
        "vit_base_patch16_224", pretrained=False, num_classes=0, embed_dim=16, depth=1, num_heads=2
    )
    return trunk


def write_weights(path: Path, trunk: nn.Module | None = None) -> Path:
    """As open_clip saves the whole model: the text encoder lies beside the image encoder."""
    trunk = tiny() if trunk is None else trunk
    state = {f"visual.trunk.{name}": value for name, value in trunk.state_dict().items()}
    state["visual.head.proj.weight"] = torch.randn(512, 16, generator=torch.Generator().manual_seed(1))
    state |= {"text.transformer.embeddings.weight": torch.zeros(3, 2), "logit_scale": torch.tensor(4.0)}
    torch.save(state, path)
    return path


@pytest.fixture(autouse=True)
def _tiny_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_trunk", tiny)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return write_weights(tmp_path / "open_clip_pytorch_model.bin")


def make_case(shape: tuple[int, ...] = (40, 60)) -> Case:
    image = np.random.default_rng(0).uniform(0, 255, (1, *shape)).astype(np.float32)
    return Case("c", "p", image, Geometry.unknown(len(shape)))


def test_the_real_trunk_has_the_layers_and_features_of_a_vit_b_16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    trunk = module._trunk()
    names = set(trunk.state_dict())
    assert {"cls_token", "pos_embed", "blocks.11.mlp.fc2.bias", "norm.weight"} <= names
    assert not any(name.startswith("head") for name in names)
    with torch.no_grad():
        assert trunk.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 768)


def test_an_embedding_is_the_projected_class_token_of_length_one(weights: Path) -> None:
    found = BiomedCLIP.load(weights).embed(make_case())
    assert found.shape == (512,)
    assert np.linalg.norm(found) == pytest.approx(1)
    with torch.no_grad():
        token = tiny().eval()(_prepared(make_case().image)[None])[0]
    projected = torch.load(weights, weights_only=True)["visual.head.proj.weight"] @ token
    np.testing.assert_allclose(found, (projected / projected.norm()).double().numpy(), atol=1e-6)


def test_the_middle_square_is_shown_in_the_colours_of_clip() -> None:
    image = np.zeros((1, 224, 300), np.float32)
    image[:, :, 38:262] = 255
    shown = _prepared(image)
    assert shown.shape == (3, 224, 224)
    for channel, (mean, deviation) in enumerate(zip(module._MEAN, module._DEVIATION, strict=True)):
        torch.testing.assert_close(shown[channel], torch.full((224, 224), (1 - mean) / deviation), atol=1e-4, rtol=0)


def test_volumes_and_other_files_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="BiomedCLIP takes 2-D images"):
        BiomedCLIP.load(weights).embed(make_case((4, 8, 8)))
    torch.save({"visual.trunk.cls_token": torch.zeros(1)}, tmp_path / "other.bin")
    with pytest.raises(ModelError, match=r"not BiomedCLIP's.*visual\.head\.proj\.weight"):
        BiomedCLIP.load(tmp_path / "other.bin")
    state = torch.load(weights, weights_only=True)
    del state["visual.trunk.norm.weight"]
    torch.save(state, tmp_path / "short.bin")
    with pytest.raises(ModelError, match="does not fit the network"):
        BiomedCLIP.load(tmp_path / "short.bin")


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(module.importlib, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r"pip install 'medfm-rl\[biomedclip\]'"):
        module._trunk()


def test_an_image_unlike_those_of_the_calibration_is_referred(quality_run: Path, weights: Path, tmp_path: Path) -> None:
    """Calibrated with it, scored with it: an image that only this encoder finds strange is referred."""
    run, data = tmp_path / "run", quality_run.parent / "data"
    shutil.copytree(quality_run, run)
    files = find_cases(DataSettings(path=data))
    with pytest.raises(ModelError, match="calibrate with `medfm-rl calibrate --biomedclip FILE`"):
        load_run(run, "cpu").controller(gates=Gates(biomedclip=weights))
    model = calibrate(load_run(run, "cpu"), files, CalibrateRequest(Targets(dice=0.5), biomedclip=weights), quiet)
    assert model.biomedclip is not None
    assert len(model.biomedclip.domain.centre) == 512
    other = write_weights(tmp_path / "other.bin", nn.Module.requires_grad_(tiny(), False))
    torch.save({**torch.load(other, weights_only=True), "logit_scale": torch.tensor(1.0)}, other)
    with pytest.raises(ModelError, match="does not know what this BiomedCLIP saw"):
        load_run(run, "cpu").controller(gates=Gates(biomedclip=other))

    plain, gated = (load_run(run, "cpu").controller(gates=gates) for gates in (Gates(), Gates(biomedclip=weights)))
    labelled = files[0].read_labelled(plain.schema)
    without, seen = (one.assess(labelled.case, labelled.ground_truth) for one in (plain, gated))
    # Three looks instead of two, by Bonferroni.
    assert seen.shift_probability <= 1.5 * without.shift_probability + 1e-9
    assert seen.scores == without.scores
    gated.biomedclip.embed = lambda case: np.eye(512)[0]  # type: ignore[method-assign, union-attr]
    strange = gated.assess(labelled.case, labelled.ground_truth)
    assert strange.shift_probability < 0.001
    assert (strange.verdict, "unlike those of the calibration" in strange.reasons[0]) == ("refer", True)

    masks = find_masks(data / "labels", files[:2])
    score(
        load_run(run, "cpu"),
        files[:2],
        tmp_path / "scores",
        ScoreRequest(masks=masks, gates=Gates(biomedclip=weights)),
        quiet,
    )
    log = [json.loads(line) for line in (tmp_path / "scores" / "audit.jsonl").read_text().splitlines()]
    assert ["biomedclip" in line for line in log] == [True, True]
