"""Any torch module, or TorchScript file, that maps images to logits."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from medfm_rl.adapters.base import Scope, SegmenterAdapter, parameters_in_scope
from medfm_rl.adapters.checkpoints import content_bytes
from medfm_rl.adapters.description import DESCRIPTION, read_described
from medfm_rl.adapters.grid import Sample
from medfm_rl.adapters.image_grid import from_grid, labels_to_grid, to_grid
from medfm_rl.adapters.intensity import load_transform
from medfm_rl.adapters.overlapping import (
    as_channels,
    class_logits,
    classes_of_regions,
    count_channels,
    region_logits,
)
from medfm_rl.adapters.state_dicts import Place, load_weights
from medfm_rl.adapters.torch_module.folder import call_factory, place_of_weights
from medfm_rl.adapters.torch_module.outputs import Output, logits_of
from medfm_rl.adapters.torch_module.scripts import copy_script, is_script, load_script, script_bytes, script_hash
from medfm_rl.adapters.unused import UnusedParameters
from medfm_rl.data.files import replace_folder_on_success
from medfm_rl.errors import ModelError
from medfm_rl.networks import argmax_classes, build_unet, copied_without_graphs, portable_state, size_divisor
from medfm_rl.settings import IntensitySettings, NetworkSettings, PreprocessingSettings, TorchDescription
from medfm_rl.types import Case, FloatArray, LabelMap, LabelSchema, Prompts

_ALONE = Place()


@final
class TorchModuleAdapter(SegmenterAdapter):
    """Wraps a module from images `(B, C, *S)` to logits `(B, K, *S)`, in 2-D or 3-D. Classes are exclusive (softmax).

    Where the structures of the schema overlap, the module gives a binary logit for each of the R structures,
    `(B, R, *S)`, and the classes are their sets (`adapters.overlapping`).

    Args:
        module: The network. It is used as it is and owned by the adapter from here on.
        schema: Structures; K is their number and the background.
        preprocessing: How an image becomes the network's input.
        in_channels: C.
        network: How to build the module again, as it stands in `segmenter.json`; needed by `export`. One of
            `{"unet": {...}}` (NetworkSettings), `{"factory": "package.module:function", "arguments": {...}}` (your own
            code, imported by name) or `{"torchscript": "file.pt"}`.
        weights: Name of the weights file in the folder; the suffix says the format: .safetensors, or .pt/.pth for a
            state dict, by itself or within other content.
        place: Where in the file the tensors are.
        decoder_prefixes: Where the names of the decoder's parameters start. Known for the built-in UNet.
        output: Key or place of the logits among several outputs; None where the network returns one tensor.

    Where there is one structure, one logit z is enough: it becomes [0, z].
    """

    def __init__(
        self,
        module: nn.Module,
        schema: LabelSchema,
        preprocessing: PreprocessingSettings,
        in_channels: int = 1,
        network: Mapping[str, Any] | None = None,
        weights: str = "weights.safetensors",
        place: Place = _ALONE,
        decoder_prefixes: tuple[str, ...] = (),
        output: Output | None = None,
    ) -> None:
        super().__init__()
        self.module = module
        self.schema = schema
        self.preprocessing = preprocessing
        self.patch_size = preprocessing.size
        self.in_channels = in_channels
        self.network = None if network is None else dict(network)
        # The file of a TorchScript network is its weights too.
        self.weights = weights if network is None else str(network.get("torchscript", weights))
        self.place = place
        self.decoder_prefixes = decoder_prefixes
        self.output = output
        self._unused = UnusedParameters()

    @classmethod
    def build_unet(
        cls, network: NetworkSettings, schema: LabelSchema, preprocessing: PreprocessingSettings, in_channels: int = 1
    ) -> TorchModuleAdapter:
        """A new UNet with random weights.

        Raises:
            ModelError: A side of the input is not a multiple of what the UNet divides it by.
        """
        divisor = size_divisor(network)
        if any(side % divisor for side in preprocessing.size):
            raise ModelError(
                f"preprocessing.size {preprocessing.size}: each side must be a multiple of {divisor} for a UNet with "
                f"{len(network.channels)} levels"
            )
        module = build_unet(network, len(preprocessing.size), in_channels, count_channels(schema))
        return cls(
            module,
            schema,
            preprocessing,
            in_channels,
            network={"unet": network.model_dump(mode="json")},
            decoder_prefixes=_unet_decoder_prefixes(module),
        )

    @classmethod
    def load(cls, folder: Path) -> TorchModuleAdapter:
        """Reads a segmenter folder: `segmenter.json` and the weights.

        A factory and a transform of intensities are the user's own code and run; everything else in the folder is data
        and is never unpickled.

        Raises:
            ModelError: A file is missing, is not what its name says, or does not fit the network.
        """
        described = read_described(folder, TorchDescription)
        intensity = described.preprocessing.intensity
        if isinstance(intensity, IntensitySettings) and intensity.transform is not None:
            # Here and not at the first image: a name that is wrong is told at once.
            load_transform(intensity.transform, str(folder / DESCRIPTION))
        schema, preprocessing, in_channels = described.label_schema, described.preprocessing, described.in_channels
        network, weights = described.network, folder / described.weights_file
        if network.unet is not None:
            adapter = cls.build_unet(network.unet, schema, preprocessing, in_channels)
            adapter.weights, adapter.output = described.weights, described.output
        else:
            module = (
                load_script(weights)
                if network.factory is None
                else call_factory(network.factory, network.arguments, folder)
            )
            adapter = cls(
                module,
                schema,
                preprocessing,
                in_channels,
                network.model_dump(mode="json", exclude_unset=True),
                described.weights_file,
                decoder_prefixes=described.decoder_prefixes,
                output=described.output,
            )
        if network.torchscript is None:
            adapter.place = load_weights(adapter.module, weights, place_of_weights(described), DESCRIPTION)
        return adapter.eval()

    def preprocess(self, case: Case) -> Sample:
        """Resamples (grid "resize") or pads (grid "native") the image, then normalises its intensities."""
        image = to_grid(self.conform(case), self.preprocessing)
        return Sample(image, case.case_id, case.patient_id, case.shape, case.geometry)

    def preprocess_labels(self, labels: LabelMap, sample: Sample) -> Tensor:
        return labels_to_grid(labels, sample, self.preprocessing)

    def forward(self, images: Tensor, prompts: Prompts | None = None) -> Tensor:
        """Logits of images `(B, C, *S)`; those larger than the patch are covered by overlapping patches."""
        if prompts is not None:
            raise ModelError("this segmenter takes no prompts")
        if tuple(images.shape[2:]) == self.patch_size:
            logits = self._run(images)
        else:
            from monai.inferers import SlidingWindowInferer

            inferer = SlidingWindowInferer(self.patch_size, sw_batch_size=4, overlap=0.5, mode="gaussian")
            logits = inferer(images, self._run)
        expected = (len(images), count_channels(self.schema), *images.shape[2:])
        if tuple(logits.shape) != expected:
            raise ModelError(
                f"the network gives logits of shape {tuple(logits.shape)}, {expected} are needed for images of shape "
                f"{tuple(images.shape)} and the classes {', '.join(self.schema.names)}; "
                f"{_remedy(logits, expected, self.schema)}"
            )
        return class_logits(logits, self.schema)

    def _run(self, images: Tensor) -> Tensor:
        return as_channels(logits_of(self.module(images), self.output), self.schema)

    def restore(self, logits: Tensor, sample: Sample) -> LabelMap:
        if self.schema.overlaps:
            inside = from_grid(region_logits(logits.detach().float()), sample, self.preprocessing) > 0
            return self.schema.as_written(classes_of_regions(inside).cpu().numpy())
        labels = argmax_classes(from_grid(logits.detach(), sample, self.preprocessing), dim=0)
        return labels.to(torch.uint8).cpu().numpy()

    def restore_map(self, values: Tensor, sample: Sample) -> FloatArray:
        return from_grid(values.detach()[None], sample, self.preprocessing)[0].float().cpu().numpy()

    def trainable(self, scope: Scope) -> dict[str, Parameter]:
        prefixes = tuple(f"module.{prefix}" for prefix in self.decoder_prefixes)
        return self._unused.left_out(self, parameters_in_scope(self, scope, prefixes))

    def export(self, folder: Path) -> None:
        if self.network is None:
            raise ModelError("this adapter was made without saying how to build its module again (argument `network`)")
        if self.schema.overlaps and len(set(self.schema.ids)) < self.schema.num_classes:
            # It would be refused when it is read again.
            raise ModelError(
                f"the schema has no integer of its own for each of {', '.join(self.schema.class_names)}, and "
                f"{DESCRIPTION} needs one; make it by LabelSchema.of_regions"
            )
        # The weights may have been read from elsewhere; what is written lies in the new folder.
        weights = Path(self.weights).name
        description = {
            "format": 1,
            "kind": "torch",
            "network": {**self.network, "torchscript": weights} if "torchscript" in self.network else self.network,
            "weights": weights,
            "in_channels": self.in_channels,
            "schema": {"names": self.schema.names, "ids": self.schema.ids},
            **({"structures_overlap": True} if self.schema.overlaps else {}),
            "preprocessing": self.preprocessing.model_dump(mode="json", exclude_none=True),
            "decoder_prefixes": self.decoder_prefixes,
            **({} if self.output is None else {"output": self.output}),
            **({} if self.place == _ALONE else self.place.fields),
        }
        with replace_folder_on_success(folder) as temporary:
            (temporary / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
            (temporary / weights).write_bytes(_weights_bytes(self.module, weights, self.place))

    def inference_settings(self) -> Mapping[str, Any]:
        return {
            **super().inference_settings(),
            "preprocessing": self.preprocessing.model_dump(mode="json", exclude_none=True),
            **({} if self.output is None else {"output": self.output}),
            "network": script_hash(self.module) if is_script(self.module) else self.network,
        }

    @property
    def stated_scaling(self) -> str | None:
        match self.preprocessing.intensity:
            case "none":
                return "none"
            case IntensitySettings() as own:
                given = own.model_dump(mode="json", exclude_none=True)
                return "{" + ", ".join(f"{name}: {value}" for name, value in given.items()) + "}"
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> TorchModuleAdapter:
        copied_without_graphs(self, memo)
        # ScriptModule copies share no weights only through its own `copy`.
        module = copy_script(self.module, self.device) if is_script(self.module) else copy.deepcopy(self.module, memo)
        twin = TorchModuleAdapter(
            module,
            self.schema,
            self.preprocessing,
            self.in_channels,
            self.network,
            self.weights,
            self.place,
            self.decoder_prefixes,
            self.output,
        )
        twin._unused = self._unused
        for ours, theirs in zip(self.modules(), twin.modules(), strict=True):
            theirs.training = ours.training
        return twin


def _remedy(logits: Tensor, expected: tuple[int, ...], schema: LabelSchema) -> str:
    """What to do about logits of another shape than is needed."""
    if logits.ndim != len(expected):
        return "they have other axes"
    if logits.shape[1] != expected[1]:
        if logits.shape[1] == 1:
            return f"one logit is enough for one structure: schema of {DESCRIPTION} names {len(schema.structures)}"
        if schema.overlaps:
            return f"name a structure for each of its {logits.shape[1]} outputs in schema of {DESCRIPTION}"
        return (
            f"name the structures of its {logits.shape[1]} outputs, the background first, in schema of {DESCRIPTION}; "
            f"where they overlap and none is of the background, set structures_overlap: true there"
        )
    return "make it resample them to the size of the image, or correct preprocessing.size"


def _weights_bytes(module: nn.Module, name: str, place: Place) -> bytes:
    if is_script(module):
        return script_bytes(module)
    return content_bytes(place.put(portable_state(module.state_dict()), {}), name)


def _unet_decoder_prefixes(module: nn.Module) -> tuple[str, ...]:
    """Names of the up-sampling blocks of a MONAI UNet: each level is (down, skip of the next level, up)."""
    prefixes, prefix, level = [], "model", module.get_submodule("model")
    while True:
        prefixes.append(f"{prefix}.2.")
        inner = level.get_submodule("1.submodule")
        if not (
            isinstance(inner, nn.Sequential) and len(inner) == 3 and "submodule" in dict(inner[1].named_children())
        ):
            return tuple(prefixes)
        prefix, level = f"{prefix}.1.submodule", inner
