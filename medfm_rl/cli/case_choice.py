"""Options that say which cases of a folder are meant, the same for every command that reads one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from medfm_rl import choices
from medfm_rl.cli.options import from_options
from medfm_rl.errors import ConfigError

if TYPE_CHECKING:
    from medfm_rl.data.layouts import CaseFile
    from medfm_rl.settings import DataSettings


@dataclass(frozen=True)
class CaseChoice:
    """Which cases of a folder are meant; each field is an option of the commands that `with_case_choice` marks."""

    layout: Annotated[choices.Layout, typer.Option(help="How the data is laid out; auto finds it out.")] = "auto"
    patient_pattern: Annotated[
        str | None,
        typer.Option(
            help="Regular expression whose first group, found in the name of a case, is its patient, such as "
            "'^([A-Z]+_[0-9]+)'. Without one the layout decides: the part of the name before the first underscore, in "
            "CAMUS the folder, in nnU-Net's raw data (dataset.json) the whole name."
        ),
    ] = None
    split: Annotated[choices.Split, typer.Option(help="Which part of an nnU-Net data set.")] = "all"
    where: Annotated[
        list[str] | None,
        typer.Option(help="Keep only the cases with this tag, such as view=4CH in CAMUS; can be given several times."),
    ] = None

    def settings(self, folder: Path) -> DataSettings:
        """The chosen cases of a folder, as settings.

        Raises:
            ConfigError: An option cannot be used; the message names it.
        """
        from medfm_rl.settings import DataSettings

        tags = {}
        for text in self.where or ():
            tag, equals, value = text.partition("=")
            if not (tag and equals and value):
                raise ConfigError(f"--where {text}: must be TAG=VALUE, such as view=4CH")
            tags[tag] = value
        return from_options(
            DataSettings,
            path=folder,
            layout=self.layout,
            patient_pattern=self.patient_pattern,
            split=self.split,
            where=tags,
        )

    def find(self, folder: Path) -> list[CaseFile]:
        """The chosen cases of a folder.

        Raises:
            UserError: An option cannot be used, or there are no such cases.
        """
        from medfm_rl.data.layouts import find_cases

        return find_cases(self.settings(folder))

    def given(self) -> dict[str, list[str]]:
        """The options that differ from their defaults, with their values."""
        found: dict[str, list[str]] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if value and value != field.default:
                found[f"--{field.name.replace('_', '-')}"] = value if isinstance(value, list) else [value]
        return found

    def require_folder(self, option: str, folder: Path | None) -> None:
        """Refuses a choice among the cases of a folder that is not given.

        Raises:
            ConfigError: It is so.
        """
        if folder is None and self.given():
            raise ConfigError(f"{', '.join(self.given())}: would have no effect; only with {option}")


ALL_CASES = CaseChoice()


def with_case_choice(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of `CaseChoice`, in the place of its one parameter of that type.

    Typer has an option for each parameter of a function, and none for the fields of a class.
    """
    signature = inspect.signature(command, eval_str=True)
    (taken,) = (each.name for each in signature.parameters.values() if each.annotation is CaseChoice)
    hints = get_type_hints(CaseChoice, include_extras=True)
    options = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=hints[each.name])
        for each in fields(CaseChoice)
    ]

    @wraps(command)
    def called(**given: Any) -> None:
        choice = CaseChoice(**{option.name: given.pop(option.name) for option in options})
        command(**given, **{taken: choice})

    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)]
        parameters += options if parameter.name == taken else own
    called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called
