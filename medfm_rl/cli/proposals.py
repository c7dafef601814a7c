"""The command that says which patients to review next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfm_rl.choices import ProposalWay
from medfm_rl.cli.case_choice import ALL_CASES, CaseChoice, with_case_choice
from medfm_rl.cli.console import USER_MISTAKE, show_progress
from medfm_rl.cli.options import AdaptedRun, Device, Prompts, Track
from medfm_rl.cli.root import app

if TYPE_CHECKING:
    from medfm_rl.workflows.propose.proposed import Proposals


@app.command("propose")
@with_case_choice
def propose_command(
    run: AdaptedRun,
    images: Annotated[Path, typer.Option(help="Images of patients who could be reviewed.")],
    out: Annotated[Path, typer.Option(help="Folder for the lists, a page with pictures, and the masks to review.")],
    budget: Annotated[int, typer.Option(min=0, help="Patients to learn from.")] = 8,
    audit: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Patients to draw at random, for promises; by default 9, for an interval of 90 % needs no fewer.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every draw; it is recorded.")] = 0,
    by: Annotated[
        ProposalWay,
        typer.Option(
            help="How patients to learn from are chosen: gain (predicted error and disagreement of the networks, times "
            "how new the patient looks), clasp (by structure, at random in proportion to the error) or random."
        ),
    ] = "gain",
    feedback: Annotated[
        str | None, typer.Option(help="Feedback store, a file or URL; patients who were reviewed are left out.")
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(help="scores.json of `medfm-rl score` with this run: its masks and predictions are taken."),
    ] = None,
    cases: CaseChoice = ALL_CASES,
    prompts: Prompts = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
    track: Track = False,
    device: Device = "auto",
) -> None:
    """Propose patients to review: some drawn at random, for promises, and others chosen to learn from.

    The audit sample is drawn first, uniformly over all patients, so that it is honest; the informative patients are
    chosen from the others. The two lists share nobody, and what comes back of them goes into the feedback store apart.
    """
    from medfm_rl.quality.proposals import DEFAULT_AUDIT
    from medfm_rl.runs.finished import load_run
    from medfm_rl.runs.tracked_call import tracked_call
    from medfm_rl.workflows.propose.propose import propose
    from medfm_rl.workflows.propose.request import ProposeRequest

    request = ProposeRequest(budget, DEFAULT_AUDIT if audit is None else audit, seed, by, feedback, scores)
    files = cases.find(images)
    loaded = load_run(run, device, prompts)
    with show_progress() as progress, tracked_call(track, loaded, "propose", files, out, progress):
        proposals = propose(loaded, files, out, request, progress)
    for problem in dict.fromkeys(proposals.problems.values()):
        typer.echo(f"Left out: {problem}", err=True)
    if as_json:
        import json

        from medfm_rl.workflows.propose.outputs import as_json as in_json

        typer.echo(json.dumps(in_json(proposals, loaded), indent=2))
    else:
        chosen = [text for name, values in cases.given().items() for value in values for text in (name, value)]
        _print(proposals, out)
        _print_next(proposals, run, ["--images", str(images), *chosen], feedback)
    if proposals.problems:
        raise typer.Exit(USER_MISTAKE)


def _print(proposals: Proposals, out: Path) -> None:
    """Prints both lists, and what has to be known of them."""
    from rich.console import Console

    from medfm_rl.reports.proposals import proposals_table
    from medfm_rl.workflows.propose.outputs import AUDIT_TABLE, INFORMATIVE_TABLE, PAGE_FILE, page_lists

    for each in page_lists(out, proposals):
        if each.patients:
            Console().print(proposals_table(each.heading, each.patients))
            typer.echo(each.note)
    for note in proposals.notes:
        typer.echo(f"Note: {note}.")
    typer.echo(f"Lists: {out / AUDIT_TABLE}, {out / INFORMATIVE_TABLE}\nPage: {out / PAGE_FILE}")


def _print_next(proposals: Proposals, run: Path, same_images: list[str], feedback: str | None) -> None:
    """Prints the commands by which what comes back goes into the store."""
    lists = {"audit": proposals.audit, "informative": proposals.informative}
    typer.echo("Have the masks of each list corrected into a folder of its own; then:")
    for drawn, patients in lists.items():
        folders = {str(mask.parent) for patient in patients for mask in patient.masks}
        for folder in sorted(folders):
            command = ["medfm-rl", "feedback", "add", feedback or "feedback.sqlite", "--run", str(run), *same_images]
            command += ["--masks", folder, "--corrected", f"corrected-{drawn}", "--reviewer", "r01", "--drawn", drawn]
            typer.echo(f"  {shlex.join(command)}")
