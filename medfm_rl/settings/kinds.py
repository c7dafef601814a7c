"""Which kinds of segmenter settings may name: the built-in ones, and those that installed packages bring.

A package brings a kind by an entry point of the group `medfm_rl.segmenters`, whose name is that of the kind and whose
object is an `adapters.kinds.SegmenterKind`. It is imported when its kind is asked for, and not before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Annotated, Any, Final, Generic, TypeVar

from pydantic import PlainValidator, SerializeAsAny
from pydantic_core import PydanticCustomError

from medfm_rl.errors import ConfigError
from medfm_rl.settings.segmenters import (
    BiomedParseSettings,
    LiteMedSAMSettings,
    MedSAM2Settings,
    MedSAMSettings,
    MonaiBundleSettings,
    NnUNetSettings,
    SegmenterSettings,
    TorchSettings,
    TotalSegmentatorSettings,
)

GROUP: Final = "medfm_rl.segmenters"
"""Group of the entry points."""

UNNAMED: Final = TorchSettings.kind_name()
"""The kind of settings that name none."""

BUILT_IN: Final[Mapping[str, type[SegmenterSettings]]] = {
    settings.kind_name(): settings
    for settings in (
        TorchSettings,
        NnUNetSettings,
        TotalSegmentatorSettings,
        MonaiBundleSettings,
        LiteMedSAMSettings,
        MedSAMSettings,
        MedSAM2Settings,
        BiomedParseSettings,
    )
}
"""Settings of the built-in kinds, by name. `adapters.kinds` has all the rest of them."""

_BROKEN: Final = (
    ImportError,
    AttributeError,
    NameError,
    SyntaxError,
    TypeError,
    ValueError,
    LookupError,
    RuntimeError,
    OSError,
    AssertionError,
)
"""What an import of another's module raises where it is broken."""

S = TypeVar("S", bound=SegmenterSettings)


@dataclass(frozen=True)
class KindOfSettings(Generic[S]):
    """What settings have to know of a kind of segmenter; `adapters.kinds.SegmenterKind` adds how it is loaded.

    Attributes:
        settings: The settings of a segmenter of this kind.

    Raises:
        TypeError: The settings are no subclass of `SegmenterSettings` with a literal `kind`, or fields besides `kind`
            and `folder` have no default.
    """

    settings: type[S]

    def __post_init__(self) -> None:
        if not (isinstance(self.settings, type) and issubclass(self.settings, SegmenterSettings)):
            raise TypeError(f"{self.settings!r}: the settings of a kind are a subclass of SegmenterSettings")
        self.settings.kind_name()
        fields = self.settings.model_fields
        needed = sorted(
            name for name, field in fields.items() if field.is_required() and name not in ("kind", "folder")
        )
        if needed:
            raise TypeError(f"{self.settings.__name__}: a default is needed for {', '.join(needed)}")

    @property
    def name(self) -> str:
        """Name of the kind, as it stands in a settings file."""
        return self.settings.kind_name()

    def at(self, folder: Any) -> S:
        """Settings of the segmenter of this kind in a folder; the rest are defaults."""
        return self.settings.model_validate({"kind": self.name, "folder": folder})


K = TypeVar("K", bound=KindOfSettings[Any])


def brought_kinds() -> tuple[str, ...]:
    """Names of the kinds that other installed packages bring; nothing of these is imported."""
    return tuple(sorted(_entry_points()))


def package_of(name: str) -> Distribution | None:
    """The package that brings a kind; None for a built-in one.

    Raises:
        ConfigError: As in `load_brought`.
    """
    entry = _entry_point(name)
    return None if entry is None else entry.dist


def load_brought(name: str, of: type[K]) -> K | None:
    """The kind of that name that another package brings; None where no package does.

    Args:
        name: Name of the kind.
        of: What the object of the entry point has to be.

    Raises:
        ConfigError: Two packages bring a kind of that name, or its entry point cannot be imported or is something else.
    """
    entry = _entry_point(name)
    if entry is None:
        return None
    where = f"segmenter kind {name}: the entry point {entry.value} of the package {_package(entry)}"
    try:
        found = entry.load()
    except _BROKEN as error:
        raise ConfigError(
            f"{where} cannot be imported ({type(error).__name__}: {error}); correct the package or uninstall it"
        ) from error
    if not isinstance(found, of):
        raise ConfigError(f"{where} is {type(found).__name__}; it has to be a SegmenterKind of medfm_rl.adapters.kinds")
    if found.name != name:
        raise ConfigError(f"{where} is of kind {found.name}; entry point and kind need the same name")
    return found


def find_settings(name: Any) -> type[SegmenterSettings] | None:
    """The settings of a kind; None where there is no kind of that name.

    Raises:
        ConfigError: As in `load_brought`.
    """
    if not isinstance(name, str):
        return None
    brought = load_brought(name, KindOfSettings)
    return BUILT_IN.get(name) if brought is None else brought.settings


def kinds_in_words() -> str:
    """All kinds that are known, for messages, with the package of those that are not built in."""
    brought = [f"{name} (of the package {_package(entry)})" for name, (entry, *_) in sorted(_entry_points().items())]
    return ", ".join([*BUILT_IN, *brought])


def kind_lines() -> list[str]:
    """What each kind that is known is, in a line; of other packages' kinds the package, for nothing is imported."""
    own = [settings.kind_line() for settings in BUILT_IN.values()]
    brought = sorted(_entry_points().items())
    return own + [f"{name}: brought by the package {_package(entry)}." for name, (entry, *_) in brought]


@cache
def _entry_points() -> Mapping[str, tuple[EntryPoint, ...]]:
    """Entry points by name. What is installed does not change while a process runs."""
    found: dict[str, tuple[EntryPoint, ...]] = defaultdict(tuple)
    for entry in entry_points(group=GROUP):
        found[entry.name] += (entry,)
    return dict(found)


def _entry_point(name: str) -> EntryPoint | None:
    """The only entry point of that name, if there is one.

    Raises:
        ConfigError: There are several, or it has the name of a built-in kind.
    """
    found = _entry_points().get(name, ())
    packages = [*(["medfm-rl"] if name in BUILT_IN else []), *map(_package, found)]
    if found and len(packages) > 1:
        raise ConfigError(
            f"segmenter kind {name}: is brought by {' and by '.join(packages)}; uninstall all of these packages but one"
        )
    return found[0] if found else None


def _package(entry: EntryPoint) -> str:
    return "an unknown package" if entry.dist is None else entry.dist.name


def _as_its_kind(given: Any) -> SegmenterSettings:
    """Settings of the kind that they name, torch where they name none."""
    if isinstance(given, SegmenterSettings) and type(given) is not SegmenterSettings:
        return given
    name = given.get("kind", UNNAMED) if isinstance(given, Mapping) else None
    settings = find_settings(name)
    if settings is None:
        raise PydanticCustomError("segmenter_kind", "kind must be one of {kinds}", {"kinds": kinds_in_words()})
    return settings.model_validate(given)


Segmenter = Annotated[SegmenterSettings, SerializeAsAny(), PlainValidator(_as_its_kind)]
"""The settings of a segmenter, of whichever kind they name; torch where they name none."""
