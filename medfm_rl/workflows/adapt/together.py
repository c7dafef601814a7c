"""Before several processes share a run: all have the same settings and see the same files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medfm_rl.errors import ProcessesError
from medfm_rl.processes.joining import is_first_here, place
from medfm_rl.processes.team import Team
from medfm_rl.progress import silent
from medfm_rl.runs.folder import RunFolder
from medfm_rl.runs.inputs import differences, load_inputs, read_inputs
from medfm_rl.settings import AdaptConfig


def require_same_settings(config: AdaptConfig, team: Team) -> None:
    """Raises ProcessesError where a process of the team was started with other settings, and says which."""
    if team.size > 1:
        facts = dict(_flattened(config.model_dump(mode="json")))
        team.require_same(facts, place(), "start all with the same settings file")


def require_same_files(config: AdaptConfig, run: RunFolder, scratch: Path, team: Team) -> None:
    """Raises ProcessesError where a process of the team does not see the folder of the run, or sees other inputs.

    The first process of each machine reads the inputs and compares them with what the leader recorded.

    Args:
        config: The settings.
        run: The run, whose inputs the leader has recorded.
        scratch: Where the leader will put images, in the folder of the run.
        team: The processes.
    """
    if team.size == 1:
        return
    problem = None
    if not scratch.is_dir():
        problem = (
            f"it does not see {scratch}, which process 1 has just made; give an output on a drive that all machines "
            "mount in the same place, and start all processes in the same folder"
        )
    elif not team.leads and is_first_here() and run.inputs.exists():
        changes = differences(load_inputs(run.inputs), read_inputs(config, silent))
        if changes:
            problem = f"it sees other files than process 1 ({'; '.join(changes)}); give all the same ones"
    for rank, (where, found) in enumerate(team.gather((place(), problem))):
        if found is not None:
            raise ProcessesError(
                f"process {rank + 1} of {team.size} ({where}): {found}", shown_elsewhere=not team.leads
            )


def _flattened(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Settings by their dotted names, as texts."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{before}{name}.")
        else:
            yield before + name, json.dumps(value)
