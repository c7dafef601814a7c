"""`quality.json` of a run: from labelled cases that somebody gives, or by default from held-out source cases."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from medfm_rl.adapters import Sample, SegmenterAdapter
from medfm_rl.data.files import hash_file, hash_folder
from medfm_rl.data.images import read_labels
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.errors import DataError, UserError
from medfm_rl.metrics.overlap import dice
from medfm_rl.metrics.validity import Anatomy, learn_limits, load_anatomy
from medfm_rl.pipeline.config_file import load_config
from medfm_rl.pipeline.images import Progress, load_images, load_labelled
from medfm_rl.pipeline.models import choose_device, load_adapted, load_preprocessing
from medfm_rl.pipeline.run_folder import RunFolder
from medfm_rl.quality.appearance import appearance
from medfm_rl.quality.biomedclip import BiomedCLIP
from medfm_rl.quality.calibration import CalibrationCase, Provenance, fit_quality
from medfm_rl.quality.evidence import Evidence, confidence_in
from medfm_rl.quality.model import QualityModel, Targets, is_outdated, reward_hashes
from medfm_rl.quality.submission import collect_evidence, segment, submit
from medfm_rl.reward.appearance import randomise_appearance
from medfm_rl.reward.collection import ImageSet, perturb_weights
from medfm_rl.reward.network import RewardEnsemble
from medfm_rl.seeding import torch_generator
from medfm_rl.settings import AdaptConfig
from medfm_rl.types import Geometry, LabelMap

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
    prompts: Path | None = None,
    biomedclip: Path | None = None,
) -> QualityModel:
    """Fits a quality model on labelled cases and writes it into the run; what was there is kept under another name.

    Args:
        run: A finished run of `adapt`.
        files: Labelled cases.
        masks: Masks to be judged, by case, where they are not those of the run's segmenter.
        targets: What is asked.
        device: Where the networks run.
        progress: Told how far it is.
        prompts: For a promptable segmenter that makes the masks: where its boxes come from, as in `load_model`.
        biomedclip: BiomedCLIP's weights, where it is to know the images too.

    Raises:
        UserError: The run is not finished, or the cases cannot be used or are too few.
    """
    chosen = choose_device(device)
    judged = None if masks is None else _read_masks(run, files, masks, progress)
    encoder = None if biomedclip is None else BiomedCLIP.load(biomedclip, chosen)
    model = calibrate_cases(run, files, judged, targets, chosen, progress, encoder, prompts)
    _keep_previous(run.quality)
    model.write(run.quality)
    return model


def _read_masks(
    run: RunFolder, files: Sequence[CaseFile], masks: Mapping[str, Path], progress: Progress
) -> list[LabelMap]:
    schema = load_preprocessing(run).schema
    found = []
    for done, file in enumerate(files, 1):
        if file.case_id not in masks:
            raise DataError(f"case {file.case_id}: there is no mask of that name to be judged")
        case = file.read()
        found.append(read_labels(masks[file.case_id], schema, case.shape, case.geometry))
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
        segmenter,
        [item.ground_truth for item in labelled],
        [item.case.geometry.array_spacing for item in labelled],
    )
    cases = []
    for row, item in enumerate(labelled):
        submission = (
            segment(segmenter, anatomy, item.case)
            if masks is None
            else submit(segmenter, anatomy, item.case, masks[row])
        )
        evidence = collect_evidence([submission], reward, segmenter.patch_size, segmenter.schema, device)[0]
        truth = segmenter.preprocess_labels(item.ground_truth, submission.sample)
        overlap = dice(submission.labels, item.ground_truth, segmenter.schema.num_classes)
        seen = None if biomedclip is None else biomedclip.embed(item.case)
        cases.append(CalibrationCase(item.case.patient_id, evidence, evidence.action == truth, overlap, seen))
        progress("calibrating", row + 1, len(files))
    origin = f"{len(files)} labelled cases"
    provenance = _provenance(run, origin, True)
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
    device = choose_device(config.device)
    segmenter = load_adapted(run).to(device)
    reward = RewardEnsemble.load(run.final_reward).to(device)
    images, truths = load_labelled(files, segmenter, progress, "held-out source images")
    if len(images) != len(files):
        raise DataError("images larger than the network's input have to be calibrated whole, on labelled cases")
    styles = load_images(find_cases(config.target), segmenter, progress, "target images").images
    everything = load_labelled(find_cases(config.source or config.target), segmenter, progress, "source masks")[1]
    # On the grid of the networks, where there are no millimetres: learned sizes are shares of the image.
    anatomy = _anatomy(config.anatomy, segmenter, [mask.numpy() for mask in everything], [None] * len(everything))
    generator = torch_generator(config.seed, "default quality")
    cases = []
    for view in range(_VIEWS):
        shown = randomise_appearance(
            images.images, styles, config.collect.appearance_strength, generator, segmenter.intensity_channels
        )
        policy = segmenter
        if view > 0:
            perturbed = perturb_weights(copy.deepcopy(segmenter).cpu(), config.collect.weight_noise, generator)
            assert isinstance(perturbed, SegmenterAdapter)
            policy = perturbed.to(device)
        for row in range(len(images)):
            # What is calibrated is what is deployed: the tool's own inference.
            sample = _sample(images, row, shown[row])
            logits = segmenter.predict_logits(sample)
            action = (logits if view == 0 else policy.predict_logits(sample)).argmax(dim=0).to(torch.uint8)
            found = reward.examine(shown[row : row + 1].to(device), action[None].to(device), segmenter.patch_size)
            mask = action.numpy()
            evidence = Evidence(
                action,
                found.mean[0].cpu(),
                found.spread[0].cpu(),
                None if segmenter.prompted else confidence_in(logits, action),
                found.features[0].double().cpu().numpy(),
                appearance(shown[row : row + 1, : segmenter.intensity_channels])[0].numpy(),
                anatomy.check(mask),
                segmenter.schema.num_classes,
                segmenter.own_estimate(sample.image, action),
            )
            cases.append(
                CalibrationCase(
                    images.patient_ids[row],
                    evidence,
                    action == truths[row],
                    dice(mask, truths[row].numpy(), segmenter.schema.num_classes),
                )
            )
            progress("calibrating the quality model", view * len(images) + row + 1, _VIEWS * len(images))
    origin = f"source images of {len(patients)} patients held out from the reward networks, in the look of the target"
    return fit_quality(cases, anatomy, Targets(), _provenance(run, origin, False), config.seed)


def _anatomy(
    name: str,
    segmenter: SegmenterAdapter,
    masks: Sequence[LabelMap],
    spacings: Sequence[tuple[float, ...] | None],
) -> Anatomy:
    """The profile of the run with limits learned from masks that are right."""
    declared = load_anatomy(name, segmenter.schema)
    return declared.extended(learn_limits(masks, segmenter.schema, spacings, _LEARNED_QUANTILE))


def _patients_of_rewards(run: RunFolder, config: AdaptConfig) -> set[str]:
    """Patients that the networks of the final ensemble, or those that they go on from, were trained or stopped on."""
    seen: set[str] = set()
    for iteration in range(config.iterations):
        for member in range(config.reward.ensemble):
            report = run.reward(iteration, f"member-{member}").with_suffix(".json")
            content = json.loads(report.read_text(encoding="utf-8"))
            seen |= {*content["training_patients"], *content["validation_patients"]}
    return seen


def _sample(images: ImageSet, row: int, shown: Tensor) -> Sample:
    """An image on the grid of the network, as if that were the case's own."""
    shape = tuple(shown.shape[1:])
    return Sample(shown, images.case_ids[row], images.patient_ids[row], shape, Geometry.unknown(len(shape)))


def _provenance(run: RunFolder, origin: str, target_domain: bool) -> Provenance:
    return Provenance(origin, target_domain, reward_hashes(run.final_reward), hash_folder(run.model))


def _keep_previous(path: Path) -> None:
    if path.exists():
        path.rename(path.with_name(f"{path.stem}-{hash_file(path)[:8]}{path.suffix}"))
