"""`medfm-rl calibrate-correction`: what a correction has to gain to be accepted, from labelled cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medfm_rl.augmentation.appearance import randomise_appearance
from medfm_rl.correction import CaseCorrector
from medfm_rl.correction.acceptance import HARM, Acceptance, HarmTarget, Outcome, fit_acceptance
from medfm_rl.data.files import alone_writing
from medfm_rl.data.layouts import CaseFile, describe_patients
from medfm_rl.errors import DataError
from medfm_rl.metrics.overlap import dice
from medfm_rl.progress import Progress, silent
from medfm_rl.quality.conformal import fewest_for_threshold
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.runs.leakage import count_known
from medfm_rl.seeding import torch_generator
from medfm_rl.settings import CorrectionSettings

_VIEWS = 3
"""Appearances of each case: as it is, and perturbed, so that there is something to correct."""


def calibrate_correction(
    run: FinishedRun,
    files: Sequence[CaseFile],
    target: HarmTarget,
    settings: CorrectionSettings,
    allow_overlap: bool = False,
    progress: Progress = silent,
) -> Acceptance:
    """Corrects labelled cases in several appearances, fits the margin, and writes `correction.json` into the run.

    Args:
        run: A finished run of `adapt`.
        files: Labelled cases of patients that the run has not learned from.
        target: What is asked.
        settings: How cases are corrected; the margin is what is found.
        allow_overlap: As in `count_known`.
        progress: Told how far it is.

    Raises:
        UserError: The run or the cases cannot be used, they are of too few patients for any margin, or the run has
            learned from them.
    """
    with alone_writing(run.path):
        count_known(run.folder, files, allow_overlap)
        _require_patients(files, target)
        corrector = run.corrector(settings.model_copy(update={"margin": 0.0}))
        outcomes, cut = collect_outcomes(corrector, files, progress)
        acceptance = fit_acceptance(
            outcomes,
            _VIEWS * len(files),
            len({file.patient_id for file in files}),
            target,
            settings,
            run.hash_correction(),
            cut,
        )
        acceptance.write(run.folder.correction)
        return acceptance


def _require_patients(files: Sequence[CaseFile], target: HarmTarget) -> None:
    """Refuses before the first correction what no correction can help: each patient counts once, at best."""
    patients = len({file.patient_id for file in files})
    needed = fewest_for_threshold(target.alpha, target.confidence)
    if patients < needed:
        raise DataError(
            f"labelled: there are {patients} patients, and a margin needs a correction of at least {needed} for alpha "
            f"{target.alpha:g} and confidence {target.confidence:g}; give more patients, or ask for less by --alpha or "
            f"--confidence; {describe_patients(files)}"
        )


def collect_outcomes(
    corrector: CaseCorrector, files: Sequence[CaseFile], progress: Progress
) -> tuple[list[Outcome], int]:
    """Corrects labelled cases, each as it is and in random appearances.

    Args:
        corrector: Its verifier asks for no margin.
        files: Labelled cases.
        progress: Told how far it is.

    Returns:
        What came of the corrections that the verifier accepts, and how many cases, each appearance counted, the time
        budget cut. Those are not among the outcomes: they would say what the machine was busy with.

    Raises:
        DataError: The segmenter makes masks of whole clips, and there are clips.
    """
    if corrector.adapter.segments_clips and any(file.clip is not None for file in files):
        raise DataError(
            "labelled: corrections are calibrated image by image, and this segmenter makes the masks of a clip "
            "together, so that a margin would be of other masks than `correct` corrects; give images that are no "
            "clips, or a segmenter with memory: false"
        )
    outcomes, cut = [], 0
    structures = corrector.adapter.schema.classes
    for done, file in enumerate(files, 1):
        labelled = file.read_labelled(corrector.adapter.schema)
        sample = corrector.adapter.preprocess(labelled.case)
        generator = torch_generator(0, "calibration of corrections", file.case_id)
        for view in range(_VIEWS):
            shown = sample
            if view > 0:
                channels = corrector.adapter.intensity_channels
                image = randomise_appearance(sample.image[None], None, 1.0, generator, channels)[0]
                shown = replace(sample, image=image)
            result = corrector.correct(labelled.case, shown)
            if result.cut:
                cut += 1
            elif result.accepted and result.verification is not None:
                before, after = (
                    float(dice(mask, labelled.ground_truth, structures).mean())
                    for mask in (result.before, result.after)
                )
                outcomes.append(Outcome(file.patient_id, result.verification.gain, after < before - HARM))
        progress("correcting labelled cases", done, len(files))
    return outcomes, cut
