"""What adaptation needs of memory, disk and time: against the number of cases, the size of images and of patches.

    python -m benchmarks.size.run [--parts cases image volume update disk] [--threads 1] [--runs FOLDER]

All data are SIMULATED, networks have random weights: neither changes what a run needs. Peak memory is the largest
resident set of a fresh process.

- `cases`: whole runs of `adapt` with 25 and 400 patients each of source and target (192 x 192), a tiny network.
- `image`: a whole run with the default network, batches and files of D_R at 512 x 512; few steps, for each is like the
  next.
- `volume`: one update of PPO with two patches of 96 x 160 x 160 in a 3-D nnU-Net of planned size (six stages), with
  activations kept, and computed again as a run does by itself where they do not fit into the memory. What the rollout
  rows of the other 14 patches need is measured with a tiny network, by 2 and 8 of them, and added.
- `update`: an update of PPO in 3-D beside its bare forwards and backwards, in turns.
- `disk`: actions of 128 x 128 x 128 of every kind that D_R has, packed.

Parts that were measured before are kept, so that they can be measured one by one.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness.command_line import add_runs, begin, plain_parser
from benchmarks.harness.passes import bare_passes, count_passes, seconds, update
from benchmarks.harness.recording import BENCHMARKS, RUNS, write_results
from benchmarks.harness.tables import heading
from benchmarks.size.material import (
    DEFAULT,
    SCHEMA,
    SMALL,
    disc,
    planned_network,
    smooth_logits,
    write_cases,
    write_segmenter,
)
from medfm_rl.activations import measure_activations
from medfm_rl.data.packing import pack
from medfm_rl.envs import SegmentationVecEnv
from medfm_rl.networks import build_unet
from medfm_rl.policies import DenseCategorical, DensePPO
from medfm_rl.reward.corruption import add_blob, drop_structure, warp
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.settings import AdaptConfig, NetworkSettings, PPOHyperparameters, RewardSettings

PARTS = ("disk", "update", "cases", "image", "volume")
SEED = 0
COUNTS = (25, 400)
CASE_SIDE, IMAGE_SIDE = 192, 512
VOLUME = (96, 160, 160)
KEPT, RECOMPUTED, ROWS = "volume", "volume-recomputed", "rows"
"""Updates with large patches: with activations kept, computed again, and of a tiny network."""
ROLLOUT = 16
"""Patches of a rollout by default."""
FEW, MANY = 2, 8
"""Patches of rollouts whose memory is compared."""


def adapt_once(folder: Path, count: int, side: int, network: NetworkSettings, small: bool) -> dict[str, Any]:
    """A whole run of few steps in this process: its peak memory, and what it leaves on the disk."""
    from medfm_rl.workflows.adapt.loop import adapt

    shutil.rmtree(folder, ignore_errors=True)
    write_cases(folder / "source", count, side, seed=1)
    write_cases(folder / "target", count, side, seed=2)
    write_segmenter(folder / "segmenter", side, network)
    images = 24 if small else 100
    config = AdaptConfig.model_validate(
        {
            "segmenter": {"kind": "torch", "folder": folder / "segmenter"},
            "source": {"path": folder / "source"},
            "target": {"path": folder / "target"},
            "output": folder / "run",
            "fine_tuning": {"steps": 4},
            "collect": {"source_images": images, "target_images": images, "shard_images": images},
            "shape_prior": {"epochs": 1},
            "reward": {"steps": 2, "validate_every": 2, **({"network": SMALL} if small else {})},
            "ppo": {"updates": 2, "eval_every": 2},
            "tracking": {"uri": None},
            "device": "cpu",
        }
    )
    before, started = peak_gb(), time.perf_counter()
    run = adapt(config)
    size = sum(path.stat().st_size for path in run.actions.rglob("*") if path.is_file())
    return {
        "cases": count,
        "side": side,
        "peak_gb": peak_gb(),
        "peak_gb_before": before,
        "actions_mb": size / 1e6,
        "minutes": (time.perf_counter() - started) / 60,
    }


def update_volume(patches: int, recompute: bool) -> dict[str, Any]:
    """One update of PPO with large patches: its peak memory.

    Args:
        patches: Of a rollout.
        recompute: Whether activations are computed again for the gradient.
    """
    network = planned_network()
    images = np.random.default_rng(SEED).normal(size=(patches, 1, *VOLUME)).astype(np.float32)
    kept = measure_activations(network, torch.from_numpy(images[:1]))
    started = time.perf_counter()
    ppo = ppo_on(images, network, n_epochs=1, recompute=recompute)
    update(ppo)
    return {
        "patches": patches,
        "recompute": recompute,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "gradient_gb": kept.kept / 1e9,
        "gradient_gb_recomputed": kept.recomputed / 1e9,
        "peak_gb_measured": peak_gb(),
        "minutes": (time.perf_counter() - started) / 60,
    }


def update_rows(patches: int) -> dict[str, Any]:
    """The same with a network that needs little itself: what grows with the patches is what a rollout keeps of each."""
    network = build_unet(NetworkSettings(channels=(4, 8, 16), residual_units=0), 3, 1, SCHEMA.num_classes)
    images = np.random.default_rng(SEED).normal(size=(patches, 1, *VOLUME)).astype(np.float32)
    update(ppo_on(images, network, n_epochs=1, recompute=False))
    return {"patches": patches, "peak_gb_measured": peak_gb()}


def with_rows(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Updates of the large network, with the rows of a rollout added that they had too few of."""
    *updates, few, many = found
    row = (many["peak_gb_measured"] - few["peak_gb_measured"]) / (many["patches"] - few["patches"])
    return [
        {**each, "gb_a_row": row, "peak_gb": each["peak_gb_measured"] + (ROLLOUT - each["patches"]) * row}
        for each in updates
    ]


