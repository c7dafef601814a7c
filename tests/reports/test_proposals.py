from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from medfm_rl.reports.proposals import PageList, PagePatient, write_proposals_page
from medfm_rl.reports.scores import thumbnail
from medfm_rl.types import LabelSchema


def write_page(folder: Path, schema: LabelSchema, images: int, simulated: bool) -> str:
    picture = folder / "picture.png"
    picture.write_bytes(b"a picture")
    patient = PagePatient("p<1>", "predicted Dice 0.50", [(f"p1_{number}", picture) for number in range(images)])
    lists = [
        PageList("Audit", "Drawn.", "audit", []),
        PageList("Informative", "Chosen.", "informative", [patient]),
    ]
    path = folder / "page.html"
    write_proposals_page(path, lists, ["a note"], {"p2_0": "cannot be read"}, schema, simulated)
    return path.read_text(encoding="utf-8")


def test_a_page_shows_both_lists_notes_and_what_could_not_be_used(tmp_path: Path, schema: LabelSchema) -> None:
    page = write_page(tmp_path, schema, 3, simulated=False)
    assert page.count("<figure>") == 3
    assert "Nobody." in page
    assert "p&lt;1&gt;" in page
    assert "<li>a note</li>" in page
    assert "<strong>p2_0</strong>: cannot be read" in page
    assert "--drawn audit" in page
    assert "--drawn informative" in page
    assert "SIMULATED" not in page


def test_of_many_images_some_are_shown_and_it_says_so(tmp_path: Path, schema: LabelSchema) -> None:
    page = write_page(tmp_path, schema, 40, simulated=True)
    assert page.count("<figure>") == 12
    assert "12 of 40 images are shown" in page
    assert "SIMULATED DATA" in page


@pytest.mark.parametrize("shape", [(20, 30), (4, 20, 30)])
def test_a_picture_without_a_reward_map_shows_the_mask_alone(shape: tuple[int, ...], schema: LabelSchema) -> None:
    png = thumbnail(np.zeros(shape, np.float32), np.ones(shape, np.uint8), None, schema)
    assert imread(io.BytesIO(png)).shape[:2] == (20, 30)
