from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from medfm_rl.adapters import Sample, TorchModuleAdapter
from medfm_rl.anatomy.rules import Profile, SizeRule
from medfm_rl.data.layouts import find_cases
from medfm_rl.errors import ConfigError, DataError, ModelError
from medfm_rl.metrics.scores import MEAN
from medfm_rl.quality.calibration import Provenance, fit_quality
from medfm_rl.quality.calibration_case import CalibrationCase
from medfm_rl.quality.conformal import interval
from medfm_rl.quality.controller import QualityController
from medfm_rl.quality.model import QualityModel, StructureModel, Targets
from medfm_rl.quality.reports import QualityReport
from medfm_rl.quality.shift import DomainReference
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.settings import CLINIC, RESEARCH, DataSettings, NetworkSettings, RewardSettings, SitePolicy
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
    """One of which the mean Dice missed the truth of the calibration cases by these errors, in widths of intervals."""
    cases = len(controller.model.domain.reference)
    residuals = (errors,) * cases if isinstance(errors, float) else tuple(errors)
    mean = StructureModel(predictor=None, quantile=max(map(abs, residuals)), residuals=residuals, error=0, bias=0)
    return changed(controller, policy, structures={**controller.model.structures, MEAN: mean}, **changes)


def sound(report: QualityReport) -> QualityReport:
    return replace(report, rules=(), shift_probability=0.5)


def test_the_verdict_follows_the_probability_of_a_bad_mask_the_threshold_and_telling_rules(
    controller: QualityController, report: QualityReport
) -> None:
    predicted = report.mean.predicted_dice
    assert predicted is not None
    width = 1.05 - predicted
    fine = sound(report)
    # Twelve calibration patients: if none of them, or each, had such an error, that is 0.5 / 13 and 12.5 / 13.
    none, each = 0.5 / 13, 12.5 / 13

    def verdict(
        limit: float, error: float, threshold: float | None = None, tried: QualityReport = fine, **changes: object
    ) -> object:
        changes |= {"targets": Targets(dice=limit), "accept_threshold": threshold}
        judge = with_errors(controller, error / width, **changes)
        (found,) = judge.settle(
            [replace(sound(report), rules=tried.rules, shift_probability=tried.shift_probability)]
        ).reports
        return found.verdict, found.reason_code, found.risk

    assert verdict(predicted - 0.1, -0.05) == ("accept", "predicted_dice", pytest.approx(none))
    assert verdict(predicted - 0.1, -0.15) == ("refer", "predicted_dice", pytest.approx(each))
    assert verdict(predicted + 0.1, 0.0) == ("refer", "predicted_dice", pytest.approx(each))
    # Predictions that are always too low by more than that.
    assert verdict(predicted + 0.1, 0.15) == ("accept", "predicted_dice", pytest.approx(none))
    assert verdict(predicted - 0.1, -0.15, predicted - 0.05)[:2] == ("accept", "threshold")
    assert verdict(predicted - 0.1, -0.05, predicted + 0.05)[:2] == ("accept", "predicted_dice")
    broken = replace(report.rules[0], passed=False)
    counted = replace(fine, rules=(broken,))
    assert verdict(predicted - 0.1, -0.05, tried=counted)[:2] == ("accept", "predicted_dice")
    assert verdict(predicted - 0.1, -0.05, tried=counted, telling_rules=(0,))[:2] == ("correct", "rules")
    assert verdict(predicted - 0.1, -0.05, predicted - 0.05, counted, telling_rules=(0,))[:2] == ("correct", "rules")
    assert verdict(predicted - 0.1, -0.15, tried=counted, telling_rules=(0,))[:2] == ("refer", "predicted_dice")
    strange = replace(fine, shift_probability=1e-6)
    assert verdict(predicted - 0.1, -0.05, tried=strange)[:2] == ("refer", "shift_case")


