"""Networks that give probabilities where logits are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.adapters.obstacles import find_obstacles
from medfm_rl.adapters.probabilities import SIGMOID, SOFTMAX, probabilities_in
from medfm_rl.data.notices import _log_once
from medfm_rl.settings import PreprocessingSettings
from medfm_rl.types import Case, Geometry, LabelSchema

Ending = Callable[[Tensor], Tensor]


class Network(nn.Module):
    def __init__(self, ending: Ending) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 1)
        self.ending = ending

    def forward(self, images: Tensor) -> Tensor:
        return self.ending(self.conv(images))


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).sigmoid()


ENDINGS: list[tuple[Ending, str | None]] = [
    (lambda z: z, None),
    (lambda z: 0.1 + 0.01 * z.tanh(), None),
    (lambda z: z.log_softmax(dim=1), None),
    (lambda z: z.softmax(dim=1), SOFTMAX),
    (lambda z: z.half().softmax(dim=1), SOFTMAX),
    (lambda z: (1000 * z).softmax(dim=1), SOFTMAX),
    (lambda z: z.sigmoid(), SIGMOID),
]


@pytest.fixture(autouse=True)
def _nothing_said_yet() -> Iterator[None]:
    _log_once.cache_clear()
    yield
    _log_once.cache_clear()


@pytest.mark.parametrize(("ending", "said"), ENDINGS)
@pytest.mark.parametrize("size", [(16, 24), (40, 24)])
def test_a_mask_from_probabilities_is_the_same_and_the_network_is_named(
    schema: LabelSchema, ending: Ending, said: str | None, size: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    settings = PreprocessingSettings(size=(16, 24), grid="native")
    image = np.random.default_rng(0).normal(size=(1, *size)).astype(np.float32)
    case = Case("c", "p", image, Geometry.unknown(2))
    given_, plain = (TorchModuleAdapter(Network(end), schema, settings).eval() for end in (ending, lambda z: z))
    mask = given_.segment(case)
    if size == (16, 24):
        assert np.array_equal(mask, plain.segment(case))
    given_.segment(case)
    warnings = [record.getMessage() for record in caplog.records]
    if said is None:
        assert not warnings
    else:
        (warning,) = warnings
        assert said in warning
        assert "adapt refuses this segmenter" in warning
        assert find_obstacles(given_, torch.device("cpu")) == (said,)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("frozen", [False, True])
def test_a_script_that_ends_in_a_sigmoid_is_recognised(frozen: bool) -> None:
    script = torch.jit.script(Scripted().eval())
    network = torch.jit.freeze(script) if frozen else script
    images = torch.rand(1, 1, 8, 8)
    for _ in range(3):
        with torch.no_grad():
            logits = network(images)
        assert probabilities_in(logits, network, images) == SIGMOID


@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.integers(2, 6))
def test_no_honest_logits_are_taken_for_probabilities(seed: int, scale: float, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(1, classes, 8, 8, generator=generator)
    for honest in (logits, logits.abs(), logits.relu(), logits.abs() / logits.abs().max()):
        assert probabilities_in(honest, nn.Identity(), honest) is None
