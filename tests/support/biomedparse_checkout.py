"""A checkout with the interface of BiomedParse v2's and a network of a few thousand parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medfm_rl.adapters.biomedparse import build_network
from medfm_rl.settings import BiomedParseDescription
from medfm_rl.types import Case, Geometry

_2D = """\
defaults:
  - biomedparse_3D
  - _self_
_target_: src.model.network.Network
"""
_3D = """\
_target_: src.model.network.Network
convolute_outputs: {convolute}
edge_queries: 2
backbone:
  _target_: src.model.network.Backbone
  width: 4
sem_seg_head:
  _target_: src.model.network.Head
  predictor:
    _target_: src.model.network.Predictor
    width: 4
    num_queries: 5
    boltzmann_sampling: {{mask_threshold: 1.1, do_boltzmann: true, sample_ratio: 0.1, base_temp: 1}}
    language_encoder:
      _target_: src.model.network.LanguageEncoder
      width: 4
      tokenizer:
        _target_: src.model.network.load_tokenizer
        pretrained_model_name_or_path: somewhere/on-the-hub
        use_fast: false
"""
_NETWORK = '''
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from utils import tile


def load_tokenizer(pretrained_model_name_or_path, use_fast, local_files_only=False):
    if not local_files_only:
        raise ConnectionError("asked the hub")
    vocabulary = Path(pretrained_model_name_or_path) / "vocabulary.txt"
    if not vocabulary.exists():
        raise OSError(f"cannot find {pretrained_model_name_or_path} in the cached files")
    words = vocabulary.read_text().split()
    return lambda text: [1 + words.index(word) if word in words else 0 for word in text.lower().split()]


class Backbone(nn.Module):
    calls = []

    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, stride=4)
        self.norm = nn.GroupNorm(2, width)
        self.down = nn.ModuleList([nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(3)])

    def forward(self, image):
        self.calls.append(len(image))
        maps = {"res2": self.norm(self.stem(image))}
        for index, layer in enumerate(self.down, 3):
            maps[f"res{index}"] = torch.relu(layer(maps[f"res{index - 1}"]))
        return maps


class LanguageEncoder(nn.Module):
    calls = []

    def __init__(self, width, tokenizer):
        super().__init__()
        self.tokenizer = tokenizer
        self.table = nn.Embedding(32, width)

    def encode(self, text):
        self.calls.append(text)
        return self.table(torch.tensor(self.tokenizer(text)))


class Predictor(nn.Module):
    def __init__(self, width, num_queries, boltzmann_sampling, language_encoder):
        super().__init__()
        self.language_encoder = language_encoder
        self.num_queries = num_queries
        self.boltzmann_sampling = boltzmann_sampling
        self.queries = nn.Embedding(num_queries, width)
        self.mask_embed = nn.Linear(width, width)
        self.classifier = nn.Linear(width, 1)
        self.class_embed = nn.Parameter(torch.zeros(width, width))

    def forward(self, x, mask_features, extra):
        text = extra["grounding_tokens"].mean(dim=0)
        seen = sum(level.mean(dim=(2, 3)) for level in x)
        queries = self.mask_embed(self.queries.weight[None] + text[:, None])
        masks = torch.einsum("bqc,bchw->bqhw", queries, mask_features)
        if self.boltzmann_sampling["do_boltzmann"]:
            masks = masks + torch.rand_like(masks)
        return {"pred_gmasks": masks, "object_existence": self.classifier(text + seen), "pred_captions": None}


class Head(nn.Module):
    def __init__(self, predictor):
        super().__init__()
        self.predictor = predictor

    def encode_prompts(self, text, eval=True):
        prompts = [one.split("[SEP]") for one in text]
        flat = [prompt for group in prompts for prompt in group]
        tokens = [self.predictor.language_encoder.encode(prompt) for prompt in flat]
        return {
            "grounding_tokens": nn.utils.rnn.pad_sequence(tokens),
            "class_emb": torch.stack([token.mean(dim=0) for token in tokens]),
            "num_prompts": torch.tensor([len(group) for group in prompts]),
            "text": flat,
        }

    def forward(self, image_features, prompt_features):
        prompts = int(prompt_features["num_prompts"][0])
        assert len(prompt_features["num_prompts"]) == len(image_features["res2"])
        levels = [tile(image_features[name], prompts) for name in ("res5", "res4", "res3")]
        return self.predictor(levels, tile(image_features["res2"], prompts), prompt_features)


class Network(nn.Module):
    def __init__(self, backbone, sem_seg_head, edge_queries, convolute_outputs):
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.edge_queries = edge_queries
        self.convolute_outputs = convolute_outputs
        self.register_buffer("pixel_mean", torch.full((1, 3, 1, 1), 116.0))
        self.register_buffer("pixel_std", torch.full((1, 3, 1, 1), 57.0))
        if convolute_outputs:
            self.output_conv = nn.Conv2d(sem_seg_head.predictor.num_queries - edge_queries + 3, 1, 1)

    def convolution_procedure(self, image, masks):
        small = F.interpolate(image, size=masks.shape[2:], mode="bilinear", align_corners=False)
        return self.output_conv(torch.cat([small, masks], dim=1))

    @torch.no_grad()
    def forward(self, image, text):
        """As the tool segments one image of grey values 0 to 255, (1, 1, 512, 512)."""
        words = self.sem_seg_head.encode_prompts(text)
        image = (image.expand(-1, 3, -1, -1) - self.pixel_mean) / self.pixel_std
        found = self.sem_seg_head(self.backbone(image), words)
        masks = found["pred_gmasks"][:, : -self.edge_queries].mean(dim=1)
        return masks, found["object_existence"][:, 0]
'''
_UTILS = """
def tile(features, prompts):
    return features.repeat_interleave(prompts, dim=0)
