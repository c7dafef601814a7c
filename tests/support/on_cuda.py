"""What every adapter promises on a GPU."""

from __future__ import annotations

import torch

from medfm_rl.adapters import SegmenterAdapter, check_adapter
from medfm_rl.types import Case


def assert_the_gpu_gives_the_masks_of_the_cpu(adapter: SegmenterAdapter, case: Case) -> None:
    """Through the tool's own inference and the pass with gradients; every promise is kept, and the adapter stays."""
    adapter.cpu().eval()
    sample, settings = adapter.preprocess(case), adapter.inference_settings()
    inferred, restored = adapter.predict_logits(sample), adapter.segment(case)
    with torch.no_grad():
        passed = adapter(sample.image[None])[0]
    adapter.to("cuda")
    assert adapter.inference_settings() == settings
    with torch.no_grad():
        on_gpu = adapter(sample.image[None].cuda())[0]
    assert on_gpu.device.type == "cuda"
    for mine, theirs in ((inferred, adapter.predict_logits(sample)), (passed, on_gpu.cpu())):
        assert (mine.argmax(dim=0) == theirs.argmax(dim=0)).float().mean() > 0.995
    assert (adapter.segment(case) == restored).mean() > 0.995
    check_adapter(adapter, case)
    assert adapter.device.type == "cuda"
    adapter.cpu()
