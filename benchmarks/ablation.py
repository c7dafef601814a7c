"""What the parts of the method bring: one setting of `adapt` is changed at a time, and the rest stays.

    python benchmarks/ablation.py [--shift camus-4ch-2ch] [--variants ...] [--seeds 0 1 2] [--runs FOLDER]
    python benchmarks/ablation.py --report-only   # table from the cells that there are
    python benchmarks/ablation.py --quick         # minutes: shows that it runs, measures nothing

On a shift of `adaptation.py`, with its source models. Stages that a change does not reach are not run again: a variant
goes on from a copy of the default run. Three policies of each variant are measured on the held-out target patients:
what PPO starts from, PPO's last checkpoint, and what the selection returned. A cell is one variant with one seed; it is
complete when its file is there, and is then skipped.

`reward-gradient` is a control and no setting: the policy follows the gradient of the same reward, through the reward
networks and the softmax, for as many optimiser steps on the same images, with the same learning rate and KL weight.
Where it is not behind `default`, sampling actions has brought nothing.

Beside it stands what the reward knows: the scores that the judge and the ensemble of the default run give to masks of
held-out target images by the source model, by what PPO starts from, by a model trained on the labelled target, and by
the experts. A reward that does not rank these as their Dice does leads no policy from one to the next.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from adaptation import BATCH, QUICK, Budget, Laboratory
from cells import NONE, Scores, harm_rate, measure, read_cell
from cells import cell_file as adaptation_cell
from command_line import begin, parser_of
from recording import quiet, write_results
from safetensors.torch import load_file
from scipy.stats import spearmanr
from shifts import NO_SHIFT, SHIFTS, TITLES, Shift, prepare
from torch import Tensor

from medfm_rl.adapters import SegmenterAdapter, TorchModuleAdapter
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.augmentation.appearance import randomise_appearance
from medfm_rl.data.files import replace_folder_on_success, write_json
from medfm_rl.data.layouts import find_cases
from medfm_rl.metrics.bootstrap import paired_bootstrap
from medfm_rl.metrics.overlap import dice
from medfm_rl.networks import argmax_classes
from medfm_rl.policies import ACTOR
from medfm_rl.policies.distribution import kl_divergence
from medfm_rl.reward.actions import ActionDataset
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.reward.score import structure_scores
from medfm_rl.runs.folder import RunFolder
from medfm_rl.seeding import torch_generator
from medfm_rl.settings import AdaptConfig, DataSettings, PPOSettings, TorchSettings, TrackingSettings
from medfm_rl.workflows.adapt.loop import adapt
from medfm_rl.workflows.training_images import load_images, load_labelled

Stage = Literal["nothing", "fine-tuning", "collect", "reward"]
DEFAULT, GRADIENT = "default", "reward-gradient"
# Enough patients and images for a judge on patients of its own.
QUICK_CHANGES = {"collect": {"source_images": 24, "target_images": 24}}
START, LAST, CHOSEN = "start", "last", "chosen"


@dataclass(frozen=True)
class Variant:
    """A change to the default settings.

    Attributes:
        changes: To the settings of `adapt`, section by section.
        after: The last stage that the change does not reach; the default run's result of it is gone on from.
    """

    changes: Mapping[str, Mapping[str, Any]]
    after: Stage


VARIANTS: dict[str, Variant] = {
    DEFAULT: Variant({}, "nothing"),
    "no fine-tuning": Variant({"fine_tuning": {"steps": 0}}, "nothing"),
    "fine-tuning without target images": Variant({"fine_tuning": {"target_weight": 0.0}}, "nothing"),
    "fine-tuning without random shapes": Variant({"fine_tuning": {"shape_strength": 1.0, "elastic": 0.0}}, "nothing"),
    "independent exploration": Variant({"ppo": {"exploration": "independent"}}, "reward"),
    "critic as baseline": Variant({"ppo": {"baseline": "critic"}}, "reward"),
    "KL weight 0.05": Variant({"ppo": {"kl_coef": 0.05}}, "reward"),
    "target images as they are": Variant({"ppo": {"appearance_strength": 0.0}}, "reward"),
    "mean of the reward networks": Variant({"reward": {"fusion": "mean"}}, "reward"),
}


class Bench:
    """Cells of one shift with one seed."""

    def __init__(self, shift: Shift, seed: int, runs: Path, budget: Budget, started_in: Mapping[str, Any]) -> None:
        self.shift = shift
        self.seed = seed
        self.runs = runs
        self.budget = budget
        self.started_in = started_in
        self.laboratory = Laboratory(shift, seed, runs, budget, started_in)
        self.laboratory.run(NONE)
        self.before = read_cell(self.laboratory.cell_folder(NONE) / "cell.json").held_out
        self.source_folder, _ = self.laboratory.trained(shift.folders.source)

    def run(self, name: str) -> None:
        """Makes a cell, unless it is complete."""
        path = cell_file(self.runs, self.shift.name, name, self.seed)
        if path.exists():
            return
        print(f"  {name}", flush=True)
        policies = self._follow_gradient() if name == GRADIENT else self._policies(self._adapted(name))
        write_json(
            path,
            {
                "shift": self.shift.name,
                "variant": name,
                "seed": self.seed,
                "policies": {place: self._measure(policy).to_json() for place, policy in policies.items()},
                "environment": dict(self.started_in),
            },
        )

    @torch.no_grad()
    def ask_the_reward(self) -> None:
        """Makes the cell of what the reward knows, unless it is complete."""
        path = knowledge_file(self.runs, self.shift.name, self.seed)
        if path.exists():
            return
        print("  what the reward knows", flush=True)
        run, source = self._adapted(DEFAULT), self._source_policy().eval()
        files = find_cases(DataSettings(path=self.shift.folders.held_out))
        images, truth = load_labelled(files, source, quiet, "held-out images")
        masks = {
            name: torch.cat([argmax_classes(policy(batch), dim=1) for batch in images.images.split(BATCH)])
            for name, policy in {
                "source model": source,
                START: self._with_weights(run.fine_tuned),
                "trained on the target": TorchModuleAdapter.load(self.laboratory.trained(self.shift.folders.target)[0]),
            }.items()
        }
        classes = source.schema.num_classes
        networks = {
            "judge": RewardNet.load(run.final_reward / "judge"),
            "ensemble": RewardEnsemble.load(run.final_reward),
        }
        rows = {
            name: {
                "dice": _dice(found, truth, classes),
                **{
                    judge: reward_scores(network, images.images, found, classes).tolist()
                    for judge, network in networks.items()
                },
            }
            for name, found in {**masks, "experts": truth}.items()
        }
        write_json(path, {"masks": rows, "environment": dict(self.started_in)})

    def _measure(self, policy: SegmenterAdapter) -> Scores:
        files = find_cases(DataSettings(path=self.shift.folders.held_out))
        return measure(policy.segment, files, load_anatomy(self.shift.anatomy, policy.schema), with_disks=False)

    def _config(self, name: str) -> AdaptConfig:
        folders = self.shift.folders
        return AdaptConfig(
            segmenter=TorchSettings(folder=self.source_folder),
            target=DataSettings(path=folders.target),
            source=DataSettings(path=folders.source),
            output=cell_file(self.runs, self.shift.name, name, self.seed).parent / "run",
            anatomy=self.shift.anatomy,
            tracking=TrackingSettings(uri=None),
            seed=self.seed,
            **merge(self.budget.adapt, VARIANTS[name].changes),
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
        return {
            START: self._with_weights(run.fine_tuned) if run.fine_tuned.exists() else self._source_policy(),
            LAST: self._with_weights(run.checkpoints(config.iterations - 1) / f"{config.ppo.updates:05d}"),
            CHOSEN: TorchModuleAdapter.load(run.model),
        }

    def _follow_gradient(self) -> dict[str, SegmenterAdapter]:
        """The control, from the default run's fine-tuning, with its D_R and reward networks."""
        config, run = self._config(DEFAULT), self._adapted(DEFAULT)
        start, last = self._with_weights(run.fine_tuned), self._with_weights(run.fine_tuned)
        dataset = ActionDataset(run.actions)
        known = [dataset.read(key) for key in dataset.shards() if "-source-" in key]
        target = load_images(find_cases(config.target), start, quiet, "target images")
        follow_gradient(
            last,
            RewardEnsemble.load(run.final_reward),
            torch.cat([shard.images for shard in known]),
            torch.cat([shard.references for shard in known]),
            target.images,
            config.ppo,
            self.seed,
        )
        # Nothing is selected: the control shows what the last step is worth.
        return {START: start, LAST: last}

    def _source_policy(self) -> TorchModuleAdapter:
        return TorchModuleAdapter.load(self.source_folder)

    def _with_weights(self, folder: Path) -> TorchModuleAdapter:
        policy = self._source_policy()
        policy.load_state_dict(load_file(folder / ACTOR))
        return policy.eval()


