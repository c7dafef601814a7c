"""Clips: what a source model, `adapt` without and with the temporal reward make of SIMULATED beating hearts.

    python -m benchmarks.clips.run [--seeds 0] [--runs FOLDER] [--echonet FOLDER] [--dicom FOLDER]
    python -m benchmarks.clips.run --quick          # minutes: every part runs, the figures mean nothing
    python -m benchmarks.clips.run --adapt vintage  # of the sets, that one is adapted to; without a name none is
    python -m benchmarks.clips.run --temporal vintage  # of those, that one with the temporal reward too

A segmenter learns from stills (ED and ES) of one simulated vendor, and is adapted to unlabelled clips of two others,
once with `collect.clip_images: 0` and `ppo.neighbour_share: 0`, and once with the defaults, by which neighbours are a
source of references and have a share in PPO's reward.
The source model and the first adapted one are measured with each frame averaged over time too (`predict --over-time`),
and then cleaned up (`--clean-up`).
Everything is measured on clips of further patients, whose truth is known in every frame: Dice, share of frames that
meet the rules of the image and of clips that meet those over time, jitter of the ventricle's area, error of the
ejection fraction, what the intervals from reward maps cover. The clips of the source model are corrected by the adapted
one and `neighbours`, every frame of them.

`--echonet` names a folder with the mp4 files of `docs/media` of github.com/echonet/dynamic: cine at the left, the
authors' left ventricle at the right. There the source model learns from CAMUS, the clips are adapted to and measured
on, and their reference is the authors' network, no expert. `--dicom` names a folder with the real multi-frame DICOM
files that `benchmarks/clips/real.py` lists. What is not there is skipped, and the results say so.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.clips.real import EchoNet, read_dicom_files
from benchmarks.clips.report import ECHONET, summarise, table
from benchmarks.clips.simulated import FULL, QUICK, VENDORS, Simulated, of_adapted
from benchmarks.clips.speed import measure_speed
from benchmarks.harness.command_line import add_quick, add_runs, begin, plain_parser
from benchmarks.harness.recording import RUNS, once, write_results

SETS = (*VENDORS, ECHONET)


def main() -> None:
    parser = plain_parser(__doc__)
    add_runs(parser)
    add_quick(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--echonet", type=Path, help="folder with 0X*.mp4 of echonet/dynamic, docs/media")
    parser.add_argument("--dicom", type=Path, help="folder with real multi-frame DICOM files")
    parser.add_argument(
        "--adapt", nargs="*", choices=SETS, default=SETS, help="sets that are adapted to (default: all)"
    )
    parser.add_argument(
        "--temporal",
        nargs="*",
        choices=SETS,
        default=SETS,
        help="of those, with the temporal reward too",
    )
    arguments = parser.parse_args()
    started_in = begin(arguments)
    suffix = "-quick" if arguments.quick else ""
    runs: Path = arguments.runs or RUNS / f"clips{suffix}"
    results = [_of_seed(seed, runs, arguments) for seed in arguments.seeds]
    found: dict[str, Any] = {
        "seeds": results,
        "speed": once(runs / "speed.json", lambda: measure_speed(runs / "speed", arguments.quick)),
        "dicom": read_dicom_files(arguments.dicom),
    }
    summary = summarise(found)
    write_results(f"clips{suffix}", started_in, arguments.seeds, found, summary, table(found, summary, arguments.quick))


def _of_seed(seed: int, runs: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    print(f"seed {seed}", flush=True)
    size = QUICK if arguments.quick else FULL
    folder = runs / f"seed-{seed}"
    adapted = {part: of_adapted(part in arguments.temporal) for part in arguments.adapt}
    result: dict[str, Any] = Simulated(seed, size, folder).run(adapted)
    if arguments.echonet is None:
        result["echonet"] = {"skipped": "no --echonet FOLDER was given"}
    else:
        clips = EchoNet(seed, size, folder / "echonet", arguments.echonet)
        result["echonet"] = clips.run(adapted.get(ECHONET, ()))
    return result


if __name__ == "__main__":
    main()
