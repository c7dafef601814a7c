"""Tasks of TotalSegmentator: the network of each, what it segments, and where its weights lie on this machine.

The table is `totalsegmentator.yaml` beside this file; TotalSegmentator itself need not be installed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

_TABLE: Final = Path(__file__).with_suffix(".yaml")


@dataclass(frozen=True)
class TaskNetwork:
    """One network of a task.

    Attributes:
        task: Name of the task.
        part: Name of the part, where the task has several networks; else empty.
        dataset: Folder of its weights, `DatasetNNN_name`.
        trainer: Class of nnU-Net's trainer.
        configuration: Of the plans, such as 3d_fullres.
        folds: Those that TotalSegmentator runs; None: all that are there.
        structures: Names of the integers 1, 2, 3, ...
        step_size: Distance of TotalSegmentator's tiles, as a share of the patch.
        crops_to: Structures that it crops images to before this network sees them; empty where it does not.
        licence: Whether the weights need a licence number.
        download: Name of the task for totalseg_download_weights.
    """

    task: str
    part: str
    dataset: str
    trainer: str
    configuration: str
    folds: tuple[int, ...] | None
    structures: tuple[str, ...]
    step_size: float
    crops_to: tuple[str, ...]
    licence: bool
    download: str

    @property
    def in_words(self) -> str:
        """Its task and part."""
        return f"{self.task}, part {self.part}" if self.part else self.task

    @property
    def model(self) -> str:
        """Name of the model folder within that of the weights."""
        return f"{self.trainer}__nnUNetPlans__{self.configuration}"

    def folder_in(self, root: Path) -> Path:
        """The folder of its weights in one that holds those of several tasks; the folder need not be there.

        The number says which it is: other versions of the weights have other names after it.
        """
        exact = root / self.dataset
        others = sorted(root.glob(f"{self.dataset.partition('_')[0]}_*"))
        return others[0] if not exact.is_dir() and len(others) == 1 else exact

    @property
    def remedy(self) -> str:
        """What to do where the weights are not there."""
        licence = " after `totalseg_set_license`, for they need a licence" if self.licence else ""
        return (
            f"download the weights of task {self.in_words}: `totalseg_download_weights -t {self.download}`{licence} "
            "(package TotalSegmentator), or say where they are: in segmenter.folder, or in TOTALSEG_WEIGHTS_PATH or "
            "TOTALSEG_HOME_DIR, as TotalSegmentator reads them"
        )


def find_network(task: str, part: str | None = None) -> TaskNetwork:
    """The network of a task, or of one of its parts.

    Raises:
        ValueError: There is no such task or part, or the part is missing; the message says which there are.
    """
    networks = _networks().get(task)
    if networks is None:
        near = get_close_matches(task, _networks(), n=3)
        known = f"do you mean {' or '.join(near)}? " if near else ""
        raise ValueError(f"TotalSegmentator has no task {task}; {known}its tasks are {', '.join(_networks())}")
    parts = ", ".join(networks)
    if "" in networks:
        if part is not None:
            raise ValueError(f"task {task} is one network and has no part {part}; leave out part")
        return networks[""]
    if part is None:
        raise ValueError(f"task {task} is {len(networks)} networks, of which one is adapted; give part: {parts}")
    if part not in networks:
        raise ValueError(f"task {task} has no part {part}; its parts are {parts}")
    return networks[part]


def task_names() -> tuple[str, ...]:
    """All tasks."""
    return tuple(_networks())


def part_names(task: str) -> tuple[str, ...]:
    """The parts of a task; none where it is one network."""
    return tuple(part for part in _networks()[task] if part)


def weights_root() -> Path:
    """The folder of weights on this machine, from the variables that TotalSegmentator reads; it need not be there."""
    if given := os.environ.get("TOTALSEG_WEIGHTS_PATH"):
        return Path(given)
    if given := os.environ.get("TOTALSEG_HOME_DIR"):
        home = Path(given)
    else:
        # In containers without a home TotalSegmentator takes /tmp.
        home = (Path("/tmp") if str(Path.home()) == "/" else Path.home()) / ".totalsegmentator"
    return home / "nnunet" / "results"


@cache
def _networks() -> Mapping[str, Mapping[str, TaskNetwork]]:
    """By task and part."""
    table = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    return {
        task: {part: _network(task, part, {**entry, **own}) for part, own in entry.get("parts", {"": {}}).items()}
        for task, entry in table.items()
    }


def _network(task: str, part: str, entry: Mapping[str, Any]) -> TaskNetwork:
    folds = entry.get("folds", [0])
    return TaskNetwork(
        task,
        part,
        entry["dataset"],
        entry["trainer"],
        entry.get("configuration", "3d_fullres"),
        None if folds is None else tuple(folds),
        tuple(entry["structures"]),
        entry.get("step_size", 0.5),
        tuple(entry.get("crops_to", ())),
        entry.get("licence", False),
        entry.get("download", task),
    )
