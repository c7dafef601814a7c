"""Anatomy profiles that ship with the package: each file of `anatomy/builtin` is one, under its own name."""

from __future__ import annotations

from importlib import resources

_SUFFIX = ".yaml"


def anatomy_profiles() -> dict[str, str]:
    """The YAML text of each profile by its name, sorted."""
    folder = resources.files("medfm_rl") / "anatomy" / "builtin"
    return {
        item.name.removesuffix(_SUFFIX): item.read_text(encoding="utf-8")
        for item in sorted(folder.iterdir(), key=lambda item: item.name)
        if item.name.endswith(_SUFFIX)
    }


def anatomy_names() -> str:
    """The names, as a sentence lists them."""
    return ", ".join(anatomy_profiles())
