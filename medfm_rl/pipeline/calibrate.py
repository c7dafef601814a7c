"""`quality.json` of a run: from labelled cases that somebody gives, or by default from held-out source cases."""

from __future__ import annotations

import copy
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.data.files import hash_file
from medfm_rl.data.images import read_labels
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.errors import DataError, UserError
from medfm_rl.metrics.overlap import dice
from medfm_rl.metrics.validity import Anatomy, learn_limits, load_anatomy
from medfm_rl.networks import choose_device
from medfm_rl.pipeline.config_file import load_config
from medfm_rl.pipeline.images import Progress
from medfm_rl.pipeline.inputs import common_folder, hash_labelled
from medfm_rl.pipeline.mask_labels import parse_mask_labels
from medfm_rl.pipeline.models import load_adapted, load_preprocessing
from medfm_rl.pipeline.run_folder import RunFolder
from medfm_rl.pipeline.unseen import count_known
from medfm_rl.quality.biomedclip import BiomedCLIP
from medfm_rl.quality.calibration import CalibrationCase, Provenance, fit_quality, require_patients
from medfm_rl.quality.model import QualityModel, Targets, is_outdated, reward_hashes
from medfm_rl.quality.run_hashes import hash_run
from medfm_rl.quality.submission import Submission, collect_evidence, prepare, segment, submit
from medfm_rl.reward.appearance import randomise_appearance
from medfm_rl.reward.collection import perturb_weights
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.seeding import torch_generator
from medfm_rl.settings import AdaptConfig
from medfm_rl.types import LabelMap, LabelSchema

_LOG = logging.getLogger(__name__)
_LEARNED_QUANTILE = 0.001
_VIEWS = 3
"""Times that each held-out source case is shown in another appearance."""


def calibrate(
    run: RunFolder,
    files: Sequence[CaseFile],
    masks: Mapping[str, Path] | None,
    targets: Targets,
    device: str,
    progress: Progress,
    *,
    prompts: Path | None = None,
    biomedclip: Path | None = None,
    labels: str | None = None,
    allow_overlap: bool = False,
) -> QualityModel:
    """Fits a quality model on labelled cases and writes it into the run; what was there is kept under another name.

    A warning says under which, and where the new one promises less.

    Args:
        run: A finished run of `adapt`.
        files: Labelled cases.
        masks: Masks to be judged, by case, where they are not those of the run's segmenter.
        targets: What is asked.
        device: Where the networks run.
        progress: Told how far it is.
        prompts: For a promptable segmenter that makes the masks: where its boxes come from, as in `load_model`.
        biomedclip: BiomedCLIP's weights, where it is to know the images too.
        labels: The integers in the masks to be judged, as in `parse_mask_labels`; None for those of the run. Those of
            the labelled cases are always the run's.
        allow_overlap: As in `count_known`.

    Raises:
        UserError: The run is not finished, has learned from the cases, or they cannot be used or are too few.
    """
    require_patients({file.patient_id for file in files}, targets)
    known = count_known(run, files, allow_overlap)
    chosen = choose_device(device)
    judged = None if masks is None else _read_masks(run, files, masks, labels, progress)
    encoder = None if biomedclip is None else BiomedCLIP.load(biomedclip, chosen)
    model = calibrate_cases(run, files, judged, targets, chosen, progress, encoder, prompts)
    if known:
        model = model.model_copy(update={"origin": f"{model.origin}, {known} of them known to the run"})
    lost = _lost_promises(run.quality, model)
    kept = _keep_previous(run.quality)
    model.write(run.quality)
    if kept is not None:
        less = f"; the new one promises less: {'; '.join(lost)}" if lost else ""
        _LOG.warning("the quality model before is kept as %s%s", kept, less)
    return model


def _lost_promises(before: Path, model: QualityModel) -> list[str]:
    """What a quality model that is replaced promises and the new one does not, in words."""
    if not before.exists() or is_outdated(before):
        return []
    try:
        old = QualityModel.read(before)
    except UserError:
        # It is damaged, and promises nothing.
        return []
    without = [
        name
        for name, structure in model.structures.items()
        if structure.quantile is None and name in old.structures and old.structures[name].quantile is not None
    ]
    lost = [f"no interval but [0, 1] for {', '.join(without)}"] if without else []
    if model.accept_threshold is None and old.accept_threshold is not None:
        lost.append(f"no threshold for acceptance ({model.accept_reason})")
    return lost


