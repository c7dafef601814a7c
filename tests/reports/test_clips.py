from __future__ import annotations

import io

import numpy as np
from PIL import Image
from support.clip_files import greys, ventricles

from medfm_rl.anatomy.clips import measure_clip
from medfm_rl.reports.clips import animate, picture_clip
from medfm_rl.types import Clip, Geometry, LabelSchema

LV = LabelSchema(("background", "LV"), (0, 1))


def test_a_clip_of_one_frame_is_drawn() -> None:
    clip = Clip("a", "p", greys(1)[:, None].astype(np.float32), (0.0,), Geometry.unknown(2))
    labels = ventricles(1).astype(np.uint8)
    with Image.open(io.BytesIO(animate(clip, labels, LV))) as picture:
        assert getattr(picture, "n_frames", 1) == 1
    drawn = picture_clip(clip, labels, measure_clip(labels, LV, "LV", None), LV)
    assert drawn.loop.startswith("data:image/gif")
