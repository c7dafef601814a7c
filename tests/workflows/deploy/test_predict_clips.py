from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from support.clip_files import COUNT, greys, region, ventricles, write_clip
from torch import Tensor, nn

from medfm_rl.adapters import TorchModuleAdapter, post_processing
from medfm_rl.adapters.clips import segment_frames
from medfm_rl.adapters.post_processing import PostProcessing
from medfm_rl.anatomy.profiles import Anatomy, load_anatomy
from medfm_rl.data.clips.sequences import write_sequence
from medfm_rl.data.images import write_image
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.errors import ConfigError, DataError
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.runs.models import ModelInMemory
from medfm_rl.settings import DataSettings, NetworkSettings, PreprocessingSettings, RewardSettings
from medfm_rl.types import Geometry, LabelMap, LabelSchema
from medfm_rl.workflows.deploy.predict import predict, segment_clip, segment_with_reward
from medfm_rl.workflows.evaluate.evaluate import evaluate

LV = LabelSchema(("background", "LV"), (0, 7))
SECTOR = (8, 4, 55, 43)
PLANE = Geometry((0.5, 0.5), (4.0, 2.0), (1.0, 0.0, 0.0, 1.0))


class DarkIsVentricle(nn.Module):
    """Segments what is darker than the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor([130.0, 20.0]), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        return -(((images - self.values[None, :, None, None]) / 50) ** 2)


def segmenter() -> TorchModuleAdapter:
    preprocessing = PreprocessingSettings(size=(40, 48), grid="native", intensity="none")
    return TorchModuleAdapter(DarkIsVentricle(), LV, preprocessing).eval()


def make_reward() -> RewardEnsemble:
    torch.manual_seed(0)
    network = NetworkSettings(channels=(4, 8), residual_units=0)
    return RewardEnsemble([RewardNet(network, 2) for _ in range(2)], RewardSettings()).eval()


@pytest.fixture
def files(tmp_path: Path) -> list[CaseFile]:
    """Clips of two patients with masks of every frame, and a still of one of them with its mask."""
    for patient in ("p1", "p2"):
        path = tmp_path / "data" / "images" / f"{patient}_4CH.dcm"
        write_clip(path, greys(), SequenceOfUltrasoundRegions=[region(*SECTOR)])
        masks = ventricles()[:, 4:44, 8:56] * np.uint8(7)
        write_sequence(tmp_path / "data" / "labels" / f"{patient}_4CH.nii.gz", masks, PLANE, None)
    write_image(tmp_path / "data" / "images" / "p2_still.nii.gz", greys()[0, 4:44, 8:56], PLANE)
    write_image(tmp_path / "data" / "labels" / "p2_still.nii.gz", ventricles()[0, 4:44, 8:56] * np.uint8(7), PLANE)
    return find_cases(DataSettings(path=tmp_path / "data"))


def test_masks_of_a_clip_are_one_sequence_with_its_times_and_grid(tmp_path: Path, files: list[CaseFile]) -> None:
    assert predict(ModelInMemory(segmenter()), files, tmp_path / "out") == []
    assert sorted(path.name for path in (tmp_path / "out" / "labels").iterdir()) == [
        "p1_4CH.nii.gz",
        "p2_4CH.nii.gz",
        "p2_still.nii.gz",
    ]
    image = nib.load(tmp_path / "out" / "labels" / "p1_4CH.nii.gz")
    assert image.shape == (48, 40, 1, COUNT)
    assert image.header.get_zooms() == pytest.approx((0.5, 0.5, 1.0, 0.04))
    assert image.affine[:2, 3] == pytest.approx([-4.0, -2.0])
    masks = np.asarray(image.dataobj)[:, :, 0].transpose(2, 1, 0)
    assert np.array_equal(masks, ventricles()[:, 4:44, 8:56] * 7)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "labels").iterdir()}
    predict(ModelInMemory(segmenter()), files, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in written} == written
    log = [json.loads(line) for line in (tmp_path / "out" / "audit.jsonl").read_text().splitlines()]
    assert [line["case"] for line in log] == ["p1_4CH", "p2_4CH", "p2_still"]


def test_frames_are_segmented_and_judged_as_images_are(files: list[CaseFile]) -> None:
    adapter, reward, clip = segmenter(), make_reward(), files[0].read_clip()
    labels, rewards = segment_clip(adapter, reward, clip)
    assert rewards is not None
    for index in (0, COUNT - 1):
        alone, reward_map = segment_with_reward(adapter, reward, clip.frame(index))
        assert np.array_equal(labels[index], alone)
        assert rewards[index] == pytest.approx(reward_map, abs=1e-5)


def test_a_clip_that_cannot_be_read_is_left_out_by_name(tmp_path: Path, files: list[CaseFile]) -> None:
    path = files[0].image_paths[0]
    path.write_bytes(path.read_bytes()[:-3000])
    (problem,) = predict(ModelInMemory(segmenter()), files, tmp_path / "out")
    assert problem.startswith(str(path))
    assert (tmp_path / "out" / "labels" / "p2_4CH.nii.gz").exists()
    assert not (tmp_path / "out" / "labels" / "p1_4CH.nii.gz").exists()


def test_frames_are_evaluated_against_their_masks(tmp_path: Path, files: list[CaseFile]) -> None:
    measured = evaluate(ModelInMemory(segmenter()), files, tmp_path / "out", anatomy="generic")
    assert not measured.evaluation.problems
    with (tmp_path / "out" / "scores.csv").open() as table:
        rows = list(csv.DictReader(table))
    frames = [row for row in rows if row["case_id"].startswith("p1_4CH_frame") and row["structure"] == "LV"]
    assert len(frames) == COUNT
    assert all(float(row["dice"]) == 1.0 for row in frames)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["patients"] == 2


class LosesTheThird(DarkIsVentricle):
    """Sees no ventricle in the frame whose first pixel says so."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return torch.where(images[:, :, :1, :1] > 200, logits.flip(1), logits)


