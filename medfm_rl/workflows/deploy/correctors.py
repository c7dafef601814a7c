"""Who corrects the masks of a run: its segmenter, its reward networks, its verifier and its rules, put together."""

from __future__ import annotations

import hashlib
from pathlib import Path

from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.anatomy.profiles import Anatomy, load_anatomy
from medfm_rl.correction import (
    AugmentationAverage,
    CaseCorrector,
    Intent,
    LargestComponents,
    Memo,
    NoCorrection,
    ShapeProjection,
    Tent,
    TestTimeOptimiser,
    Verifier,
    ViewVote,
)
from medfm_rl.errors import ModelError
from medfm_rl.networks import choose_device
from medfm_rl.quality import QualityModel
from medfm_rl.quality.run_hashes import hash_run
from medfm_rl.reward.network import RewardEnsemble, RewardNet
from medfm_rl.reward.shape_prior import ShapePrior
from medfm_rl.runs.folder import RunFolder
from medfm_rl.runs.models import load_adapted
from medfm_rl.settings import AdaptConfig, CorrectionSettings
from medfm_rl.settings.files import load_config
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
    """SHA-256 of what makes and verifies corrections: segmenter, reward networks with the verifier, and rules."""
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
    """The corrector that the settings name, with the verifier and the rules of a finished run.

    Args:
        run: Its verifier decides.
        adapter: The segmenter whose masks are corrected.
        reward: The run's reward networks.
        settings: `method` and what it needs.

    Raises:
        ModelError: The method cannot be used with this segmenter, or a part of the run is missing.
    """
    verifier = Verifier(RewardNet.load(run.held_out_reward), _anatomy(run, adapter.schema), settings)
    match settings.method:
        case "views":
            return ViewVote(adapter, reward, verifier, _of_this_case(adapter, verifier))
        case "optimise":
            return TestTimeOptimiser(adapter, reward, verifier)
        case "none":
            return NoCorrection(adapter, verifier)
        case "tta":
            return AugmentationAverage(adapter, verifier)
        case "tent":
            return Tent(adapter, verifier)
        case "intent":
            return Intent(adapter, verifier)
        case "memo":
            return Memo(adapter, verifier)
        case "components":
            return LargestComponents(adapter, verifier)
        case "shape-prior":
            return ShapeProjection(adapter, verifier, ShapePrior.load(run.shape_prior))


def _of_this_case(adapter: SegmenterAdapter, verifier: Verifier) -> list[CaseCorrector]:
    """Copies of the segmenter with the statistics of the case, where it has batch normalisation."""
    try:
        return [Intent(adapter, verifier), Tent(adapter, verifier)]
    except ModelError:
        return []


def _anatomy(run: RunFolder, schema: LabelSchema) -> Anatomy:
    """The rules of the quality model, learned limits included, or those of the run where there is none."""
    if run.quality.exists():
        return QualityModel.read(run.quality).bound_anatomy()
    return load_anatomy(load_config(run.config_file, AdaptConfig).anatomy, schema)
