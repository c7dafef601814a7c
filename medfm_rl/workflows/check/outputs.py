"""What `medfm-rl check` writes: a picture of each case, the page, and all of it as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from medfm_rl.data.checks.result import DataCheck
from medfm_rl.data.files import replace_on_success, write_json
from medfm_rl.data.labels import FoundLabels
from medfm_rl.data.names import file_of_case
from medfm_rl.reports.data_check import write_check_page
from medfm_rl.reports.palette import colour_of
from medfm_rl.reports.thumbnails import thumbnail_of_case
from medfm_rl.types import BACKGROUND, Case

PAGE_FILE: Final = "report.html"
JSON_FILE: Final = "check.json"
_PICTURES: Final = "thumbnails"
_SIDE: Final = 256


class Pictures:
    """Pictures of cases in a folder, one at a time; a structure has the same colour in all of them.

    Args:
        out: The folder of the results.

    Attributes:
        colours: The colour of each structure that was drawn, in the order in which they were met.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.colours: dict[str, str] = {}

    def draw(self, case: Case, found: FoundLabels | None) -> None:
        """Writes the picture of a case, with its mask where there is one."""
        shown: dict[int, str] = {}
        if found is not None:
            for label in np.unique(found.ids).tolist():
                name = found.names.get(label, f"label {label}")
                if name != BACKGROUND:
                    shown[label] = self.colours.setdefault(name, colour_of(len(self.colours)))
        picture = thumbnail_of_case(case.image, None if found is None else found.ids, shown, _SIDE)
        with replace_on_success(self.path(case.case_id)) as temporary:
            temporary.write_bytes(picture)

    def path(self, case_id: str) -> Path:
        """Where the picture of a case lies."""
        return file_of_case(self.out / _PICTURES, case_id, ".png")


def write_outputs(result: DataCheck, pictures: Pictures) -> None:
    """Writes the page and the JSON file beside the pictures.

    Raises:
        DataError: They cannot be written.
    """
    drawn = {case.case_id: pictures.path(case.case_id) for case in result.cases if case.image is not None}
    write_json(pictures.out / JSON_FILE, result.to_json())
    write_check_page(pictures.out / PAGE_FILE, result, drawn, pictures.colours)
