"""What a check of a data set found: in words, as tables for the terminal, and as a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from medfm_rl.data.checks.facts import CaseFacts, ImageFacts
from medfm_rl.data.checks.result import DataCheck
from medfm_rl.data.checks.words import image_values_in_words, range_in_words, size_in_words, spacing_in_words
from medfm_rl.reports.pages import embed, render_page

_PICTURES: Final = 100
_MESSAGES: Final = 10
"""Refusals that the terminal shows; the page and the JSON file have all."""
_NAMED: Final = 5
_LABELS: Final = 12
_AXES: Final = "xyz"


def summary(check: DataCheck) -> str:
    """The result in plain words."""
    total, refused = len(check.cases), len(check.refused)
    used = "can be used" if check.segmenter is None else f"can be used with {check.segmenter.name}"
    if refused:
        said = f"{total - refused} of {_counted(total, 'case')} {used}; {refused} cannot, for the reasons above"
    else:
        said = f"The case {used}" if total == 1 else f"All {total} cases {used}"
    odd = len(check.findings)
    if not odd:
        return f"{said}. Nothing looks suspicious."
    looks, them = ("looks", "it") if odd == 1 else ("look", "them")
    return f"{said}. {_counted(odd, 'thing')} {looks} suspicious: see to {them} before anything is trained or scored."


def overview(check: DataCheck) -> dict[str, str]:
    """What is read and as what, by the property."""
    images = [case.image for case in check.cases if case.image is not None]
    rows = {
        "cases": f"{len(check.cases)} (layout {check.layout})",
        "patients": f"{check.patients}, by {check.patients_by}",
    }
    if images:
        rows |= {
            "dimensions": _counts(f"{len(image.size)}-D" for image in images),
            "channels": _counts(f"{image.channels}{' (equal: grey)' if image.grey else ''}" for image in images),
            "size": _along_axes([image.size for image in images], "pixels"),
            "spacing": _spacings(images),
            "orientation": _counts(image.orientation or "none stated" for image in images),
            "values": _values(images),
        }
    with_mask = [case for case in check.cases if case.mask_file is not None]
    rows["masks"] = f"{len(with_mask)} of {_counted(len(check.cases), 'case')} have one" if with_mask else "none"
    if with_mask:
        rows["labels"] = _labels(check)
    if check.notes:
        rows["note"] = "; ".join(check.notes)
    return rows


def check_tables(check: DataCheck) -> list[RenderableType]:
    """The result for the terminal."""
    simulated = " (SIMULATED DATA)" if check.simulated else ""
    shown: list[RenderableType] = [_facing(f"{check.root}{simulated}", overview(check))]
    if check.segmenter is not None:
        shown.append(_facing(f"Segmenter {check.segmenter.name} takes", check.segmenter.rows))
    if check.refused:
        shown.append(_refused_table(check))
    if check.skipped:
        table = _listing("Skipped", "reason", "files", "first of them")
        for reason, files in check.skipped.items():
            table.add_row(escape(reason), str(len(files)), escape(_first(files)))
        shown.append(table)
    if check.findings:
        table = _listing("Suspicious", "what", "first of them")
        for finding in check.findings:
            table.add_row(escape(finding.title), escape(finding.first(_NAMED)))
        shown.append(table)
    noticed = [notice for case in check.cases for notice in case.notices]
    if noticed:
        table = _listing("Noticed while reading", "what")
        for notice in dict.fromkeys(noticed[:_MESSAGES]):
            table.add_row(escape(notice))
        if len(noticed) > _MESSAGES:
            table.add_row(f"and {len(noticed) - _MESSAGES} more")
        shown.append(table)
    return shown


def write_check_page(path: Path, check: DataCheck, pictures: Mapping[str, Path], colours: Mapping[str, str]) -> None:
    """Writes the page; it loads nothing from anywhere else.

    Args:
        path: The file.
        check: The result.
        pictures: Files of the pictures of cases, of which the page shows the first: what is refused or suspicious.
        colours: Colour of each structure in them.
    """
    suspicions = {case.case_id: check.suspicions_of(case.case_id) for case in check.cases}
    ordered = sorted(check.cases, key=lambda case: (not case.problems, not suspicions[case.case_id]))
    drawn = [case for case in ordered if case.case_id in pictures]
    render_page(
        path,
        "data_check.html",
        simulated=check.simulated,
        check=check,
        summary=summary(check),
        overview=overview(check),
        refused=check.refusals(),
        pictures=[(case, embed(pictures[case.case_id].read_bytes())) for case in drawn[:_PICTURES]],
        drawn=len(drawn),
        colours=colours,
        rows=[(case, _row(case)) for case in ordered],
        suspicions=suspicions,
    )


def _row(case: CaseFacts) -> Mapping[str, str]:
    """A case in the table of all."""
    image, mask = case.image, case.mask
    labels = "" if mask is None else ", ".join(f"{name} {count}" for name, count in mask.pixels.items()) or "empty"
    return {
        "patient": case.patient_id,
        "size": "" if image is None else size_in_words(image.size),
        "spacing": "" if image is None else spacing_in_words(image.spacing),
        "orientation": "" if image is None else image.orientation or "none stated",
        "values": "" if image is None else image_values_in_words(image),
        "labels": labels,
    }


def _facing(title: str, rows: Mapping[str, str]) -> Table:
    """Properties and what they are, side by side."""
    table = Table(title=escape(title), title_justify="left", show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(escape(name), escape(value))
    return table


def _listing(title: str, *columns: str) -> Table:
    """A table whose cells show all that is in them: paths are longer than a terminal is wide."""
    table = Table(title=title, title_justify="left", show_lines=True)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _refused_table(check: DataCheck) -> Table:
    table = _listing("Refused", "cases", "reason")
    refusals = check.refusals()
    for message, cases in refusals[:_MESSAGES]:
        alike = " (and alike of the others)" if len(cases) > 1 and cases[0] in message else ""
        table.add_row(escape(_first(cases)), escape(message + alike))
    rest = sum(len(cases) for _, cases in refusals[_MESSAGES:])
    if rest:
        table.add_row(f"and {rest} more", "--json or --out have all of them")
    return table


def _first(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _counts(values: Iterable[str]) -> str:
    """What there is, the most frequent first; with counts where there are several."""
    counts = Counter(values)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{value} in {count}" for value, count in counts.most_common())


def _along_axes(rows: Sequence[Sequence[float]], unit: str) -> str:
    """The range along each axis, apart for 2-D and 3-D."""
    said = []
    for axes in sorted({len(row) for row in rows}):
        alike = [row for row in rows if len(row) == axes]
        ranges = [
            f"{name} {range_in_words(column)}" for name, column in zip(_AXES, zip(*alike, strict=True), strict=False)
        ]
        said.append(f"{', '.join(ranges)} {unit}")
    return "; ".join(said)


def _spacings(images: Sequence[ImageFacts]) -> str:
    known = [image.spacing for image in images if image.spacing is not None]
    unknown = len(images) - len(known)
    if not known:
        return "unknown: sizes are in pixels"
    return _along_axes(known, "mm") + (f"; unknown in {unknown}" if unknown else "")


def _values(images: Sequence[ImageFacts]) -> str:
    """Extremes of each channel; images of fewer channels count where they have one."""
    said = []
    for place in range(max(image.channels for image in images)):
        channels = [image.values[place] for image in images if image.channels > place]
        low, high = min(item.least for item in channels), max(item.most for item in channels)
        usual = sorted(item.middle for item in channels)[len(channels) // 2]
        said.append(f"{low:.4g} to {high:.4g}, half of the pixels below {usual:.4g}")
    different = list(dict.fromkeys(said))
    if len(different) == 1:
        return different[0]
    return "; ".join(f"channel {place}: {text}" for place, text in enumerate(said))


def _labels(check: DataCheck) -> str:
    """The labels that are there with the masks that have them, then those that are named and in none."""
    counts = Counter(label for case in check.cases if case.mask is not None for label in case.mask.pixels)
    names = [*(name for name in check.labels if name in counts), *(name for name in counts if name not in check.labels)]
    said = []
    for name in names[:_LABELS]:
        number = f" = {check.labels[name]}" if name in check.labels else ""
        said.append(f"{name}{number} in {_counted(counts[name], 'mask')}")
    more = [f"and {len(names) - _LABELS} more"] if len(names) > _LABELS else []
    return ", ".join([*said, *more]) or "none could be read"
