from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from medfm_rl.adapters.clips import segmented_frames
from medfm_rl.anatomy.cleaning import clean_up
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.correction import Verification, Verifier
from medfm_rl.data.clips.sequences import write_sequence
from medfm_rl.data.images import read_image
from medfm_rl.data.labels import read_labels
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.data.mask_files import find_masks
from medfm_rl.data.ultrasound.phantom import ECHO_SCHEMA
from medfm_rl.reward.network import RewardNet
from medfm_rl.runs.finished import load_run
from medfm_rl.settings import CorrectionSettings, DataSettings, NetworkSettings
from medfm_rl.workflows.deploy.correct import CorrectRequest, correct
from medfm_rl.workflows.deploy.correction_outputs import Corrections

SETTINGS = CorrectionSettings(method="neighbours", seconds=600, views=1)


@pytest.fixture
def run(quality_run: Path, tmp_path: Path) -> Path:
    """The finished run with a verifier of its own."""
    folder = tmp_path / "run"
    shutil.copytree(quality_run, folder)
    torch.manual_seed(7)
    RewardNet(NetworkSettings(channels=(4, 8), residual_units=0), 4).save(folder / "reward" / "held-out")
    return folder


@pytest.fixture
def clip(quality_run: Path, tmp_path: Path) -> list[CaseFile]:
    """One image five times; of its mask the third frame lacks a half of the ventricle."""
    data = quality_run.parent / "data"
    name = sorted(path.name for path in (data / "images").iterdir())[0]
    image, geometry = read_image(data / "images" / name)
    mask = read_image(data / "labels" / name)[0][0].astype(np.uint8)
    frames, masks = np.repeat(image, 5, axis=0), np.repeat(mask[None], 5, axis=0)
    rows = np.arange(len(mask))[:, None]
    masks[2][(mask == 1) & (rows > np.median(np.nonzero(mask == 1)[0]))] = 0
    write_sequence(tmp_path / "images" / "p1_4CH.nii.gz", frames, geometry.plane, None)
    write_sequence(tmp_path / "masks" / "p1_4CH.nii.gz", masks, geometry.plane, None)
    return find_cases(DataSettings(path=tmp_path / "images"))


def run_correct(run: Path, files: list[CaseFile], out: Path, every: bool = True) -> Corrections:
    given = find_masks(out.parent / "masks", files)
    request = CorrectRequest(SETTINGS, every=every, masks=given)
    return correct(load_run(run, "cpu"), files, out, request)


def test_frames_of_a_clip_are_corrected_together_and_not_again(
    run: Path, clip: list[CaseFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = Verification(True, ("yes",), 0.1, {"LV": 0.1, "MYO": 0.1, "LA": 0.1}, 0.2, (), (), 1)
    asked = []

    def compare(self: Verifier, *arguments: object, **named: object) -> Verification:
        asked.append(arguments)
        return verdict

    monkeypatch.setattr(Verifier, "compare", compare)
    found = run_correct(run, clip, tmp_path / "out")
    decisions = {record["case"]: record["decision"] for record in found.records}
    assert found.promise.endswith("nothing is promised of the frames of clips")
    assert decisions["p1_4CH_frame002"] == "corrected"
    # All masks are in doubt, so that the segmenter of the run speaks alone: its average over time.
    finished, case = load_run(run, "cpu"), clip[2].read()
    made = read_labels(
        tmp_path / "out" / "labels" / "p1_4CH_frame002.nii.gz", ECHO_SCHEMA, case.shape, case.geometry, frame=None
    )
    averaged = segmented_frames(finished.segmenter, clip[2].read_clip(), over_time=True)
    third = next(frame for frame in averaged if frame.index == 2)
    restored = finished.segmenter.restore(third.logits, third.sample)
    assert np.array_equal(made, clean_up(restored, load_anatomy(finished.anatomy_name, ECHO_SCHEMA)))
    count = len(asked)
    assert run_correct(run, clip, tmp_path / "out").count("corrected") == found.count("corrected")
    assert len(asked) == count
    tables = json.loads((tmp_path / "out" / "corrections.json").read_text())
    assert [record["case"] for record in tables["cases"]] == [file.case_id for file in clip]


def test_a_clip_without_all_of_its_masks_is_named_and_every_frame_of_it(
    run: Path, clip: list[CaseFile], tmp_path: Path
) -> None:
    from medfm_rl.errors import DataError

    with pytest.raises(DataError, match="4 of its 5 frames are among the images"):
        run_correct(run, clip[:4], tmp_path / "out")
