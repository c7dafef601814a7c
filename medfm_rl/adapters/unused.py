"""Parameters that the logits of a network of somebody else do not depend on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch.nn import Parameter

from medfm_rl.adapters.base import SegmenterAdapter, noise_patch, without_gradient
from medfm_rl.errors import ModelError


class UnusedParameters:
    """Which parameters of an adapter no gradient reaches: heads of deep supervision, of a loss beside, of another task.

    Their names say nothing in networks that are not known, so one backward pass on noise finds them, at first use.
    Copies of an adapter share what was found.
    """

    def __init__(self) -> None:
        self._names: frozenset[str] | None = None

    def left_out(self, adapter: SegmenterAdapter, parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
        """Those of the parameters that learn.

        Raises:
            ModelError: None do.
        """
        if self._names is None:
            # A copy: the adapter is to be as it was.
            twin = copy.deepcopy(adapter).eval()
            everything = dict(twin.named_parameters())
            self._names = frozenset(without_gradient(twin, everything, noise_patch(twin).to(twin.device)))
        found = {name: value for name, value in parameters.items() if name not in self._names}
        if not found:
            raise ModelError(
                f"no gradient reaches any of {len(parameters)} parameters from the logits; look for no_grad and detach "
                "in the network, and whether it computes its logits from these parameters at all"
            )
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> UnusedParameters:
        return self
