from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from torch import Tensor

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.anatomy.rules import Profile
from medfm_rl.correction import Verification, Verifier
from medfm_rl.correction import verifier as judge_module
from medfm_rl.quality.evidence import expected_dice, soft_dice
from medfm_rl.reward.network import RewardNet
from medfm_rl.settings import CorrectionSettings, NetworkSettings
from medfm_rl.structures import exclusive
from medfm_rl.types import Case, LabelMap


@pytest.fixture
def network() -> RewardNet:
    torch.manual_seed(1)
    return RewardNet(NetworkSettings(channels=(4, 8), residual_units=0), 4).eval()


def blocks(shift: int = 0) -> LabelMap:
    """Three structures side by side."""
    labels = np.zeros((16, 16), dtype=np.uint8)
    for index in range(3):
        labels[3 + shift : 13, 2 + 4 * index : 6 + 4 * index] = index + 1
    return labels


def certain(labels: LabelMap) -> Tensor:
    """A mask as probabilities of 0 and 1."""
    return torch.nn.functional.one_hot(torch.from_numpy(labels).long(), 4).movedim(-1, 0).float()


def compare(
    unet: TorchModuleAdapter, case: Case, network: RewardNet, before: LabelMap, after: LabelMap, **values: object
) -> Verification:
    settings = CorrectionSettings.model_validate({"views": 3, "max_change": 1.0, **values})
    verifier = Verifier(network, Anatomy("test", Profile.model_validate({"rules": []}), unet.schema), settings)
    sample = unet.preprocess(case)
    return verifier.compare(unet, case, sample, unet.predict_logits(sample), before, after)


def shown(monkeypatch: pytest.MonkeyPatch, *views: Tensor) -> list[tuple[str, float]]:
    """Lets the verifier see these views; returns how it asked for them."""
    asked: list[tuple[str, float]] = []

    def segmented(
        _adapter: object, _sample: object, _own: object, count: int, purpose: str, deadline: float
    ) -> list[Tensor]:
        asked.append((purpose, deadline))
        return list(views[:count])

    monkeypatch.setattr(judge_module, "segmented_views", segmented)
    return asked


def test_the_gain_is_the_mean_of_what_network_and_views_expect(
    unet: TorchModuleAdapter, case: Case, network: RewardNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    views = torch.randn(3, 4, 16, 16).softmax(dim=1)
    shown(monkeypatch, *views)
    before, after = blocks(), blocks(2)
    found = compare(unet, case, network, before, after)
    image = unet.preprocess(case).image[None]
    expected = []
    for labels in (before, after):
        action = torch.from_numpy(labels)
        with torch.no_grad():
            of_network = expected_dice(network.reward_map(image, action[None]), action[None], exclusive(4))[0]
        expected.append((of_network + soft_dice(views.mean(dim=0), action, exclusive(4))) / 2)
    gains = expected[1] - expected[0]
    assert list(found.gains) == ["LV", "MYO", "LA"]
    np.testing.assert_allclose(list(found.gains.values()), gains, atol=1e-6)
    assert found.gain == pytest.approx(float(gains.mean()), abs=1e-6)


def test_views_that_show_the_proposal_speak_for_it_and_others_against(
    unet: TorchModuleAdapter, case: Case, network: RewardNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network without an opinion: its log-odds are 0 everywhere, so that the views decide."""
    monkeypatch.setattr(RewardNet, "_logits", lambda _, images, __: torch.zeros(images.shape[0], *images.shape[2:]))
    before, after = blocks(), blocks(5)
    for seen, accepted in ((after, True), (before, False)):
        shown(monkeypatch, *[certain(seen)] * 3)
        found = compare(unet, case, network, before, after)
        assert found.accepted == accepted
        assert (found.gain > 0) == accepted


def test_one_structure_that_gets_worse_is_an_objection(
    unet: TorchModuleAdapter, case: Case, network: RewardNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = blocks(), blocks(5)
    # Two structures gain, the third of the proposal has lost half of its pixels.
    seen = blocks(5)
    seen[before == 3] = 3
    shown(monkeypatch, *[certain(seen)] * 3)
    found = compare(unet, case, network, before, after, margin=0.0)
    assert not found.accepted
    assert any(reason.startswith("the verifier expects the Dice of LA to fall by") for reason in found.reasons)
    assert compare(unet, case, network, before, after, margin=0.0, tolerance=0.9).accepted == (found.gain >= 0)


def test_a_judge_that_saw_fewer_views_than_it_should_accepts_nothing_and_says_so(
    unet: TorchModuleAdapter, case: Case, network: RewardNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RewardNet, "_logits", lambda _, images, __: torch.zeros(images.shape[0], *images.shape[2:]))
    shown(monkeypatch, *[certain(blocks(5))] * 3)
    whole = compare(unet, case, network, blocks(), blocks(5), views=3)
    assert (whole.accepted, whole.views) == (True, 3)
    fewer = compare(unet, case, network, blocks(), blocks(5), views=4)
    assert (fewer.accepted, fewer.views, fewer.gain) == (False, 3, whole.gain)
    assert fewer.reasons == ("time: the verifier could look at 3 of 4 views, and accepts nothing on fewer",)


def test_the_judge_asks_for_views_of_its_own_until_the_deadline(
    unet: TorchModuleAdapter, case: Case, network: RewardNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = shown(monkeypatch, torch.full((4, 16, 16), 0.25))
    compare(unet, case, network, blocks(), blocks(1))
    assert asked == [("views of the verifier", math.inf)]
    settings = CorrectionSettings(views=1)
    verifier = Verifier(network, Anatomy("test", Profile.model_validate({"rules": []}), unet.schema), settings)
    sample, deadline = unet.preprocess(case), time.monotonic() + 5
    verifier.compare(unet, case, sample, unet.predict_logits(sample), blocks(), blocks(1), deadline)
    assert asked[-1] == ("views of the verifier", deadline)
