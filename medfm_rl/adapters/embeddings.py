"""Embeddings of images, kept for the next time that the same image is asked for."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from torch import Tensor

_AT_ONCE = 4
"""Images that are encoded together: attention over 4096 tokens takes 1 GB of an image (MedSAM)."""


class EmbeddingCache:
    """Keeps what an encoder that does not learn made of the last images.

    Inner epochs of PPO and steps of test-time optimisation ask for the same images again and again. Images are known by
    their content, so whoever asks need not know of the cache; copies of a segmenter start with an empty one.

    Args:
        least: Images to keep; those of the last call are kept in any case.
    """

    def __init__(self, least: int = 32) -> None:
        self.least = least
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._maker: Hashable = None

    def of(self, images: Tensor, encode: Callable[[Tensor], Tensor], maker: Hashable) -> Tensor:
        """Embeddings `(B, ...)` of images `(B, ...)`, without a gradient.

        Args:
            images: The images.
            encode: Makes embeddings of those that are not kept, each once.
            maker: Changes whenever `encode` would give something else; then nothing that was kept counts.
        """
        if maker != self._maker:
            self._kept.clear()
            self._maker = maker
        keys = [hashlib.sha256(image.detach().cpu().contiguous().numpy().tobytes()).digest() for image in images]
        new = {key: row for row, key in enumerate(keys) if key not in self._kept}
        if new:
            rows = torch.tensor(list(new.values())).split(_AT_ONCE)
            made = torch.cat([encode(images[some.to(images.device)]).detach() for some in rows])
            self._kept.update((key, embedding.clone()) for key, embedding in zip(new, made, strict=True))
        for key in keys:
            self._kept.move_to_end(key)
        embeddings = torch.stack([self._kept[key] for key in keys])
        while len(self._kept) > max(self.least, len(set(keys))):
            self._kept.popitem(last=False)
        return embeddings

    def __deepcopy__(self, memo: dict[int, Any]) -> EmbeddingCache:
        return EmbeddingCache(self.least)


def version_of(tensors: Iterable[Tensor], device: torch.device) -> Hashable:
    """Changes whenever an encoder of these weights and buffers gives something else on a device."""
    precision = (device, torch.is_autocast_enabled(device.type))
    # The version of a tensor counts what was written to it.
    return (precision, *((tensor.data_ptr(), tensor._version) for tensor in tensors))