def test_between_the_two_limits_a_mask_is_to_be_corrected(controller: QualityController, report: QualityReport) -> None:
    rows, patients = len(controller.model.domain.reference), np.array(controller.model.domain.patients)
    # All masks of two patients of twelve, and one of four of a third, lie below what was predicted by a lot.
    bad = np.isin(patients, [0, 1]) | (np.arange(rows) == np.flatnonzero(patients == 2)[0])
    judge = with_errors(controller, np.where(bad, -9.0, 0.0).tolist(), targets=Targets(dice=0.05))
    (found,) = judge.settle([sound(report)]).reports
    assert (found.verdict, found.risk) == ("correct", pytest.approx((2.25 + 0.5) / 13))
    assert "more than the 10% that are allowed" in found.reasons[0]


def test_errors_of_unknown_sign_speak_for_no_verdict_but_where_they_must(
    controller: QualityController, report: QualityReport
) -> None:
    predicted = report.mean.predicted_dice
    assert predicted is not None

    def found(limit: float, error: float) -> object:
        judge = with_errors(controller, error / (1.05 - predicted), targets=Targets(dice=limit))
        mean = judge.model.structures[MEAN].model_copy(update={"signed": False})
        judge = changed(judge, structures={**judge.model.structures, MEAN: mean})
        (settled,) = judge.settle([sound(report)]).reports
        return settled.verdict, settled.risk

    assert found(predicted - 0.1, 0.05) == ("accept", pytest.approx(0.5 / 13))
    assert found(predicted - 0.1, 0.15) == ("correct", 0.5)
    assert found(predicted + 0.1, 0.15) == ("correct", 0.5)
    assert found(predicted + 0.1, 0.05) == ("refer", pytest.approx(12.5 / 13))


def test_limits_of_structures_count_together_with_that_of_the_mean(
    controller: QualityController, report: QualityReport
) -> None:
    rows = len(controller.model.domain.reference)
    structures = {
        name: item.model_copy(update={"residuals": (0.0,) * rows}) for name, item in controller.model.structures.items()
    }
    ventricle = report.scores[0].predicted_dice
    assert ventricle is not None
    policy = SitePolicy(name="strict", limits={"LV": ventricle + 0.01, MEAN: 0.01})
    (strict,) = changed(controller, policy, structures=structures).settle([sound(report)]).reports
    assert (strict.verdict, strict.risk) == ("refer", pytest.approx(12.5 / 13))
    assert f"of a mean Dice below 0.01 or a Dice of LV below {ventricle + 0.01:g} is 96%" in strict.reasons[0]
    policy = SitePolicy(name="mild", limits={"LV": ventricle - 0.01, MEAN: 0.01})
    (mild,) = changed(controller, policy, structures=structures).settle([sound(report)]).reports
    assert (mild.verdict, mild.risk) == ("accept", pytest.approx(0.5 / 13))


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
    judge = with_errors(controller, 0.0, CLINIC, targets=Targets(dice=0.05), accept_threshold=0.0)
    same = judge.settle(batch(judge, labelled, 0.0))
    assert same.shift_probability is not None
    assert {promise.status for promise in same.promises} == {"holds"}
    assert (same.guarantee, {report.guarantee for report in same.reports}) == ("proven", {"proven"})
    assert {(report.verdict, report.action) for report in same.reports} == {("accept", "use")}
    moved = judge.settle(batch(judge, labelled, 5.0))
    assert moved.shift_probability is not None
    assert moved.shift_probability < 0.05
    assert {promise.status for promise in moved.promises} == {"suspended"}
    assert "calibrate on labelled cases of this domain" in moved.promises[0].reason
    assert "9 are needed" in moved.promises[0].reason
    # The triage goes on; what it is worth has changed, and a clinic uses none of it.
    assert (moved.guarantee, {report.guarantee for report in moved.reports}) == ("suspended", {"suspended"})
    assert {(report.verdict, report.reason_code) for report in moved.reports} == {("accept", "predicted_dice")}
    assert {report.action for report in moved.reports} == {"refer"}
    assert "a guess" in moved.reports[0].evidence
    used = changed(judge, RESEARCH).settle(moved.reports)
    assert {(report.verdict, report.guarantee, report.action) for report in used.reports} == {
        ("accept", "suspended", "use")
    }


