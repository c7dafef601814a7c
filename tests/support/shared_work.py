"""Work that processes share, on tiny networks: `python -m support.shared_work FILE` is one process of such a team."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from support.precision import single_precision
from support.tiny_runs import TINY, tiny_config
from torch import Tensor, nn

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.envs import SegmentationVecEnv
from medfm_rl.policies import DensePPO
from medfm_rl.processes.joining import joined_team
from medfm_rl.processes.team import Team
from medfm_rl.progress import silent
from medfm_rl.reward.collection import ImageSet, ReviewedImages
from medfm_rl.reward.dataset import ActionDataset
from medfm_rl.runs.folder import RunFolder
from medfm_rl.settings import FineTuningSettings, PPOHyperparameters, PreprocessingSettings
from medfm_rl.types import IGNORED, LabelSchema
from medfm_rl.workflows.adapt.choosing.cross_fit import _measure
from medfm_rl.workflows.adapt.context import Domains, RunContext
from medfm_rl.workflows.adapt.stages.fine_tuning import FineTuningImages, fine_tune

_LOG = logging.getLogger("medfm_rl.tests")


def squares(count: int = 6) -> tuple[Tensor, Tensor]:
    """Bright squares on a dark background, and their masks."""
    masks = torch.zeros(count, 8, 8, dtype=torch.uint8)
    for row in range(count):
        masks[row, 1 + row % 3 : 5 + row % 3, 2:6] = 1
    return masks[:, None].float() * 2 - 0.5, masks


def network(channels: int = 2) -> nn.Module:
    """Two convolutions, always with the same weights."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, channels, 1))


def learn_by_ppo(team: Team, n_envs: int, **settings: object) -> DensePPO:
    """Two updates with a network of reward for images whose truth is not known."""
    images, masks = squares()
    rater = network(1).eval()
    n_steps, batch_size = (2, 3) if n_envs > 1 else (1, None)
    hyperparameters = PPOHyperparameters(learning_rate=1e-2, kl_coef=0.1, ent_coef=0.01, n_epochs=2, **settings)
    env = SegmentationVecEnv(
        images.numpy(),
        lambda shown, actions: torch.sigmoid(rater(shown)[:, 0] * (2.0 * actions - 1)),
        2,
        n_envs,
        references=masks[:2].numpy(),
    )
    critic = network(1) if hyperparameters.baseline == "critic" else None
    ppo = DensePPO(
        env, network(), hyperparameters, critic=critic, n_steps=n_steps, batch_size=batch_size, device="cpu", team=team
    )
    return ppo.learn(2 * n_envs * n_steps)


def tuned(team: Team, batch_size: int, unsaid: bool) -> nn.Module:
    """A network after a few steps of fine-tuning; where `unsaid`, masks say nothing of some pixels."""
    (images, masks), segmenter = squares(), network()
    if unsaid:
        masks[:2, :5] = IGNORED
    settings = FineTuningSettings(
        steps=4, batch_size=batch_size, target_batch_size=batch_size, learning_rate=0.02, elastic=0.0
    )
    shown = FineTuningImages((images, masks), 0.3 * images + 0.2)
    fine_tune(segmenter, list(segmenter.parameters()), shown, settings, 0, team=team)
    return segmenter


def compared_on_reviewed(team: Team, folder: Path) -> Tensor:
    """Dice of six reviewed patients, before and after two fine-tunings that each knew three of them."""
    context = context_of_squares(team, folder)
    images, masks = squares()
    names = tuple(f"patient{row}" for row in range(len(images)))
    shown = ImageSet(images, names, names)
    reviewed = ReviewedImages(shown, masks, (1.0,) * len(images))
    found = _measure(context, Domains(shown, shown, None, reviewed), reviewed)
    return torch.tensor([*found.before, *found.after])


def context_of_squares(team: Team, folder: Path, **settings: object) -> RunContext:
    """A run of a small network for squares."""
    torch.manual_seed(0)
    schema = LabelSchema.from_structures({"square": 1})
    policy = TorchModuleAdapter.build_unet(TINY, schema, PreprocessingSettings(size=(8, 8))).eval()
    config = tiny_config(
        Path("echo"),
        Path("model"),
        folder,
        fine_tuning=FineTuningSettings(steps=8, batch_size=3, learning_rate=0.02),
        **settings,
    )
    dataset, anatomy = ActionDataset(folder / "actions"), load_anatomy("generic", schema)
    return RunContext(config, RunFolder(folder), silent, torch.device("cpu"), policy, anatomy, dataset, team=team)


@single_precision()
def work(team: Team, folder: Path) -> dict[str, Tensor]:
    """What all processes together come to.

    Args:
        team: The processes.
        folder: For what they write.
    """
    found = {"compared on reviewed patients": compared_on_reviewed(team, folder)}

    def keep(name: str, module: nn.Module) -> None:
        found.update({f"{name}.{key}": value.detach().clone() for key, value in module.state_dict().items()})

    for name, n_envs, settings in (
        ("ppo", 3, {"baseline": "greedy", "exploration": "correlated"}),
        ("ppo with a critic", 3, {"baseline": "critic", "exploration": "independent"}),
        ("ppo on one image", 1, {"baseline": "greedy"}),
    ):
        ppo = learn_by_ppo(team, n_envs, **settings)
        keep(name, ppo.policy.segmenter)
        for told in ("rollout/reward_mean", "train/policy_loss", "train/kl_reference", "train/actor_grad_norm"):
            found[f"{name}.{told}"] = torch.tensor(ppo.logger.name_to_value[told])
    for batch_size in (3, 1):
        keep(f"fine-tuning on {batch_size}", tuned(team, batch_size, unsaid=False))
    keep("fine-tuning, some unsaid", tuned(team, 3, unsaid=True))
    return found


def talk(team: Team) -> dict[str, Tensor]:
    """What the parts of a team say to each other, without a network."""

    def square(number: int) -> int:
        _LOG.info("squared %d", number)
        return number * number

    unused, used = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    if team.leads:
        (used * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    team.sum_gradients([unused, used])
    assert unused.grad is None
    assert used.grad is not None
    works, crew = team.crew(1)
    alone, own = team.crew(2)
    assert (list(alone), own.size) == ([team.rank], 1)
    return {
        "squares": torch.tensor(list(team.share_out([1, 2, 3, 4, 5], square))),
        "gathered": torch.tensor(team.gather(team.rank)),
        "led": torch.tensor(team.from_leader(lambda: 7 + team.rank)),
        "summed": team.sum(torch.ones(2)),
        "gradient": used.grad,
        "crew": torch.tensor([*works, crew.size, *crew.gather(team.rank)]),
    }


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main(output: Path) -> None:
    """Does both with the processes that were started beside this one; the first writes what came of it."""
    told = _Lines()
    with joined_team(torch.device("cpu")) as team:
        if team.leads:
            logging.getLogger("medfm_rl").addHandler(told)
            logging.getLogger("medfm_rl").setLevel(logging.INFO)
        said = talk(team)
        found = work(team, output / "run")
        every = team.gather({name: value.clone() for name, value in found.items()})
        assert all(torch.equal(value, other[name]) for other in every for name, value in found.items())
        if team.leads:
            (output / "told.txt").write_text("\n".join(told.lines), encoding="utf-8")
            save_file({f"talk.{name}": value.contiguous() for name, value in said.items()}, output / "talk.safetensors")
            save_file({name: value.contiguous() for name, value in found.items()}, output / "work.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
