"""Existing segmenters as modules from images to differentiable logits, with their own preprocessing and format."""

from medfm_rl.adapters.base import SegmenterAdapter
from medfm_rl.adapters.biomedparse import BiomedParseAdapter
from medfm_rl.adapters.conformance import ConformanceError, check_adapter, iter_checks
from medfm_rl.adapters.grid import CaseGrid, Sample
from medfm_rl.adapters.image_grid import ImageGrid
from medfm_rl.adapters.lora import add_low_rank
from medfm_rl.adapters.monai_bundle import MonaiBundleAdapter
from medfm_rl.adapters.nnunet.adapter import NnUNetAdapter
from medfm_rl.adapters.sam.litemedsam import LiteMedSAMAdapter
from medfm_rl.adapters.sam.medsam import MedSAMAdapter
from medfm_rl.adapters.sam.medsam2 import MedSAM2Adapter
from medfm_rl.adapters.sam.promptable import PromptableAdapter
from medfm_rl.adapters.torch_module.adapter import TorchModuleAdapter

__all__ = [
    "BiomedParseAdapter",
    "CaseGrid",
    "ConformanceError",
    "ImageGrid",
    "LiteMedSAMAdapter",
    "MedSAM2Adapter",
    "MedSAMAdapter",
    "MonaiBundleAdapter",
    "NnUNetAdapter",
    "PromptableAdapter",
    "Sample",
    "SegmenterAdapter",
    "TorchModuleAdapter",
    "add_low_rank",
    "check_adapter",
    "iter_checks",
]
