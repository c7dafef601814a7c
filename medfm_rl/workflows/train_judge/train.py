"""A judge of masks from images, a tool's masks of them and their truth: reward networks, calibration, and a trial."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from medfm_rl.adapters import ImageGrid
from medfm_rl.data.files import alone_writing, remove_abandoned
from medfm_rl.data.layouts import CaseFile, split_by_patient
from medfm_rl.data.locks import is_unused
from medfm_rl.data.mask_files import find_masks
from medfm_rl.errors import ConfigError, DataError
from medfm_rl.progress import Progress, silent
from medfm_rl.quality.model import Targets
from medfm_rl.reward.fusion import write_fusion
from medfm_rl.reward.origins import patients_of
from medfm_rl.reward.patient_split import SplitRecords
from medfm_rl.reward.training import train_reward
from medfm_rl.runs.inputs import SOURCE, common_folder, hash_labelled, write_inputs
from medfm_rl.runs.judging import JUDGE_FILE, TrainedJudge, read_judge_settings, write_judge_settings
from medfm_rl.seeding import derive_seed, torch_generator
from medfm_rl.settings import JudgeSettings
from medfm_rl.types import LabelSchema
from medfm_rl.workflows.calibrate.quality import CalibrateRequest, calibrate_cases, read_masks
from medfm_rl.workflows.train_judge.deal import Deal, deal
from medfm_rl.workflows.train_judge.examples import examples_of
from medfm_rl.workflows.train_judge.trial import Trial, try_judge
from medfm_rl.workflows.untrained_reward import untrained_reward

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgeRequest:
    """What a judge is made of.

    Attributes:
        files: The images, each with its truth as the mask of the case.
        masks: The tool's masks, by case.
        schema: Structures, by the integers in the truth.
        labels: The integers in the tool's masks, as in `labels_in_masks`.
        probabilities: Files of the probabilities that the tool gave, by case; None where it gives none.
        targets: What is asked of intervals and accepted masks.
        settings: How it is made.
        device: Where the networks are trained and run.
    """

    files: Sequence[CaseFile]
    masks: Mapping[str, Path]
    schema: LabelSchema
    labels: str | None = None
    probabilities: Mapping[str, Path] | None = None
    targets: Targets = field(default_factory=Targets)
    settings: JudgeSettings = field(default_factory=JudgeSettings)
    device: str = "auto"


def with_truth(files: Sequence[CaseFile], folder: Path) -> list[CaseFile]:
    """The cases with their truth; those without any are left out, and a warning counts them.

    Raises:
        DataError: The folder is missing, or holds the truth of no case.
    """
    truth = find_masks(folder, files)
    known = [replace(file, label_path=truth[file.case_id]) for file in files if file.case_id in truth]
    if len(known) < len(files):
        _LOG.warning("%d of %d images have no truth, and teach nothing", len(files) - len(known), len(files))
    return known


def train_judge(request: JudgeRequest, out: Path, progress: Progress = silent) -> Trial:
    """Makes a judge; `score`, `calibrate` and streams take its folder as that of a run.

    A third of the patients calibrates it, a fifth shows in the end how good it is (`report.html`, `held_out.csv`), the
    others teach its networks. What is there already is not made again, so an interrupted call can be repeated.

    Args:
        request: What it is made of.
        out: New folder, or that of an interrupted call with the same settings.
        progress: Told how far it is.

    Raises:
        UserError: The cases cannot be used, are too few or lack masks, or the folder is something else.
    """
    with alone_writing(out):
        _begin(request, out)
        files = [file for file in request.files if file.case_id in request.masks]
        if len(files) < len(request.files):
            _LOG.warning("%d labelled images have no mask of the tool", len(request.files) - len(files))
        parts = deal(files, request.settings.seed)
        place = common_folder(files)
        write_inputs(out / "inputs.json", {SOURCE: hash_labelled(place, files, progress)})
        grid = _grid(request, out, parts)
        judge = TrainedJudge(out, request.device)
        _train_rewards(request, judge, grid, parts, progress)
        asked = CalibrateRequest(request.targets, request.masks, request.labels, request.probabilities)
        if not judge.folder.quality.exists():
            given = read_masks(grid.schema, parts.calibrating, asked)
            judge.replace_quality(calibrate_cases(judge, parts.calibrating, given, request.targets, progress))
        return try_judge(judge, parts, asked, out, progress)


def _begin(request: JudgeRequest, out: Path) -> None:
    """Takes a new folder, or that of an interrupted call with the same settings."""
    remove_abandoned(out)
    if not (out / JUDGE_FILE).exists():
        if not is_unused(out):
            raise ConfigError(f"{out}: the folder is not empty and holds no judge; choose another output")
        write_judge_settings(out, request.settings)
    elif read_judge_settings(out) != request.settings:
        raise ConfigError(f"{out / JUDGE_FILE}: was begun with other settings; go on with those, or give a new folder")


def _grid(request: JudgeRequest, out: Path, parts: Deal) -> ImageGrid:
    folder = out / "model"
    if not folder.exists():
        case = parts.learning[0].read()
        if len(case.shape) != len(request.settings.size):
            raise ConfigError(
                f"--size {' '.join(map(str, request.settings.size))}: has {len(request.settings.size)} axes, and case "
                f"{case.case_id} {len(case.shape)}; give as many"
            )
        ImageGrid(request.schema, request.settings.preprocessing, case.image.shape[0]).save(folder)
    grid = ImageGrid.load(folder)
    if grid.schema != request.schema:
        raise ConfigError(
            f"{folder}: was begun for {', '.join(grid.schema.structures)}, and the truth is of "
            f"{', '.join(request.schema.structures)}; give a new folder"
        )
    return grid


def _train_rewards(
    request: JudgeRequest, judge: TrainedJudge, grid: ImageGrid, parts: Deal, progress: Progress
) -> None:
    """Trains the reward networks that are not there yet."""
    settings, folder = request.settings, judge.folder.final_reward
    members = [f"member-{index}" for index in range(settings.reward.ensemble)]
    missing = [name for name in members if not (folder / name).exists()]
    if missing:
        asked = CalibrateRequest(masks=request.masks, labels=request.labels)
        pairs = zip(parts.learning, read_masks(grid.schema, parts.learning, asked), strict=True)
        labelled = ((file.read_labelled(grid.schema), mask.labels) for file, mask in pairs)
        cases = ((item.case, given, item.ground_truth) for item, given in labelled)
        generator = torch_generator(settings.seed, "judge examples")
        records = examples_of(cases, len(parts.learning), grid, settings, generator, progress)
        if not bool((records.actions[:, 0] != records.references).any()):
            raise DataError(
                "the masks of the tool are the truth itself, in every pixel: a judge learns nothing of its errors from "
                "these; give the masks that the tool made"
            )
    for name in missing:
        seed = derive_seed(settings.seed, "judge reward", name)
        _, held_out = split_by_patient(list(records.origins), settings.reward.validation_fraction, seed)
        split = SplitRecords.hold_out(records, patients_of(held_out))
        net = untrained_reward(settings.reward.network, grid, seed)
        label = f"reward network {name}"

        def tell(done: int, total: int, label: str = label) -> None:
            progress(label, done, total)

        report = train_reward(net, split, settings.reward, seed, judge.device, tell, label)
        report.write(folder / f"{name}.json")
        net.save(folder / name)
    write_fusion(folder, members, settings.reward)
