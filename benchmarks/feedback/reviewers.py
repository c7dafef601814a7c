"""Reviewers whose masks are the experts': a target without masks, and a store with those of some patients."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.harness.laboratory import files_of
from medfm_rl.data.layouts import CaseFile
from medfm_rl.feedback import CorrectedMask, FeedbackStore, Mask
from medfm_rl.types import LabelSchema

_COMPLETE = "complete"
_REVIEWER = "expert"


def target_without_masks(target: Path, folder: Path) -> Path:
    """A copy of a data set with its images alone: what a method must not see is not there."""
    if not (folder / _COMPLETE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(target / "images", folder / "images")
        for record in target.glob("*.json"):
            shutil.copy(record, folder)
        (folder / _COMPLETE).write_text("")
    return folder


def patients_in_order(files: Sequence[CaseFile], seed: int) -> list[str]:
    """The patients of a target in the random order in which they are reviewed: the first 4 are among the first 8."""
    patients = sorted({file.patient_id for file in files})
    return [str(patient) for patient in np.random.default_rng(seed).permutation(patients)]


def review(path: Path, target: Path, patients: Sequence[str], schema: LabelSchema) -> str:
    """Fills a store with the experts' masks of some patients; returns its name."""
    with FeedbackStore.create(path) as store:
        entries, masks = [], []
        for file in files_of(target):
            if file.patient_id in patients:
                labelled = file.read_labelled(schema)
                mask = Mask.of(labelled.ground_truth, schema.class_names, labelled.case.geometry)
                masks.append(mask)
                entries.append(
                    CorrectedMask(
                        reviewer=_REVIEWER,
                        patient=file.patient_id,
                        case=file.case_id,
                        image_sha256=file.hash_images(),
                        mask_sha256=mask.sha256,
                        drawn="informative",
                    )
                )
        store.add(entries, masks)
    return str(path)


def source_with_reviewed(source: Path, target: Path, patients: Sequence[str], folder: Path) -> Path:
    """A labelled data set of the source and of some target patients, who are a third of it as far as 8 copies reach.

    For the control that trains again on both.
    """
    if not (folder / _COMPLETE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        for part in ("images", "labels"):
            shutil.copytree(source / part, folder / part)
        reviewed = [file for file in files_of(target) if file.patient_id in patients]
        copies = min(8, max(1, round(len(files_of(source)) / 2 / max(1, len(reviewed)))))
        for file in reviewed:
            rest = file.case_id.removeprefix(file.patient_id)
            for copy in range(copies):
                for part in ("images", "labels"):
                    suffix = next((target / part).glob(f"{file.case_id}.*")).suffix
                    name = f"{file.patient_id}c{copy}{rest}{suffix}"
                    shutil.copy(target / part / f"{file.case_id}{suffix}", folder / part / name)
        (folder / _COMPLETE).write_text("")
    return folder
