"""BiomedCLIP, where the user has it: another look at whether a case is from the known domain."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medfm_rl.adapters.checkpoints import load_strictly, read_state
from medfm_rl.data.files import hash_file
from medfm_rl.errors import DataError, MissingExtraError, ModelError
from medfm_rl.quality.picture_values import LARGEST, in_bytes, in_colours
from medfm_rl.types import Case, FloatArray

_TRUNK: Final = "visual.trunk."
_PROJECTION: Final = "visual.head.proj.weight"
_SIZE: Final = 224
_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION: Final = (0.26862954, 0.26130258, 0.27577711)


class BiomedCLIP:
    """The image encoder of BiomedCLIP (Zhang et al., arXiv 2303.00915), a ViT-B/16 of timm and a projection.

    Its text encoder is not asked and not loaded. The weights (MIT licence, 784 MB, `open_clip_pytorch_model.bin`) are
    the user's; nothing is downloaded.

    Args:
        trunk: Images `(B, 3, 224, 224)` to features `(B, N)`.
        projection: `(512, N)`.
        weights_hash: SHA-256 of the file, which a quality model remembers.
        device: Where it runs.
    """

    def __init__(
        self, trunk: nn.Module, projection: Tensor, weights_hash: str, device: torch.device | None = None
    ) -> None:
        self.device = device or torch.device("cpu")
        self.trunk = trunk.eval().requires_grad_(False).to(self.device)
        self.projection = projection.detach().float().to(self.device)
        self.weights_hash = weights_hash

    @classmethod
    def load(cls, path: Path, device: torch.device | None = None) -> BiomedCLIP:
        """Reads `open_clip_pytorch_model.bin`.

        Raises:
            ModelError: It is missing, damaged or another network's.
            MissingExtraError: timm is not installed.
        """
        state, _ = read_state(path)
        if _PROJECTION not in state:
            raise ModelError(f"{path}: not BiomedCLIP's open_clip_pytorch_model.bin, there is no {_PROJECTION} in it")
        trunk = _trunk()
        load_strictly(
            trunk,
            {name.removeprefix(_TRUNK): value for name, value in state.items() if name.startswith(_TRUNK)},
            path,
        )
        return cls(trunk, state[_PROJECTION], hash_file(path), device)

    @torch.no_grad()
    def embed(self, case: Case) -> npt.NDArray[np.float64]:
        """The embedding of an image, `(512,)` of length 1.

        Raises:
            DataError: It is a volume.
        """
        if len(case.shape) != 2:
            raise DataError(f"case {case.case_id}: the image is {len(case.shape)}-D; BiomedCLIP takes 2-D images")
        features = self.trunk(_prepared(case.image)[None].to(self.device))
        embedding = F.normalize(features.float() @ self.projection.T, dim=1)[0]
        return embedding.cpu().double().numpy()


def _prepared(image: FloatArray) -> Tensor:
    """An image `(C, H, W)` as open_clip shows it to BiomedCLIP: the middle square of the shorter side, 224 pixels."""
    shades = in_colours(in_bytes(image)) / LARGEST
    height, width = shades.shape[1:]
    scale = _SIZE / min(height, width)
    size = (max(_SIZE, round(height * scale)), max(_SIZE, round(width * scale)))
    shown = F.interpolate(shades[None], size=size, mode="bicubic", align_corners=False, antialias=True)[0].clamp(0, 1)
    top, left = (size[0] - _SIZE) // 2, (size[1] - _SIZE) // 2
    square = shown[:, top : top + _SIZE, left : left + _SIZE]
    return (square - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_DEVIATION)[:, None, None]


def _trunk() -> nn.Module:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise MissingExtraError("BiomedCLIP needs timm: pip install 'medfm-rl[biomedclip]'") from error
    trunk: nn.Module = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=0)
    return trunk