"""


def write_checkout(folder: Path, convolute: bool = False) -> Path:
    """A checkout, and `tokenizer` beside it."""
    for name, text in {
        "configs/model/biomedparse_2D.yaml": _2D,
        "configs/model/biomedparse_3D.yaml": _3D.format(convolute=str(convolute).lower()),
        "src/__init__.py": "",
        "src/model/__init__.py": "",
        "src/model/network.py": _NETWORK,
        "utils.py": _UTILS,
        "../tokenizer/vocabulary.txt": "left heart ventricle atrium",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def write_segmenter(folder: Path, checkout: Path, **changes: Any) -> Path:
    """A segmenter folder with random weights in a checkpoint as the tool's training writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "kind": "biomedparse",
        "checkout": f"../{checkout.name}",
        "checkpoint": "biomedparse_v2.ckpt",
        "tokenizer": "../tokenizer",
        "structures": {"LV": 1, "LA": 2},
        "prompts": {"texts": {"LV": "left heart ventricle", "LA": "left atrium"}},
        **changes,
    }
    (folder / "segmenter.json").write_text(json.dumps(content), encoding="utf-8")
    description = BiomedParseDescription.model_validate(
        {**content, "checkout": checkout, "tokenizer": checkout.parent / "tokenizer"}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: Any = build_network(description)
    with torch.no_grad():
        # Both structures are there.
        network.sem_seg_head.predictor.classifier.bias.fill_(3.0)
    state = {f"model.{name}": value for name, value in network.state_dict().items()}
    state["loss_function.cls_loss_fn.pos_weight"] = torch.ones(1)
    torch.save({"state_dict": state, "epoch": 3}, folder / "biomedparse_v2.ckpt")
    return folder


def make_case(shape: tuple[int, int] = (60, 90), scale: float = 255.0) -> Case:
    rows, columns = np.indices(shape)
    image = (np.sin(rows / 9) * np.cos(columns / 7) + 1) / 2 * scale
    return Case("p1", "p1", image[None].astype(np.float32), Geometry.unknown(2))
