"""The kinds of segmenter: for each, everything that the rest of the package asks about it.

The built-in kinds stand in the table at the end. Other packages bring theirs as an entry point of the group
`medfm_rl.segmenters` whose object is a `SegmenterKind` too; it then works wherever a built-in one does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from medfm_rl.adapters import biomedparse
from medfm_rl.adapters.base import ModelSummary, SegmenterAdapter
from medfm_rl.adapters.biomedparse import BiomedParseAdapter
from medfm_rl.adapters.bundle_description import METADATA
from medfm_rl.adapters.monai_bundle import MonaiBundleAdapter, exported_weights
from medfm_rl.adapters.nnunet import totalsegmentator
from medfm_rl.adapters.nnunet.adapter import NnUNetAdapter
from medfm_rl.adapters.nnunet.cascade import stage_of
from medfm_rl.adapters.nnunet.folder import DATASET, PLANS, find_model_folder
from medfm_rl.adapters.nnunet.summary import summarise
from medfm_rl.adapters.sam import promptable
from medfm_rl.adapters.sam.litemedsam import LiteMedSAMAdapter
from medfm_rl.adapters.sam.medsam import MedSAMAdapter
from medfm_rl.adapters.sam.medsam2 import MedSAM2Adapter
from medfm_rl.adapters.sam.promptable import PromptableAdapter
from medfm_rl.adapters.torch_module.adapter import TorchModuleAdapter
from medfm_rl.adapters.torch_module.folder import weights_file
from medfm_rl.errors import ModelError
from medfm_rl.settings import (
    BiomedParseSettings,
    FilePrompts,
    FixedPrompts,
    LiteMedSAMSettings,
    MaskPrompts,
    MedSAM2Settings,
    MedSAMSettings,
    MonaiBundleSettings,
    NnUNetSettings,
    PromptableSettings,
    SegmenterSettings,
    TorchSettings,
    TotalSegmentatorSettings,
)
from medfm_rl.settings.kinds import KindOfSettings, brought_kinds, kinds_in_words, load_brought

S = TypeVar("S", bound=SegmenterSettings)
P = TypeVar("P", bound=PromptableSettings)
NnUNet = NnUNetSettings | TotalSegmentatorSettings
Obstacles = Callable[[SegmenterAdapter], tuple[str, ...]]


def _not_by_its_files(folder: Path) -> bool:
    del folder
    return False


def _nothing(settings: SegmenterSettings) -> Mapping[str, Any]:
    del settings
    return {}


def _none(settings: SegmenterSettings) -> None:
    del settings


def _unchanged(settings: S) -> S:
    return settings


@dataclass(frozen=True)
class SegmenterKind(KindOfSettings[S]):
    """A kind of segmenter. Its name and the line of help texts are those of the field `kind` of its settings.

    Attributes:
        settings: Settings of a segmenter of this kind, a subclass of `SegmenterSettings`.
        load: Loads the segmenter in `settings.folder`, in evaluation mode, on the CPU.
        extra: The extra of medfm-rl that it needs, such as nnunet; None where it needs none.
        recognises: Whether a folder is of this kind, by the files in it. A folder with a `segmenter.json` need not be
            recognised: that file names the kind.
        read_beside: What loading reads from elsewhere than the folder, by the setting that names it; what lies in the
            folder after all may be among it.
        exported: Settings that have another value in what `export` wrote, by name; `folder` need not be among them.
        without_prompts: Settings to bring images and masks to the segmenter's grid, and to make no mask.
        with_boxes: Settings with the boxes of a file, or those of masks in a folder; None where it takes no boxes.
        remedy: What to do where the folder is not there; None: what is said of every folder.
        summarise: What `inspect` tells, where that is more than what every segmenter has; it is given what tells why a
            segmenter that could be loaded cannot be adapted.
    """

    load: Callable[[S], SegmenterAdapter]
    extra: str | None = None
    recognises: Callable[[Path], bool] = _not_by_its_files
    read_beside: Callable[[S], Mapping[str, Path | None]] = _nothing
    exported: Callable[[S], Mapping[str, Any]] = _nothing
    without_prompts: Callable[[S], S] = _unchanged
    with_boxes: Callable[[S, Path], S] | None = None
    remedy: Callable[[S], str | None] = _none
    summarise: Callable[[S, Obstacles], ModelSummary] | None = None


def kind_of(settings: SegmenterSettings) -> SegmenterKind[Any]:
    """The kind of a segmenter.

    Raises:
        ConfigError: Another package brings it, and cannot be used.
        ModelError: There is no such kind.
    """
    return kind_named(settings.kind, f"segmenter in {settings.folder}")


def kind_named(name: str, where: str) -> SegmenterKind[Any]:
    """The kind of that name.

    Args:
        name: Its name.
        where: What names it, for errors.

    Raises:
        ConfigError: Another package brings it, and cannot be used.
        ModelError: There is no such kind.
    """
    found = load_brought(name, SegmenterKind) or KINDS.get(name)
    if found is None:
        raise ModelError(f"{where}: kind must be one of {kinds_in_words()}; not {name}")
    return found


def all_kinds() -> Iterator[SegmenterKind[Any]]:
    """The built-in kinds, then those of other packages in the order of their names, each imported when it is its turn.

    Raises:
        ConfigError: A package that brings one cannot be used.
    """
    yield from KINDS.values()
    for name in brought_kinds():
        yield kind_named(name, f"entry point {name}")


def _is_nnunet(folder: Path) -> bool:
    places = (folder, *folder.glob("*"), *folder.glob("*/*"))
    return any((place / PLANS).exists() for place in places) or (folder / DATASET).exists()


def _load_nnunet(settings: NnUNetSettings) -> NnUNetAdapter:
    return NnUNetAdapter(
        settings.folder,
        settings.folds,
        settings.checkpoint,
        settings.mirroring,
        trusted=settings.trusted,
        previous_stage=settings.previous_stage,
    )


def _read_by_nnunet(settings: NnUNet) -> dict[str, Path | None]:
    # From one fold as from another: what does not lie in a fold is the same file for all.
    if isinstance(settings, TotalSegmentatorSettings):
        return {"checkpoint": totalsegmentator.model_folder(settings) / "fold_0" / settings.checkpoint}
    stage = settings.previous_stage
    return {
        "checkpoint": find_model_folder(settings.folder) / "fold_0" / settings.checkpoint,
        "previous_stage.masks": stage.masks,
        "previous_stage.folder": None if stage.masks else stage_of(settings),
    }


def _exported_by_nnunet(settings: NnUNet) -> dict[str, Any]:
    found: dict[str, Any] = {"checkpoint": Path(settings.checkpoint).name}
    if isinstance(settings, NnUNetSettings):
        stage = settings.previous_stage
        own = {"folder": None, "checkpoint": Path(stage.checkpoint).name}
        found["previous_stage"] = stage.model_copy(update=own)
    return found


def _sam(settings: type[P], load: Callable[[P], PromptableAdapter]) -> SegmenterKind[P]:
    return SegmenterKind(
        settings,
        load=load,
        extra="medsam",
        read_beside=_read_by_sam,
        without_prompts=lambda found: found.model_copy(update={"prompts": FixedPrompts(kind="fixed", boxes={})}),
        with_boxes=_with_boxes,
    )


def _read_by_sam(settings: PromptableSettings) -> dict[str, Path | None]:
    described = promptable.read_description(settings.folder)
    prompts = settings.prompts or described.prompts
    return {
        "checkpoint": None if described.checkpoint is None else settings.folder / described.checkpoint,
        "prompts.path": None if isinstance(prompts, FixedPrompts) else prompts.path,
    }


def _with_boxes(settings: P, path: Path) -> P:
    prompts = MaskPrompts(kind="from_masks", path=path) if path.is_dir() else FilePrompts(kind="from_file", path=path)
    return settings.model_copy(update={"prompts": prompts})


def _read_by_biomedparse(settings: BiomedParseSettings) -> dict[str, Path | None]:
    tool = biomedparse.read_description(settings.folder)
    return {"checkpoint": settings.folder / tool.checkpoint, "checkout": tool.checkout, "tokenizer": tool.tokenizer}


KINDS: Final[dict[str, SegmenterKind[Any]]] = {
    kind.name: kind
    for kind in (
        SegmenterKind(
            TorchSettings,
            load=lambda settings: TorchModuleAdapter.load(settings.folder),
            read_beside=lambda settings: {"weights": weights_file(settings.folder)},
        ),
        SegmenterKind(
            NnUNetSettings,
            load=_load_nnunet,
            extra="nnunet",
            recognises=_is_nnunet,
            read_beside=_read_by_nnunet,
            exported=_exported_by_nnunet,
            summarise=lambda settings, obstacles: summarise(
                settings.kind, settings.folder, lambda: _load_nnunet(settings), obstacles
            ),
        ),
        SegmenterKind(
            TotalSegmentatorSettings,
            load=totalsegmentator.load,
            extra="nnunet",
            remedy=totalsegmentator.remedy,
            read_beside=_read_by_nnunet,
            exported=_exported_by_nnunet,
            summarise=lambda settings, obstacles: summarise(
                settings.kind,
                totalsegmentator.model_folder(settings),
                lambda: totalsegmentator.load(settings),
                obstacles,
                totalsegmentator.facts(settings),
            ),
        ),
        SegmenterKind(
            MonaiBundleSettings,
            load=lambda settings: MonaiBundleAdapter(settings.folder, settings.weights),
            recognises=lambda folder: (folder / "configs" / METADATA).exists(),
            read_beside=lambda settings: {"weights": settings.folder / "models" / settings.weights},
            exported=lambda settings: {"weights": exported_weights(settings.folder, settings.weights)},
        ),
        _sam(LiteMedSAMSettings, lambda settings: LiteMedSAMAdapter.load(settings.folder, settings.prompts)),
        _sam(MedSAMSettings, lambda settings: MedSAMAdapter.load(settings.folder, settings.prompts)),
        _sam(
            MedSAM2Settings,
            lambda settings: MedSAM2Adapter.load(settings.folder, settings.prompts, settings.described),
        ),
        SegmenterKind(
            BiomedParseSettings,
            load=lambda settings: BiomedParseAdapter.load(settings.folder, settings.prompts),
            extra="biomedparse",
            read_beside=_read_by_biomedparse,
        ),
    )
}
"""The built-in kinds by name."""
