"""The grid that networks see: from a case and its masks there, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor, nn

from medfm_rl.errors import DataError
from medfm_rl.types import Case, FloatArray, Geometry, LabelMap, LabelSchema


@dataclass(frozen=True, eq=False)
class Sample:
    """A preprocessed case, and what it takes to bring a result back to the case's own grid.

    Attributes:
        image: `(C, *S')` float32, the network's input.
        case_id: Name of the case.
        patient_id: Patient of the case.
        native_shape: Size of the case's own grid, `(*S)`.
        geometry: The case's own grid in space.
    """

    image: Tensor
    case_id: str
    patient_id: str
    native_shape: tuple[int, ...]
    geometry: Geometry


class CaseGrid(nn.Module, ABC):
    """Brings images and masks to the grid of networks, and maps back to that of the image.

    Every segmenter does (`SegmenterAdapter`). A judge of masks needs no more than this; whoever can also say how
    probable a mask is has an `opinion`.

    Attributes:
        schema: Names and file integers of the structures.
        patch_size: Grid that the network sees at once, in the axes of a sample.
        in_channels: C.
        by_slices: Whether a 2-D segmenter takes volumes too.
    """

    by_slices: ClassVar[bool] = False
    schema: LabelSchema
    patch_size: tuple[int, ...]
    in_channels: int

    @abstractmethod
    def preprocess(self, case: Case) -> Sample:
        """The tool's own preprocessing.

        Raises:
            DataError: The case has another number of channels or axes than the segmenter takes (`conform` says so).
        """

    def conform(self, case: Case) -> Case:
        """The case as the segmenter takes it: where it takes grey images, one in colours that are all equal is grey.

        Raises:
            DataError: The case has another number of channels or axes.
        """
        axes, wanted = len(case.shape), len(self.patch_size)
        if axes != wanted and not (self.by_slices and axes > wanted):
            remedy = "give volumes" if wanted > axes else "give images of one plane each"
            raise DataError(f"case {case.case_id}: the image is {axes}-D and the segmenter {wanted}-D; {remedy}")
        channels, taken = case.image.shape[0], self.intensity_channels
        if channels == taken:
            return case
        if taken == 1 and _is_grey(case.image):
            return replace(case, image=case.image[:1])
        remedy = (
            "write it as a grey image (colours that are all equal are taken for grey, and here they differ), or, "
            "where colour is what tells the structures apart, take a segmenter of 3 channels (in_channels: 3)"
            if taken == 1 and channels in (3, 4)
            else "a file per channel (CASE_0000, CASE_0001) is read with layout nnunet"
        )
        raise DataError(
            f"case {case.case_id}: the image has {channels} channels and the segmenter takes {taken}; {remedy}"
        )

    @abstractmethod
    def preprocess_labels(self, labels: LabelMap, sample: Sample) -> Tensor:
        """A mask `(*S)` of the case on the grid of its sample, `(*S')` uint8, for training with known masks."""

    @abstractmethod
    def restore_map(self, values: Tensor, sample: Sample) -> FloatArray:
        """A map of real values `(*S')`, such as a reward map, on the case's own grid `(*S)`."""

    def opinion(self, sample: Sample) -> Tensor | None:
        """Logits `(K, *S')` of a segmenter that masks can be compared with; None where there is none to be asked."""
        del sample
        return None

    @torch.no_grad()
    def own_estimate(self, image: Tensor, action: Tensor) -> Tensor | None:
        """What the tool itself thinks of each structure of a mask; None where it has no opinion.

        Args:
            image: Image of a sample, `(C, *S')`.
            action: The mask on its grid, `(*S')`, class indices, whatever made it.

        Returns:
            `(K - 1,)` in [0, 1]; 0 for a structure that the mask lacks.
        """
        del image, action
        return None

    @property
    def intensity_channels(self) -> int:
        """How many of the first channels are grey values; those after them tell something else, such as boxes.

        Only these may take another appearance, and only these are shown to reward networks.
        """
        return self.in_channels

    @property
    def device(self) -> torch.device:
        """Where parameters and buffers are. A frozen script has none, its constants stay on the CPU."""
        return next((tensor.device for tensor in chain(self.parameters(), self.buffers())), torch.device("cpu"))


def _is_grey(image: FloatArray) -> bool:
    """Whether an image `(C, *S)` has three equal colours, with an opacity that says nothing or none."""
    if len(image) not in (3, 4):
        return False
    return bool((image[:3] == image[0]).all()) and all((opacity == opacity.flat[0]).all() for opacity in image[3:])
