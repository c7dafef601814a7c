"""Ablation: one setting of `adapt` is changed at a time, and the rest stays.

    python -m benchmarks.adaptation.ablation [--shift camus-4ch-2ch] [--variants ...] [--seeds 0 1 2] [--runs FOLDER]
    python -m benchmarks.adaptation.ablation --report-only   # table from the cells that there are
    python -m benchmarks.adaptation.ablation --quick         # minutes: shows that it runs, measures nothing

On a shift of `benchmarks.adaptation.run`, with its source models. Stages that a change does not reach are not run
again: a variant goes on from a copy of the default run. Three policies of each variant are measured on the held-out
target patients: what PPO starts from, PPO's last checkpoint, and what the selection returned. A cell is one variant
with one seed; it is complete when its file is there, and is then skipped.

`reward-gradient` is a control and no setting: the policy follows the gradient of the same reward, through the reward
networks and the softmax, for as many optimiser steps on the same images, with the same learning rate and KL weight.
Where it is not behind `default`, sampling actions has brought nothing.

Beside it stands what the reward knows: the scores that the held-out reward and the ensemble of the default run give to
masks of held-out target images by the source model, by what PPO starts from, by a model trained on the labelled
target, and by the experts. A reward that does not rank these as their Dice does leads no policy from one to the next.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.adaptation.ablation_report import CHOSEN, LAST, START, cell_file, knowledge_file, report
from benchmarks.adaptation.cells import NONE, Scores, measure
from benchmarks.adaptation.methods import MethodCells
from benchmarks.adaptation.reward_gradient import follow_gradient
from benchmarks.adaptation.variants import DEFAULT, GRADIENT, VARIANTS, stages_up_to
from benchmarks.baselines.problem import BATCH, predict
from benchmarks.harness.budgets import merge
from benchmarks.harness.command_line import begin_on_shifts, each_laboratory, parser_of
from benchmarks.harness.laboratory import Laboratory, files_of
from benchmarks.harness.recording import once, quiet
from benchmarks.harness.shifts import NO_SHIFT, SHIFTS
from medfm_rl.adapters import SegmenterAdapter, TorchModuleAdapter
from medfm_rl.data.files import replace_folder_on_success
from medfm_rl.metrics.overlap import dice
from medfm_rl.policies import ACTOR
from medfm_rl.reward.actions import ActionRecords
from medfm_rl.reward.dataset import ActionDataset
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.reward.score import structure_scores
from medfm_rl.runs.folder import RunFolder
from medfm_rl.settings import AdaptConfig
from medfm_rl.structures import Structures
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.training_images import load_images, load_labelled


class Ablation:
    """The cells of the variants in one laboratory."""

    def __init__(self, laboratory: Laboratory) -> None:
        self.laboratory = laboratory
        self.shift, self.seed, self.runs = laboratory.shift, laboratory.seed, laboratory.runs

    def make(self, name: str) -> None:
        """Makes a cell, unless it is complete."""

        def cell() -> dict[str, Any]:
            print(f"  {name}", flush=True)
            policies = self._follow_gradient() if name == GRADIENT else self._policies(self._adapted(name))
            return {
                "shift": self.shift.name,
                "variant": name,
                "seed": self.seed,
                "policies": {place: self._measure(policy).to_json() for place, policy in policies.items()},
                "environment": dict(self.laboratory.started_in),
            }

        once(cell_file(self.runs, self.shift.name, name, self.seed), cell)

    def ask_the_reward(self) -> None:
        """Makes the cell of what the reward knows, unless it is complete."""
        once(knowledge_file(self.runs, self.shift.name, self.seed), self._knowledge)

    @torch.no_grad()
    def _knowledge(self) -> dict[str, Any]:
        run, source = self._adapted(DEFAULT), self.laboratory.source_model().eval()
        loaded, truths = load_labelled(self.laboratory.held_out(), source, quiet, "held-out images")
        images, truth = loaded.images[:], truths[:]
        policies = {
            "source model": source,
            START: self._with_weights(run.fine_tuned),
            "trained on the target": TorchModuleAdapter.load(self.laboratory.trained(self.shift.folders.target)[0]),
        }
        masks = {name: predict(policy, images) for name, policy in policies.items()}
        structures = source.schema.classes
        networks: dict[str, RewardNet | RewardEnsemble] = {
            "held-out reward": RewardNet.load(run.held_out_reward),
            "ensemble": RewardEnsemble.load(run.final_reward),
        }
        rows = {
            name: {
                "dice": _dice(found, truth, structures),
                **{
                    kind: reward_scores(network, images, found, structures).tolist()
                    for kind, network in networks.items()
                },
            }
            for name, found in {**masks, "experts": truth}.items()
        }
        return {"masks": rows, "environment": dict(self.laboratory.started_in)}

    def _measure(self, policy: SegmenterAdapter) -> Scores:
        anatomy = self.laboratory.anatomy(policy)
        return measure(policy.segment, self.laboratory.held_out(), anatomy, with_disks=False)

    def _config(self, name: str) -> AdaptConfig:
        return self.laboratory.config(
            cell_file(self.runs, self.shift.name, name, self.seed).parent / "run",
            changes=merge(self.laboratory.budget.adapt, VARIANTS[name].changes),
        )

    def _adapted(self, name: str) -> RunFolder:
        """The finished run of a variant."""
        config = self._config(name)
        run = RunFolder.start(config, resume=True)
        if VARIANTS[name].after != "nothing":
            default = self._adapted(DEFAULT)
            for stage in stages_up_to(default, VARIANTS[name].after):
                copy = run.path / stage.relative_to(default.path)
                if not copy.exists():
                    with replace_folder_on_success(copy) as temporary:
                        shutil.copytree(stage, temporary, dirs_exist_ok=True)
        return adapt(config, resume=True, progress=quiet)

    def _policies(self, run: RunFolder) -> dict[str, SegmenterAdapter]:
        config = self._config(DEFAULT)
        has_started = run.fine_tuned.exists()
        return {
            START: self._with_weights(run.fine_tuned) if has_started else self.laboratory.source_model(),
            LAST: self._with_weights(run.checkpoints(config.iterations - 1) / f"{config.ppo.updates:05d}"),
            CHOSEN: TorchModuleAdapter.load(run.model),
        }

    def _follow_gradient(self) -> dict[str, SegmenterAdapter]:
        """The control, from the default run's fine-tuning, with its D_R and reward networks."""
        config, run = self._config(DEFAULT), self._adapted(DEFAULT)
        start, last = self._with_weights(run.fine_tuned), self._with_weights(run.fine_tuned)
        dataset = ActionDataset(run.actions)
        known = ActionRecords.concatenate([dataset.read(key).with_ground_truth() for key in dataset.shards()])
        target = load_images(files_of(self.shift.folders.target), start, quiet, "target images")
        follow_gradient(
            last,
            RewardEnsemble.load(run.final_reward),
            known.images,
            known.references,
            target.images[:],
            config.ppo,
            self.seed,
        )
        # Nothing is selected: the control shows what the last step is worth.
        return {START: start, LAST: last}

    def _with_weights(self, folder: Path) -> TorchModuleAdapter:
        policy = self.laboratory.source_model()
        policy.load_state_dict(load_file(folder / ACTOR))
        return policy.eval()


