"""The context of a run: its settings, images and policies."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import Parameter

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.adapters.loading import load_segmenter, open_to_learning
from medfm_rl.anatomy.profiles import Anatomy, load_anatomy
from medfm_rl.data.files import replace_folder_on_success
from medfm_rl.data.layouts import find_cases
from medfm_rl.data.stored_rows import MEMORY, RowsFolder
from medfm_rl.networks import choose_device
from medfm_rl.policies import ACTOR
from medfm_rl.processes.team import ALONE, Team
from medfm_rl.progress import Progress
from medfm_rl.reward.collection import ImageSet, ReviewedImages
from medfm_rl.reward.dataset import ActionDataset
from medfm_rl.reward.judgements import Judgements
from medfm_rl.reward.measurements import Goal
from medfm_rl.rows import Rows
from medfm_rl.runs.folder import SOURCE, RunFolder
from medfm_rl.runs.learned_feedback import LearnedFeedback
from medfm_rl.settings import AdaptConfig
from medfm_rl.types import GridAxes, LabelSchema
from medfm_rl.workflows.adapt.checks import split_target
from medfm_rl.workflows.adapt.feedback.judged_images import load_judged
from medfm_rl.workflows.adapt.feedback.reported import goals_of_cases
from medfm_rl.workflows.adapt.feedback.reviewed_images import load_reviewed
from medfm_rl.workflows.training_images import load_images, load_labelled, rows_of_clips


@dataclass(frozen=True, eq=False)
class Domains:
    """The images of a run.

    Attributes:
        target: Unlabelled target images that the policy learns on.
        selection: Unlabelled images of other target patients, on which the held-out reward network compares
            checkpoints.
        source: Source images and their ground truth `(N, *S)`, or None in the source-free mode.
        reviewed: Images of further target patients, with the masks that reviewers drew or accepted; None without.
        goals: By case of the target, what reports say of it.
        judged: Masks of target images that reviewers judged, and what they said; None without.
        clips: Rows of the target images that are frames of one clip, by clip, in their order.
    """

    target: ImageSet
    selection: ImageSet
    source: tuple[ImageSet, Rows] | None
    reviewed: ReviewedImages | None = None
    goals: Mapping[str, Sequence[Goal]] = field(default_factory=dict)
    judged: Judgements | None = None
    clips: Sequence[Sequence[int]] = ()


@dataclass(frozen=True, eq=False)
class RunContext:
    """Everything that a stage of a run needs to know of it.

    Attributes:
        config: The settings.
        run: Where the stages leave their results.
        progress: Told how far each stage is.
        device: Where the networks are.
        source_policy: The segmenter as it was handed over; nothing changes it.
        anatomy: Validity rules of its masks.
        dataset: D_R.
        scratch: Where images and masks are put while it runs, that are too many for memory.
        team: The processes that share the run.
    """

    config: AdaptConfig
    run: RunFolder
    progress: Progress
    device: torch.device
    source_policy: SegmenterAdapter
    anatomy: Anatomy
    dataset: ActionDataset
    scratch: RowsFolder = MEMORY
    team: Team = ALONE

    @classmethod
    def of_run(
        cls,
        config: AdaptConfig,
        run: RunFolder,
        progress: Progress,
        scratch: Path | None = None,
        team: Team = ALONE,
    ) -> RunContext:
        """Loads the segmenter and the rules that the settings name.

        Args:
            config: The settings.
            run: Where the stages leave their results.
            progress: Told how far each stage is.
            scratch: Folder for images and masks while it runs; None keeps them in memory.
            team: The processes that share the run; all see both folders.
        """
        device = choose_device(config.device)
        source_policy = load_segmenter(config.segmenter).to(device)
        anatomy = load_anatomy(config.anatomy, source_policy.schema)
        dataset = ActionDataset(run.actions)
        return cls(config, run, progress, device, source_policy, anatomy, dataset, RowsFolder(scratch), team)

    @property
    def learned(self) -> LearnedFeedback | None:
        """The feedback that the run learns from."""
        return None if self.config.feedback is None else LearnedFeedback.read(self.run.feedback)

    @property
    def schema(self) -> LabelSchema:
        """The structures."""
        return self.source_policy.schema

    @property
    def num_classes(self) -> int:
        """Classes of a mask, the background among them."""
        return self.schema.num_classes

    def is_valid(self, mask: Tensor, axes: GridAxes) -> bool:
        """Whether a mask `(*S')` on the grid of the network meets the anatomy rules, which are of images.

        Args:
            mask: Class indices.
            axes: How the axes of that grid run in the image; rules name axes, and directions along them.
        """
        return self.anatomy.is_valid(axes.in_image(mask.numpy()))

    def load_domains(self) -> Domains:
        """Reads and preprocesses the images of the run: the leader of the team does, and the others see what it kept.

        Raises:
            DataError: Some of them cannot be used.
        """
        return self.team.from_leader(self._read_domains)

    def _read_domains(self) -> Domains:
        learned = self.learned
        reviewed_patients, judged_patients = (
            ((), ()) if learned is None else (learned.reviewed_patients, learned.judged_patients)
        )
        learning, selecting = split_target(self.config, reviewed_patients, judged_patients)
        target = load_images(learning, self.source_policy, self.progress, "target images", self.scratch)
        selection = load_images(selecting, self.source_policy, self.progress, "selection images", self.scratch)
        source = None
        if self.config.source is not None:
            files = find_cases(self.config.source)
            source = load_labelled(files, self.source_policy, self.progress, "source images", self.scratch)
        files = [] if learned is None else find_cases(self.config.target)
        reviewed, judged = None, None
        if learned is not None and self.config.feedback is not None:
            settings = self.config.feedback
            reviewed = load_reviewed(settings.store, learned, files, self.source_policy, self.progress)
            compared_on = {file.patient_id for file in selecting}
            judged = load_judged(settings, learned, files, self.source_policy, compared_on, self.progress)
        goals = {} if learned is None else goals_of_cases(learned.reported, learning, self.source_policy)
        clips = rows_of_clips(learning, target) if len(self.source_policy.patch_size) == 2 else ()
        return Domains(target, selection, source, reviewed, goals, judged, clips)

    def policy(self, name: str) -> SegmenterAdapter:
        """A copy of the segmenter with the weights of a candidate or checkpoint, named by its folder in the run."""
        policy = copy.deepcopy(self.source_policy)
        if name != SOURCE:
            policy.load_state_dict(load_file(self.run.candidate_weights(name) / ACTOR))
        return policy.eval()

    def open_to_learning(self, policy: SegmenterAdapter) -> dict[str, Parameter]:
        """The parameters of a policy that the settings let change, by name; the rest is frozen."""
        return open_to_learning(policy, self.config.segmenter, self.config.seed)


def write_weights(folder: Path, state: dict[str, Tensor]) -> None:
    """Writes weights where `RunContext.policy` finds them."""
    with replace_folder_on_success(folder) as temporary:
        (temporary / ACTOR).write_bytes(save(state))
