"""The structures of a source model, where the settings do not name them: as the data does, or what to write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import yaml

from medfm_rl.data.labels import list_labels
from medfm_rl.data.layouts import CaseFile
from medfm_rl.errors import ConfigError
from medfm_rl.progress import Progress
from medfm_rl.types import LabelSchema

_READ: Final = 50
"""Masks that are opened to say what is in them."""
_MOST: Final = 12
"""Integers that are taken for labels; more are hardly such."""


def find_structures(
    given: Mapping[str, int] | None, files: Sequence[CaseFile], place: Path, progress: Progress
) -> LabelSchema:
    """The structures of the settings, or else those that the description of the data names.

    Args:
        given: Those of the settings.
        files: The cases.
        place: The data set, for the message.
        progress: Told how many masks were opened.

    Raises:
        ConfigError: Nothing names them; the message shows the line to write, with the integers in the masks.
        DataError: The description contradicts itself, or a mask cannot be read.
    """
    if given is not None:
        try:
            return LabelSchema.from_structures(given)
        except ValueError as error:
            raise ConfigError(f"structures: {error}") from error
    described = next((file.described for file in files if file.described is not None), None)
    if described is not None:
        schema = described.own_schema()
        # Of structures that overlap a network may segment what no integer of the masks stands for.
        return LabelSchema.of_regions(schema.structures) if schema.overlaps else schema
    raise ConfigError(_what_to_write([file.label_path for file in files if file.label_path], place, progress))


def _what_to_write(masks: Sequence[Path], place: Path, progress: Progress) -> str:
    found: dict[int, str] = {}
    read = masks[:_READ]
    for done, path in enumerate(read, 1):
        found = {**list_labels(path), **found}
        progress("looking what the masks hold", done, len(read))
    labels = {number: name for number, name in sorted(found.items()) if number != 0}
    problem = f"structures: not given, and {place} has no dataset.json that names them"
    if not labels:
        return f"{problem}; write the names and integers of the structures, such as\n  structures: {{LV: 1, MYO: 2}}"
    if len(labels) > _MOST:
        return (
            f"{problem}; its masks hold {len(labels)} different values from {min(labels)} to {max(labels)}, which are "
            "hardly labels: were they smoothed, or saved as colours?"
        )
    names = {name or f"NAME-{index}": number for index, (number, name) in enumerate(labels.items(), 1)}
    unnamed = "" if all(labels.values()) else ", with names of your own"
    line = yaml.safe_dump({"structures": names}, default_flow_style=None, sort_keys=False, width=10_000).strip()
    return (
        f"{problem}; {len(read)} of its masks hold the integers {', '.join(map(str, sorted(found)))}. Write into the "
        f"settings{unnamed}:\n  {line}"
    )
