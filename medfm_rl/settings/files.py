"""Settings as YAML: read, validated, and written with an explanation of every field."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from medfm_rl.errors import ConfigError
from medfm_rl.settings import SegmenterSettings, Settings
from medfm_rl.settings.kinds import UNNAMED, find_settings
from medfm_rl.settings.problems import list_problems
from medfm_rl.settings.site_policy import BUILTIN_POLICIES, SitePolicy
from medfm_rl.settings.yaml_text import RepeatedKeyError, read_yaml

_LOG = logging.getLogger(__name__)
T = TypeVar("T", bound=Settings)


def load_config(path: Path, kind: type[T]) -> T:
    """Reads and validates a settings file. Fields by the names of earlier versions are read with a warning.

    Raises:
        ConfigError: It is missing, not YAML, or has an unknown, missing or wrong field; the message names each.
    """
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: there is no such file; `medfm-rl init` writes one to start from") from error
    except RepeatedKeyError as error:
        raise ConfigError(f"{path}: {error}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML ({error})") from error
    try:
        return kind.model_validate(_with_current_names(path, content, kind) if content is not None else {})
    except ValidationError as error:
        problems = "\n".join(f"  {problem}" for problem in list_problems(error))
        raise ConfigError(f"{path}: correct these fields:\n{problems}") from error


def load_policy(named: str) -> SitePolicy:
    """A built-in policy, or that of a file; one that gives itself no name has that of its file.

    Args:
        named: Name of a built-in policy, or path of a YAML file.

    Raises:
        ConfigError: There is neither, or the file is not valid.
    """
    if named in BUILTIN_POLICIES:
        return BUILTIN_POLICIES[named]
    path = Path(named)
    if not path.exists():
        raise ConfigError(
            f"policy {named}: there is no such file, and no policy of that name: give "
            f"{' or '.join(BUILTIN_POLICIES)}, or the YAML file of a policy"
        )
    policy = load_config(path, SitePolicy)
    return policy if "name" in policy.model_fields_set else policy.model_copy(update={"name": path.stem})


def _with_current_names(path: Path, content: Any, kind: type[Settings]) -> Any:
    """The content of a file with fields of earlier versions under the names that they have now."""
    former = kind.former_names.keys() & content.keys() if isinstance(content, dict) else set()
    if not former:
        return content
    for name in sorted(former):
        current = kind.former_names[name]
        if current in content:
            raise ConfigError(f"{path}: {name} is the former name of {current}, and both are given; keep {current}")
        _LOG.warning("%s: %s is now called %s; rename it there", path, name, current)
    return {kind.former_names.get(name, name): value for name, value in content.items()}


def dump_config(config: Settings) -> str:
    """The settings as YAML, every field spelled out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def commented_config(kind: type[Settings], values: dict[str, Any]) -> str:
    """A YAML file to start from: the given values and all defaults, each field with its description above it.

    Args:
        kind: The settings.
        values: Values of the required fields, nested as in the file.
    """
    summary = (kind.__doc__ or "").strip().splitlines()[0]
    return "\n".join([f"# {summary}", *_comment(kind, values, 0)]) + "\n"


def _comment(kind: type[BaseModel], values: dict[str, Any], indent: int) -> list[str]:
    lines = []
    for name, field in kind.model_fields.items():
        pad = "  " * indent
        lines.append("")
        lines += [f"{pad}# {line}" for line in _wrap(field.description or "", 100 - 2 * indent)]
        default = field.get_default(call_default_factory=True, validated_data={})
        given = values.get(name, default)
        nested = _settings_type(field.annotation, given) if isinstance(given, dict) else None
        if nested is not None:
            lines += [f"{pad}{name}:", *_comment(nested, given, indent + 1)]
        elif isinstance(given, BaseModel):
            lines += [f"{pad}{name}:", *_comment(type(given), given.model_dump(mode="json"), indent + 1)]
        elif given is PydanticUndefined:
            lines.append(f"{pad}{name}:")
        else:
            text = yaml.safe_dump(_plain(given), default_flow_style=True, width=200, sort_keys=False)
            lines.append(f"{pad}{name}: {text.strip().removesuffix('...').strip()}")
    return lines[1:] if indent else lines


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _settings_type(annotation: Any, given: dict[str, Any]) -> type[BaseModel] | None:
    """The settings that a value is of; among several kinds, the one that it names or else the first."""
    if annotation is SegmenterSettings:
        return find_settings(given.get("kind", UNNAMED))
    members = [getattr(item, "__origin__", item) for item in (annotation, *getattr(annotation, "__args__", ()))]
    kinds = [item for item in members if isinstance(item, type) and issubclass(item, BaseModel)]
    named = [item for item in kinds if "kind" in given and given["kind"] in _choices(item)]
    return next(iter(named or kinds), None)


def _choices(kind: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(kind.model_fields["kind"].annotation) if "kind" in kind.model_fields else ()


def _wrap(text: str, width: int) -> list[str]:
    import textwrap

    # A name such as nnU-Net stays in one piece.
    return textwrap.wrap(text, width, break_on_hyphens=False)
