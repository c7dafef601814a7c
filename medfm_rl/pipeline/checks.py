"""What can be found wrong with the settings and inputs of a run before anything is spent on it."""

from __future__ import annotations

from collections.abc import Sequence

from medfm_rl.adapters.loading import load_segmenter, open_to_learning
from medfm_rl.data.layouts import CaseFile, find_cases, split_by_patient
from medfm_rl.errors import ConfigError, DataError
from medfm_rl.metrics.rules import SizeRule
from medfm_rl.metrics.validity import Anatomy, load_anatomy
from medfm_rl.pipeline.models import choose_device
from medfm_rl.seeding import derive_seed
from medfm_rl.settings import AdaptConfig


def check_inputs(config: AdaptConfig) -> None:
    """Finds mistakes before a folder is written, and not when hours of work are done.

    Of the evaluation data it asks only which masks there are.

    Raises:
        UserError: Something that was handed over cannot be used.
    """
    choose_device(config.device)
    segmenter = load_segmenter(config.segmenter)
    open_to_learning(segmenter, config.segmenter, config.seed)
    _refuse_limits_in_mm(load_anatomy(config.anatomy, segmenter.schema))
    learning, _ = split_target(config)
    _check_patients(config, learning)
    for name, data in (("source", config.source), ("evaluation", config.evaluation)):
        files = find_cases(data) if data is not None else []
        without_mask = [file for file in files if file.label_path is None]
        if without_mask:
            raise DataError(
                f"{name}: there is no mask for {without_mask[0].image_paths[0]} ({len(without_mask)} of {len(files)} "
                "images have none); labelled data is needed here"
            )
        if name == "evaluation" and data is not None and len({file.patient_id for file in files}) < 2:
            raise DataError(f"evaluation: {data.path} has images of one patient; intervals need at least 2")


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


def _check_patients(config: AdaptConfig, learning: Sequence[CaseFile]) -> None:
    """Refuses what cannot be dealt to a judge and the other reward networks, at least two patients each."""
    name, files, least = ("target", learning, 4) if config.source is None else ("source", find_cases(config.source), 3)
    count = len({file.patient_id for file in files})
    if count < least:
        raise DataError(
            f"{name}: the reward networks learn from images of {count} patients and need {least}, for the judge has "
            "two of its own; give more patients"
        )


def split_target(config: AdaptConfig) -> tuple[list[CaseFile], list[CaseFile]]:
    """Cases to learn on, and those of other patients on which the judge compares checkpoints.

    Raises:
        DataError: There are too few patients.
    """
    files = find_cases(config.target)
    fraction = config.selection.target_fraction
    where = f"target: {config.target.path}"
    learning, selecting = split_by_patient(files, fraction, derive_seed(config.seed, "selection"), where)
    if len({file.patient_id for file in selecting}) < 2:
        raise DataError(
            f"{where} has images of {len({file.patient_id for file in files})} patients, of whom "
            f"selection.target_fraction {fraction:g} leaves one to compare checkpoints on, and 2 are needed; give more "
            "patients or raise the fraction"
        )
    return learning, selecting
