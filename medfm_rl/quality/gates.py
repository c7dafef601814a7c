"""Networks that are not of the run and look at images before their masks are assessed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from medfm_rl.quality.biomedclip import BiomedCLIP
from medfm_rl.quality.echo_views import ViewClassifier


@dataclass(frozen=True)
class Gates:
    """Files of such networks; each is off where None.

    Attributes:
        echoprime: EchoPrime's `view_classifier.pt`: images that are no apical views are referred.
        biomedclip: BiomedCLIP's `open_clip_pytorch_model.bin`: images unlike those of the calibration are referred.
    """

    echoprime: Path | None = None
    biomedclip: Path | None = None

    def load(self, device: torch.device) -> tuple[ViewClassifier | None, BiomedCLIP | None]:
        """The networks.

        Raises:
            ModelError: A file cannot be used.
        """
        views = None if self.echoprime is None else ViewClassifier.load(self.echoprime, device)
        biomedclip = None if self.biomedclip is None else BiomedCLIP.load(self.biomedclip, device)
        return views, biomedclip


NO_GATES = Gates()
