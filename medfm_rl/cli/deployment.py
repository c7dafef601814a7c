"""Commands that segment, assess and correct with an adapted segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medfm_rl import choices
from medfm_rl.cli.case_choice import ALL_CASES, CaseChoice, with_case_choice
from medfm_rl.cli.console import REFERRED, USER_MISTAKE, print_corrections, print_scoring
from medfm_rl.cli.options import (
    BiomedCLIPWeights,
    Budget,
    CleanedBy,
    CleanUp,
    CorrectionMethod,
    CorrectionObjective,
    CorrectionScope,
    Device,
    MaskLabels,
    ModelFolder,
    OverTime,
    Policy,
    Probabilities,
    Prompts,
    Protocol,
    Scanner,
    Site,
    Stream,
    Track,
    WorkersOption,
    at_work,
    correction_settings,
    device_here,
    require_masks,
    site_policy,
    stream_request,
)
from medfm_rl.cli.root import app

if TYPE_CHECKING:
    from medfm_rl.data.layouts import CaseFile
    from medfm_rl.workflows.deploy.correct import CorrectRequest


@app.command("predict")
@with_case_choice
def predict_command(
    model: ModelFolder,
    images: Annotated[Path, typer.Argument(help="Images to segment.")],
    out: Annotated[Path, typer.Argument(help="Folder for labels/ and rewards/.")],
    cases: CaseChoice = ALL_CASES,
    prompts: Prompts = None,
    correct: Annotated[
        bool, typer.Option("--correct", help="Score the masks too, and correct those with verdict `correct`.")
    ] = False,
    method: Annotated[
        choices.CorrectionMethod | None,
        typer.Option(metavar="METHOD", help="With --correct, as in `correct`; views where not given."),
    ] = None,
    budget: Annotated[float | None, typer.Option(help="With --correct: seconds for one case; 10 if not given.")] = None,
    policy: Policy = None,
    stream: Stream = None,
    scanner: Scanner = None,
    protocol: Protocol = None,
    site: Site = None,
    track: Track = False,
    over_time: OverTime = False,
    clean_up: CleanUp = False,
    anatomy: CleanedBy = None,
    workers: WorkersOption = None,
    device: Device = "auto",
) -> None:
    """Write label maps in the geometry of the images, and a reward map for each.

    All are NIfTI (.nii.gz), whatever format the images have.
    """
    from medfm_rl.errors import ConfigError
    from medfm_rl.runs.finished import load_model

    given = {"method": method, "budget": budget, "policy": policy, "stream": stream}
    given |= {"scanner": scanner, "protocol": protocol, "site": site}
    misplaced = [f"--{name}" for name, value in given.items() if value is not None]
    if not correct and misplaced:
        raise ConfigError(f"{', '.join(misplaced)}: masks are assessed and corrected with --correct alone; give it too")
    if anatomy is not None and not clean_up:
        raise ConfigError("--anatomy: names the rules that masks are cleaned up by; give --clean-up too")
    for name, wanted in (("--over-time", over_time), ("--clean-up", clean_up)):
        if correct and wanted:
            raise ConfigError(
                f"{name}: --correct looks at the masks as the segmenter makes them, one by one; predict with {name} "
                "first, and give its masks to `medfm-rl correct --masks`"
            )
    if correct:
        from medfm_rl.workflows.deploy.correct import CorrectRequest

        request = CorrectRequest(
            correction_settings(budget, method=method or "views"),
            policy=site_policy(policy),
            stream=stream_request(stream, scanner, protocol, site),
        )
        files = cases.find(images)
        _correct("predict", model, files, out, request, prompts, track, workers, device)
        return
    from medfm_rl.workflows.deploy.predict import predict

    loaded = load_model(model, device_here(workers, device), prompts)
    files = cases.find(images)
    if loaded.reward is None:
        typer.echo(f"{model} has no reward networks (only runs of `adapt` have): label maps only.", err=True)
    with at_work("predict", loaded, files, out, track, workers, device) as (progress, hands):
        problems = predict(loaded, files, out, progress, hands, over_time, clean_up, anatomy)
    for problem in problems:
        typer.echo(f"Left out: {problem}", err=True)
    typer.echo(f"Label maps, as .nii.gz: {out / 'labels'}")
    if problems:
        raise typer.Exit(USER_MISTAKE)


@app.command("score")
@with_case_choice
def score_command(
    quality_model: Annotated[
        Path, typer.Argument(help="Run folder of `adapt`, or judge of `train-judge`, with a quality.json.")
    ],
    images: Annotated[Path, typer.Option(help="Images.")],
    out: Annotated[Path, typer.Option(help="Folder for scores, reward maps, report.html and audit.jsonl.")],
    masks: Annotated[Path | None, typer.Option(help="Their masks, of the same names, whatever made them.")] = None,
    model: Annotated[Path | None, typer.Option(help="Or: a run or segmenter folder that makes the masks.")] = None,
    cases: CaseChoice = ALL_CASES,
    prompts: Prompts = None,
    echoprime: Annotated[
        Path | None,
        typer.Option(help="EchoPrime's view_classifier.pt: images that are no apical views of echo are referred."),
    ] = None,
    biomedclip: BiomedCLIPWeights = None,
    labels: MaskLabels = None,
    probabilities: Probabilities = None,
    policy: Policy = None,
    stream: Stream = None,
    scanner: Scanner = None,
    protocol: Protocol = None,
    site: Site = None,
    fail_on: Annotated[
        Literal["refer"] | None,
        typer.Option(help="Exit with code 3 where the policy refers a mask; 2 stays for those that were not assessed."),
    ] = None,
    track: Track = False,
    workers: WorkersOption = None,
    device: Device = "auto",
) -> None:
    """Assess masks without ground truth: predicted Dice with an interval, anatomy rules, shift, and a verdict.

    The verdict says what the evidence says of a mask, the guarantee what that is worth, and the action what the policy
    does with the mask.
    """
    from medfm_rl.data.mask_files import find_masks
    from medfm_rl.data.probabilities import find_probabilities
    from medfm_rl.errors import ConfigError
    from medfm_rl.quality.gates import Gates
    from medfm_rl.runs.finished import load_judge, load_model
    from medfm_rl.workflows.deploy.score import ScoreRequest, score

    if (masks is None) == (model is None):
        raise ConfigError("give either --masks, a folder of masks, or --model, a segmenter that makes them")
    if prompts is not None and model is None:
        raise ConfigError("--prompts are for a segmenter that makes the masks: they go with --model")
    require_masks(labels, masks)
    if probabilities is not None and masks is None:
        raise ConfigError("--probabilities are those of masks that are given: they go with --masks")
    own = model is not None and model.resolve() == quality_model.resolve()
    files = cases.find(images)
    here = device_here(workers, device)
    run = load_judge(quality_model, here, prompts if own else None)
    request = ScoreRequest(
        masks=None if masks is None else find_masks(masks, files),
        labels=labels,
        probabilities=None if probabilities is None else find_probabilities(probabilities, files),
        maker=None if own or model is None else load_model(model, here, prompts),
        gates=Gates(echoprime, biomedclip),
        policy=site_policy(policy),
        stream=stream_request(stream, scanner, protocol, site),
    )
    with at_work("score", run, files, out, track, workers, device) as (progress, hands):
        scoring = score(run, files, out, request, progress, hands)
    for problem in dict.fromkeys(scoring.problems.values()):
        typer.echo(f"Referred unseen: {problem}", err=True)
    print_scoring(scoring)
    typer.echo(f"Scores: {out / 'scores.csv'}\nReport: {out / 'report.html'}")
    if scoring.problems:
        typer.echo(f"{len(scoring.problems)} of {len(files)} cases could not be assessed.", err=True)
        raise typer.Exit(USER_MISTAKE)
    if fail_on == "refer" and scoring.acted("refer"):
        raise typer.Exit(REFERRED)


@app.command("correct")
@with_case_choice
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
    policy: Policy = None,
    stream: Stream = None,
    scanner: Scanner = None,
    protocol: Protocol = None,
    site: Site = None,
    cases: CaseChoice = ALL_CASES,
    prompts: Prompts = None,
    track: Track = False,
    workers: WorkersOption = None,
    device: Device = "auto",
) -> None:
    """Correct the cases with verdict `correct`: propose, keep what an independent verifier prefers, refer the rest."""
    from medfm_rl.data.mask_files import find_masks
    from medfm_rl.errors import ConfigError
    from medfm_rl.workflows.deploy.correct import CorrectRequest

    require_masks(labels, masks)
    for option, value in (("--policy", policy), ("--stream", stream)):
        if value is not None and (every or scores is not None):
            given = "--all" if every else f"--scores {scores}"
            raise ConfigError(
                f"{option} {value} is for scoring, and with {given} nothing is scored: leave it out, or give it to "
                "`medfm-rl score`"
            )
    settings = correction_settings(budget, method=method, objective=objective, optimise=optimise)
    files = cases.find(images)
    request = CorrectRequest(
        settings,
        scores,
        every,
        propose_only,
        None if masks is None else find_masks(masks, files),
        labels,
        site_policy(policy),
        stream_request(stream, scanner, protocol, site),
    )
    _correct("correct", model, files, out, request, prompts, track, workers, device)


def _correct(
    command: str,
    model: Path,
    files: Sequence[CaseFile],
    out: Path,
    request: CorrectRequest,
    prompts: Path | None,
    track: bool,
    workers: str | None,
    device: str,
) -> None:
    """Corrects as `correct` does, under the name of the command that asks for it, and prints what came of it."""
    from medfm_rl.runs.finished import load_run
    from medfm_rl.workflows.deploy.correct import correct

    run = load_run(model, device_here(workers, device), prompts)
    with at_work(command, run, files, out, track, workers, device) as (progress, hands):
        corrections = correct(run, files, out, request, progress, hands)
    print_corrections(corrections, out)
