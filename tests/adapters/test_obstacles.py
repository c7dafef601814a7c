"""What one pass of the network finds before a segmenter is adapted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.promptable_models import TinyPromptable
from torch import Tensor, nn

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.adapters.obstacles import find_obstacles
from medfm_rl.errors import DataError, ModelError
from medfm_rl.settings import PreprocessingSettings, PromptableDescription
from medfm_rl.types import Case, Geometry, LabelSchema

CPU = torch.device("cpu")


class Ending(nn.Module):
    """A 1 x 1 convolution to some classes, and what is made of its output."""

    def __init__(self, ending: Callable[[Tensor], Any], classes: int = 4, channels: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(channels, classes, 1)
        self.ending = ending

    def forward(self, images: Tensor) -> Any:
        return self.ending(self.conv(images))


def adapter(schema: LabelSchema, module: nn.Module, channels: int = 1) -> TorchModuleAdapter:
    return TorchModuleAdapter(module, schema, PreprocessingSettings(size=(16, 24)), channels).eval()


def test_a_network_that_keeps_its_promises_has_no_obstacle(schema: LabelSchema) -> None:
    assert find_obstacles(adapter(schema, Ending(lambda z: z)), CPU) == ()


@pytest.mark.parametrize("ending", [lambda z: 0.1 + 0.01 * z.tanh(), lambda z: z.relu().clamp_max(1)])
def test_numbers_between_0_and_1_are_no_obstacle(schema: LabelSchema, ending: Callable[[Tensor], Tensor]) -> None:
    assert find_obstacles(adapter(schema, Ending(ending)), CPU) == ()


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Ending(lambda z: z, classes=2), ["(1, 2, 16, 24), (1, 4, 16, 24) are needed", "its 2 outputs", "schema"]),
        (Ending(lambda z: z[..., ::2, ::2]), ["(1, 4, 8, 12)", "resample them to the size of the image"]),
        (Ending(lambda z: [z, z]), ["returns a list", '"output": 0']),
        (Ending(lambda z: (z, z)), ["returns a tuple", '"output": 0']),
        (Ending(lambda z: {"out": z}), ["returns a dict", '"output": "out"']),
        (Ending(lambda z: z.softmax(dim=1)), ["probabilities", "before the softmax"]),
        (Ending(lambda z: z.sigmoid()), ["probabilities of a sigmoid", "what comes before it"]),
        (Ending(lambda z: z / 0), ["NaN or infinite"]),
        (Ending(lambda z: z.detach()), ["no gradient reaches any of 2 parameters", "no_grad and detach"]),
        (Ending(lambda z: z, channels=3), ["the network fails on an image of shape (1, 1, 16, 24)", "3 channels"]),
    ],
)
def test_a_network_that_is_no_policy_is_named_with_what_to_do(
    schema: LabelSchema, module: nn.Module, words: list[str]
) -> None:
    (obstacle,) = find_obstacles(adapter(schema, module), CPU)
    for word in words:
        assert word in obstacle


def test_the_pass_changes_nothing_and_says_the_same_again(tiny_unet: TorchModuleAdapter) -> None:
    before = {name: value.clone() for name, value in tiny_unet.state_dict().items()}
    assert find_obstacles(tiny_unet, CPU) == find_obstacles(tiny_unet, CPU) == ()
    assert all(torch.equal(value, before[name]) for name, value in tiny_unet.state_dict().items())
    assert all(parameter.grad is None for parameter in tiny_unet.parameters())


def test_a_prompted_segmenter_is_tried_with_a_box_for_each_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = {"kind": "fixed", "boxes": {"LV": [0.1, 0.1, 0.2, 0.2]}}
    description = {"kind": "litemedsam", "structures": {"LV": 1, "LA": 2}, "prompts": prompts}
    tiny = TinyPromptable(PromptableDescription.model_validate(description)).eval()
    seen: list[Tensor] = []
    decode = TinyPromptable.decode

    def watched(self: TinyPromptable, embeddings: Tensor, boxes: Tensor) -> Tensor:
        seen.append(boxes)
        return decode(self, embeddings, boxes)

    monkeypatch.setattr(TinyPromptable, "decode", watched)
    assert find_obstacles(tiny, CPU) == ()
    # The middle half of 32 x 32 pixels, for both structures.
    (boxes,) = seen
    assert torch.allclose(boxes, torch.tensor([8.0, 8.0, 23.0, 23.0]).expand(1, 2, 4), atol=1)


@pytest.mark.parametrize("several", [list, tuple])
def test_several_outputs_are_an_error_of_ours_wherever_the_network_runs(
    schema: LabelSchema, several: Callable[[list[Tensor]], Any]
) -> None:
    segmenter = adapter(schema, Ending(lambda z: several([z, z])))
    for size in ((16, 24), (32, 48)):
        with pytest.raises(ModelError, match=r'returns a .*; say in .* such as "output": 0'):
            segmenter(torch.rand(1, 1, *size))


# The channels of an image


def colour_case(colours: list[np.ndarray]) -> Case:
    return Case("p1_a", "p1", np.stack(colours).astype(np.float32), Geometry.unknown(2))


def test_colours_that_are_all_equal_are_grey(schema: LabelSchema) -> None:
    grey = np.random.default_rng(0).integers(0, 255, (20, 30)).astype(np.float32)
    opaque = np.full_like(grey, 255)
    segmenter = adapter(schema, Ending(lambda z: z))
    alone = segmenter.preprocess(colour_case([grey])).image
    assert torch.equal(segmenter.preprocess(colour_case([grey] * 3)).image, alone)
    assert torch.equal(segmenter.preprocess(colour_case([grey] * 3 + [opaque])).image, alone)
    three = adapter(schema, Ending(lambda z: z, channels=3), channels=3)
    assert three.preprocess(colour_case([grey] * 3)).image.shape[0] == 3


def test_colours_that_differ_in_one_pixel_are_refused_with_what_to_do(schema: LabelSchema) -> None:
    grey = np.random.default_rng(0).integers(0, 254, (20, 30)).astype(np.float32)
    other = grey.copy()
    other[3, 4] += 1
    segmenter = adapter(schema, Ending(lambda z: z))
    for colours in ([grey, grey, other], [grey, grey, grey, other]):
        with pytest.raises(DataError, match=r"case p1_a: the image has . channels and the segmenter takes 1; write it"):
            segmenter.preprocess(colour_case(colours))
    with pytest.raises(DataError, match="2 channels and the segmenter takes 1; a file per channel"):
        segmenter.preprocess(colour_case([grey, grey]))
