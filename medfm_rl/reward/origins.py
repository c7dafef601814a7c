"""Where records of D_R come from: shards by iteration and source, and what judged the actions of an image."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, Self, get_args

import numpy as np

from medfm_rl.data.files import require_known_format

ReferenceKind = Literal["expert mask", "consensus", "shape prior", "neighbours", "none"]

_FORMAT: Final = 3
_SOURCE_NAME: Final = r"[a-z]+(?:-[a-z]+)*"
_SHARD: Final = re.compile(rf"(\d{{2,}})-({_SOURCE_NAME})-(\d{{6,}})")
_FORMER_KINDS: Final = {"ground truth": "expert mask"}
"""What version 0.1 called a kind of reference."""


@dataclass(frozen=True)
class ShardKey:
    """Names one shard of D_R.

    Attributes:
        iteration: Counted from 0.
        source: Name of the source of its actions: lower-case words, joined by hyphens.
        offset: How many images of that source and iteration are in the shards before it.

    Raises:
        ValueError: A number is negative, or the name of the source could not be told from the rest.
    """

    iteration: int
    source: str
    offset: int

    def __post_init__(self) -> None:
        if self.iteration < 0 or self.offset < 0 or not re.fullmatch(_SOURCE_NAME, self.source):
            raise ValueError(
                f"iteration {self.iteration}, source {self.source!r} and offset {self.offset} do not name a shard: "
                "the numbers are 0 or more, the source is lower-case words joined by '-'"
            )

    def __str__(self) -> str:
        return f"{self.iteration:02d}-{self.source}-{self.offset:06d}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The key that is written as `text`.

        Raises:
            ValueError: None is.
        """
        found = _SHARD.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} does not name a shard, as 00-source-000000 does")
        return cls(int(found[1]), found[2], int(found[3]))


@dataclass(frozen=True)
class Reference:
    """What the actions on an image are judged by, and how far it is trusted.

    Attributes:
        kind: "expert mask"; "consensus", what the policy says on average over changed images and weights; "shape
            prior", a projection of that on plausible masks; "neighbours", what the frames before and after say,
            carried along by the images' motion; or "none".
        trust: In [0, 1], next to ground truth; 0 where there is no reference.

    Raises:
        ValueError: The kind is none of these, or the trust is out of range.
    """

    kind: ReferenceKind
    trust: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(ReferenceKind):
            raise ValueError(f"{self.kind!r} is no kind of reference")
        if not 0 <= self.trust <= (0 if self.kind == "none" else 1):
            raise ValueError(f"a reference of the kind {self.kind!r} cannot be trusted by {self.trust}")

    @property
    def is_ground_truth(self) -> bool:
        """Whether it is an expert's mask that is trusted fully."""
        return self.kind == "expert mask" and self.trust == 1


GROUND_TRUTH: Final = Reference("expert mask", 1.0)


@dataclass(frozen=True)
class ActionOrigin:
    """Where the actions and the reference of one image come from.

    Attributes:
        case_id: The case that the image shows.
        patient_id: Every split is made by it.
        reference: What the actions are judged by.
        actions: What made each action, for example "policy", "weight noise", "warped policy".
    """

    case_id: str
    patient_id: str
    reference: Reference
    actions: tuple[str, ...]


def origins_to_json(origins: Sequence[ActionOrigin]) -> dict[str, object]:
    """Origins as a shard keeps them."""
    return {"format": _FORMAT, "origins": [asdict(origin) for origin in origins]}


def refuse_newer(path: Path, content: Any) -> None:
    """Raises DataError where a newer version wrote a shard.

    Args:
        path: The shard.
        content: The JSON value of its origins.
    """
    if isinstance(content, dict):
        require_known_format(path, content, _FORMAT)


def origins_from_json(path: Path, content: Any, certainty: np.ndarray | None) -> tuple[ActionOrigin, ...]:
    """Reads what `origins_to_json` gave, or a shard of version 0.1: a list of origins without the trust in each.

    The certainty of a pixel is the trust in its reference, times how far the votes for it agree. So the highest one of
    an image tells what version 0.1 trusted a reference by where all votes agree somewhere, and less elsewhere.

    Args:
        path: The shard, for messages.
        content: The JSON value.
        certainty: `(M, *S)`, that of the shard; None where it cannot be one of version 0.1.

    Raises:
        DataError: It was written by a newer version.
        ValueError: It is no such value.
        KeyError: A field is missing.
        TypeError: A field has another type, or is not known.
    """
    if isinstance(content, list) and certainty is not None:
        highest = certainty.reshape(len(certainty), -1).max(axis=1)
        return tuple(_of_version_0_1(origin, float(trust)) for origin, trust in zip(content, highest, strict=True))
    refuse_newer(path, content)
    return tuple(
        ActionOrigin(**{**origin, "reference": Reference(**origin["reference"]), "actions": tuple(origin["actions"])})
        for origin in content["origins"]
    )


def _of_version_0_1(origin: Mapping[str, Any], trust: float) -> ActionOrigin:
    known = {name: value for name, value in origin.items() if name != "domain"}
    kind = _FORMER_KINDS.get(known["reference"], known["reference"])
    return ActionOrigin(**{**known, "reference": Reference(kind, trust), "actions": tuple(known["actions"])})


def patients_of(origins: Iterable[ActionOrigin]) -> set[str]:
    """The patients that records come from."""
    return {origin.patient_id for origin in origins}


def patients_with_ground_truth(origins: Iterable[ActionOrigin]) -> set[str]:
    """The patients of whom there is ground truth."""
    return patients_of(origin for origin in origins if origin.reference.is_ground_truth)
