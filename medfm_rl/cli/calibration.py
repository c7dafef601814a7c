"""Commands that find out on labelled cases what scores and corrections may promise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from medfm_rl.choices import PromiseUnit
from medfm_rl.cli.case_choice import ALL_CASES, CaseChoice, with_case_choice
from medfm_rl.cli.console import show_progress
from medfm_rl.cli.options import (
    AdaptedRun,
    AllowOverlap,
    BiomedCLIPWeights,
    Budget,
    CorrectionMethod,
    CorrectionObjective,
    CorrectionScope,
    Device,
    Labelled,
    MaskLabels,
    Probabilities,
    Prompts,
    Track,
    correction_settings,
    from_options,
    require_masks,
)
from medfm_rl.cli.root import app

if TYPE_CHECKING:
    from medfm_rl.settings import DataSettings

_UNIT: Final = "mean"
_COVERAGE: Final = 0.9


@app.command("calibrate")
@with_case_choice
def calibrate_command(
    run: AdaptedRun,
    labelled: Annotated[Path | None, typer.Option(help="Labelled cases that the run has not learned from.")] = None,
    feedback: Annotated[
        str | None,
        typer.Option(
            help="Or: a feedback store. Its reviewed audit patients prove a promise about accepted masks, written to "
            "promise.json, move later predictions by what these missed there (reviewed_errors.json), and give the "
            "figures of all that was scored; quality.json stays as it is.",
        ),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="With --feedback: the images that were scored.")] = None,
    scores: Annotated[Path | None, typer.Option(help="With --feedback: scores.json of `medfm-rl score`.")] = None,
    unit: Annotated[
        PromiseUnit,
        typer.Option(
            help="With --feedback, what a patient counts: mean (the share of bad masks among his accepted ones) or "
            "worst (whether any of them is bad)."
        ),
    ] = _UNIT,
    masks: Annotated[
        Path | None, typer.Option(help="Masks to be assessed, where another segmenter makes them; else the run's own.")
    ] = None,
    labels: MaskLabels = None,
    probabilities: Probabilities = None,
    dice: Annotated[float, typer.Option(help="Mean Dice below which a mask is bad.")] = 0.8,
    alpha: Annotated[float, typer.Option(help="Largest share of bad masks among the accepted.")] = 0.1,
    confidence: Annotated[float, typer.Option(help="Confidence of the statement about accepted masks.")] = 0.9,
    coverage: Annotated[float, typer.Option(help="Share of cases whose Dice the interval holds.")] = _COVERAGE,
    cases: CaseChoice = ALL_CASES,
    prompts: Prompts = None,
    biomedclip: BiomedCLIPWeights = None,
    networks: Annotated[
        int | None,
        typer.Option(help="Assess with the first so many reward networks alone, which is faster; all where not given."),
    ] = None,
    allow_overlap: AllowOverlap = False,
    track: Track = False,
    device: Device = "auto",
) -> None:
    """Fit predicted Dice, intervals and the threshold for acceptance on labelled cases; write quality.json.

    With --feedback, --images and --scores: by reviewed cases that were drawn at random, prove a promise, and move
    predicted Dice and its intervals by what it missed there.
    """
    from medfm_rl.errors import ConfigError

    if (labelled is None) == (feedback is None):
        raise ConfigError("give either --labelled, labelled cases to fit on, or --feedback, a store to prove by")
    if feedback is None and (images is not None or scores is not None):
        raise ConfigError("--images and --scores are what reviewers of a store have seen: they go with --feedback")
    fitting = {"probabilities": probabilities, "prompts": prompts, "biomedclip": biomedclip, "networks": networks}
    fitting |= {"coverage": coverage != _COVERAGE, "allow-overlap": allow_overlap, "track": track}
    misplaced = {"unit": unit != _UNIT} if feedback is None else fitting
    if named := [f"--{name}" for name, value in misplaced.items() if value not in (None, False)]:
        goes_with = "--feedback, a store to prove by" if feedback is None else "--labelled, labelled cases to fit on"
        raise ConfigError(f"{', '.join(named)}: would have no effect; only with {goes_with}")
    require_masks(labels, masks)
    if feedback is not None:
        data = None if images is None else cases.settings(images)
        values = {"dice": dice, "alpha": alpha, "confidence": confidence, "unit": unit}
        _prove(run, feedback, data, scores, masks, labels, values, device)
        return
    assert labelled is not None
    from medfm_rl.data.mask_files import find_masks
    from medfm_rl.data.probabilities import find_probabilities
    from medfm_rl.quality.model import Targets
    from medfm_rl.runs.finished import load_judge
    from medfm_rl.runs.tracked_call import tracked_calibration
    from medfm_rl.workflows.calibrate.quality import CalibrateRequest, calibrate

    targets = from_options(Targets, coverage=coverage, dice=dice, alpha=alpha, confidence=confidence)
    finished = load_judge(run, device, prompts)
    files = cases.find(labelled)
    found = None if masks is None else find_masks(masks, files)
    maps = None if probabilities is None else find_probabilities(probabilities, files)
    request = CalibrateRequest(targets, found, labels, maps, biomedclip, networks, allow_overlap)
    result = finished.folder.quality
    with show_progress() as progress, tracked_calibration(track, finished, "calibrate", files, result, progress):
        model = calibrate(finished, files, request, progress)
    from rich.console import Console

    from medfm_rl.reports.tables import calibration_table

    Console().print(calibration_table(model))
    kept = "none" if model.accept_threshold is None else f"predicted mean Dice of at least {model.accept_threshold:.3f}"
    typer.echo(f"Accept: {kept}; {model.accept_reason}\nQuality model: {finished.folder.quality}")


def _prove(
    run: Path,
    store: str,
    images: DataSettings | None,
    scores: Path | None,
    masks: Path | None,
    labels: str | None,
    target: Mapping[str, object],
    device: str,
) -> None:
    """Proves a promise by the audit patients of a store, and prints it with the figures of the month."""
    from medfm_rl.data.layouts import find_cases
    from medfm_rl.data.mask_files import find_masks
    from medfm_rl.errors import ConfigError
    from medfm_rl.quality.promises import PromiseTarget
    from medfm_rl.reports.promises import promise_lines
    from medfm_rl.runs.finished import load_judge
    from medfm_rl.workflows.calibrate.audit import AuditRequest, calibrate_on_audit

    if images is None or scores is None:
        raise ConfigError("--feedback needs --images, what the reviewers saw, and --scores, what was predicted of it")
    wanted = from_options(PromiseTarget, **target)
    finished = load_judge(run, device)
    files = find_cases(images)
    found = None if masks is None else find_masks(masks, files)
    with show_progress() as progress:
        result = calibrate_on_audit(finished, AuditRequest(store, files, scores, found, labels, wanted), progress)
    for line in promise_lines(result.promise, result.month, result.no_month):
        typer.echo(line)
    errors = result.errors
    typer.echo(f"No prediction is moved: {result.no_errors}" if errors is None else f"{errors.words}.")
    typer.echo(f"Promise: {finished.folder.promise}")
    if errors is not None:
        typer.echo(f"Errors of predictions, which `score` goes by from now on: {finished.folder.reviewed_errors}")


@app.command("calibrate-correction")
@with_case_choice
def calibrate_correction_command(
    run: AdaptedRun,
    labelled: Labelled,
    alpha: Annotated[float, typer.Option(help="Largest share of harmful among the accepted corrections.")] = 0.1,
    confidence: Annotated[float, typer.Option(help="Confidence of that statement.")] = 0.9,
    budget: Budget = None,
    method: CorrectionMethod = "views",
    objective: CorrectionObjective = None,
    optimise: CorrectionScope = None,
    cases: CaseChoice = ALL_CASES,
    prompts: Prompts = None,
    allow_overlap: AllowOverlap = False,
    track: Track = False,
    device: Device = "auto",
) -> None:
    """Find on labelled cases what a correction has to gain to be accepted; write correction.json."""
    from medfm_rl.correction.acceptance import HarmTarget
    from medfm_rl.runs.finished import load_run
    from medfm_rl.runs.tracked_call import tracked_calibration
    from medfm_rl.workflows.calibrate.correction import calibrate_correction

    target = from_options(HarmTarget, alpha=alpha, confidence=confidence)
    settings = correction_settings(budget, method=method, objective=objective, optimise=optimise)
    finished = load_run(run, device, prompts)
    files = cases.find(labelled)
    command, result = "calibrate-correction", finished.folder.correction
    with show_progress() as progress, tracked_calibration(track, finished, command, files, result, progress):
        found = calibrate_correction(finished, files, target, settings, allow_overlap, progress)
    margin = "none" if found.margin is None else f"{found.margin:g}"
    typer.echo(f"Margin: {margin}; {found.reason}\nAcceptance: {finished.folder.correction}")
