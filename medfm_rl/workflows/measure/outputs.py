"""Tables and JSON of what was measured in clips."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from medfm_rl.anatomy.ejection import Ejection, EjectionInterval
from medfm_rl.anatomy.uncertainty import LEVEL
from medfm_rl.data.files import write_text, write_versioned_json
from medfm_rl.types import LabelSchema

if TYPE_CHECKING:
    from medfm_rl.workflows.measure.measure import MeasuredClip, Measures

TABLE_FILE: Final = "measures.csv"
FRAMES_FILE: Final = "frames.csv"
JSON_FILE: Final = "measures.json"
PAGE_FILE: Final = "report.html"
_FORMAT = 3
_METHOD: Final = (
    "masks drawn from the reward maps as level sets of a Gaussian field that is correlated over half the length of a "
    "structure, each frame by itself; intervals leave out as many draws below as above"
)
_CALIBRATED = ("mm", "mm^2")
_RATIO = ("of the ED length", "of the ED area")
_PIXELS = ("px", "px^2")
"""Units of lengths and areas: calibrated, relative to end-diastole, or neither where there is no beat."""
VALID: Final = "valid over time"
"""The verdict on figures that can be relied on as far as the masks can; of others it is `refer`."""


def write_measures(out: Path, measures: Measures, schema: LabelSchema) -> None:
    """Writes `measures.csv`, a row for each clip and each patient with both views, `frames.csv` and `measures.json`."""
    rows = [_row(clip) for clip in measures.clips.values()]
    rows += [
        {
            "clip_id": " + ".join(names),
            "patient_id": patient,
            "view": "2CH + 4CH",
            **_ejected(ejection, measures.biplane_intervals.get(patient)),
            **_standing([measures.clips[name] for name in names]),
        }
        for patient, (ejection, names) in measures.biplane.items()
    ]
    rows += [{"clip_id": name, "note": problem} for name, problem in measures.problems.items()]
    write_text(out / TABLE_FILE, _table(rows, list(_row(next(iter(measures.clips.values()))))))
    frames = [row for clip in measures.clips.values() for row in _frames(clip, schema)]
    write_text(out / FRAMES_FILE, _table(frames, list(frames[0])))
    drawn = any(clip.draws is not None for clip in measures.clips.values())
    content = {
        "intervals": {"level": LEVEL, "method": _METHOD} if drawn else None,
        "clips": {name: {**_row(clip), "frames": _frames(clip, schema)} for name, clip in measures.clips.items()},
        "biplane": {
            patient: {
                "clips": list(names),
                **_ejected(ejection, measures.biplane_intervals.get(patient)),
                **_standing([measures.clips[name] for name in names]),
            }
            for patient, (ejection, names) in measures.biplane.items()
        },
        "rules": {name: [_rule(rule) for rule in clip.anatomy.rules] for name, clip in measures.clips.items()},
        "problems": dict(measures.problems),
    }
    write_versioned_json(out / JSON_FILE, _FORMAT, content)


def scales(clip: MeasuredClip) -> tuple[float, float, tuple[str, str]]:
    """Factors of lengths and areas in square pixels, and the units that they give."""
    anatomy = clip.anatomy
    if anatomy.side is not None:
        return anatomy.side, anatomy.side**2, _CALIBRATED
    ed = None if anatomy.beat is None else anatomy.frames[anatomy.beat.ed]
    if ed is None or ed.discs is None:
        return 1.0, 1.0, _PIXELS
    return 1 / ed.discs.length, 1 / ed.areas[anatomy.ventricle], _RATIO


def _row(clip: MeasuredClip) -> dict[str, Any]:
    anatomy = clip.anatomy
    length, area, units = scales(clip)
    row: dict[str, Any] = {
        "clip_id": clip.clip_id,
        "patient_id": clip.patient_id,
        "view": clip.view,
        "frame_count": len(anatomy.frames),
        "seconds": None if clip.times is None else clip.times[-1],
        "calibrated": anatomy.side is not None,
        "beats": None if anatomy.beat is None else anatomy.beat.beats,
    }
    for phase in ("ed", "es"):
        index = None if anatomy.beat is None else getattr(anatomy.beat, phase)
        frame = None if index is None else anatomy.frames[index]
        row |= {
            f"{phase}_frame": index,
            f"{phase}_area": None if frame is None else frame.areas[anatomy.ventricle] * area,
            **_ends(f"{phase}_area", _drawn_area(clip, anatomy.ventricle, index), area),
            f"{phase}_length": None if frame is None or frame.discs is None else frame.discs.length * length,
        }
    row |= {"length_unit": units[0], "area_unit": units[1], **_ejected(clip.ejection, clip.interval)}
    return row | {"jitter": anatomy.jitter, **_standing([clip])}


def verdict_in_words(clips: Sequence[MeasuredClip]) -> str:
    """The verdict of what was measured in one clip, or in two together, and why it is no better, briefly."""
    if all(clip.reliable for clip in clips):
        return VALID
    reasons = [doubt for clip in clips for doubt in clip.doubts]
    if not all(clip.anatomy.valid for clip in clips):
        reasons.append("breaks a rule over time")
    return f"refer: {'; '.join(dict.fromkeys(reasons))}"


def _standing(clips: Sequence[MeasuredClip]) -> dict[str, str | None]:
    """The verdict of what was measured in one clip, or in two together: the worse, with the reasons of both."""
    broken = [rule for clip in clips for rule in clip.anatomy.broken]
    doubts = list(dict.fromkeys(doubt for clip in clips for doubt in clip.doubts))
    return {
        "verdict": VALID if all(clip.reliable for clip in clips) else "refer",
        "broken": "; ".join(broken),
        "note": "; ".join(doubts) or None,
    }


def _ejected(ejection: Ejection | None, interval: EjectionInterval | None) -> dict[str, Any]:
    names = ("edv", "esv", "volume_unit", "ef_percent", "ef_percent_common_length", "method")
    row: dict[str, Any] = dict.fromkeys(names)
    if ejection is not None:
        found = (ejection.edv, ejection.esv, ejection.unit, ejection.ef, ejection.ef_common_length, ejection.method)
        row = dict(zip(names, found, strict=True))
    ends = (None, None, None) if interval is None else (interval.edv, interval.esv, interval.ef)
    for name, of in zip(("edv", "esv", "ef_percent"), ends, strict=True):
        row |= _ends(name, of)
    return row | {"draws": None if interval is None else interval.draws}


def _ends(name: str, interval: tuple[float, float] | None, scale: float = 1.0) -> dict[str, float | None]:
    """Columns of the lower and the upper end of an interval."""
    low, high = (None, None) if interval is None else (interval[0] * scale, interval[1] * scale)
    return {f"{name}_low": low, f"{name}_high": high}


def _frames(clip: MeasuredClip, schema: LabelSchema) -> list[dict[str, Any]]:
    length, area, units = scales(clip)
    rows = []
    for index, frame in enumerate(clip.anatomy.frames):
        row: dict[str, Any] = {"clip_id": clip.clip_id, "frame": index}
        row["seconds"] = None if clip.times is None else clip.times[index]
        for name in schema.structures:
            row[f"area_{name}"] = frame.areas[name] * area
            row |= _ends(f"area_{name}", _drawn_area(clip, name, index), area)
        row["length"] = None if frame.discs is None else frame.discs.length * length
        row["base_width"] = None if frame.base_width is None else frame.base_width * length
        for axis, name in enumerate(("row", "column")):
            row[f"centre_{name}"] = None if frame.centre is None else frame.centre[axis]
        rows.append({**row, "length_unit": units[0], "area_unit": units[1]})
    return rows


def _drawn_area(clip: MeasuredClip, structure: str, index: int | None) -> tuple[float, float] | None:
    """What rewards leave open of an area in square pixels; None without rewards, or of no frame."""
    if clip.draws is None or index is None:
        return None
    low, high = clip.draws.areas[structure][index]
    return float(low), float(high)


def _rule(rule: Any) -> dict[str, Any]:
    return {
        "rule": rule.rule,
        "structure": rule.structure,
        "measured": rule.measured,
        "most": rule.most if math.isfinite(rule.most) else None,
        "unit": rule.unit,
        "frame": rule.frame,
        "source": rule.source,
        "passed": rule.passed,
    }


def _table(rows: Sequence[dict[str, Any]], columns: list[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows({name: _short(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else value
