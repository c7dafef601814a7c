"""How a process finds its team: by what torchrun, or `--devices`, has put into its environment."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from typing import Final

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from medfm_rl.errors import ConfigError, ProcessesError
from medfm_rl.processes.launch import RENDEZVOUS, end_with_supervisor, is_supervised, processes_here
from medfm_rl.processes.team import ALONE, LONGEST_STEP, LONGEST_WAIT, Team
from medfm_rl.version import __version__

_LONGEST_START: Final = timedelta(minutes=10)
_PACKAGES: Final = ("torch", "numpy", "monai", "stable-baselines3", "safetensors")


def place() -> str:
    """Where this process is, in words."""
    return f"number {os.getpid()} on {platform.node()}"


def packages() -> dict[str, str]:
    """Versions of what results depend on, by name."""
    return {"medfm-rl": __version__, **{name: version(name) for name in _PACKAGES}}


@contextmanager
def joined_team(device: torch.device) -> Iterator[Team]:
    """The team that this process was started in by torchrun or `--devices`; elsewhere a team of one.

    On GPUs each process takes the one of its number on its machine.

    Args:
        device: Where the networks are to be.

    Raises:
        ConfigError: There are more processes than GPUs or cores, or the device cannot be shared.
        ProcessesError: The others do not come, or have other versions.
    """
    size = processes_here()
    if size == 1:
        yield ALONE
        return
    if is_supervised():
        end_with_supervisor()
    rank, local, locals_ = (_number(name) for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    _require_room(device, locals_)
    if device.type == "cuda":
        torch.cuda.set_device(local)
    if rank > 0:
        # Nobody reads what it logs, and without a handler Python would print warnings once for each process.
        logging.getLogger("medfm_rl").addHandler(logging.NullHandler())
    _meet(rank, size)
    try:
        members = list(range(size))
        sums = dist.new_group(members, timeout=LONGEST_STEP, backend="nccl" if device.type == "cuda" else "gloo")
        assert not isinstance(sums, int)
        team = Team(members, rank, dist.group.WORLD, sums, is_supervised())
        team.require_same(packages(), place(), "install the same versions on every machine")
        yield team
    finally:
        dist.destroy_process_group()


def _meet(rank: int, size: int) -> None:
    """Waits until all processes have come.

    Raises:
        ProcessesError: They do not.
    """
    shared = os.environ.get(RENDEZVOUS)
    try:
        url = "env://" if shared is None else f"file://{shared}"
        store, _, _ = next(rendezvous(url, rank, size, timeout=_LONGEST_START))
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=LONGEST_WAIT)
    except (RuntimeError, ValueError) as error:
        raise ProcessesError(
            f"process {rank + 1} of {size} ({place()}) cannot reach the others ({str(error).splitlines()[0][:200]}); "
            "is MASTER_ADDR, with MASTER_PORT, to be reached from every machine?",
            shown_elsewhere=is_supervised() and rank > 0,
        ) from error


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdigit():
        raise ConfigError(
            f"WORLD_SIZE is set, and {name} is {text!r}: several processes are started by torchrun or --devices, which "
            "set both; for one process, unset WORLD_SIZE"
        )
    return int(text)


def _require_room(device: torch.device, count: int) -> None:
    """Refuses more processes than there are GPUs, or cores where the networks are on the CPU."""
    if device.type == "cuda":
        there, what = torch.cuda.device_count(), "GPU"
    elif device.type == "cpu":
        there, what = os.cpu_count() or 1, "core"
    else:
        raise ConfigError(f"{count} processes: {device.type} can be used by one process; leave out --devices")
    if count > there:
        raise ConfigError(
            f"{count} processes (--devices, or torchrun --nproc-per-node): this machine has {there} {what}"
            f"{'' if there == 1 else 's'}; give at most {there}" + (", or device: cpu" if what == "GPU" else "")
        )


def is_first_here(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the first of its team on its machine."""
    return environment.get("LOCAL_RANK", "0") == "0"
