"""What a reviewer is shown of a case, and under which names: of two masks to compare nobody is told which is whose."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np

from medfm_rl.feedback.masks import Mask
from medfm_rl.reports.palette import colour_of
from medfm_rl.service.catalogue import Item, View
from medfm_rl.service.drafts import Drafts
from medfm_rl.service.errors import not_found
from medfm_rl.service.failures import places_of
from medfm_rl.service.pixels import Picture, Pixels, window_of
from medfm_rl.service.said import Decision
from medfm_rl.types import Geometry, LabelMap

Source = Literal["given", "proposal", "first", "second"]
"""Whose mask it is: the one that was scored, its correction, or those of two readers who differ."""
_ID_LENGTH = 24


@dataclass(frozen=True)
class ShownMask:
    """A mask under the name that a reviewer knows.

    Attributes:
        id: Opaque; another for each reviewer and case.
        role: given, a, b, or mine.
        source: Whose it is.
    """

    id: str
    role: str
    source: Source


@dataclass(frozen=True, eq=False)
class Part:
    """What the store knows as a case: an image, a volume, or a frame of a clip.

    Attributes:
        case: Name of the case.
        patient: Its patient.
        image_sha256: Hash of its image.
        geometry: Its grid.
        place: Its plane in the arrays of the view; None for all of them.
        made_by: `model_hash` of what made the mask that was scored.
        has_mask: Whether there is a mask of it that was scored.
    """

    case: str
    patient: str
    image_sha256: str
    geometry: Geometry
    place: int | None
    made_by: str | None
    has_mask: bool

    def mask(self, labels: LabelMap, names: Sequence[str]) -> Mask:
        """Its mask in those of the view, `(N, H, W)`."""
        own = labels if self.place is None else labels[self.place]
        return Mask.of(np.ascontiguousarray(own), names, self.geometry)


@final
class Showing:
    """Cases as they are shown.

    Args:
        pixels: Reads them.
        drafts: Masks that were sent and not decided on.
        key: Makes names that tell nothing.
    """

    def __init__(self, pixels: Pixels, drafts: Drafts, key: bytes) -> None:
        self.pixels = pixels
        self.drafts = drafts
        self._key = key

    @property
    def names(self) -> tuple[str, ...]:
        """Names by class index, the background's first."""
        return self.pixels.schema.names

    def masks(self, item: Item, reviewer: str, readings: Sequence[Decision]) -> list[ShownMask]:
        """The masks of an item, in the order in which they are shown.

        Args:
            item: The item.
            reviewer: Who looks at it.
            readings: What was said before, which a disagreement is about.
        """
        view = item.view
        if item.kind == "disagreement" and _drawn_by(readings):
            sources: tuple[Source, ...] = ("first", "second")
        elif view.blind:
            sources = ("given", "proposal")
        elif all(frame.mask is None for frame in view.frames):
            return []
        else:
            return [ShownMask(self._name(item, reviewer, "given"), "given", "given")]
        if self._coin(item, reviewer):
            sources = sources[::-1]
        return [
            ShownMask(self._name(item, reviewer, source), role, source)
            for source, role in zip(sources, "ab", strict=True)
        ]

    def labels(self, item: Item, source: Source, readings: Sequence[Decision]) -> LabelMap:
        """A mask of an item, `(N, H, W)`.

        Raises:
            UserError: It cannot be read, or is another than the one that was assessed.
        """
        match source:
            case "given":
                return self.pixels.given(item.view)
            case "proposal":
                return self.pixels.corrected(item.view)
            case reader:
                found = _drawn_by(readings)
                drawn = found[0] if reader == "first" else found[-1]
                sha256 = next((part.mask for part in drawn.said if part.kind == "mask"), None)
                if sha256 is None:
                    return self.pixels.given(item.view)
                return self.drafts.labels(item.view.id, sha256, self.pixels.picture(item.view).shape)

    def parts(self, view: View) -> list[Part]:
        """What the store knows of a view."""
        picture = self.pixels.picture(view)
        return [
            Part(
                file.case_id,
                file.patient_id,
                sha256,
                picture.geometry,
                (file.frame if view.numbers else None if picture.form == "volume" else 0),
                case.made_by,
                case.mask is not None,
            )
            for case, (file, sha256) in zip(view.frames, picture.files, strict=True)
        ]

    def describe(self, item: Item, reviewer: str, readings: Sequence[Decision]) -> dict[str, Any]:
        """All that the page knows of a case, but for pixels.

        Raises:
            UserError: Its image cannot be read, or is another than the one that was assessed.
        """
        view, picture = item.view, self.pixels.picture(item.view)
        masks = self.masks(item, reviewer, readings)
        told = {} if view.blind else self._assessment(view)
        _, height, width, channels = picture.values.shape
        spacing = picture.geometry.spacing
        values = picture.values
        described = {
            "case": item.id,
            "item": item.id,
            "name": view.name,
            "form": picture.form,
            "shape": [width, height] if picture.form == "image" else [width, height, picture.planes],
            "spacing": None if spacing is None else list(spacing),
            "unit": "pixel" if spacing is None else "mm",
            "times": None if picture.times is None else list(picture.times),
            "channels": channels,
            "dtype": str(values.dtype),
            "range": [float(values.min()), float(values.max())],
            "window": window_of(values),
            "axes": picture.axes,
            "structures": [
                {"name": name, "value": index, "colour": colour_of(index - 1)}
                for index, name in enumerate(self.names)
                if index
            ],
            "masks": [{"mask": mask.id, "role": mask.role, "structures": list(self.names[1:])} for mask in masks],
            "has_rewards": self.pixels.has_rewards(view),
            "image_sha256": picture.files[0][1],
            "simulated": picture.simulated,
            "kind": item.kind,
            "reason": item.reason,
            **told,
        }
        if picture.form == "clip" and not view.blind and masks:
            described["areas"] = self._areas(self.labels(item, masks[0].source, readings), picture)
        return described

    def _assessment(self, view: View) -> dict[str, Any]:
        """What the score said; of a comparison nothing of it is told, for it would tell which mask is which."""
        worst = view.first if len(view.frames) == 1 else min(view.frames, key=lambda frame: frame.mean_dice or 0.0)
        labels = self.pixels.given(view) if any(frame.mask for frame in view.frames) else None
        return {
            "scores": {
                score.structure: {"dice": score.predicted_dice, "low": score.low, "high": score.high}
                for score in worst.scores
            },
            "verdict": worst.verdict,
            "guarantee": worst.guarantee,
            "reasons": list(worst.reasons) if worst.problem is None else [worst.problem],
            "worst": [
                {
                    "structure": score.structure,
                    "point": self._point(view, worst.case, score.worst_centre),
                    "reward": score.worst_reward,
                }
                for score in worst.scores_of_structures
            ],
            "rules": [] if labels is None else places_of(view, labels, self.names),
        }

    def _point(self, view: View, case: str, centre: Sequence[int]) -> list[int]:
        """A pixel index in array order as (x, y[, z or frame])."""
        if not view.numbers:
            return list(centre[::-1])
        number = next(number for number, frame in zip(view.numbers, view.frames, strict=True) if frame.case == case)
        return [*centre[::-1], number]

    def _areas(self, labels: LabelMap, picture: Picture) -> dict[str, list[float]]:
        """Area of each structure in each frame, in mm2, or in pixels where the spacing is unknown."""
        spacing = picture.geometry.spacing
        pixel = 1.0 if spacing is None else float(np.prod(spacing[:2]))
        return {
            name: [round(float((plane == index).sum()) * pixel, 3) for plane in labels]
            for index, name in enumerate(self.names)
            if index
        }

    def _name(self, item: Item, reviewer: str, source: str) -> str:
        return self._sign("mask", item.id, reviewer, source).hex()[:_ID_LENGTH]

    def _coin(self, item: Item, reviewer: str) -> bool:
        """Falls the same each time that a reviewer opens the item, and tells nothing of the next one."""
        return bool(self._sign("order", item.id, reviewer)[0] & 1)

    def _sign(self, *parts: str) -> bytes:
        return hmac.new(self._key, "\0".join(parts).encode(), "sha256").digest()


def mask_named(masks: Sequence[ShownMask], name: str) -> ShownMask:
    """The mask of that name, or in that role.

    Raises:
        DeskError: None of those that are shown is it.
    """
    found = next((mask for mask in masks if name in (mask.id, mask.role)), None)
    if found is None:
        raise not_found("mask of this case", "open the case again")
    return found


def _drawn_by(readings: Sequence[Decision]) -> list[Decision]:
    """The readings that a disagreement shows, where one of them has a mask of its own."""
    drawn = any(part.kind == "mask" for decision in readings for part in decision.said)
    return list(readings) if drawn and len(readings) > 1 else []