def _read_masks(
    run: RunFolder, files: Sequence[CaseFile], masks: Mapping[str, Path], labels: str | None, progress: Progress
) -> list[LabelMap]:
    schema = load_preprocessing(run).schema
    in_masks = None if labels is None else parse_mask_labels(labels, schema)
    found = []
    for done, file in enumerate(files, 1):
        if file.case_id not in masks:
            raise DataError(f"case {file.case_id}: there is no mask of that name to be judged")
        case = file.read()
        found.append(read_labels(masks[file.case_id], schema, case.shape, case.geometry, in_masks))
        progress("reading masks to be judged", done, len(files))
    return found


def calibrate_cases(
    run: RunFolder,
    files: Sequence[CaseFile],
    masks: Sequence[LabelMap] | None,
    targets: Targets,
    device: torch.device,
    progress: Progress,
    biomedclip: BiomedCLIP | None = None,
    prompts: Path | None = None,
) -> QualityModel:
    """Fits a quality model on masks of labelled cases; nothing is written.

    Args:
        run: A finished run of `adapt`.
        files: Labelled cases.
        masks: Their masks to be judged, class indices; None for those of the run's segmenter.
        targets: What is asked.
        device: Where the networks run.
        progress: Told how far it is.
        biomedclip: Looks at the images too.
        prompts: As in `calibrate`.

    Raises:
        UserError: As in `calibrate`.
    """
    config = load_config(run.config_file, AdaptConfig)
    segmenter = (load_adapted(run, prompts) if masks is None else load_preprocessing(run)).to(device)
    reward = RewardEnsemble.load(run.final_reward).to(device)
    labelled = [file.read_labelled(segmenter.schema) for file in files]
    anatomy = _anatomy(
        config.anatomy,
        segmenter.schema,
        ((item.ground_truth, item.case.geometry.array_spacing) for item in labelled),
    )
    cases = []
    for row, item in enumerate(labelled):
        submission = (
            segment(segmenter, anatomy, item.case)
            if masks is None
            else submit(segmenter, anatomy, item.case, masks[row])
        )
        judged = _judged(submission, item.ground_truth, segmenter, reward, device)
        cases.append(judged if biomedclip is None else replace(judged, biomedclip=biomedclip.embed(item.case)))
        progress("calibrating", row + 1, len(files))
    place = common_folder(files)
    origin = f"{len(files)} labelled cases of {place.resolve()}"
    provenance = _provenance(run, origin, True, hash_labelled(place, files, progress).hash)
    if biomedclip is not None:
        provenance = replace(provenance, biomedclip_hash=biomedclip.weights_hash)
    return fit_quality(cases, anatomy, targets, provenance, config.seed)


def write_default_quality(run: RunFolder, config: AdaptConfig, progress: Progress) -> QualityModel | None:
    """Fits a quality model on source cases that no reward network of the run was trained or stopped on.

    They are shown in random appearances, most of them borrowed from the target, and segmented by the adapted segmenter
    and by perturbed copies of it, so that there are good and bad masks. It is the most honest that a run without
    labelled target cases allows, and it is not honest about two things: the segmenter learned from these cases, and
    they are no target cases. The model says so, and the tests for shift decide whether its promises hold for a batch.

    A file that another version wrote is kept under another name.

    Returns:
        None in the source-free mode and where too few patients were held out; a warning says what to do.
    """
    if run.quality.exists() and not is_outdated(run.quality):
        return QualityModel.read(run.quality)
    if config.source is None:
        _LOG.warning(
            "no %s without source images: make one from labelled cases by `medfm-rl calibrate %s --labelled DIR`",
            run.quality.name,
            run.path,
        )
        return None
    seen = _patients_of_rewards(run, config)
    files = [file for file in find_cases(config.source) if file.patient_id not in seen]
    try:
        model = _fit_on_source(run, config, files, progress)
    except UserError as error:
        _LOG.warning("no %s: %s; make one by `medfm-rl calibrate %s --labelled DIR`", run.quality.name, error, run.path)
        return None
    _keep_previous(run.quality)
    model.write(run.quality)
    return model


