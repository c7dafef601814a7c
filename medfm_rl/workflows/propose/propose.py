"""`medfm-rl propose`: which patients to review next, in which order, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from medfm_rl.data.layouts import CaseFile, are_simulated
from medfm_rl.data.locks import alone_in
from medfm_rl.data.mask_labels import labels_in_masks
from medfm_rl.errors import DataError, ModelError
from medfm_rl.progress import Progress, silent
from medfm_rl.quality.proposals import Candidate, Choice, audit_order, by_clasp, by_gain, random_order
from medfm_rl.runs.case_records import CaseRecords
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.runs.scores import Scores
from medfm_rl.workflows.deploy.given_masks import GivenMasks
from medfm_rl.workflows.propose.assessing import CaseAssessor, candidate_of
from medfm_rl.workflows.propose.known import KnownPatients, find_known
from medfm_rl.workflows.propose.outputs import withdraw_proposals, write_proposals
from medfm_rl.workflows.propose.proposed import Proposals, ProposedPatient
from medfm_rl.workflows.propose.request import BY_GAIN, ProposeRequest

_RECORDS = "propose"
_Files = Mapping[str, Sequence[CaseFile]]
"""Files by patient."""


def propose(
    run: FinishedRun,
    files: Sequence[CaseFile],
    out: Path,
    request: ProposeRequest = BY_GAIN,
    progress: Progress = silent,
) -> Proposals:
    """Proposes patients to review, in two lists that share nobody, and writes tables, a page and the masks to review.

    The audit list is drawn first: uniformly over all patients who can be proposed, by the recorded seed, whatever any
    network thinks of them, so that promises may rest on it. The informative list is chosen from the others, to learn
    from. Patients who were reviewed before are in neither.

    Masks that were made before, from the same images with the same networks, are kept. An image that cannot be used is
    left out, by name, and a patient without any other is passed over.

    Args:
        run: A finished run of `adapt`; it needs no quality model.
        files: The images. All images of a patient are proposed together.
        out: Folder for the results.
        request: How many patients, and how they are chosen.
        progress: Told how far it is.

    Raises:
        UserError: The run has no reward networks to choose by, the store or the scores cannot be used, everybody was
            reviewed, or not one image can be used.
    """
    with alone_in(out):
        if request.budget and request.by != "random":
            _require_rewards(run, request.by)
        known = find_known(run, files, request.feedback, progress)
        eligible = _eligible(files, known)
        given = None if request.scores is None else _given_masks(run, request.scores, files)
        assessor = CaseAssessor(run, CaseRecords(out, _RECORDS, run.identity), given)
        assessor.require_own(files)
        withdraw_proposals(out)
        order = audit_order(eligible.keys() - known.taught, request.seed)
        audit, tried = _draw(order, eligible, request.audit, assessor, "drawing the audit sample", progress)
        others = {patient: eligible[patient] for patient in eligible if patient not in tried}
        covered = {patient: each for patient, each in _by_patient(files).items() if patient in known.teachers}
        informative = _choose(request, others, covered, assessor, progress)
        if not audit and not informative:
            first = next(iter(assessor.problems.values()), "nobody is left to be drawn; ask for more by --budget")
            raise DataError(f"no patient can be proposed; the first reason: {first}")
        proposals = Proposals(
            request,
            tuple(
                _proposed(patient, usable, assessor, f"drawn at random from {len(order)} patients")
                for patient, usable in audit.items()
            ),
            tuple(informative),
            len(order),
            len(others),
            known,
            assessor.problems,
            _networks(run, request),
        )
        simulated = are_simulated(files)
        write_proposals(out, proposals, run, simulated)
        return proposals


def _require_rewards(run: FinishedRun, by: str) -> None:
    """Loads what choosing needs, so that what is wrong with it is told before any image is read."""
    if not run.folder.final_reward.is_dir():
        raise ModelError(
            f"{run.path}: has no reward networks (folder {run.folder.final_reward.name}), and nothing else says where "
            f"its masks may be wrong, so that nobody can be chosen by {by}; take patients at random by --by random"
        )
    assert run.reward.networks
    if run.folder.quality.exists():
        assert run.quality.names


def _networks(run: FinishedRun, request: ProposeRequest) -> int | None:
    """How many reward networks were asked; None where none were."""
    return len(run.reward.networks) if request.budget and request.by != "random" else None


def _by_patient(files: Iterable[CaseFile]) -> dict[str, list[CaseFile]]:
    found: dict[str, list[CaseFile]] = {}
    for file in files:
        found.setdefault(file.patient_id, []).append(file)
    return found


def _eligible(files: Sequence[CaseFile], known: KnownPatients) -> dict[str, list[CaseFile]]:
    """The files of each patient who can be proposed.

    Raises:
        DataError: There is none.
    """
    found = {patient: each for patient, each in _by_patient(files).items() if patient not in known.left_out}
    if not found:
        raise DataError(
            f"all {len(known.left_out)} patients of these images have been reviewed or have taught the run; give "
            "images of others"
        )
    return found


def _given_masks(run: FinishedRun, path: Path, files: Sequence[CaseFile]) -> GivenMasks:
    """The masks that were scored.

    Raises:
        DataError: They are of other images, or another quality model scored them.
    """
    scores = Scores.read(path)
    scores.require_quality(run.folder.quality)
    schema, wanted = run.preprocessing.schema, {file.case_id for file in files}
    masks = {
        case: mask
        for case, mask in scores.mask_files.items()
        if case in wanted and set(schema.structures) <= scores.cases[case].predicted.keys()
    }
    if not masks:
        raise DataError(
            f"{path}: has the score of no image of these ({files[0].case_id} for one); score them, or leave out "
            "--scores to have their masks made"
        )
    return GivenMasks(masks, scores, schema, labels_in_masks(None, masks, schema))


def _draw(
    order: Sequence[str], files: _Files, wanted: int, assessor: CaseAssessor, stage: str, progress: Progress
) -> tuple[dict[str, list[CaseFile]], set[str]]:
    """The first patients of an order who have an image that can be used, and everybody who was looked at."""
    drawn: dict[str, list[CaseFile]] = {}
    tried: set[str] = set()
    total = min(wanted, len(order))
    for patient in order:
        if len(drawn) == wanted:
            break
        tried.add(patient)
        usable = assessor.draw(files[patient])
        if usable:
            drawn[patient] = usable
            progress(stage, len(drawn), total)
    return drawn, tried


def _choose(
    request: ProposeRequest, files: _Files, covered: _Files, assessor: CaseAssessor, progress: Progress
) -> list[ProposedPatient]:
    """Patients to learn from, in their order, with what they were chosen by."""
    if request.budget == 0 or not files:
        return []
    if request.by == "random":
        order = random_order(files, request.seed)
        drawn, _ = _draw(order, files, request.budget, assessor, "drawing at random", progress)
        why = "drawn at random, to be learned from"
        return [_proposed(patient, usable, assessor, why) for patient, usable in drawn.items()]
    beside = covered if request.by == "gain" else {}
    listed = [file for group in (files, beside) for each in group.values() for file in each]
    rated = assessor.rate(listed, progress)
    usable = {patient: [file for file in each if file.case_id in rated] for patient, each in files.items()}
    candidates = [
        candidate_of(patient, [rated[file.case_id] for file in each]) for patient, each in usable.items() if each
    ]
    if request.by == "clasp":
        choices = by_clasp(candidates, request.budget, request.seed)
    else:
        reviewed = [[rated[file.case_id] for file in each if file.case_id in rated] for each in beside.values()]
        seen = [np.mean([case.embedding for case in each], axis=0) for each in reviewed if each]
        choices = by_gain(candidates, seen, request.budget)
    return [_explained(choice, usable[choice.candidate.patient_id], assessor) for choice in choices]


def _explained(choice: Choice, files: Sequence[CaseFile], assessor: CaseAssessor) -> ProposedPatient:
    candidate, structures = choice.candidate, assessor.structures
    numbers = {
        "predicted_dice": float(1 - candidate.error.mean()),
        "disagreement": float(candidate.disagreement.mean()),
        "novelty": choice.novelty,
        "gain": choice.gain,
    }
    return _proposed(candidate.patient_id, files, assessor, _reason(candidate, choice, structures), numbers)


def _reason(candidate: Candidate, choice: Choice, structures: Sequence[str]) -> str:
    lowest = int(candidate.error.argmax()) if choice.structure is None else choice.structure
    of_one = f" ({structures[lowest]} {1 - candidate.error[lowest]:.2f})" if len(structures) > 1 else ""
    parts = [f"predicted Dice {1 - candidate.error.mean():.2f}{of_one}"]
    if candidate.disagreement.any():
        parts.append(f"networks disagree by {candidate.disagreement.mean():.3f}")
    # Only where there is nobody to be like is nothing shared at all.
    if choice.novelty is not None and choice.novelty < 1:
        parts.append(f"{100 * choice.novelty:.0f} % unlike those before")
    if choice.structure is not None:
        parts.append(f"chosen for {structures[choice.structure]}")
    return "; ".join(parts)


def _proposed(
    patient: str,
    files: Sequence[CaseFile],
    assessor: CaseAssessor,
    why: str,
    numbers: Mapping[str, float | None] | None = None,
) -> ProposedPatient:
    return ProposedPatient(patient, tuple(files), tuple(assessor.mask_of(file) for file in files), why, numbers or {})
