"""BiomedParse v2, from the user's own checkout: a segmenter that is told in words what to look for."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Final, Self, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from medfm_rl.adapters.base import Scope, SegmenterAdapter, parameters_in_scope
from medfm_rl.adapters.checkpoints import first_line, load_strictly, read_state, save_state
from medfm_rl.adapters.description import DESCRIPTION, read_described, write_described
from medfm_rl.adapters.embeddings import EmbeddingCache, version_of
from medfm_rl.adapters.exclusive import exclusive_logits
from medfm_rl.adapters.grid import Sample
from medfm_rl.data.files import replace_folder_on_success
from medfm_rl.errors import ConfigError, MissingExtraError, ModelError
from medfm_rl.networks import argmax_classes, portable_state
from medfm_rl.settings import BiomedParseDescription, TextPrompts
from medfm_rl.types import Case, FloatArray, LabelMap, LabelSchema, Prompts

CHECKPOINT: Final = "biomedparse.ckpt"
_CONFIGS: Final = ("biomedparse_2D", "biomedparse_3D")
_PACKAGES: Final = ("src", "utils", "inference_utils")
"""Top-level names of the checkout's own modules. Any other project may have the same."""
_TOKENIZER: Final = "sem_seg_head.predictor.language_encoder.tokenizer"
_PREFIX: Final = "model."
_SIZE: Final = 512
_LARGEST: Final = 255.0
_NO_WEIGHTS: Final = ("loss_function.loss_fn.dice_loss.class_weight", "loss_function.cls_loss_fn.pos_weight")
"""Tensors of the training that the tool leaves out when it reads a checkpoint."""


