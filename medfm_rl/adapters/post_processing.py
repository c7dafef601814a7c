"""What is done to the masks of a segmenter before anybody sees them, where that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from medfm_rl.anatomy.cleaning import clean_up, require_rules_to_clean_by
from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.anatomy.smoothing import smooth_over_time
from medfm_rl.data.layouts import find_ventricle
from medfm_rl.types import Clip, LabelMap

_SMOOTHING = 1
"""Of the way to smooth: what another way has made is not taken for a result of this one."""


@dataclass(frozen=True)
class PostProcessing:
    """What is done to the masks that a segmenter makes.

    Attributes:
        over_time: Whether each frame of a clip is averaged with those before and after it
            (`adapters.clips.averaged_over_time`).
        anatomy: The rules by which masks are cleaned up (`anatomy.cleaning.clean_up`); None: they stay as they are.
            Clips that are averaged and still break rules over time are smoothed too
            (`anatomy.smoothing.smooth_over_time`), where a structure is the left ventricle.

    Raises:
        ConfigError: The anatomy has no rule on parts or holes.
    """

    over_time: bool = False
    anatomy: Anatomy | None = None

    def __post_init__(self) -> None:
        if self.anatomy is not None:
            require_rules_to_clean_by(self.anatomy)

    def of(self, labels: LabelMap) -> LabelMap:
        """The mask of one image or frame, cleaned up where that is wanted."""
        return labels if self.anatomy is None else clean_up(labels, self.anatomy)

    def of_clip(self, clip: Clip, masks: LabelMap) -> LabelMap:
        """The masks `(T, H, W)` of a clip, of which every frame has been through `of`."""
        if self.anatomy is None or self._ventricle is None:
            return masks
        return smooth_over_time(masks, self.anatomy, self._ventricle, clip.plane_spacing)

    @property
    def _ventricle(self) -> str | None:
        """The structure whose rules over time are carried out; None where none are."""
        return None if self.anatomy is None or not self.over_time else find_ventricle(self.anatomy.schema)

    def recorded(self) -> dict[str, Any]:
        """What makes masks others than those of the segmenter alone, for the records."""
        found: dict[str, Any] = {"over_time": True} if self.over_time else {}
        if self.anatomy is not None:
            found["clean_up"] = self.anatomy.profile.model_dump(mode="json")
        if self._ventricle is not None:
            found["smoothed"] = _SMOOTHING
        return found


AS_IT_IS: Final = PostProcessing()
