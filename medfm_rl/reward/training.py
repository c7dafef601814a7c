"""Training and calibration of one reward network on D_R."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from medfm_rl.data.layouts import split_by_patient
from medfm_rl.errors import DataError
from medfm_rl.metrics.calibration import ReliabilityCurve, expected_calibration_error, reliability_curve
from medfm_rl.networks import mixed_precision
from medfm_rl.reward.actions import ActionOrigin, ActionRecords
from medfm_rl.reward.network import RewardNet
from medfm_rl.seeding import derive_seed, torch_generator
from medfm_rl.settings import RewardSettings

_MOST_CALIBRATION_PIXELS = 2_000_000


@dataclass(frozen=True)
class RewardTrainingReport:
    """How the training of a reward network went; all of it measured on patients it was not trained on.

    Attributes:
        losses: Training and validation loss at each validation.
        best_step: Step whose weights were kept.
        temperature: T of `sigmoid(z / T)`.
        ece_before: Expected calibration error at T = 1.
        ece_after: Expected calibration error at T.
        reliability_before: Reliability curve at T = 1.
        reliability_after: Reliability curve at T.
        training_patients: Who it was trained on.
        validation_patients: Who it was stopped and calibrated on.
    """

    losses: tuple[tuple[float, float], ...]
    best_step: int
    temperature: float
    ece_before: float
    ece_after: float
    reliability_before: ReliabilityCurve
    reliability_after: ReliabilityCurve
    training_patients: tuple[str, ...]
    validation_patients: tuple[str, ...]


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
    records: ActionRecords,
    settings: RewardSettings,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
    held_out: Collection[str] | None = None,
) -> RewardTrainingReport:
    """Trains a reward network with early stopping by patient, then calibrates its temperature.

    An image is seen with one of its actions, drawn at random.

    Args:
        net: Changed in place; returned on the CPU, frozen in evaluation mode.
        records: D_R, or a part of it.
        settings: Optimisation.
        seed: Seed of the patient split, the order and the draws.
        device: Where to train.
        progress: Called with (steps done, steps at most).
        held_out: Patients to stop and calibrate on; those of `hold_out` where None. A network that goes on from another
            must be given patients that the other has not learned from.

    Raises:
        DataError: There are fewer than two patients, a label that the network does not know, or nothing certain to
            calibrate on.
        FloatingPointError: The loss is not finite.
    """
    if held_out is None:
        held_out = hold_out(records.origins, settings.validation_fraction, derive_seed(seed, "split"))
    training = records.of_patients(patients_of(records.origins) - set(held_out))
    validation = records.of_patients(held_out)
    _check_labels(records, net.num_classes)
    net.to(device)
    # Dropout draws from the global generator.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "dropout"))
        losses, best_step = _fit(net, training, validation, settings, seed, device, progress)
    net.eval().requires_grad_(False)
    logits, right = _held_out_pixels(net, validation, settings.batch_size, device, torch_generator(seed, "calibrate"))
    temperature = fit_temperature(logits, right)
    net.temperature.fill_(temperature)
    net.cpu()
    raw, calibrated = (torch.sigmoid(logits / value).numpy() for value in (1.0, temperature))
    outcomes = right.numpy()
    return RewardTrainingReport(
        losses,
        best_step,
        temperature,
        expected_calibration_error(raw, outcomes),
        expected_calibration_error(calibrated, outcomes),
        reliability_curve(raw, outcomes),
        reliability_curve(calibrated, outcomes),
        tuple(sorted(patients_of(training.origins))),
        tuple(sorted(patients_of(validation.origins))),
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


def patients_of(origins: Iterable[ActionOrigin]) -> set[str]:
    """The patients that records come from."""
    return {origin.patient_id for origin in origins}


def hold_out(origins: Sequence[ActionOrigin], fraction: float, seed: int) -> set[str]:
    """Picks patients of each domain, so that there is ground truth on both sides where there is any.

    Args:
        origins: Origins of the records of D_R, or of a part of it.
        fraction: Share of the patients, in (0, 1).
        seed: Seed of the choice.

    Returns:
        Patients to hold out; at least one is, and at least one is not.

    Raises:
        DataError: There are fewer than two patients.
    """
    patients = patients_of(origins)
    if len(patients) < 2:
        raise DataError(f"a reward network needs images of at least 2 patients, there are {len(patients)}")
    held_out: set[str] = set()
    with_truth = patients_of(origin for origin in origins if origin.domain == "source")
    for group in (with_truth, patients - with_truth):
        if len(group) > 1:
            of_group = [origin for origin in origins if origin.patient_id in group]
            held_out |= patients_of(split_by_patient(of_group, fraction, seed)[1])
    # Where there is one patient of each domain: ground truth to learn from, the other to hold out.
    return held_out or patients - with_truth


def _check_labels(records: ActionRecords, num_classes: int) -> None:
    highest = max(int(records.actions.max()), int(records.references.max()))
    if highest >= num_classes:
        raise DataError(
            f"the action data set holds label {highest}, the reward network knows the classes 0 to {num_classes - 1}; "
            "collect it with the segmenter that the network is for"
        )


def _fit(
    net: RewardNet,
    training: ActionRecords,
    validation: ActionRecords,
    settings: RewardSettings,
    seed: int,
    device: torch.device,
    progress: Callable[[int, int], None] | None,
) -> tuple[tuple[tuple[float, float], ...], int]:
    """Leaves the weights with the lowest validation loss in the network; returns all losses and the step of those."""
    batches = _batches(training, settings.batch_size, torch_generator(seed, "train"))
    optimiser = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    best_loss, best_step, best_state = float("inf"), 0, _copy_state(net)
    losses: list[tuple[float, float]] = []
    step = 0
    while step < settings.steps and step - best_step < settings.patience * settings.validate_every:
        count = min(settings.validate_every, settings.steps - step)
        training_loss = _train_steps(net, training, islice(batches, count), settings, optimiser, schedule, device)
        validation_loss = _validate(net, validation, settings, device)
        step += count
        losses.append((training_loss, validation_loss))
        if validation_loss < best_loss:
            best_loss, best_step, best_state = validation_loss, step, _copy_state(net)
        if progress:
            progress(step, settings.steps)
    net.load_state_dict(best_state)
    return tuple(losses), best_step


def _batches(records: ActionRecords, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and the action of each, without end; every image once before any comes again."""
    while True:
        choice = torch.randint(records.actions.shape[1], (len(records),), generator=generator)
        for rows in torch.randperm(len(records), generator=generator).split(batch_size):
            yield rows, choice[rows]


