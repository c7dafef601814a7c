"""One process beside several on this machine: equality, speed-up, a worker that is killed, a long queue.

    python -m benchmarks.scale.run [--parts adapt same speed kill queue] [--cases 10000] [--runs FOLDER] [--quick]

All data are SIMULATED, and reward networks have random weights: neither changes what is asked here.

- `adapt`: `adapt` by one process and by two (`--devices 2`), each with one thread, and by one with two threads; the
  weights that come back are compared.
- `same`: `predict`, `score` and `correct` by one process and by two Ray workers; all that they leave is compared, but
  for times.
- `speed`: `score` by one process with one thread, and by two workers with one thread each, in turns, after the workers
  have started; beside it one process with two threads.
- `kill`: `score` by two workers, one of which is killed when half of the cases are done.
- `queue`: `score` of a long queue of small cases by two workers in a fresh process, whose resident set is looked at.

Nothing else may run meanwhile: two workers need two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.command_line import add_quick, add_runs, begin, plain_parser
from benchmarks.harness.recording import BENCHMARKS, RUNS, print_results, quiet, write_results
from benchmarks.harness.tables import heading
from benchmarks.scale.adapting import adapting
from benchmarks.scale.comparing import differing, resident_mb, watched
from benchmarks.scale.material import write_queue, write_run
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.progress import silent
from medfm_rl.runs.finished import load_run
from medfm_rl.settings import CorrectionSettings, DataSettings, NetworkSettings
from medfm_rl.workflows.deploy.correct import CorrectRequest, correct
from medfm_rl.workflows.deploy.predict import predict
from medfm_rl.workflows.deploy.score import score
from medfm_rl.workflows.deploy.workers import Workers

PARTS = ("adapt", "same", "speed", "kill", "queue")
SEED = 0
SMALL = NetworkSettings(channels=(4, 8), residual_units=0)
MEDIUM = NetworkSettings(channels=(16, 32, 64), residual_units=2)
# No machine is so busy that the time budget would decide.
CORRECTION = CorrectionSettings(steps=2, smoothness=1, learning_rate=5.0, seconds=600)


def same(run: Path, files: Sequence[CaseFile], folder: Path, workers: Workers) -> dict[str, Any]:
    """Files that one process and workers leave, and those of them that differ, by command."""
    found = {}
    for command in ("predict", "score", "correct"):
        outs = [_new(folder / f"{command}-{name}") for name in ("one", "workers")]
        for out, hands in zip(outs, (None, workers), strict=True):
            match command:
                case "predict":
                    predict(load_run(run, "cpu"), files, out, quiet, hands)
                case "score":
                    score(load_run(run, "cpu"), files, out, progress=quiet, workers=hands)
                case _:
                    asked = CorrectRequest(CORRECTION, every=True)
                    correct(load_run(run, "cpu"), files, out, asked, quiet, hands)
        found[command] = differing(*outs)
    return found


def speed(run: Path, files: Sequence[CaseFile], folder: Path, workers: Workers, repeats: int) -> dict[str, Any]:
    """Seconds that `score` takes in one process and by workers, in turns."""

    def seconds(name: str, hands: Workers | None, threads: int = 1) -> float:
        out = _new(folder / name)
        torch.set_num_threads(threads)
        start = time.perf_counter()
        score(load_run(run, "cpu"), files, out, progress=silent, workers=hands)
        torch.set_num_threads(1)
        return time.perf_counter() - start

    start = time.perf_counter()
    score(load_run(run, "cpu"), files[:2], _new(folder / "start"), workers=workers)
    started = time.perf_counter() - start
    turns = [(seconds("one", None), seconds("workers", workers), seconds("threads", None, 2)) for _ in range(repeats)]
    one, two, threads = (statistics.median(turn[column] for turn in turns) for column in range(3))
    return {
        "cases": len(files),
        "turns": turns,
        "one_process": one,
        "two_workers": two,
        "one_process_two_threads": threads,
        "seconds_to_start": started,
        "speedup": statistics.median(turn[0] / turn[1] for turn in turns),
        "speedup_of_two_threads": statistics.median(turn[0] / turn[2] for turn in turns),
    }


def kill(run: Path, files: Sequence[CaseFile], folder: Path, workers: Workers) -> dict[str, Any]:
    """What is missing after a worker was killed in the middle."""
    one, two = _new(folder / "one"), _new(folder / "killed")
    score(load_run(run, "cpu"), files, one, progress=silent)
    killed: list[int] = []

    def killing(stage: str, done: int, total: int) -> None:
        if stage == "scoring" and done >= total // 2 and not killed:
            killed.append(workers.processes[-1])
            os.kill(killed[0], signal.SIGKILL)

    before = len(workers.processes)
    score(load_run(run, "cpu"), files, two, progress=killing, workers=workers)
    cases = {case["case_id"] for case in json.loads((two / "scores.json").read_text())["cases"]}
    masks = {path.name.removesuffix(".nii.gz") for path in (two / "labels").iterdir()}
    names = {file.case_id for file in files}
    return {
        "cases": len(files),
        "killed": killed,
        "started_after": len(workers.processes) - before,
        "lost": len(names - (cases & masks)),
        **differing(one, two),
    }


def queue(run: Path, files: Sequence[CaseFile], out: Path, workers: Workers) -> dict[str, Any]:
    """The resident set of this process while it has a long queue scored."""
    marks: dict[int, float] = {}

    def look(stage: str, done: int, total: int) -> None:
        if stage == "scoring" and done % max(1, total // 10) == 0:
            marks[done] = resident_mb()

    start = time.perf_counter()
    with watched() as peak:
        scoring = score(load_run(run, "cpu"), files, _new(out), progress=look, workers=workers)
    first = marks[min(marks)]
    return {
        "cases": len(files),
        "assessed": len(scoring.batch.reports),
        "mb_by_cases": marks,
        "mb_at_first_tenth": first,
        "mb_most": max(peak),
        "growth_of_queue": max(marks.values()) / first - 1,
        "growth": max(peak) / first - 1,
        "minutes": (time.perf_counter() - start) / 60,
    }


def _new(out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    return out


def one(part: str, cases: int, runs: Path, quick: bool, workers: Workers) -> dict[str, Any]:
    """A part, in this process."""
    side, network = (32, SMALL) if part == "queue" or quick else (96, MEDIUM)
    folder = runs / f"material-{side}"
    folder.mkdir(parents=True, exist_ok=True)
    run = write_run(folder, side, network)
    data = write_queue(folder, cases, folder / "calibration")
    files = find_cases(DataSettings(path=data / "images"))
    match part:
        case "same":
            return same(run, files, runs / part, workers)
        case "speed":
            return speed(run, files, runs / part, workers, repeats=1 if quick else 3)
        case "kill":
            return kill(run, files, runs / part, workers)
        case _:
            return queue(run, files, runs / part / "out", workers)


def in_new_process(part: str, cases: int, runs: Path) -> dict[str, Any]:
    """The same in a fresh process, which has held nothing before."""
    command = [sys.executable, "-m", "benchmarks.scale.run", "--one", part, str(cases), "--runs", str(runs)]
    done = subprocess.run(
        [*command, "--threads", "1"], stdout=subprocess.PIPE, text=True, check=True, cwd=BENCHMARKS.parent
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(parts: Sequence[str], queued: int, runs: Path) -> dict[str, Any]:
    """Each part in a fresh process; those that were measured before are kept."""
    cases = {"same": 40, "speed": 320, "kill": 160, "queue": queued}
    kept = runs / "parts.json"
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    for part in parts:
        found[part] = adapting(runs / part, False) if part == "adapt" else in_new_process(part, cases[part], runs)
        kept.write_text(json.dumps(found, indent=2))
        print(part, json.dumps(found[part]), flush=True)
    return found


def try_out(parts: Sequence[str], queued: int, runs: Path) -> dict[str, Any]:
    """Each part with few cases, all but `adapt` in this process and by the same workers."""
    found = {"adapt": adapting(runs / "adapt", True)} if "adapt" in parts else {}
    with Workers("2", "cpu") as workers:
        for part in parts:
            if part != "adapt":
                found[part] = one(part, min(queued, 48) if part == "queue" else 24, runs, True, workers)
    return found


def summary_of(found: dict[str, Any]) -> dict[str, Any]:
    """The figures that others quote; those of parts that were not measured are left out."""
    summary: dict[str, Any] = {}
    if "adapt" in found:
        summary |= {"same_weights_1_2": found["adapt"]["same"], "speedup_2": found["adapt"]["speedup"]}
    if "same" in found:
        summary["same_scores_ray"] = not any(result["differing"] for result in found["same"].values())
    if "speed" in found:
        summary["speedup_2_score"] = found["speed"]["speedup"]
    if "kill" in found:
        summary["lost_after_kill"] = found["kill"]["lost"]
    if "queue" in found:
        summary["peak_growth_10000"] = found["queue"]["growth"]
    return summary


def table_of(found: dict[str, Any], trial: bool) -> str:
    """What was measured, as Markdown."""
    lines = [*heading("One process beside several (SIMULATED data)", trial), "| what | measured |", "|---|---|"]
    if "adapt" in found:
        result = found["adapt"]
        seconds, same = result["seconds"], len(set(result["chosen"].values())) == 1
        lines.append(
            f"| `adapt` | one process {seconds['one']:.0f} s, two {seconds['two']:.0f} s, one with two threads "
            f"{seconds['one_with_two_threads']:.0f} s; {result['speedup']:.2f} and "
            f"{result['speedup_of_two_threads']:.2f} times as fast as one. From the weights of one process those of "
            f"two differ by {result['mean_difference']['two']:.1g} on average, those of two threads by "
            f"{result['mean_difference']['one_with_two_threads']:.1g} (the largest weight is "
            f"{result['largest_weight']:.2g}); {'the same candidate' if same else 'another candidate'} was chosen |"
        )
    for command, result in found.get("same", {}).items():
        lines.append(
            f"| `{command}`, one process and two workers | {result['files']} files, {len(result['differing'])} differ |"
        )
    if "speed" in found:
        result = found["speed"]
        lines.append(
            f"| `score` of {result['cases']} cases | one process {result['one_process']:.1f} s, two workers "
            f"{result['two_workers']:.1f} s (and {result['seconds_to_start']:.1f} s until they have started), one "
            f"process with two threads {result['one_process_two_threads']:.1f} s; {result['speedup']:.2f} and "
            f"{result['speedup_of_two_threads']:.2f} times as fast as one |"
        )
    if "kill" in found:
        result = found["kill"]
        lines.append(
            f"| `score` of {result['cases']} cases, one of two workers killed in the middle | {result['lost']} cases "
            f"lost, {len(result['differing'])} of {result['files']} files differ |"
        )
    if "queue" in found:
        result = found["queue"]
        lines.append(
            f"| `score` of {result['cases']} cases of 32 x 32 pixels | {result['minutes']:.1f} minutes; "
            f"{result['mb_at_first_tenth']:.0f} MB after a tenth of them, {result['mb_most']:.0f} MB at most: "
            f"{100 * result['growth']:+.1f} %; until the tables are written {100 * result['growth_of_queue']:+.1f} % |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = plain_parser(__doc__, threads=1)
    add_runs(parser)
    add_quick(parser)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--cases", type=int, default=10_000, help="of the queue")
    parser.add_argument("--one", nargs=2, metavar=("PART", "CASES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    started_in = begin(arguments)
    runs = (arguments.runs or RUNS / ("scale-quick" if arguments.quick else "scale")).resolve()
    if arguments.one:
        with Workers("2", "cpu") as workers:
            print(json.dumps(one(arguments.one[0], int(arguments.one[1]), runs, False, workers)))
        return
    runs.mkdir(parents=True, exist_ok=True)
    if arguments.quick:
        tried = try_out(arguments.parts, arguments.cases, runs)
        print_results(summary_of(tried), table_of(tried, trial=True))
        return
    found = measure(arguments.parts, arguments.cases, runs)
    write_results("scale", started_in, [SEED], found, summary_of(found), table_of(found, trial=False))


if __name__ == "__main__":
    main()