def _fit_on_source(run: RunFolder, config: AdaptConfig, files: Sequence[CaseFile], progress: Progress) -> QualityModel:
    patients = {file.patient_id for file in files}
    if not files:
        raise DataError("the reward networks have learned from every source patient")
    require_patients(patients, Targets())
    # The maps of all cases are needed twice, and those of volumes are too large to be kept in memory.
    with tempfile.TemporaryDirectory(prefix="calibrating-", dir=run.path) as folder:
        cases, anatomy = _source_cases(run, config, files, progress, Path(folder))
        origin = (
            f"source images of {len(patients)} patients held out from the reward networks, in the look of the target"
        )
        provenance = _provenance(run, origin, False, hash_labelled(common_folder(files), files, progress).hash)
        return fit_quality(cases, anatomy, Targets(), provenance, config.seed)


def _source_cases(
    run: RunFolder, config: AdaptConfig, files: Sequence[CaseFile], progress: Progress, folder: Path
) -> tuple[list[CalibrationCase], Anatomy]:
    """Each case in several appearances, with its maps in files of the folder; and the rules, learned limits included.

    One case is in memory at a time.
    """
    device = choose_device(config.device)
    segmenter = load_adapted(run).to(device)
    reward = RewardEnsemble.load(run.final_reward).to(device)
    styles, in_mm = _styles(find_cases(config.target), segmenter, progress)
    sources = find_cases(config.source or config.target)
    anatomy = _anatomy(config.anatomy, segmenter.schema, _masks(sources, segmenter.schema, in_mm, progress))
    generator = torch_generator(config.seed, "default quality")
    # The first view is segmented by what is deployed, the others by perturbed copies of it.
    policies = [segmenter, *(_perturbed(segmenter, config, generator).to(device) for _ in range(_VIEWS - 1))]
    cases: list[CalibrationCase] = []
    for file in files:
        item = file.read_labelled(segmenter.schema)
        sample = segmenter.preprocess(item.case)
        for policy in policies:
            shown = replace(sample, image=_in_another_look(sample.image, styles, segmenter, config, generator))
            # What is calibrated is what is deployed: the tool's own inference, and the mask on the case's own grid.
            logits = segmenter.predict_logits(shown)
            labels = segmenter.restore(logits if policy is segmenter else policy.predict_logits(shown), shown)
            known = None if segmenter.prompted else logits
            submission = prepare(segmenter, anatomy, item.case, labels, shown, known)
            judged = _judged(submission, item.ground_truth, segmenter, reward, device)
            cases.append(_on_disk(judged, folder / f"{len(cases):06d}.pt"))
            progress("calibrating the quality model", len(cases), len(policies) * len(files))
    return cases, anatomy


def _judged(
    submission: Submission,
    ground_truth: LabelMap,
    segmenter: SegmenterAdapter,
    reward: RewardEnsemble,
    device: torch.device,
) -> CalibrationCase:
    """A mask with its evidence and the truth `(*S)`."""
    evidence = collect_evidence([submission], reward, segmenter.patch_size, segmenter.schema, device)[0]
    truth = segmenter.preprocess_labels(ground_truth, submission.sample)
    overlap = dice(submission.labels, ground_truth, segmenter.schema.num_classes)
    return CalibrationCase(submission.case.patient_id, evidence, evidence.action == truth, overlap)


def _on_disk(case: CalibrationCase, path: Path) -> CalibrationCase:
    """The same case, whose maps are read from a file where they are looked at."""
    evidence = case.evidence
    maps = {
        "action": evidence.action,
        "reward_map": evidence.reward_map,
        "spread": evidence.spread,
        "confidence": evidence.confidence,
    }
    torch.save({**maps, "right": case.right}, path)
    found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    right = found.pop("right")
    return replace(case, evidence=replace(evidence, **found), right=right)


