"""`medfm-rl check`: what a data set holds, what is refused and why, and what looks suspicious.

Nothing in here loads a network unless a segmenter is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from medfm_rl.data.checks import CaseFacts, Finding, find_suspicious
from medfm_rl.data.checks.result import DataCheck
from medfm_rl.data.each_case import each_case
from medfm_rl.data.layouts import CaseFile, DataSet, described_labels, find_data_set, is_simulated
from medfm_rl.data.locks import alone_in
from medfm_rl.data.mask_files import MatchedMasks, match_masks
from medfm_rl.errors import ConfigError
from medfm_rl.progress import Progress, silent
from medfm_rl.settings import DataSettings
from medfm_rl.workflows.check.examination import Examination, below
from medfm_rl.workflows.check.masks import MaskReader
from medfm_rl.workflows.check.outputs import Pictures, write_outputs
from medfm_rl.workflows.check.segmenter import describe_segmenter, find_unexpected_values

if TYPE_CHECKING:
    from medfm_rl.runs.models import StoredModel


@dataclass(frozen=True)
class CheckRequest:
    """What is looked at besides the data set itself.

    Attributes:
        masks: A folder of masks of the names of the images, in place of those of the data set.
        labels: The integers in these masks, as in `labels_in_masks`; it needs a segmenter, whose names are used.
        model: A segmenter, or a run of `adapt`, that is asked whether it takes images and masks.
        out: Folder for the page, its pictures and the JSON file; None to write nothing.
    """

    masks: Path | None = None
    labels: str | None = None
    model: StoredModel | None = None
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and (self.masks is None or self.model is None):
            raise ConfigError(
                "--labels are the integers in --masks of the structures of --segmenter: give both with it"
            )


DATA_ALONE = CheckRequest()
"""The data set alone, and nothing is written."""


def check(data: DataSettings, request: CheckRequest = DATA_ALONE, progress: Progress = silent) -> DataCheck:
    """Reads every image and mask of a data set, one at a time, and says what is there, what is refused and what is odd.

    Messages are those of the commands that use the data. Nothing is learned from masks.

    Args:
        data: Where the images lie.
        request: What is looked at besides, and where results are written.
        progress: Told how far it is.

    Raises:
        UserError: There is no data set, or not one mask for it, or the segmenter cannot be loaded, or the output cannot
            be written.
    """
    if request.out is not None and request.out.resolve().is_relative_to(data.path.resolve()):
        raise ConfigError(
            f"--out {request.out}: lies in the data set {data.path}, whose images its pictures would be taken for; "
            "choose a folder outside"
        )
    with nullcontext() if request.out is None else alone_in(request.out):
        found = find_data_set(data)
        given = None if request.masks is None else match_masks(request.masks, found.cases)
        files = found.cases if given is None else _with_masks(found.cases, given)
        segmenter = None if request.model is None else request.model.segmenter
        reader = MaskReader(None if segmenter is None else segmenter.schema, request.labels)
        pictures = None if request.out is None else Pictures(request.out)
        examination = Examination(found.root, reader, segmenter, pictures)
        _, problems = each_case(files, examination.take, "checking", progress)
        if examination.unwritten is not None:
            raise examination.unwritten
        cases = [_with_problem(examination.facts[file.case_id], problems.get(file.case_id)) for file in files]
        findings = [*_doubts(found), *([] if given is None else _unmatched(given)), *find_suspicious(cases)]
        fit = None
        if request.model is not None and segmenter is not None:
            fit = describe_segmenter(request.model.path, segmenter, reader.by)
            findings += find_unexpected_values(cases, segmenter.expected_values())
        skipped = {reason: [below(path, found.root) for path in paths] for reason, paths in found.skipped.items()}
        result = DataCheck(
            found.root,
            found.layout,
            found.patients_by,
            cases,
            skipped,
            found.notes,
            findings,
            reader.integers,
            fit,
            is_simulated(found.root),
        )
        if pictures is not None:
            write_outputs(result, pictures)
        return result


def _with_problem(facts: CaseFacts, problem: str | None) -> CaseFacts:
    """The facts of a case, with why it could not be taken where they do not say it."""
    return facts if problem is None or facts.problems else replace(facts, problems=(problem,))


def _with_masks(files: Sequence[CaseFile], given: MatchedMasks) -> list[CaseFile]:
    """The cases with masks of another folder, and what a description there says of them."""
    described = described_labels(next(iter(given.masks.values())).parent)
    return [replace(file, label_path=given.masks.get(file.case_id), described=described) for file in files]


def _doubts(found: DataSet) -> list[Finding]:
    rule = (
        "One patient alone, as many patients as images though names begin alike, or patients that are a word before a "
        "number. Splits, intervals and promises count patients."
    )
    return [] if found.doubt is None else [Finding("patients", found.doubt, rule, also=found.patients)]


def _unmatched(given: MatchedMasks) -> list[Finding]:
    """Masks of another folder that are of no image, or not of one alone."""
    alone = Finding(
        "mask-alone",
        "have the name of no image",
        "Masks are found by the name of the image; these are not looked at.",
        {path.name: "" for path in given.alone.values()},
        len(given.masks) + len(given.alone) + len(given.twice),
        "masks",
    )
    twice = Finding(
        "mask-twice",
        "share a name",
        "Of two masks of a name neither is taken; remove one of them.",
        {name: " and ".join(path.name for path in paths) for name, paths in given.twice.items()},
        alone.of,
        "masks",
    )
    return [finding for finding in (alone, twice) if finding.cases]
