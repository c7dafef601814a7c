"""The output of a correction: the record of a case, tables, and the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from medfm_rl.correction import CorrectionResult
from medfm_rl.data.files import write_json, write_text
from medfm_rl.data.layouts import CaseFile, are_simulated
from medfm_rl.data.names import file_of_case
from medfm_rl.reports.corrections import CorrectionEntry, write_corrections_page
from medfm_rl.types import Case
from medfm_rl.version import __version__
from medfm_rl.workflows.deploy.correction_terms import Terms

NOT_HANDLED: Final = "not handled"


@dataclass(frozen=True)
class Corrections:
    """The result of a call of `correct`.

    Attributes:
        records: One for each case that was taken, as in `corrections.json`.
        problems: By case: why it could not be scored or handled.
        untouched: Other cases that were not taken, because their verdict was not `correct`.
        promise: How many of the accepted corrections may do harm, or that nothing is promised.
    """

    records: tuple[Mapping[str, Any], ...]
    problems: Mapping[str, str]
    untouched: int
    promise: str

    def count(self, decision: str) -> int:
        """Cases with that decision: corrected, proposed or referred."""
        return sum(record["decision"] == decision for record in self.records)

    @property
    def cut(self) -> int:
        """Cases whose time budget ended early: repeated with more time, the call may decide otherwise about them."""
        return sum(is_cut(record) for record in self.records)


def picture_path(out: Path, case_id: str) -> Path:
    """Where the picture of a case lies in an output folder."""
    return file_of_case(out / "pictures", case_id, ".png")


def record_of(result: CorrectionResult, case: Case, decision: str, rewards: tuple[float, float]) -> dict[str, Any]:
    """The record of a case in `corrections.json`; the rewards are those before and after."""
    return {
        "case": result.case_id,
        "patient": case.patient_id,
        "decision": decision,
        "reasons": list(result.reasons),
        "step": result.step,
        "stopped": result.stopped,
        "views": result.views,
        "reward_gains": list(result.gains),
        "reward_before": rewards[0],
        "reward_after": rewards[1],
        "verification": None if result.verification is None else asdict(result.verification),
        "seconds": round(result.seconds, 3),
    }


def is_cut(record: Mapping[str, Any]) -> bool:
    """Whether the time budget of a case ended early."""
    return bool(record["stopped"] == "time")


def write_tables(out: Path, corrections: Corrections, terms: Terms) -> None:
    """`corrections.csv`, one row for each case, and `corrections.json`."""
    columns = ["case", "patient", "decision", "verifier_gain", "change", "reward_gain", "step", "stopped", "views"]
    columns += ["verifier_views", "seconds", "reasons"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="", extrasaction="ignore")
    writer.writeheader()
    for record in corrections.records:
        verification, gains = record["verification"] or {}, record["reward_gains"]
        row = {
            "verifier_gain": verification.get("gain"),
            "change": verification.get("change"),
            "verifier_views": _verifier_views(record),
            "reward_gain": gains[record["step"]] if gains else None,
            "reasons": "; ".join(record["reasons"]),
        }
        writer.writerow({**record, **row})
    for case, problem in corrections.problems.items():
        writer.writerow({"case": case, "decision": NOT_HANDLED, "reasons": problem})
    write_text(out / "corrections.csv", text.getvalue())
    content = {
        "format": 1,
        "medfm_rl": __version__,
        "settings": terms.settings.model_dump(mode="json"),
        "propose_only": terms.propose_only,
        "not_taken": corrections.untouched,
        "cut": corrections.cut,
        "promise": corrections.promise,
        "cases": list(corrections.records),
        "problems": dict(corrections.problems),
    }
    write_json(out / "corrections.json", content)


def write_page(out: Path, files: Sequence[CaseFile], corrections: Corrections) -> None:
    """`report.html`, with the pictures that were written before."""
    entries = [
        CorrectionEntry(
            record["case"],
            record["decision"],
            record["reasons"],
            record["reward_before"],
            record["reward_after"],
            record["seconds"],
            record["views"],
            _verifier_views(record),
            picture_path(out, record["case"]),
        )
        for record in corrections.records
    ]
    simulated = are_simulated(files)
    write_corrections_page(
        out / "report.html",
        entries,
        corrections.problems,
        corrections.untouched,
        corrections.promise,
        corrections.cut,
        simulated,
    )


def _verifier_views(record: Mapping[str, Any]) -> int | None:
    """Views that the verifier looked at; None where there was nothing to verify."""
    verification = record["verification"]
    return None if verification is None else int(verification["views"])
