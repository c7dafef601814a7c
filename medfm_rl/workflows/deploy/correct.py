"""`medfm-rl correct`: the cases that scoring marked are corrected, where a verifier agrees, or referred."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medfm_rl.correction import CaseCorrector
from medfm_rl.data.each_case import each_case
from medfm_rl.data.files import alone_writing
from medfm_rl.data.layouts import CaseFile, whole_clips
from medfm_rl.data.mask_labels import write_class_names
from medfm_rl.errors import ConfigError, DataError
from medfm_rl.networks import hash_weights
from medfm_rl.progress import Progress, silent
from medfm_rl.runs.case_records import CaseRecords, hash_settings, label_path
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.runs.scores import SCORES_FILE, Scores
from medfm_rl.settings import RESEARCH, CorrectionSettings, SitePolicy
from medfm_rl.workflows.deploy.correction_bench import CorrectionBench, Job
from medfm_rl.workflows.deploy.correction_outputs import NOT_HANDLED, Corrections, write_page, write_tables
from medfm_rl.workflows.deploy.correction_terms import Terms
from medfm_rl.workflows.deploy.given_masks import GivenMasks
from medfm_rl.workflows.deploy.score import ScoreRequest, score
from medfm_rl.workflows.deploy.stream_scoring import StreamRequest
from medfm_rl.workflows.deploy.worker import Piece
from medfm_rl.workflows.deploy.workers import Crew, Nobody, Workers, at_work, seen_by_all

_RECORDS = "correct"
_FORMAT = 5
"""Of a record: what an older version left is not taken for a result of this one."""


@dataclass(frozen=True)
class CorrectRequest:
    """Which masks are corrected, and how.

    Attributes:
        settings: The way of correction, and what is accepted.
        scores: `scores.json` of `medfm-rl score`; None to score the cases first.
        every: Whether to take every case, whatever its verdict; nothing is scored then.
        propose_only: Whether every mask stays and corrections are written beside them.
        masks: By case, the masks to be corrected, whatever made them; None for those of the run's segmenter.
        labels: The integers in these masks, as in `labels_in_masks`. Those of the run are always those of the masks
            that are written.
        policy: Where the cases are scored first: as in `ScoreRequest`.
        stream: Likewise.
    """

    settings: CorrectionSettings = field(default_factory=CorrectionSettings)
    scores: Path | None = None
    every: bool = False
    propose_only: bool = False
    masks: Mapping[str, Path] | None = None
    labels: str | None = None
    policy: SitePolicy = RESEARCH
    stream: StreamRequest | None = None

    def __post_init__(self) -> None:
        if self.every and self.scores is not None:
            raise ConfigError(
                f"--all takes every case and asks no scores, so that {self.scores} would say nothing of which cases "
                "are taken or whether corrections are only proposed; leave out --all or --scores"
            )


OWN_MASKS_BY_VIEWS = CorrectRequest()
"""The masks of the run's segmenter, scored first, in the default way."""


@dataclass(frozen=True)
class CorrectionOrder:
    """The work of `correct`, for workers.

    Attributes:
        run: Loads the run.
        terms: Settings, and whether masks may change.
        masks: As in `CorrectionBench`.
        originals: Likewise.
        out: Output folder.
    """

    run: Callable[[str], FinishedRun]
    terms: Terms
    masks: GivenMasks | None
    originals: GivenMasks | None
    out: Path

    def load(self, device: str) -> CorrectionBench:
        run = self.run(device)
        records = CaseRecords(self.out, _RECORDS, run.identity, of_worker=True)
        corrector = run.corrector(self.terms.settings)
        return _bench_of(run, self.terms, corrector, records, self.masks, self.originals)


def correct(
    run: FinishedRun,
    files: Sequence[CaseFile],
    out: Path,
    request: CorrectRequest = OWN_MASKS_BY_VIEWS,
    progress: Progress = silent,
    workers: Workers | None = None,
) -> Corrections:
    """Corrects cases one by one and writes masks, pictures, tables and the audit log.

    `labels/` then has the mask to go on with of every case that has one: the correction where it was accepted, else the
    original, also of cases that were not taken.

    Where scoring found that the batch differs from the calibration cases, and suspended what it promises, corrections
    are proposed only.

    Cases that were handled before, from the same images with the same networks and settings, are not handled again,
    unless the time budget cut them. A case that cannot be handled is named; the others are handled.

    Args:
        run: A finished run of `adapt`.
        files: The images.
        out: Folder for the results.
        request: Which masks are corrected, and how.
        progress: Told how far it is.
        workers: Score and correct cases side by side; the result is that of this process alone.

    Raises:
        UserError: The run, the scores or the folder cannot be used, the scores are of other masks or by another quality
            model, masks that something else made lie in `labels/`, or not one case could be handled; or the workers
            cannot do the work, as in `at_work`.
    """
    with alone_writing(out):
        hashes = run.hash_correction()
        records = CaseRecords(out, _RECORDS, run.identity)
        for file in files:
            records.require_own(file.case_id, label_path(out, file.case_id), {"segmenter": hashes["segmenter"]})
        terms = Terms.of_run(run.folder, request.settings, hashes, request.propose_only, request.masks is not None)
        if any(file.frame is not None for file in files):
            terms = terms.for_clips()
        corrector = run.corrector(terms.settings)
        chosen = _choose(run, files, out, request, progress, workers)
        terms = terms.for_batch(None if chosen.scores is None else chosen.scores.state)
        given = originals = _given_masks(run, request, chosen.scores)
        if given is None and request.scores is None and chosen.scores is not None:
            made = {case_id: label_path(out / "scores", case_id) for case_id in chosen.scores.cases}
            originals = GivenMasks(made, chosen.scores, run.segmenter.schema)
        bench = _bench_of(run, terms, corrector, records, given, originals)
        order = CorrectionOrder(run.elsewhere(), terms, given, originals, out)
        seen = seen_by_all(files)
        with at_work(workers, order, bench.maker, seen, records, progress) as crew:
            handled, problems = _handle_all(bench, _jobs_of(chosen.files, files), crew, progress)
            if chosen.files and not handled:
                raise DataError(f"no case could be handled; the first: {next(iter(problems.values()))}")
            kept = [file for file in files if file.case_id not in handled]
            not_kept = _keep_all(bench, kept, crew, progress)
        # Why a case could not be scored or corrected says more than why its mask could not be kept.
        problems = {**not_kept, **problems, **chosen.problems}
        records.log([{"case": name, "decision": NOT_HANDLED, "problem": problem} for name, problem in problems.items()])
        untouched = sum(file.case_id not in problems for file in kept)
        corrections = Corrections(tuple(handled.values()), problems, untouched, terms.promise)
        write_tables(out, corrections, terms)
        write_page(out, files, corrections)
        write_class_names(label_path(out, files[0].case_id).parent, run.segmenter.schema)
        return corrections


