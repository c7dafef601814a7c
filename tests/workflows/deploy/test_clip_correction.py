from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.clip_files import COUNT, greys, ventricles
from torch import Tensor

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.adapters.grid import Sample
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.correction import CaseCorrector, CorrectionResult, Original, Proposal, Verifier
from medfm_rl.correction.neighbours import Neighbour, NeighbourVote
from medfm_rl.reward.network import RewardNet
from medfm_rl.settings import CorrectionSettings, NetworkSettings, PreprocessingSettings
from medfm_rl.types import Case, Clip, Geometry, LabelMap, LabelSchema, frame_id
from medfm_rl.workflows.deploy.clip_correction import correct_clip

LV = LabelSchema(("background", "LV"), (0, 1))
TINY = NetworkSettings(channels=(4, 8), residual_units=0)
NAMES = {index: frame_id("c", index) for index in range(COUNT)}


class Told(CaseCorrector):
    """Proposes masks that it was told, and the verifier agrees."""

    told: dict[str, LabelMap]
    asked: list[str]

    def propose(self, sample: Sample, logits: Tensor, original: Original, deadline: float) -> Proposal:
        raise NotImplementedError

    def correct(self, case: Case, sample: Sample | None = None, original: LabelMap | None = None) -> CorrectionResult:
        assert original is not None
        self.asked.append(case.case_id)
        return CorrectionResult(
            case.case_id, original, self.told[case.case_id], True, ("agreed",), (), 0, "done", 0, None, 0.0
        )


def told(masks: dict[int, LabelMap]) -> Told:
    adapter = TorchModuleAdapter.build_unet(TINY, LV, PreprocessingSettings(size=(32, 32))).eval()
    verifier = Verifier(RewardNet(TINY, 2), load_anatomy("generic", LV), CorrectionSettings())
    made = Told(adapter, verifier)
    made.told, made.asked = {NAMES[place]: mask for place, mask in masks.items()}, []
    return made


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
    made = NeighbourVote(adapter, Verifier(RewardNet(TINY, 2), load_anatomy("generic", LV), CorrectionSettings()))
    asked: dict[str, list[Neighbour]] = {}

    def propose(sample: Sample, logits: Tensor, original: Original, deadline: float) -> Proposal:
        asked[sample.case_id] = list(made.neighbours[sample.case_id])
        return Proposal(original.labels)

    monkeypatch.setattr(made, "propose", propose)
    correct_clip(made, clip, masks, [4, 5], False, NAMES)
    near = {neighbour.case.case_id: neighbour.labels for neighbour in asked[NAMES[4]]}
    assert sorted(near) == [NAMES[place] for place in (2, 3, 5, 6)]
    assert near[NAMES[5]] is None
    assert np.array_equal(near[NAMES[3]], masks[3])
