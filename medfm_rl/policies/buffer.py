"""A rollout buffer that keeps maps where stable-baselines3 keeps numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from stable_baselines3.common.buffers import RolloutBuffer
from torch import Tensor


@dataclass(frozen=True, eq=False)
class DenseRollout:
    """A part of a rollout; all on the buffer's device.

    Attributes:
        of: Images of the minibatch, in all processes.
        rows: Which entries of the buffer these are, `(M,)`.
        images: `(M, C, *S)`.
        actions: `(M, *S)` uint8.
        log_probs: `(M, *S)`, of the actions when they were drawn.
        rewards: Reward maps `(M, *S)`, or None where no critic learns them.
        advantages: `(M, *S)`.
        reference_log_probs: `(M, K, *S)` of the reference policy, or None where no KL term needs them.
    """

    of: int
    rows: Tensor
    images: Tensor
    actions: Tensor
    log_probs: Tensor
    rewards: Tensor | None
    advantages: Tensor
    reference_log_probs: Tensor | None

    def split(self, size: int) -> list[DenseRollout]:
        """Parts of so many images; itself where it has no more, and nothing where it has none."""
        if len(self.rows) <= size:
            return [self] if len(self.rows) else []
        return [self.part(slice(start, start + size)) for start in range(0, len(self.rows), size)]

    def part(self, part: slice | Tensor) -> DenseRollout:
        """Some of the images: views of the tensors for a slice, and copies for rows."""
        return DenseRollout(
            self.of,
            self.rows[part],
            self.images[part],
            self.actions[part],
            self.log_probs[part],
            None if self.rewards is None else self.rewards[part],
            self.advantages[part],
            None if self.reference_log_probs is None else self.reference_log_probs[part],
        )


class DenseRolloutBuffer(RolloutBuffer):
    """Images, actions, log-probabilities, rewards and advantages of a rollout, pixel by pixel.

    Episodes have one step, so the return of a pixel is its reward and generalised advantage estimation reduces to
    advantage = reward - baseline.

    Where several processes share a rollout, each keeps its own images, and gets those of every minibatch.

    A rollout of one step that is learned from as a whole is not copied: large patches leave no room for that.
    """

    def reset(self) -> None:
        # The rollout before would lie in the memory beside the next one.
        self._joined: DenseRollout | None = None
        self._steps: list[dict[str, Tensor | None]] = []
        self._places: list[Tensor] = []
        self._count = 0
        self.pos = 0
        self.full = False

    def add(  # type: ignore[override]
        self,
        images: Tensor,
        actions: Tensor,
        log_probs: Tensor,
        rewards: Tensor | None,
        advantages: Tensor | None,
        reference_log_probs: Tensor | None,
        own: slice = slice(None),
    ) -> None:
        """Adds one step of all environments, or of some.

        Args:
            images: `(n_envs, C, *S)`, as the others of those that are added.
            actions: `(n_envs, *S)`.
            log_probs: `(n_envs, *S)`.
            rewards: `(n_envs, *S)`, or None where no critic learns them.
            advantages: `(n_envs, *S)`, or None where a critic will tell (`set_advantages`).
            reference_log_probs: `(n_envs, K, *S)` or None.
            own: Of which environments they are.
        """
        self._places.append(self._count + torch.arange(self.n_envs)[own])
        self._count += self.n_envs
        self._steps.append(
            {
                "images": images,
                "actions": actions.to(torch.uint8),
                "log_probs": log_probs,
                "rewards": rewards,
                "advantages": torch.full_like(log_probs, torch.nan) if advantages is None else advantages,
                "reference_log_probs": reference_log_probs,
            }
        )
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full = True
            self._join()

    def set_advantages(self, rows: Tensor, advantages: Tensor) -> None:
        """Fills in the advantages of some entries."""
        self._whole.advantages[rows] = advantages

    def get(self, batch_size: int | None = None, generator: torch.Generator | None = None) -> Iterator[DenseRollout]:  # type: ignore[override]
        """The whole rollout in minibatches: in order where one is enough, shuffled otherwise.

        Of each, the images that are here; there may be none.
        """
        rollout, count = self._whole, self._count
        places = torch.cat(self._places)
        entries = torch.full((count,), -1)
        entries[places] = torch.arange(len(places))
        if batch_size is None or batch_size >= count:
            order = torch.arange(count)
        else:
            order = torch.randperm(count, generator=generator)
        for rows in order.split(batch_size or count):
            chosen = entries[rows]
            selected = chosen[chosen >= 0].to(rollout.rows.device)
            # All of them are in order; a slice of them is a view, and an index would be a copy.
            place = slice(None) if len(rows) == count else selected
            yield replace(rollout.part(place), of=len(rows))

    @property
    def _whole(self) -> DenseRollout:
        if self._joined is None:
            raise RuntimeError("the rollout is not complete")
        return self._joined

    def _join(self) -> None:
        def joined(name: str) -> Any:
            parts = [part for step in self._steps if (part := step[name]) is not None]
            return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else None

        images: Tensor = joined("images")
        self._joined = DenseRollout(
            self._count,
            torch.arange(len(images), device=images.device),
            images,
            joined("actions"),
            joined("log_probs"),
            joined("rewards"),
            joined("advantages"),
            joined("reference_log_probs"),
        )
        self._steps = []
