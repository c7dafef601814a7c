"""Summary and table of the benchmark of clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.clips.real import read_rightly
from benchmarks.clips.simulated import CORRECTION, METHODS, SOURCE
from benchmarks.harness.tables import heading, interval, table_row

ECHONET = "EchoNet"


def summarise(found: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that others quote, by set and method; None where something was not run."""
    sets = _sets(found["seeds"])
    of_method = {
        name: {part: {method: _mean(cells, method, key) for method in METHODS} for part, cells in sets.items()}
        for name, key in (
            ("temporal_validity", "valid_over_time"),
            ("valid_frames", "valid_frames"),
            ("dice", "dice"),
            ("worst_frame_dice", "worst_frame_dice"),
            ("ef_mae", "ef_error"),
            ("ef_coverage", "ef_covered"),
        )
    }
    jitter = {
        part: {method: _ratio(_mean(cells, method, "jitter"), _mean(cells, SOURCE, "jitter")) for method in METHODS}
        for part, cells in sets.items()
    }
    speed, dicom = found["speed"], found["dicom"]
    corrections = {part: [cell[CORRECTION] for cell in cells if CORRECTION in cell] for part, cells in sets.items()}
    return {
        **of_method,
        "jitter_ratio": jitter,
        "dice_gain": {
            part: {
                method: [cell[method]["dice_gain"] for cell in cells if "dice_gain" in cell.get(method, {})]
                for method in METHODS
                if method != SOURCE
            }
            for part, cells in sets.items()
        },
        "worst_frame_gain": {part: _of(of, "worst_frame_gain") for part, of in corrections.items() if of},
        "clips_harmed": {part: _of(of, "harmed") for part, of in corrections.items() if of},
        "rules_ms_per_frame": speed["rules_over_time_ms"],
        "read_ms_per_frame": speed["read_ms"],
        "segment_ms_per_frame": speed["segment_ms"],
        "peak_mb_200_frames": speed["peak_mb"],
        "peak_mb_200_frames_smoothed": speed["peak_mb_smoothed"],
        "files_read": "{} of {} that are there".format(*read_rightly(dicom)),
        "skipped": [seed["echonet"]["skipped"] for seed in found["seeds"] if "skipped" in seed["echonet"]],
    }


def table(found: Mapping[str, Any], summary: Mapping[str, Any], trial: bool) -> str:
    """Markdown."""
    lines = [
        *heading("Clips: over time, before and after adaptation", trial),
        "Sets named by a vendor are SIMULATED beating hearts with truth in every frame; that of EchoNet is compared "
        "with the authors' network. Adapted without target labels. Jitter: second difference of the ventricle's area, "
        "as a share of that of the source model. EF error in points.",
        "",
        "| set | model | clips | Dice | gain [interval] | of the worst frame | valid frames | valid over time | jitter "
        "| EF error | EF in its interval |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for part, cells in _sets(found["seeds"]).items():
        for method in METHODS:
            there = [cell[method] for cell in cells if method in cell]
            if not there:
                continue
            gains = [interval(cell["dice_gain"]) for cell in there if "dice_gain" in cell]
            lines.append(
                table_row(
                    [
                        part,
                        method,
                        str(sum(cell["mean"]["clips"] for cell in there)),
                        _text(_mean(cells, method, "dice")),
                        "; ".join(gains),
                        _text(_mean(cells, method, "worst_frame_dice")),
                        _text(_mean(cells, method, "valid_frames"), 2),
                        _text(_mean(cells, method, "valid_over_time"), 2),
                        _text(summary["jitter_ratio"][part][method], 2),
                        _text(_mean(cells, method, "ef_error"), 1),
                        _text(_mean(cells, method, "ef_covered"), 2),
                    ]
                )
            )
    speed = found["speed"]
    reading = ", ".join(f"{name} {value:.1f} ms" for name, value in speed["read_ms"].items())
    lines += [
        "",
        *(
            f"Worst frame of the source model's clips, {part}: {100 * gain:+.1f} points where every frame is corrected "
            f"by the adapted model and `neighbours`; {100 * summary['clips_harmed'][part]:.0f} % of the clips harmed."
            for part, gain in summary["worst_frame_gain"].items()
        ),
        *(f"EchoNet skipped: {reason}." for reason in dict.fromkeys(summary["skipped"])),
        "",
        f"CPU time a frame ({speed['threads']} threads): rules over time {speed['rules_over_time_ms']:.2f} ms beside "
        f"{speed['static_rules_ms']:.2f} ms of the static rules (256 x 256), agreement with neighbours "
        f"{speed['neighbours_ms']:.0f} ms (256 x 256), segmenting {speed['segment_ms']:.0f} ms; reading {reading}.",
        f"Memory of {speed['long_clip']['frames']} frames of {speed['long_clip']['size']} read and measured: "
        f"{speed['peak_mb']:.0f} MB, and smoothed {speed['peak_mb_smoothed']:.0f} MB, by {speed['smooth_ms']:.0f} ms a "
        "frame where no smoothing mends the clip.",
        "",
        "| real DICOM | |",
        "|---|---|",
        *(table_row([f"`{name}`", text]) for name, text in found["dicom"].items()),
    ]
    return "\n".join(lines) + "\n"


def _sets(seeds: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Cells of all seeds, by set."""
    sets: dict[str, list[Mapping[str, Any]]] = {}
    for seed in seeds:
        for name, cell in seed["simulated"].items():
            sets.setdefault(name, []).append(cell)
        if "skipped" not in seed["echonet"]:
            sets.setdefault(ECHONET, []).append(seed["echonet"])
    return sets


def _mean(cells: Sequence[Mapping[str, Any]], method: str, key: str) -> float | None:
    values = [cell[method]["mean"].get(key) for cell in cells if method in cell]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _of(cells: Sequence[Mapping[str, Any]], key: str) -> float:
    return float(np.mean([cell[key] for cell in cells]))


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def _text(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"
