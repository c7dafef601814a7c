"""What is done to the masks of a segmenter before anybody sees them, where that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from medfm_rl.anatomy.cleaning import clean_up, require_rules_to_clean_by
from medfm_rl.anatomy.profiles import Anatomy
from medfm_rl.anatomy.smoothing import smooth_over_time
from medfm_rl.data.layouts import find_ventricle
from medfm_rl.types import Clip, LabelMap


@dataclass(frozen=True)
class PostProcessing:
    """What is done to the masks that a segmenter makes.

    Attributes:
        over_time: Whether each frame of a clip is averaged with those before and after it
            (`adapters.clips.averaged_over_time`).
        anatomy: The rules by which masks are cleaned up (`anatomy.cleaning.clean_up`); None: they stay as they are.

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
        """The masks `(T, H, W)` of a clip, of which every frame has been through `of`.

        Where they are averaged over time and cleaned up, rules over time are carried out too
        (`anatomy.smoothing.smooth_over_time`). Masks without a left ventricle have none.
        """
        if self.anatomy is None or not self.over_time:
            return masks
        ventricle = find_ventricle(self.anatomy.schema)
        if ventricle is None:
            return masks
        return smooth_over_time(masks, self.anatomy, ventricle, clip.plane_spacing)

    def recorded(self) -> dict[str, Any]:
        """What makes masks others than those of the segmenter alone, for the records."""
        found: dict[str, Any] = {"over_time": True} if self.over_time else {}
        if self.anatomy is not None:
            found["clean_up"] = self.anatomy.profile.model_dump(mode="json")
        return found if len(found) < 2 else {**found, "smooth": 1}


AS_IT_IS: Final = PostProcessing()
