"""Which of the things that a network returns are its logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from medfm_rl.adapters.description import DESCRIPTION
from medfm_rl.errors import ModelError

Output = str | int
"""Key of a dictionary, or place in a tuple or list, counted from 0, or from -1 at its end."""


def logits_of(found: Any, output: Output | None) -> Tensor:
    """The logits among what a network returned.

    Args:
        found: A tensor, or a dictionary, tuple or list of such.
        output: Which of them; None where the network returns one tensor.

    Raises:
        ModelError: The output is not there, is no tensor, or is not named among several.
    """
    if output is None:
        if isinstance(found, Tensor):
            return found
        raise ModelError(
            f"the network returns a {type(found).__name__}; say in {DESCRIPTION} which of its outputs are the logits"
            f"{_example(found)}"
        )
    if isinstance(found, Tensor):
        raise ModelError(
            f"{DESCRIPTION} names output {output!r}, and the network returns one tensor; remove the field output"
        )
    chosen = _chosen(found, output)
    if not isinstance(chosen, Tensor):
        raise ModelError(
            f"output {output!r} of the network is a {type(chosen).__name__}, and logits are a tensor; wrap the network "
            "so that it returns them"
        )
    return chosen


def _chosen(found: Any, output: Output) -> Any:
    if isinstance(found, Mapping):
        if output in found:
            return found[output]
        there = ", ".join(map(repr, found)) or "nothing"
    elif isinstance(found, Sequence):
        if isinstance(output, int) and -len(found) <= output < len(found):
            return found[output]
        there = f"{len(found)} by their places, 0 to {len(found) - 1}"
    else:
        there = f"a {type(found).__name__}"
    raise ModelError(f"the network has no output {output!r}, it returns {there}; correct output in {DESCRIPTION}")


def _example(found: Any) -> str:
    if isinstance(found, Mapping) and found:
        return f', such as "output": {_json(next(iter(found)))}'
    return ', such as "output": 0' if isinstance(found, Sequence) else ""


def _json(key: Any) -> str:
    return f'"{key}"' if isinstance(key, str) else str(key)
