from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from medfm_rl.adapters import Sample, TorchModuleAdapter
from medfm_rl.anatomy.rules import Profile, SizeRule
from medfm_rl.data.layouts import find_cases
from medfm_rl.errors import DataError, ModelError
from medfm_rl.quality import QualityController, QualityReport
from medfm_rl.quality.calibration import CalibrationCase, Provenance, fit_quality
from medfm_rl.quality.conformal import interval
from medfm_rl.quality.model import MEAN, QualityModel, StructureModel, Targets
from medfm_rl.quality.shift import DomainReference
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.settings import DataSettings, NetworkSettings, RewardSettings
from medfm_rl.types import Geometry, LabelledCase


@pytest.fixture(scope="module")
def controller(quality_run: Path) -> QualityController:
    return QualityController.load(quality_run)


@pytest.fixture(scope="module")
def labelled(quality_run: Path, controller: QualityController) -> list[LabelledCase]:
    files = find_cases(DataSettings(path=quality_run.parent / "data"))
    return [file.read_labelled(controller.schema) for file in files]


@pytest.fixture(scope="module")
def report(controller: QualityController, labelled: list[LabelledCase]) -> QualityReport:
    return controller.assess(labelled[0].case, labelled[0].ground_truth)


def test_a_report_holds_everything_that_is_known(controller: QualityController, report: QualityReport) -> None:
    assert [score.structure for score in report.scores] == ["LV", "MYO", "LA", MEAN]
    predicted = [score.predicted_dice for score in report.scores]
    assert report.mean.predicted_dice == pytest.approx(np.mean(predicted[:3]))
    for score in report.scores:
        assert score.low is not None
        assert score.high is not None
        assert 0 <= score.low <= score.predicted_dice <= score.high <= 1
        # The mean over three rows and columns, which are 5 % of the image at most.
        around = ndimage.uniform_filter(report.reward_map, 3, mode="nearest")
        assert score.worst_reward == pytest.approx(around[score.worst_centre], abs=1e-6)
    assert report.reward_map.shape == (32, 32)
    assert {rule.rule for rule in report.rules} >= {"components", "holes", "size", "contact"}
    assert report.reasons
    assert 0 < report.shift_probability <= 1


def test_a_report_survives_its_file(report: QualityReport) -> None:
    again = QualityReport.from_json(json.loads(json.dumps(report.to_json())))
    assert replace(again, reward_map=report.reward_map).to_json() == report.to_json()
    assert again.verdict == report.verdict


