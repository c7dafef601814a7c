"""Fine-tuning on source images that look like the target and on confident target masks, before there is a reward."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfm_rl.pipeline.averaging import average_weights
from medfm_rl.pipeline.supervised import augment_pair
from medfm_rl.reward.appearance import randomise_appearance
from medfm_rl.seeding import torch_generator
from medfm_rl.settings import WarmUpSettings


def warm_up(
    segmenter: nn.Module,
    parameters: Sequence[nn.Parameter],
    source: tuple[Tensor, Tensor],
    target: Tensor,
    settings: WarmUpSettings,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fine-tunes a segmenter in place and draws its weights back towards what they were.

    The first part is supervised, with Dice and cross-entropy on source images in random shapes and in appearances of
    which half are borrowed from target images. Then target images join, in random shapes and appearances, with the
    masks that the segmenter of the first part made of them as they are: by then it makes better ones than the source
    model, and masks that never change cannot drift.

    The segmenter stays in evaluation mode: a pretrained network keeps its batch statistics, and what is learnt holds
    for the network that is deployed.

    Args:
        segmenter: Images `(B, C, *S)` to logits `(B, K, *S)`; it is on `device`.
        parameters: Those that may change.
        source: Preprocessed source images `(N, C, *S)` and their ground truth `(N, *S)`.
        target: `(M, C, *S)`, unlabelled target images.
        settings: How long and how fast.
        seed: Of order, shapes and appearance.
        device: Where the segmenter is.
        progress: Called with (steps done, steps).

    Raises:
        FloatingPointError: The loss is not finite.
    """
    from monai.losses import DiceCELoss

    images, ground_truth = source
    initial = {name: value.clone() for name, value in segmenter.state_dict().items()}
    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    generator = torch_generator(seed, "warm up")
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(settings.steps, 1))
    joins = round(settings.steps * settings.target_start)
    masks = None
    segmenter.eval()
    for step in range(settings.steps):
        if step == joins and settings.target_weight > 0:
            teacher = copy.deepcopy(segmenter)
            _draw_back(teacher, initial, settings.source_share)
            masks = _masks(teacher, target, settings.batch_size, device)
        rows = torch.randint(len(images), (settings.batch_size,), generator=generator)
        shown = randomise_appearance(images[rows], target, settings.appearance_strength, generator)
        shown, truth = _augment(shown, ground_truth[rows], settings, generator)
        loss = criterion(segmenter(shown.to(device)), truth[:, None].to(device))
        if masks is not None:
            rows = torch.randint(len(target), (settings.target_batch_size,), generator=generator)
            shown = randomise_appearance(target[rows], None, settings.appearance_strength, generator)
            shown, wanted = _augment(shown, masks[rows], settings, generator)
            loss = loss + settings.target_weight * F.cross_entropy(
                segmenter(shown.to(device)), wanted.long().to(device)
            )
        if not torch.isfinite(loss):
            raise FloatingPointError("the warm-up loss is not finite; lower warm_up.learning_rate")
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if progress:
            progress(step + 1, settings.steps)
    _draw_back(segmenter, initial, settings.source_share)


def _augment(
    images: Tensor, labels: Tensor, settings: WarmUpSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    return augment_pair(images, labels, generator, settings.shape_strength, settings.elastic)


def _draw_back(segmenter: nn.Module, initial: dict[str, Tensor], share: float) -> None:
    segmenter.load_state_dict(average_weights([initial, segmenter.state_dict()], [share, 1 - share]))


@torch.no_grad()
def _masks(segmenter: nn.Module, images: Tensor, batch_size: int, device: torch.device) -> Tensor:
    """Argmax masks `(N, *S)` of images `(N, C, *S)`."""
    batches = images.split(batch_size)
    return torch.cat([segmenter(batch.to(device)).argmax(dim=1).to("cpu", torch.uint8) for batch in batches])
