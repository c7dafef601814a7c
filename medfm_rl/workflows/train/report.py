"""The report on a training: what is written beside the weights, and the page for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.data.layouts import CaseFile, is_simulated
from medfm_rl.metrics.scores import MEAN, Evaluation, StructureSummary
from medfm_rl.progress import Progress
from medfm_rl.reports.training import TrainingCase, TrainingPage, write_training_page
from medfm_rl.runs.inputs import Input
from medfm_rl.types import LabelSchema, where_said
from medfm_rl.version import __version__
from medfm_rl.workflows.evaluate.evaluation import evaluate_segmenter
from medfm_rl.workflows.train.supervised import Validation

_SHOWN: Final = 6


@dataclass(frozen=True)
class TrainingOutcome:
    """How a training went.

    Attributes:
        history: All validations.
        batch_size: Images per step.
        learning: Images and patients that it learned from.
        held_out: Images and patients that it was validated on.
    """

    history: tuple[Validation, ...]
    batch_size: int
    learning: tuple[int, int]
    held_out: tuple[int, int]

    @property
    def kept(self) -> Validation:
        """The validation whose weights were kept."""
        return min(self.history, key=lambda item: item.loss)

    def as_json(self, schema: LabelSchema, summary: Sequence[StructureSummary]) -> dict[str, Any]:
        """The outcome as JSON values, without a name of a file, case or patient.

        Args:
            schema: Structures.
            summary: Scores of the kept weights on the held-out patients, in the images' own pixels.
        """
        named = [
            {**asdict(item), "dice": dict(zip(schema.structures, item.dice, strict=True))} for item in self.history
        ]
        return {
            "summary": self.in_words(summary),
            "steps": self.history[-1].step,
            "kept_step": self.kept.step,
            "images": self.learning[0],
            "patients": self.learning[1],
            "held_out_images": self.held_out[0],
            "held_out_patients": self.held_out[1],
            "held_out_dice": {row.structure: {"mean": row.dice, "p10": row.dice_p10} for row in summary},
            "history": named,
        }

    def in_words(self, summary: Sequence[StructureSummary]) -> str:
        """The outcome in a sentence."""
        # Of one structure the mean is its own.
        rows = summary[:1] if len(summary) == 2 else summary
        found = ", ".join(f"{row.structure} {row.dice:.3f}" for row in rows)
        learning, held_out = (
            f"{_count(images, 'image')} of {_count(patients, 'patient')}"
            for images, patients in (self.learning, self.held_out)
        )
        return (
            f"{self.history[-1].step} steps of {min(self.batch_size, self.learning[0])} images on {learning}; the "
            f"weights after step {self.kept.step} were kept. Dice on {held_out} that no step learned from: {found}."
        )


def measure(adapter: TorchModuleAdapter, files: Sequence[CaseFile], progress: Progress) -> Evaluation:
    """Dice of the trained segmenter on the held-out cases, in their own pixels."""
    return evaluate_segmenter(adapter, files, load_anatomy("generic", adapter.schema), progress)


def write_page(
    path: Path,
    data: Path,
    adapter: TorchModuleAdapter,
    outcome: TrainingOutcome,
    evaluation: Evaluation,
    files: Sequence[CaseFile],
    hashed: Input,
) -> None:
    """Writes the page.

    Args:
        path: The file.
        data: The data set.
        adapter: The trained segmenter.
        outcome: How the training went.
        evaluation: Its scores on the held-out cases.
        files: Those cases.
        hashed: The data set by content.
    """
    history, schema = outcome.history, adapter.schema
    record = hashed.record()
    page = TrainingPage(
        simulated=is_simulated(data),
        schema=schema,
        summary=outcome.in_words(evaluation.summary),
        steps=[item.step for item in history],
        losses={
            "training": [item.training_loss for item in history],
            "held-out patients": [item.loss for item in history],
        },
        dice={name: [item.dice[index] for item in history] for index, name in enumerate(schema.structures)},
        kept=outcome.kept.step,
        scores=evaluation.summary,
        cases=_cases(adapter, evaluation, files),
        provenance={
            "data": record.path,
            "data.hash": record.hash,
            "cases, patients": f"{record.cases}, {record.patients}",
            "medfm-rl": __version__,
        },
    )
    write_training_page(path, page)


def _cases(adapter: TorchModuleAdapter, evaluation: Evaluation, files: Sequence[CaseFile]) -> list[TrainingCase]:
    """Some of the cases from the worst to the best, evenly spaced."""
    ranked = sorted(evaluation.of(MEAN), key=lambda score: score.dice)
    places = np.unique(np.linspace(0, len(ranked) - 1, min(_SHOWN, len(ranked))).round().astype(int))
    file_of = {file.case_id: file for file in files}
    return [_case(adapter, file_of[ranked[place].case_id], ranked[place].dice) for place in places]


def _case(adapter: TorchModuleAdapter, file: CaseFile, dice: float) -> TrainingCase:
    """The part of a case that the page shows: the plane of a volume with most of the ground truth."""
    labelled = file.read_labelled(adapter.schema, may_ignore=True)
    image, truth, mask = labelled.case.image[0], where_said(labelled.ground_truth), adapter.segment(labelled.case)
    if truth.ndim == 3:
        plane = int((truth > 0).sum(axis=(1, 2)).argmax())
        image, truth, mask = image[plane], truth[plane], mask[plane]
    return TrainingCase(file.case_id, image, mask, truth, dice)


def _count(number: int, word: str) -> str:
    return f"{number} {word if number == 1 else word + 's'}"
