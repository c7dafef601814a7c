"""The command that looks at a data set before anything is done with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfm_rl.cli.case_choice import ALL_CASES, CaseChoice, with_case_choice
from medfm_rl.cli.console import USER_MISTAKE, show_progress
from medfm_rl.cli.options import Device, MaskLabels, Prompts
from medfm_rl.cli.root import app


@app.command("check")
@with_case_choice
def check_command(
    data: Annotated[Path, typer.Argument(help="Data set: a folder in one of the layouts, with masks or without.")],
    masks: Annotated[
        Path | None, typer.Option(help="Masks of the same names in another folder, in place of those of the data set.")
    ] = None,
    segmenter: Annotated[
        Path | None,
        typer.Option(help="A segmenter folder of any kind, or run of `adapt`: does it take these images and masks?"),
    ] = None,
    labels: MaskLabels = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.html with pictures of the cases, and check.json; outside the data set."),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the result as JSON.")] = None,
    cases: CaseChoice = ALL_CASES,
    prompts: Prompts = None,
    device: Device = "cpu",
) -> None:
    """Say what is in a data set, what is refused and why, and what looks suspicious, before anything uses it.

    Every image and mask is read, one at a time. It ends with code 2 where something cannot be used, and with 0 where
    all can, however suspicious.
    """
    from rich.console import Console

    from medfm_rl.data.files import write_json
    from medfm_rl.errors import ConfigError
    from medfm_rl.reports.data_check import check_tables, summary
    from medfm_rl.workflows.check.check import CheckRequest, check
    from medfm_rl.workflows.check.outputs import PAGE_FILE

    if prompts is not None and segmenter is None:
        raise ConfigError("--prompts are for a segmenter that takes boxes: they go with --segmenter")
    settings = cases.settings(data)
    model = None
    if segmenter is not None:
        from medfm_rl.runs.finished import load_model

        model = load_model(segmenter, device, prompts)
    with show_progress() as progress:
        result = check(settings, CheckRequest(masks, labels, model, out), progress)
    if json_file is not None:
        write_json(json_file, result.to_json())
    console = Console()
    for table in check_tables(result):
        console.print(table)
        console.print()
    typer.echo(summary(result))
    if out is not None:
        typer.echo(f"Report: {out / PAGE_FILE}")
    elif result.findings and json_file is None:
        typer.echo("By which rule something is called suspicious, with all cases and pictures: give --out FOLDER")
    if not result.usable:
        raise typer.Exit(USER_MISTAKE)
