"""Commands that make, adapt, measure and hand over segmenters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from medfm_rl.cli.case_choice import ALL_CASES, CaseChoice, with_case_choice
from medfm_rl.cli.console import USER_MISTAKE, print_comparison, print_scoring, show_progress
from medfm_rl.cli.options import (
    Anatomy,
    CleanUp,
    ConfigFile,
    Device,
    ModelFolder,
    OverTime,
    Prompts,
)
from medfm_rl.cli.root import app
from medfm_rl.cli.side_by_side import start_side_by_side

"""Below so many patients, `evaluate` warns that its figures say little."""


def _list_kinds(wanted: bool) -> None:
    if wanted:
        from medfm_rl.settings.kinds import kind_lines

        typer.echo("\n".join(kind_lines()))
        raise typer.Exit


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("adapt.yaml"),
    kind: Annotated[Literal["adapt", "train-source"], typer.Option(help="The command that it is for.")] = "adapt",
    segmenter: Annotated[str, typer.Option(help="Kind of the segmenter; --kinds lists them.")] = "torch",
    kinds: Annotated[
        bool, typer.Option("--kinds", is_eager=True, callback=_list_kinds, help="List the kinds of segmenter and exit.")
    ] = False,
) -> None:
    """Write a commented settings file to start from."""
    del kinds  # Its callback has answered.
    from medfm_rl.data.files import write_text
    from medfm_rl.errors import ConfigError
    from medfm_rl.settings import AdaptConfig, TrainSourceConfig
    from medfm_rl.settings.files import commented_config
    from medfm_rl.settings.kinds import find_settings, kinds_in_words

    if path.exists():
        raise ConfigError(f"{path}: already exists; give another name")
    if find_settings(segmenter) is None:
        raise ConfigError(f"--segmenter {segmenter}: must be one of {kinds_in_words()}")
    if kind == "adapt":
        values: dict[str, Any] = {
            "segmenter": {"kind": segmenter, "folder": "models/source"},
            "target": {"path": "data/target"},
            "source": {"path": "data/source"},
            "evaluation": None,
            "output": "runs/adapted",
        }
        write_text(path, commented_config(AdaptConfig, values))
    else:
        if segmenter != "torch":
            raise ConfigError(f"--segmenter {segmenter}: goes with --kind adapt; train-source trains a UNet (torch)")
        values = {
            "data": {"path": "data/source"},
            "output": "models/source",
        }
        write_text(path, commented_config(TrainSourceConfig, values))
    typer.echo(f"Wrote {path}. Set the paths, then: medfm-rl {kind} {path}")


@app.command("train-source")
def train_source_command(config: ConfigFile) -> None:
    """Train a segmenter on labelled source data, where there is no model yet.

    Some patients are held out: the weights that do best on them are kept, and their Dice is shown while it runs and in
    OUTPUT.training/report.html. The same command again goes on where an interrupted one was.
    """
    from medfm_rl.settings import TrainSourceConfig
    from medfm_rl.settings.files import load_config

    settings = load_config(config, TrainSourceConfig)
    from medfm_rl.workflows.train.source import read_record, train_source, training_page

    with show_progress() as progress:
        train_source(settings, progress)
    typer.echo(read_record(settings.output)["training"]["summary"])
    typer.echo(f"Segmenter: {settings.output}\nReport: {training_page(settings.output)}")


@app.command("adapt")
def adapt_command(
    config: ConfigFile,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            help="How long a new run may take on this machine: iterations, PPO, shape prior, collection, reward "
            "networks and fine-tuning are lowered, in that order and as far as needed, and the log says to what."
        ),
    ] = None,
    go_on_from: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="An adapted run to go on from in a new output folder, when more feedback has come in: its D_R, reward "
            "networks and result are taken over. The setting `continues` says the same.",
        ),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Run in so many processes on this machine, one for each GPU, or one for each few cores with `device: "
            "cpu`. The result is that of one process but for rounding, and a run can be resumed with another number. "
            "Several machines: torchrun -m medfm_rl adapt.",
        ),
    ] = None,
) -> None:
    """Adapt a segmenter to a new domain without target labels: collect, reward, PPO, select, export.

    Before it starts it measures a few steps and says how many minutes and how much memory the run will need. Losses,
    rewards and scores are shown while it runs, and kept in log.txt in the output folder.
    """
    from medfm_rl.settings import AdaptConfig
    from medfm_rl.settings.files import load_config

    settings = load_config(config, AdaptConfig)
    if go_on_from is not None:
        settings = settings.model_copy(update={"continues": go_on_from})
    if devices is not None and start_side_by_side(
        ["adapt", str(config), *_options(resume, max_minutes, go_on_from)], devices
    ):
        return
    from medfm_rl.data.layouts import is_simulated
    from medfm_rl.networks import choose_device
    from medfm_rl.processes.joining import joined_team
    from medfm_rl.workflows.adapt.final_report import read_decision, report_run
    from medfm_rl.workflows.adapt.forecast.look_ahead import settings_of_run
    from medfm_rl.workflows.adapt.loop import adapt

    with joined_team(choose_device(settings.device)) as team:
        if not team.leads:
            adapt(settings, resume, team=team)
            return
        with show_progress() as progress:
            run = adapt(settings, resume, progress, max_minutes, team)
            settings = settings_of_run(settings)
            comparison = report_run(run, settings, progress)
    if comparison is not None and settings.evaluation is not None:
        simulated = " (SIMULATED DATA)" if is_simulated(settings.evaluation.path) else ""
        print_comparison(comparison.rows(), f"Dice on {settings.evaluation.path}{simulated}")
    typer.echo(read_decision(run))
    typer.echo(f"Adapted segmenter: {run.model}\nReport: {run.report}")


def _options(resume: bool, max_minutes: float | None, go_on_from: Path | None) -> list[str]:
    """Options of `adapt` as they are written on a command line."""
    return [
        *(["--resume"] if resume else []),
        *([] if max_minutes is None else ["--max-minutes", repr(max_minutes)]),
        *([] if go_on_from is None else ["--from", str(go_on_from)]),
    ]


@app.command("evaluate")
@with_case_choice
def evaluate_command(
    model: ModelFolder,
    data: Annotated[Path, typer.Argument(help="Labelled data set.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for scores.csv and summary.json; where not given, `evaluation` in the current folder, or "
            "`evaluation-2` and so on where there are results."
        ),
    ] = None,
    against: Annotated[Path | None, typer.Option(help="A second model to compare with, on the same cases.")] = None,
    cases: CaseChoice = ALL_CASES,
    anatomy: Anatomy = None,
    prompts: Prompts = None,
    over_time: OverTime = False,
    clean_up: CleanUp = False,
    device: Device = "auto",
) -> None:
    """Score a model against ground truth: Dice, HD95, ASSD and validity, per case and per structure."""
    from rich.console import Console

    from medfm_rl.data.layouts import describe_patients, is_simulated, with_masks
    from medfm_rl.metrics.bootstrap import FEW_PATIENTS
    from medfm_rl.reports.tables import summary_table
    from medfm_rl.runs.compared import load_compared
    from medfm_rl.runs.finished import load_model
    from medfm_rl.workflows.evaluate.evaluate import evaluate
    from medfm_rl.workflows.evaluate.evaluation import free_folder

    files = cases.find(data)
    place = free_folder(Path("evaluation")) if out is None else out
    if against is None:
        model_, other = load_model(model, device, prompts), None
    else:
        model_, other = load_compared(model, against, device, prompts)
    with show_progress() as progress:
        measured = evaluate(model_, files, place, other, anatomy, progress, over_time, clean_up)
    simulated = " (SIMULATED DATA)" if is_simulated(data) else ""
    Console().print(summary_table(measured.evaluation.summary, f"{model} on {data}{simulated}"))
    if measured.comparison is not None:
        print_comparison(
            measured.comparison.rows(), f"{against} and {model} on {data}{simulated}", (str(against), str(model))
        )
    problems = measured.evaluation.problems
    scored = [file for file in with_masks(files) if file.case_id not in problems]
    typer.echo(f"{len(scored)} {'case' if len(scored) == 1 else 'cases'}; {describe_patients(scored)}")
    if (patients := len({file.patient_id for file in scored})) < FEW_PATIENTS:
        typer.echo(
            f"Few patients ({patients}): other people may give quite other figures; measure on {FEW_PATIENTS} or more",
            err=True,
        )
    for problem in dict.fromkeys(problems.values()):
        typer.echo(f"Left out: {problem}", err=True)
    typer.echo(f"Scores: {place / 'scores.csv'}, {place / 'summary.json'}")
    if problems:
        raise typer.Exit(USER_MISTAKE)


@app.command("export")
def export_command(
    run: Annotated[Path, typer.Argument(help="Run folder of `adapt`.")],
    to: Annotated[Path, typer.Option(help="Folder to write; it must not exist or be empty. With --delta: a file.")],
    delta: Annotated[
        bool, typer.Option("--delta", help="Only what changed, as a .safetensors file for `medfm-rl apply-delta`.")
    ] = False,
    candidate: Annotated[
        str | None,
        typer.Option(help="Another policy of the run than the one that was returned: a name from the report's table."),
    ] = None,
) -> None:
    """Write the adapted segmenter of a run in its own format, for its own tool."""
    from medfm_rl.errors import ConfigError
    from medfm_rl.workflows.export import export_candidate, export_delta, export_model

    if candidate is not None:
        if delta:
            raise ConfigError("--candidate and --delta: changes are those of the policy that was returned; give one")
        written = export_candidate(run, candidate, to)
        typer.echo(f"Candidate {candidate}: {to} ({written.kind})")
        return
    if delta:
        if to.suffix != ".safetensors" or to.exists():
            raise ConfigError(f"--to {to}: must be the name of a new .safetensors file")
        export_delta(run, to)
        typer.echo(f"Changes: {to} ({to.stat().st_size / 1e6:.1f} MB)")
        return
    segmenter = export_model(run, to)
    typer.echo(f"Adapted segmenter: {to} ({segmenter.kind})")


@app.command("apply-delta")
def apply_delta_command(
    segmenter: Annotated[Path, typer.Argument(help="Folder of the segmenter that was adapted.")],
    delta: Annotated[Path, typer.Argument(help="File of changes of `medfm-rl export --delta`.")],
    to: Annotated[Path, typer.Option(help="Folder to write; it must not exist or be empty.")],
) -> None:
    """Put the changes of a run onto the segmenter that it adapted, and write the adapted one."""
    from medfm_rl.workflows.export import apply_delta_file

    written = apply_delta_file(segmenter, delta, to)
    typer.echo(f"Adapted segmenter: {to} ({written.kind})")


@app.command("inspect")
@with_case_choice
def inspect_command(
    folder: Annotated[
        Path,
        typer.Argument(
            help="Segmenter folder, run folder of `adapt`, or settings file of `adapt`, whose segmenter is meant."
        ),
    ],
    images: Annotated[
        Path | None,
        typer.Option(
            help="Images to show it: a folder in one of the layouts. It warns where their values, as preprocessing "
            "leaves them, can hardly be those that the network was trained on."
        ),
    ] = None,
    cases: CaseChoice = ALL_CASES,
    device: Device = "auto",
) -> None:
    """Say what a segmenter is, whether it can be adapted, and if not why."""
    from rich.console import Console
    from rich.table import Table

    from medfm_rl.networks import choose_device
    from medfm_rl.workflows.inspection import inspect_model

    cases.require_folder("--images", images)
    with show_progress() as progress:
        shown = None if images is None else cases.settings(images)
        summary = inspect_model(folder, choose_device(device), progress, shown)
    table = Table(show_header=False, box=None)
    for name, value in summary.rows.items():
        table.add_row(name, value)
    Console().print(table)
    for doubt in summary.doubts:
        typer.echo(f"Warning: {doubt}", err=True)
    for obstacle in summary.obstacles:
        typer.echo(f"It cannot be adapted: {obstacle}", err=True)
    if summary.obstacles:
        raise typer.Exit(USER_MISTAKE)
    typer.echo("It can be adapted.")


@app.command("simulate-vendor")
@with_case_choice
def simulate_vendor_command(
    data: Annotated[Path, typer.Argument(metavar="IN", help="Echo frames: a folder or data set.")],
    out: Annotated[Path, typer.Argument(help="Folder for images/ and labels/.")],
    vendor: Annotated[str, typer.Option(help="cart, portable, handheld or vintage.")] = "handheld",
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; one per core where not given.")] = None,
    cases: CaseChoice = ALL_CASES,
) -> None:
    """Show a data set of echo as another (simulated) vendor would; masks are kept."""
    from medfm_rl.data.ultrasound import vendors
    from medfm_rl.data.ultrasound.resimulate import resimulate_dataset

    profile = vendors.vendor(vendor)
    files = cases.find(data)
    with show_progress() as progress:
        problems = resimulate_dataset(
            files, out, profile, seed, workers, lambda done, total: progress(f"simulating {vendor}", done, total)
        )
    for problem in problems:
        typer.echo(f"Left out: {problem}", err=True)
    typer.echo(f"Simulated data: {out}")
    if problems:
        raise typer.Exit(USER_MISTAKE)


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder of the demo.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
) -> None:
    """Run the whole story on simulated echo: train on vendor A, adapt to B, evaluate, report, score, measure clips."""
    from medfm_rl.data.locks import alone_making
    from medfm_rl.reports.tables import verdict
    from medfm_rl.workflows.demo import CLIPS_FOLDER, QUALITY_FOLDER, run_demo

    with show_progress() as progress, alone_making(out):
        result = run_demo(out, seed, progress)
    comparison = result.comparison
    print_comparison(comparison.rows(), "SIMULATED DATA: Dice on held-out patients of vendor B")
    typer.echo(f"Simulated data. {verdict(comparison.rows())}\nReport: {out / 'report.html'}\n")
    typer.echo("Quality of the adapted model's masks of these images, without their ground truth:")
    print_scoring(result.scoring)
    typer.echo(f"Quality page: {out / QUALITY_FOLDER / 'report.html'}")
    typer.echo(f"Simulated clips, measured: {out / CLIPS_FOLDER / 'measures' / 'report.html'}")
