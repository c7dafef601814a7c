"""The time that `medfm-rl adapt` takes on the device at hand, stage by stage, on CAMUS to a SIMULATED handheld.

    python -m benchmarks.speed.adaptation [--device auto] [--threads 2] [--seed 0] [--runs FOLDER]

The shift, source model and default settings are those of `benchmarks.adaptation.run`: 400 source and 240 target images,
networks at 112 x 112. A stage lasts from the end of the one before to its own end, so what no stage shows counts for
the next one. Dice on the held-out target patients stands beside the time, for a fast run that does not adapt is worth
nothing. The results of a GPU are kept apart from those of a CPU.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.command_line import add_runs, begin, plain_parser
from benchmarks.harness.laboratory import Budget, Laboratory, read_selection
from benchmarks.harness.recording import RUNS, quiet, write_results
from benchmarks.harness.shifts import HANDHELD, prepare
from benchmarks.harness.tables import heading
from medfm_rl.networks import choose_device
from medfm_rl.runs.finished import load_run
from medfm_rl.workflows.adapt.loop import adapt


class StageTimes:
    """Progress that adds up the seconds of each stage; what differs in a number only is one stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        name = re.sub(r"[\s-]*\d+(/\d+)?", "", stage)
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now
        quiet(stage, done, total)


def measure(runs: Path, device: str, seed: int, started_in: dict[str, Any]) -> dict[str, Any]:
    """Adapts once from nothing."""
    laboratory = Laboratory(prepare(HANDHELD, runs / "data"), seed, runs, Budget(), started_in)
    out = runs / f"run-{device}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    config = laboratory.config(out, changes={"device": device})
    times = StageTimes()
    began = time.perf_counter()
    run = adapt(config, resume=False, progress=times)
    seconds = time.perf_counter() - began
    return {
        "minutes": seconds / 60,
        "stages": times.seconds,
        "chosen": read_selection(run).chosen,
        "dice_before": laboratory.mean_dice(laboratory.source_model().to(device)),
        "dice_after": laboratory.mean_dice(load_run(run.path, device).segmenter),
    }


def main() -> None:
    parser = plain_parser(__doc__)
    add_runs(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started_in = begin(arguments)
    device = choose_device(arguments.device).type
    found = measure(arguments.runs or RUNS / "adaptation_speed", device, arguments.seed, started_in)
    total = sum(found["stages"].values())
    where = torch.cuda.get_device_name() if device == "cuda" else f"{arguments.threads} threads"
    lines = [
        *heading(f"Time of `adapt` on {where}", trial=False),
        "CAMUS to a SIMULATED handheld, default settings, 112 x 112 pixels. "
        f"{found['minutes']:.1f} minutes; Dice {found['dice_before']:.3f} before, {found['dice_after']:.3f} after.",
        "",
        "| stage | seconds | share |",
        "|---|---|---|",
        *(
            f"| {name} | {seconds:.1f} | {100 * seconds / total:.0f} % |"
            for name, seconds in sorted(found["stages"].items(), key=lambda item: -item[1])
        ),
    ]
    summary = {key: found[key] for key in ("minutes", "dice_before", "dice_after")}
    suffix = "" if device == "cpu" else f"_{device}"
    write_results(f"adaptation_speed{suffix}", started_in, [arguments.seed], found, summary, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
