"""The command that measures masks of clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfm_rl.cli.case_choice import ALL_CASES, CaseChoice, with_case_choice
from medfm_rl.cli.console import USER_MISTAKE, show_progress
from medfm_rl.cli.root import app


@app.command("measure")
@with_case_choice
def measure_command(
    masks: Annotated[Path, typer.Argument(help="Masks of clips, such as labels/ of `predict`: a sequence for each.")],
    images: Annotated[Path, typer.Option(help="The clips: times and the size of pixels are theirs.")],
    out: Annotated[Path, typer.Option(help="Folder for measures.csv, frames.csv, measures.json and report.html.")],
    labels: Annotated[
        str | None,
        typer.Option(
            help="The integers in the masks by structure, such as LV=1,MYO=2,LA=3; without it dataset.json beside the "
            "masks says so. One of them is called LV."
        ),
    ] = None,
    rewards: Annotated[
        Path | None,
        typer.Option(
            help="Reward maps of these masks, such as rewards/ of `predict` or `score`: adds what they leave open of "
            "areas, volumes and ejection fraction, as intervals of 90 %."
        ),
    ] = None,
    rules: Annotated[
        Path | None, typer.Option(help="Rules over time in YAML; without it those of RL4Seg3D (arXiv 2510.14244).")
    ] = None,
    learn_rules: Annotated[
        Path | None,
        typer.Option(help="Write rules over time whose limits are learned from these masks, which have to be right."),
    ] = None,
    cases: CaseChoice = ALL_CASES,
) -> None:
    """Measure masks of clips: ED and ES, volumes, ejection fraction, areas and lengths over time, what breaks.

    Volumes are in ml and lengths in mm where the clip says how large its pixels are, and ratios where it does not; the
    tables say which. Where a patient has a clip of two and one of four chambers (2CH and 4CH in tags or names), biplane
    too.
    """
    from medfm_rl.anatomy.temporal_rules import TemporalRules
    from medfm_rl.data.mask_files import find_masks
    from medfm_rl.data.mask_labels import schema_of_masks
    from medfm_rl.workflows.measure.measure import MeasureRequest, measure
    from medfm_rl.workflows.measure.outputs import PAGE_FILE, TABLE_FILE, verdict_in_words

    schema = schema_of_masks(labels, masks)
    files = cases.find(images)
    request = MeasureRequest(
        None if rules is None else TemporalRules.read(rules),
        rules,
        learn_rules,
        None if rewards is None else find_masks(rewards, files),
    )
    with show_progress() as progress:
        found = measure(files, find_masks(masks, files), schema, out, request, progress)
    for problem in dict.fromkeys(found.problems.values()):
        typer.echo(f"Not measured: {problem}", err=True)
    for name, clip in found.clips.items():
        result = "no ejection fraction"
        if clip.ejection is not None:
            volumes = f"EDV {clip.ejection.edv:.1f} ml, ESV {clip.ejection.esv:.1f} ml, "
            result = f"{volumes if clip.ejection.unit == 'ml' else 'not calibrated, '}EF {clip.ejection.ef:.1f} %"
        if clip.interval is not None:
            result += " (rewards leave open {:.1f} to {:.1f})".format(*clip.interval.ef)
        typer.echo(f"{name}: {result}, {verdict_in_words([clip])}")
    for patient, (ejection, names) in found.biplane.items():
        verdict = verdict_in_words([found.clips[name] for name in names])
        typer.echo(f"{patient}: EF {ejection.ef:.1f} % biplane, {verdict}")
    if learn_rules is not None:
        typer.echo(f"Rules over time: {learn_rules}")
    typer.echo(f"Measures: {out / TABLE_FILE}\nReport: {out / PAGE_FILE}")
    if found.problems:
        raise typer.Exit(USER_MISTAKE)
