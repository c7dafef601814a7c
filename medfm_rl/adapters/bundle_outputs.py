"""What a MONAI bundle says of its outputs: the structures, and how probabilities are made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from medfm_rl.errors import ModelError
from medfm_rl.types import BACKGROUND, LabelSchema

THRESHOLD: Final = 0.5
"""Probability from which on a pixel lies in a structure that overlaps others."""


@dataclass(frozen=True)
class Activation:
    """How the postprocessing of a bundle makes probabilities.

    Attributes:
        independent: By a sigmoid of each channel, and not by a softmax.
        comes_first: Before they are brought back to the image.
    """

    independent: bool
    comes_first: bool


def describe(metadata: Mapping[str, Any], path: Path, independent: bool) -> tuple[int, LabelSchema]:
    """The channels that a bundle takes, and its structures.

    Args:
        metadata: Content of `metadata.json`.
        path: The file, for messages.
        independent: Whether the structures overlap, each with a channel of its own.

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
    if independent:
        return channels, _regions(names, classes, path)
    if sorted(names) != list(range(classes)) or classes < 2:
        raise ModelError(f"{path}: outputs.pred.channel_def must name {classes} channels, background first, at least 2")
    structures = [names[index] for index in range(1, classes)]
    try:
        return channels, LabelSchema((BACKGROUND, *structures), tuple(range(classes)))
    except ValueError as error:
        raise ModelError(f"{path}: outputs.pred.channel_def: {error}") from error


def _regions(names: Mapping[int, str], count: int, path: Path) -> LabelSchema:
    """The structures of a bundle that takes the sigmoid of its channels."""
    if sorted(names) != list(range(count)) or BACKGROUND in names.values():
        raise ModelError(
            f"{path}: the postprocessing takes the sigmoid of each channel: outputs.pred.channel_def must name {count} "
            "structures that may overlap, and no background"
        )
    try:
        return LabelSchema.of_regions([names[index] for index in range(count)])
    except ValueError as error:
        raise ModelError(f"{path}: outputs.pred.channel_def: {error}") from error


def activation_of(parser: Any, config: Path) -> Activation:
    """What the bundle makes of logits.

    Raises:
        ModelError: It takes the sigmoid and decides by another probability than one half.
    """
    steps = parser.get("postprocessing") or {}
    transforms = steps.get("transforms", []) if isinstance(steps, Mapping) else []
    inverted, found = False, None
    for step in (step for step in transforms if isinstance(step, Mapping)):
        if found is None and (step.get("sigmoid") or step.get("softmax")):
            found = Activation(bool(step.get("sigmoid")), not inverted)
        threshold = step.get("threshold")
        if found is not None and found.independent and threshold not in (None, THRESHOLD):
            raise ModelError(
                f"{config}: the postprocessing has a threshold of {threshold}, and structures that overlap can be "
                f"adapted with one of {THRESHOLD}, the likelier decision of each pixel; set it to {THRESHOLD}, after "
                f"adding log((1 - {threshold}) / {threshold}) to the bias of the last layer"
            )
        inverted = inverted or str(step.get("_target_", "")).rpartition(".")[2] == "Invertd"
    return found or Activation(False, False)
