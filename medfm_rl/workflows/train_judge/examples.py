"""What the reward networks of a judge learn from: given masks, masks made of them and of the truth, and the truth."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from medfm_rl.adapters import ImageGrid
from medfm_rl.augmentation.appearance import randomise_appearance
from medfm_rl.progress import Progress
from medfm_rl.reward.actions import ActionRecords
from medfm_rl.reward.corruption import add_blob, drop_structure, warp
from medfm_rl.reward.origins import GROUND_TRUTH, ActionOrigin
from medfm_rl.settings import JudgeSettings
from medfm_rl.types import Case, LabelMap

_GIVEN: Final = "given mask"


@dataclass(frozen=True, eq=False)
class _Masks:
    """What the masks of an image are made from: the given one and the truth `(*S')`, and the classes K."""

    given: Tensor
    truth: Tensor
    classes: int
    generator: torch.Generator


@dataclass(frozen=True)
class _Way:
    """A way to make a mask, and how often it is taken next to the others."""

    weight: float
    make: Callable[[_Masks], Tensor]


# The errors of the tool are what must be judged well; its masks are few, so that they come again, slightly changed.
_WAYS: Final = {
    _GIVEN: _Way(2.0, lambda of: of.given),
    "warped given mask": _Way(3.0, lambda of: warp(of.given, of.generator)),
    "blob": _Way(1.0, lambda of: add_blob(of.given, of.classes, of.generator)),
    "truth": _Way(1.0, lambda of: of.truth),
    "warped truth": _Way(2.0, lambda of: warp(of.truth, of.generator)),
    "dropped": _Way(0.3, lambda of: drop_structure(of.given, of.generator)),
}


def examples_of(
    cases: Iterable[tuple[Case, LabelMap, LabelMap]],
    count: int,
    grid: ImageGrid,
    settings: JudgeSettings,
    generator: torch.Generator,
    progress: Progress,
) -> ActionRecords:
    """Records of D_R: each image in some appearances, with its given mask first and others beside it.

    Args:
        cases: Image, given mask and truth, class indices `(*S)`; they may come one by one.
        count: How many there are.
        grid: The grid of the networks.
        settings: How many.
        generator: A CPU generator.
        progress: Told how far it is.
    """
    kinds, likely = list(_WAYS), torch.tensor([way.weight for way in _WAYS.values()])
    images, actions, references, origins = [], [], [], []
    for done, (case, given, truth) in enumerate(cases, 1):
        sample = grid.preprocess(case)
        masks = _Masks(
            grid.preprocess_labels(given, sample),
            grid.preprocess_labels(truth, sample),
            grid.schema.num_classes,
            generator,
        )
        for look in range(settings.looks):
            shown = sample.image
            if look:
                shown = randomise_appearance(shown[None], None, settings.appearance_strength, generator)[0]
            drawn = torch.multinomial(likely, settings.actions - 1, replacement=True, generator=generator).tolist()
            names = [_GIVEN, *(kinds[index] for index in drawn)]
            made = [masks.given, *(_WAYS[name].make(masks) for name in names[1:])]
            images.append(shown)
            actions.append(torch.stack([mask.to(torch.uint8) for mask in made]))
            references.append(masks.truth.to(torch.uint8))
            origins.append(ActionOrigin(case.case_id, case.patient_id, GROUND_TRUTH, tuple(names)))
        progress("making masks to learn from", done, count)
    truths = torch.stack(references)
    return ActionRecords(torch.stack(images), torch.stack(actions), truths, torch.ones(truths.shape), tuple(origins))
