"""Masks as the commands would read them: by a segmenter's structures, by a description, or for what they are."""

from __future__ import annotations

from collections.abc import Mapping

from medfm_rl.data.labels import FoundLabels, read_any_labels, read_labels
from medfm_rl.data.layouts import CaseFile
from medfm_rl.data.mask_labels import parse_mask_labels
from medfm_rl.types import BACKGROUND, Case, LabelSchema, where_said

_TRACED = LabelSchema((BACKGROUND, "LV"), (0, 1))
"""What tracings are of, where no segmenter says how it calls that."""


class MaskReader:
    """Reads masks, and keeps which integer stands for what.

    Args:
        schema: Structures of the segmenter; None where there is none.
        text: What the user says of the integers in the masks, as in `parse_mask_labels`.

    Attributes:
        integers: The integer of each name, as far as a description or the segmenter says it.
        by: How structures of the segmenter were found in the masks, in words.

    Raises:
        ConfigError: The text cannot be used.
    """

    def __init__(self, schema: LabelSchema | None, text: str | None = None) -> None:
        self.schema = schema
        self.stated = None if text is None or schema is None else parse_mask_labels(text, schema)
        self.integers: Mapping[str, int] = {}
        self.by = ""

    def read(self, file: CaseFile, case: Case) -> FoundLabels:
        """Labels `(*S)`, and what they stand for.

        Raises:
            DataError: The mask cannot be used.
        """
        assert file.label_path is not None
        if file.read_tracing(case) is not None:
            schema = self.schema or _TRACED
            self.integers, self.by = schema.integers, "tracings of the left ventricle"
            labels = file.read_labelled(schema, may_lack=True).ground_truth
            return FoundLabels.of(labels, schema)
        if self.schema is None:
            in_file = None if file.described is None else file.described.own_schema()
            found = read_any_labels(file.label_path, case.shape, case.geometry, in_file, case.frame, case.frames)
        else:
            in_file, self.by = self.stated, "read by --labels"
            if in_file is None and file.described is not None:
                self.by = f"read by the names in {file.described.path}"
                in_file = file.described.schema_for(self.schema)
            elif in_file is None:
                self.by = "read by these integers, or by the names of their segments where they have any"
            frame, frames = case.frame, case.frames
            labels = read_labels(file.label_path, self.schema, case.shape, case.geometry, in_file, frame, True, frames)
            found = FoundLabels.of(where_said(labels), self.schema)
        known = in_file or self.schema
        if known is not None:
            self.integers = known.integers
        return found
