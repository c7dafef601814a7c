"""A promptable segmenter of a few parameters for tests: a convolution as encoder, two as decoder, box in, logit out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from medfm_rl.adapters import PromptableAdapter
from medfm_rl.adapters.base import SegmentedFrame
from medfm_rl.adapters.checkpoints import load_strictly, read_checkpoint
from medfm_rl.adapters.kinds import KINDS, SegmenterKind
from medfm_rl.adapters.sam.memory import prompted_frame
from medfm_rl.settings import PromptableDescription
from medfm_rl.types import Clip

SIZE = 32


class TinyNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.ReLU())
        self.decoder = nn.Sequential(nn.Conv2d(7, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 1, 1))
        self.quality_head = nn.Linear(1, 1)


class TinyPromptable(PromptableAdapter):
    """Kind `litemedsam`, so that settings and folders of that kind lead to it where a test puts it in its place."""

    kind: ClassVar[str] = "litemedsam"
    frozen_prefixes: ClassVar[tuple[str, ...]] = ("module.quality_head.",)
    decoder_prefixes: ClassVar[tuple[str, ...]] = ("module.decoder.",)
    encoded: ClassVar[list[int]] = []
    """Images of each call of an encoder, of whatever copy."""

    def __init__(self, description: PromptableDescription) -> None:
        super().__init__(description)
        self.patch_size = (SIZE, SIZE)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.module = TinyNetwork()

    @classmethod
    def build(cls, description: PromptableDescription, checkpoint: Path | None) -> Self:
        adapter = cls(description)
        if checkpoint is not None:
            load_strictly(adapter.module, read_checkpoint(checkpoint), checkpoint)
        return adapter

    def normalise(self, image: Tensor, where: str) -> Tensor:
        return (image - image.mean()) / image.std()

    def encode(self, images: Tensor) -> Tensor:
        self.encoded.append(len(images))
        embeddings: Tensor = self.module.encoder(images)
        return embeddings

    def decode(self, embeddings: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        index = torch.arange(SIZE, device=boxes.device)
        across = (index >= boxes[..., :1]) & (index <= boxes[..., 2:3])
        down = (index >= boxes[..., 1:2]) & (index <= boxes[..., 3:])
        inside = (down[..., :, None] & across[..., None, :]).flatten(0, 1)[:, None].to(embeddings)
        features = torch.cat([embeddings.repeat_interleave(boxes.shape[1], dim=0), inside], dim=1)
        z = self.module.decoder(features)[:, 0] + 4 * inside[:, 0] - 2
        estimates = torch.sigmoid(self.module.quality_head(z.mean(dim=(1, 2))[:, None]))
        return z.unflatten(0, boxes.shape[:2]), estimates.unflatten(0, boxes.shape[:2])[..., 0]

    def original_state(self) -> dict[str, Tensor]:
        return dict(self.module.state_dict())

    @property
    def checkpoint_name(self) -> str:
        return "tiny.pth"


class TinyOverTime(TinyPromptable):
    """Segments clips as a whole: every frame has the mask of the first one with boxes, moved down by its place."""

    @property
    def segments_clips(self) -> bool:
        return True

    def segment_clip(self, clip: Clip) -> Iterator[SegmentedFrame]:
        start = prompted_frame(self.prompts, clip)
        sample = self.preprocess(clip.frame(start))
        logits = self.predict_logits(sample)
        for index in reversed(range(len(clip.frames))):
            yield SegmentedFrame(index, sample, logits.roll(index, dims=1))


def tiny_kind(adapter: type[TinyPromptable] = TinyPromptable) -> SegmenterKind[Any]:
    """Kind `litemedsam` with a tiny network in the place of the tool."""
    return replace(KINDS["litemedsam"], load=lambda settings: adapter.load(settings.folder, settings.prompts))


def write_tiny(folder: Path, prompts: dict[str, Any], structures: dict[str, int]) -> Path:
    folder.mkdir(parents=True)
    content = {"kind": "litemedsam", "structures": structures, "prompts": prompts}
    (folder / "segmenter.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
