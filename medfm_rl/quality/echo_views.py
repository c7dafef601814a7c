"""Is an image of echo an apical view at all? The view classifier of EchoPrime, where the user has it, says so."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfm_rl.adapters.checkpoints import load_strictly, read_state
from medfm_rl.data.files import hash_file
from medfm_rl.errors import DataError, MissingExtraError
from medfm_rl.quality.picture_values import in_bytes, in_colours
from medfm_rl.quality.reports import APICAL, ViewFinding
from medfm_rl.types import Case, FloatArray

VIEWS: Final = (
    "A2C",
    "A3C",
    "A4C",
    "A5C",
    "Apical_Doppler",
    "Doppler_Parasternal_Long",
    "Doppler_Parasternal_Short",
    "Parasternal_Long",
    "Parasternal_Short",
    "SSN",
    "Subcostal",
)
"""Its classes, in the order of its outputs (COARSE_VIEWS of github.com/echonet/EchoPrime)."""
ECHO_PROFILES: Final = frozenset(("echo_apical",))
"""Anatomy profiles whose rules are for apical views."""
_SIZE: Final = 224
_ZOOM: Final = 0.1
_MEAN: Final = (29.110628, 28.076836, 29.096405)
_DEVIATION: Final = (47.989223, 46.456997, 47.20083)


class ViewClassifier:
    """EchoPrime's classifier of views (Vukadinovic et al., arXiv 2410.09704), a ConvNeXt of torchvision.

    Its weights are the user's: the README of the project says MIT and its LICENSE academic use only. It was trained on
    first frames of videos; how well it knows single frames of other vendors has not been measured here.

    Args:
        network: Images `(B, 3, 224, 224)` to logits `(B, 11)`.
        weights_hash: SHA-256 of the file.
        device: Where it runs.
    """

    def __init__(self, network: nn.Module, weights_hash: str, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.weights_hash = weights_hash
        self.network = network.eval().requires_grad_(False).to(self.device)

    @classmethod
    def load(cls, path: Path, device: torch.device | None = None) -> ViewClassifier:
        """Reads `view_classifier.pt`.

        Raises:
            ModelError: It is missing, damaged or another network's.
            MissingExtraError: torchvision is not installed.
        """
        state, _ = read_state(path)
        network = _network()
        load_strictly(network, state, path)
        return cls(network, hash_file(path), device)

    @torch.no_grad()
    def find(self, case: Case) -> ViewFinding:
        """Finds the view that an image shows.

        Raises:
            DataError: It is a volume.
        """
        if len(case.shape) != 2:
            raise DataError(f"case {case.case_id}: the image is {len(case.shape)}-D; views are told of 2-D images")
        logits: Tensor = self.network(_prepared(case.image)[None].to(self.device))[0]
        probabilities = logits.float().softmax(dim=0).cpu()
        best = int(probabilities.argmax())
        apical = sum(float(probabilities[index]) for index, view in enumerate(VIEWS) if view in APICAL)
        return ViewFinding(VIEWS[best], float(probabilities[best]), apical)


def _prepared(image: FloatArray) -> Tensor:
    """An image `(C, H, W)` as in the training: the middle square without a tenth at each side, 224 pixels."""
    values = in_bytes(image)
    height, width = values.shape[1:]
    side = min(height, width)
    kept = side - 2 * round(side * _ZOOM)
    top, left = (height - kept) // 2, (width - kept) // 2
    square = in_colours(values)[:, top : top + kept, left : left + kept]
    shown = F.interpolate(square[None], size=(_SIZE, _SIZE), mode="bicubic", align_corners=False)[0]
    return (shown - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_DEVIATION)[:, None, None]


def _network() -> nn.Module:
    try:
        models = importlib.import_module("torchvision.models")
    except ImportError as error:
        raise MissingExtraError(
            "the view classifier needs torchvision, a build for the installed torch: pip install 'medfm-rl[echoprime]'"
        ) from error
    network: nn.Module = models.convnext_base()
    head: Any = network.classifier
    head[-1] = nn.Linear(head[-1].in_features, len(VIEWS))
    return network
