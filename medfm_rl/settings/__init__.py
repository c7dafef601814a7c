"""Every setting of every stage: one place for names, defaults, ranges and their explanation.

The rooms take these objects, the YAML files are validated against them, and `medfm-rl init` prints them with their
descriptions. Light on purpose: importing this package loads no network code.
"""

from medfm_rl.settings.adaptation import (
    AdaptConfig,
    CollectSettings,
    FineTuningSettings,
    PPOHyperparameters,
    PPOSettings,
    RewardSettings,
    SelectionSettings,
    ShapePriorSettings,
)
from medfm_rl.settings.base import Settings
from medfm_rl.settings.correction import CorrectionSettings
from medfm_rl.settings.data import DataSettings
from medfm_rl.settings.feedback import FeedbackSettings
from medfm_rl.settings.judge import JudgeSettings
from medfm_rl.settings.kinds import Segmenter
from medfm_rl.settings.openid import OpenIDSettings
from medfm_rl.settings.prompts import FilePrompts, FixedPrompts, MaskPrompts, PromptSettings, TextPrompts
from medfm_rl.settings.segmenters import (
    BiomedParseDescription,
    BiomedParseSettings,
    LiteMedSAMSettings,
    LoRASettings,
    MedSAM2Settings,
    MedSAMSettings,
    MonaiBundleSettings,
    NnUNetSettings,
    PreviousStageSettings,
    PromptableDescription,
    PromptableSettings,
    SegmenterSettings,
    TorchDescription,
    TorchSettings,
    TotalSegmentatorSettings,
)
from medfm_rl.settings.site_policy import CLINIC, RESEARCH, SitePolicy
from medfm_rl.settings.tracking import TrackingSettings
from medfm_rl.settings.training import (
    IntensitySettings,
    NetworkSettings,
    PreprocessingSettings,
    SourceTrainingSettings,
    TrainSourceConfig,
)

__all__ = [
    "CLINIC",
    "RESEARCH",
    "AdaptConfig",
    "BiomedParseDescription",
    "BiomedParseSettings",
    "CollectSettings",
    "CorrectionSettings",
    "DataSettings",
    "FeedbackSettings",
    "FilePrompts",
    "FineTuningSettings",
    "FixedPrompts",
    "IntensitySettings",
    "JudgeSettings",
    "LiteMedSAMSettings",
    "LoRASettings",
    "MaskPrompts",
    "MedSAM2Settings",
    "MedSAMSettings",
    "MonaiBundleSettings",
    "NetworkSettings",
    "NnUNetSettings",
    "OpenIDSettings",
    "PPOHyperparameters",
    "PPOSettings",
    "PreprocessingSettings",
    "PreviousStageSettings",
    "PromptSettings",
    "PromptableDescription",
    "PromptableSettings",
    "RewardSettings",
    "Segmenter",
    "SegmenterSettings",
    "SelectionSettings",
    "Settings",
    "ShapePriorSettings",
    "SitePolicy",
    "SourceTrainingSettings",
    "TextPrompts",
    "TorchDescription",
    "TorchSettings",
    "TotalSegmentatorSettings",
    "TrackingSettings",
    "TrainSourceConfig",
]
