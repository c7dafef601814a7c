"""The command that takes the better one of two masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfm_rl.cli.case_choice import ALL_CASES, CaseChoice, with_case_choice
from medfm_rl.cli.console import USER_MISTAKE
from medfm_rl.cli.options import (
    AdaptedRun,
    Device,
    MaskLabels,
    Prompts,
    Track,
    WorkersOption,
    at_work,
    device_here,
)
from medfm_rl.cli.root import app


@app.command("choose")
@with_case_choice
def choose_command(
    model: AdaptedRun,
    images: Annotated[Path, typer.Option(help="Images.")],
    masks: Annotated[
        Path, typer.Option(help="The masks in use, such as those of the segmenter before it was adapted.")
    ],
    out: Annotated[
        Path, typer.Option(help="Folder for labels/, choices.csv, audit.jsonl, and the scores in before/ and after/.")
    ],
    margin: Annotated[
        float,
        typer.Option(
            help="Predicted gain in mean Dice from which on the adapted segmenter's mask is taken. More: fewer cases "
            "become worse, and fewer gain."
        ),
    ] = 0.01,
    labels: MaskLabels = None,
    cases: CaseChoice = ALL_CASES,
    prompts: Prompts = None,
    track: Track = False,
    workers: WorkersOption = None,
    device: Device = "auto",
) -> None:
    """Take, case by case, the adapted segmenter's mask where it is predicted to be better, else the one in use.

    Adapting makes some masks worse; fewer of them are used this way. Both are scored by the run's quality model. Where
    it cannot say which is better, the mask in use stays.
    """
    from medfm_rl.data.mask_files import find_masks
    from medfm_rl.runs.finished import load_run
    from medfm_rl.workflows.deploy.choose import TABLE_FILE, ChooseRequest, choose

    files = cases.find(images)
    request = ChooseRequest(find_masks(masks, files), labels, margin)
    run = load_run(model, device_here(workers, device), prompts)
    with at_work("choose", run, files, out, track, workers, device) as (progress, hands):
        choices = choose(run, files, out, request, progress, hands)
    for problem in choices.problems.values():
        typer.echo(f"No mask: {problem}", err=True)
    typer.echo(f"{choices.count('after')} of the adapted segmenter, {choices.count('before')} as they were")
    typer.echo("Nothing is promised of this choice; the scores of both are in before/report.html and after/report.html")
    typer.echo(f"Choices: {out / TABLE_FILE}\nMasks: {out / 'labels'}")
    if choices.problems:
        raise typer.Exit(USER_MISTAKE)
