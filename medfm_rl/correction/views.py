"""The segmentations of random views of a case, brought back to it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.grid import Sample
from medfm_rl.augmentation.views import draw_view
from medfm_rl.seeding import torch_generator


def segmented_views(
    adapter: SegmenterAdapter, sample: Sample, probabilities: Tensor, count: int, purpose: str, deadline: float
) -> Iterator[Tensor]:
    """Predictions of a segmenter on random views of a case, brought back; the same views each time.

    Args:
        adapter: The segmenter.
        sample: The case.
        probabilities: `(K, *S')` of the case as it is; they stand where a view did not reach.
        count: Views.
        purpose: Other purposes draw other views.
        deadline: `time.monotonic()` after which no view is begun but the first.

    Yields:
        Probabilities `(K, *S')` on the CPU.
    """
    generator = torch_generator(0, purpose, sample.case_id)
    for index in range(count):
        if index > 0 and time.monotonic() > deadline:
            return
        view = draw_view(sample.image, len(adapter.patch_size), adapter.intensity_channels, generator)
        logits = adapter.predict_logits(replace(sample, image=view.image))
        yield view.bring_back(logits.float().softmax(dim=0), probabilities)
