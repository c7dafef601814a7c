"""`medfm-rl calibrate`: `quality.json` of a run from labelled cases that somebody gives."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from pathlib import Path

from medfm_rl.adapters.clips import CaseMasks
from medfm_rl.data.files import alone_writing
from medfm_rl.data.layouts import CaseFile
from medfm_rl.data.mask_labels import labels_in_masks
from medfm_rl.data.probabilities import confidence_of, require_all
from medfm_rl.errors import ConfigError, DataError, UserError
from medfm_rl.progress import Progress, silent
from medfm_rl.quality.biomedclip import BiomedCLIP
from medfm_rl.quality.calibration import fit_quality, require_patients
from medfm_rl.quality.model import QualityModel, Targets, is_outdated
from medfm_rl.quality.submission import segment, submit
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.runs.inputs import common_folder, hash_labelled
from medfm_rl.runs.judging import Judge
from medfm_rl.runs.leakage import count_known
from medfm_rl.types import FloatArray, LabelMap, LabelSchema
from medfm_rl.workflows.calibrate.cases import (
    Spool,
    calibration_case,
    keep_previous,
    learned_anatomy,
    masks_with_spacing,
    provenance_of,
)
from medfm_rl.workflows.deploy.given_masks import GivenMasks

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibrateRequest:
    """The masks that a quality model is fitted on, and what is asked of it.

    Attributes:
        targets: Coverage of intervals, and share of bad masks among the accepted.
        masks: Masks to be assessed, by case, where they are not those of the run's segmenter.
        labels: The integers in these masks, as in `labels_in_masks`. Those of the labelled cases are the run's, or what
            their own description says.
        probabilities: Files of the probabilities that their maker gave, by case, where `score` is to have them too.
        biomedclip: BiomedCLIP's weights, where it is to know the images too.
        networks: How many of the reward networks assess, the first ones; None for all.
        allow_overlap: As in `count_known`.
    """

    targets: Targets = field(default_factory=Targets)
    masks: Mapping[str, Path] | None = None
    labels: str | None = None
    probabilities: Mapping[str, Path] | None = None
    biomedclip: Path | None = None
    networks: int | None = None
    allow_overlap: bool = False


def calibrate(
    run: Judge,
    files: Sequence[CaseFile],
    request: CalibrateRequest | None = None,
    progress: Progress = silent,
) -> QualityModel:
    """Fits a quality model on labelled cases and writes it into the run; the one before is kept under another name.

    A warning says under which, and where the new one promises less.

    Args:
        run: A finished run of `adapt`, or a judge.
        files: Labelled cases.
        request: Which masks are assessed and what is asked; None: those of the run's segmenter, with default targets.
        progress: Told how far it is.

    Raises:
        UserError: The run is not finished, has learned from the cases, or they cannot be used or are too few.
    """
    request = CalibrateRequest() if request is None else request
    if isinstance(run, FinishedRun) and run.prompts is not None and request.masks is not None:
        raise ConfigError("prompts and masks do not go together: where masks are given, none are made")
    if request.masks is None and request.probabilities is not None:
        raise ConfigError("--probabilities are those of masks that are given: they go with --masks")
    with alone_writing(run.path):
        require_patients([file.patient_id for file in files], request.targets)
        known = count_known(run.folder, files, request.allow_overlap)
        masks = None if request.masks is None else read_masks(run.grid.schema, files, request)
        encoder = None if request.biomedclip is None else BiomedCLIP.load(request.biomedclip, run.device)
        model = calibrate_cases(run, files, masks, request.targets, progress, encoder, request.networks)
        if known:
            model = model.model_copy(update={"origin": f"{model.origin}, {known} of them known to the run"})
        path = run.folder.quality
        lost = _lost_promises(path, model)
        kept = keep_previous(path)
        run.replace_quality(model)
        if kept is not None:
            less = f"; the new one promises less: {'; '.join(lost)}" if lost else ""
            _LOG.warning("the quality model before is kept as %s%s", kept, less)
        return model


def _lost_promises(before: Path, model: QualityModel) -> list[str]:
    """The promises of a quality model that its successor does not make, in words."""
    if not before.exists() or is_outdated(before):
        return []
    try:
        old = QualityModel.read(before)
    except UserError:
        # It is damaged, and promises nothing.
        return []
    without = [
        name
        for name, structure in model.structures.items()
        if structure.quantile is None and name in old.structures and old.structures[name].quantile is not None
    ]
    lost = [f"no interval but [0, 1] for {', '.join(without)}"] if without else []
    if model.accept_threshold is None and old.accept_threshold is not None:
        lost.append(f"no threshold for acceptance ({model.accept_reason})")
    return lost


@dataclass(frozen=True, eq=False)
class MaskToAssess:
    """A mask that is given.

    Attributes:
        labels: Class indices `(*S)`.
        confidence: `(*S)`, probability that its maker gave to the class at each pixel; None where none is given.
    """

    labels: LabelMap
    confidence: FloatArray | None = None


def read_masks(schema: LabelSchema, files: Sequence[CaseFile], request: CalibrateRequest) -> Iterator[MaskToAssess]:
    """The masks to be assessed, one by one.

    Raises:
        DataError: One of them, or its probabilities, is missing, which is said before any is read, or cannot be read.
    """
    masks = request.masks
    assert masks is not None
    in_masks = labels_in_masks(request.labels, masks, schema)
    for file in files:
        if file.case_id not in masks:
            raise DataError(f"case {file.case_id}: there is no mask of that name to be assessed")
        if request.probabilities is not None:
            require_all(request.probabilities, file.case_id)
    given = GivenMasks(masks, None, schema, in_masks)

    def read(file: CaseFile) -> MaskToAssess:
        case = file.read()
        labels = given.read(case)
        if request.probabilities is None:
            return MaskToAssess(labels)
        path = require_all(request.probabilities, file.case_id)
        return MaskToAssess(labels, confidence_of(path, case, labels, schema, in_masks or schema))

    return (read(file) for file in files)


def calibrate_cases(
    run: Judge,
    files: Sequence[CaseFile],
    masks: Iterable[MaskToAssess] | None,
    targets: Targets,
    progress: Progress = silent,
    biomedclip: BiomedCLIP | None = None,
    networks: int | None = None,
) -> QualityModel:
    """Fits a quality model on masks of labelled cases; nothing is written.

    Args:
        run: A finished run of `adapt`, or a judge.
        files: Labelled cases.
        masks: Their masks to be assessed, in the same order; None for those of the run's segmenter.
        targets: Coverage of intervals, and share of bad masks among the accepted.
        progress: Told how far it is.
        biomedclip: Looks at the images too.
        networks: As in `CalibrateRequest`.

    Raises:
        UserError: As in `calibrate`.
    """
    seed, reward = run.seed, run.first_networks(networks)
    segmenter = run.own_segmenter() if masks is None else None
    own_masks = None if segmenter is None else CaseMasks(segmenter)
    grid = run.grid if segmenter is None else segmenter
    truths = masks_with_spacing(files, grid.schema, True, "reading labelled masks", progress)
    anatomy = learned_anatomy(run.anatomy_name, grid.schema, truths)
    given = repeat(None, len(files)) if masks is None else masks
    with Spool.within(run.folder) as spool:
        for done, (file, mask) in enumerate(zip(files, given, strict=True), 1):
            item = file.read_labelled(grid.schema)
            if mask is not None:
                submission = submit(grid, anatomy, item.case, mask.labels, mask.confidence)
            else:
                assert segmenter is not None
                assert own_masks is not None
                submission = segment(segmenter, anatomy, item.case, own_masks.in_clip(file))
            assessed = calibration_case(submission, item.ground_truth, grid, reward, run.device)
            spool.add(assessed if biomedclip is None else replace(assessed, biomedclip=biomedclip.embed(item.case)))
            progress("calibrating", done, len(files))
        place = common_folder(files)
        origin = f"{len(files)} labelled cases of {place.resolve()}"
        provenance = provenance_of(run, origin, True, hash_labelled(place, files, progress).hash, networks)
        if biomedclip is not None:
            provenance = replace(provenance, biomedclip_hash=biomedclip.weights_hash)
        return fit_quality(spool.cases, anatomy, targets, provenance, seed)