def follow_gradient(
    policy: SegmenterAdapter,
    reward: RewardEnsemble,
    images: Tensor,
    references: Tensor,
    target: Tensor,
    settings: PPOSettings,
    seed: int,
) -> None:
    """Changes a policy along the gradient of the reward of its softmax, in place.

    As PPO it sees source images, judged by their references, and as many target images in random appearances, judged by
    the reward networks as they are; half of each, `updates * n_epochs` steps of `n_envs` images.

    Args:
        policy: Images `(B, C, *S)` to logits.
        reward: Frozen.
        images: Source images `(N, C, *S)` as PPO sees them.
        references: Their ground truth `(N, *S)`.
        target: `(M, C, *S)`.
        settings: Of PPO.
        seed: Of the order and of appearances.
    """
    frozen = copy.deepcopy(policy).eval().requires_grad_(False)
    policy.eval()
    generator = torch_generator(seed, "reward gradient")
    optimiser = torch.optim.Adam(policy.parameters(), lr=settings.learning_rate)
    half = settings.n_envs // 2
    steps = settings.updates * settings.n_epochs
    for step in range(steps):
        rows = torch.randint(len(images), (settings.n_envs - half,), generator=generator)
        plain = target[torch.randint(len(target), (half,), generator=generator)]
        shown = torch.cat([images[rows], randomise_appearance(plain, None, settings.appearance_strength, generator)])
        log_probs = policy(shown).log_softmax(dim=1)
        probabilities = log_probs.exp()
        right = probabilities[: len(rows)].gather(1, references[rows].long()[:, None])[:, 0]
        judged = reward.relaxed_map(plain, probabilities[len(rows) :])
        with torch.no_grad():
            near = frozen(shown).log_softmax(dim=1)
        kl = kl_divergence(log_probs, near).mean()
        loss = settings.kl_coef * kl - torch.cat([right, judged]).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), settings.max_grad_norm)
        optimiser.step()
        quiet("following the gradient", step + 1, steps)