def _train_steps(
    net: RewardNet,
    records: ActionRecords,
    batches: Iterator[tuple[Tensor, Tensor]],
    settings: RewardSettings,
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    device: torch.device,
) -> float:
    """One step for each batch; returns the mean loss."""
    net.train()
    losses = []
    for rows, choice in batches:
        with mixed_precision(device, records.images.ndim - 2):
            loss, _ = _loss(net, records, rows, choice, settings, device)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return float(np.mean(losses))


@torch.no_grad()
def _validate(net: RewardNet, records: ActionRecords, settings: RewardSettings, device: torch.device) -> float:
    """Mean loss over all pixels by their weight, however they are dealt into batches."""
    net.eval()
    total, weight = 0.0, 0.0
    for rows, choice in _every_action(records, settings.batch_size):
        loss, batch_weight = _loss(net, records, rows, choice, settings, device)
        total += loss.item() * batch_weight
        weight += batch_weight
    return total / max(weight, 1e-8)


def _every_action(records: ActionRecords, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for action in range(records.actions.shape[1]):
        for rows in torch.arange(len(records)).split(batch_size):
            yield rows, torch.full_like(rows, action)


def _loss(
    net: RewardNet, records: ActionRecords, rows: Tensor, choice: Tensor, settings: RewardSettings, device: torch.device
) -> tuple[Tensor, float]:
    """The mean loss of one action of each row, and the total weight of its pixels."""
    images = records.images[rows].to(device)
    actions = records.actions[rows, choice].to(device).long()
    references = records.references[rows].to(device).long()
    weights = records.certainty[rows].to(device) * contour_weights(actions, net.num_classes, settings.contour_weight)
    loss = reward_loss(net(images, actions).float(), (actions == references).float(), weights, settings.error_weight)
    if not torch.isfinite(loss):
        raise FloatingPointError("the reward loss is not finite; lower reward.learning_rate or look at the images")
    return loss, float(weights.sum())


@torch.no_grad()
def _held_out_pixels(
    net: RewardNet, records: ActionRecords, batch_size: int, device: torch.device, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Logits and outcomes of the pixels with the most trusted references, thinned to what a fit needs.

    Where there is ground truth, references of other origin do not take part.

    Raises:
        DataError: No reference is certain of any pixel.
    """
    source = records.of_domain("source")
    records = source if len(source) else records
    if not bool((records.certainty > 0).any()):
        raise DataError(
            "no reference of the held-out patients is certain of any pixel, so the reward cannot be calibrated; lower "
            "collect.reference_agreement or give more patients"
        )
    logits, right = [], []
    trusted = 0.5 * float(records.certainty.max())
    for rows, choice in _every_action(records, batch_size):
        actions = records.actions[rows, choice]
        certain = records.certainty[rows] >= trusted
        logits.append(net(records.images[rows].to(device), actions.to(device)).cpu()[certain])
        right.append((actions == records.references[rows])[certain].float())
    all_logits, all_right = torch.cat(logits), torch.cat(right)
    if len(all_logits) > _MOST_CALIBRATION_PIXELS:
        kept = torch.randint(len(all_logits), (_MOST_CALIBRATION_PIXELS,), generator=generator)
        return all_logits[kept], all_right[kept]
    return all_logits, all_right


def _near_contour(labels: Tensor, num_classes: int) -> Tensor:
    one_hot = F.one_hot(labels.long(), num_classes).movedim(-1, 1).float()
    pool = F.max_pool2d if labels.ndim == 3 else F.max_pool3d
    return pool(one_hot, kernel_size=5, stride=1, padding=2).sum(dim=1) > 1.5


def _copy_state(net: RewardNet) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}
