"""The cost of one DensePPO update: passes through the networks, time against bare passes, memory per image.

    python -m benchmarks.speed.ppo_update [--repeats 15]
    python -m benchmarks.speed.ppo_update --cuda   # on a GPU beside two cores: single precision, bfloat16, compiled

K = 5 inner epochs, separate critic, KL to a reference policy, one reward network. Passes are counted by hooks. Time
is the update (rollout, exploration, losses, clipping, optimiser steps) divided by the same forwards and backwards of
the same networks with nothing around them, both measured in turns in one process. Memory per image is the growth of
the peak resident memory of a fresh process when its batch doubles.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from typing import Any

import numpy as np
import torch

from benchmarks.harness.command_line import begin, plain_parser
from benchmarks.harness.passes import bare_passes, count_passes, networks, seconds, update
from benchmarks.harness.recording import BENCHMARKS, write_results
from benchmarks.harness.tables import heading
from medfm_rl.envs import SegmentationVecEnv
from medfm_rl.networks import build_unet
from medfm_rl.policies import DensePPO
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.settings import NetworkSettings, PPOHyperparameters, RewardSettings

CLASSES = 4
EPOCHS = 5
SEED = 0
SEGMENTER = NetworkSettings(channels=(16, 32, 64, 128, 256), residual_units=2)
BATCH = {112: 16, 256: 4}
MODES = {"single precision": (False, False), "bfloat16": (True, False), "bfloat16, compiled": (True, True)}
"""On a GPU: whether networks compute in bfloat16, and whether torch.compile has compiled them."""


def build(size: int, batch: int, device: str = "cpu", autocast: bool = False) -> DensePPO:
    """PPO on noise: what the images show does not change the cost."""
    torch.manual_seed(SEED)
    images = np.random.default_rng(SEED).normal(size=(2 * batch, 1, size, size)).astype(np.float32)
    settings = RewardSettings(ensemble=1)
    reward = RewardEnsemble([RewardNet(settings.network, CLASSES)], settings).to(device)
    return DensePPO(
        SegmentationVecEnv(images, reward, CLASSES, n_envs=batch, device=device),
        build_unet(SEGMENTER, 2, 1, CLASSES),
        PPOHyperparameters(n_epochs=EPOCHS, baseline="critic", kl_coef=0.05),
        critic=build_unet(SEGMENTER, 2, 1, 1),
        autocast=autocast,
        device=device,
    )


def time_ratio(size: int, repeats: int) -> dict[str, Any]:
    """Update time over the time of its bare passes, measured in turns."""
    ppo = build(size, BATCH[size])
    passes = count_passes(ppo)
    bare = bare_passes(ppo, passes)
    bare()
    pairs = [(seconds(lambda: update(ppo)), seconds(bare)) for _ in range(repeats)]
    ratios = [with_all / alone for with_all, alone in pairs]
    return {
        "batch": BATCH[size],
        "passes": passes,
        "update_seconds": statistics.median(pair[0] for pair in pairs),
        "bare_seconds": statistics.median(pair[1] for pair in pairs),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
    }


def peak_memory(size: int, batch: int) -> float:
    """Peak resident memory in MiB of a fresh process that makes two updates."""
    command = [sys.executable, "-m", "benchmarks.speed.ppo_update", "--peak-memory", str(size), str(batch)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=BENCHMARKS.parent)
    return float(json.loads(result.stdout))


def time_on_cuda(size: int, repeats: int) -> dict[str, Any]:
    """Update time on the processor and on the GPU, and how often the latter goes into the former."""
    batch = BATCH[size]
    seconds_of = {"cpu": _median_seconds(build(size, batch), unmeasured=1, repeats=3)}
    for mode, (autocast, compiled) in MODES.items():
        ppo = build(size, batch, "cuda", autocast)
        if compiled:
            for network in networks(ppo).values():
                network.compile()
        seconds_of[mode] = _median_seconds(ppo, unmeasured=3, repeats=repeats)
    return {
        "batch": batch,
        "seconds": seconds_of,
        "speed_up": {mode: seconds_of["cpu"] / seconds_of[mode] for mode in MODES},
    }


def _median_seconds(ppo: DensePPO, unmeasured: int, repeats: int) -> float:
    # The first updates choose algorithms and compile.
    for _ in range(unmeasured):
        update(ppo)
    return statistics.median(seconds(lambda: update(ppo)) for _ in range(repeats))


def report_cuda(repeats: int, started_in: dict[str, Any]) -> None:
    """Measures on a GPU and writes what it finds."""
    results = {size: time_on_cuda(size, repeats) for size in BATCH}
    lines = [
        *heading(f"One DensePPO update on {torch.cuda.get_device_name()} beside 2 threads of its host", trial=False),
        "K = 5, separate critic, reference policy, one reward network. Median; in brackets the CPU's time over it.",
        "",
        f"| pixels | images | CPU (s) | {' | '.join(f'{mode} (s)' for mode in MODES)} |",
        f"|---|---|---|{'---|' * len(MODES)}",
    ]
    for size, result in results.items():
        cells = [f"{result['seconds'][mode]:.3f} ({result['speed_up'][mode]:.0f})" for mode in MODES]
        lines.append(f"| {size} x {size} | {result['batch']} | {result['seconds']['cpu']:.2f} | {' | '.join(cells)} |")
    summary = {f"speed_up_{size}": result["speed_up"] for size, result in results.items()}
    write_results("ppo_update_cuda", started_in, [SEED], results, summary, "\n".join(lines) + "\n")


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--cuda", action="store_true", help="measure on a GPU; results of their own")
    parser.add_argument("--peak-memory", type=int, nargs=2, metavar=("SIZE", "BATCH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    started_in = begin(arguments)
    if arguments.peak_memory:
        ppo = build(*arguments.peak_memory)
        update(ppo)
        update(ppo)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    if arguments.cuda:
        report_cuda(arguments.repeats, started_in)
        return
    results = {}
    for size, batch in BATCH.items():
        results[size] = time_ratio(size, arguments.repeats)
        small, large = peak_memory(size, batch), peak_memory(size, 2 * batch)
        results[size]["peak_mib"] = {str(batch): small, str(2 * batch): large}
        results[size]["mib_per_image"] = (large - small) / batch
    passes = results[112]["passes"]
    summary = {
        "forwards": sum(passes["forwards"].values()),
        "backwards": sum(passes["backwards"].values()),
        **{f"ratio_{size}": result["ratio"] for size, result in results.items()},
        **{f"mib_per_image_{size}": result["mib_per_image"] for size, result in results.items()},
    }
    lines = [
        *heading("One DensePPO update (K = 5, separate critic, reference policy, one reward network)", trial=False),
        "Bare: the same forwards and backwards with nothing around them. Ratio: median of the pairs [quartiles].",
        "",
        "| pixels | images | forwards | backwards | update (s) | bare (s) | ratio | MiB per image |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size, result in results.items():
        low, high = result["ratio_quartiles"]
        lines.append(
            f"| {size} x {size} | {result['batch']} | {sum(result['passes']['forwards'].values())} "
            f"| {sum(result['passes']['backwards'].values())} | {result['update_seconds']:.2f} "
            f"| {result['bare_seconds']:.2f} | {result['ratio']:.3f} [{low:.3f}, {high:.3f}] "
            f"| {result['mib_per_image']:.0f} |"
        )
    write_results("ppo_update", started_in, [SEED], results, summary, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