def reward_scores(
    network: RewardNet | RewardEnsemble, images: Tensor, actions: Tensor, num_classes: int
) -> npt.NDArray[np.floating]:
    """Score `(N,)` of each action `(N, *S)`: the mean over structures, as in the selection where none is missing."""
    judge: Callable[[Tensor, Tensor], Tensor] = network.reward_map if isinstance(network, RewardNet) else network
    scores = [
        structure_scores(judge(image, action), action, num_classes).mean(dim=1)
        for image, action in zip(images.split(BATCH), actions.split(BATCH), strict=True)
    ]
    return torch.cat(scores).numpy()


def _dice(actions: Tensor, truth: Tensor, num_classes: int) -> list[float]:
    pairs = zip(actions.numpy(), truth.numpy(), strict=True)
    return [float(dice(action, expected, num_classes).mean()) for action, expected in pairs]


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes, section by section."""
    merged = dict(base)
    for name, value in changes.items():
        below = merged.get(name)
        merged[name] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def stages_up_to(run: RunFolder, last: Stage) -> list[Path]:
    """Folders of a run with one iteration that hold its results up to a stage."""
    stages: dict[Stage, list[Path]] = {
        "fine-tuning": [run.shape_prior, run.fine_tuned],
        "collect": [run.actions],
        "reward": [run.reward(0, "judge").parent],
    }
    found: list[Path] = []
    for stage, folders in stages.items():
        if last == "nothing":
            break
        found += folders
        if stage == last:
            break
    return found


def cell_file(runs: Path, shift: str, variant: str, seed: int) -> Path:
    return runs / "ablation" / shift / variant.replace(" ", "-") / f"seed-{seed}" / "cell.json"


def knowledge_file(runs: Path, shift: str, seed: int) -> Path:
    return cell_file(runs, shift, DEFAULT, seed).with_name("knowledge.json")


def describe_knowledge(shift: str, runs: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """By whose masks: mean Dice and scores, and how the scores move with the Dice from the masks of `START`.

    Seeds are averaged. The correlation is Spearman's over cases, of the differences to the masks of `START`.
    """
    paths = [path for seed in seeds if (path := knowledge_file(runs, shift, seed)).exists()]
    cells = [json.loads(path.read_text())["masks"] for path in paths]
    if not cells:
        return {}
    kinds = [kind for kind in cells[0]["experts"] if kind != "dice"]
    return {
        name: {kind: float(np.mean([cell[name][kind] for cell in cells])) for kind in ("dice", *kinds)}
        | {
            f"{kind}_follows": None
            if name == START
            else float(
                np.mean(
                    [
                        spearmanr(
                            np.subtract(cell[name]["dice"], cell[START]["dice"]),
                            np.subtract(cell[name][kind], cell[START][kind]),
                        ).statistic
                        for cell in cells
                    ]
                )
            )
            for kind in kinds
        }
        for name in cells[0]
    }


def knowledge_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown, a row for each origin of masks; empty where there is none."""
    if not rows:
        return ""
    kinds = [name for name in next(iter(rows.values())) if name != "dice" and not name.endswith("_follows")]
    lines = [
        "",
        "## What the reward knows",
        "",
        "Masks of held-out target images, on the network's grid. Scores of the judge and of the ensemble; in brackets "
        "Spearman's correlation over cases between the change of the score and of the Dice from the masks of start.",
        "",
        f"| masks of | Dice | {' | '.join(kinds)} |",
        "|---|---|" + "---|" * len(kinds),
    ]
    for name, row in rows.items():
        figures = [
            f"{row[kind]:.4f}" + ("" if row[f"{kind}_follows"] is None else f" ({row[f'{kind}_follows']:+.2f})")
            for kind in kinds
        ]
        lines.append(f"| {name} | {row['dice']:.4f} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def describe(shift: str, runs: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """By variant and policy: Dice, gain over no adaptation, harm; seeds averaged case by case."""
    results: dict[str, Any] = {}
    for variant in (*VARIANTS, GRADIENT):
        cells = {seed: path for seed in seeds if (path := cell_file(runs, shift, variant, seed)).exists()}
        if not cells:
            results[variant] = None
            continue
        before = [read_cell(adaptation_cell(runs, shift, NONE, seed)).held_out for seed in cells]
        read = [json.loads(path.read_text()) for path in cells.values()]
        results[variant] = {
            "seeds": sorted(cells),
            "commits": sorted({cell["environment"]["commit"] for cell in read}),
            "policies": {
                place: _compare(before, [Scores.from_json(cell["policies"][place]) for cell in read])
                for place in read[0]["policies"]
            },
        }
    return results


def _compare(before: Sequence[Scores], after: Sequence[Scores]) -> dict[str, Any]:
    means = [np.mean([scores.mean_dice for scores in group], axis=0) for group in (before, after)]
    return {
        "dice": float(means[1].mean()),
        "gain": asdict(paired_bootstrap(means[0], means[1], before[0].patient_ids)),
        "harm_rate": float(np.mean([harm_rate(*pair) for pair in zip(before, after, strict=True)])),
    }


def table(title: str, results: Mapping[str, Any], quick: bool) -> str:
    """Markdown, a row for each variant."""
    lines = [f"# What the parts bring: {title}", ""]
    if quick:
        lines += ["**A trial with budgets cut to a few steps and patients: these numbers mean nothing.**", ""]
    lines += [
        "Held-out target patients, gain in mean Dice over no adaptation [95 % interval, bootstrap over patients] and "
        "share of cases more than 1 Dice point below it. Start: what PPO starts from. Last: PPO's last checkpoint, its "
        "weights averaged with nothing. Chosen: what the selection returned.",
        "",
        "| variant | seeds | start | last | chosen |",
        "|---|---|---|---|---|",
    ]
    for name, row in results.items():
        if row is None:
            lines.append(f"| {name} | missing | | | |")
            continue
        figures = [_figure(row["policies"].get(place)) for place in (START, LAST, CHOSEN)]
        lines.append(f"| {name} | {len(row['seeds'])} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def _figure(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return ""
    gain = value["gain"]
    harmed = f"{100 * value['harm_rate']:.0f} %"
    return f"{gain['mean']:+.4f} [{gain['low']:+.4f}, {gain['high']:+.4f}], {harmed}"


def main() -> None:
    parser = parser_of(__doc__)
    shifts = [name for name in SHIFTS if name != NO_SHIFT]
    parser.add_argument("--shift", choices=shifts, default="camus-4ch-2ch")
    parser.add_argument("--variants", nargs="+", choices=[*VARIANTS, GRADIENT], default=[*VARIANTS, GRADIENT])
    arguments = parser.parse_args()
    name, runs, started_in = begin(arguments, f"ablation-{arguments.shift}")
    budget = Budget()
    if arguments.quick:
        budget = replace(QUICK, most_patients=20, adapt=merge(QUICK.adapt, QUICK_CHANGES))
    shift = prepare(arguments.shift, runs / "data", budget.most_patients)
    if not arguments.report_only:
        for seed in arguments.seeds:
            print(f"{shift.name}, seed {seed}", flush=True)
            bench = Bench(shift, seed, runs, budget, started_in)
            for variant in arguments.variants:
                bench.run(variant)
            bench.ask_the_reward()
    results = describe(shift.name, runs, arguments.seeds)
    knowledge = describe_knowledge(shift.name, runs, arguments.seeds)
    summary = {
        name: None if row is None else {place: value["gain"]["mean"] for place, value in row["policies"].items()}
        for name, row in results.items()
    }
    content = {"variants": results, "knowledge": knowledge}
    text = table(TITLES[shift.name], results, arguments.quick) + knowledge_table(knowledge)
    write_results(name, started_in, arguments.seeds, content, summary, text)


if __name__ == "__main__":
    main()
