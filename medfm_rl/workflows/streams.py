"""`medfm-rl stream` and `medfm-rl monitor`: studies into a stream, reviews of them, and how all of it stands."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from medfm_rl.data.files import write_text
from medfm_rl.errors import ConfigError
from medfm_rl.metrics.scores import MEAN
from medfm_rl.progress import Progress, silent
from medfm_rl.quality.promises import PROMISE_FILE, Promise
from medfm_rl.reports.prometheus import metric_values, prometheus_text
from medfm_rl.reports.streams import StreamView, write_monitor
from medfm_rl.runs.judging import Judge
from medfm_rl.runs.scores import Scores
from medfm_rl.runs.stream_history import UNKNOWN, StreamHistory, StreamIdentity, Study, StudyCase, read_stream
from medfm_rl.runs.stream_promise import losses_under, standing_of
from medfm_rl.runs.stream_state import add_reviews, add_studies
from medfm_rl.settings import RESEARCH, TrackingSettings
from medfm_rl.tracking import open_tracker
from medfm_rl.workflows.calibrate.audit import AuditRequest, gather_audit
from medfm_rl.workflows.deploy.stream_scoring import warn_of_unknown_scanner

_LOG = logging.getLogger(__name__)


def stream_scores(
    path: Path,
    scores: Path,
    scanner: str = UNKNOWN,
    protocol: str = UNKNOWN,
    site: str = UNKNOWN,
    audit_share: float = RESEARCH.audit_share,
    seed: int = 0,
    now: datetime | None = None,
) -> tuple[list[Study], int]:
    """Feeds the cases of a `scores.json` into a stream, patient by patient in their order.

    Cases that could not be assessed have no numbers, and are left out with a warning.

    Args:
        path: The stream; it is made where there is none.
        scores: A `scores.json` of `score`.
        scanner: Name of the scanner.
        protocol: Protocol.
        site: Hospital or department.
        audit_share: Share of the accepted cases that are drawn for review; of a new stream.
        seed: Of the draws of a new stream.
        now: The time; None for that of the clock.

    Returns:
        New studies, and how many cases were there already.

    Raises:
        DataError: The scores cannot be read, or the stream does not take them.
        ConfigError: The share is none.
    """
    if not 0 <= audit_share <= 1:
        raise ConfigError(f"audit_share {audit_share}: must be between 0 and 1")
    found = Scores.read(scores)
    if found.problems:
        _LOG.warning("%s: %d cases could not be assessed and are in no stream", scores, len(found.problems))
    warn_of_unknown_scanner(path, scanner)
    patients: dict[str, list[StudyCase]] = {}
    for case in found.cases.values():
        patients.setdefault(case.patient_id, []).append(
            StudyCase(
                case.case_id,
                case.mask,
                case.verdict,
                case.as_calibrated[MEAN],
                case.mean.mean_reward,
                case.shift_distance,
                case.broken_rules,
                look=case.look,
                simulated=found.simulated,
            )
        )
    identity = StreamIdentity(scanner, protocol, site, found.quality, seed, audit_share)
    return add_studies(path, identity, patients, now)


def stream_reviews(path: Path, run: Judge, request: AuditRequest, progress: Progress = silent) -> int:
    """Feeds what reviewers said of the masks of a stream into it.

    Args:
        path: The stream.
        run: The run, or the judge, that assessed.
        request: What was scored and reviewed.
        progress: Told how far it is.

    Returns:
        How many reviews are new.

    Raises:
        UserError: As in `gather_audit` and `add_reviews`.
    """
    history = read_stream(path)
    reviewed = {mask.case: mask.dice for mask in gather_audit(run, request, progress).masks}
    scored = Scores.read(request.scores).cases
    found = {
        key: reviewed[case.case]
        for key, case in history.cases.items()
        if case.case in reviewed and scored[case.case].mask == case.mask
    }
    return add_reviews(path, found)


def monitor(
    paths: Sequence[Path],
    page: Path | None = None,
    run: Path | None = None,
    prometheus: Path | None = None,
    mlflow: str | None = None,
) -> list[StreamView]:
    """How streams stand: one page, Prometheus' text and MLflow's numbers, as they are asked for.

    Args:
        paths: The streams.
        page: The page to write.
        run: A finished run, whose `promise.json` is compared with the streams.
        prometheus: File for Prometheus' textfile collector; written whole or not at all.
        mlflow: MLflow tracking URI; each stream is a run there.

    Raises:
        ConfigError: A stream is given twice.
        DataError: A stream cannot be read.
        ModelError: The promise cannot.
        TrackingError: MLflow does not answer.
    """
    _refuse_twice(paths)
    promise = None
    if run is not None and (run / PROMISE_FILE).exists():
        promise = Promise.read(run / PROMISE_FILE)
    elif run is not None:
        _LOG.warning(
            "%s: there is no promise; `medfm-rl calibrate %s --feedback STORE` proves one", run / PROMISE_FILE, run
        )
    views = [
        replace(view_of(read_stream(path), promise), name=name)
        for path, name in zip(paths, stream_names(paths), strict=True)
    ]
    if page is not None:
        write_monitor(page, views)
    if prometheus is not None:
        write_text(prometheus, prometheus_text(views))
    if mlflow is not None:
        for path, view in zip(paths, views, strict=True):
            _track(path, view, mlflow)
    return views


def _refuse_twice(paths: Sequence[Path]) -> None:
    known: dict[str, Path] = {}
    for path in paths:
        file = os.path.realpath(path)
        if file in known:
            same = "is given twice" if known[file] == path else f"is the same file as {known[file]}"
            raise ConfigError(f"{path}: {same}; give each stream once")
        known[file] = path


def stream_names(paths: Sequence[Path]) -> list[str]:
    """The names by which streams are told apart: file names, with as much of the folders before them as is needed.

    Args:
        paths: Files of streams, each once.
    """
    places = [path.parent.resolve() / path.name for path in paths]
    names = []
    for place in places:
        alike = [other for other in places if other.stem == place.stem]
        names.append(_own_name(place, alike))
    return names


def _own_name(place: Path, alike: Sequence[Path]) -> str:
    """The shortest end of a path that no two of those have which share its stem, without its suffix where that can be.

    All of them get ends of one length, so that the order in which they are given does not matter.
    """
    for suffix in (False, True):
        parts = {path: (path if suffix else path.with_suffix("")).parts for path in alike}
        for length in range(1, max(map(len, parts.values())) + 1):
            if len({own[-length:] for own in parts.values()}) == len(alike):
                return "/".join(parts[place][-length:])
    return str(place)


def view_of(history: StreamHistory, promise: Promise | None) -> StreamView:
    """What is shown of a stream."""
    standing, under_promise = standing_of(history, promise), losses_under(history, promise)
    drift, cases = standing.drift, history.cases
    identity = history.identity
    return StreamView(
        name=history.name,
        scanner=identity.scanner,
        protocol=identity.protocol,
        site=identity.site,
        times=tuple(study.time for study in history.studies),
        verdicts=tuple(tuple(case.verdict for case in study.cases) for study in history.studies),
        drift=drift,
        promise=promise,
        state=standing.promise_state,
        audit_share=identity.audit_share,
        drawn=sum(case.audit for case in cases.values()),
        open_audits=tuple(case.case for case in history.open_audits),
        reviewed_dice=tuple(review.dice for review in history.reviews.values()),
        under_promise=len(under_promise),
        bad_under_promise=sum(loss > 0 for loss in under_promise),
        changed_at=None if drift.alarm is None else history.tested[drift.alarm.since - 1].time[:16],
        cut_short=history.cut_short,
        simulated=any(case.simulated for case in cases.values()),
    )


def _track(path: Path, view: StreamView, uri: str) -> None:
    settings = TrackingSettings(uri=uri)
    # MLflow's id of the stream's run is kept beside it, so that the next call goes on with it.
    with open_tracker(settings, path.with_name(f"{path.name}.mlflow"), f"stream {view.name}") as tracker:
        tracker.log_params({"scanner": view.scanner, "protocol": view.protocol, "site": view.site})
        tracker.log_metrics(metric_values(view), step=len(view.times))
