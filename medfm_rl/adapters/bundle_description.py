"""What the files of a MONAI bundle say of its structures and outputs; nothing in them is run here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from medfm_rl.adapters.checkpoints import read_json_object
from medfm_rl.errors import ModelError
from medfm_rl.types import BACKGROUND, LabelSchema

METADATA: Final = "metadata.json"
_CONFIGS: Final = ("inference.json", "inference.yaml", "inference.yml")
THRESHOLD: Final = 0.5
"""Probability from which on a pixel lies in a structure that has a sigmoid of its own."""
_DECISION: Final = re.compile(r"(Activations|Invert|AsDiscrete|SaveImage|EnsureType|CastToType|ToDevice)(d|D|Dict)?")
"""Steps of a postprocessing that lead to the mask which the outputs say, and to its file."""


def read_metadata(folder: Path) -> Mapping[str, Any]:
    """The content of `configs/metadata.json`.

    Raises:
        ModelError: It is missing or no JSON object.
    """
    return read_json_object(
        folder / "configs" / METADATA, f"{folder}: not a MONAI bundle, there is no configs/{METADATA}"
    )


def find_config(folder: Path) -> Path:
    """The configuration for inference.

    Raises:
        ModelError: There is none.
    """
    found = next((folder / "configs" / name for name in _CONFIGS if (folder / "configs" / name).exists()), None)
    if found is None:
        raise ModelError(
            f"{folder}: there is no configs/inference.json or .yaml; only bundles for inference are adapted"
        )
    return found


def takes_sigmoid(parser: Any) -> bool:
    """Whether the postprocessing takes the sigmoid of the outputs, so that structures of several channels may overlap.

    Args:
        parser: MONAI's parser, which has read the configuration.
    """
    return any(step.get("sigmoid") for step in _steps(parser))


def describe(metadata: Mapping[str, Any], path: Path, sigmoid: bool) -> tuple[int, LabelSchema]:
    """Channels of an image, and the structures. An output of one channel is the logit of the only structure.

    Args:
        metadata: What `read_metadata` gave.
        path: The file, for messages.
        sigmoid: Whether each channel is a decision of its own, and structures may overlap.

    Raises:
        ModelError: It does not say them, or too many overlap.
    """
    try:
        described = metadata["network_data_format"]
        image, prediction = described["inputs"]["image"], described["outputs"]["pred"]
        names = {int(index): str(name) for index, name in prediction["channel_def"].items()}
        channels, classes = int(image["num_channels"]), int(prediction["num_channels"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{path}: network_data_format must say inputs.image.num_channels and outputs.pred with num_channels and "
            f"channel_def (missing or wrong: {error})"
        ) from error
    if classes == 1:
        # One logit: the structure alone, or with the background that it leaves.
        structures = [name for name in names.values() if name.lower() != BACKGROUND]
        if len(structures) != 1 or len(names) > 2:
            raise ModelError(
                f"{path}: outputs.pred.channel_def must name the one structure of an output of 1 channel, not "
                f"{', '.join(names.values()) or 'nothing'}"
            )
    elif sigmoid:
        return channels, _overlapping(names, classes, path)
    elif sorted(names) != list(range(classes)) or classes < 2:
        raise ModelError(f"{path}: outputs.pred.channel_def must name {classes} channels, background first")
    else:
        structures = [names[index] for index in range(1, classes)]
    try:
        return channels, LabelSchema((BACKGROUND, *structures), tuple(range(len(structures) + 1)))
    except ValueError as error:
        raise ModelError(f"{path}: outputs.pred.channel_def: {error}") from error


def _overlapping(names: Mapping[int, str], count: int, path: Path) -> LabelSchema:
    if sorted(names) != list(range(count)) or BACKGROUND in (name.lower() for name in names.values()):
        raise ModelError(
            f"{path}: the postprocessing takes the sigmoid of each channel: outputs.pred.channel_def must name {count} "
            "structures that may overlap, and no background"
        )
    try:
        return LabelSchema.of_regions([names[index] for index in range(count)])
    except ValueError as error:
        raise ModelError(f"{path}: outputs.pred.channel_def: {error}") from error


def probabilities_come_first(parser: Any, config: Path, binary: bool) -> bool:
    """Whether the bundle takes probabilities, and not logits, back to the image.

    Args:
        parser: MONAI's parser, which has read the configuration.
        config: The file, for messages.
        binary: Whether each logit of the network is a decision of its own, that of one structure.

    Raises:
        ModelError: A probability is cut elsewhere than at a half.
    """
    named = _steps(parser)
    for step in named if binary else []:
        threshold = step.get("threshold")
        if threshold is not None and threshold != THRESHOLD:
            raise ModelError(
                f"{config}: postprocessing cuts the probability at {threshold}, and a segmenter that is adapted has "
                f"its structure where it is the likelier one; set threshold to {THRESHOLD}"
            )
    for step in named:
        if step.get("softmax") or step.get("sigmoid"):
            return True
        if str(step.get("_target_", "")).rpartition(".")[2] == "Invertd":
            return False
    return False


def further_steps(parser: Any) -> tuple[str, ...]:
    """The steps of the postprocessing that change a mask after the outputs have decided it, such as to keep a part.

    Args:
        parser: MONAI's parser, which has read the configuration.
    """
    names = [str(step.get("_target_", "")).rpartition(".")[2] for step in _steps(parser)]
    return tuple(name for name in names if not _DECISION.fullmatch(name))


def _steps(parser: Any) -> list[Mapping[str, Any]]:
    """The transforms of the postprocessing, as the configuration has them.

    Raises:
        ModelError: They are the result of an expression, so that nothing says what is done to the outputs.
    """
    whole = _resolved(parser, parser.get("postprocessing")) or {}
    transforms = _resolved(parser, whole.get("transforms", [])) if isinstance(whole, Mapping) else whole
    if not isinstance(transforms, list):
        raise ModelError(
            f"postprocessing of the bundle is {transforms!r}, which does not say whether the outputs go through a "
            "softmax or a sigmoid; write its transforms as a list"
        )
    steps = [_resolved(parser, step) for step in transforms]
    return [step for step in steps if isinstance(step, Mapping) and step.get("_disabled_") not in (True, "true")]


def _resolved(parser: Any, content: Any) -> Any:
    """A part of a configuration; where it refers to another part (`@name`), that one."""
    while isinstance(content, str) and re.fullmatch(r"@[\w#:]+", content):
        content = parser.get(content[1:].replace("#", "::"))
    return content
