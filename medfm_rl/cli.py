"""The command line: parse, call, print.

Only light modules are imported at the top, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from medfm_rl import __version__
from medfm_rl.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from medfm_rl.pipeline.correct import Corrections
    from medfm_rl.pipeline.images import Progress
    from medfm_rl.settings import CorrectionSettings, DataSettings

app = typer.Typer(
    help="Adapt medical segmenters to new domains without labels, and control their quality.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Model = TypeVar("Model", bound="BaseModel")

_OPTIONS = {"seconds": "budget"}
"""Options whose name is not that of the setting."""
_USER_MISTAKE = 2
_REFERRED = 3
_INTERRUPTED = 130

ConfigFile = Annotated[Path, typer.Argument(help="YAML file; `medfm-rl init` writes one to start from.")]
Layout = Annotated[str, typer.Option(help="How the data is laid out: auto, nnunet, camus or folder.")]
PatientPattern = Annotated[
    str | None,
    typer.Option(
        help="Regular expression whose first group, found in the name of a case, is its patient, such as "
        "'^([A-Z]+_[0-9]+)'. Without one the layout decides: in most the part of the name before the first underscore."
    ),
]
Split = Annotated[str, typer.Option(help="Which part of an nnU-Net data set: train, test or all.")]
Where = Annotated[
    list[str] | None,
    typer.Option(help="Keep only the cases with this tag, such as view=4CH in CAMUS; can be given several times."),
]
Anatomy = Annotated[
    str | None,
    typer.Option(
        help="Validity rules: generic, complete, echo_apical, cardiac_short_axis, lungs, or a YAML file. Without one "
        "those of the run, and generic for a segmenter folder."
    ),
]

Prompts = Annotated[
    Path | None,
    typer.Option(
        help="For a promptable segmenter: boxes by case and structure (CSV or JSON), or a folder of masks whose boxes "
        "are taken."
    ),
]
Device = Annotated[str, typer.Option(help="Where the networks run: auto (cuda, then mps, then cpu), cpu, cuda or mps.")]
BiomedCLIPWeights = Annotated[
    Path | None,
    typer.Option(
        "--biomedclip",
        help="BiomedCLIP's open_clip_pytorch_model.bin: images unlike those of the calibration to it are referred. "
        "Needed both to calibrate and to score.",
    ),
]
MaskLabels = Annotated[
    str | None,
    typer.Option(
        help="The integers in the masks by structure, such as LV=255,MYO=100, where they are not those of the run; "
        "structures that are not named are in none of them."
    ),
]
Track = Annotated[
    bool, typer.Option("--track", help="Record the call in MLflow, within the record of the run that it uses.")
]
AllowOverlap = Annotated[
    bool,
    typer.Option(
        "--allow-overlap",
        help="Also take images of the run's target, where they themselves are what will be scored, and patients of the "
        "same name who are other people. Images that the run saw with labels are refused all the same.",
    ),
]
CorrectionObjective = Annotated[
    str | None, typer.Option(help="With --method optimise, how the reward is followed: reward (its gradient) or ppo.")
]
CorrectionScope = Annotated[
    str | None, typer.Option(help="With --method optimise, what changes for a case: logits, norm, decoder or all.")
]
CorrectionMethod = Annotated[
    str,
    typer.Option(
        help="How a better mask is sought: views, optimise, none, tta, tent, intent, memo, components or shape-prior."
    ),
]


def main() -> None:
    """Entry point: errors a person can act on end with code 2 and without a traceback."""
    try:
        app()
    except (UserError, FloatingPointError) as error:
        # FloatingPointError: a training that diverged; the message names the setting to lower.
        _stop(f"Error: {error}", _USER_MISTAKE)
    except KeyboardInterrupt:
        _stop(
            "Interrupted. What was finished is kept; run the same command again (adapt: with --resume).", _INTERRUPTED
        )


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("adapt.yaml"),
    kind: Annotated[str, typer.Option(help="adapt, or train-source.")] = "adapt",
    segmenter: Annotated[
        str,
        typer.Option(help="torch, nnunet, totalsegmentator, monai-bundle, litemedsam, medsam, medsam2 or biomedparse."),
    ] = "torch",
) -> None:
    """Write a commented settings file to start from."""
    from medfm_rl.data.files import write_text
    from medfm_rl.errors import ConfigError
    from medfm_rl.pipeline.config_file import commented_config
    from medfm_rl.settings import SEGMENTER_KINDS, AdaptConfig, TrainSourceConfig

    if path.exists():
        raise ConfigError(f"{path}: already exists; give another name")
    if segmenter not in SEGMENTER_KINDS:
        raise ConfigError(f"--segmenter {segmenter}: must be one of {', '.join(SEGMENTER_KINDS)}")
    if kind == "adapt":
        values: dict[str, Any] = {
            "segmenter": {"kind": segmenter, "folder": "models/source"},
            "target": {"path": "data/target"},
            "source": {"path": "data/source"},
            "evaluation": None,
            "output": "runs/adapted",
        }
        write_text(path, commented_config(AdaptConfig, values))
    elif kind == "train-source":
        if segmenter != "torch":
            raise ConfigError(f"--segmenter {segmenter}: goes with --kind adapt; train-source trains a UNet (torch)")
        values = {
            "data": {"path": "data/source"},
            "structures": {"LV": 1, "MYO": 2, "LA": 3},
            "output": "models/source",
        }
        write_text(path, commented_config(TrainSourceConfig, values))
    else:
        raise ConfigError(f"--kind {kind}: must be adapt or train-source")
    typer.echo(f"Wrote {path}. Set the paths, then: medfm-rl {kind} {path}")


@app.command("train-source")
def train_source_command(config: ConfigFile) -> None:
    """Train a segmenter on labelled source data, for who has no model yet."""
    from medfm_rl.pipeline.config_file import load_config
    from medfm_rl.settings import TrainSourceConfig

    settings = load_config(config, TrainSourceConfig)
    from medfm_rl.pipeline.train_source import train_source

    with _progress() as progress:
        train_source(settings, progress)
    typer.echo(f"Segmenter: {settings.output}")


@app.command("adapt")
def adapt_command(
    config: ConfigFile,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
) -> None:
    """Adapt a segmenter to a new domain without target labels: collect, reward, PPO, select, export."""
    from medfm_rl.pipeline.config_file import load_config
    from medfm_rl.settings import AdaptConfig

    settings = load_config(config, AdaptConfig)
    from medfm_rl.data.layouts import is_simulated
    from medfm_rl.pipeline.adapt import adapt
    from medfm_rl.pipeline.finish import finish

    with _progress() as progress:
        run = adapt(settings, resume, progress)
        comparison = finish(run, settings, progress)
    if comparison is not None and settings.evaluation is not None:
        simulated = " (SIMULATED DATA)" if is_simulated(settings.evaluation.path) else ""
        _print_comparison(comparison.rows(), f"Dice on {settings.evaluation.path}{simulated}")
    typer.echo(f"Adapted segmenter: {run.model}\nReport: {run.report}")


@app.command("evaluate")
def evaluate_command(
    model: Annotated[Path, typer.Argument(help="Run folder of `adapt`, or segmenter folder.")],
    data: Annotated[Path, typer.Argument(help="Labelled data set.")],
    out: Annotated[Path, typer.Option(help="Folder for scores.csv and summary.json.")] = Path("evaluation"),
    against: Annotated[Path | None, typer.Option(help="A second model to compare with, on the same cases.")] = None,
    layout: Layout = "auto",
    patient_pattern: PatientPattern = None,
    split: Split = "all",
    where: Where = None,
    anatomy: Anatomy = None,
    prompts: Prompts = None,
    device: Device = "auto",
) -> None:
    """Score a model against ground truth: Dice, HD95, ASSD and validity, per case and per structure."""
    from rich.console import Console

    from medfm_rl.data.layouts import find_cases, is_simulated
    from medfm_rl.metrics.validity import load_anatomy
    from medfm_rl.pipeline.evaluate import evaluate, refuse_evaluated, write_evaluation
    from medfm_rl.pipeline.finish import compare_models
    from medfm_rl.pipeline.models import choose_device, load_compared, load_model, own_anatomy
    from medfm_rl.report import summary_table

    chosen = choose_device(device)
    refuse_evaluated(out)
    files = find_cases(_data_settings(data, layout, patient_pattern, split, where))
    rules = own_anatomy(model) if anatomy is None else anatomy
    with _progress() as progress:
        if against is None:
            segmenter = load_model(model, prompts).to(chosen).segmenter
            evaluation = evaluate(segmenter, files, load_anatomy(rules, segmenter.schema), progress)
            write_evaluation(out, {str(model): evaluation}, None)
        else:
            new, old = (found.to(chosen).segmenter for found in load_compared(model, against, prompts))
            comparison = compare_models(old, new, files, rules, progress)
            evaluation = comparison.after
            write_evaluation(
                out, {str(against): comparison.before, str(model): comparison.after}, comparison.differences
            )
    simulated = " (SIMULATED DATA)" if is_simulated(data) else ""
    Console().print(summary_table(evaluation.summary, f"{model} on {data}{simulated}"))
    if against is not None:
        _print_comparison(comparison.rows(), f"{against} (source) and {model} (adapted){simulated}")
    typer.echo(f"Scores: {out / 'scores.csv'}, {out / 'summary.json'}")


@app.command("predict")
def predict_command(
    model: Annotated[Path, typer.Argument(help="Run folder of `adapt`, or segmenter folder.")],
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
    from medfm_rl.pipeline.evaluate import predict
    from medfm_rl.pipeline.identity import identify
    from medfm_rl.pipeline.models import choose_device, load_model
    from medfm_rl.pipeline.recorded import recorded

    if not correct and (method is not None or budget is not None):
        raise ConfigError("--method and --budget are for --correct, and go with it")
    if correct:
        from medfm_rl.pipeline.correct import correct as correct_masks

        settings = _correction_settings(budget, method=method or "views")
        files = find_cases(_data_settings(images, layout, patient_pattern))
        with _progress() as progress, recorded(track, model, "predict", files, out, progress):
            corrections = correct_masks(model, files, None, out, settings, False, False, device, progress, prompts)
        _print_corrections(corrections, out)
        return
    loaded = load_model(model, prompts).to(choose_device(device))
    if loaded.reward is None:
        typer.echo(f"{model} has no reward networks (only runs of `adapt` have): label maps only.", err=True)
    files = find_cases(_data_settings(images, layout, patient_pattern))
    with _progress() as progress, recorded(track, model, "predict", files, out, progress):
        problems = predict(loaded, files, out, progress, identify(model))
    for problem in problems:
        typer.echo(f"Left out: {problem}", err=True)
    typer.echo(f"Label maps: {out / 'labels'}")
    if problems:
        raise typer.Exit(_USER_MISTAKE)


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
    from medfm_rl.pipeline.identity import identify
    from medfm_rl.pipeline.models import load_model
    from medfm_rl.pipeline.recorded import recorded
    from medfm_rl.pipeline.score import Gates, find_masks, score

    if (masks is None) == (model is None):
        raise ConfigError("give either --masks, a folder of masks, or --model, a segmenter that makes them")
    if prompts is not None and model is None:
        raise ConfigError("--prompts are for a segmenter that makes the masks: they go with --model")
    _require_masks(labels, masks)
    if fail_on not in (None, "refer"):
        raise ConfigError(f"--fail-on {fail_on}: must be refer")
    files = find_cases(_data_settings(images, layout, patient_pattern))
    found = None if masks is None else find_masks(masks, files)
    own = model is not None and model.resolve() == quality_model.resolve()
    segmenter, made_by = None, None
    if model is not None and not own:
        segmenter, made_by = load_model(model, prompts).segmenter, identify(model).model_hash
    with _progress() as progress, recorded(track, quality_model, "score", files, out, progress):
        scoring = score(
            quality_model,
            files,
            found,
            segmenter,
            out,
            device,
            progress,
            Gates(echoprime, biomedclip),
            prompts if own else None,
            accept_untested,
            labels,
            made_by,
        )
    for problem in scoring.problems.values():
        typer.echo(f"Referred unseen: {problem}", err=True)
    typer.echo(f"Batch: {scoring.batch.state}; {scoring.batch.meaning}")
    for guarantee in scoring.batch.guarantees:
        typer.echo(f"{guarantee.status}: {guarantee.promise} ({guarantee.reason})")
    typer.echo(", ".join(f"{verdict} {scoring.count(verdict)}" for verdict in ("accept", "correct", "refer")))
    typer.echo(f"Scores: {out / 'scores.csv'}\nReport: {out / 'report.html'}")
    if scoring.problems:
        typer.echo(f"{len(scoring.problems)} of {len(files)} cases could not be judged.", err=True)
        raise typer.Exit(_USER_MISTAKE)
    if fail_on == "refer" and scoring.count("refer"):
        raise typer.Exit(_REFERRED)


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
    budget: Annotated[float | None, typer.Option(help="Seconds for one case; 10 where not given.")] = None,
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
    from medfm_rl.pipeline.correct import correct
    from medfm_rl.pipeline.recorded import recorded
    from medfm_rl.pipeline.score import find_masks

    _require_masks(labels, masks)
    settings = _correction_settings(budget, method=method, objective=objective, optimise=optimise)
    files = find_cases(_data_settings(images, layout, patient_pattern))
    given = None if masks is None else find_masks(masks, files)
    with _progress() as progress, recorded(track, model, "correct", files, out, progress):
        corrections = correct(
            model, files, scores, out, settings, propose_only, every, device, progress, prompts, given, labels
        )
    _print_corrections(corrections, out)


@app.command("calibrate")
def calibrate_command(
    run: Annotated[Path, typer.Argument(metavar="ADAPTED_RUN", help="Finished run folder of `adapt`.")],
    labelled: Annotated[Path, typer.Option(help="Labelled cases that the run has not learned from.")],
    masks: Annotated[
        Path | None, typer.Option(help="Masks to be judged, where another segmenter makes them; else the run's own.")
    ] = None,
    labels: MaskLabels = None,
    dice: Annotated[float, typer.Option(help="Mean Dice below which a mask is bad.")] = 0.8,
    alpha: Annotated[float, typer.Option(help="Largest share of bad masks among the accepted.")] = 0.1,
    confidence: Annotated[float, typer.Option(help="Of the statement about accepted masks.")] = 0.9,
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
    from medfm_rl.pipeline.calibrate import calibrate
    from medfm_rl.pipeline.run_folder import RunFolder
    from medfm_rl.pipeline.score import find_masks
    from medfm_rl.quality.model import Targets

    if prompts is not None and masks is not None:
        raise ConfigError("--prompts and --masks do not go together: where masks are given, none are made")
    _require_masks(labels, masks)
    targets = _from_options(Targets, coverage=coverage, dice=dice, alpha=alpha, confidence=confidence)
    folder = RunFolder(run)
    folder.require_model()
    files = find_cases(_data_settings(labelled, layout, patient_pattern, split, where))
    found = None if masks is None else find_masks(masks, files)
    with _progress() as progress:
        model = calibrate(folder, files, found, targets, device, progress, prompts, biomedclip, labels, allow_overlap)
    from rich.console import Console

    from medfm_rl.quality_page import calibration_table

    Console().print(calibration_table(model))
    kept = "none" if model.accept_threshold is None else f"predicted mean Dice of at least {model.accept_threshold:.3f}"
    typer.echo(f"Accept: {kept}; {model.accept_reason}\nQuality model: {folder.quality}")


@app.command("calibrate-correction")
def calibrate_correction_command(
    run: Annotated[Path, typer.Argument(metavar="ADAPTED_RUN", help="Finished run folder of `adapt`.")],
    labelled: Annotated[Path, typer.Option(help="Labelled cases that the run has not learned from.")],
    alpha: Annotated[float, typer.Option(help="Largest share of harmful among the accepted corrections.")] = 0.1,
    confidence: Annotated[float, typer.Option(help="Of that statement.")] = 0.9,
    budget: Annotated[float | None, typer.Option(help="Seconds for one case; 10 where not given.")] = None,
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
    from medfm_rl.data.layouts import find_cases
    from medfm_rl.pipeline.calibrate_correction import calibrate_correction
    from medfm_rl.pipeline.run_folder import RunFolder
    from medfm_rl.tto.acceptance import HarmTarget

    target = _from_options(HarmTarget, alpha=alpha, confidence=confidence)
    settings = _correction_settings(budget, method=method, objective=objective, optimise=optimise)
    folder, files = RunFolder(run), find_cases(_data_settings(labelled, layout, patient_pattern, split, where))
    with _progress() as progress:
        found = calibrate_correction(folder, files, target, settings, device, progress, prompts, allow_overlap)
    margin = "none" if found.margin is None else f"{found.margin:g}"
    typer.echo(f"Margin: {margin}; {found.reason}\nAcceptance: {folder.correction}")


@app.command("export")
def export_command(
    run: Annotated[Path, typer.Argument(help="Run folder of `adapt`.")],
    to: Annotated[Path, typer.Option(help="Folder to write; it must not exist or be empty. With --delta: a file.")],
    delta: Annotated[
        bool, typer.Option("--delta", help="Only what changed, as a .safetensors file for `medfm-rl apply-delta`.")
    ] = False,
) -> None:
    """Write the adapted segmenter of a run in its own format, for its own tool."""
    from medfm_rl.errors import ConfigError
    from medfm_rl.pipeline.models import export_delta, export_model

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
    from medfm_rl.pipeline.models import apply_delta_file

    written = apply_delta_file(segmenter, delta, to)
    typer.echo(f"Adapted segmenter: {to} ({written.kind})")


@app.command("inspect")
def inspect_command(
    folder: Annotated[Path, typer.Argument(help="Segmenter folder, or run folder of `adapt`.")],
) -> None:
    """Say what a segmenter is, whether it can be adapted, and if not why."""
    from rich.console import Console
    from rich.table import Table

    from medfm_rl.pipeline.models import choose_device, inspect_model

    with _progress() as progress:
        summary = inspect_model(folder, choose_device("auto"), progress)
    table = Table(show_header=False, box=None)
    for name, value in summary.rows.items():
        table.add_row(name, value)
    Console().print(table)
    for obstacle in summary.obstacles:
        typer.echo(f"It cannot be adapted: {obstacle}", err=True)
    if summary.obstacles:
        raise typer.Exit(_USER_MISTAKE)
    typer.echo("It can be adapted.")


@app.command("simulate-vendor")
def simulate_vendor_command(
    data: Annotated[Path, typer.Argument(metavar="IN", help="Echo frames: a folder or data set.")],
    out: Annotated[Path, typer.Argument(help="Folder for images/ and labels/.")],
    vendor: Annotated[str, typer.Option(help="cart, portable, handheld or vintage.")] = "handheld",
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    workers: Annotated[int | None, typer.Option(help="Processes; one per core where not given.")] = None,
    layout: Layout = "auto",
) -> None:
    """Show a data set of echo as another (simulated) vendor would; masks are kept."""
    from medfm_rl.data.layouts import find_cases
    from medfm_rl.data.ultrasound import vendors
    from medfm_rl.data.ultrasound.resimulate import resimulate_dataset

    profile = vendors.vendor(vendor)
    cases = find_cases(_data_settings(data, layout))
    with _progress() as progress:
        resimulate_dataset(
            cases, out, profile, seed, workers, lambda done, total: progress(f"simulating {vendor}", done, total)
        )
    typer.echo(f"Simulated data: {out}")


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Folder of the demo.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
) -> None:
    """Run the whole story on simulated echo: train on vendor A, adapt to vendor B, evaluate, report."""
    from medfm_rl.pipeline.demo import run_demo
    from medfm_rl.report import verdict

    with _progress() as progress:
        comparison = run_demo(out, seed, progress)
    _print_comparison(comparison.rows(), "SIMULATED DATA: Dice on held-out patients of vendor B")
    typer.echo(f"Simulated data. {verdict(comparison.rows())}\nReport: {out / 'report.html'}")


def _print_comparison(rows: Any, title: str) -> None:
    from rich.console import Console

    from medfm_rl.report import comparison_table

    Console().print(comparison_table(rows, title))


def _print_corrections(corrections: Corrections, out: Path) -> None:
    for problem in corrections.problems.values():
        typer.echo(f"Could not be handled: {problem}", err=True)
    typer.echo(
        f"{corrections.count('corrected')} corrected, {corrections.count('proposed')} proposed, "
        f"{corrections.count('referred')} referred with the original mask, {corrections.untouched} not taken, "
        f"{len(corrections.problems)} could not be handled"
    )
    if corrections.cut:
        cases = "case" if corrections.cut == 1 else "cases"
        typer.echo(
            f"The time budget ended early for {corrections.cut} {cases}: nothing is promised of them; repeat the "
            "command on a machine that is less busy, or with more time (--budget)"
        )
    typer.echo(f"Harm: {corrections.promise}")
    typer.echo(f"Corrections: {out / 'corrections.csv'}\nReport: {out / 'report.html'}\nMasks: {out / 'labels'}")
    if corrections.problems:
        raise typer.Exit(_USER_MISTAKE)


def _require_masks(labels: str | None, masks: Path | None) -> None:
    from medfm_rl.errors import ConfigError

    if labels is not None and masks is None:
        raise ConfigError("--labels are the integers in masks that are given: they go with --masks")


def _correction_settings(budget: float | None, **values: str | None) -> CorrectionSettings:
    from medfm_rl.errors import ConfigError
    from medfm_rl.settings import CorrectionSettings

    given = {name: value for name, value in {**values, "seconds": budget}.items() if value is not None}
    if values["method"] != "optimise" and {"objective", "optimise"} & given.keys():
        raise ConfigError("--objective and --optimise are for --method optimise, and go with it")
    return _from_options(CorrectionSettings, **given)


def _from_options(model: type[Model], **values: Any) -> Model:
    """A model made of options of the command line; an error names the option."""
    from pydantic import ValidationError

    from medfm_rl.errors import ConfigError

    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        setting = str(first["loc"][0])
        name = _OPTIONS.get(setting, setting.replace("_", "-"))
        raise ConfigError(f"--{name} {first['input']}: {first['msg']}") from error


def _data_settings(
    path: Path,
    layout: str,
    patient_pattern: str | None = None,
    split: str = "all",
    where: Sequence[str] | None = None,
) -> DataSettings:
    from medfm_rl.errors import ConfigError
    from medfm_rl.settings import DataSettings

    tags = {}
    for text in where or ():
        tag, equals, value = text.partition("=")
        if not (tag and equals and value):
            raise ConfigError(f"--where {text}: must be TAG=VALUE, such as view=4CH")
        tags[tag] = value
    return _from_options(
        DataSettings, path=path, layout=layout, patient_pattern=patient_pattern, split=split, where=tags
    )


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar per stage, on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True)) as bars:

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done)

        yield show


def _stop(message: str, code: int) -> None:
    typer.echo(message, err=True)
    sys.exit(code)
