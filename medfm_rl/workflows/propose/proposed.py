"""The result of proposing: two lists of patients, and what is to be known of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medfm_rl.data.layouts import CaseFile
from medfm_rl.quality.proposals import DEFAULT_AUDIT
from medfm_rl.workflows.propose.known import KnownPatients
from medfm_rl.workflows.propose.request import ProposeRequest


@dataclass(frozen=True)
class ProposedPatient:
    """A patient to review.

    Attributes:
        patient_id: Name of the patient.
        files: His images that can be used.
        masks: The mask of each, which the reviewer is to be shown.
        why: In words.
        numbers: What he was chosen by: `predicted_dice` and `disagreement` (in Dice), `novelty` in [0, 1] and `gain`;
            empty where chance decided.
    """

    patient_id: str
    files: tuple[CaseFile, ...]
    masks: tuple[Path, ...]
    why: str
    numbers: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Proposals:
    """The result of a call of `propose`.

    Attributes:
        request: What was asked for.
        audit: Drawn at random, in the order of review; promises may rest on these alone.
        informative: Chosen to learn from, the first one first.
        drawn_from: Patients that the audit sample was drawn from.
        chosen_from: Patients that the informative ones were chosen from.
        known: Who was left out.
        problems: By case: why it could not be used.
        networks: How many reward networks were asked; None where none were.
    """

    request: ProposeRequest
    audit: tuple[ProposedPatient, ...]
    informative: tuple[ProposedPatient, ...]
    drawn_from: int
    chosen_from: int
    known: KnownPatients
    problems: Mapping[str, str]
    networks: int | None

    @property
    def notes(self) -> list[str]:
        """What a reader of the lists has to know, in words."""
        budget, audit = self.request.budget, self.request.audit
        found = []
        if len(self.audit) < audit:
            found.append(
                f"{len(self.audit)} of {audit} patients for the audit: no more can be drawn; add images of others, or "
                f"ask for fewer. An interval of 90 % needs {DEFAULT_AUDIT}"
            )
        if len(self.informative) < budget:
            found.append(
                f"{len(self.informative)} of {budget} patients to learn from: no more are left after the audit draw; "
                "add images of other patients, or draw fewer by --audit"
            )
        known = self.known
        if known.store is not None and not known.left_out:
            found.append(f"{known.store[0]} says nothing of these images, nor of patients of these names")
        if known.left_out:
            found.append(f"{len(known.left_out)} patients are left out: {_counted(known.left_out)}")
        if known.teachers and self.audit:
            found.append(
                f"The audit draw speaks of the patients who are left: the {len(known.teachers)} who were reviewed to "
                "learn from are not among them, and if they were the worst, the others look better than all do"
            )
        if known.taught:
            found.append(f"{len(known.taught)} patients whose reported values taught the run are not in the audit draw")
        if self.networks == 1:
            found.append("The run has a single reward network, so that there is no disagreement to go by")
        return found


def _counted(reasons: Mapping[str, str]) -> str:
    """How many patients there are for each reason; images are not named."""
    counts: dict[str, int] = {}
    for reason in reasons.values():
        short = reason.partition(" (")[0]
        counts[short] = counts.get(short, 0) + 1
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())
