"""Pages of one look, each a single file that loads nothing from anywhere else."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from medfm_rl.data.files import write_parts


def render_page(path: Path, template: str, *, simulated: bool, **content: Any) -> None:
    """Writes a page, whole or not at all.

    Args:
        path: Where to.
        template: Its name in the folder `templates`; it extends `layout.html`.
        simulated: Whether its images are simulated; the page says so at its top.
        content: What the template shows. Texts are escaped.
    """
    # Loaded here: importing this package must not need what a single page is written with.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    pages = Environment(loader=PackageLoader(__package__), autoescape=True, undefined=StrictUndefined)
    write_parts(path, pages.get_template(template).generate(simulated=simulated, **content))


def embed(picture: bytes, kind: str = "png") -> str:
    """A picture as an address that holds it whole, for pages that load nothing.

    Args:
        picture: The content of its file.
        kind: png or gif.
    """
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
