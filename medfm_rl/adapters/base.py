"""What the rest of the package asks of a segmenter."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from medfm_rl.types import Case, FloatArray, Geometry, LabelMap, LabelSchema, Prompts

Scope = Literal["all", "norm", "decoder"]


@dataclass(frozen=True, eq=False)
class Sample:
    """A preprocessed case, and what it takes to bring a result back to the case's own grid.

    Attributes:
        image: `(C, *S')` float32, the network's input.
        case_id: Of the case.
        patient_id: Of the case.
        native_shape: Size of the case's own grid, `(*S)`.
        geometry: The case's own grid in space.
    """

    image: Tensor
    case_id: str
    patient_id: str
    native_shape: tuple[int, ...]
    geometry: Geometry


class SegmenterAdapter(nn.Module, ABC):
    """A segmenter as a policy: images to differentiable logits, with the tool's own preprocessing and format.

    The adapter owns the parameters. Classes are exclusive unless an adapter says otherwise: pi(action / image) is the
    softmax of the logits, pixel by pixel. `check_adapter` tests whether an implementation keeps these promises.

    Attributes:
        schema: Names and file integers of the structures.
        patch_size: Grid that the network sees at once, `(*S')`.
        in_channels: C.
    """

    schema: LabelSchema
    patch_size: tuple[int, ...]
    in_channels: int

    @abstractmethod
    def preprocess(self, case: Case) -> Sample:
        """The tool's own preprocessing.

        Raises:
            DataError: The case has another number of channels or axes than the segmenter takes.
        """

    @abstractmethod
    def preprocess_labels(self, labels: LabelMap, sample: Sample) -> Tensor:
        """A mask `(*S)` of the case on the grid of its sample, `(*S')` uint8, for training with known masks."""

    @abstractmethod
    def forward(self, images: Tensor, prompts: Prompts | None = None) -> Tensor:
        """Logits `(B, K, *S')` before the softmax, differentiable, of preprocessed images `(B, C, *S')`.

        In evaluation mode the logits of an image do not depend on its batch-mates.
        """

    @abstractmethod
    def restore(self, logits: Tensor, sample: Sample) -> LabelMap:
        """Class indices `(*S)` on the case's own grid from the logits `(K, *S')` of its sample."""

    @abstractmethod
    def restore_map(self, values: Tensor, sample: Sample) -> FloatArray:
        """A map of real values `(*S')`, such as a reward map, on the case's own grid `(*S)`."""

    @abstractmethod
    def trainable(self, scope: Scope) -> dict[str, Parameter]:
        """Parameters by name that fine-tuning may change; each of them receives a gradient from the logits.

        Raises:
            ModelError: The segmenter has no such part.
        """

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Writes the segmenter in the tool's own format into a new folder, whole or not at all.

        Raises:
            DataError: The folder exists and is not empty, or cannot be written.
        """

    @torch.no_grad()
    def segment(self, case: Case) -> LabelMap:
        """Class indices `(*S)` of a case on its own grid."""
        sample = self.preprocess(case)
        was_training = self.training
        self.eval()
        # A frozen script has no parameters; it is loaded on the CPU.
        device = next((parameter.device for parameter in self.parameters()), torch.device("cpu"))
        logits = self(sample.image[None].to(device))[0]
        self.train(was_training)
        return self.restore(logits.cpu(), sample)