def test_frames_are_averaged_with_those_before_and_after_them_on_request(tmp_path: Path) -> None:
    frames = greys()
    frames[2, 4, 8] = 255
    for patient in ("p1", "p2"):
        path = tmp_path / "data" / "images" / f"{patient}_4CH.dcm"
        write_clip(path, frames, SequenceOfUltrasoundRegions=[region(*SECTOR)])
        masks = ventricles()[:, 4:44, 8:56] * np.uint8(7)
        write_sequence(tmp_path / "data" / "labels" / f"{patient}_4CH.nii.gz", masks, PLANE, None)
    files = find_cases(DataSettings(path=tmp_path / "data"))
    forgetful = TorchModuleAdapter(LosesTheThird(), LV, segmenter().preprocessing).eval()
    model = ModelInMemory(forgetful)
    truth = ventricles()[:, 4:44, 8:56] > 0
    shares = {}
    for over_time in (False, True):
        assert predict(model, files, tmp_path / str(over_time), over_time=over_time) == []
        found = nib.load(tmp_path / str(over_time) / "labels" / "p1_4CH.nii.gz").get_fdata()[:, :, 0].T > 0
        shares[over_time] = float((found[2] == truth[2]).mean())
        dice = evaluate(model, files, tmp_path / f"scores-{over_time}", over_time=over_time).evaluation.summary[0].dice
        assert (dice > 0.95) == over_time
    assert shares[False] < 0.2
    assert shares[True] > 0.95
    # What was made without is not taken for what was asked.
    with pytest.raises(DataError, match="False"):
        predict(model, files, tmp_path / "False", over_time=True)


def test_every_frame_is_cleaned_up_on_request(tmp_path: Path) -> None:
    frames = greys()
    frames[3, 6:9, 10:13] = 20
    write_clip(tmp_path / "data" / "p1_4CH.dcm", frames, SequenceOfUltrasoundRegions=[region(*SECTOR)])
    files = find_cases(DataSettings(path=tmp_path / "data"))
    assert predict(ModelInMemory(segmenter()), files, tmp_path / "out", cleaned=True) == []
    found = nib.load(tmp_path / "out" / "labels" / "p1_4CH.nii.gz").get_fdata()[:, :, 0].transpose(2, 1, 0)
    assert np.array_equal(found > 0, ventricles()[:, 4:44, 8:56])


def test_a_clip_that_is_averaged_and_cleaned_up_is_smoothed_wherever_it_is_asked_for(
    tmp_path: Path, files: list[CaseFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What smoothing makes is written, rewarded and evaluated; here it takes the ventricle out of one frame."""
    asked: list[tuple[str, tuple[float, float] | None]] = []

    def smoothed(masks: LabelMap, anatomy: Anatomy, ventricle: str, spacing: tuple[float, float] | None) -> LabelMap:
        asked.append((ventricle, spacing))
        found = masks.copy()
        found[3] = 0
        return found

    monkeypatch.setattr(post_processing, "smooth_over_time", smoothed)
    made, reward, clip = segmenter(), make_reward(), files[0].read_clip()
    both = PostProcessing(over_time=True, anatomy=load_anatomy("generic", LV))
    masks, maps = segment_clip(made, reward, clip, both)
    assert asked == [("LV", pytest.approx((0.5, 0.5)))]
    assert not masks[3].any()
    assert masks[2].any()
    assert maps is not None
    sample = made.preprocess(clip.frame(3))
    expected = reward(sample.image[None], torch.zeros(1, *sample.image.shape[1:], dtype=torch.uint8))[0]
    assert np.allclose(maps[3], made.restore_map(expected.detach(), sample), atol=1e-5)
    assert np.array_equal(segment_frames(made, clip, both), masks)
    measured = evaluate(ModelInMemory(made), files, tmp_path / "scores", over_time=True, cleaned=True).evaluation
    lost = [row.case_id for row in measured.scores if row.dice == 0]
    assert sorted(set(lost)) == ["p1_4CH_frame003", "p2_4CH_frame003"]
    assert both.recorded()["smoothed"] == 1
    for other in (PostProcessing(over_time=True), PostProcessing(anatomy=both.anatomy)):
        assert "smoothed" not in other.recorded()
        assert np.array_equal(other.of_clip(clip, masks), masks)


def test_rules_over_time_are_those_of_a_ventricle(files: list[CaseFile]) -> None:
    organs = LabelSchema(("background", "kidney", "liver"), (0, 1, 2))
    both = PostProcessing(over_time=True, anatomy=load_anatomy("generic", organs))
    masks = np.zeros((COUNT, 40, 48), np.uint8)
    assert both.of_clip(files[0].read_clip(), masks) is masks
    assert "smoothed" not in both.recorded()


def test_without_a_clip_there_is_no_time_to_average_over(tmp_path: Path, files: list[CaseFile]) -> None:
    stills = [file for file in files if file.clip is None]
    with pytest.raises(ConfigError, match=r"none of the \d cases is one.*--layout clips"):
        predict(ModelInMemory(segmenter()), stills, tmp_path / "out", over_time=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="--over-time averages frames of clips"):
        evaluate(ModelInMemory(segmenter()), stills, tmp_path / "scores", over_time=True)
