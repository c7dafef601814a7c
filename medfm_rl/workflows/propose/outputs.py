"""The outputs of proposing: JSON, two tables, and the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from medfm_rl.data.files import write_text, write_versioned_json
from medfm_rl.reports.proposals import PageList, PagePatient, write_proposals_page
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.version import __version__
from medfm_rl.workflows.deploy.scoring import thumbnail_path
from medfm_rl.workflows.propose.proposed import Proposals, ProposedPatient

PROPOSALS_FILE: Final = "proposals.json"
PAGE_FILE: Final = "report.html"
AUDIT_TABLE: Final = "audit.csv"
INFORMATIVE_TABLE: Final = "informative.csv"
_FORMAT: Final = 1
_NUMBERS = ("predicted_dice", "disagreement", "novelty", "gain")
_CHOSEN_BY = {
    "gain": "by expected gain: (predicted error + disagreement) x novelty",
    "clasp": "as ClaSP chooses: for each structure, with chances that go with the error to be feared",
    "random": "at random",
}


def withdraw_proposals(out: Path) -> None:
    """Removes the lists of an earlier call: where this one is cut short they must not look like its own."""
    if (out / PROPOSALS_FILE).exists():
        for name in (AUDIT_TABLE, INFORMATIVE_TABLE, PAGE_FILE, PROPOSALS_FILE):
            (out / name).unlink(missing_ok=True)


def write_proposals(out: Path, proposals: Proposals, run: FinishedRun, simulated: bool) -> None:
    """Writes `proposals.json`, `audit.csv`, `informative.csv` and `report.html`.

    Args:
        out: Output folder, with the pictures of the cases.
        proposals: The result.
        run: The run that made the masks, or scored them.
        simulated: Whether the images are simulated; the page says so.
    """
    write_text(out / AUDIT_TABLE, _table(proposals.audit, ()))
    write_text(out / INFORMATIVE_TABLE, _table(proposals.informative, _NUMBERS))
    lists = page_lists(out, proposals)
    schema = run.preprocessing.schema
    write_proposals_page(out / PAGE_FILE, lists, proposals.notes, proposals.problems, schema, simulated)
    write_versioned_json(out / PROPOSALS_FILE, _FORMAT, as_json(proposals, run))


def page_lists(out: Path, proposals: Proposals) -> list[PageList]:
    """Both lists in words, for page and terminal."""
    request = proposals.request
    audit = (
        f"Drawn at random from {proposals.drawn_from} patients with seed {request.seed}, before anything else was "
        "chosen and whatever any network thinks of them. Promises may rest on them, and only while nothing is learned "
        "from them."
    )
    informative = (
        f"Chosen from the other {proposals.chosen_from} patients {_CHOSEN_BY[request.by]}. They are no sample: what is "
        "found on them says nothing of the rest."
    )
    return [
        PageList("Audit: drawn at random", audit, "audit", _pages(out, proposals.audit)),
        PageList("Informative: to learn from", informative, "informative", _pages(out, proposals.informative)),
    ]


def as_json(proposals: Proposals, run: FinishedRun) -> dict[str, Any]:
    """The result as JSON values."""
    request, known, identity = proposals.request, proposals.known, run.identity
    store = None if known.store is None else {"store": known.store[0], "state_hash": known.store[1]}
    return {
        "medfm_rl": __version__,
        "run": {
            "path": str(run.path),
            "model_hash": identity.model_hash,
            "reward_hash": identity.reward_hash,
            "quality_hash": identity.quality_hash,
        },
        "seed": request.seed,
        "by": request.by,
        "asked_for": {"audit": request.audit, "informative": request.budget},
        "scores": None if request.scores is None else str(request.scores),
        "structures": dict(run.preprocessing.schema.integers),
        "feedback": store,
        "audit": {
            "drawn_from": proposals.drawn_from,
            "patients": [_patient(each) for each in proposals.audit],
        },
        "informative": {
            "chosen_from": proposals.chosen_from,
            "patients": [_patient(each) for each in proposals.informative],
        },
        "left_out": dict(known.left_out),
        "not_drawn": sorted(known.taught),
        "notes": proposals.notes,
        "problems": dict(proposals.problems),
    }


def _patient(patient: ProposedPatient) -> dict[str, Any]:
    cases = [
        {"case": file.case_id, "image_files": [str(path) for path in file.image_paths], "mask_file": str(mask)}
        for file, mask in zip(patient.files, patient.masks, strict=True)
    ]
    return {"patient": patient.patient_id, "why": patient.why, **patient.numbers, "cases": cases}


def _table(patients: Sequence[ProposedPatient], numbers: Sequence[str]) -> str:
    """One row for each image, as CSV."""
    text = io.StringIO()
    columns = ("order", "case", "patient", "why", *numbers, "image_files", "mask_file")
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(_rows(patients))
    return text.getvalue()


def _rows(patients: Sequence[ProposedPatient]) -> Iterator[dict[str, Any]]:
    for order, patient in enumerate(patients, 1):
        for file, mask in zip(patient.files, patient.masks, strict=True):
            yield {
                "order": order,
                "case": file.case_id,
                "patient": patient.patient_id,
                "why": patient.why,
                **patient.numbers,
                "image_files": "; ".join(str(path) for path in file.image_paths),
                "mask_file": str(mask),
            }


def _pages(out: Path, patients: Sequence[ProposedPatient]) -> list[PagePatient]:
    return [
        PagePatient(
            patient.patient_id,
            patient.why,
            [(file.case_id, thumbnail_path(out, file.case_id)) for file in patient.files],
        )
        for patient in patients
    ]
