"""The time of judging a mask beside that of making it, in one process, and what the time is spent on.

    python -m benchmarks.speed.judging [--repeats 5]

A UNet of five levels, as in the benchmark of quality control, and two reward networks, all with random weights (what
the images show does not change the cost), on a 112 x 112 grid; images of 224 x 224 of a SIMULATED ultrasound scanner
with masks of their own, sixteen at once, and the rules of `echo_apical` with learned limits. Segmenting and judging are
measured in turns, in processor time of one thread, which other processes do not lengthen as they do the clock's, and
the median over the repeats counts. `given` is a mask that somebody brings, for which the segmenter of the run is asked
too. A mask of its own is made and judged in one inference, and the time of making it is taken off. Rules are measured
on masks of 256 x 256 as well.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness.command_line import begin, plain_parser
from benchmarks.harness.recording import write_results
from benchmarks.harness.tables import heading
from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.data.layouts import find_cases
from medfm_rl.data.ultrasound.phantom import ECHO_SCHEMA, simulate_dataset
from medfm_rl.data.ultrasound.vendors import vendor
from medfm_rl.quality.calibration import Provenance, fit_quality
from medfm_rl.quality.controller import QualityController
from medfm_rl.quality.model import Targets
from medfm_rl.quality.submission import collect_evidence, submit
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.settings import DataSettings, NetworkSettings, PreprocessingSettings, RewardSettings
from medfm_rl.types import LabelledCase
from medfm_rl.workflows.calibrate.cases import calibration_case, learned_anatomy

SEGMENTER = NetworkSettings(channels=(16, 32, 64, 128, 256), residual_units=2)
PATIENTS, TOGETHER = 12, 16
SIDE, GRID = 224, 112


def build(cases: list[LabelledCase]) -> QualityController:
    """A controller of networks with random weights, calibrated on the cases."""
    torch.manual_seed(0)
    segmenter = TorchModuleAdapter.build_unet(SEGMENTER, ECHO_SCHEMA, PreprocessingSettings(size=(GRID, GRID))).eval()
    settings = RewardSettings()
    networks = [RewardNet(settings.network, ECHO_SCHEMA.num_classes) for _ in range(settings.ensemble)]
    reward = RewardEnsemble(networks, settings)
    anatomy = learned_anatomy("echo_apical", ECHO_SCHEMA, [(item.ground_truth, None) for item in cases])
    found = []
    for item in cases:
        submission = submit(segmenter, anatomy, item.case, item.ground_truth)
        found.append(calibration_case(submission, item.ground_truth, segmenter, reward, torch.device("cpu")))
    provenance = Provenance("simulated cases", True, "", "", {})
    return QualityController(segmenter, reward, fit_quality(found, anatomy, Targets(dice=0.5), provenance))


def milliseconds(tasks: dict[str, Callable[[], object]], repeats: int, cases: int) -> dict[str, float]:
    """Median processor time of each task for a case, measured in turns."""
    spent: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(repeats + 1):
        for name, task in tasks.items():
            start = time.process_time()
            task()
            if turn:
                spent[name].append(1000 * (time.process_time() - start) / cases)
    return {name: statistics.median(values) for name, values in spent.items()}


def measure(repeats: int) -> dict[str, float]:
    """Milliseconds of a case, by what they are spent on."""
    with tempfile.TemporaryDirectory() as folder:
        simulate_dataset(Path(folder), vendor("cart"), PATIENTS, seed=0, size=(SIDE, SIDE))
        cases = [file.read_labelled(ECHO_SCHEMA) for file in find_cases(DataSettings(path=Path(folder)))]
    controller = build(cases)
    chosen = cases[:TOGETHER]
    submissions = [controller.submit(item.case, item.ground_truth) for item in chosen]
    grid, reward = controller.segmenter, controller.reward
    found = collect_evidence(submissions, reward, grid.patch_size, controller.schema, controller.device)
    maps = [controller.model.pixels.probability(evidence) for evidence in found]
    samples = [grid.preprocess(item.case) for item in chosen]
    large = [np.repeat(np.repeat(item.ground_truth, 2, 0), 2, 1)[:256, :256] for item in chosen]
    tasks: dict[str, Callable[[], object]] = {
        "segmenting": lambda: [grid.segment(item.case) for item in chosen],
        "given": lambda: controller.assess_batch([controller.submit(item.case, item.ground_truth) for item in chosen]),
        "making and judging": lambda: controller.assess_batch([controller.segment(item.case) for item in chosen]),
        "preprocessing": lambda: [grid.preprocess(item.case) for item in chosen],
        "asking the segmenter": lambda: [grid.opinion(sample) for sample in samples],
        "rules": lambda: [controller.anatomy.check(item.ground_truth, None) for item in chosen],
        "rules at 256": lambda: [controller.anatomy.check(labels, None) for labels in large],
        "reward networks": lambda: collect_evidence(
            submissions, reward, grid.patch_size, controller.schema, controller.device
        ),
        "numbers of structures": lambda: [
            evidence.features(controller.schema.structures, values)
            for evidence, values in zip(found, maps, strict=True)
        ],
        "report": lambda: [
            controller._report(submission, evidence) for submission, evidence in zip(submissions, found, strict=True)
        ],
    }
    return milliseconds(tasks, repeats, len(chosen))


def main() -> None:
    parser = plain_parser(__doc__, threads=1)
    parser.add_argument("--repeats", type=int, default=5, help="times that each part is measured")
    arguments = parser.parse_args()
    started_in = begin(arguments)
    with torch.no_grad():
        found = measure(arguments.repeats)
    own = found["making and judging"] - found["segmenting"]
    summary = {
        "overhead_small": own / found["segmenting"],
        "overhead_small_given": found["given"] / found["segmenting"],
        "rules_ms_256": found["rules at 256"],
    }
    lines = [*heading("Time of judging", False), "| part | ms a mask | of segmenting |", "|---|---|---|"]
    lines += [f"| {name} | {value:.1f} | {value / found['segmenting']:.2f} |" for name, value in found.items()]
    lines += [f"| judging a mask of its own | {own:.1f} | {own / found['segmenting']:.2f} |"]
    write_results("judging_time", started_in, [0], found, summary, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
