"""`medfm-rl correct`: the cases that scoring marked are corrected, where a verifier agrees, or referred."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.delta import state_hash
from medfm_rl.data.layouts import CaseFile
from medfm_rl.data.mask_labels import parse_mask_labels
from medfm_rl.errors import ConfigError, DataError, UserError
from medfm_rl.progress import Progress
from medfm_rl.runs.case_records import CaseRecords, hash_settings, label_path
from medfm_rl.runs.folder import RunFolder
from medfm_rl.runs.identity import identify
from medfm_rl.settings import CorrectionSettings
from medfm_rl.workflows.deploy.correction_bench import CorrectionBench
from medfm_rl.workflows.deploy.correction_outputs import NOT_HANDLED, Corrections, write_page, write_tables
from medfm_rl.workflows.deploy.correction_terms import Terms
from medfm_rl.workflows.deploy.correctors import hash_parts, load_networks, make_corrector
from medfm_rl.workflows.deploy.masks_to_correct import GivenMasks, Marked, Scores
from medfm_rl.workflows.deploy.score import score
from medfm_rl.workflows.deploy.score_outputs import SCORES_FILE

_RECORDS = "correct"
_FORMAT = 2
"""Of a record: what an older version left is not taken for a result of this one."""


def correct(
    path: Path,
    files: Sequence[CaseFile],
    scores: Path | None,
    out: Path,
    settings: CorrectionSettings,
    propose_only: bool,
    every: bool,
    device: str,
    progress: Progress,
    *,
    prompts: Path | None = None,
    masks: Mapping[str, Path] | None = None,
    labels: str | None = None,
) -> Corrections:
    """Corrects cases one by one and writes masks, pictures, tables and the audit log.

    `labels/` then has the mask to go on with of every case that has one: the correction where it was accepted, else the
    original, also of cases that were not taken.

    Where scoring found that the batch differs from the calibration cases, and suspended what it promises, corrections
    are proposed only.

    Cases that were handled before, from the same images with the same networks and settings, are not handled again,
    unless the time budget cut them. A case that cannot be handled is named; the others are handled.

    Args:
        path: Finished run of `adapt`.
        files: The images.
        scores: `scores.json` of `medfm-rl score`, or None to score the cases first.
        out: Folder for the results.
        settings: What is optimised and what is accepted.
        propose_only: Whether every mask stays and corrections are written beside them.
        every: Whether to take every case, whatever its verdict; nothing is scored then, and `scores` is None.
        device: Where the networks run.
        progress: Told how far it is.
        prompts: For a promptable segmenter: where its boxes come from, as in `load_model`.
        masks: By case, the masks to be corrected, whatever made them; None for those of the run's segmenter.
        labels: The integers in these masks, as in `parse_mask_labels`; None for those of the run, which are always
            those of the masks that are written.

    Raises:
        UserError: The run, the scores or the folder cannot be used, the scores are of other masks or by another quality
            model, masks that something else made lie in `labels/`, or not one case could be handled.
    """
    if every and scores is not None:
        raise ConfigError(
            f"--all takes every case and asks no scores, so that {scores} would say nothing of which cases are taken "
            "or whether corrections are only proposed; leave out --all or --scores"
        )
    run = RunFolder(path)
    adapter, reward = load_networks(run, device, prompts)
    hashes = hash_parts(run, adapter.schema)
    records = CaseRecords(out, _RECORDS, identify(path))
    for file in files:
        records.require_own(file.case_id, label_path(out, file.case_id), {"segmenter": hashes["segmenter"]})
    terms = Terms.of_run(run, settings, hashes, propose_only, masks is not None)
    corrector = make_corrector(run, adapter, reward, terms.settings)
    if every:
        marked = Marked(files, {}, None)
    elif scores is None:
        asked = prompts if masks is None else None
        scoring = score(path, files, masks, None, out / "scores", device, progress, prompts=asked, labels=labels)
        marked = _marked_by(Scores.read(out / "scores" / SCORES_FILE), files, scoring.problems)
    else:
        marked = _marked_by(_read_scores(scores, run, adapter if masks is None else None), files, {})
    terms = terms.for_batch(None if marked.scores is None else marked.scores.state)
    given = None
    if masks is not None:
        in_masks = None if labels is None else parse_mask_labels(labels, adapter.schema)
        given = GivenMasks(masks, marked.scores, adapter.schema, in_masks)
    originals = given
    if masks is None and scores is None and marked.scores is not None:
        made = {case_id: label_path(out / "scores", case_id) for case_id in marked.scores.masks}
        originals = GivenMasks(made, marked.scores, adapter.schema)
    common = {
        "format": _FORMAT,
        **hashes,
        "inference": hash_settings(adapter.inference_settings()),
        "settings": terms.settings.model_dump(mode="json"),
        "propose_only": terms.propose_only,
    }
    bench = CorrectionBench(corrector, reward, records, common, terms.propose_only, given, originals)
    handled, problems = _each(marked.files, bench.handle, "correcting", progress)
    if marked.files and not handled:
        raise DataError(f"no case could be handled; the first: {next(iter(problems.values()))}")
    kept = [file for file in files if file.case_id not in handled]
    _, not_kept = _each(kept, bench.keep, "keeping other masks", progress)
    # Why a case could not be scored or corrected says more than why its mask could not be kept.
    problems = {**not_kept, **problems, **marked.problems}
    records.log([{"case": name, "decision": NOT_HANDLED, "problem": problem} for name, problem in problems.items()])
    untouched = sum(file.case_id not in problems for file in kept)
    corrections = Corrections(tuple(handled.values()), problems, untouched, terms.promise)
    write_tables(out, corrections, terms)
    write_page(out, files, corrections)
    return corrections


def _each(
    files: Sequence[CaseFile], handle: Callable[[CaseFile], Any], stage: str, progress: Progress
) -> tuple[dict[str, Any], dict[str, str]]:
    """By case: what came of it, and why nothing did."""
    results, problems = {}, {}
    for done, file in enumerate(files, 1):
        try:
            results[file.case_id] = handle(file)
        except UserError as error:
            problems[file.case_id] = str(error)
        progress(stage, done, len(files))
    return results, problems


def _marked_by(scores: Scores, files: Sequence[CaseFile], problems: Mapping[str, str]) -> Marked:
    return Marked(scores.marked([file for file in files if file.case_id not in problems]), problems, scores)


def _read_scores(path: Path, run: RunFolder, maker: SegmenterAdapter | None) -> Scores:
    """Scores of the run's quality model and, where one is given, of masks of a segmenter.

    Raises:
        DataError: They are of another one.
    """
    scores = Scores.read(path)
    scores.require_quality(run.quality)
    if maker is not None:
        scores.require_segmenter(state_hash(maker), run.path)
    return scores