def ppo_on(images: np.ndarray[Any, Any], network: torch.nn.Module, n_epochs: int, recompute: bool) -> DensePPO:
    """PPO on noise, with two reward networks as by default."""
    settings = RewardSettings()
    members = [RewardNet(settings.network, SCHEMA.num_classes, spatial_dims=3) for _ in range(settings.ensemble)]
    env = SegmentationVecEnv(images, RewardEnsemble(members, settings), SCHEMA.num_classes, n_envs=len(images))
    return DensePPO(env, network, PPOHyperparameters(n_epochs=n_epochs), recompute=recompute, device="cpu")


def update_ratio(side: int, repeats: int) -> dict[str, Any]:
    """Time of an update in 3-D over that of its bare passes, measured in turns."""
    images = np.random.default_rng(SEED).normal(size=(4, 1, side, side, side)).astype(np.float32)
    ppo = ppo_on(images, build_unet(DEFAULT, 3, 1, SCHEMA.num_classes), n_epochs=5, recompute=False)
    passes = count_passes(ppo)
    bare = bare_passes(ppo, passes)
    bare()
    pairs = [(seconds(lambda: update(ppo)), seconds(bare)) for _ in range(repeats)]
    return {
        "side": side,
        "patches": len(images),
        "passes": passes,
        "update_seconds": statistics.median(pair[0] for pair in pairs),
        "bare_seconds": statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(with_all / alone for with_all, alone in pairs),
    }


def packed_actions() -> dict[str, Any]:
    """Bytes of packed actions of 128 x 128 x 128, by how they are made."""
    generator = torch.Generator().manual_seed(SEED)
    found: dict[str, list[int]] = {}
    for number in range(5):
        mask = torch.from_numpy(disc((128,) * 3, np.random.default_rng(number)))
        policy = DenseCategorical(smooth_logits(mask, SCHEMA.num_classes))
        made = {
            "policy": policy.mode()[0],
            "exploration, correlated": policy.sample(generator, 4.0)[0],
            "exploration, independent": policy.sample(generator)[0],
            "warped": warp(mask, generator),
            "blob": add_blob(mask, SCHEMA.num_classes, generator),
            "dropped": drop_structure(mask, generator),
        }
        for name, action in made.items():
            found.setdefault(name, []).append(len(pack(action.to(torch.uint8).numpy())))
    return {name: statistics.mean(sizes) for name, sizes in found.items()}


def peak_gb() -> float:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6 * 1.024


def measure(part: str, runs: Path, threads: int) -> Any:
    """A part, in fresh processes where memory is measured."""
    if part == "disk":
        return packed_actions()
    if part == "update":
        return update_ratio(64, repeats=5)
    calls = {
        "cases": [("cases", str(count)) for count in COUNTS],
        "image": [("image", str(IMAGE_SIDE))],
        "volume": [(KEPT, "2"), (RECOMPUTED, "2"), (ROWS, str(FEW)), (ROWS, str(MANY))],
    }[part]
    found = [_in_new_process(call, runs, threads) for call in calls]
    return with_rows(found) if part == "volume" else found


