"""Score tables: what each mask of a shift was predicted, and what it is, for benchmarks that take seconds.

A table is of one shift, one model and one seed. `benchmarks.quality.run` writes one beside each cell; `simulated` draws
one that is SIMULATED, of known properties.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.harness.recording import RUNS, print_results, write_results
from medfm_rl.data.files import write_json
from medfm_rl.quality.drift import Numbers
from medfm_rl.quality.reports import QualityReport

_FORMAT = 2
TABLES = "score-tables"
"""Folder of the tables below the runs of the benchmark."""
Domain = Literal["source", "target"]


@dataclass(frozen=True)
class Row:
    """A mask.

    Attributes:
        domain: Of its image.
        patient: Its patient.
        dice: True mean Dice.
        predicted: Predicted mean Dice; None where a structure is missing.
        verdict: accept, correct or refer, of the default calibration.
        rules_met: Whether it meets every anatomy rule.
        distance: From the calibration cases.
        reward: Mean probability of being right in and around the structures.
        broken: How many rules it breaks.
        look: What its image looks like; none in tables that were drawn.
    """

    domain: Domain
    patient: str
    dice: float
    predicted: float | None
    verdict: str
    rules_met: bool
    distance: float
    reward: float
    broken: int
    look: tuple[float, ...] = ()

    @classmethod
    def of(cls, report: QualityReport, dice: float, domain: Domain) -> Row:
        """The row of a report."""
        broken = sum(not rule.passed for rule in report.rules)
        mean = report.mean
        distance = report.shift_distance
        return cls(
            domain,
            report.patient_id,
            dice,
            mean.predicted_dice,
            report.verdict,
            broken == 0,
            distance,
            mean.mean_reward,
            broken,
            report.look,
        )

    @property
    def numbers(self) -> Numbers:
        """What it says to each signal of a stream."""
        numbers: Numbers = {"appearance": self.distance, "rewards": self.reward, "rules": float(self.broken)}
        return {**numbers, "look": self.look} if self.look else numbers


@dataclass(frozen=True)
class ScoreTable:
    """The masks of one model on one shift.

    Attributes:
        shift: Name of the shift.
        model: Whose masks they are.
        seed: Of the model.
        limit: Mean Dice below which a mask is a failure.
        simulated: Whether all of it was drawn and not measured.
        rows: Masks of the target, and of held-out patients of the source where there are such.
    """

    shift: str
    model: str
    seed: int
    limit: float
    simulated: bool
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        """The name of the table in results; SIMULATED where it is."""
        return f"{self.shift}{' (SIMULATED)' if self.simulated else ''}, {self.model}, seed {self.seed}"

    def of(self, domain: Domain) -> dict[str, list[Row]]:
        """The masks of a domain by patient."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.domain == domain:
                found.setdefault(row.patient, []).append(row)
        return found

    def write(self, path: Path) -> None:
        """Writes it as JSON."""
        write_json(path, {"format": _FORMAT, **asdict(self)})

    @classmethod
    def read(cls, path: Path) -> ScoreTable:
        """Reads what `write` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != _FORMAT:
            raise SystemExit(f"{path}: another version wrote it; make it again")
        rows = tuple(Row(**{**row, "look": tuple(row["look"])}) for row in content["rows"])
        return cls(**{**content, "rows": rows})


def table_file(runs: Path, shift: str, model: str, seed: int) -> Path:
    """Where the table of a shift, model and seed lies."""
    return runs / TABLES / shift / model / f"seed-{seed}.json"


def find_tables(folder: Path) -> list[ScoreTable]:
    """All tables below a folder."""
    found = [ScoreTable.read(path) for path in sorted(folder.rglob("seed-*.json"))]
    if not found:
        raise SystemExit(f"{folder}: holds no score table; benchmarks.quality.run writes them, --simulated draws some")
    return found


def simulated(name: str, seed: int, failures: float, correlation: float, patients: int = 120) -> ScoreTable:
    """A SIMULATED table: two masks a patient, of which a share fails, and predictions that know a part of the truth.

    Args:
        name: Of the shift.
        seed: Of the draws.
        failures: Share of the target masks below a Dice of .8.
        correlation: Of the prediction with the truth, before both are squeezed into [0, 1].
        patients: Of each domain.
    """
    generator = np.random.default_rng(seed)
    rows: list[Row] = []
    domains: tuple[Domain, ...] = ("source", "target")
    for domain in domains:
        of_patients = generator.normal(size=patients)
        for number, of_patient in enumerate(of_patients):
            for _ in range(2):
                # Skewed, as Dice is: half of the deviation is the patient's.
                deviation = 0.7 * of_patient + 0.7 * generator.normal()
                known = correlation * deviation + np.sqrt(1 - correlation**2) * generator.normal()
                middle = 0.9 if domain == "source" else _middle(failures)
                dice, predicted = (float(np.clip(middle + 0.06 * value, 0, 1)) for value in (deviation, known))
                broken = int(generator.random() < (0.02 if dice >= 0.8 else 0.3))
                verdict = "accept" if predicted >= 0.86 and not broken else "correct"
                far = float(np.exp(generator.normal(0.0 if domain == "source" else 0.8, 0.4)))
                reward = float(np.clip(predicted + 0.02 * generator.normal(), 0, 1))
                rows.append(
                    Row(domain, f"{domain}-{number}", dice, predicted, verdict, not broken, far, reward, broken)
                )
    return ScoreTable(name, "simulated", seed, 0.8, True, tuple(rows))


def _middle(failures: float) -> float:
    """Mean Dice with that share of failures."""
    from scipy import stats

    return float(0.8 - 0.06 * np.sqrt(0.98) * stats.norm.ppf(failures))


def simulated_tables(seeds: Sequence[int]) -> list[ScoreTable]:
    """SIMULATED tables of an easy and a hard shift."""
    return [
        table
        for seed in seeds
        for table in (simulated("few failures", seed, 0.05, 0.8), simulated("many failures", seed, 0.2, 0.8))
    ]


def add_tables(parser: argparse.ArgumentParser) -> None:
    """Lets the user choose the tables."""
    parser.add_argument("--tables", type=Path, help="folder of score tables (default: those of the benchmark's runs)")
    parser.add_argument("--simulated", action="store_true", help="draw SIMULATED tables instead; nothing is kept")


def tables_of(arguments: argparse.Namespace) -> list[ScoreTable]:
    """The tables that were asked for, by `add_runs`, `add_seeds` and `add_tables`."""
    if arguments.simulated:
        return simulated_tables(arguments.seeds)
    folder = arguments.tables or (arguments.runs or RUNS / "adaptation") / TABLES
    return [table for table in find_tables(folder) if table.seed in arguments.seeds]


def publish(
    arguments: argparse.Namespace,
    name: str,
    started_in: dict[str, Any],
    results: Mapping[str, Any],
    summary: dict[str, Any],
    lines: Sequence[str],
) -> None:
    """Writes the results of a benchmark on score tables; those on SIMULATED ones are printed alone.

    Args:
        arguments: Of the command line, with `add_tables` and `add_results`.
        name: Of the results, where the user gave no other.
        started_in: The environment that it began in.
        results: By table.
        summary: The figures that others quote.
        lines: Of the table in Markdown.
    """
    text = "\n".join(lines) + "\n"
    if arguments.simulated:
        print_results(summary, text)
    else:
        write_results(arguments.results or name, started_in, arguments.seeds, results, summary, text)
