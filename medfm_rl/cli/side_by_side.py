"""A command in several processes, as one command: one progress, one message, one exit code."""

from __future__ import annotations

import os
from collections.abc import Sequence

import typer

from medfm_rl.cli.console import USER_MISTAKE
from medfm_rl.errors import ConfigError
from medfm_rl.processes.launch import PEER_LOST, Failure, processes_here, run_side_by_side, this_program

_DEFECT = 1
_ADVICE = "What was finished is kept; run the same command again (adapt: with --resume)."


def start_side_by_side(arguments: Sequence[str], count: int) -> bool:
    """Runs a command in so many processes until they have ended; False where this process is to run it alone.

    Args:
        arguments: The command and its options, as after `medfm-rl`.
        count: How many processes.

    Raises:
        ConfigError: torchrun has started this process.
        Exit: One of them failed; what it said has been shown.
    """
    started = processes_here()
    if started > 1:
        raise ConfigError(f"--devices {count}: torchrun has started {started} processes already; leave out the option")
    if count == 1:
        return False
    cores = os.cpu_count() or 1
    if count > cores:
        raise ConfigError(f"--devices {count}: this machine has {cores} cores, and each process needs one; give fewer")
    failure = run_side_by_side(this_program(arguments), count)
    if failure is not None:
        message = _in_words(failure)
        if message:
            typer.echo(message, err=True)
        told = failure.code > 0 and failure.code != PEER_LOST
        raise typer.Exit(failure.code if told else _DEFECT)
    return True


def _in_words(failure: Failure) -> str:
    """What became of a process; nothing where it has said so itself."""
    named = f"process {failure.rank + 1} of {failure.size} (number {failure.pid})"
    if failure.signal is not None:
        full = "; is the memory full?" if failure.signal == "SIGKILL" else ""
        return f"Error: {named} was ended by {failure.signal}{full}, and the others with it. {_ADVICE}"
    if failure.code == PEER_LOST:
        return f"Error: {named} has lost the connection to another one. {_ADVICE}"
    if failure.rank == 0:
        return ""
    if failure.code == USER_MISTAKE:
        return failure.said
    return f"Error: {named} has failed, and the others were ended. It said:\n{failure.said}\n{_ADVICE}"
