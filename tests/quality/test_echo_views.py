"""Images that are no apical views are referred, by a classifier with the layers of the real one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from medfm_rl.data.layouts import find_cases
from medfm_rl.data.mask_files import find_masks
from medfm_rl.errors import DataError, ModelError
from medfm_rl.quality import echo_views
from medfm_rl.quality.controller import QualityController
from medfm_rl.quality.echo_views import VIEWS, ViewClassifier, _prepared
from medfm_rl.quality.gates import Gates
from medfm_rl.quality.model import QualityModel
from medfm_rl.quality.reports import QualityReport, ViewFinding
from medfm_rl.runs.finished import load_run
from medfm_rl.settings import DataSettings
from medfm_rl.types import Case, Geometry
from medfm_rl.workflows.deploy.score import ScoreRequest, score


def quiet(stage: str, done: int, total: int) -> None:
    assert 0 <= done <= total, stage


def tiny(view: str = "A4C") -> nn.Module:
    """A small network of the same class that always sees one view."""
    torch.manual_seed(0)
    network = ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=len(VIEWS))
    with torch.no_grad():
        network.classifier[-1].weight.zero_()  # type: ignore[operator, union-attr]
        network.classifier[-1].bias.zero_()  # type: ignore[operator, union-attr]
        network.classifier[-1].bias[VIEWS.index(view)] = 5.0  # type: ignore[index]
    return network


def make_case(shape: tuple[int, ...] = (40, 60)) -> Case:
    image = np.random.default_rng(0).uniform(0, 255, (1, *shape)).astype(np.float32)
    return Case("c", "p", image, Geometry.unknown(len(shape)))


@pytest.fixture(autouse=True)
def _tiny_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(echo_views, "_network", tiny)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "view_classifier.pt"
    torch.save(tiny("Parasternal_Long").state_dict(), path)
    return path


@pytest.fixture
def echo_run(quality_run: Path, tmp_path: Path) -> Path:
    run = tmp_path / "run"
    shutil.copytree(quality_run, run)
    QualityModel.read(run / "quality.json").model_copy(update={"anatomy": "echo_apical"}).write(run / "quality.json")
    return run


def test_the_real_network_has_eleven_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with torch.no_grad():
        assert echo_views._network().eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 11)


def test_what_is_seen_and_how_surely(weights: Path) -> None:
    found = ViewClassifier.load(weights).find(make_case())
    # One logit of 5 among ten of 0.
    assert (found.view, found.is_apical) == ("Parasternal_Long", False)
    assert found.probability == pytest.approx(np.exp(5) / (np.exp(5) + 10))
    assert found.apical == pytest.approx(4 / (np.exp(5) + 10))
    assert [ViewFinding(view, 1.0, 1.0).is_apical for view in ("A2C", "A3C", "A4C", "A5C", "Apical_Doppler")] == [
        True,
        True,
        True,
        True,
        False,
    ]


def test_the_middle_of_an_image_is_shown_without_a_tenth_at_each_side() -> None:
    image = np.full((1, 100, 140), 200.0, np.float32)
    # The middle square is columns 20 to 119; without a tenth rows 10 to 89 and columns 30 to 109 are left.
    image[:, 10:90, 30:110] = 29.110628
    shown = _prepared(image)
    assert shown.shape == (3, 224, 224)
    torch.testing.assert_close(shown[0], torch.zeros(224, 224), atol=1e-5, rtol=0)


def test_of_two_channels_the_first_is_shown_and_of_four_three() -> None:
    image = make_case().image
    grey = _prepared(image)
    assert torch.equal(_prepared(np.concatenate([image, 255 - image])), grey)
    assert torch.equal(_prepared(np.concatenate([image] * 4)), grey)


def test_images_of_other_ranges_are_brought_to_bytes() -> None:
    image = make_case().image
    plain = _prepared(image)
    for other in (image / 255, image * 16 - 500):
        low, high = other.min(), other.max()
        expected = _prepared((other - low) / (high - low) * 255)
        torch.testing.assert_close(_prepared(other), expected, atol=1e-4, rtol=0)
        assert float((_prepared(other) - plain).abs().mean()) < 0.1


def test_a_volume_and_other_files_are_refused(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="views are told of 2-D images"):
        ViewClassifier.load(weights).find(make_case((4, 8, 8)))
    with pytest.raises(ModelError, match="no such checkpoint"):
        ViewClassifier.load(tmp_path / "nothing.pt")
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(ModelError, match="does not fit the network"):
        ViewClassifier.load(tmp_path / "other.pt")


def test_a_classifier_of_echo_does_not_go_with_other_rules(quality_run: Path, weights: Path) -> None:
    with pytest.raises(ModelError, match="the rules are generic, it needs echo_apical"):
        load_run(quality_run, "cpu").controller(gates=Gates(echoprime=weights))


def test_an_image_of_another_view_is_referred_whatever_its_mask(echo_run: Path, weights: Path) -> None:
    file = find_cases(DataSettings(path=_data_of(echo_run)))[0]
    judge = load_run(echo_run, "cpu").controller(gates=Gates(echoprime=weights))
    labelled = file.read_labelled(judge.schema)
    report = judge.assess(labelled.case, labelled.ground_truth)
    assert report.verdict == "refer"
    assert report.reasons[0].startswith("the view classifier sees Parasternal Long (p = 0.94)")
    assert QualityReport.from_json(json.loads(json.dumps(report.to_json()))).view == report.view
    apical = QualityController(judge.segmenter, judge.reward, judge.model, views=ViewClassifier(tiny("A2C"), "a hash"))
    plain = QualityController(judge.segmenter, judge.reward, judge.model)
    seen = apical.assess(labelled.case, labelled.ground_truth)
    without = plain.assess(labelled.case, labelled.ground_truth)
    assert seen.view is not None
    assert (seen.view.view, without.view) == ("A2C", None)
    assert replace(seen, view=None).reasons == without.reasons


def test_a_call_with_the_classifier_judges_anew_and_says_what_judged(
    echo_run: Path, weights: Path, tmp_path: Path
) -> None:
    files = find_cases(DataSettings(path=_data_of(echo_run)))[:2]
    masks = find_masks(_data_of(echo_run) / "labels", files)
    score(load_run(echo_run, "cpu"), files, tmp_path / "scores", ScoreRequest(masks=masks), quiet)
    with_views = score(
        load_run(echo_run, "cpu"),
        files,
        tmp_path / "scores",
        ScoreRequest(masks=masks, gates=Gates(echoprime=weights)),
        quiet,
    )
    assert with_views.count("refer") == 2
    log = [json.loads(line) for line in (tmp_path / "scores" / "audit.jsonl").read_text().splitlines()]
    assert ["views" in line for line in log] == [False, False, True, True]
    assert "Parasternal_Long" in (tmp_path / "scores" / "scores.csv").read_text()


def _data_of(run: Path) -> Path:
    """The images of the run that was copied."""
    return Path(yaml.safe_load((run / "config.yaml").read_text())["target"]["path"])


def test_an_image_that_the_classifier_does_not_take_is_named_and_the_others_are_judged(
    echo_run: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = find_cases(DataSettings(path=_data_of(echo_run)))[:3]
    find = ViewClassifier.find

    def refusing(self: ViewClassifier, case: Case) -> ViewFinding:
        if case.case_id == files[1].case_id:
            raise DataError(f"case {case.case_id}: the image is 3-D; views are told of 2-D images")
        return find(self, case)

    monkeypatch.setattr(ViewClassifier, "find", refusing)
    masks = find_masks(_data_of(echo_run) / "labels", files)
    scoring = score(
        load_run(echo_run, "cpu"), files, tmp_path, ScoreRequest(masks=masks, gates=Gates(echoprime=weights)), quiet
    )
    assert list(scoring.problems) == [files[1].case_id]
    assert [report.case_id for report in scoring.batch.reports] == [files[0].case_id, files[2].case_id]
