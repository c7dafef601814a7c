"""Commands around the store of what reviewers and reports said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfm_rl.choices import ConsensusMethod, Drawn
from medfm_rl.cli.case_choice import ALL_CASES, CaseChoice, with_case_choice
from medfm_rl.cli.console import show_progress
from medfm_rl.cli.options import Device
from medfm_rl.cli.root import app

if TYPE_CHECKING:
    from medfm_rl.feedback import Added

feedback = typer.Typer(
    help="What reviewers and reports said of target cases: add it to a store, list, export, copy or remove it.",
    no_args_is_help=True,
)
app.add_typer(feedback, name="feedback")

Store = Annotated[
    str,
    typer.Argument(
        help="The store: a file, such as feedback.sqlite, or postgresql://USER@HOST/DATABASE (password in PGPASSWORD)."
    ),
]
Reviewer = Annotated[str, typer.Option(help="Opaque id of who says it, such as r07; no name.")]


@feedback.command("add")
@with_case_choice
def add_command(
    store: Store,
    reviewer: Annotated[
        str | None, typer.Option(help="Opaque id of the reviewer, or of the source of reports, such as r07; no name.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="The images that were shown.")] = None,
    masks: Annotated[Path | None, typer.Option(help="The masks that were shown, of the same names.")] = None,
    corrected: Annotated[
        Path | None,
        typer.Option(
            help="The masks as they came back, of the same names, from whatever tool; one that was left as it was "
            "accepts the mask."
        ),
    ] = None,
    verdicts: Annotated[
        Path | None,
        typer.Option(help="CSV: case, structure (or all), verdict: accept, reject, or a grade from 0 to 4."),
    ] = None,
    preferences: Annotated[
        Path | None,
        typer.Option(help="CSV: case, better, worse: masks, or folders of masks; structure, if only one was compared."),
    ] = None,
    measurements: Annotated[
        Path | None,
        typer.Option(
            help="CSV: patient, name (EF, EDV, ESV, SV, volume, area, diameter, length), value, unit; uncertainty (a "
            "standard deviation), structure and case, if known."
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="The run of `adapt` that made the masks; it says which structures there are.")
    ] = None,
    structures: Annotated[
        str | None, typer.Option(help="Without a run: structures and their integers in the masks, such as LV=1,MYO=2.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="The integers in the masks, such as LV=255, where they are not those of the run.")
    ] = None,
    corrected_labels: Annotated[
        str | None, typer.Option(help="The same of the corrected masks, where others stand in those.")
    ] = None,
    drawn: Annotated[
        Drawn,
        typer.Option(
            help="How the cases came to be reviewed: audit (drawn at random; promises rest on these alone), "
            "informative (chosen to learn from), or other."
        ),
    ] = "other",
    comment: Annotated[str, typer.Option(help="Goes with every entry.")] = "",
    unseen: Annotated[
        bool, typer.Option("--unseen", help="Also take images that the run has neither adapted to nor segmented.")
    ] = False,
    exported: Annotated[
        Path | None, typer.Option("--from", help="Add all that another store holds: a folder of `feedback export`.")
    ] = None,
    cases: CaseChoice = ALL_CASES,
    device: Device = "auto",
) -> None:
    """Add corrected masks, verdicts, grades, preferences and measurements: all of a call, or nothing.

    A store that is not there is made. What is there already is not added twice, so a call can be repeated. Where the
    same reviewer said something else before, the new entry is in force; the former stays in the history.
    """
    if exported is not None:
        _require_alone(
            {
                "--reviewer": reviewer,
                "--images": images,
                "--masks": masks,
                "--corrected": corrected,
                "--verdicts": verdicts,
                "--preferences": preferences,
                "--measurements": measurements,
                "--run": run,
                "--structures": structures,
                "--labels": labels,
                "--corrected-labels": corrected_labels,
                "--drawn": None if drawn == "other" else drawn,
                "--comment": comment or None,
                "--unseen": unseen or None,
                **cases.given(),
            }
        )
        _merge(store, exported)
        return
    from medfm_rl.data.mask_labels import parse_structures
    from medfm_rl.errors import ConfigError

    if reviewer is None:
        raise ConfigError("--reviewer: say by an opaque id, such as r07, whose feedback it is")
    cases.require_folder("--images", images)
    schema = None if structures is None else parse_structures(structures)
    from medfm_rl.runs.finished import load_run
    from medfm_rl.workflows.feedback import FeedbackRequest, add_feedback

    request = FeedbackRequest(
        reviewer=reviewer,
        files=() if images is None else cases.find(images),
        run=None if run is None else load_run(run, device),
        schema=schema,
        masks=masks,
        corrected=corrected,
        verdicts=verdicts,
        preferences=preferences,
        measurements=measurements,
        labels=labels,
        corrected_labels=corrected_labels,
        drawn=drawn,
        comment=comment,
        unseen=unseen,
    )
    with show_progress() as progress:
        added = add_feedback(store, request, progress)
    _print_added(added)
    _print_state(store)


@feedback.command("list")
def list_command(
    store: Store,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="mask, verdict, grade, preference, measurement or removal; can be given several times."),
    ] = None,
    reviewer: Annotated[str | None, typer.Option(help="Of this reviewer alone.")] = None,
    patient: Annotated[str | None, typer.Option(help="On this patient alone.")] = None,
    case: Annotated[str | None, typer.Option(help="On this case alone.")] = None,
    drawn: Annotated[Drawn | None, typer.Option(help="On cases that came to be reviewed in this way alone.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="The whole history, with what was removed or replaced since.")
    ] = False,
    ids: Annotated[bool, typer.Option("--ids", help="Ids in full.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output.")] = False,
    agreement: Annotated[
        bool, typer.Option("--agreement", help="How far reviewers of the same images agree, in place of the entries.")
    ] = False,
    consensus: Annotated[
        ConsensusMethod, typer.Option(help="With --agreement of three or more, how their consensus is made.")
    ] = "staple",
) -> None:
    """List what is in force, or with --all everything that was ever said."""
    import json

    from rich.console import Console

    from medfm_rl.errors import ConfigError
    from medfm_rl.feedback import KINDS, Feedback, FeedbackStore
    from medfm_rl.feedback.agreement import agreement as agreement_of
    from medfm_rl.feedback.standing import standing, state_hash
    from medfm_rl.reports.feedback import agreement_table, entries_table, entry_as_json

    unknown = sorted(set(kind or ()) - KINDS.keys())
    if unknown:
        raise ConfigError(f"--kind {unknown[0]}: must be {', '.join(KINDS)}")
    with FeedbackStore.open(store) as opened:
        history = opened.history()
        found = standing(history)
        wanted = {"patient": patient, "case": case, "drawn": drawn}
        chosen = [
            entry
            for entry in (history if every else found.in_force)
            if (not kind or entry.kind in kind)
            and (reviewer is None or entry.reviewer == reviewer)
            and all(value is None or getattr(entry, name, None) == value for name, value in wanted.items())
        ]
        if agreement:
            pairs = agreement_of(opened, [entry for entry in chosen if isinstance(entry, Feedback)], consensus)
            if as_json:
                rows = [{"case": pair.case, "reviewers": pair.reviewers, "dice": pair.dice} for pair in pairs]
                typer.echo(json.dumps(rows, indent=2))
            elif pairs:
                Console().print(agreement_table(pairs))
            else:
                typer.echo("No image has masks of two reviewers.")
            return
    digest = state_hash(found.in_force)
    if as_json:
        entries = [entry_as_json(entry, found) for entry in chosen]
        typer.echo(json.dumps({"store": opened.where, "state_hash": digest, "entries": entries}, indent=2))
        return
    if chosen:
        Console().print(entries_table(chosen, found, ids, opened.where))
    typer.echo(
        f"{len(chosen)} entries shown; {len(found.in_force)} in force, {len(history)} ever added; state {digest}"
    )


@feedback.command("export")
def export_command(
    store: Store,
    to: Annotated[Path, typer.Option(help="Folder to write; it must not exist or be empty.")],
) -> None:
    """Write all that a store holds as CSV and NIfTI; `feedback add OTHER --from FOLDER` takes it into another store."""
    from medfm_rl.feedback import FeedbackStore
    from medfm_rl.feedback.exporting import export_store

    with FeedbackStore.open(store) as opened, show_progress() as progress:
        digest = export_store(opened, to, progress)
    typer.echo(f"Entries: {to / 'entries.csv'}\nMasks: {to / 'masks'}\nState: {digest}")


@feedback.command("copy")
def copy_command(
    store: Store,
    to: Annotated[Path, typer.Option(help="File of the copy, which must not exist; its masks come to lie beside it.")],
) -> None:
    """Copy a store, also one that a desk is writing to, with users and audit log of its desk: a copy to keep."""
    from medfm_rl.feedback import FeedbackStore
    from medfm_rl.feedback.copying import copy_store

    with show_progress() as progress:
        masks = copy_store(store, to, progress)
    with FeedbackStore.open(to) as copied:
        typer.echo(f"Copy: {to}, {len(copied.history())} entries and {masks} masks\nState: {copied.state_hash()}")


@feedback.command("remove")
def remove_command(
    store: Store,
    entry: Annotated[str, typer.Argument(help="Id of the entry, or its beginning, as `feedback list` shows it.")],
    reviewer: Reviewer,
    reason: Annotated[str, typer.Option(help="Why; it is kept with the entry.")],
) -> None:
    """Take an entry out of force, by a further entry: the history keeps both."""
    from medfm_rl.feedback import FeedbackStore, Removal
    from medfm_rl.feedback.standing import describe

    with FeedbackStore.open(store) as opened:
        found = opened.entry(entry)
        opened.add([Removal(reviewer=reviewer, removes=found.id, reason=reason)])
    typer.echo(f"Out of force: {found.subject}, reviewer {found.reviewer}: {describe(found)}")
    _print_state(store)


def _require_alone(others: Mapping[str, object]) -> None:
    """Refuses options beside --from.

    Raises:
        ConfigError: There are some.
    """
    from medfm_rl.errors import ConfigError

    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ConfigError(
            "--from takes over all that another store holds as it is, reviewers included; give it alone, without "
            f"{', '.join(given)}"
        )


def _merge(store: str, exported: Path) -> None:
    from medfm_rl.feedback import FeedbackStore
    from medfm_rl.feedback.exporting import read_export

    export = read_export(exported)
    with FeedbackStore.create(store) as opened:
        added = opened.merge(export.history, export.masks())
    _print_added(added)
    _print_state(store)


def _print_added(added: Added) -> None:
    """Says what is new, what was there, and what is no longer in force."""
    from collections import Counter

    from medfm_rl.feedback.standing import describe

    counts = Counter(entry.kind for entry in added.entries)
    listed = ", ".join(f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items())
    typer.echo(f"Added: {listed or 'nothing'}; {len(added.repeated)} were there already")
    for before, after in added.replaced:
        former, new = describe(before), describe(after)
        if before.drawn != after.drawn:
            former, new = f"{former}, drawn: {before.drawn},", f"{new}, drawn: {after.drawn},"
        typer.echo(
            f"Replaced: {before.subject}, reviewer {before.reviewer}: {former} of {before.time:%Y-%m-%d %H:%M} is no "
            f"longer in force; {new} is"
        )
        if before.drawn == "audit" != after.drawn:
            typer.echo(f"{before.subject} stays a case of the audit draw; `feedback remove` takes it out of that")


def _print_state(store: str) -> None:
    from medfm_rl.feedback import FeedbackStore

    with FeedbackStore.open(store) as opened:
        in_force = opened.standing().in_force
        typer.echo(f"Store: {opened.where}, {len(in_force)} entries in force, state {opened.state_hash()}")
