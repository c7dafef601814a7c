"""Masks of other tools: which integers stand in their files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from medfm_rl.data.files import write_json
from medfm_rl.data.layouts import described_labels
from medfm_rl.data.layouts.description import DESCRIPTION
from medfm_rl.errors import ConfigError
from medfm_rl.structures import JOINS
from medfm_rl.types import BACKGROUND, LabelSchema

_LOG = logging.getLogger(__name__)


def parse_mask_labels(text: str, schema: LabelSchema, option: str = "--labels") -> LabelSchema:
    """Reads what a user says of the integers in mask files; a warning names the structures that are left out.

    Args:
        text: `NAME=INTEGER,...`, such as `LV=255`. Structures that are not named are in none of the masks. The
            background is 0, unless `background=INTEGER` is among them. Where structures overlap, what lies in several
            is named by all of them: `WT=1,WT+TC=2`.
        schema: Structures of the run, whose names are used.
        option: What the user says it by, for messages.

    Returns:
        The structures that were named, and the integers that stand for them.

    Raises:
        ConfigError: It is not of that form, names something else or nothing, or gives two the same integer.
    """
    ids = _integers(text, option)
    for name in ids:
        if not set(_structures_in(name, schema)) <= set(schema.names):
            raise ConfigError(
                f"{option} {name}={ids[name]}: there is no {name}; the run segments {', '.join(schema.structures)}"
            )
    background = ids.pop(BACKGROUND, 0)
    taken_in = {
        name: [label for whole, label in ids.items() if name in _structures_in(whole, schema)]
        for name in schema.structures
    }
    missing = [name for name, labels in taken_in.items() if not labels]
    if not ids:
        raise ConfigError(f"{option} {text}: names no structure; the run segments {', '.join(schema.structures)}")
    if missing:
        _LOG.warning(
            "%s %s: does not name %s: no mask has it, and score refers masks that lack a structure of the run",
            option,
            text,
            " and ".join(missing),
        )
    return (
        LabelSchema.from_regions(taken_in, background)
        if schema.overlaps
        else LabelSchema.from_structures(ids, background)
    )


def _structures_in(name: str, schema: LabelSchema) -> list[str]:
    """The structures that a name stands for: of those that overlap, such as `WT+TC`, all that are joined in it."""
    return [part.strip() for part in name.split(JOINS)] if schema.overlaps else [name]


def schema_of_masks(text: str | None, folder: Path) -> LabelSchema:
    """The structures of masks where no segmenter says which are wanted.

    Args:
        text: What the user says, `NAME=INTEGER,...`; None to go by the `dataset.json` that lies with the masks.
        folder: The folder of the masks.

    Raises:
        ConfigError: It is not of that form, or nothing says what the integers mean.
        DataError: `dataset.json` cannot be read, or contradicts itself.
    """
    if text is None:
        described = described_labels(folder)
        if described is None:
            raise ConfigError(
                f"{folder}: nothing says what the integers in the masks mean; give --labels, such as LV=1,MYO=2,LA=3"
            )
        return described.own_schema()
    return parse_structures(text, "--labels")


def labels_in_masks(
    text: str | None, masks: Mapping[str, Path], schema: LabelSchema, option: str = "--labels"
) -> LabelSchema | None:
    """The meaning of the integers in masks that are given; None for that of the run.

    Args:
        text: What the user says, as in `parse_mask_labels`; None to go by the `dataset.json` that lies with the masks,
            such as nnU-Net writes beside its predictions.
        masks: The masks by case.
        schema: Structures of the run.
        option: What the user says it by, for messages.

    Raises:
        ConfigError: As in `parse_mask_labels`.
        DataError: `dataset.json` cannot be read, or does not name the structures of the run.
    """
    if text is not None:
        return parse_mask_labels(text, schema, option)
    described = None if not masks else described_labels(next(iter(masks.values())).parent)
    return None if described is None else described.schema_for(schema)


def write_class_names(folder: Path, schema: LabelSchema) -> None:
    """Writes what the integers in masks of structures that overlap mean, as `dataset.json` beside them.

    Nothing is written where structures exclude each other: their integers are those of the segmenter.
    """
    if schema.overlaps and folder.is_dir():
        write_json(folder / DESCRIPTION, {"labels": schema.integers})


def parse_structures(text: str, option: str = "--structures") -> LabelSchema:
    """Reads what a user says of the structures in masks that no run made.

    Args:
        text: `NAME=INTEGER,...`, such as `LV=1,MYO=2`. The background is 0, unless `background=INTEGER` is among them.
        option: What the user says it by, for messages.

    Raises:
        ConfigError: It is not of that form, names nothing, or gives two the same integer.
    """
    ids = _integers(text, option)
    if not ids.keys() - {BACKGROUND}:
        raise ConfigError(f"{option} {text}: names no structure; write NAME=INTEGER, such as LV=1,MYO=2")
    return LabelSchema.from_integers(ids)


def _integers(text: str, option: str) -> dict[str, int]:
    """The integers of an option by name, in its order.

    Raises:
        ConfigError: It is not of the form `NAME=INTEGER,...`, or something is there twice.
    """
    ids: dict[str, int] = {}
    for part in text.split(","):
        name, equals, number = (piece.strip() for piece in part.rpartition("="))
        if not (name and equals and number.isascii() and number.isdigit() and int(number) <= 255):
            raise ConfigError(f"{option} {part}: must be NAME=INTEGER with an integer from 0 to 255, such as LV=255")
        if name in ids:
            raise ConfigError(f"{option} {text}: {name} is there twice; one integer stands for a structure")
        ids[name] = int(number)
    _require_distinct({BACKGROUND: 0, **ids}, f"{option} {text}")
    return ids


def _require_distinct(ids: Mapping[str, int], said: str) -> None:
    owners: dict[int, str] = {}
    for name, number in ids.items():
        if number in owners:
            advice = f"; say what is background by {BACKGROUND}=INTEGER" if owners[number] == BACKGROUND else ""
            raise ConfigError(f"{said}: {number} stands for {owners[number]} and for {name}{advice}")
        owners[number] = name
