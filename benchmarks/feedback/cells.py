"""The cells of the feedback benchmark: one method on one shift with k reviewed patients and one seed each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.feedback.judgements import KNOWLEDGE
from benchmarks.harness.recording import RESULTS
from medfm_rl.correction.acceptance import HARM
from medfm_rl.data.files import write_json
from medfm_rl.metrics.bootstrap import PairedDifference, paired_bootstrap

NONE, UPPER, OURS, AGAIN, TUNED = "none", "upper", "ours", "trained again", "fine-tuned on the same"
MARGINS = (0.01, 0.02)
BY_CASE = {f"ours, chosen by case, {margin:g}": margin for margin in MARGINS}
"""The masks that `choose` takes from those of the source model and of ours with these margins."""
FINE_TUNING = "fine-tuning"
"""Ours without PPO: a candidate of every run of ours."""
CONTROLS = (AGAIN, TUNED)
METHODS = (NONE, UPPER, OURS, *BY_CASE, *CONTROLS)
LADDER = {knowledge: f"ours from {knowledge}" for knowledge in KNOWLEDGE}
"""Methods that know less than masks, by what they know."""
DPO = "DPO from preferences"
"""The control of ours from preferences."""
FROM_LESS = (*LADDER.values(), DPO)
"""All that learn from less than masks."""
_DIGITS = 4


@dataclass(frozen=True)
class Cell:
    """A method's results on the held-out target patients.

    Attributes:
        shift: Name of the shift.
        method: One of `METHODS`, or of `FROM_LESS`.
        k: Reviewed patients.
        seed: Of everything.
        patients: One per case, the cases sorted.
        dice: Mean over the structures, one per case.
        hd95: Mean over the structures in pixels, one per case; None where it is not defined.
        valid: Share of the masks that meet the anatomy rules.
        minutes: Of the adaptation or training.
        commit: Of the code.
        chosen: Name of the candidate that was returned; None where there were no candidates.
        candidates: By name, the Dice of every candidate on the same cases.
        ventricle: By `before` and `after`, how wrong the ventricle is (`ventricle_errors`), where less than masks is
            known and for the upper bound; empty elsewhere.
    """

    shift: str
    method: str
    k: int
    seed: int
    patients: tuple[str, ...]
    dice: tuple[float, ...]
    hd95: tuple[float | None, ...]
    valid: float
    minutes: float
    commit: str
    chosen: str | None = None
    candidates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    ventricle: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int, int]:
        return self.shift, self.method, self.k, self.seed

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Cell:
        lists = {name: tuple(content[name]) for name in ("patients", "dice", "hd95")}
        candidates = {name: tuple(values) for name, values in content["candidates"].items()}
        return cls(**{**content, **lists, "candidates": candidates})


def rounded(values: Iterable[float]) -> tuple[float, ...]:
    """Values with the digits that a cell keeps."""
    return tuple(round(float(value), _DIGITS) for value in values)


class Cells:
    """The cells that are there: in the folder of the benchmark, and in the results of earlier calls.

    Args:
        runs: Folder of the benchmark.
        results: Name of the results.
    """

    def __init__(self, runs: Path, results: str) -> None:
        self.folder = runs / "cells"
        earlier = RESULTS / f"{results}.json"
        kept = json.loads(earlier.read_text())["results"]["cells"] if earlier.exists() else []
        self._cells = {cell.key: cell for cell in map(Cell.from_json, kept)}
        for path in sorted(self.folder.glob("*.json")):
            cell = Cell.from_json(json.loads(path.read_text()))
            self._cells[cell.key] = cell

    def __iter__(self) -> Iterator[Cell]:
        return iter([self._cells[key] for key in sorted(self._cells)])

    def __contains__(self, key: tuple[str, str, int, int]) -> bool:
        return key in self._cells

    def keep(self, cell: Cell) -> None:
        """Writes a cell; from then on it is there."""
        name = "-".join(str(part) for part in cell.key).replace(" ", "_")
        write_json(self.folder / f"{name}.json", asdict(cell))
        self._cells[cell.key] = cell

    def get(self, shift: str, method: str, k: int) -> dict[int, Cell]:
        """By seed; models without reviewed patients are the same for every k."""
        k = 0 if method in (NONE, UPPER) else k
        return {
            cell.seed: cell for cell in self._cells.values() if (cell.shift, cell.method, cell.k) == (shift, method, k)
        }


def shared_seeds(*groups: Mapping[int, Cell]) -> list[int]:
    """The seeds that all have."""
    return sorted(set.intersection(*(set(group) for group in groups)))


def difference(before: Mapping[int, Cell], after: Mapping[int, Cell]) -> PairedDifference | None:
    """Of mean Dice, cases averaged over the seeds that both have, patients resampled; None where they share none."""
    seeds = shared_seeds(before, after)
    if not seeds:
        return None
    means = [np.mean([cells[seed].dice for seed in seeds], axis=0) for cells in (before, after)]
    return paired_bootstrap(means[0], means[1], before[seeds[0]].patients)


def ppo_gain(ours: Mapping[int, Cell]) -> PairedDifference | None:
    """What is returned minus the same without PPO: the fine-tuned policy, or the source where that was returned."""
    if not ours:
        return None
    without = {
        seed: np.asarray(cell.dice if cell.chosen == "source" else cell.candidates[FINE_TUNING])
        for seed, cell in ours.items()
    }
    seeds = sorted(ours)
    before = np.mean([without[seed] for seed in seeds], axis=0)
    after = np.mean([ours[seed].dice for seed in seeds], axis=0)
    return paired_bootstrap(before, after, ours[seeds[0]].patients)


def gap_recovered(none: Mapping[int, Cell], method: Mapping[int, Cell], upper: Mapping[int, Cell]) -> float | None:
    """(method - none) / (upper - none) over the seeds that all have; None where the upper bound is not above."""
    seeds = shared_seeds(none, method, upper)
    if not seeds:
        return None
    below, ours, above = (
        float(np.mean([np.mean(cells[seed].dice) for seed in seeds])) for cells in (none, method, upper)
    )
    return (ours - below) / (above - below) if above > below else None


def harm_rate(none: Mapping[int, Cell], method: Mapping[int, Cell]) -> float | None:
    """Share of cases that lost more than a Dice point, over the seeds that both have."""
    seeds = shared_seeds(none, method)
    if not seeds:
        return None
    lost = [np.asarray(method[seed].dice) < np.asarray(none[seed].dice) - HARM for seed in seeds]
    return float(np.mean(lost))


def regret(ours: Mapping[int, Cell]) -> float | None:
    """Dice of the best candidate in hindsight minus that of the returned one, mean over seeds."""
    found = [
        max(float(np.mean(values)) for values in cell.candidates.values())
        - float(np.mean(cell.candidates[cell.chosen]))
        for cell in ours.values()
        if cell.chosen is not None
    ]
    return float(np.mean(found)) if found else None
