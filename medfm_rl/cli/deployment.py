"""Commands that segment, judge and correct with an adapted segmenter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfm_rl.cli.console import REFERRED, USER_MISTAKE, print_corrections, show_progress
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
    Layout,
    MaskLabels,
    ModelFolder,
    PatientPattern,
    Prompts,
    Split,
    Track,
    Where,
    correction_settings,
    data_settings,
    from_options,
    require_masks,
)
from medfm_rl.cli.root import app


@app.command("predict")
def predict_command(
    model: ModelFolder,
    images: Annotated[Path, typer.Argument(help="Images to segment.")],
    out: Annotated[Path, typer.Argument(help="Folder for labels/ and rewards/.")],
    layout: Layout = "auto",
    patient_pattern: PatientPattern = None,
    prompts: Prompts = None,
    correct: Annotated[
        bool, typer.Option("--correct", help="Score the masks too, and correct those with verdict `correct`.")
    ] = False,
    method: Annotated[str | None, typer.Option(help="With --correct, as in `correct`; views where not given.")] = None,
    budget: Annotated[float | None, typer.Option(help="With --correct: seconds for one case; 10 if not given.")] = None,
    track: Track = False,
    device: Device = "auto",
) -> None:
    """Write label maps in the geometry of the images, and a reward map for each."""
    from medfm_rl.data.layouts import find_cases
    from medfm_rl.errors import ConfigError
    from medfm_rl.networks import choose_device
    from medfm_rl.runs.identity import identify
    from medfm_rl.runs.models import load_model
    from medfm_rl.runs.tracked_call import tracked_call
    from medfm_rl.workflows.deploy.predict import predict

    if not correct and (method is not None or budget is not None):
        raise ConfigError("--method and --budget are for --correct, and go with it")
    if correct:
        from medfm_rl.workflows.deploy.correct import correct as correct_masks

        settings = correction_settings(budget, method=method or "views")
        files = find_cases(data_settings(images, layout, patient_pattern))
        with show_progress() as progress, tracked_call(track, model, "predict", files, out, progress):
            corrections = correct_masks(
                model, files, None, out, settings, False, False, device, progress, prompts=prompts
            )
        print_corrections(corrections, out)
        return
    loaded = load_model(model, prompts).to(choose_device(device))
    if loaded.reward is None:
        typer.echo(f"{model} has no reward networks (only runs of `adapt` have): label maps only.", err=True)
    files = find_cases(data_settings(images, layout, patient_pattern))
    with show_progress() as progress, tracked_call(track, model, "predict", files, out, progress):
        problems = predict(loaded, files, out, progress, identify(model))
    for problem in problems:
        typer.echo(f"Left out: {problem}", err=True)
    typer.echo(f"Label maps: {out / 'labels'}")
    if problems:
        raise typer.Exit(USER_MISTAKE)


@app.command("score")
def score_command(
    quality_model: Annotated[Path, typer.Argument(help="Run folder of `adapt`, with a quality.json.")],
    images: Annotated[Path, typer.Option(help="Images.")],
    out: Annotated[Path, typer.Option(help="Folder for scores, reward maps, report.html and audit.jsonl.")],
    masks: Annotated[Path | None, typer.Option(help="Their masks, of the same names, whatever made them.")] = None,
    model: Annotated[Path | None, typer.Option(help="Or: a run or segmenter folder that makes the masks.")] = None,
    layout: Layout = "auto",
    patient_pattern: PatientPattern = None,
    prompts: Prompts = None,
    echoprime: Annotated[
        Path | None,
        typer.Option(help="EchoPrime's view_classifier.pt: images that are no apical views of echo are referred."),
    ] = None,
    biomedclip: BiomedCLIPWeights = None,
    labels: MaskLabels = None,
    accept_untested: Annotated[
        bool,
        typer.Option(
            "--accept-untested",
            help="Accept masks also where the batch has too few patients to test whether it is like the calibration.",
        ),
    ] = False,
    fail_on: Annotated[
        str | None,
        typer.Option(help="refer: exit with code 3 where a mask is referred; 2 stays for those that were not judged."),
    ] = None,
    track: Track = False,
    device: Device = "auto",
) -> None:
    """Judge masks without ground truth: predicted Dice with an interval, anatomy rules, shift, and a verdict."""
    from medfm_rl.data.layouts import find_cases
    from medfm_rl.errors import ConfigError
    from medfm_rl.runs.identity import identify
    from medfm_rl.runs.models import load_model
    from medfm_rl.runs.tracked_call import tracked_call
    from medfm_rl.workflows.deploy.score import Gates, find_masks, score

    if (masks is None) == (model is None):
        raise ConfigError("give either --masks, a folder of masks, or --model, a segmenter that makes them")
    if prompts is not None and model is None:
        raise ConfigError("--prompts are for a segmenter that makes the masks: they go with --model")
    require_masks(labels, masks)
    if fail_on not in (None, "refer"):
        raise ConfigError(f"--fail-on {fail_on}: must be refer")
    files = find_cases(data_settings(images, layout, patient_pattern))
    found = None if masks is None else find_masks(masks, files)
    own = model is not None and model.resolve() == quality_model.resolve()
    segmenter, made_by = None, None
    if model is not None and not own:
        segmenter, made_by = load_model(model, prompts).segmenter, identify(model).model_hash
    with show_progress() as progress, tracked_call(track, quality_model, "score", files, out, progress):
        scoring = score(
            quality_model,
            files,
            found,
            segmenter,
            out,
            device,
            progress,
            gates=Gates(echoprime, biomedclip),
            prompts=prompts if own else None,
            accept_untested=accept_untested,
            labels=labels,
            made_by=made_by,
        )
    for problem in scoring.problems.values():
        typer.echo(f"Referred unseen: {problem}", err=True)
    typer.echo(f"Batch: {scoring.batch.state}; {scoring.batch.meaning}")
    for guarantee in scoring.batch.guarantees:
        typer.echo(f"{guarantee} ({guarantee.reason})")
    typer.echo(", ".join(f"{verdict} {scoring.count(verdict)}" for verdict in ("accept", "correct", "refer")))
    typer.echo(f"Scores: {out / 'scores.csv'}\nReport: {out / 'report.html'}")
    if scoring.problems:
        typer.echo(f"{len(scoring.problems)} of {len(files)} cases could not be judged.", err=True)
        raise typer.Exit(USER_MISTAKE)
    if fail_on == "refer" and scoring.count("refer"):
        raise typer.Exit(REFERRED)


@app.command("correct")
def correct_command(
    model: Annotated[Path, typer.Argument(help="Finished run folder of `adapt`.")],
    images: Annotated[Path, typer.Option(help="Images.")],
    out: Annotated[Path, typer.Option(help="Folder for labels/, pictures/, corrections.csv and audit.jsonl.")],
    scores: Annotated[
        Path | None, typer.Option(help="scores.json of `medfm-rl score`; without it the cases are scored first.")
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="The masks to be corrected, where another segmenter made them; else those of the run's own."),
    ] = None,
    labels: MaskLabels = None,
    budget: Budget = None,
    method: CorrectionMethod = "views",
    objective: CorrectionObjective = None,
    optimise: CorrectionScope = None,
    propose_only: Annotated[
        bool, typer.Option("--propose-only", help="Keep every mask; write corrections to proposals/ beside them.")
    ] = False,
    every: Annotated[bool, typer.Option("--all", help="Every case, whatever its verdict.")] = False,
    layout: Layout = "auto",
    patient_pattern: PatientPattern = None,
    prompts: Prompts = None,
    track: Track = False,
    device: Device = "auto",
) -> None:
    """Correct the cases with verdict `correct`: propose, keep what an independent judge prefers, refer the rest."""
    from medfm_rl.data.layouts import find_cases
    from medfm_rl.runs.tracked_call import tracked_call
    from medfm_rl.workflows.deploy.correct import correct
    from medfm_rl.workflows.deploy.score import find_masks

    require_masks(labels, masks)
    settings = correction_settings(budget, method=method, objective=objective, optimise=optimise)
    files = find_cases(data_settings(images, layout, patient_pattern))
    given = None if masks is None else find_masks(masks, files)
    with show_progress() as progress, tracked_call(track, model, "correct", files, out, progress):
        corrections = correct(
            model,
            files,
            scores,
            out,
            settings,
            propose_only,
            every,
            device,
            progress,
            prompts=prompts,
            masks=given,
            labels=labels,
        )
    print_corrections(corrections, out)


@app.command("calibrate")
def calibrate_command(
    run: AdaptedRun,
    labelled: Labelled,
    masks: Annotated[
        Path | None, typer.Option(help="Masks to be judged, where another segmenter makes them; else the run's own.")
    ] = None,
    labels: MaskLabels = None,
    dice: Annotated[float, typer.Option(help="Mean Dice below which a mask is bad.")] = 0.8,
    alpha: Annotated[float, typer.Option(help="Largest share of bad masks among the accepted.")] = 0.1,
    confidence: Annotated[float, typer.Option(help="Confidence of the statement about accepted masks.")] = 0.9,
    coverage: Annotated[float, typer.Option(help="Share of cases whose Dice the interval holds.")] = 0.9,
    layout: Layout = "auto",
    patient_pattern: PatientPattern = None,
    split: Split = "all",
    where: Where = None,
    prompts: Prompts = None,
    biomedclip: BiomedCLIPWeights = None,
    allow_overlap: AllowOverlap = False,
    device: Device = "auto",
) -> None:
    """Fit predicted Dice, intervals and the threshold for acceptance on labelled cases; write quality.json."""
    from medfm_rl.data.layouts import find_cases
    from medfm_rl.errors import ConfigError
    from medfm_rl.quality.model import Targets
    from medfm_rl.runs.folder import RunFolder
    from medfm_rl.workflows.calibrate.quality import calibrate
    from medfm_rl.workflows.deploy.score import find_masks

    if prompts is not None and masks is not None:
        raise ConfigError("--prompts and --masks do not go together: where masks are given, none are made")
    require_masks(labels, masks)
    targets = from_options(Targets, coverage=coverage, dice=dice, alpha=alpha, confidence=confidence)
    folder = RunFolder(run)
    folder.require_model()
    files = find_cases(data_settings(labelled, layout, patient_pattern, split, where))
    found = None if masks is None else find_masks(masks, files)
    with show_progress() as progress:
        model = calibrate(
            folder,
            files,
            found,
            targets,
            device,
            progress,
            prompts=prompts,
            biomedclip=biomedclip,
            labels=labels,
            allow_overlap=allow_overlap,
        )
    from rich.console import Console

    from medfm_rl.reports.tables import calibration_table

    Console().print(calibration_table(model))
    kept = "none" if model.accept_threshold is None else f"predicted mean Dice of at least {model.accept_threshold:.3f}"
    typer.echo(f"Accept: {kept}; {model.accept_reason}\nQuality model: {folder.quality}")


@app.command("calibrate-correction")
def calibrate_correction_command(
    run: AdaptedRun,
    labelled: Labelled,
    alpha: Annotated[float, typer.Option(help="Largest share of harmful among the accepted corrections.")] = 0.1,
    confidence: Annotated[float, typer.Option(help="Confidence of that statement.")] = 0.9,
    budget: Budget = None,
    method: CorrectionMethod = "views",
    objective: CorrectionObjective = None,
    optimise: CorrectionScope = None,
    layout: Layout = "auto",
    patient_pattern: PatientPattern = None,
    split: Split = "all",
    where: Where = None,
    prompts: Prompts = None,
    allow_overlap: AllowOverlap = False,
    device: Device = "auto",
) -> None:
    """Find on labelled cases what a correction has to gain to be accepted; write correction.json."""
    from medfm_rl.correction.acceptance import HarmTarget
    from medfm_rl.data.layouts import find_cases
    from medfm_rl.runs.folder import RunFolder
    from medfm_rl.workflows.calibrate.correction import calibrate_correction

    target = from_options(HarmTarget, alpha=alpha, confidence=confidence)
    settings = correction_settings(budget, method=method, objective=objective, optimise=optimise)
    folder, files = RunFolder(run), find_cases(data_settings(labelled, layout, patient_pattern, split, where))
    with show_progress() as progress:
        found = calibrate_correction(folder, files, target, settings, device, progress, prompts, allow_overlap)
    margin = "none" if found.margin is None else f"{found.margin:g}"
    typer.echo(f"Margin: {margin}; {found.reason}\nAcceptance: {folder.correction}")
