"""The reward of an action by what is known of its case beside the image: reports, neighbours in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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

    One informant after the other is given its share, and what was there before the rest. Words are computed and not
    learned: a policy that exploits the floor finds no fault in them to exploit.

    Attributes:
        floor: Images `(B, C, *S)` and actions `(B, *S)` to maps in [0, 1]: reward networks.
        informants: Who is asked.
    """

    floor: Callable[[Tensor, Tensor], Tensor]
    informants: Sequence[Informant]

    def rewards(self, images: Tensor, actions: Tensor, rows: Sequence[int]) -> Tensor:
        """Reward maps `(B, *S)` in [0, 1] of actions `(B, *S)` on the images of these rows.

        An image of which nobody knows anything has the floor alone.
        """
        maps = self.floor(images, actions).clone()
        for place, (action, row) in enumerate(zip(actions.cpu(), rows, strict=True)):
            for informant in self.informants:
                said = informant.says(action, row)
                if said is not None:
                    maps[place] = (1 - informant.share) * maps[place] + informant.share * said.to(maps)
        return maps
