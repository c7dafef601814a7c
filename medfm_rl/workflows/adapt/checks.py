"""Checks of the settings and inputs of a run, before anything is spent on it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Sequence

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.base import noise_patch, without_gradient
from medfm_rl.adapters.loading import load_segmenter, open_to_learning
from medfm_rl.adapters.value_range import range_doubts
from medfm_rl.anatomy.profiles import Anatomy, load_anatomy
from medfm_rl.anatomy.rules import SizeRule
from medfm_rl.data.checks import CaseFacts, case_facts, facts_by_schema, find_suspicious, image_facts, notices
from medfm_rl.data.layouts import CaseFile, describe_patients, find_cases, require_masks, split_by_patient
from medfm_rl.errors import ConfigError, DataError, ModelError, UserError
from medfm_rl.networks import choose_device
from medfm_rl.progress import Progress
from medfm_rl.seeding import derive_seed
from medfm_rl.settings import AdaptConfig
from medfm_rl.tracking import require_store
from medfm_rl.types import where_said
from medfm_rl.workflows.check.segmenter import find_unexpected_values
from medfm_rl.workflows.inspection import few_patches, try_network

_LOG = logging.getLogger(__name__)
_SHOWN = 10
"""Files that cannot be used and that a message names."""


def check_inputs(config: AdaptConfig, progress: Progress) -> SegmenterAdapter:
    """Finds mistakes before a folder is written, and not when hours of work are done.

    The network runs once, and the images and masks that the run learns from are read, the images also preprocessed. Of
    the evaluation data the images are, and it asks only which masks there are.

    Args:
        config: The settings.
        progress: Told how far it is.

    Returns:
        The segmenter that the settings name, on its device and in evaluation mode.

    Raises:
        UserError: Something that was handed over cannot be used.
    """
    _refuse_output_within_segmenter(config)
    device = choose_device(config.device)
    require_store(config.tracking)
    segmenter = load_segmenter(config.segmenter)
    _refuse_limits_in_mm(load_anatomy(config.anatomy, segmenter.schema))
    learning, selecting = split_target(config)
    source = [] if config.source is None else find_cases(config.source)
    if config.source is None:
        _check_patients("target", learning, 4)
    else:
        _check_patients("source", source, 3)
    require_masks(source, "source")
    evaluation = [] if config.evaluation is None else find_cases(config.evaluation)
    if config.evaluation is not None:
        require_masks(evaluation, "evaluation")
        if len({file.patient_id for file in evaluation}) < 2:
            raise DataError(
                f"evaluation: {config.evaluation.path} has images of one patient; intervals need at least 2; "
                f"{describe_patients(evaluation)}"
            )
    obstacles = try_network(segmenter, device, progress)
    if obstacles:
        raise ModelError(f"{config.segmenter.folder}: it cannot be adapted: {'; '.join(obstacles)}")
    _require_gradients(segmenter, config)
    _require_usable("target", [*learning, *selecting], segmenter, labelled=False, progress=progress)
    _require_usable("source", source, segmenter, labelled=True, progress=progress)
    _require_usable("evaluation", evaluation, segmenter, labelled=False, progress=progress)
    for doubt in range_doubts(segmenter, few_patches(segmenter, learning)):
        _LOG.warning("%s: %s", config.segmenter.folder, doubt)
    return segmenter


def _require_gradients(segmenter: SegmenterAdapter, config: AdaptConfig) -> None:
    """Raises ModelError where a parameter that shall learn would never move: nothing later would say so."""
    twin = copy.deepcopy(segmenter)
    learning = open_to_learning(twin, config.segmenter, config.seed)
    without = without_gradient(twin, learning, noise_patch(twin).to(twin.device))
    if without:
        raise ModelError(
            f"{config.segmenter.folder}: no gradient reaches {len(without)} parameters of the scope "
            f"{config.segmenter.train!r}, the first {without[0]}; choose another segmenter.train, or leave them out of "
            "the adapter's `trainable`"
        )


def _require_usable(
    name: str, files: Sequence[CaseFile], segmenter: SegmenterAdapter, labelled: bool, progress: Progress
) -> None:
    """Reads and preprocesses cases one by one, keeps none, and raises DataError that names those that it cannot.

    A warning is logged of each thing in them that looks suspicious, as `medfm-rl check` finds it.

    Args:
        name: The data set, for messages.
        files: Its cases.
        segmenter: The segmenter.
        labelled: Whether the masks are read too.
        progress: Told how far it is.
    """
    problems, facts = [], []
    for done, file in enumerate(files, 1):
        try:
            facts.append(_facts_of(file, segmenter, labelled))
        except UserError as error:
            problems.append(file.name_in(str(error)))
        progress(f"checking {name}", done, len(files))
    if problems:
        more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        listed = "\n".join(f"  {line}" for line in [*problems[:_SHOWN], *more])
        raise DataError(
            f"{name}: {len(problems)} of {len(files)} cases cannot be used; correct them or take them out:\n{listed}"
        )
    suspicious = [*find_suspicious(facts), *find_unexpected_values(facts, segmenter.expected_values())]
    for notice in notices(name, suspicious):
        _LOG.warning("%s", notice)


def _facts_of(file: CaseFile, segmenter: SegmenterAdapter, labelled: bool) -> CaseFacts:
    """Reads a case and has the segmenter preprocess it.

    Raises:
        UserError: It cannot be used.
    """
    mask = None
    if labelled:
        read = file.read_labelled(segmenter.schema, may_ignore=True)
        case, mask = read.case, facts_by_schema(where_said(read.ground_truth), segmenter.schema)
    else:
        case = file.read()
    segmenter.preprocess(case)
    segmenter.prompt_hash(file.case_id)
    return case_facts(file, image_facts(case), mask)


def _refuse_output_within_segmenter(config: AdaptConfig) -> None:
    """Refuses an output where the run would take its own files for those of the segmenter, and not be resumed.

    Here and not with the settings: a run that is finished in such a place can still be used.
    """
    folder = config.segmenter.folder
    if config.output.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"output {config.output}: it lies in segmenter.folder {folder}, and the files of the run would be among "
            "those that it was started with; choose a folder outside"
        )


def _refuse_limits_in_mm(anatomy: Anatomy) -> None:
    """Refuses rules that the run could not check.

    It asks for the validity of masks on the grid of the networks, cut and resampled, where no adapter says how large a
    pixel is. Without such a rule a mask would pass for valid that it was there to refuse, and nobody would be told; so
    none is left out. Scoring does not lose by it: `calibrate` learns limits in mm of its own.
    """
    rule = next((rule for rule in anatomy.rules if isinstance(rule, SizeRule) and rule.measured_in == "mm"), None)
    if rule is not None:
        raise ConfigError(
            f"anatomy {anatomy.name}: the rule {rule.kind} of {rule.structure} has limits in mm, and adaptation looks "
            "at masks on the grid of the networks, where the size of a pixel is not known; give its limits as a share "
            "of the image (measured_in: share) or take the rule out. Limits in mm work in `medfm-rl evaluate "
            "--anatomy`, and `medfm-rl calibrate` learns its own from labelled cases"
        )


def _check_patients(name: str, files: Sequence[CaseFile], least: int) -> None:
    """Refuses too few patients for the held-out reward network and the ensemble, at least two each."""
    count = len({file.patient_id for file in files})
    if count < least:
        raise DataError(
            f"{name}: the reward networks learn from images of {count} patients and need {least}, for the held-out "
            f"one has two of its own; give more patients; {describe_patients(files)}"
        )


def split_target(
    config: AdaptConfig, reviewed: Collection[str] = (), judged: Collection[str] = ()
) -> tuple[list[CaseFile], list[CaseFile]]:
    """Cases to learn on without labels, and those of other patients on which candidates are compared.

    Args:
        config: The settings.
        reviewed: Patients whose images teach with the masks of reviewers, and are in neither part.
        judged: Patients of whom verdicts, grades or preferences teach the reward networks: to learn on, as long as two
            others are left to compare candidates on, for those networks take part in the comparison.

    Raises:
        DataError: There are too few patients.
    """
    everything = find_cases(config.target)
    files = [file for file in everything if file.patient_id not in reviewed]
    fraction = config.selection.target_fraction
    if round(fraction * len({file.patient_id for file in files})) < 2:
        # Nearly all were reviewed: they are looked at without their masks too.
        files = everything
    where = f"target: {config.target.path}"
    others = [file for file in files if file.patient_id not in judged]
    if round(fraction * len({file.patient_id for file in others})) < 2:
        others = files
    _, selecting = split_by_patient(others, fraction, derive_seed(config.seed, "selection"), where)
    compared_on = {file.patient_id for file in selecting}
    learning = [file for file in files if file.patient_id not in compared_on]
    if len({file.patient_id for file in selecting}) < 2:
        raise DataError(
            f"{where} has images of {len({file.patient_id for file in files})} patients, of whom "
            f"selection.target_fraction {fraction:g} leaves one to compare checkpoints on, and 2 are needed; give more "
            f"patients or raise the fraction; {describe_patients(files)}"
        )
    return learning, selecting
