"""Whether adapting is worth it, by patients whose masks were drawn: each by a policy that did not learn from him."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Self

import numpy as np
import torch
from scipy.stats import wilcoxon
from torch import nn

from medfm_rl.data.files import write_versioned_json
from medfm_rl.data.json_models import read_model
from medfm_rl.errors import DataError
from medfm_rl.networks import argmax_masks
from medfm_rl.reward.collection import ReviewedImages
from medfm_rl.rows import batches_of
from medfm_rl.runs.folder import SOURCE
from medfm_rl.seeding import derive_seed
from medfm_rl.workflows.adapt.choosing.signals import Values, mean_dice
from medfm_rl.workflows.adapt.context import Domains, RunContext
from medfm_rl.workflows.adapt.stages.starting import fine_tuned_policy

_LOG = logging.getLogger(__name__)
_FORMAT: Final = 1
_ADVICE: Final = "put back what `adapt` wrote there, or delete it and resume the run"
CROSS_FIT: Final = "comparing on reviewed patients"
"""What the progress calls this stage."""
_FOLDS: Final = 2
LEAST_PATIENTS: Final = 4
"""Each policy learns from half of them; from one alone it would learn another thing than from all."""
LEAST_GAIN: Final = 0.003
"""Typical gain in Dice from which on adapting is worth it: every change makes some cases worse."""
_BATCH: Final = 16


@dataclass(frozen=True)
class CrossFit:
    """Mean Dice on patients whose masks reviewers drew or corrected, one value a patient.

    Attributes:
        patients: In the order of the values.
        before: Of the source policy.
        after: Of a policy that was fine-tuned in the same way, without the patient and as many others.
    """

    patients: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]

    @property
    def typical_gain(self) -> float:
        """The gain of a typical patient: the median of the means of all pairs of differences.

        One patient whose mask is lost, or who is lucky, hardly moves it, and where the differences are even it is their
        mean (Hodges and Lehmann, Ann. Math. Statist. 34(2), 1963).
        """
        difference = np.subtract(self.after, self.before)
        rows, columns = np.triu_indices(len(difference))
        return float(np.median((difference[rows] + difference[columns]) / 2))

    @property
    def p_value(self) -> float:
        """Of Wilcoxon's signed-rank test, one-sided: how probable so good an outcome is where adapting brings nothing.

        By ranks, for many patients who gain a little are more evidence than one who gains a lot (Wilcoxon, Biometrics
        Bulletin 1(6), 1945; exact for so few).
        """
        difference = np.subtract(self.after, self.before)
        if not difference.any():
            return 1.0
        return float(wilcoxon(difference, alternative="greater").pvalue)

    @property
    def is_better(self) -> bool:
        """Whether adapting is worth it for a typical patient.

        What is likelier decides, and no test at 10 %: with eight patients one lost mask is enough for that to miss a
        gain of ten points. The gain is told too low rather than too high, for each policy has learned from half of the
        patients, in half of the steps.
        """
        return self.typical_gain >= LEAST_GAIN

    def write(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all."""
        write_versioned_json(path, _FORMAT, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads what `write` wrote.

        Raises:
            DataError: The file is missing, is no such record, or was written by a newer version.
        """
        return read_model(path, cls, _FORMAT, "a comparison on reviewed patients", _ADVICE, DataError)


def cross_fit(context: RunContext, domains: Domains) -> CrossFit | None:
    """Fine-tunes twice, each time without half of the patients whose masks were drawn, and measures on those.

    None where they do not decide (`why_none_decide`). Accepted masks teach, and nothing is measured on them: the model
    that made them has a Dice of 1 there, and everything else must look worse. Each takes half the steps, so that both
    together cost what the fine-tuning does. They run side by side where there are several processes.
    """
    reviewed, feedback = domains.reviewed, context.config.feedback
    if reviewed is None or feedback is None or not feedback.cross_fit or not context.config.fine_tuning.steps:
        return None
    drawn = set(reviewed.drawn.images.patient_ids)
    reason = why_none_decide(len(drawn), len(set(reviewed.images.patient_ids) - drawn))
    if reason is not None:
        if context.team.leads:
            _LOG.info("feedback: %s", reason)
        return None
    path, team = context.run.cross_fit, context.team
    if team.from_leader(lambda: not path.exists()):
        measured = _measure(context, domains, reviewed)
        team.from_leader(lambda: measured.write(path))
    return CrossFit.read(path)


def why_none_decide(drawn: int, accepted: int) -> str | None:
    """Why reviewed patients do not decide whether adapting is worth it; None where those with drawn masks do.

    Args:
        drawn: Patients with masks that reviewers drew or corrected.
        accepted: Patients of whom reviewers accepted every mask.
    """
    if drawn < LEAST_PATIENTS:
        return (
            f"{drawn} patients have masks that reviewers drew or corrected, and it takes {LEAST_PATIENTS} to decide "
            "whether adapting is worth it; accepted masks teach and decide nothing, for the model that made them "
            "agrees with them by itself."
        )
    if accepted > drawn:
        return (
            f"Reviewers accepted every mask of {accepted} patients and corrected some of {drawn}: these are the ones "
            "in whom the model did worst, so what they gain by adapting says little of a typical patient, and they "
            "do not decide whether it is worth it."
        )
    return None


def _measure(context: RunContext, domains: Domains, reviewed: ReviewedImages) -> CrossFit:
    measured = reviewed.drawn
    before = _by_patient(context, context.policy(SOURCE), measured)
    after: dict[str, float] = {}
    folds = _folds(measured, derive_seed(context.config.seed, "cross-fit"))
    own, crew = context.team.crew(_FOLDS)
    for number in own:
        others = set(reviewed.images.patient_ids) - set(folds[number])
        label = f"{CROSS_FIT} {number + 1}/{_FOLDS}"
        within = replace(context, team=crew)
        policy, _ = fine_tuned_policy(within, domains, reviewed.of_patients(others), 1 / _FOLDS, label)
        after |= _by_patient(context, policy, measured.of_patients(folds[number]))
    for found in context.team.gather(after):
        after |= found
    names = tuple(sorted(after))
    return CrossFit(names, tuple(before[name] for name in names), tuple(after[name] for name in names))


def _folds(reviewed: ReviewedImages, seed: int) -> list[list[str]]:
    patients = sorted(set(reviewed.images.patient_ids))
    order = np.random.default_rng(seed).permutation(len(patients))
    return [[patients[index] for index in order[fold::_FOLDS]] for fold in range(_FOLDS)]


@torch.no_grad()
def _by_patient(context: RunContext, policy: nn.Module, reviewed: ReviewedImages) -> dict[str, float]:
    """Mean Dice of the masks of a policy over the images of each patient."""
    policy.eval()
    batches = batches_of(reviewed.images.images, _BATCH)
    masks = torch.cat([argmax_masks(policy, batch.to(context.device)).cpu() for batch in batches])
    values = mean_dice(masks.to(torch.uint8), reviewed.masks, context.schema.classes)
    return _means(values, reviewed.images.patient_ids)


def _means(values: Values, patients: Sequence[str]) -> dict[str, float]:
    names: Collection[str] = dict.fromkeys(patients)
    return {
        name: float(np.mean([v for v, patient in zip(values, patients, strict=True) if patient == name]))
        for name in names
    }