def test_the_worst_region_lies_where_the_reward_is_low(
    controller: QualityController, labelled: list[LabelledCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = controller.model.pixels.model_copy(update={"reward_weight": 1.0, "confidence_weight": 0.0})
    trusting = QualityController(
        controller.segmenter, controller.reward, controller.model.model_copy(update={"pixels": pixels})
    )
    case, mask = labelled[0].case, labelled[0].ground_truth
    rows, columns = np.nonzero(mask == 1)
    spot = (int(rows.mean()), int(columns.mean()))

    def doubted(self: RewardEnsemble, images: torch.Tensor, actions: torch.Tensor, patch: object) -> object:
        found = original(self, images, actions, patch)
        mean = torch.full_like(found.mean, 0.9)
        mean[0, spot[0] - 1 : spot[0] + 2, spot[1] - 1 : spot[1] + 2] = 0.01
        return replace(found, mean=mean)

    original = RewardEnsemble.examine
    monkeypatch.setattr(RewardEnsemble, "examine", doubted)
    ventricle = trusting.assess(case, mask).scores[0]
    assert ventricle.worst_centre == spot
    assert ventricle.worst_reward < 0.2


def test_the_segmenter_is_asked_how_probable_a_mask_is(
    controller: QualityController, labelled: list[LabelledCase]
) -> None:
    """The reward networks of this run have not learned anything: what is known comes from the segmenter."""
    assert controller.model.pixels.confidence_weight is not None
    assert controller.model.pixels.confidence_weight > 0
    for item in labelled[:4]:
        own = controller.segmenter.segment(item.case)
        moved = np.roll(own, 4, axis=1)
        assert (
            controller.assess(item.case, own).mean.predicted_dice
            > 0.1 + controller.assess(item.case, moved).mean.predicted_dice
        )


def test_a_mask_of_the_own_segmenter_is_made_and_judged_in_one_inference(
    controller: QualityController, labelled: list[LabelledCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = labelled[0].case
    mask = controller.segmenter.segment(case)
    expected = controller.assess(case, mask)
    calls = []
    original = type(controller.segmenter).predict_logits

    def counted(self: TorchModuleAdapter, sample: Sample) -> torch.Tensor:
        calls.append(sample.case_id)
        return original(self, sample)

    monkeypatch.setattr(type(controller.segmenter), "predict_logits", counted)
    submission = controller.segment(case)
    assert np.array_equal(submission.labels, mask)
    assert controller.assess_batch([submission])[0].to_json() == expected.to_json()
    assert calls == [case.case_id]


def test_a_missing_structure_is_referred_without_a_score(
    controller: QualityController, labelled: list[LabelledCase]
) -> None:
    mask = labelled[0].ground_truth.copy()
    mask[mask == 3] = 0
    report = controller.assess(labelled[0].case, mask)
    assert report.verdict == "refer"
    assert report.scores[2].predicted_dice is None
    assert report.mean.predicted_dice is None
    assert "LA is missing" in report.reasons[0]
    empty = controller.assess(labelled[0].case, np.zeros_like(mask))
    assert (empty.verdict, empty.mean.predicted_dice) == ("refer", None)


def test_a_mask_that_is_not_of_the_image_is_an_error(
    controller: QualityController, labelled: list[LabelledCase]
) -> None:
    with pytest.raises(DataError, match=r"the mask has size \(31, 32\), its image \(32, 32\)"):
        controller.assess(labelled[0].case, labelled[0].ground_truth[1:])
    with pytest.raises(DataError, match="class indices go from 0 to 3"):
        controller.assess(labelled[0].case, np.full((32, 32), 9, np.uint8))


def test_an_image_of_another_kind_is_referred(controller: QualityController, labelled: list[LabelledCase]) -> None:
    case, mask = labelled[0].case, labelled[0].ground_truth
    noise = np.random.default_rng(0).exponential(size=case.image.shape).astype(np.float32) ** 3
    report = controller.assess(replace(case, image=noise), mask)
    assert report.shift_probability < 0.001
    assert report.verdict == "refer"
    assert "unlike those of the calibration" in report.reasons[0]


def test_an_image_of_another_orientation_is_referred(
    controller: QualityController, labelled: list[LabelledCase]
) -> None:
    case, mask = labelled[0].case, labelled[0].ground_truth
    report = controller.assess(replace(case, image=case.image[:, ::-1].copy()), mask)
    assert report.shift_probability < 0.001
    assert (report.verdict, "unlike those of the calibration" in report.reasons[0]) == ("refer", True)


def changed(controller: QualityController, policy: SitePolicy = RESEARCH, **changes: object) -> QualityController:
    model = controller.model.model_copy(update=changes)
    return QualityController(controller.segmenter, controller.reward, model, policy=policy)


def with_errors(
    controller: QualityController, errors: float | Sequence[float], policy: SitePolicy = RESEARCH, **changes: object
) -> QualityController:
    """One of which the mean Dice missed the truth of its calibration cases by these errors, in widths of the interval."""
    cases = len(controller.model.domain.reference)
    residuals = (errors,) * cases if isinstance(errors, float) else tuple(errors)
    mean = StructureModel(
        predictor=None, quantile=max(map(abs, residuals)), residuals=residuals, error=0, bias=0
    )
    return changed(controller, policy, structures={**controller.model.structures, MEAN: mean}, **changes)


def sound(report: QualityReport) -> QualityReport:
    return replace(report, rules=(), shift_probability=0.5)


def test_the_verdict_follows_interval_threshold_and_rules(controller: QualityController, report: QualityReport) -> None:
    predicted = report.mean.predicted_dice
    assert predicted is not None

    fine = sound(report)

    def verdict(limit: float, quantile: float, threshold: float | None, tried: QualityReport = fine) -> object:
        changes = {"targets": Targets(dice=limit), "accept_threshold": threshold}
        judge = with_interval(controller, quantile, accept_untested=True, **changes)
        low, high = judge.model.structures[MEAN].interval(predicted)
        mean = replace(tried.mean, low=low, high=high)
        (found,) = judge.settle([replace(tried, scores=(*tried.scores[:-1], mean))]).reports
        return found.verdict, found.reason_code

    assert verdict(predicted - 0.1, 0.01, None) == ("accept", "interval")
    assert verdict(predicted - 0.1, 5.0, None) == ("correct", "predicted_dice")
    assert verdict(predicted - 0.1, 5.0, predicted - 0.05) == ("accept", "threshold")
    assert verdict(predicted - 0.1, 5.0, predicted + 0.05) == ("correct", "predicted_dice")
    # What is promised of accepted masks was tested for those above the threshold, however narrow an interval is.
    assert verdict(predicted - 0.1, 0.01, predicted + 0.05) == ("correct", "predicted_dice")
    assert verdict(predicted + 0.1, 0.01, None) == ("refer", "predicted_dice")
    broken = replace(report.rules[0], passed=False)
    assert verdict(predicted - 0.1, 0.01, None, replace(sound(report), rules=(broken,))) == ("correct", "rules")
    strange = replace(sound(report), shift_probability=1e-6)
    assert verdict(predicted - 0.1, 0.01, None, strange) == ("refer", "shift_case")


def test_a_verdict_says_what_is_unlike_the_calibration(controller: QualityController, report: QualityReport) -> None:
    for seen_by, words in [
        ("reward network", "image and mask together are unlike"),
        ("appearance", "the image looks unlike"),
        ("BiomedCLIP", "the image is unlike those of the calibration, to BiomedCLIP"),
    ]:
        strange = replace(sound(report), shift_probability=1e-6, shift_seen_by=seen_by)
        assert controller.settle([strange]).reports[0].reasons[0].startswith(words)


def test_the_mask_alone_can_be_unlike_and_so_can_the_look_of_the_image(
    controller: QualityController, labelled: list[LabelledCase]
) -> None:
    case = labelled[0].case
    noise = np.random.default_rng(0).normal(size=case.image.shape).astype(np.float32)
    report = controller.assess(replace(case, image=noise), labelled[0].ground_truth)
    assert report.shift_probability < 0.001
    assert report.shift_seen_by == "appearance"


def test_an_image_that_is_not_finite_is_refused_and_not_found_familiar(
    controller: QualityController, labelled: list[LabelledCase]
) -> None:
    image = labelled[0].case.image.copy()
    image[0, 3, 4] = np.nan
    broken = replace(labelled[0].case, image=image)
    for judge in (lambda: controller.assess(broken, labelled[0].ground_truth), lambda: controller.segment(broken)):
        with pytest.raises(DataError, match=rf"case {broken.case_id}: the image has values that are not finite"):
            judge()


def test_rules_in_mm_name_the_case_that_has_no_spacing(
    controller: QualityController, labelled: list[LabelledCase]
) -> None:
    rule = SizeRule(structure="LV", measured_in="mm", least=1, most=1e6)
    profile = Profile(rules=(rule,))
    judge = QualityController(
        controller.segmenter, controller.reward, controller.model.model_copy(update={"profile": profile})
    )
    case = replace(labelled[0].case, geometry=Geometry.unknown(2))
    with pytest.raises(DataError, match=rf"case {case.case_id}: rule size of LV has limits in mm"):
        judge.assess(case, labelled[0].ground_truth)


def batch(controller: QualityController, labelled: list[LabelledCase], shift: float) -> list[QualityReport]:
    # Masks of the segmenter that was calibrated: those of an expert look different to the networks.
    masks = [controller.segmenter.segment(item.case) for item in labelled]
    reports = [sound(controller.assess(item.case, mask)) for item, mask in zip(labelled, masks, strict=True)]
    return [replace(item, embedding=tuple(np.array(item.embedding) + shift)) for item in reports]


def test_a_batch_from_elsewhere_suspends_what_was_promised(
    controller: QualityController, labelled: list[LabelledCase]
) -> None:
    judge = with_interval(controller, 5.0, targets=Targets(dice=0.05), accept_threshold=0.0)
    same = judge.settle(batch(judge, labelled, 0.0))
    assert same.shift_probability is not None
    assert {guarantee.status for guarantee in same.guarantees} == {"holds"}
    assert {report.verdict for report in same.reports} == {"accept"}
    moved = judge.settle(batch(judge, labelled, 5.0))
    assert moved.shift_probability is not None
    assert moved.shift_probability < 0.05
    assert {guarantee.status for guarantee in moved.guarantees} == {"suspended"}
    assert "calibrate on labelled cases of this domain" in moved.guarantees[0].reason
    # The threshold counts no more; the interval reaches below the limit.
    assert {report.verdict for report in moved.reports} == {"correct"}
    assert "the threshold does not count" in moved.reports[0].reasons[0]


def test_where_no_interval_can_be_promised_no_mask_is_accepted(
    controller: QualityController, labelled: list[LabelledCase]
) -> None:
    judge = with_interval(controller, 0.01, targets=Targets(dice=0.05))
    assert {report.verdict for report in judge.settle(batch(judge, labelled, 0.0)).reports} == {"accept"}
    moved = judge.settle(batch(judge, labelled, 5.0))
    assert {report.verdict for report in moved.reports} == {"refer"}
    assert {report.reason_code for report in moved.reports} == {"batch_suspended"}
    assert "no interval can be promised" in moved.reports[0].reasons[0]
    assert "9 are needed" in moved.guarantees[0].reason


@pytest.mark.parametrize("promise", ["interval", "threshold"])
def test_no_mask_of_a_batch_that_is_too_small_for_the_test_is_accepted_unless_that_is_asked_for(
    controller: QualityController, labelled: list[LabelledCase], promise: str
) -> None:
    quantile, threshold = (0.01, None) if promise == "interval" else (5.0, 0.0)
    targets = Targets(dice=0.05)
    judge = with_interval(controller, quantile, targets=targets, accept_threshold=threshold)
    reports = batch(judge, labelled, 0.0)
    of_patients = sorted({report.patient_id for report in reports})
    four, five = ([item for item in reports if item.patient_id in of_patients[:count]] for count in (4, 5))
    withheld = judge.settle(four)
    assert (withheld.state, withheld.patients) == ("untested", 4)
    assert "the batch is of 4 patients" in withheld.meaning
    assert "none is accepted" in withheld.meaning
    for report in withheld.reports:
        assert (report.verdict, report.reason_code) == ("refer", "batch_untested")
        assert "too few patients to test" in report.reasons[0]
    enough = judge.settle(five)
    assert (enough.state, enough.patients) == ("holds", 5)
    assert {(report.verdict, report.reason_code) for report in enough.reports} == {("accept", promise)}
    asked = with_interval(
        controller, quantile, accept_untested=True, targets=targets, accept_threshold=threshold
    ).settle(four)
    assert {(report.verdict, report.reason_code) for report in asked.reports} == {("accept", promise)}
    assert "too few patients to test" in asked.reports[0].reasons[0]
    assert "accepted all the same, as was asked" in asked.meaning


def test_a_case_that_is_unlike_the_calibration_is_referred_for_that_also_where_untested_masks_are_accepted(
    controller: QualityController, report: QualityReport
) -> None:
    judge = with_interval(controller, 0.01, accept_untested=True, targets=Targets(dice=0.05))
    (found,) = judge.settle([replace(sound(report), shift_probability=1e-6)]).reports
    assert (found.verdict, found.reason_code) == ("refer", "shift_case")


def test_a_batch_that_differs_a_little_has_weighted_intervals(
    controller: QualityController, labelled: list[LabelledCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = with_interval(controller, 0.01, targets=Targets(dice=0.05), accept_threshold=0.0)
    rows = len(judge.model.domain.reference)
    mean = judge.model.structures[MEAN].model_copy(update={"conformity": (*(0.01,) * (rows - 2), 0.5, 0.5)})
    judge = changed(judge, structures={**judge.model.structures, MEAN: mean})
    # The last two cases, those with a large error, are three times as probable in the batch.
    ratios = np.array([*[1.0] * (rows - 2), 3.0, 3.0])
    monkeypatch.setattr(DomainReference, "batch_probability", lambda *_: 0.01)
    monkeypatch.setattr(DomainReference, "likelihood_ratios", lambda _, rows, names: (ratios, np.ones(len(names))))
    settled = judge.settle(batch(judge, labelled, 0.0))
    assert [guarantee.status for guarantee in settled.guarantees] == ["weighted", "suspended"]
    assert "only the images differ" in settled.guarantees[0].reason
    for report in settled.reports:
        predicted = report.mean.predicted_dice
        assert predicted is not None
        assert (report.mean.low, report.mean.high) == interval(predicted, 0.5)
    # Reports that come out of this batch have the intervals of the next one in it.
    again = with_interval(controller, 1.0).settle(settled.reports[:1]).reports[0]
    assert (again.mean.low, again.mean.high) == interval(again.mean.predicted_dice, 1.0)


def test_a_small_batch_is_untested_and_a_small_calibration_promises_nothing(
    controller: QualityController, report: QualityReport
) -> None:
    assert {guarantee.status for guarantee in with_interval(controller, 1.0).settle([report]).guarantees} == {
        "untested",
        "none",
    }
    nothing = with_interval(controller, None, accept_threshold=None).settle([report])
    assert {guarantee.status for guarantee in nothing.guarantees} == {"none"}
    assert nothing.shift_probability is None


def test_networks_that_were_not_calibrated_are_refused(quality_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(quality_run, run)
    shutil.rmtree(run / "reward" / "member-1")
    torch.manual_seed(5)
    RewardNet(NetworkSettings(channels=(4, 8), residual_units=0), 4).save(run / "reward" / "member-1")
    with pytest.raises(ModelError, match=r"not those that quality.json was calibrated with \(differing: member-1\)"):
        QualityController.load(run)
    shutil.rmtree(run / "reward")
    shutil.copytree(quality_run / "reward", run / "reward")
    QualityController.load(run)
    weights = next((run / "model").glob("*.safetensors"))
    shutil.copyfile(next((quality_run / "reward" / "member-0").glob("*.safetensors")), weights)
    with pytest.raises(ModelError, match=r"the segmenter is not the one that quality\.json was calibrated with"):
        QualityController.load(run)


def test_networks_of_another_anatomy_are_refused(controller: QualityController) -> None:
    network = NetworkSettings(channels=(4, 8), residual_units=0)
    other = RewardEnsemble([RewardNet(network, 2)], RewardSettings())
    with pytest.raises(ModelError, match=r"reward networks of \[2\] classes; they must be of one anatomy"):
        QualityController(controller.segmenter, other, controller.model)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a quality model"),
        ('{"format": 1}', "format 1; this version"),
        ('{"format": 4}', "Field required"),
        ("[]", "not a quality model"),
    ],
)
def test_a_damaged_file_is_refused(quality_run: Path, tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "quality.json"
    path.write_text(content)
    with pytest.raises(ModelError, match=message):
        QualityModel.read(path)


def test_without_a_file_it_says_how_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(ModelError, match=r"medfm-rl calibrate .* --labelled DIR"):
        QualityController.load(tmp_path)
    with pytest.raises(ModelError, match="not a finished run"):
        QualityController.load(tmp_path / "nowhere")


def test_few_patients_are_refused_with_what_is_needed(controller: QualityController) -> None:
    case = CalibrationCase("p", None, torch.ones(2, 2), np.ones(3, np.float32))  # type: ignore[arg-type]
    with pytest.raises(
        DataError, match=r"has 1 patients and needs at least 8; 18 for intervals of 90%, and 76 for.*--patient-pattern"
    ):
        fit_quality([case], controller.anatomy, Targets(), Provenance("", False, "", "", {}))


def test_the_model_states_its_errors_on_patients_that_it_was_not_fitted_on(quality_run: Path) -> None:
    model = QualityModel.read(quality_run / "quality.json")
    assert (model.patients, model.conformal_patients, model.target_domain) == (24, 12, True)
    assert model.structures.keys() == {"LV", "MYO", "LA", MEAN}
    assert all(item.quantile is not None for item in model.structures.values())
    assert 0 <= model.pixels.ece_after <= model.pixels.ece_before + 1e-6
    # Whom the images show is nobody's business.
    assert "sim00" not in (quality_run / "quality.json").read_text()


def test_masks_judged_together_get_the_reports_that_they_get_alone(
    controller: QualityController, labelled: list[LabelledCase]
) -> None:
    smaller = replace(labelled[1].case, image=labelled[1].case.image[:, 1:]), labelled[1].ground_truth[1:]
    masks = [(item.case, item.ground_truth) for item in labelled[:18]]
    masks.insert(3, smaller)
    together = controller.assess_batch([controller.submit(case, mask) for case, mask in masks])
    assert [report.case_id for report in together] == [case.case_id for case, _ in masks]
    for report, (case, mask) in zip(together, masks, strict=True):
        alone = controller.assess(case, mask)
        np.testing.assert_allclose(report.reward_map, alone.reward_map, atol=1e-5)
        np.testing.assert_allclose(report.embedding, alone.embedding, atol=1e-4)
        assert report.mean.predicted_dice == pytest.approx(alone.mean.predicted_dice, abs=1e-4)
        assert (report.verdict, report.rules) == (alone.verdict, alone.rules)


def test_larger_images_are_judged_in_overlapping_patches() -> None:
    torch.manual_seed(0)
    nets = [RewardNet(NetworkSettings(channels=(4, 8), residual_units=0), 3) for _ in range(2)]
    ensemble = RewardEnsemble(nets, RewardSettings())
    images, actions = torch.randn(2, 1, 24, 40), torch.randint(0, 3, (2, 24, 40))
    found = ensemble.examine(images, actions, (16, 16))
    assert found.mean.shape == found.spread.shape == (2, 24, 40)
    assert found.features.shape == (2, 12)
    assert bool(((found.mean >= 0) & (found.mean <= 1)).all())
    whole = ensemble.examine(images, actions, (24, 40))
    expected = torch.stack([net.reward_map(images, actions) for net in nets])
    torch.testing.assert_close(whole.mean, expected.mean(dim=0))
    torch.testing.assert_close(whole.spread, expected.std(dim=0, correction=0))


def test_slices_of_a_volume_are_judged_one_by_one() -> None:
    torch.manual_seed(0)
    ensemble = RewardEnsemble(
        [RewardNet(NetworkSettings(channels=(4, 8), residual_units=0), 3) for _ in range(2)], RewardSettings()
    )
    images, actions = torch.randn(1, 1, 5, 16, 16), torch.randint(0, 3, (1, 5, 16, 16))
    found = ensemble.examine(images, actions, (16, 16))
    slices = ensemble.examine(images[0].movedim(1, 0), actions[0], (16, 16))
    torch.testing.assert_close(found.mean[0], slices.mean)
    torch.testing.assert_close(found.spread[0], slices.spread)
    torch.testing.assert_close(found.features[0], slices.features.mean(dim=0))


def test_geometry_reaches_the_rules(controller: QualityController, labelled: list[LabelledCase]) -> None:
    case = replace(labelled[0].case, geometry=Geometry((0.5, 2.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0)))
    found = {rule.rule: rule for rule in controller.assess(case, labelled[0].ground_truth).rules}
    assert found["size"].unit == "mm^2"
