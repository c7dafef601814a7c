"""How long `medfm-rl adapt` takes on the device at hand, stage by stage, on CAMUS to a SIMULATED handheld.

    python benchmarks/adaptation_speed.py [--device auto] [--threads 2] [--seed 0] [--runs FOLDER]

The shift, source model and default settings are those of `adaptation.py`: 400 source and 240 target images, networks at
112 x 112. A stage lasts from the end of the one before to its own end, so what no stage shows counts for the next one.
Dice on the held-out target patients stands beside the time, for a fast run that does not adapt is worth nothing. The
results of a GPU are kept apart from those of a CPU.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from adaptation import Budget, Laboratory
from cells import OURS
from recording import environment, write_results
from shifts import prepare

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.networks import choose_device
from medfm_rl.runs.models import load_adapted
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
        if done == total:
            print(f"  {stage}: {total}", flush=True)


def measure(runs: Path, device: str, seed: int, started_in: dict[str, Any]) -> dict[str, Any]:
    """Adapts once from nothing."""
    laboratory = Laboratory(prepare("camus-handheld", runs / "data"), seed, runs, Budget(), started_in)
    source = laboratory.trained(laboratory.shift.folders.source)[0]
    out = runs / f"run-{device}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    config = laboratory.config(OURS, source, out).model_copy(update={"device": device})
    times = StageTimes()
    start = time.perf_counter()
    run = adapt(config, resume=False, progress=times)
    seconds = time.perf_counter() - start
    chosen = json.loads(run.selection(config.iterations - 1).read_text())["chosen"]
    return {
        "minutes": seconds / 60,
        "stages": times.seconds,
        "chosen": chosen,
        "dice_before": laboratory.mean_dice(TorchModuleAdapter.load(source).to(device)),
        "dice_after": laboratory.mean_dice(load_adapted(run).to(device)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path(__file__).parent / "runs" / "adaptation_speed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device).type
    started_in = environment()
    found = measure(arguments.runs, device, arguments.seed, started_in)
    total = sum(found["stages"].values())
    where = torch.cuda.get_device_name() if device == "cuda" else f"{arguments.threads} threads"
    lines = [
        f"# Time of `adapt` on {where}",
        "",
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