def _in_new_process(call: tuple[str, str], runs: Path, threads: int) -> Any:
    command = [sys.executable, "-m", "benchmarks.size.run", "--one", *call, "--runs", str(runs)]
    done = subprocess.run(
        [*command, "--threads", str(threads)], stdout=subprocess.PIPE, text=True, check=True, cwd=BENCHMARKS.parent
    )
    return json.loads(done.stdout.splitlines()[-1])


def one(kind: str, amount: int, runs: Path) -> dict[str, Any]:
    """What a fresh process measures."""
    match kind:
        case "cases":
            return adapt_once(runs / f"cases-{amount}", amount, CASE_SIDE, SMALL, small=True)
        case "image":
            return adapt_once(runs / f"image-{amount}", 25, amount, DEFAULT, small=False)
        case _ if kind == ROWS:
            return update_rows(amount)
        case _:
            return update_volume(amount, kind == RECOMPUTED)


def summary_of(found: dict[str, Any]) -> dict[str, float]:
    """The figures that others quote; those of parts that were not measured are left out."""
    summary: dict[str, float] = {}
    if "image" in found:
        summary["peak_gb_512"] = found["image"][0]["peak_gb"]
    if "volume" in found:
        kept, recomputed = (result["peak_gb"] for result in found["volume"])
        summary |= {"peak_gb_96x160x160": kept, "peak_gb_96x160x160_recomputed": recomputed}
    if "cases" in found:
        few, many = (result["peak_gb"] for result in found["cases"])
        summary["peak_growth_25_to_400_cases"] = many / few - 1
    if "update" in found:
        summary["update_ratio_3d"] = found["update"]["ratio"]
    if "disk" in found:
        kept = [size for name, size in found["disk"].items() if "independent" not in name]
        summary["disk_bytes_per_action_128"] = statistics.mean(kept)
    return summary


def table_of(found: dict[str, Any]) -> str:
    """What was measured, as Markdown."""
    lines = [
        *heading("Memory, disk and time of adaptation by size (SIMULATED data)", trial=False),
        "Peak memory is the largest resident set of a fresh process. Networks have random weights and runs few steps: "
        "neither changes what a step needs.",
        "",
        "| what | measured |",
        "|---|---|",
    ]
    for result in found.get("cases", []):
        lines.append(
            f"| `adapt`, {result['cases']} + {result['cases']} patients, {result['side']} x {result['side']}, a tiny "
            f"network | peak {result['peak_gb']:.2f} GB, D_R {result['actions_mb']:.1f} MB, "
            f"{result['minutes']:.1f} minutes |"
        )
    for result in found.get("image", []):
        lines.append(
            f"| `adapt`, default network, batches and files of D_R, {result['side']} x {result['side']} | peak "
            f"{result['peak_gb']:.2f} GB, {result['minutes']:.1f} minutes |"
        )
    for result in found.get("volume", []):
        way = "computed again" if result["recompute"] else "kept"
        lines.append(
            f"| an update of PPO, {result['patches']} patches of {' x '.join(map(str, VOLUME))}, nnU-Net of "
            f"{result['parameters'] / 1e6:.0f} million weights, activations {way} | "
            f"peak {result['peak_gb_measured']:.2f} GB; with the "
            f"rows of {ROLLOUT} patches, {result['gb_a_row']:.3f} GB each, {result['peak_gb']:.2f} GB. "
            f"The gradient of a patch keeps {result['gradient_gb']:.2f} GB, "
            f"{result['gradient_gb_recomputed']:.2f} GB where activations are computed "
            f"again. {result['minutes']:.1f} minutes |"
        )
    if "update" in found:
        result = found["update"]
        lines.append(
            f"| an update of PPO, {result['patches']} patches of {result['side']}^3, default network in 3-D | "
            f"{result['update_seconds']:.1f} s, bare passes {result['bare_seconds']:.1f} s, ratio "
            f"{result['ratio']:.3f} |"
        )
    for name, size in found.get("disk", {}).items():
        lines.append(f"| an action of 128^3, {name} | {size / 1000:.1f} kB packed |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = plain_parser(__doc__, threads=1)
    add_runs(parser)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--one", nargs=2, metavar=("KIND", "AMOUNT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    started_in = begin(arguments)
    runs = arguments.runs or RUNS / "size"
    runs.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        print(json.dumps(one(arguments.one[0], int(arguments.one[1]), runs)))
        return
    kept = runs / "parts.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    for part in arguments.parts:
        found[part] = measure(part, runs, arguments.threads)
        kept.write_text(json.dumps(found, indent=2))
        print(part, json.dumps(found[part]), flush=True)
    write_results("size", started_in, [SEED], found, summary_of(found), table_of(found))


if __name__ == "__main__":
    main()