def _bench_of(
    run: FinishedRun,
    terms: Terms,
    corrector: CaseCorrector,
    records: CaseRecords,
    masks: GivenMasks | None,
    originals: GivenMasks | None,
) -> CorrectionBench:
    """What corrects on these terms, here or in a worker."""
    common = {
        "format": _FORMAT,
        **run.hash_correction(),
        "inference": hash_settings(run.segmenter.inference_settings()),
        "settings": terms.settings.model_dump(mode="json"),
        "propose_only": terms.propose_only,
    }
    return CorrectionBench(corrector, run.reward, records, common, terms.propose_only, masks, originals)


def _jobs_of(chosen: Sequence[CaseFile], files: Sequence[CaseFile]) -> dict[str, Job]:
    """What is to be corrected together, by its name: each case, and of each clip the frames that are chosen."""
    of_clip: dict[str, list[CaseFile]] = {}
    for file in chosen:
        if file.frame is not None and file.clip_id is not None:
            of_clip.setdefault(file.clip_id, []).append(file)
    jobs = {}
    for unit in whole_clips(chosen):
        if unit.clip_id in of_clip:
            every = sorted((file for file in files if file.clip_id == unit.clip_id), key=lambda file: file.frame or 0)
            jobs[unit.case_id] = Job(unit, tuple(of_clip[unit.clip_id]), tuple(every))
        else:
            jobs[unit.case_id] = Job(unit, (unit,))
    return jobs


def _handle_all(
    bench: CorrectionBench, jobs: Mapping[str, Job], crew: Crew | Nobody, progress: Progress
) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    """Corrects cases one by one, and frames of one clip together.

    Returns:
        By case: the record, and why there is none.
    """
    crew.give((Piece(name, job, job.cases),) for name, job in jobs.items())

    def handle(unit: CaseFile) -> list[Mapping[str, Any]]:
        crew.wait_for(unit.case_id)
        return bench.correct(jobs[unit.case_id], done=crew.works)

    found, refused = each_case([job.unit for job in jobs.values()], handle, "correcting", progress)
    records = {record["case"]: record for unit in found.values() for record in unit}
    problems: dict[str, str] = {}
    for name, problem in refused.items():
        problems |= dict.fromkeys(jobs[name].cases, problem)
    return records, problems


def _keep_all(
    bench: CorrectionBench, files: Sequence[CaseFile], crew: Crew | Nobody, progress: Progress
) -> dict[str, str]:
    """Writes the masks of cases that are not corrected; says of which there is none, and why."""
    crew.give_singly(files, lambda file: Job(file, (file,), keep=True))

    def keep(file: CaseFile) -> None:
        crew.wait_for(file.case_id)
        bench.keep(file)

    return each_case(files, keep, "keeping other masks", progress)[1]


@dataclass(frozen=True)
class _Chosen:
    """The cases that are to be corrected.

    Attributes:
        files: The cases.
        problems: By case: why it could not be scored.
        scores: The scores that marked them; None where every case is taken.
    """

    files: Sequence[CaseFile]
    problems: Mapping[str, str]
    scores: Scores | None


def _choose(
    run: FinishedRun,
    files: Sequence[CaseFile],
    out: Path,
    request: CorrectRequest,
    progress: Progress,
    workers: Workers | None,
) -> _Chosen:
    """The cases to take: all, those that scores mark, or those that scoring them now marks.

    Raises:
        UserError: The scores are of other masks or by another quality model, or the cases cannot be scored.
    """
    if request.every:
        return _Chosen(files, {}, None)
    if request.scores is None:
        asked = ScoreRequest(request.masks, request.labels, policy=request.policy, stream=request.stream)
        scoring = score(run, files, out / "scores", asked, progress, workers)
        scores, problems = Scores.read(out / "scores" / SCORES_FILE), scoring.problems
        return _Chosen(scores.marked([file for file in files if file.case_id not in problems]), problems, scores)
    scores = Scores.read(request.scores)
    scores.require_quality(run.folder.quality)
    if request.masks is None:
        scores.require_segmenter(hash_weights(run.segmenter), run.path)
    return _Chosen(scores.marked(files), {}, scores)


def _given_masks(run: FinishedRun, request: CorrectRequest, scores: Scores | None) -> GivenMasks | None:
    if request.masks is None:
        return None
    return GivenMasks.of_user(request.masks, request.labels, scores, run.segmenter.schema)
