"""Supervised fine-tuning on source images that look like the target, before there is a reward to follow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from medfm_rl.pipeline.supervised import augment_pair
from medfm_rl.reward.appearance import randomise_appearance
from medfm_rl.seeding import torch_generator
from medfm_rl.settings import WarmUpSettings


def warm_up(
    segmenter: nn.Module,
    parameters: Sequence[nn.Parameter],
    source: tuple[Tensor, Tensor],
    styles: Tensor,
    settings: WarmUpSettings,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fine-tunes a segmenter in place with Dice and cross-entropy on source images in random appearances.

    It stays in evaluation mode: a pretrained network keeps its batch statistics, and what is learnt holds for the
    network that is deployed.

    Args:
        segmenter: Images `(B, C, *S)` to logits `(B, K, *S)`; it is on `device`.
        parameters: Those that may change.
        source: Preprocessed source images `(N, C, *S)` and their ground truth `(N, *S)`.
        styles: `(M, C, *S)`, unlabelled target images whose look is borrowed.
        settings: How long and how fast.
        seed: Of order and appearance.
        device: Where the segmenter is.
        progress: Called with (steps done, steps).

    Raises:
        FloatingPointError: The loss is not finite.
    """
    from monai.losses import DiceCELoss

    images, ground_truth = source
    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    generator = torch_generator(seed, "warm up")
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(settings.steps, 1))
    segmenter.eval()
    for step in range(settings.steps):
        rows = torch.randint(len(images), (settings.batch_size,), generator=generator)
        shown = randomise_appearance(images[rows], styles, settings.appearance_strength, generator)
        shown, truth = augment_pair(shown, ground_truth[rows], generator)
        loss = criterion(segmenter(shown.to(device)), truth[:, None].to(device))
        if not torch.isfinite(loss):
            raise FloatingPointError("the warm-up loss is not finite; lower warm_up.learning_rate")
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if progress:
            progress(step + 1, settings.steps)
