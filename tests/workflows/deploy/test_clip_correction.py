from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.clip_files import COUNT, greys, ventricles
from torch import Tensor

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.adapters.grid import Sample
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.correction import CaseCorrector, CorrectionResult, Original, Proposal, Verifier
from medfm_rl.correction.corrector import Neighbour
from medfm_rl.correction.published import NoCorrection
from medfm_rl.correction.verifier import Verification
from medfm_rl.reward.network import RewardNet
from medfm_rl.settings import CorrectionSettings, NetworkSettings, PreprocessingSettings
from medfm_rl.types import Case, Clip, Geometry, LabelMap, LabelSchema, frame_id
from medfm_rl.workflows.deploy.clip_correction import CorrectedClip, correct_clip

LV = LabelSchema(("background", "LV"), (0, 1))
TINY = NetworkSettings(channels=(4, 8), residual_units=0)
NAMES = {index: frame_id("c", index) for index in range(COUNT)}


class Told(CaseCorrector):
    """Proposes masks that it was told, and the verifier agrees, unless it is told what that finds."""

    told: dict[str, LabelMap]
    asked: list[str]
    found: dict[str, Verification]

    def propose(self, sample: Sample, logits: Tensor, original: Original, deadline: float) -> Proposal:
        raise NotImplementedError

    def correct(
        self,
        case: Case,
        sample: Sample | None = None,
        original: LabelMap | None = None,
        neighbours: Sequence[Neighbour] = (),
    ) -> CorrectionResult:
        assert original is not None
        self.asked.append(case.case_id)
        verification = self.found.get(case.case_id)
        accepted = verification is None or verification.accepted
        proposed = self.told[case.case_id]
        return CorrectionResult(
            case.case_id, original, proposed, accepted, ("told",), (), 0, "done", 0, verification, 0.0
        )


def told(masks: dict[int, LabelMap]) -> Told:
    adapter = TorchModuleAdapter.build_unet(TINY, LV, PreprocessingSettings(size=(32, 32))).eval()
    verifier = Verifier(RewardNet(TINY, 2), load_anatomy("generic", LV), CorrectionSettings())
    made = Told(adapter, verifier)
    made.told, made.asked = {NAMES[place]: mask for place, mask in masks.items()}, []
    made.found = {}
    return made


def verified(gain: float, accepted: bool = False, **changes: Any) -> Verification:
    """What the verifier found of a proposal that breaks no rule and is not far from the original."""
    known = {
        "gains": {"LV": gain},
        "change": 0.1,
        "broken_before": (),
        "broken_after": (),
        "views": CorrectionSettings().views,
    }
    return Verification(accepted, (), gain, **{**known, **changes})


def beating() -> tuple[Clip, np.ndarray, np.ndarray]:
    """A clip, its masks with a frame that is far too small and one that is a little too small, and the right ones."""
    right = ventricles().astype(np.uint8)
    clip = Clip("c", "p", greys().astype(np.float32)[:, None], None, Geometry.unknown(2))
    masks = right.copy()
    masks[4] = right[4] * (np.abs(np.arange(64) - 32) < 3)
    masks[8] = right[8] * (np.abs(np.arange(64) - 32) < 7)
    return clip, masks, right


def test_the_worst_frame_comes_first_and_all_corrections_of_a_better_clip_are_used() -> None:
    clip, masks, right = beating()
    corrector = told({4: right[4], 8: right[8]})
    found = correct_clip(corrector, clip, masks, [8, 4], False, NAMES)
    assert corrector.asked == [NAMES[4], NAMES[8]]
    assert found.objection is None
    assert [found.results[place].accepted for place in (4, 8)] == [True, True]


def test_a_clip_that_would_break_a_rule_over_time_comes_back_as_it_was_whole() -> None:
    clip, _, right = beating()
    worse = np.zeros_like(right[0])
    worse[20:23, 20:60] = 1
    found = correct_clip(told({4: right[4], 10: worse}), clip, right.copy(), [4, 10], False, NAMES)
    assert found.objection is not None
    assert "the clip as a whole would break a rule over time" in found.objection
    assert not any(result.accepted for result in found.results.values())
    assert all(found.objection in result.reasons for result in found.results.values())


