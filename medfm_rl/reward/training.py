"""Training and calibration of one reward network on D_R."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from medfm_rl.errors import DataError
from medfm_rl.metrics.calibration import expected_calibration_error, reliability_curve
from medfm_rl.networks import images_at_once, mixed_precision
from medfm_rl.reward.actions import ActionBatch, Records
from medfm_rl.reward.judgement_term import LINK_RATE, JudgementTerm
from medfm_rl.reward.judgements import SplitJudgements
from medfm_rl.reward.network import RewardNet
from medfm_rl.reward.origins import patients_of
from medfm_rl.reward.patient_split import SplitRecords
from medfm_rl.reward.score import class_masks, dilate
from medfm_rl.reward.training_report import RewardTrainingReport
from medfm_rl.rows import read_ahead
from medfm_rl.seeding import derive_seed, torch_generator
from medfm_rl.settings import RewardSettings

_LOG = logging.getLogger(__name__)
_MOST_CALIBRATION_PIXELS = 2_000_000
_CONTOUR = 2
"""Pixels from a contour within which a pixel weighs more."""


def reward_loss(logits: Tensor, right: Tensor, weights: Tensor, error_weight: float) -> Tensor:
    """Weighted binary cross-entropy whose optimum is still the true log-odds.

    Wrong pixels count `error_weight` times. That alone would shift the optimum to the odds of the reweighted data, so
    the shift is taken out of the logit before the loss (logit adjustment, Menon et al., ICLR 2021): z keeps the
    absolute scale of a probability. Nothing else may depend on the outcome, the normaliser included.

    Args:
        logits: `(B, *S)`, z.
        right: `(B, *S)`, 1 where the action equals its reference, 0 elsewhere.
        weights: `(B, *S)`, weight of each pixel, whether it is right or wrong.
        error_weight: At least 1.
    """
    importance = weights * torch.where(right > 0.5, 1.0, error_weight)
    shifted = logits - float(np.log(error_weight))
    loss = F.binary_cross_entropy_with_logits(shifted, right, reduction="none")
    return (loss * importance).sum() / weights.sum().clamp_min(1e-8)


def contour_weights(actions: Tensor, num_classes: int, weight: float) -> Tensor:
    """`weight` within two pixels of a contour of the action, 1 elsewhere, `(B, *S)`.

    The contour of the reference would give away the outcome: a pixel would weigh more when it is wrong than when it is
    right, and the probability that is learnt would be too low.
    """
    return torch.where(_near_contour(actions, num_classes), weight, 1.0)


def train_reward(
    net: RewardNet,
    records: SplitRecords,
    settings: RewardSettings,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
    name: str = "reward network",
    judgements: SplitJudgements | None = None,
) -> RewardTrainingReport:
    """Trains a reward network with early stopping by patient, then calibrates its temperature.

    An image is seen with one of its actions, drawn at random.

    Args:
        net: Changed in place; returned on the CPU, frozen in evaluation mode.
        records: D_R, or a part of it.
        settings: Optimisation.
        seed: Seed of the order and the draws.
        device: Where to train.
        progress: Called with (steps done, steps at most).
        name: What the log calls it.
        judgements: What reviewers said of whole masks, beside D_R, of patients that this network may learn from. The
            temperature is fitted on pixels all the same.

    Raises:
        DataError: There is a label that the network does not know, or nothing certain to calibrate on.
        FloatingPointError: The loss is not finite.
    """
    for part in (records.training, records.validation):
        _check_labels(part, net.num_classes)
    net.to(device)
    term = None
    if judgements is not None and len(judgements.training):
        draws = torch_generator(seed, "judgements")
        term = JudgementTerm(judgements, net, device, settings.batch_size, draws)
        _LOG.info(
            "%s: %d judgements of whole masks of %d patients teach it too",
            name,
            len(judgements.training),
            len(judgements.training.patients),
        )
    trained = _Training(net, settings, device, name, term)
    # Dropout draws from the global generator.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "dropout"))
        losses, best_step = trained.fit(records, torch_generator(seed, "train"), progress)
    net.eval().requires_grad_(False)
    logits, right = trained.pixels_to_calibrate_on(records.validation, torch_generator(seed, "calibrate"))
    temperature = fit_temperature(logits, right)
    net.temperature.fill_(temperature)
    net.cpu()
    raw, calibrated = (torch.sigmoid(logits / value).numpy() for value in (1.0, temperature))
    outcomes = right.numpy()
    ece_before, ece_after = (expected_calibration_error(values, outcomes) for values in (raw, calibrated))
    _LOG.info(
        "%s: temperature %.2f; on held-out patients its probabilities are off by %.3f on average, %.3f before",
        name,
        temperature,
        ece_after,
        ece_before,
    )
    return RewardTrainingReport(
        losses=losses,
        best_step=best_step,
        temperature=temperature,
        ece_before=ece_before,
        ece_after=ece_after,
        reliability_before=reliability_curve(raw, outcomes),
        reliability_after=reliability_curve(calibrated, outcomes),
        training_patients=tuple(sorted(patients_of(records.training.origins))),
        validation_patients=tuple(sorted(patients_of(records.validation.origins))),
    )


def fit_temperature(logits: Tensor, right: Tensor) -> float:
    """The T in [0.05, 20] that minimises the negative log-likelihood of `sigmoid(z / T)` (Guo et al., ICML 2017).

    Args:
        logits: z of held-out pixels, 1-D.
        right: 1 where the pixel was right, 0 elsewhere, 1-D.
    """
    z, outcome = logits.double(), right.double()

    def negative_log_likelihood(log_temperature: float) -> float:
        return float(F.binary_cross_entropy_with_logits(z / float(np.exp(log_temperature)), outcome))

    found = minimize_scalar(negative_log_likelihood, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))


def _check_labels(records: Records, num_classes: int) -> None:
    highest = max(records.highest_labels(), default=0)
    if highest >= num_classes:
        raise DataError(
            f"the action data set holds label {highest}, the reward network knows the classes 0 to {num_classes - 1}; "
            "collect it with the segmenter that the network is for"
        )


@dataclass(frozen=True, eq=False)
class _Training:
    """One network in training, where it is trained and how, and the loss of judged masks where there are any."""

    net: RewardNet
    settings: RewardSettings
    device: torch.device
    name: str
    judged: JudgementTerm | None = None

    def fit(
        self, records: SplitRecords, generator: torch.Generator, progress: Callable[[int, int], None] | None
    ) -> tuple[tuple[tuple[float, float], ...], int]:
        """Leaves the weights with the lowest validation loss in the network; returns all losses and their step."""
        settings, net = self.settings, self.net
        batches = _batches(records.training, settings.batch_size, generator)
        optimiser = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
        if self.judged is not None:
            optimiser.add_param_group({"params": self.judged.parameters(), "lr": LINK_RATE, "weight_decay": 0.0})
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
        best_loss, best_step, best_state = float("inf"), 0, _copy_state(net)
        losses: list[tuple[float, float]] = []
        step = 0
        while step < settings.steps and step - best_step < settings.patience * settings.validate_every:
            count = min(settings.validate_every, settings.steps - step)
            drawn = _read(records.training, islice(batches, count))
            training_loss = self._train_steps(drawn, optimiser, schedule)
            validation_loss = self._validate(records.validation)
            step += count
            losses.append((training_loss, validation_loss))
            if validation_loss < best_loss:
                best_loss, best_step, best_state = validation_loss, step, _copy_state(net)
            self._tell(step, training_loss, validation_loss, best_step)
            if progress:
                progress(step, settings.steps)
        if step < settings.steps:
            _LOG.info(
                "%s: stopped at step %d of %d, for %d validations in a row were no better; the weights of step %d stay",
                self.name,
                step,
                settings.steps,
                settings.patience,
                best_step,
            )
        net.load_state_dict(best_state)
        return tuple(losses), best_step

    def _tell(self, step: int, training_loss: float, validation_loss: float, best_step: int) -> None:
        _LOG.info(
            "%s: step %d of %d: loss %.4f, on held-out patients %.4f%s",
            self.name,
            step,
            self.settings.steps,
            training_loss,
            validation_loss,
            " (best so far)" if step == best_step else "",
        )

    def _train_steps(
        self,
        batches: Iterator[ActionBatch],
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> float:
        """One step for each batch; returns the mean loss."""
        self.net.train()
        losses = []
        for batch in batches:
            optimiser.zero_grad()
            loss = self._accumulate(batch)
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            losses.append(loss)
        return float(np.mean(losses))

    def _accumulate(self, batch: ActionBatch) -> float:
        """Adds the gradients of the mean loss of a batch, and of judged masks; returns the loss.

        Where the images are large, they pass the network a few at a time, and their gradients are summed.
        """
        dims = batch.images.ndim - 2
        # A batch normalisation needs all images of a step together.
        by_batch = self.settings.network.norm == "batch"
        parts = [batch] if by_batch else batch.split(_at_once(batch))
        weights = [self._weights(part) for part in parts]
        total = torch.stack([weight.sum() for weight in weights]).sum()
        told = 0.0
        for index, (part, weight) in enumerate(zip(parts, weights, strict=True)):
            with mixed_precision(self.device, dims):
                loss, own = self._loss(part, weight)
                if len(parts) > 1:
                    loss = loss * (own / total.clamp_min(1e-8))
                if self.judged is not None and index == 0:
                    loss = loss + self.judged.step_loss()
            loss.backward()
            told += loss.item()
        return told

    @torch.no_grad()
    def _validate(self, records: Records) -> float:
        """Mean loss over all pixels by their weight, however they are dealt into batches, and that of judged masks."""
        self.net.eval()
        total, weight = 0.0, 0.0
        for batch in _read(records, _every_action(records, self.settings.batch_size)):
            for part in batch.split(_at_once(batch)):
                with mixed_precision(self.device, part.images.ndim - 2):
                    loss, own = self._loss(part, self._weights(part))
                total += loss.item() * float(own)
                weight += float(own)
        judged = 0.0 if self.judged is None else self.judged.held_out_loss()
        return total / max(weight, 1e-8) + judged

    def _weights(self, batch: ActionBatch) -> Tensor:
        """The weight of each pixel, whether it is right or wrong, `(B, *S)`."""
        actions = batch.actions.to(self.device).long()
        certainty = batch.certainty.to(self.device)
        return certainty * contour_weights(actions, self.net.num_classes, self.settings.contour_weight)

    def _loss(self, batch: ActionBatch, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss of a batch, and the total weight of its pixels."""
        images = batch.images.to(self.device)
        actions = batch.actions.to(self.device).long()
        right = (actions == batch.references.to(self.device).long()).float()
        loss = reward_loss(self.net(images, actions).float(), right, weights, self.settings.error_weight)
        if not torch.isfinite(loss):
            raise FloatingPointError("the reward loss is not finite; lower reward.learning_rate or look at the images")
        return loss, weights.sum()

    @torch.no_grad()
    def pixels_to_calibrate_on(self, records: Records, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Logits and outcomes of the pixels with the most trusted references, thinned to what a fit needs.

        Where there is ground truth, references of other origin do not take part.

        Raises:
            DataError: No reference is certain of any pixel.
        """
        with_ground_truth = records.with_ground_truth()
        records = with_ground_truth if len(with_ground_truth) else records
        highest = max(records.highest_certainties(), default=0.0)
        if highest <= 0:
            raise DataError(
                "no reference of the held-out patients is certain of any pixel, so the reward cannot be calibrated; "
                "lower collect.reference_agreement or give more patients"
            )
        trusted, size = 0.5 * highest, self.settings.batch_size
        kept = _Kept(_certain_pixels(records, trusted, size), generator)
        for batch in _read(records, _every_action(records, size)):
            for part in batch.split(_at_once(batch)):
                certain = part.certainty >= trusted
                rated = self.net(part.images.to(self.device), part.actions.to(self.device)).cpu()
                kept.add(rated[certain], (part.actions == part.references)[certain].float())
        return kept.logits, kept.right


class _Kept:
    """Of so many pixels that come one after the other, all, or as many as a fit needs, drawn with replacement.

    Args:
        count: How many come.
        generator: A CPU generator; it moves only where pixels are drawn.
    """

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self._drawn = None
        if count > _MOST_CALIBRATION_PIXELS:
            drawn = torch.randint(count, (_MOST_CALIBRATION_PIXELS,), generator=generator)
            self._drawn = drawn.sort()
        size = min(count, _MOST_CALIBRATION_PIXELS)
        self.logits, self.right = torch.empty(size), torch.empty(size)
        self._seen = 0

    def add(self, logits: Tensor, right: Tensor) -> None:
        """The next pixels, `(P,)`."""
        start, self._seen = self._seen, self._seen + len(logits)
        if self._drawn is None:
            self.logits[start : self._seen], self.right[start : self._seen] = logits, right
            return
        values, places = self._drawn
        first, last = torch.searchsorted(values, torch.tensor([start, self._seen])).tolist()
        chosen = values[first:last] - start
        self.logits[places[first:last]], self.right[places[first:last]] = logits[chosen], right[chosen]


def _at_once(batch: ActionBatch) -> int:
    return images_at_once(batch.images.shape[2:], len(batch.images))


def _certain_pixels(records: Records, trusted: float, batch_size: int) -> int:
    """How many pixels of all actions have a reference that is at least so certain."""
    rows = range(len(records))
    parts = (rows[start : start + batch_size] for start in range(0, len(records), batch_size))
    return records.actions_per_image * sum(int((records.certainty_of(part) >= trusted).sum()) for part in parts)


def _read(records: Records, drawn: Iterator[tuple[Tensor, Tensor]]) -> Iterator[ActionBatch]:
    """The batches of rows and choices that were drawn, the next of which is read while one is learned from."""
    return read_ahead(drawn, lambda chosen: records.batch(*chosen))


def _batches(records: Records, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and the action of each, without end; every image once before any comes again."""
    while True:
        choice = torch.randint(records.actions_per_image, (len(records),), generator=generator)
        for rows in torch.randperm(len(records), generator=generator).split(batch_size):
            yield rows, choice[rows]


def _every_action(records: Records, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for action in range(records.actions_per_image):
        for rows in torch.arange(len(records)).split(batch_size):
            yield rows, torch.full_like(rows, action)


def _near_contour(labels: Tensor, num_classes: int) -> Tensor:
    """Pixels `(B, *S)` whose window of two pixels on every side holds more than one class."""
    near = dilate(class_masks(labels, range(num_classes)), _CONTOUR)
    return near.sum(dim=1) > 1


def _copy_state(net: RewardNet) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}
