"""One image on the way to a proposal: its mask, its picture, and what the networks think of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

import numpy as np

from medfm_rl.adapters.clips import CaseMasks
from medfm_rl.data.each_case import case_alone
from medfm_rl.data.files import replace_on_success
from medfm_rl.data.images import write_labels
from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import UserError
from medfm_rl.progress import Progress
from medfm_rl.quality.evidence import Evidence, expected_dice
from medfm_rl.quality.proposals import Array, Candidate
from medfm_rl.quality.submission import collect_evidence, prepare, segment
from medfm_rl.reports.scores import thumbnail
from medfm_rl.runs.case_records import CaseRecords, hash_case, hash_segmenter, label_path
from medfm_rl.runs.finished import FinishedRun
from medfm_rl.types import Case, FloatArray, LabelMap
from medfm_rl.workflows.deploy.given_masks import GivenMasks
from medfm_rl.workflows.deploy.memory import must_fit
from medfm_rl.workflows.deploy.scoring import thumbnail_path

_FORMAT = 1
"""Of a record: what another version left is not taken for a result of this one."""


@dataclass(frozen=True, eq=False)
class RatedCase:
    """What the networks think of a mask.

    Attributes:
        predicted: `(K - 1,)` in [0, 1], predicted Dice of each structure; 0 for one that the mask lacks.
        disagreement: `(K - 1,)` in [0, 1], as in `Candidate`.
        embedding: `(F,)`, as in `Candidate`.
    """

    predicted: Array
    disagreement: Array
    embedding: Array

    def to_json(self) -> dict[str, list[float]]:
        """Plain JSON values."""
        return {name: values.tolist() for name, values in vars(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Sequence[float]]) -> Self:
        """What `to_json` made."""
        return cls(**{name: np.array(values, dtype=np.float64) for name, values in content.items()})


def candidate_of(patient_id: str, cases: Sequence[RatedCase]) -> Candidate:
    """A patient with all of his images, each of which counts as much as another."""
    return Candidate(
        patient_id,
        1 - np.mean([case.predicted for case in cases], axis=0),
        np.mean([case.disagreement for case in cases], axis=0),
        np.mean([case.embedding for case in cases], axis=0),
    )


@final
class CaseAssessor:
    """Segments images, or takes masks that are given, draws them, and asks the networks about some.

    Results are kept in the output folder, so that a repeated call goes on where the last one ended.

    Args:
        run: The finished run.
        records: Of earlier calls, and where results are written.
        given: Masks that are there already, and were scored by the run's quality model; None: the segmenter of the run
            makes them. Where they are there, it is not asked.

    Attributes:
        problems: By case: why it cannot be used.

    Raises:
        ModelError: A part of the run is missing or damaged.
    """

    def __init__(self, run: FinishedRun, records: CaseRecords, given: GivenMasks | None) -> None:
        self.problems: dict[str, str] = {}
        self._run = run
        self._records = records
        self._given = given
        self._segmenter = (run.segmenter if given is None else run.preprocessing).eval()
        self._masks = CaseMasks(self._segmenter)
        self._maker: dict[str, Any] = {"propose": _FORMAT, **hash_segmenter(self._segmenter)}

    def require_own(self, files: Sequence[CaseFile]) -> None:
        """Refuses an output folder where masks that something else made would be replaced.

        Raises:
            DataError: There is one.
        """
        if self._given is None:
            for file in files:
                self._records.require_own(file.case_id, label_path(self._records.out, file.case_id), self._maker)

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the structures, without the background."""
        return self._segmenter.schema.structures

    def mask_of(self, file: CaseFile) -> Path:
        """Where the mask of a case that was taken lies."""
        return label_path(self._records.out, file.case_id) if self._given is None else self._given.path(file.case_id)

    def draw(self, files: Sequence[CaseFile]) -> list[CaseFile]:
        """Makes or reads the masks of images, and draws them; no reward network is asked.

        Returns:
            Those that can be used; `problems` names the others.
        """
        return [file for file in files if self._alone(file, rated=False) is not None]

    def rate(self, files: Sequence[CaseFile], progress: Progress) -> dict[str, RatedCase]:
        """What the networks think of the masks of images, by case; `problems` names those that cannot be used."""
        found: dict[str, RatedCase] = {}
        for done, file in enumerate(files, 1):
            result = self._alone(file, rated=True)
            if result is not None:
                found[file.case_id] = RatedCase.from_json(result)
            progress("assessing", done, len(files))
        return found

    def _alone(self, file: CaseFile, rated: bool) -> Any | None:
        """The result of a case; None where it cannot be used, which costs no other."""
        try:
            with case_alone(file.case_id), must_fit(f"case {file.case_id}", self._run.device):
                return self._handle(file, rated)
        except UserError as error:
            self.problems[file.case_id] = str(error)
            return None

    def _handle(self, file: CaseFile, rated: bool) -> Any:
        identity = self._run.identity
        networks = {"reward": identity.reward_hash, "quality": identity.quality_hash} if rated else {}
        made = None if self._given is None else self._given.hashes(file.case_id)
        inputs = {**self._maker, **hash_case(file, self._segmenter), **networks, "given": made}
        known = self._records.reuse(file.case_id, inputs)
        if known is not None:
            return known
        case = file.read()
        self._records.begin(file.case_id, inputs)
        labels = self._masks.in_clip(file) if self._given is None else self._given.read(case)
        result, reward_map, labels = self._look(case, labels, rated)
        outputs = self._records.hash_files(self._write(case, labels, reward_map))
        self._records.log([{"case": file.case_id, "inputs": inputs, "outputs": outputs}])
        self._records.write(file.case_id, inputs, result, outputs)
        return result

    def _look(
        self, case: Case, labels: LabelMap | None, rated: bool
    ) -> tuple[dict[str, Any], FloatArray | None, LabelMap]:
        """What is recorded of a case, its reward map where it is rated, and its mask; maps on its own grid.

        Args:
            case: The case.
            labels: Its mask, where it is given or was made with those of its clip.
            rated: Whether it is rated.
        """
        if not rated:
            return {}, None, self._segmenter.segment(case) if labels is None else labels
        run, segmenter = self._run, self._segmenter
        submission = (
            segment(segmenter, run.anatomy, case, labels)
            if self._given is None or labels is None
            else prepare(segmenter, run.anatomy, case, labels, segmenter.preprocess(case), None)
        )
        (evidence,) = collect_evidence([submission], run.reward, segmenter.patch_size, segmenter.schema, run.device)
        reward_map = segmenter.restore_map(evidence.mean_map, submission.sample).clip(0, 1)
        return self._rating(case.case_id, evidence).to_json(), reward_map, submission.labels

    def _rating(self, case_id: str, evidence: Evidence) -> RatedCase:
        action = evidence.action[None]
        mean, spread = evidence.mean_map.float(), evidence.spread.float()
        expected, low = (
            expected_dice(maps.clamp(0, 1)[None], action, evidence.structures)[0].double().numpy()
            for maps in (mean, mean - spread)
        )
        predicted = self._scored(case_id)
        if predicted is None:
            predicted = self._calibrated(evidence) if self._run.folder.quality.exists() else expected
        return RatedCase(predicted, np.maximum(expected - low, 0), evidence.embedding)

    def _scored(self, case_id: str) -> Array | None:
        """Predicted Dice of each structure where it was scored before, `(K - 1,)`."""
        if self._given is None or self._given.scores is None:
            return None
        scored = self._given.scores.cases[case_id].predicted
        return np.array([scored[name] or 0.0 for name in self._segmenter.schema.structures])

    def _calibrated(self, evidence: Evidence) -> Array:
        """Predicted Dice of each structure by the quality model of the run, `(K - 1,)`."""
        model, structures = self._run.quality, self._segmenter.schema.structures
        rows = evidence.features(structures, model.pixels.probability(evidence))
        predicted = np.zeros(len(structures))
        for index, (name, numbers) in enumerate(zip(structures, rows, strict=True)):
            predictor = model.structures[name].predictor
            assert predictor is not None
            if numbers["size"] > 0:
                predicted[index] = predictor.predict(numbers)
        return predicted

    def _write(self, case: Case, labels: LabelMap, reward_map: FloatArray | None) -> list[Path]:
        """Writes what was made of a case, and says where."""
        out, schema = self._records.out, self._segmenter.schema
        written = [thumbnail_path(out, case.case_id)]
        with replace_on_success(written[0]) as temporary:
            temporary.write_bytes(thumbnail(case.image[0], labels, reward_map, schema))
        if self._given is None:
            written.append(label_path(out, case.case_id))
            write_labels(written[-1], labels, case.geometry, schema)
        return written