def reward_scores(
    network: RewardNet | RewardEnsemble, images: Tensor, actions: Tensor, structures: Structures
) -> npt.NDArray[np.floating]:
    """Score `(N,)` of each action `(N, *S)`: the mean over structures, as in the selection where none is missing."""
    reward: Callable[[Tensor, Tensor], Tensor] = network.reward_map if isinstance(network, RewardNet) else network
    scores = [
        structure_scores(reward(image, action), action, structures).mean(dim=1)
        for image, action in zip(images.split(BATCH), actions.split(BATCH), strict=True)
    ]
    return torch.cat(scores).numpy()


def _dice(actions: Tensor, truth: Tensor, structures: Structures) -> list[float]:
    pairs = zip(actions.numpy(), truth.numpy(), strict=True)
    return [float(dice(action, expected, structures).mean()) for action, expected in pairs]


def main() -> None:
    parser = parser_of(__doc__)
    shifts = [name for name in SHIFTS if name != NO_SHIFT]
    parser.add_argument("--shift", choices=shifts, default="camus-4ch-2ch")
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS, GRADIENT], default=[*VARIANTS, GRADIENT])
    arguments = parser.parse_args()
    arguments.shifts = [arguments.shift]
    name, runs, started_in = begin_on_shifts(arguments, f"ablation-{arguments.shift}")
    if not arguments.report_only:
        for laboratory in each_laboratory(arguments, runs, started_in):
            MethodCells(laboratory).make(NONE)
            ablation = Ablation(laboratory)
            for variant in arguments.variants:
                ablation.make(variant)
            ablation.ask_the_reward()
    report(runs, arguments.shift, arguments.seeds, started_in, arguments.quick, name)


if __name__ == "__main__":
    main()
