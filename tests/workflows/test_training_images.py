from __future__ import annotations

from pathlib import Path

import torch
from support.clip_files import COUNT, greys, write_clip

from medfm_rl.data.images import write_image
from medfm_rl.data.layouts import find_cases
from medfm_rl.reward.collection import ImageSet
from medfm_rl.settings import DataSettings
from medfm_rl.types import Geometry
from medfm_rl.workflows.training_images import rows_of_clips


def test_rows_of_clips_are_in_the_order_of_time_and_stills_and_tiles_are_left_out(tmp_path: Path) -> None:
    for name in ("p1_4CH", "p2_4CH"):
        write_clip(tmp_path / f"{name}.dcm", greys())
    write_image(tmp_path / "p3.nii.gz", greys()[0], Geometry.unknown(2))
    files = find_cases(DataSettings(path=tmp_path))
    names = [file.case_id for file in reversed(files)]
    # The last frame of the second clip is cut into two tiles.
    names.insert(0, f"p2_4CH_frame{COUNT - 1:03d}")
    images = ImageSet(torch.zeros(len(names), 1, 2, 2), tuple(names), ("p",) * len(names))
    clips = rows_of_clips(files, images)
    assert [[names[row] for row in rows] for rows in clips] == [
        [f"p1_4CH_frame{index:03d}" for index in range(COUNT)],
        [f"p2_4CH_frame{index:03d}" for index in range(COUNT - 1)],
    ]
