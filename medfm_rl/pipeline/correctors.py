"""Who corrects the masks of a run: its segmenter, its reward networks, its judge and its rules, put together."""

from __future__ import annotations

import hashlib
from pathlib import Path

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.errors import ModelError
from medfm_rl.metrics.validity import Anatomy, load_anatomy
from medfm_rl.networks import choose_device
from medfm_rl.pipeline.config_file import load_config
from medfm_rl.pipeline.models import load_adapted
from medfm_rl.pipeline.run_folder import JUDGE, RunFolder
from medfm_rl.quality import QualityModel
from medfm_rl.quality.run_hashes import hash_run
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.reward.shape_prior import ShapePrior
from medfm_rl.settings import AdaptConfig, CorrectionSettings
from medfm_rl.tto import (
    AugmentationAverage,
    CaseCorrector,
    Intent,
    Judge,
    LargestComponents,
    Memo,
    NoCorrection,
    ShapeProjection,
    Tent,
    TestTimeOptimizer,
    ViewVote,
)
from medfm_rl.types import LabelSchema


def load_networks(run: RunFolder, device: str, prompts: Path | None = None) -> tuple[SegmenterAdapter, RewardEnsemble]:
    """Segmenter and reward networks of a finished run.

    Args:
        run: The run.
        device: Where they are to run.
        prompts: As in `load_model`.

    Raises:
        UserError: The run is not finished, or the device is not there.
    """
    run.require_model()
    chosen = choose_device(device)
    adapter = load_adapted(run, prompts).to(chosen)
    return adapter, RewardEnsemble.load(run.final_reward).to(chosen)


def hash_parts(run: RunFolder, schema: LabelSchema) -> dict[str, str]:
    """SHA-256 of what makes and judges corrections: segmenter, reward networks with the judge, and rules."""
    rules = _anatomy(run, schema).profile.model_dump_json()
    hashes = hash_run(run.path)
    return {
        "segmenter": hashes["model_hash"],
        "reward": hashes["reward_hash"],
        "rules": hashlib.sha256(rules.encode()).hexdigest(),
    }


def for_given_masks(settings: CorrectionSettings) -> CorrectionSettings:
    """The settings for masks that another segmenter made: a correction of them has to gain more to be accepted."""
    return settings.model_copy(update={"margin": settings.margin_given})


def make_corrector(
    run: RunFolder, adapter: SegmenterAdapter, reward: RewardEnsemble, settings: CorrectionSettings
) -> CaseCorrector:
    """The corrector that the settings name, with the judge and the rules of a finished run.

    Args:
        run: Its judge decides.
        adapter: The segmenter whose masks are corrected.
        reward: The run's reward networks.
        settings: `method` and what it needs.

    Raises:
        ModelError: The method cannot be used with this segmenter, or a part of the run is missing.
    """
    judge = Judge(RewardNet.load(run.final_reward / JUDGE), _anatomy(run, adapter.schema), settings)
    match settings.method:
        case "views":
            return ViewVote(adapter, reward, judge, _of_this_case(adapter, judge))
        case "optimise":
            return TestTimeOptimizer(adapter, reward, judge)
        case "none":
            return NoCorrection(adapter, judge)
        case "tta":
            return AugmentationAverage(adapter, judge)
        case "tent":
            return Tent(adapter, judge)
        case "intent":
            return Intent(adapter, judge)
        case "memo":
            return Memo(adapter, judge)
        case "components":
            return LargestComponents(adapter, judge)
        case "shape-prior":
            return ShapeProjection(adapter, judge, ShapePrior.load(run.shape_prior))


def _of_this_case(adapter: SegmenterAdapter, judge: Judge) -> list[CaseCorrector]:
    """Copies of the segmenter with the statistics of the case, where it has batch normalisation."""
    try:
        return [Intent(adapter, judge), Tent(adapter, judge)]
    except ModelError:
        return []


def _anatomy(run: RunFolder, schema: LabelSchema) -> Anatomy:
    """The rules of the quality model, learned limits included, or those of the run where there is none."""
    if run.quality.exists():
        return QualityModel.read(run.quality).bound_anatomy()
    return load_anatomy(load_config(run.config_file, AdaptConfig).anatomy, schema)
