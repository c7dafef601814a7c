"""The folder of a run: which stages are done, and the settings that it was started with.

A stage is done when the thing it makes is there, and that thing appears by a rename: there is no other record of
progress that could disagree with it. So a run that was killed resumes at the stage that it was in.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from medfm_rl.adapters.loading import require_folder
from medfm_rl.data.files import remove_abandoned, replace_folder_on_success, write_text
from medfm_rl.data.locks import is_unused
from medfm_rl.errors import ConfigError, ModelError
from medfm_rl.quality.model import QUALITY_FILE
from medfm_rl.quality.promises import PROMISE_FILE
from medfm_rl.quality.reviewed_errors import REVIEWED_FILE
from medfm_rl.settings import AdaptConfig
from medfm_rl.settings.files import dump_config, load_config

SOURCE = "source"
"""Name of the unadapted policy among the candidates."""
FINE_TUNED = "fine-tuning"
"""Name of the policy that PPO starts from, in a run of version 0.1 \"warm-up\"."""
PREVIOUS = "previous"
"""Name of the policy that another run returned, which this one goes on from."""
HELD_OUT_REWARD = "held-out"
"""Name of the reward network that no policy learns from, in a run of version 0.1 \"judge\"."""
_FORMER_NAMES = {FINE_TUNED: "warm-up", HELD_OUT_REWARD: "judge"}


def current_name(name: str) -> str:
    """The name of a candidate or network, also where a run of version 0.1 recorded it."""
    return next((new for new, former in _FORMER_NAMES.items() if former == name), name)


def _place(folder: Path, name: str) -> Path:
    """Where something of that name lies: a run of version 0.1 goes on with the names that it started with."""
    former = folder / _FORMER_NAMES.get(name, name)
    return former if former.exists() else folder / name


class RunFolder:
    """Paths of a run.

    Args:
        path: Folder of the run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def start(cls, config: AdaptConfig, resume: bool) -> RunFolder:
        """Starts a run, or goes on with one. The caller keeps others out of the folder.

        Raises:
            ConfigError: The folder holds a run and `resume` is not set, or it was started with other settings.
        """
        run = cls(config.output)
        remove_abandoned(run.path)
        if not run.config_file.exists():
            run.require_empty()
            write_text(run.config_file, dump_config(config))
            return run
        if not resume:
            raise ConfigError(
                f"{run.path}: there is a run in this folder; go on with it by --resume or choose another output"
            )
        started = load_config(run.config_file, AdaptConfig).model_dump(exclude={"output", "tracking", "device"})
        wanted = config.model_dump(exclude={"output", "tracking", "device"})
        changed = sorted(name for name in wanted if started[name] != wanted[name])
        if changed:
            raise ConfigError(
                f"{run.config_file}: the run was started with other settings ({', '.join(changed)}); "
                "resume with those, or start a new run in another folder"
            )
        return run

    def require_empty(self) -> None:
        """Raises ConfigError where something lies in the folder that a new run would write to."""
        if not is_unused(self.path):
            raise ConfigError(f"{self.path}: the folder is not empty and holds no run; choose another output")

    def require_model(self) -> None:
        """Raises ModelError where the run is not finished."""
        require_folder(self.path)
        self.refuse_unfinished()
        if not self.model.is_dir():
            raise ModelError(f"{self.path}: not a finished run of `medfm-rl adapt`, there is no folder model in it")

    def refuse_unfinished(self) -> None:
        """Raises ModelError where a run was started and its segmenter is not yet there."""
        if self.config_file.exists() and not self.model.is_dir():
            raise ModelError(f"{self.path}: this run is not finished; go on with it by `medfm-rl adapt --resume`")

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def inputs(self) -> Path:
        """Hashes of what the run was started with."""
        return self.path / "inputs.json"

    @property
    def feedback(self) -> Path:
        """What reviewers and reports had said when the run started, as far as it learns from it."""
        return self.path / "feedback.json"

    @property
    def cross_fit(self) -> Path:
        """What policies that did not learn from them are worth on reviewed patients."""
        return self.path / "cross-fit.json"

    @property
    def expected(self) -> Path:
        """What was expected of the run before it started, and the settings that were lowered for a limit of time."""
        return self.path / "expected.json"

    @property
    def log(self) -> Path:
        """What the run told of itself."""
        return self.path / "log.txt"

    @property
    def continued(self) -> Path:
        """What was taken over from another run."""
        return self.path / "continued.json"

    @property
    def shape_prior(self) -> Path:
        return self.path / "shape_prior"

    @property
    def fine_tuned(self) -> Path:
        return _place(self.path, FINE_TUNED)

    def candidate_weights(self, name: str) -> Path:
        """Folder with the weights of a candidate or checkpoint, by its name."""
        return _place(self.path, name)

    @property
    def actions(self) -> Path:
        """D_R."""
        return self.path / "actions"

    def reward(self, iteration: int, member: str) -> Path:
        return _place(self.rewards(iteration), member)

    def rewards(self, iteration: int) -> Path:
        """The reward networks of an iteration, with their reports."""
        return self.path / f"iteration-{iteration:02d}" / "reward"

    @property
    def iterations(self) -> list[int]:
        """The iterations of which there is something, sorted; those that were taken over from another run too."""
        return sorted(int(folder.name.removeprefix("iteration-")) for folder in self.path.glob("iteration-[0-9][0-9]"))

    @property
    def last_selection(self) -> Path:
        """The choice that was exported.

        Raises:
            ModelError: There is none.
        """
        found = [path for iteration in self.iterations if (path := self.selection(iteration)).exists()]
        if not found:
            raise ModelError(f"{self.path}: has no iteration-NN/selection.json, where the choice is; put it back")
        return found[-1]

    def checkpoints(self, iteration: int) -> Path:
        return self.path / f"iteration-{iteration:02d}" / "ppo"

    def candidate(self, iteration: int, step: int) -> Path:
        """Averaged weights that compete in the selection."""
        return self.path / f"iteration-{iteration:02d}" / "candidates" / f"{step:05d}"

    def selection(self, iteration: int) -> Path:
        return self.path / f"iteration-{iteration:02d}" / "selection.json"

    @property
    def model(self) -> Path:
        """The adapted segmenter, in its own format."""
        return self.path / "model"

    @property
    def final_reward(self) -> Path:
        """The reward networks that go with the adapted segmenter."""
        return self.path / "reward"

    @property
    def held_out_reward(self) -> Path:
        """The reward network that no policy learned from, among those of `final_reward`."""
        return _place(self.final_reward, HELD_OUT_REWARD)

    @property
    def quality(self) -> Path:
        """The quality model: what turns a reward into predicted Dice and a verdict."""
        return self.path / QUALITY_FILE

    @property
    def correction(self) -> Path:
        """The gain that a correction needs to be accepted, where labelled cases told."""
        return self.path / "correction.json"

    @property
    def promise(self) -> Path:
        """What reviewed patients have proven of accepted masks."""
        return self.path / PROMISE_FILE

    @property
    def reviewed_errors(self) -> Path:
        """What reviewed patients tell of predicted Dice."""
        return self.path / REVIEWED_FILE

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def copy_reward(self, iteration: int, members: list[str]) -> None:
        """Puts the reward networks of an iteration where `predict` finds them."""
        for member in members:
            destination = self.final_reward / member
            if not destination.exists():
                with replace_folder_on_success(destination) as temporary:
                    shutil.copytree(self.reward(iteration, member), temporary, dirs_exist_ok=True)
