from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.adapters.grid import Sample
from medfm_rl.correction.views import segmented_views
from medfm_rl.types import Case


def test_views_are_the_same_for_a_case_and_others_for_another_purpose(
    unet: TorchModuleAdapter, make_case: Callable[..., Case]
) -> None:
    sample = unet.preprocess(make_case(shape=(16, 16)))
    probabilities = unet.predict_logits(sample).softmax(dim=0)

    def look(purpose: str, named: Sample = sample) -> Tensor:
        return torch.stack(list(segmented_views(unet, named, probabilities, 3, purpose, math.inf)))

    first = look("one")
    assert first.shape == (3, 4, 16, 16)
    torch.testing.assert_close(first.sum(dim=1), torch.ones(3, 16, 16))
    assert torch.equal(first, look("one"))
    assert not torch.allclose(first, look("two"))
    assert not torch.allclose(first, look("one", replace(sample, case_id="p2_a")))


def test_after_the_deadline_there_is_one_view(unet: TorchModuleAdapter, make_case: Callable[..., Case]) -> None:
    sample = unet.preprocess(make_case(shape=(16, 16)))
    probabilities = unet.predict_logits(sample).softmax(dim=0)
    assert len(list(segmented_views(unet, sample, probabilities, 5, "late", time.monotonic() - 1))) == 1
