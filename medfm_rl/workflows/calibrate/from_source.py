"""The `quality.json` that `adapt` leaves: from source cases that no reward network of the run has learned from."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.augmentation.appearance import randomise_appearance
from medfm_rl.data.layouts import CaseFile, describe_patients, find_cases
from medfm_rl.data.stored_rows import RowsFolder
from medfm_rl.errors import DataError, UserError
from medfm_rl.progress import Progress
from medfm_rl.quality.calibration import FEWEST_PATIENTS, fit_quality
from medfm_rl.quality.model import QualityModel, Targets, is_outdated
from medfm_rl.quality.submission import prepare
from medfm_rl.reward.collection import perturb_weights
from medfm_rl.reward.training_report import RewardTrainingReport
from medfm_rl.rows import Rows
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.runs.folder import RunFolder
from medfm_rl.runs.inputs import common_folder, hash_labelled
from medfm_rl.seeding import torch_generator
from medfm_rl.settings import AdaptConfig
from medfm_rl.workflows.calibrate.cases import (
    Spool,
    calibration_case,
    keep_previous,
    learned_anatomy,
    masks_with_spacing,
    provenance_of,
)

_LOG = logging.getLogger(__name__)
_VIEWS = 3
"""Times that each held-out source case is shown in another appearance."""


def write_default_quality(run: FinishedRun, config: AdaptConfig, progress: Progress) -> QualityModel | None:
    """Fits a quality model on source cases that no reward network of the ensemble was trained or stopped on.

    They are shown in random appearances, most of them borrowed from the target, and segmented by the adapted segmenter
    and by perturbed copies of it, so that there are good and bad masks. It is the most honest that a run without
    labelled target cases allows, and it is not honest about three things: the segmenter learned from these cases, so
    did the reward network that chose its checkpoint, and they are no target cases. The model says so, and the tests for
    shift decide whether its promises hold for a batch.

    A file that another version wrote is kept under another name.

    Returns:
        None in the source-free mode and where too few patients were held out; a warning says what to do.
    """
    path = run.folder.quality
    if path.exists() and not is_outdated(path):
        return QualityModel.read(path)
    if config.source is None:
        _LOG.warning(
            "no %s without source images: make one from labelled cases by `medfm-rl calibrate %s --labelled DIR`",
            path.name,
            run.path,
        )
        return None
    seen = _patients_of_rewards(run.folder, config)
    files = [file for file in find_cases(config.source) if file.patient_id not in seen]
    try:
        model = _fit_on_source(run, config, files, progress)
    except UserError as error:
        _LOG.warning("no %s: %s; make one by `medfm-rl calibrate %s --labelled DIR`", path.name, error, run.path)
        return None
    keep_previous(path)
    run.replace_quality(model)
    return model


def _fit_on_source(
    run: FinishedRun, config: AdaptConfig, files: Sequence[CaseFile], progress: Progress
) -> QualityModel:
    patients = {file.patient_id for file in files}
    if not files:
        raise DataError("the reward networks have learned from every source patient")
    if len(patients) < FEWEST_PATIENTS:
        raise DataError(
            f"{len(patients)} source patients were held out from the reward networks, and {FEWEST_PATIENTS} are "
            f"needed; of more source patients more are held out; {describe_patients(files)}"
        )
    with Spool.within(run.folder) as spool:
        anatomy = _assess_source(run, config, files, progress, spool)
        origin = (
            f"source images of {len(patients)} patients that no network of the ensemble has learned from, in the look "
            "of the target"
        )
        provenance = provenance_of(run, origin, False, hash_labelled(common_folder(files), files, progress).hash)
        return fit_quality(spool.cases, anatomy, Targets(), provenance, config.seed)


def _assess_source(
    run: FinishedRun, config: AdaptConfig, files: Sequence[CaseFile], progress: Progress, spool: Spool
) -> Anatomy:
    """Adds each case in several appearances; returns the rules, learned limits included.

    One case is in memory at a time.
    """
    device, segmenter, reward = run.device, run.segmenter, run.reward
    styles, in_mm = _styles(find_cases(config.target), segmenter, progress, RowsFolder(spool.folder))
    sources = find_cases(config.source or config.target)
    masks = masks_with_spacing(sources, segmenter.schema, in_mm, "reading source masks", progress)
    anatomy = learned_anatomy(config.anatomy, segmenter.schema, masks)
    generator = torch_generator(config.seed, "default quality")
    # The first view is segmented by what is deployed, the others by perturbed copies of it.
    policies = [segmenter, *(_perturbed(segmenter, config, generator).to(device) for _ in range(_VIEWS - 1))]
    for file in files:
        item = file.read_labelled(segmenter.schema)
        sample = segmenter.preprocess(item.case)
        for policy in policies:
            shown = replace(sample, image=_in_another_look(sample.image, styles, segmenter, config, generator))
            # What is calibrated is what is deployed: the tool's own inference, and the mask on the case's own grid.
            logits = segmenter.predict_logits(shown)
            labels = segmenter.restore(logits if policy is segmenter else policy.predict_logits(shown), shown)
            known = None if segmenter.prompted else logits
            submission = prepare(segmenter, anatomy, item.case, labels, shown, known)
            spool.add(calibration_case(submission, item.ground_truth, segmenter, reward, device))
            progress("calibrating the quality model", len(spool.cases), len(policies) * len(files))
    return anatomy


def _styles(
    files: Sequence[CaseFile], segmenter: SegmenterAdapter, progress: Progress, place: RowsFolder
) -> tuple[Rows, bool]:
    """Target images whose look is borrowed `(N, C, *patch)`, and whether the spacing of each of them is known.

    Those larger than the patch are made smaller; of volumes of a 2-D segmenter the middle slice is taken.
    """
    found, spaced = place.new("styles"), True
    for done, file in enumerate(files, 1):
        case = file.read()
        spaced = spaced and case.geometry.spacing is not None
        image = segmenter.preprocess(case).image
        if image.ndim - 1 > len(segmenter.patch_size):
            image = image[:, image.shape[1] // 2]
        found.add(_resized(image, segmenter.patch_size)[None])
        progress("reading target images", done, len(files))
    return found.rows(), spaced


def _in_another_look(
    image: Tensor, styles: Rows, segmenter: SegmenterAdapter, config: AdaptConfig, generator: torch.Generator
) -> Tensor:
    """An image `(C, *S')` in a random appearance; of a volume of a 2-D segmenter, all slices in the same."""
    stacked = image.ndim - 1 > len(segmenter.patch_size)
    images = image.movedim(1, 0) if stacked else image[None]
    style = _resized(styles[int(torch.randint(len(styles), (), generator=generator))], images.shape[2:])[None]
    strength, channels = config.collect.appearance_strength, segmenter.intensity_channels
    state, shown = generator.get_state(), []
    for one in images:
        generator.set_state(state)
        shown.append(randomise_appearance(one[None], style, strength, generator, channels)[0])
    return torch.stack(shown, dim=1) if stacked else shown[0]


def _resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """An image `(C, *S')` of another size, by linear interpolation."""
    if tuple(image.shape[1:]) == tuple(size):
        return image
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return F.interpolate(image[None], size=tuple(size), mode=mode, align_corners=False)[0]


def _perturbed(segmenter: SegmenterAdapter, config: AdaptConfig, generator: torch.Generator) -> SegmenterAdapter:
    perturbed = perturb_weights(copy.deepcopy(segmenter).cpu(), config.collect.weight_noise, generator)
    assert isinstance(perturbed, SegmenterAdapter)
    return perturbed


def _patients_of_rewards(run: RunFolder, config: AdaptConfig) -> set[str]:
    """Patients that the networks of the final ensemble, or those that they go on from, were trained or stopped on."""
    seen: set[str] = set()
    for iteration in run.iterations:
        for member in range(config.reward.ensemble):
            report = run.reward(iteration, f"member-{member}").with_suffix(".json")
            seen |= RewardTrainingReport.read(report).patients
    return seen
