"""The command line: parse, call, print.

Only light modules are imported at the top of the modules in here, so that `--help` answers at once.
"""

from __future__ import annotations

import signal
import sys
from io import TextIOWrapper

import typer

from medfm_rl.cli import (
    adaptation,
    calibration,
    checking,
    choosing,
    deployment,
    desk,
    feedback,
    judging,
    measuring,
    proposals,
    streams,
)
from medfm_rl.cli.console import INTERRUPTED, USER_MISTAKE
from medfm_rl.cli.root import app
from medfm_rl.errors import ProcessesError, UserError
from medfm_rl.processes.launch import PEER_LOST, is_supervised

__all__ = [
    "adaptation",
    "app",
    "calibration",
    "checking",
    "choosing",
    "deployment",
    "desk",
    "feedback",
    "judging",
    "main",
    "measuring",
    "proposals",
    "streams",
]


def main() -> None:
    """Entry point: errors a person can act on end with code 2 and without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Names of files may hold what a terminal or a locale has no letters for; none of them ends a command.
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except ProcessesError as error:
        if error.shown_elsewhere:
            sys.exit(PEER_LOST)
        _stop(f"Error: {error}", USER_MISTAKE)
    except (UserError, FloatingPointError) as error:
        # FloatingPointError: a training that diverged; the message names the setting to lower.
        _stop(f"Error: {error}", USER_MISTAKE)
    except (KeyboardInterrupt, SystemExit) as ended:
        # Typer makes this exit code of Ctrl-C within a command.
        if isinstance(ended, SystemExit) and ended.code != INTERRUPTED:
            raise
        if is_supervised():
            # Whoever started the processes says so once.
            sys.exit(INTERRUPTED)
        _stop("Interrupted. What was finished is kept; run the same command again (adapt: with --resume).", INTERRUPTED)
    finally:
        if is_supervised():
            # It ends by itself; to be asked to as well would show a traceback.
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _stop(message: str, code: int) -> None:
    typer.echo(message, err=True)
    sys.exit(code)
