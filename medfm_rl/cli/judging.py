"""The command that makes a judge of the masks of a tool without having its segmenter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfm_rl.cli.case_choice import ALL_CASES, CaseChoice, with_case_choice
from medfm_rl.cli.console import show_progress
from medfm_rl.cli.options import (
    Device,
    MaskLabels,
    Probabilities,
    from_options,
)
from medfm_rl.cli.root import app


@app.command("train-judge")
@with_case_choice
def train_judge_command(
    images: Annotated[Path, typer.Option(help="Labelled images.")],
    masks: Annotated[Path, typer.Option(help="The tool's masks of them, of the same names.")],
    truth: Annotated[Path, typer.Option(help="Experts' masks of them, of the same names.")],
    out: Annotated[Path, typer.Option(help="New folder for the judge and its report.html.")],
    structures: Annotated[
        str | None,
        typer.Option(
            help="The structures and their integers in the experts' masks, such as LV=1,MYO=2; where not given, those "
            "that the dataset.json beside them names."
        ),
    ] = None,
    labels: MaskLabels = None,
    probabilities: Probabilities = None,
    size: Annotated[
        str, typer.Option(help="Pixels of the grid that images are resampled to: H,W, or D,H,W of volumes.")
    ] = "128,128",
    anatomy: Annotated[str, typer.Option(help="Anatomy profile, or a YAML file.")] = "generic",
    ensemble: Annotated[int, typer.Option(help="Reward networks.")] = 2,
    steps: Annotated[int, typer.Option(help="Training steps of each at most.")] = 800,
    dice: Annotated[float, typer.Option(help="Mean Dice below which a mask is bad.")] = 0.8,
    alpha: Annotated[float, typer.Option(help="Largest share of bad masks among the accepted.")] = 0.1,
    confidence: Annotated[float, typer.Option(help="Confidence of the statement about accepted masks.")] = 0.9,
    coverage: Annotated[float, typer.Option(help="Share of cases whose Dice the interval holds.")] = 0.9,
    seed: Annotated[int, typer.Option(help="Seed of splits, draws and weights.")] = 0,
    cases: CaseChoice = ALL_CASES,
    device: Device = "auto",
) -> None:
    """Make a judge of a tool's masks from labelled cases and those masks alone, without a segmenter.

    For who has the outputs of a vendor's product and not its networks. `score`, `calibrate` and streams take its folder
    as that of a run. A fifth of the patients is held out: report.html says how good the judge is on them. The same
    command again goes on where an interrupted one was.
    """
    from medfm_rl.data.layouts import described_labels
    from medfm_rl.data.mask_files import find_masks
    from medfm_rl.data.mask_labels import parse_structures
    from medfm_rl.data.probabilities import find_probabilities
    from medfm_rl.errors import ConfigError
    from medfm_rl.quality.model import Targets
    from medfm_rl.settings import JudgeSettings, RewardSettings
    from medfm_rl.workflows.train_judge.train import JudgeRequest, train_judge, with_truth

    try:
        sides = tuple(int(side) for side in size.split(","))
    except ValueError as error:
        raise ConfigError(f"--size {size}: must be whole numbers, such as 128,128") from error
    rewards = from_options(RewardSettings, fusion="mean", ensemble=ensemble, steps=steps)
    settings = from_options(JudgeSettings, size=sides, reward=rewards, anatomy=anatomy, seed=seed)
    targets = from_options(Targets, coverage=coverage, dice=dice, alpha=alpha, confidence=confidence)
    # Before what they mean: of a folder that is not there nothing else is worth saying.
    files = with_truth(cases.find(images), truth)
    described = None if structures is not None else described_labels(truth)
    if structures is None and described is None:
        raise ConfigError(
            f"{truth}: nothing says what the integers in the experts' masks mean; give --structures, such as LV=1,MYO=2"
        )
    schema = described.own_schema() if described is not None else parse_structures(structures or "")
    request = JudgeRequest(
        files,
        find_masks(masks, files),
        schema,
        labels,
        None if probabilities is None else find_probabilities(probabilities, files),
        targets,
        settings,
        device,
    )
    with show_progress() as progress:
        trial = train_judge(request, out, progress)
    for line in trial.words:
        typer.echo(line)
    typer.echo(f"Judge: {out}\nReport: {out / 'report.html'}")