def _masks(
    files: Sequence[CaseFile], schema: LabelSchema, in_mm: bool, progress: Progress
) -> Iterator[tuple[LabelMap, tuple[float, ...] | None]]:
    """Masks on their own grids, one by one, with their spacings where sizes can be in mm."""
    for done, file in enumerate(files, 1):
        item = file.read_labelled(schema)
        progress("reading source masks", done, len(files))
        yield item.ground_truth, item.case.geometry.array_spacing if in_mm else None


def _styles(files: Sequence[CaseFile], segmenter: SegmenterAdapter, progress: Progress) -> tuple[Tensor, bool]:
    """Target images whose look is borrowed `(N, C, *patch)`, and whether the spacing of each of them is known.

    Those larger than the patch are made smaller; of volumes of a 2-D segmenter the middle slice is taken.
    """
    found, spaced = [], True
    for done, file in enumerate(files, 1):
        case = file.read()
        spaced = spaced and case.geometry.spacing is not None
        image = segmenter.preprocess(case).image
        if image.ndim - 1 > len(segmenter.patch_size):
            image = image[:, image.shape[1] // 2]
        found.append(_resized(image, segmenter.patch_size))
        progress("reading target images", done, len(files))
    return torch.stack(found), spaced


def _in_another_look(
    image: Tensor, styles: Tensor, segmenter: SegmenterAdapter, config: AdaptConfig, generator: torch.Generator
) -> Tensor:
    """An image `(C, *S')` in a random appearance; of a volume of a 2-D segmenter, all slices in the same."""
    stacked = image.ndim - 1 > len(segmenter.patch_size)
    images = image.movedim(1, 0) if stacked else image[None]
    style = _resized(styles[int(torch.randint(len(styles), (), generator=generator))], images.shape[2:])[None]
    strength, channels = config.collect.appearance_strength, segmenter.intensity_channels
    state, shown = generator.get_state(), []
    for one in images:
        generator.set_state(state)
        shown.append(randomise_appearance(one[None], style, strength, generator, channels)[0])
    return torch.stack(shown, dim=1) if stacked else shown[0]


def _resized(image: Tensor, size: Sequence[int]) -> Tensor:
    """An image `(C, *S')` of another size, by linear interpolation."""
    if tuple(image.shape[1:]) == tuple(size):
        return image
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return F.interpolate(image[None], size=tuple(size), mode=mode, align_corners=False)[0]


def _perturbed(segmenter: SegmenterAdapter, config: AdaptConfig, generator: torch.Generator) -> SegmenterAdapter:
    perturbed = perturb_weights(copy.deepcopy(segmenter).cpu(), config.collect.weight_noise, generator)
    assert isinstance(perturbed, SegmenterAdapter)
    return perturbed


def _anatomy(name: str, schema: LabelSchema, masks: Iterable[tuple[LabelMap, tuple[float, ...] | None]]) -> Anatomy:
    """The profile of the run with limits learned from masks that are right, on their own grids, with spacings."""
    return load_anatomy(name, schema).extended(learn_limits(masks, schema, _LEARNED_QUANTILE))


def _patients_of_rewards(run: RunFolder, config: AdaptConfig) -> set[str]:
    """Patients that the networks of the final ensemble, or those that they go on from, were trained or stopped on."""
    seen: set[str] = set()
    for iteration in range(config.iterations):
        for member in range(config.reward.ensemble):
            report = run.reward(iteration, f"member-{member}").with_suffix(".json")
            content = json.loads(report.read_text(encoding="utf-8"))
            seen |= {*content["training_patients"], *content["validation_patients"]}
    return seen


def _provenance(run: RunFolder, origin: str, target_domain: bool, data_hash: str) -> Provenance:
    networks = reward_hashes(run.final_reward)
    return Provenance(origin, target_domain, **hash_run(run.path), reward_hashes=networks, data_hash=data_hash)


def _keep_previous(path: Path) -> Path | None:
    """Where the file before is from now on; None where there was none."""
    return path.rename(path.with_name(f"{path.stem}-{hash_file(path)[:8]}{path.suffix}")) if path.exists() else None