def test_what_is_accepted_by_another_rule_than_the_promised_one_is_not_proven(
    controller: QualityController, labelled: list[LabelledCase]
) -> None:
    """The share of bad masks was tested among those above the threshold, and among no others."""
    reports = batch(controller, labelled, 0.0)
    middle = float(np.median([report.mean.predicted_dice for report in reports]))
    judge = with_errors(controller, 0.0, CLINIC, targets=Targets(dice=0.05), accept_threshold=middle)
    settled = judge.settle(reports)
    assert (settled.state, settled.guarantee) == ("holds", "proven")
    for report in settled.reports:
        above = report.mean.predicted_dice >= middle
        assert report.verdict == "accept"
        assert (report.reason_code, report.guarantee, report.action) == (
            ("threshold", "proven", "use") if above else ("predicted_dice", "expected", "refer")
        )
    below = next(report for report in settled.reports if report.guarantee == "expected")
    assert "at or above the threshold" in below.evidence


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (SitePolicy(limits={"mean": 0.06}), "for a mean Dice of 0.05, and the policy asks for 0.06: .* --dice 0.06"),
        (SitePolicy(limits={"LV": 0.01}), "of the mean Dice, and the policy has limits of LV too"),
        (SitePolicy(alpha=0.05), "a share of 0.1, and the policy asks for 0.05: calibrate with --alpha 0.05"),
        (SitePolicy(confidence=0.95), "a confidence of 0.9, and the policy asks for 0.95"),
    ],
)
def test_a_promise_does_not_answer_a_policy_that_asks_for_more(
    controller: QualityController, labelled: list[LabelledCase], policy: SitePolicy, words: str
) -> None:
    judge = with_errors(controller, 0.0, policy, targets=Targets(dice=0.05), accept_threshold=0.0)
    settled = judge.settle(batch(judge, labelled, 0.0))
    assert {report.guarantee for report in settled.reports} == {settled.guarantee} == {"expected"}
    assert re.search(words, settled.evidence)
    milder = SitePolicy(limits={"mean": 0.04}, alpha=0.2, confidence=0.8)
    assert changed(judge, milder).settle(batch(judge, labelled, 0.0)).guarantee == "proven"


def test_a_calibration_on_source_cases_proves_nothing_for_the_target(
    controller: QualityController, labelled: list[LabelledCase]
) -> None:
    targets = Targets(dice=0.05)
    judge = with_errors(controller, 0.0, targets=targets, accept_threshold=0.0, target_domain=False)
    settled = judge.settle(batch(judge, labelled, 0.0))
    assert (settled.state, settled.guarantee) == ("holds", "expected")
    assert "no labelled cases of this domain" in settled.evidence


@pytest.mark.parametrize("threshold", [None, 0.0])
def test_a_batch_that_is_too_small_for_the_test_has_verdicts_that_are_not_proven(
    controller: QualityController, labelled: list[LabelledCase], threshold: float | None
) -> None:
    judge = with_errors(controller, 0.0, CLINIC, targets=Targets(dice=0.05), accept_threshold=threshold)
    reports = batch(judge, labelled, 0.0)
    of_patients = sorted({report.patient_id for report in reports})
    four, five = ([item for item in reports if item.patient_id in of_patients[:count]] for count in (4, 5))
    small = judge.settle(four)
    assert (small.state, small.patients, small.guarantee) == ("untested", 4, "expected")
    assert "the batch is of 4 patients" in small.meaning
    assert {(report.verdict, report.guarantee, report.action) for report in small.reports} == {
        ("accept", "expected", "refer")
    }
    assert small.reports[0].action_reason == "policy clinic: unproven: refer"
    assert "was not tested" in small.reports[0].evidence
    enough = judge.settle(five)
    assert (enough.state, enough.patients) == ("holds", 5)
    proven = ("expected", "refer") if threshold is None else ("proven", "use")
    assert {(report.guarantee, report.action) for report in enough.reports} == {proven}
    assert {report.action for report in changed(judge, RESEARCH).settle(four).reports} == {"use"}


