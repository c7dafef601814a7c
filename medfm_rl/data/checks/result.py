"""The result of checking a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medfm_rl.data.checks.facts import CaseFacts
from medfm_rl.data.checks.findings import Finding

_FORMAT = 1


@dataclass(frozen=True)
class SegmenterFit:
    """What a segmenter takes, in words.

    Attributes:
        name: Its folder.
        rows: What it takes, by the property.
    """

    name: str
    rows: Mapping[str, str]


@dataclass(frozen=True)
class DataCheck:
    """What a data set holds, what of it cannot be used, and what looks suspicious.

    Attributes:
        root: Its folder.
        layout: The layout that it was read in.
        patients_by: The rule by which images were put together to patients.
        cases: Facts of each case, sorted by name.
        skipped: What was not read, by the reason: files and folders, from the folder of the data set.
        notes: What was decided that the names leave open.
        findings: What looks suspicious.
        labels: The integers in the masks by name, where something names them.
        segmenter: The segmenter that was asked whether it takes the cases; None where none was.
        simulated: Whether the images are simulated.
    """

    root: Path
    layout: str
    patients_by: str
    cases: Sequence[CaseFacts]
    skipped: Mapping[str, Sequence[str]]
    notes: Sequence[str]
    findings: Sequence[Finding]
    labels: Mapping[str, int]
    segmenter: SegmenterFit | None
    simulated: bool

    @property
    def refused(self) -> dict[str, tuple[str, ...]]:
        """Why cases cannot be used, by case."""
        return {case.case_id: case.problems for case in self.cases if case.problems}

    @property
    def usable(self) -> bool:
        """Whether every case can be used; what looks suspicious can be."""
        return not self.refused

    @property
    def patients(self) -> int:
        """How many patients the images are of."""
        return len({case.patient_id for case in self.cases if case.images})

    def refusals(self) -> list[tuple[str, list[str]]]:
        """The reasons why cases are refused, each in the words of the first case, and the cases.

        One mistake can be that of all: messages that differ in names of cases and files alone are one.
        """
        groups: dict[str, tuple[str, list[str]]] = {}
        for case in self.cases:
            for problem in case.problems:
                alike = problem
                for name in (*case.images, case.mask_file, case.case_id):
                    alike = alike.replace(name, "") if name else alike
                groups.setdefault(alike, (problem, []))[1].append(case.case_id)
        return list(groups.values())

    def suspicions_of(self, case_id: str) -> list[str]:
        """What looks suspicious in a case, in words."""
        return [finding.of_case(case_id) for finding in self.findings if case_id in finding.cases]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "format": _FORMAT,
            "data": str(self.root),
            "simulated": self.simulated,
            "usable": self.usable,
            "layout": self.layout,
            "patients_by": self.patients_by,
            "patients": self.patients,
            "labels": dict(self.labels),
            "segmenter": None if self.segmenter is None else asdict(self.segmenter),
            "refused": {case: list(problems) for case, problems in self.refused.items()},
            "skipped": {reason: list(files) for reason, files in self.skipped.items()},
            "notes": list(self.notes),
            "findings": [{**asdict(finding), "title": finding.title} for finding in self.findings],
            "cases": [asdict(case) for case in self.cases],
        }
