"""The pictures that a page holds."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

from PIL import Image


def pictures_of(page: Path) -> list[Image.Image]:
    """Every picture of a page, opened: one that no browser could show raises."""
    found = []
    for address in re.findall(r'<img[^>]*? src="([^"]*)"', page.read_text(encoding="utf-8")):
        head, content = address.split(";base64,", 1)
        picture = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
        picture.load()
        assert head == f"data:image/{str(picture.format).lower()}"
        found.append(picture)
    return found