@final
class BiomedParseAdapter(SegmenterAdapter):
    """A network from an image and a few words for each structure to one binary logit for each.

    The tool's network, of which no line is here: `backbone`, `sem_seg_head` and what it does with their answers when it
    segments an image. Every structure has its words; all are asked for at once, and the words are encoded once. Where
    nothing of the backbone learns, what it made of the last images is kept.

    The tool counts a pixel to a structure where the mask's logit z and the logit e of the structure being there at all
    are above 0: the logit here is `min(z, e)`. Classes get logits and become exclusive as with boxes
    (`adapters.exclusive`).

    The decoder samples at random where it looks, in evaluation too. That is switched off: a policy must give the same
    logits each time.

    Args:
        description: Where the checkout is, the structures, their words and the preprocessing.
        module: The tool's network.
    """

    kind: ClassVar[str] = "biomedparse"
    # The words are encoded by a network that stays; `class_embed` and `logit_scale` matter for training alone.
    frozen_prefixes: ClassVar[tuple[str, ...]] = (
        "module.sem_seg_head.predictor.language_encoder.",
        "module.sem_seg_head.predictor.class_embed",
    )
    decoder_prefixes: ClassVar[tuple[str, ...]] = ("module.sem_seg_head.predictor.",)

    def __init__(self, description: BiomedParseDescription, module: torch.nn.Module) -> None:
        super().__init__()
        self.description = description
        self.schema = LabelSchema.from_structures(description.structures)
        self.in_channels = description.channels
        self.patch_size = (_SIZE, _SIZE)
        self.module = module
        self.texts = _texts(description.prompts, self.schema)
        self._kept = EmbeddingCache(8)
        self._shapes: dict[str, torch.Size] = {}
        self._encoded: dict[Hashable, dict[str, Any]] = {}
        sampling = getattr(self._head.predictor, "boltzmann_sampling", None)
        if sampling is not None:
            # A copy: it may be a default that all instances share.
            self._head.predictor.boltzmann_sampling = {**sampling, "do_boltzmann": False}

    @classmethod
    def load(cls, folder: Path, prompts: TextPrompts | None = None) -> Self:
        """Reads a segmenter folder: `segmenter.json`, which names the checkout, and a checkpoint.

        The checkout's code is run: it has to be trusted.

        Args:
            folder: The folder.
            prompts: Words for the structures; None: those that `segmenter.json` gives.

        Raises:
            MissingExtraError: Hydra, which builds the network, is not installed.
            ModelError: A file is missing, is not what its name says, or does not fit the network.
            ConfigError: The words are for a structure that the segmenter does not have.
        """
        description = read_description(folder)
        if prompts is not None:
            description = description.model_copy(update={"prompts": prompts})
        path = folder / description.checkpoint
        adapter = cls(description, build_network(description))
        state, _ = read_state(path)
        own = {name.removeprefix(_PREFIX): value for name, value in state.items()}
        load_strictly(adapter.module, {name: own[name] for name in own if name not in _NO_WEIGHTS}, path)
        return adapter.eval()

    @property
    def _network(self) -> Any:
        return self.module

    @property
    def _head(self) -> Any:
        return self._network.sem_seg_head

    def inference_settings(self) -> Mapping[str, Any]:
        described = self.description.model_dump(mode="json", exclude={"prompts", "checkpoint", "checkout", "tokenizer"})
        return {**super().inference_settings(), **described, "texts": self.texts}

    def preprocess(self, case: Case) -> Sample:
        """Grey values 0 to 255, zeros around to a square, 512 x 512 pixels, the tool's mean and deviation."""
        case = self.conform(case)
        image = F.pad(torch.from_numpy(_bytes(case.image)), _margins(case.shape))
        image = F.interpolate(image[None], size=self.patch_size, mode="bicubic", align_corners=False)
        mean, deviation = (getattr(self.module, name).detach().cpu() for name in ("pixel_mean", "pixel_std"))
        if self.in_channels == 1:
            mean, deviation = mean.mean(), deviation.mean()
        image = ((image - mean) / deviation)[0].float()
        return Sample(image, case.case_id, case.patient_id, case.shape, case.geometry)

    def preprocess_labels(self, labels: LabelMap, sample: Sample) -> Tensor:
        mask = F.pad(torch.from_numpy(labels.astype(np.float32)), _margins(sample.native_shape))
        return F.interpolate(mask[None, None], size=self.patch_size, mode="nearest-exact")[0, 0].to(torch.uint8)

    def forward(self, images: Tensor, prompts: Prompts | None = None) -> Tensor:
        """Logits `(B, K, 512, 512)` of preprocessed images `(B, C, 512, 512)`.

        Args:
            images: Preprocessed.
            prompts: Words, one entry per structure, in place of the segmenter's own.

        Raises:
            ModelError: The prompts are none that this segmenter takes.
        """
        texts = self.texts if prompts is None else _given_texts(prompts, self.schema)
        colour = images.expand(-1, 3, -1, -1)
        found = self._head(image_features=self._features(images), prompt_features=self._words(texts, len(images)))
        masks, network = found["pred_gmasks"], self._network
        if network.edge_queries > 0:
            masks = masks[:, : -network.edge_queries]
        if network.convolute_outputs:
            masks = network.convolution_procedure(colour.repeat_interleave(len(texts), dim=0), masks)
        else:
            masks = masks.mean(dim=1, keepdim=True)
        z = masks[:, 0].unflatten(0, (len(images), len(texts))).float()
        there = found["object_existence"].reshape(len(images), len(texts)).float()
        z = F.interpolate(z, size=images.shape[2:], mode="bicubic", align_corners=False)
        return exclusive_logits(torch.minimum(z, there[..., None, None]), self.schema, self.description.contains)

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        """What the backbone makes of images: maps by name."""
        backbone = self._network.backbone
        tensors = [*backbone.parameters(), *backbone.buffers()]
        if self.training or images.requires_grad or any(tensor.requires_grad for tensor in tensors):
            return dict(backbone(images.expand(-1, 3, -1, -1)))

        def encode(new: Tensor) -> Tensor:
            with torch.no_grad():
                maps = backbone(new.expand(-1, 3, -1, -1))
            self._shapes = {name: value.shape[1:] for name, value in maps.items()}
            return torch.cat([value.flatten(1) for value in maps.values()], dim=1)

        flat = self._kept.of(images, encode, version_of(tensors, images.device))
        parts = flat.split([shape.numel() for shape in self._shapes.values()], dim=1)
        return {name: part.unflatten(1, shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def _words(self, texts: tuple[str, ...], images: int) -> dict[str, Any]:
        """The tool's encoding of the words, for as many images. What encodes them never learns: once is enough."""
        encoder: Any = self._head.predictor.language_encoder
        key = (texts, version_of(encoder.parameters(), next(self.module.parameters()).device))
        if key not in self._encoded:
            with torch.no_grad():
                self._encoded = {key: self._head.encode_prompts(["[SEP]".join(texts)], eval=True)}
        words = self._encoded[key]
        return {
            **words,
            "grounding_tokens": words["grounding_tokens"].repeat(1, images, 1),
            "class_emb": words["class_emb"].repeat(images, 1),
            "num_prompts": words["num_prompts"].repeat(images),
        }

    def restore(self, logits: Tensor, sample: Sample) -> LabelMap:
        labels = argmax_classes(self._to_native(logits.detach(), sample, "bicubic"), dim=0)
        return labels.to(torch.uint8).cpu().numpy()

    def restore_map(self, values: Tensor, sample: Sample) -> FloatArray:
        return self._to_native(values.detach()[None], sample, "bilinear")[0].cpu().numpy()

    def _to_native(self, values: Tensor, sample: Sample, mode: str) -> Tensor:
        height, width = sample.native_shape
        left, right, top, bottom = _margins(sample.native_shape)
        square = (height + top + bottom, width + left + right)
        native = F.interpolate(values[None].float(), size=square, mode=mode, align_corners=False, antialias=True)[0]
        return native[:, top : top + height, left : left + width]

    def trainable(self, scope: Scope) -> dict[str, Parameter]:
        """Parameters of a scope; the encoder of the words and what the logits do not depend on belong to none.

        Raises:
            ModelError: The segmenter has no such part.
        """
        found = parameters_in_scope(self, scope, self.decoder_prefixes)
        return {name: value for name, value in found.items() if not name.startswith(self.frozen_prefixes)}

    def export(self, folder: Path) -> None:
        """Writes a checkpoint that the tool's `load_pretrained` reads, and `segmenter.json` with the same checkout."""
        description = self.description.model_copy(update={"checkpoint": CHECKPOINT})
        state = portable_state(self.module.state_dict())
        with replace_folder_on_success(folder) as temporary:
            write_described(temporary, description)
            weights = {f"{_PREFIX}{name}": value for name, value in state.items()}
            save_state({"state_dict": weights}, temporary / CHECKPOINT)


def read_description(folder: Path) -> BiomedParseDescription:
    """Reads `segmenter.json` of BiomedParse; relative paths in it count from its folder.

    Raises:
        ModelError: It is missing, or a field is wrong.
    """
    description = read_described(folder, BiomedParseDescription)
    places = {"checkout": (folder / description.checkout).resolve()}
    if description.tokenizer is not None:
        places["tokenizer"] = (folder / description.tokenizer).resolve()
    return description.model_copy(update=places)


def build_network(description: BiomedParseDescription) -> torch.nn.Module:
    """The network as the checkout's own configuration builds it, with random weights. Runs the checkout's code.

    Raises:
        MissingExtraError: Hydra is not installed.
        ModelError: The checkout is missing, is of v1, or its network cannot be built.
    """
    checkout = description.checkout
    configs = checkout / "configs" / "model"
    name = next((name for name in _CONFIGS if (configs / f"{name}.yaml").is_file()), None)
    if name is None:
        if (checkout / "modeling" / "BaseModel.py").exists():
            raise ModelError(
                f"{checkout}: a checkout of BiomedParse v1, which needs Python 3.9, a fork of detectron2 and CUDA and "
                "so cannot run here; use v2"
            )
        raise ModelError(f"{checkout}: not a checkout of BiomedParse v2, there is no configs/model/{_CONFIGS[0]}.yaml")
    try:
        hydra, omegaconf = (importlib.import_module(package) for package in ("hydra", "omegaconf"))
        for part in ("errors", "utils"):
            importlib.import_module(f"hydra.{part}")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "BiomedParse is built by Hydra, which is not installed: pip install 'medfm-rl[biomedparse]'"
        ) from error
    with _modules_of(checkout), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with hydra.initialize_config_dir(version_base=None, config_dir=str(configs)):
                config = hydra.compose(config_name=name)
            if omegaconf.OmegaConf.select(config, _TOKENIZER) is not None:
                # Nothing is downloaded: without a folder the tokenizer has to be in the local cache.
                update: dict[str, Any] = {"local_files_only": True}
                if description.tokenizer is not None:
                    update["pretrained_model_name_or_path"] = str(description.tokenizer)
                with omegaconf.open_dict(config):
                    omegaconf.OmegaConf.update(config, _TOKENIZER, update)
            network: torch.nn.Module = hydra.utils.instantiate(config, _convert_="object")
        except hydra.errors.HydraException as error:
            reason = first_line(_root_cause(error))
            raise ModelError(
                f"{checkout}: its network cannot be built ({reason}). Install what the checkout needs "
                f'(assets/requirements); where the tokenizer is missing, name its folder as "tokenizer" in '
                f"{DESCRIPTION}: nothing is downloaded"
            ) from error
    return network


def _root_cause(error: Exception) -> Exception:
    """What Hydra's errors were raised from."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


class _CheckoutFinder(MetaPathFinder):
    """Finds the top-level modules of a checkout in it and nowhere else, packages without `__init__.py` too.

    On `sys.path` a package of the same name with one, of whatever project, would be taken before them.
    """

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path  # Of top-level modules there is none.
        if fullname not in _PACKAGES:
            return None
        spec = PathFinder.find_spec(fullname, [str(self.checkout)], target)
        if spec is None:
            raise ModuleNotFoundError(f"there is no module {fullname} in {self.checkout}", name=fullname)
        if spec.submodule_search_locations is not None:
            # That of a package without `__init__.py` follows sys.path; a list stays where it is.
            spec.submodule_search_locations = list(spec.submodule_search_locations)
        return spec


@contextmanager
def _modules_of(checkout: Path) -> Iterator[None]:
    """Lets a checkout import its own modules, and leaves no trace of them.

    Raises:
        ModelError: Modules of the same names, of another project, are there.
    """
    foreign = sorted(name for name in sys.modules if name.partition(".")[0] in _PACKAGES)
    if foreign:
        raise ModelError(
            f"{checkout}: its modules have the names of others that are loaded ({foreign[0]}); load BiomedParse in a "
            "process of its own"
        )
    finder = _CheckoutFinder(checkout)
    sys.meta_path.insert(0, finder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] in _PACKAGES]:
            del sys.modules[name]


def _texts(prompts: TextPrompts, schema: LabelSchema) -> tuple[str, ...]:
    strangers = sorted(set(prompts.texts) - set(schema.structures))
    if strangers:
        raise ConfigError(
            f"prompts.texts: no structure {', '.join(strangers)}; the segmenter has {', '.join(schema.structures)}"
        )
    return tuple(prompts.texts.get(name, name) for name in schema.structures)


def _given_texts(prompts: Prompts, schema: LabelSchema) -> tuple[str, ...]:
    if prompts.texts is None or prompts.boxes is not None:
        raise ModelError("this segmenter takes words and no other prompts")
    if len(prompts.texts) != schema.num_classes - 1:
        raise ModelError(f"{len(prompts.texts)} texts for {schema.num_classes - 1} structures; each needs one")
    return prompts.texts


def _bytes(image: FloatArray) -> FloatArray:
    """Grey values from 0 to 255: as they are, or between their percentiles .5 and 99.5 as the tool prepares others."""
    image = np.array(image, dtype=np.float32)
    if image.min() >= 0 and image.max() <= _LARGEST:
        return image
    shown = image[image > 0] if (image > 0).any() else image
    low, high = np.percentile(shown, (0.5, 99.5))
    clipped = image.clip(low, max(high, low + 1e-6))
    return np.asarray((clipped - low) / max(high - low, 1e-6) * _LARGEST, dtype=np.float32)


def _margins(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Zeros left, right, above and below that make an image a square."""
    height, width = shape
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    return left, side - width - left, top, side - height - top
