"""Adapt medical segmenters to new domains, and control their quality.

Everything that a user of the package needs has its name here, and is loaded when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from medfm_rl.version import __version__

if TYPE_CHECKING:
    from medfm_rl.adapters import SegmenterAdapter, check_adapter
    from medfm_rl.data.layouts import find_cases
    from medfm_rl.data.mask_files import find_masks
    from medfm_rl.envs import SegmentationEnv
    from medfm_rl.policies import DensePPO
    from medfm_rl.processes.joining import joined_team
    from medfm_rl.quality.controller import QualityController
    from medfm_rl.quality.gates import Gates
    from medfm_rl.quality.model import Targets
    from medfm_rl.runs.finished import load_judge, load_model, load_run
    from medfm_rl.settings import AdaptConfig, CorrectionSettings, DataSettings, SitePolicy
    from medfm_rl.workflows.adapt.loop import adapt
    from medfm_rl.workflows.calibrate.quality import CalibrateRequest, calibrate
    from medfm_rl.workflows.check.check import CheckRequest, check
    from medfm_rl.workflows.deploy.choose import ChooseRequest, choose
    from medfm_rl.workflows.deploy.correct import CorrectRequest, correct
    from medfm_rl.workflows.deploy.predict import predict
    from medfm_rl.workflows.deploy.score import ScoreRequest, score
    from medfm_rl.workflows.deploy.stream_scoring import StreamRequest
    from medfm_rl.workflows.deploy.workers import Workers
    from medfm_rl.workflows.evaluate.evaluate import evaluate
    from medfm_rl.workflows.propose.propose import propose
    from medfm_rl.workflows.propose.request import ProposeRequest

__all__ = [
    "AdaptConfig",
    "CalibrateRequest",
    "CheckRequest",
    "ChooseRequest",
    "CorrectRequest",
    "CorrectionSettings",
    "DataSettings",
    "DensePPO",
    "Gates",
    "ProposeRequest",
    "QualityController",
    "ScoreRequest",
    "SegmentationEnv",
    "SegmenterAdapter",
    "SitePolicy",
    "StreamRequest",
    "Targets",
    "Workers",
    "__version__",
    "adapt",
    "calibrate",
    "check",
    "check_adapter",
    "choose",
    "correct",
    "evaluate",
    "find_cases",
    "find_masks",
    "joined_team",
    "load_judge",
    "load_model",
    "load_run",
    "predict",
    "propose",
    "score",
]
_HOMES = {
    "AdaptConfig": "settings",
    "CalibrateRequest": "workflows.calibrate.quality",
    "CheckRequest": "workflows.check.check",
    "ChooseRequest": "workflows.deploy.choose",
    "CorrectRequest": "workflows.deploy.correct",
    "CorrectionSettings": "settings",
    "DataSettings": "settings",
    "DensePPO": "policies",
    "Gates": "quality.gates",
    "ProposeRequest": "workflows.propose.request",
    "QualityController": "quality.controller",
    "ScoreRequest": "workflows.deploy.score",
    "SegmentationEnv": "envs",
    "SegmenterAdapter": "adapters",
    "SitePolicy": "settings",
    "StreamRequest": "workflows.deploy.stream_scoring",
    "Targets": "quality.model",
    "Workers": "workflows.deploy.workers",
    "adapt": "workflows.adapt.loop",
    "calibrate": "workflows.calibrate.quality",
    "check": "workflows.check.check",
    "check_adapter": "adapters",
    "choose": "workflows.deploy.choose",
    "correct": "workflows.deploy.correct",
    "evaluate": "workflows.evaluate.evaluate",
    "find_cases": "data.layouts",
    "find_masks": "data.mask_files",
    "joined_team": "processes.joining",
    "load_judge": "runs.finished",
    "load_model": "runs.finished",
    "load_run": "runs.finished",
    "predict": "workflows.deploy.predict",
    "propose": "workflows.propose.propose",
    "score": "workflows.deploy.score",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'medfm_rl' has no attribute {name!r}")
    return getattr(import_module(f"medfm_rl.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
