"""Fine-tuning on source images that look like the target and on confident target masks, before there is a reward."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfm_rl.activations import recomputed_activations
from medfm_rl.augmentation.appearance import randomise_appearance
from medfm_rl.augmentation.shape import augment_pair, mirror_at_random
from medfm_rl.data.stored_rows import MEMORY, RowsFolder
from medfm_rl.metrics.overlap import dice
from medfm_rl.networks import argmax_classes, images_at_once, mixed_precision, structures_of
from medfm_rl.processes.team import ALONE, Team
from medfm_rl.reward.collection import ReviewedImages
from medfm_rl.rows import Rows, read_ahead
from medfm_rl.seeding import torch_generator
from medfm_rl.settings import FineTuningSettings
from medfm_rl.workflows.adapt.stages.averaging import RunningAverage, average_weights
from medfm_rl.workflows.adapt.stages.telling import MeanLosses
from medfm_rl.workflows.labelled_loss import DiceAndCrossEntropy

_TOLERANCE = 0.01
_MOST_IMAGES = 200


@dataclass(frozen=True, eq=False)
class FineTuningImages:
    """What a segmenter is fine-tuned on.

    Attributes:
        source: Preprocessed source images `(N, C, *S)` and their ground truth `(N, *S)`, or None.
        target: `(M, C, *S)`, unlabelled target images.
        reviewed: Target images with the masks of reviewers, or None.
        reviewed_share: Share of the labelled examples of a step that reviewed images are, where there are source images
            too.
        intensity_channels: How many of the first channels have an appearance; all where None.
        mirror_axes: Spatial axes along which the segmenter will be used on mirrored images too: examples are mirrored
            at random, and masks of the target are means over mirrored images.
        place: Where the masks of target images are put.
    """

    source: tuple[Rows, Rows] | None
    target: Rows
    reviewed: ReviewedImages | None = None
    reviewed_share: float = 1 / 3
    intensity_channels: int | None = None
    mirror_axes: Sequence[int] = ()
    place: RowsFolder = MEMORY


def fine_tune(
    segmenter: nn.Module,
    parameters: Sequence[nn.Parameter],
    images: FineTuningImages,
    settings: FineTuningSettings,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    log: bool = True,
    recompute: bool = False,
    team: Team = ALONE,
) -> float:
    """Fine-tunes a segmenter in place, averages its last weights and blends them with what they were.

    With labels, the first part is supervised, with Dice and cross-entropy on source images and on target images that
    were reviewed, in random shapes and in appearances of which half are borrowed from target images. Then target images
    join, in random shapes and appearances, with the masks that the segmenter of the first part made of them as they
    are: by then it makes better ones than the source model, and masks that do not change cannot drift. Without labels
    there are target images alone, first with the masks of the source model and then with those of the segmenter that
    learnt from them.

    The learning rate stays high, halved from half-way on, and the weights of the last quarter of the steps are averaged
    (Izmailov et al., UAI 2018, arXiv 1803.05407).

    The segmenter stays in evaluation mode: a pretrained network keeps its batch statistics, and what is learnt holds
    for the network that is deployed.

    Args:
        segmenter: Images `(B, C, *S)` to logits `(B, K, *S)`.
        parameters: Those that may change; they are where the segmenter is.
        images: What it is fine-tuned on.
        settings: How long and how fast.
        seed: Seed of order, shapes and appearance.
        progress: Called with (steps done, steps).
        log: Whether to tell the losses.
        recompute: Whether activations are computed again for the gradient, to save memory.
        team: The processes that do it together: of each batch, every one has a part, and gradients are summed.

    Returns:
        The share of the initial weights in the result: `settings.source_share`, or less (`blend_with_initial`).

    Raises:
        FloatingPointError: The loss is not finite.
    """
    source, device = images.source, parameters[0].device
    initial = {name: value.clone() for name, value in segmenter.state_dict().items()}
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, [settings.steps // 2], gamma=0.5)
    average = RunningAverage()
    joins = round(settings.steps * settings.target_start)
    examples = _Examples(segmenter, images, settings, torch_generator(seed, "warm up"), device, recompute, team)
    masks, losses = None, MeanLosses("fine-tuning", team)
    segmenter.eval()
    for step in range(settings.steps):
        if settings.target_weight > 0 and (step == joins or (step == 0 and not examples.are_labelled)):
            teacher = copy.deepcopy(segmenter)
            blend_with_initial(teacher, initial, settings.source_share, source, device, team)
            masks = _masks(teacher, images, settings.batch_size, device, team)
        optimiser.zero_grad()
        drawn = []
        if examples.are_labelled:
            drawn.append(("labelled images", 1.0, examples.labelled()))
        if masks is not None:
            count = settings.target_batch_size if examples.are_labelled else settings.batch_size
            drawn.append(("target", settings.target_weight, examples.of_target(masks, count)))
        examples.accumulate(drawn, losses)
        team.sum_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        schedule.step()
        if step >= settings.steps - max(1, settings.steps // 4):
            average.add(segmenter.state_dict())
        if log:
            losses.tell(step + 1, settings.steps)
        if progress:
            progress(step + 1, settings.steps)
    if settings.steps > 0:
        segmenter.load_state_dict(average.state)
    return blend_with_initial(segmenter, initial, settings.source_share, source, device, team)


class _Examples:
    """Losses on images drawn at random, in random shapes and appearances."""

    def __init__(
        self,
        segmenter: nn.Module,
        images: FineTuningImages,
        settings: FineTuningSettings,
        generator: torch.Generator,
        device: torch.device,
        recompute: bool,
        team: Team,
    ) -> None:
        self.segmenter = segmenter
        self.images = images
        self.settings = settings
        self.generator = generator
        self.device = device
        self.recompute = recompute
        self.team = team
        self.criterion = DiceAndCrossEntropy()

    @property
    def are_labelled(self) -> bool:
        """Whether there are images with expert masks."""
        return self.images.source is not None or self.images.reviewed is not None

    def labelled(self) -> _Drawn:
        """Source images and reviewed target images: Dice and cross-entropy against expert masks."""
        return _Drawn(*self._shown(*self._labelled(), self.images.target), self.criterion)

    def of_target(self, masks: Rows, count: int) -> _Drawn:
        """Target images: cross-entropy against masks that are not always right.

        Dice would weigh their errors by structure.
        """
        rows = torch.randint(len(self.images.target), (count,), generator=self.generator)
        shown = self._shown(self.images.target[rows], masks[rows], None)
        return _Drawn(*shown, lambda logits, wanted, _: F.cross_entropy(logits, wanted.long()))

    def accumulate(self, drawn: Sequence[tuple[str, float, _Drawn]], losses: MeanLosses) -> None:
        """Adds the gradients of the weighted sum of the losses.

        Where all images are few enough, they have one graph, and elsewhere each few of them have their own: the mean
        over images is the mean of the parts. Of a team, every process adds those of its rows.

        Raises:
            FloatingPointError: A loss is not finite.
        """
        whole = all(each.is_one_graph(self.team) for _, _, each in drawn)
        total = torch.zeros((), device=self.device)
        for name, weight, each in drawn:
            loss = torch.zeros((), device=self.device)
            for share, part in each.parts(self.segmenter, self.device, self.recompute, self.team):
                own = part if share == 1 else share * part
                if not torch.isfinite(own):
                    raise FloatingPointError("the fine-tuning loss is not finite; lower fine_tuning.learning_rate")
                if whole:
                    total = total + (own if weight == 1 else weight * own)
                else:
                    (weight * own).backward()
                loss = loss + own.detach()
            losses.add(name, loss)
        if whole and total.requires_grad:
            total.backward()

    def _labelled(self) -> tuple[Tensor, Tensor]:
        """A batch of images with their expert masks; reviewed ones come as often however few they are."""
        source, reviewed, count = self.images.source, self.images.reviewed, self.settings.batch_size
        drawn = []
        of_reviewed = 0 if reviewed is None else count if source is None else round(self.images.reviewed_share * count)
        if source is not None and of_reviewed < count:
            rows = torch.randint(len(source[0]), (count - of_reviewed,), generator=self.generator)
            drawn.append((source[0][rows], source[1][rows]))
        if reviewed is not None and of_reviewed > 0:
            chosen = reviewed.draw(of_reviewed, self.generator)
            drawn.append((reviewed.images.images[chosen], reviewed.masks[chosen]))
        images, masks = zip(*drawn, strict=True)
        return torch.cat(images), torch.cat(masks)

    def _shown(self, images: Tensor, labels: Tensor, styles: Rows | None) -> tuple[Tensor, Tensor]:
        """Images in a random look and shape, and their labels in that shape."""
        settings, channels = self.settings, self.images.intensity_channels
        images, labels = images.to(self.device), labels.to(self.device)
        shown = randomise_appearance(images, styles, settings.appearance_strength, self.generator, channels)
        shown, moved = augment_pair(shown, labels, self.generator, settings.shape_strength, settings.elastic, channels)
        return mirror_at_random(shown, moved, self.images.mirror_axes, self.generator)


@dataclass(frozen=True, eq=False)
class _Drawn:
    """Images `(B, C, *S)` of a step, the labels `(B, *S)` wanted for them, and the mean loss against those."""

    images: Tensor
    labels: Tensor
    criterion: Callable[[Tensor, Tensor, Tensor], Tensor]

    def is_one_graph(self, team: Team) -> bool:
        """Whether the rows of this process pass the network together."""
        own = len(self.images[team.rows(len(self.images))])
        return own <= images_at_once(self.images.shape[2:], own)

    def parts(
        self, segmenter: nn.Module, device: torch.device, recompute: bool, team: Team
    ) -> Iterator[tuple[float, Tensor]]:
        """The loss of a few images of this process after the other, and their share of those of all processes."""
        count = len(self.images)
        own = team.rows(count)
        at_once = images_at_once(self.images.shape[2:], count)
        for images, labels in zip(self.images[own].split(at_once), self.labels[own].split(at_once), strict=True):
            if len(images) == 0:
                continue
            with mixed_precision(device, images.ndim - 2), recomputed_activations(segmenter, recompute):
                logits: Tensor = segmenter(images)
            yield len(images) / count, self.criterion(logits.float(), labels, self.labels)


def blend_with_initial(
    segmenter: nn.Module,
    initial: Mapping[str, Tensor],
    share: float,
    source: tuple[Rows, Rows] | None,
    device: torch.device,
    team: Team = ALONE,
) -> float:
    """Blends the weights of a segmenter with what they were, as far as that costs nothing on the source.

    Between weights from before and after a fine-tuning a network mostly does as well as at its better end (Wortsman et
    al., arXiv 2109.01903). One that had not been trained to the end does worse in between, and source images show it.

    Args:
        segmenter: Changed in place.
        initial: Its weights before.
        share: Their share in the result, at most.
        source: Images `(N, C, *S)` and ground truth `(N, *S)`; None: the share is taken as it is.
        device: Where the segmenter is.
        team: The processes that have the same segmenter, and look at some of the images each.

    Returns:
        The largest of the share, three, two and a quarter of it and 0 with which the mean Dice on source images is at
        most .01 below that without.
    """
    final = {name: value.clone() for name, value in segmenter.state_dict().items()}
    needed = None if source is None else _mean_dice(segmenter, *source, device, team) - _TOLERANCE
    for quarters in (4, 3, 2, 1):
        tried = share * quarters / 4
        segmenter.load_state_dict(average_weights([initial, final], [tried, 1 - tried]))
        if needed is None or source is None or _mean_dice(segmenter, *source, device, team) >= needed:
            return tried
    segmenter.load_state_dict(final)
    return 0.0


@torch.no_grad()
def _mean_dice(segmenter: nn.Module, images: Rows, truths: Rows, device: torch.device, team: Team) -> float:
    """Mean Dice over structures and some of the images, evenly spaced."""

    def rated(chosen: Tensor) -> list[Any]:
        logits = segmenter(images[chosen].to(device))
        masks = argmax_classes(logits, dim=1).cpu().numpy()
        structures = structures_of(segmenter, logits.shape[1])
        return [dice(mask, truths[row].numpy(), structures) for mask, row in zip(masks, chosen, strict=True)]

    rows = torch.linspace(0, len(images) - 1, min(len(images), _MOST_IMAGES)).round().long()
    parts = rows.split(images_at_once(images.shape[2:]))
    every = team.interleave(map(rated, team.deal(parts)), len(parts))
    return float(np.mean([each for found in every for each in found]))


@torch.no_grad()
def _masks(segmenter: nn.Module, images: FineTuningImages, batch_size: int, device: torch.device, team: Team) -> Rows:
    """Argmax masks `(N, *S)` uint8 of the target images, of the mean logits over mirrored images."""
    mirror_axes = images.mirror_axes
    every = range(len(mirror_axes) + 1)
    flips = [[axis + 2 for axis in axes] for count in every for axes in combinations(mirror_axes, count)]

    def segmented(batch: Tensor) -> Tensor:
        shown = batch.to(device)
        logits = sum(segmenter(shown.flip(axes)).flip(axes) for axes in flips)
        return argmax_classes(logits, dim=1).to("cpu", torch.uint8)

    masks = images.place.new("masks")
    parts = torch.arange(len(images.target)).split(images_at_once(images.target.shape[2:], batch_size))
    made = map(segmented, read_ahead(team.deal(parts), lambda rows: images.target[rows]))
    for found in team.interleave(made, len(parts)):
        masks.add(found)
    return masks.rows()
