"""The reward of an action by what is known of its case beside the image: reports, neighbours in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

from torch import Tensor


class Informant(Protocol):
    """Somebody who knows more of some cases than their image shows."""

    @property
    def share(self) -> float:
        """Of its word in the reward, in [0, 1]."""
        ...

    def says(self, action: Tensor, row: int) -> Tensor | None:
        """Its word on an action.

        Args:
            action: `(*S)` int64, on the CPU.
            row: Of the image in the environment.

        Returns:
            `(*S)` in [0, 1], how likely each pixel is right; None where it knows nothing of this image.
        """
        ...


@dataclass(frozen=True, eq=False)
class InformedReward:
    """Rewards actions by what informants say, and by another reward as a floor.

    An informant who is alone has his share, and the floor the rest. Of several who know something of an image each
    counts by his odds against the floor, share / (1 - share): two with half a share and the floor have a third each.
    Words are computed and not learned: a policy that exploits the floor finds no fault in them to exploit.

    Attributes:
        floor: Images `(B, C, *S)` and actions `(B, *S)` to maps in [0, 1]: reward networks.
        informants: Who is asked.

    Raises:
        ValueError: More than one informant wants all of the reward.
    """

    floor: Callable[[Tensor, Tensor], Tensor]
    informants: Sequence[Informant]

    def __post_init__(self) -> None:
        if sum(informant.share == 1 for informant in self.informants) > 1:
            raise ValueError("one informant at most can have all of the reward")

    def rewards(self, images: Tensor, actions: Tensor, rows: Sequence[int]) -> Tensor:
        """Reward maps `(B, *S)` in [0, 1] of actions `(B, *S)` on the images of these rows.

        An image of which nobody knows anything has the floor alone.
        """
        maps = self.floor(images, actions).clone()
        for place, (action, row) in enumerate(zip(actions.cpu(), rows, strict=True)):
            told = [(informant.share, informant.says(action, row)) for informant in self.informants]
            words = [(share, said) for share, said in told if said is not None]
            others = prod(1 - share for share, _ in words)
            weights = [
                share * prod(1 - other for at, (other, _) in enumerate(words) if at != own)
                for own, (share, _) in enumerate(words)
            ]
            total = others + sum(weights)
            maps[place] *= others / total
            for weight, (_, said) in zip(weights, words, strict=True):
                maps[place] += weight / total * said.to(maps)
        return maps
