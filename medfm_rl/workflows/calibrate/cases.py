"""Labelled cases that a quality model is fitted on: assessed one by one, with maps that lie on the disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medfm_rl.adapters import CaseGrid
from medfm_rl.anatomy.learning import learn_limits
from medfm_rl.anatomy.profiles import Anatomy, load_anatomy
from medfm_rl.data.files import hash_file, replace_on_success, scratch_folder
from medfm_rl.data.layouts import CaseFile
from medfm_rl.metrics.overlap import dice
from medfm_rl.progress import Progress
from medfm_rl.quality.calibration import Provenance
from medfm_rl.quality.calibration_case import CalibrationCase
from medfm_rl.quality.evidence import Evidence
from medfm_rl.quality.model import reward_hashes
from medfm_rl.quality.submission import Submission, collect_evidence
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.runs.folder import RunFolder
from medfm_rl.runs.judging import Judge
from medfm_rl.types import LabelMap, LabelSchema

_LEARNED_QUANTILE = 0.001
_MAPS = ("action", "mean_map", "spread", "confidence", "given")
"""What of the evidence on a case is as large as its image."""


class Spool:
    """Assessed cases in a folder of files, so that the maps of volumes need not all be in memory.

    Args:
        folder: A folder of its own, which has to be there as long as the cases are used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cases: list[CalibrationCase] = []

    @classmethod
    @contextmanager
    def within(cls, run: RunFolder) -> Iterator[Spool]:
        """One in a folder of a run, which is removed afterwards."""
        with scratch_folder(run.path, "calibrating") as folder:
            yield cls(folder)

    def add(self, case: CalibrationCase) -> None:
        """Adds a case; its maps are in memory while somebody looks at them."""
        path = self.folder / f"{len(self.cases):06d}.pt"
        evidence, right = case.load()
        maps = {name: getattr(evidence, name) for name in _MAPS}
        torch.save({**maps, "right": right}, path)
        without: dict[str, Any] = dict.fromkeys(_MAPS)
        self.cases.append(replace(case, load=partial(_load, path, replace(evidence, **without))))


def _load(path: Path, rest: Evidence) -> tuple[Evidence, Tensor]:
    """Evidence that has its maps again, and where its mask is right; of the file, only what is looked at is read."""
    found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    right: Tensor = found.pop("right")
    return replace(rest, **found), right


def calibration_case(
    submission: Submission,
    ground_truth: LabelMap,
    grid: CaseGrid,
    reward: RewardEnsemble,
    device: torch.device,
) -> CalibrationCase:
    """A mask with its evidence and the truth `(*S)`."""
    evidence = collect_evidence([submission], reward, grid.patch_size, grid.schema, device)[0]
    truth = grid.preprocess_labels(ground_truth, submission.sample)
    overlap = dice(submission.labels, ground_truth, grid.schema.classes)
    return CalibrationCase.of(submission.case.patient_id, evidence, evidence.action == truth, overlap)


def masks_with_spacing(
    files: Sequence[CaseFile], schema: LabelSchema, in_mm: bool, stage: str, progress: Progress
) -> Iterator[tuple[LabelMap, tuple[float, ...] | None]]:
    """Masks on their own grids, one by one, with their spacings where sizes can be in mm."""
    for done, file in enumerate(files, 1):
        item = file.read_labelled(schema)
        progress(stage, done, len(files))
        yield item.ground_truth, item.case.geometry.array_spacing if in_mm else None


def learned_anatomy(
    name: str, schema: LabelSchema, masks: Iterable[tuple[LabelMap, tuple[float, ...] | None]]
) -> Anatomy:
    """The profile of the run with limits learned from masks that are right, on their own grids, with spacings."""
    return load_anatomy(name, schema).extended(learn_limits(masks, schema, _LEARNED_QUANTILE))


def provenance_of(
    run: Judge, origin: str, target_domain: bool, data_hash: str, networks: int | None = None
) -> Provenance:
    """Where a quality model of a run comes from; the arguments are those of `Provenance`.

    It is of the first so many reward networks, or of all where None.
    """
    identity, hashes = run.identity, reward_hashes(run.folder.final_reward)
    names = run.network_names(networks)
    assert identity.model_hash is not None
    assert identity.reward_hash is not None
    return Provenance(
        origin,
        target_domain,
        identity.model_hash,
        identity.reward_hash,
        {name: hashes[name] for name in names},
        data_hash,
        networks=None if networks is None else names,
    )


def keep_previous(path: Path) -> Path | None:
    """Where a copy of the file that is to be replaced is from now on; None where there is no file."""
    if not path.exists():
        return None
    kept = path.with_name(f"{path.stem}-{hash_file(path)[:8]}{path.suffix}")
    with replace_on_success(kept) as temporary:
        shutil.copyfile(path, temporary)
    return kept