def of_two(first: Verification, second: Verification) -> CorrectedClip:
    """A clip of which frame 4 and frame 8 were to be corrected, when the verifier has found that of them."""
    clip, masks, right = beating()
    corrector = told({4: right[4], 8: right[8]})
    corrector.found = {NAMES[4]: first, NAMES[8]: second}
    return correct_clip(corrector, clip, masks, [4, 8], False, NAMES)


def test_a_frame_of_little_gain_goes_along_with_a_clip_that_gains_enough() -> None:
    found = of_two(verified(0.3, accepted=True), verified(0.001))
    assert [found.results[place].accepted for place in (4, 8)] == [True, True]
    assert found.results[4].reasons == ("told",)
    _, why = found.results[8].reasons
    # (.3 + .001) / 2
    assert "of which the verifier expects a Dice that is 0.150 higher on average" in why


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(verified(-0.001), id="a loss"),
        pytest.param(verified(0.001, gains={"LV": -0.06}), id="a loss of a structure"),
        pytest.param(verified(0.001, views=1), id="not looked at in every view"),
        pytest.param(verified(0.001, broken_after=("holes of LV: 3, limit 0",)), id="a rule broken that was met"),
        pytest.param(verified(0.001, change=0.7), id="a mask too far from the original"),
    ],
)
def test_a_frame_stays_behind_for(second: Verification) -> None:
    found = of_two(verified(0.3, accepted=True), second)
    assert [found.results[place].accepted for place in (4, 8)] == [True, False]


def test_a_rule_that_was_broken_before_keeps_no_frame_behind() -> None:
    broken = {"broken_before": ("holes of LV: 5, limit 0",), "broken_after": ("holes of LV: 3, limit 0",)}
    found = of_two(verified(0.3, accepted=True), verified(0.001, **broken))
    assert found.results[8].accepted


def test_no_frame_goes_along_with_a_clip_that_gains_less_than_the_margin() -> None:
    found = of_two(verified(0.006, accepted=True), verified(0.003))
    assert [found.results[place].accepted for place in (4, 8)] == [True, False]


def test_frames_that_spoil_the_clip_do_not_go_along() -> None:
    clip, _, right = beating()
    worse = np.zeros_like(right[0])
    worse[20:23, 20:60] = 1
    corrector = told({4: right[4], 10: worse})
    corrector.found = {NAMES[4]: verified(0.3, accepted=True), NAMES[10]: verified(0.001)}
    found = correct_clip(corrector, clip, right.copy(), [4, 10], False, NAMES)
    assert found.objection is None
    assert [found.results[place].accepted for place in (4, 10)] == [True, False]


def test_without_a_ventricle_frames_that_agree_less_are_the_objection(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, _, right = beating()
    two = LabelSchema(("background", "A", "B"), (0, 1, 2))
    worse = np.zeros_like(right[0])
    worse[20:23, 20:60] = 1
    corrector = told({10: worse})
    monkeypatch.setattr(corrector.adapter, "schema", two)
    found = correct_clip(corrector, replace(clip, clip_id="c"), right.copy(), [10], False, NAMES)
    assert found.objection is not None
    assert "agree less with each other" in found.objection


def test_neighbours_speak_by_their_masks_unless_these_are_to_be_corrected_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clip, masks, _ = beating()
    adapter = told({}).adapter
    made = NoCorrection(adapter, Verifier(RewardNet(TINY, 2), load_anatomy("generic", LV), CorrectionSettings()))
    asked: dict[str, list[Neighbour]] = {}

    def propose(sample: Sample, logits: Tensor, original: Original, deadline: float) -> Proposal:
        asked[sample.case_id] = list(original.neighbours)
        return Proposal(original.labels)

    monkeypatch.setattr(made, "propose", propose)
    correct_clip(made, clip, masks, [4, 5], False, NAMES)
    near = {neighbour.case.case_id: neighbour.labels for neighbour in asked[NAMES[4]]}
    assert sorted(near) == [NAMES[place] for place in (2, 3, 5, 6)]
    assert near[NAMES[5]] is None
    assert np.array_equal(near[NAMES[3]], masks[3])
