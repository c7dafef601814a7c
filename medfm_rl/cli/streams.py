"""Commands around streams: studies of one scanner and protocol, in the order they come."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from medfm_rl.cli.case_choice import ALL_CASES, CaseChoice, with_case_choice
from medfm_rl.cli.console import show_progress
from medfm_rl.cli.options import Device, MaskLabels, site_policy
from medfm_rl.cli.root import app

stream = typer.Typer(
    help="Streams: studies of one scanner and protocol in the order they come, tested for drift after each.",
    no_args_is_help=True,
)
app.add_typer(stream, name="stream")

StreamFile = Annotated[
    Path, typer.Argument(metavar="STREAM", help="The stream: a file of JSON lines, such as ge-apical.jsonl.")
]
Scores = Annotated[Path, typer.Option(help="scores.json of `medfm-rl score`.")]


@stream.command("add")
def add_command(
    path: StreamFile,
    scores: Scores,
    scanner: Annotated[str, typer.Option(help="Scanner; a stream is of one.")] = "unknown",
    protocol: Annotated[str, typer.Option(help="Protocol; a stream is of one.")] = "unknown",
    site: Annotated[str, typer.Option(help="Hospital or department.")] = "unknown",
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|clinic|research",
            help="Of a new stream: the policy of the site; its audit_share of the accepted masks is drawn for review.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Of a new stream: seed of the draws; without it nobody can foresee them. It is recorded."),
    ] = None,
) -> None:
    """Add the studies of a `score` call; a stream that is not there is made.

    What is in it already is not added twice, so a call can be repeated. A share of the accepted masks is drawn for
    review and named: have them reviewed, and add that to a feedback store by `feedback add --drawn audit`.
    """
    from medfm_rl.reports.streams import summary_lines
    from medfm_rl.runs.stream_history import read_stream
    from medfm_rl.seeding import unforeseen_seed
    from medfm_rl.workflows.streams import stream_scores, view_of

    with show_progress():
        share = site_policy(policy).audit_share
        added, repeated = stream_scores(
            path, scores, scanner, protocol, site, share, unforeseen_seed() if seed is None else seed
        )
        view = view_of(read_stream(path), None)
    count = sum(len(study.cases) for study in added)
    typer.echo(f"Added: {len(added)} studies with {count} masks; {repeated} were there already")
    drawn = [case.case for study in added for case in study.cases if case.audit]
    if drawn:
        typer.echo(f"Drawn for audit: {', '.join(drawn)}")
    for line in summary_lines(view):
        typer.echo(line)


@stream.command("review")
@with_case_choice
def review_command(
    path: StreamFile,
    run: Annotated[Path, typer.Option(help="The run whose quality model assessed the stream.")],
    feedback: Annotated[str, typer.Option(help="The feedback store.")],
    images: Annotated[Path, typer.Option(help="The images that were scored.")],
    scores: Scores,
    masks: Annotated[Path | None, typer.Option(help="Their masks, where they are not where they were scored.")] = None,
    labels: MaskLabels = None,
    cases: CaseChoice = ALL_CASES,
    device: Device = "auto",
) -> None:
    """Add what reviewers found of audit masks; it is tested for drift too, and can withdraw a promise."""
    from medfm_rl.data.mask_files import find_masks
    from medfm_rl.runs.finished import load_judge
    from medfm_rl.workflows.calibrate.audit import AuditRequest
    from medfm_rl.workflows.streams import stream_reviews

    files = cases.find(images)
    found = None if masks is None else find_masks(masks, files)
    request = AuditRequest(feedback, files, scores, found, labels)
    with show_progress() as progress:
        count = stream_reviews(path, load_judge(run, device), request, progress)
    typer.echo(f"Added: {count} reviews")


@stream.command("restart")
def restart_command(
    path: StreamFile,
    reason: Annotated[str, typer.Option(help="What was changed or found; it is kept with the stream.")],
) -> None:
    """Begin anew after an alarm: from here on the stream is compared with itself alone; its history is kept."""
    from medfm_rl.runs.stream_state import restart

    restart(path, reason)
    typer.echo(f"{path}: begins anew")


@app.command("monitor")
def monitor_command(
    streams: Annotated[list[Path], typer.Argument(metavar="STREAM...", help="Streams of `medfm-rl stream add`.")],
    page: Annotated[Path, typer.Option(help="The page to write.")] = Path("monitor.html"),
    run: Annotated[Path | None, typer.Option(help="A run, whose promise.json is compared with the streams.")] = None,
    prometheus: Annotated[
        Path | None, typer.Option(help="Also write Prometheus' text format, as for its textfile collector.")
    ] = None,
    mlflow: Annotated[str | None, typer.Option(help="Also record the numbers at this MLflow tracking URI.")] = None,
    fail_on: Annotated[
        Literal["alarm"] | None,
        typer.Option(help="Exit with code 3 where a stream has changed or a promise is withdrawn."),
    ] = None,
) -> None:
    """Show how streams stand: verdicts over time, drift, promises and audit, by scanner."""
    from medfm_rl.cli.console import REFERRED
    from medfm_rl.reports.streams import summary_lines
    from medfm_rl.workflows.streams import monitor

    with show_progress():
        views = monitor(streams, page, run, prometheus, mlflow)
    for view in views:
        for line in summary_lines(view):
            typer.echo(line)
    typer.echo(f"Page: {page}")
    bad = any(view.drift.alarm is not None or view.state.standing == "withdrawn" for view in views)
    if fail_on == "alarm" and bad:
        raise typer.Exit(REFERRED)
