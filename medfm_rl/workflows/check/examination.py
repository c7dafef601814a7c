"""One case after the other: each is read, asked about and drawn, and let go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medfm_rl.data.checks import CaseFacts, facts_by_schema, image_facts, mask_facts
from medfm_rl.data.each_case import UnforeseenError, case_alone
from medfm_rl.data.labels import FoundLabels
from medfm_rl.data.layouts import CaseFile
from medfm_rl.data.notices import collected_notices
from medfm_rl.errors import DataError, UserError
from medfm_rl.types import Case, frame_ids
from medfm_rl.workflows.check.masks import MaskReader
from medfm_rl.workflows.check.outputs import Pictures

if TYPE_CHECKING:
    from medfm_rl.adapters import SegmenterAdapter


class Examination:
    """Takes cases one by one, and keeps their facts.

    Args:
        root: Folder of the data set.
        reader: Reads masks.
        segmenter: Is asked whether it takes the images; None where none is.
        pictures: Takes up a picture of each; None where none are wanted.

    Attributes:
        facts: By case, of each that was taken, as far as it could be read.
        unwritten: Why a picture could not be written, after which none is drawn any more; None where all could.
    """

    def __init__(
        self, root: Path, reader: MaskReader, segmenter: SegmenterAdapter | None, pictures: Pictures | None
    ) -> None:
        self.root = root
        self.reader = reader
        self.segmenter = segmenter
        self.pictures = pictures
        self.facts: dict[str, CaseFacts] = {}
        self.unwritten: DataError | None = None

    def take(self, file: CaseFile) -> None:
        """Reads a case.

        Raises:
            UserError: It cannot be used. Mask and segmenter have each been asked; the facts have what both said.
        """
        images = tuple(below(path, self.root) for path in file.image_paths)
        mask_file = None if file.label_path is None else below(file.label_path, self.root)
        facts = self.facts[file.case_id] = CaseFacts(file.case_id, file.patient_id, images, mask_file)
        with collected_notices() as notices:
            try:
                case = file.read()
                self.facts[file.case_id] = replace(facts, image=image_facts(case))
                errors = [*self._mask(file, case), *self._fit(file, case)]
            finally:
                self.facts[file.case_id] = replace(self.facts[file.case_id], notices=tuple(notices))
        if errors:
            problems = tuple(map(str, errors))
            self.facts[file.case_id] = replace(self.facts[file.case_id], problems=problems)
            raise errors[0]

    def _mask(self, file: CaseFile, case: Case) -> list[UserError]:
        """Reads the mask, where there is one, and draws the case; what is wrong with the mask."""
        found, errors = None, []
        if file.label_path is not None:
            try:
                with case_alone(file.case_id):
                    found = self.reader.read(file, case)
                mask = (
                    mask_facts(found.ids, found.names)
                    if found.schema is None
                    else facts_by_schema(found.ids, found.schema)
                )
                self.facts[file.case_id] = replace(self.facts[file.case_id], mask=mask)
            except UserError as error:
                errors.append(error)
        self._draw(case, found)
        return errors

    def _draw(self, case: Case, found: FoundLabels | None) -> None:
        """Writes the picture of a case; where that fails, it is not the case that is at fault."""
        if self.pictures is None or self.unwritten is not None:
            return
        try:
            self.pictures.draw(case, found)
        except DataError as error:
            self.unwritten = error

    def _fit(self, file: CaseFile, case: Case) -> list[UserError]:
        """Has the segmenter preprocess the image; why it does not take it."""
        if self.segmenter is None:
            return []
        try:
            with case_alone(file.case_id):
                if file.clip is None or file.frame is None or not self.segmenter.segments_clips:
                    self.segmenter.preprocess(case)
                    self.segmenter.prompt_hash(file.case_id)
                else:
                    self.segmenter.preprocess_frame(case, np.zeros(case.shape, dtype=np.uint8))
                    if file.frame == 0:
                        self.segmenter.prompt_hash_of_clip(frame_ids(str(file.clip_id), file.clip.count))
        except UnforeseenError as error:
            return [error]
        except UserError as error:
            return [DataError(file.name_in(str(error)))]
        return []


def below(path: Path, root: Path) -> str:
    """A path from the folder of the data set, where it lies in there."""
    return str(path.relative_to(root)) if root in path.parents else str(path)
