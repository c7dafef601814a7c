"""The command line as a whole: its name, its help, and `--version`."""

from __future__ import annotations

from typing import Annotated

import typer

from medfm_rl.version import __version__

app = typer.Typer(
    help="Adapt medical segmenters to new domains without labels, and control their quality.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