def test_a_batch_that_differs_a_little_counts_those_more_that_are_like_it(
    controller: QualityController, labelled: list[LabelledCase], monkeypatch: pytest.MonkeyPatch
) -> None:
    patients = np.array(controller.model.domain.patients)
    last = patients == patients.max()
    judge = with_errors(
        controller, np.where(last, -30.0, 0.01).tolist(), targets=Targets(dice=0.05), accept_threshold=0.0
    )
    # The last patient, with errors that leave no Dice, is three times as probable in the batch.
    ratios = np.where(last, 3.0, 1.0)
    monkeypatch.setattr(DomainReference, "batch_probability", lambda *_: 0.01)
    monkeypatch.setattr(DomainReference, "likelihood_ratios", lambda _, rows, names: (ratios, np.ones(len(names))))
    settled = judge.settle(batch(judge, labelled, 0.0))
    assert [promise.status for promise in settled.promises] == ["weighted", "suspended"]
    assert "only the images differ" in settled.promises[0].reason
    assert settled.guarantee == "expected"
    for report in settled.reports:
        predicted = report.mean.predicted_dice
        assert predicted is not None
        # 0.9 of 11 + 3 + 1 is more than the 11 with small errors.
        assert (report.mean.low, report.mean.high) == interval(predicted, 30.0)
        assert report.risk == pytest.approx((3 + 0.5) / 15)
        assert (report.verdict, report.reason_code) == ("correct", "predicted_dice")
    # Reports that come out of this batch have the intervals and the probability of the next one in it.
    monkeypatch.undo()
    again = with_errors(controller, 1.0, targets=Targets(dice=0.05)).settle(settled.reports[:1]).reports[0]
    assert (again.mean.low, again.mean.high) == interval(again.mean.predicted_dice, 1.0)
    assert again.risk == pytest.approx(0.5 / 13)


def test_a_small_calibration_promises_nothing_and_leaves_a_triage(
    controller: QualityController, report: QualityReport
) -> None:
    assert {promise.status for promise in with_errors(controller, 1.0).settle([report]).promises} == {
        "untested",
        "none",
    }
    mean = controller.model.structures[MEAN].model_copy(update={"quantile": None})
    few = changed(controller, structures={**controller.model.structures, MEAN: mean}, accept_threshold=None)
    nothing = few.settle([sound(report)])
    assert {promise.status for promise in nothing.promises} == {"none"}
    assert nothing.shift_probability is None
    assert nothing.reports[0].guarantee == "expected"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"aorta": 0.9}, "policy site: limits names aorta; this run has LV, MYO, LA, mean"),
        (
            {"LV": 0.9, "MYO": 0.8, "LA": 0.85, "mean": 0.7},
            "policy site: the limits contradict each other: a mask that keeps those of LV, MYO, LA has a mean Dice of "
            "0.85 at least, so that mean: 0.7 would never decide",
        ),
    ],
)
def test_limits_that_do_not_fit_the_run_or_each_other_are_refused(
    controller: QualityController, limits: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        changed(controller, SitePolicy(limits=limits))


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
        ('{"format": 4}', "this field is needed"),
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
    numbers = np.zeros(3)
    alone = CalibrationCase("p", numbers, numbers, (), 4, lambda: pytest.fail("looked at"), np.ones(3, np.float32))
    with pytest.raises(
        DataError, match=r"has 1 patients and needs at least 8; 18 for intervals of 90%, and 76 for.*--patient-pattern"
    ):
        fit_quality([alone], controller.anatomy, Targets(), Provenance("", False, "", "", {}))


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
