"""The command that opens the reviewer's desk, and the one that says who may use it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfm_rl.choices import Role
from medfm_rl.cli.root import app

Store = Annotated[
    str,
    typer.Option(help="Feedback store: a file, such as feedback.sqlite, or postgresql://USER@HOST/DATABASE."),
]


@app.command("desk")
def desk_command(
    store: Store,
    scores: Annotated[
        list[Path] | None, typer.Option(help="Folder that `score` wrote; can be given several times.")
    ] = None,
    corrections: Annotated[
        list[Path] | None,
        typer.Option(help="Folder that `correct` wrote: what it proposes is compared with the mask, blind."),
    ] = None,
    proposals: Annotated[
        list[Path] | None, typer.Option(help="Folder that `propose` wrote: audit sample, and cases to learn from.")
    ] = None,
    stream: Annotated[
        list[Path] | None, typer.Option(help="Stream of `stream add`: masks drawn for audit come first.")
    ] = None,
    accepted: Annotated[
        bool, typer.Option("--accepted", help="Also show masks that the score accepted, last.")
    ] = False,
    structures: Annotated[
        str | None,
        typer.Option(
            help="Structures and their integers in the masks, such as LV=1,MYO=2, where not 1, 2, ... in order."
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Where the images lie now, if they were moved since they were scored.")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Run of `adapt`: scores what programs send, and a new adaptation starts from it."),
    ] = None,
    root: Annotated[
        list[Path] | None, typer.Option(help="Folder from which programs may have files scored by path.")
    ] = None,
    jobs: Annotated[Path, typer.Option(help="Folder for what jobs write.")] = Path("desk-jobs"),
    reviewer: Annotated[str, typer.Option(help="Your opaque id, while there are no users.")] = "r1",
    second_share: Annotated[
        float, typer.Option(help="Share of decided masks that another reviewer is asked about again.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of that draw.")] = 0,
    new: Annotated[bool, typer.Option("--new", help="Make the store where there is none.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen at; others than loopback need TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any that is free.")] = 8765,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    behind_proxy: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Address of a proxy that has TLS and says so.")
    ] = None,
    under: Annotated[
        str,
        typer.Option(
            metavar="PATH", help="Path that a proxy serves the desk under, such as /desk; it may take it off or not."
        ),
    ] = "",
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Further name by which the service is called, as behind a proxy.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Keeps the token from one start to the next; made where it is not there.")
    ] = None,
    openid: Annotated[
        Path | None,
        typer.Option(help="Settings of your organisation's identity provider (YAML): people sign in there."),
    ] = None,
    lease_seconds: Annotated[int, typer.Option(help="How long a case stays with who opened it.")] = 900,
    most_upload: Annotated[int, typer.Option(min=1, help="MiB of an upload at most.")] = 256,
) -> None:
    """Open the reviewer's desk: a page where people look at masks, decide and correct; all goes into the store.

    Prints an address with a token, and serves until Ctrl-C. Needs the extra desk, no model, no GPU and no internet.
    """
    from medfm_rl.data.mask_labels import parse_structures
    from medfm_rl.feedback import FeedbackStore

    _require_extra()
    from medfm_rl.service.request import DeskRequest
    from medfm_rl.service.serving import Address, serve
    from medfm_rl.settings import OpenIDSettings
    from medfm_rl.settings.files import load_config

    request = DeskRequest(
        store=store,
        scores=tuple(scores or ()),
        corrections=tuple(corrections or ()),
        proposals=tuple(proposals or ()),
        streams=tuple(stream or ()),
        accepted=accepted,
        structures=None if structures is None else parse_structures(structures),
        images=images,
        run=run,
        roots=tuple(root or ()),
        jobs=jobs,
        reviewer=reviewer,
        second_share=second_share,
        seed=seed,
        lease_seconds=lease_seconds,
        most_upload=most_upload << 20,
        openid=None if openid is None else load_config(openid, OpenIDSettings),
    )
    address = Address(host, port, certificate, key, behind_proxy, tuple(allow_host or ()), token_file, under)
    if new:
        FeedbackStore.create(store).close()
    serve(request, address, typer.echo)


@app.command("desk-user")
def desk_user_command(
    store: Store,
    name: Annotated[str, typer.Argument(help="Opaque id of the reviewer, such as r07; no name.")],
    role: Annotated[Role, typer.Option(help="A lead also learns and settles, an administrator does all.")] = "reviewer",
    inactive: Annotated[bool, typer.Option("--inactive", help="Shut the user out.")] = False,
) -> None:
    """Make or change a user of the desks of a store. From the first one on everybody logs in by name and password."""
    _require_extra()
    from medfm_rl.service.access import Access
    from medfm_rl.service.database import Database

    # Nobody is asked for a password of a store that is not there.
    access = Access.of_store(Database(store))
    password = None if inactive else typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    access.set_user("command line", name, role, password, not inactive)
    typer.echo(f"User {name}: {role}{', shut out' if inactive else ''}")


def _require_extra() -> None:
    """Refuses where the packages of the extra desk are missing.

    Raises:
        MissingExtraError: It is so.
    """
    from importlib.util import find_spec

    from medfm_rl.errors import MissingExtraError

    if any(find_spec(package) is None for package in ("fastapi", "uvicorn", "argon2", "multipart")):
        raise MissingExtraError("the desk needs further packages: pip install 'medfm-rl[desk]'")
