"""Settings of a segmenter by its kind, and what `segmenter.json` says of those that have one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    StrictBool,
    StrictInt,
    StrictStr,
    field_validator,
    model_serializer,
    model_validator,
)

from medfm_rl.settings.base import Positive, Settings
from medfm_rl.settings.prompts import PromptSettings, TextPrompts
from medfm_rl.settings.totalsegmentator import TaskNetwork, find_network, weights_root
from medfm_rl.settings.training import IntensitySettings, NetworkSettings, PreprocessingSettings
from medfm_rl.types import LabelSchema

Folds = tuple[Annotated[int, Field(ge=0)] | Literal["all"], ...] | None
"""Folds of nnU-Net, as an ensemble; None: all that are there."""
Scope = Annotated[
    Literal["all", "norm", "decoder", "lora"],
    Field(
        description="Which weights adaptation may change: all, the normalisation layers, the decoder, or low-rank "
        "parts of linear and convolutional layers (lora)."
    ),
]


class LoRASettings(Settings):
    """Low-rank parts of layers (train: lora): W + (alpha / rank) B A, of which A and B learn."""

    rank: Positive = Field(4, description="Rank of the change of each weight.")
    alpha: float = Field(8.0, gt=0, description="Scale of the change: it is multiplied by alpha / rank.")
    part: Literal["all", "decoder"] = Field(
        "all",
        description="Layers that get one: all, or those of the decoder; then a promptable encoder runs once an image.",
    )


LowRank = Annotated[LoRASettings, Field(description="Low-rank parts, where train is lora.")]


class SegmenterSettings(Settings):
    """The segmenter to adapt. The settings of each kind are a subclass of these.

    The type of `kind` is a literal with the name of the kind, and its description is the line that help texts show.
    Every field but the folder has a default: a folder alone is enough to say which segmenter is meant.
    """

    kind: str = Field(description="What the folder is; `medfm-rl init --kinds` lists the kinds.")
    folder: Path = Field(description="Folder of the segmenter. It is read, never written.")
    train: Scope = "all"
    lora: LowRank = LoRASettings()

    @classmethod
    def kind_name(cls) -> str:
        """Name of the kind, as it stands in a settings file.

        Raises:
            TypeError: The type of `kind` is no literal of one name.
        """
        names = get_args(cls.model_fields["kind"].annotation)
        if len(names) != 1 or not isinstance(names[0], str):
            raise TypeError(f"{cls.__name__}: the type of `kind` must be a Literal with the name of the kind")
        return names[0]

    @classmethod
    def kind_line(cls) -> str:
        """The name of the kind and what it is, in one line."""
        return cls.model_fields["kind"].description or cls.kind_name()


class TorchSettings(SegmenterSettings):
    """The segmenter to adapt: a torch module (kind torch)."""

    kind: Literal["torch"] = Field("torch", description="torch: a folder with segmenter.json and weights.")


class TorchNetwork(Settings):
    """How the module of a torch segmenter is built, in exactly one way."""

    unet: NetworkSettings | None = Field(None, description="A MONAI UNet.")
    factory: str | None = Field(
        None, description="package.module:function of the user, which is imported and called: it must be trusted."
    )
    arguments: dict[str, Any] = Field({}, description="What the function is called with.")
    torchscript: str | None = Field(None, description="A TorchScript file in the folder, which is its weights too.")

    @model_validator(mode="before")
    @classmethod
    def _one_way(cls, given: Any) -> Any:
        ways = given.keys() - ({"arguments"} if "factory" in given else set()) if isinstance(given, dict) else set()
        if ways not in ({"unet"}, {"factory"}, {"torchscript"}):
            shown = sorted(given) if isinstance(given, dict) else given
            raise ValueError(f"is one of unet, factory (with arguments), torchscript; not {shown}")
        return given


class DescribedSchema(Settings):
    """The structures of a torch segmenter, the background first, and their integers in files."""

    names: tuple[StrictStr, ...] = Field(description="background, then the structures.")
    ids: tuple[StrictInt, ...] | None = Field(
        None, description="Integer of each class; null, where structures overlap: the bit mask of the structures."
    )


class TorchDescription(Settings):
    """`segmenter.json` of a torch module."""

    kind: Literal["torch"] = Field(description="torch: any torch module.")
    network: TorchNetwork = Field(description="How the module is built.")
    weights: str = Field("weights.safetensors", description="File with the weights in the folder.")
    weights_keys: tuple[StrictStr, ...] | None = Field(
        None, description="Keys in the file that lead to the tensors; null: they are found."
    )
    weights_prefix: StrictStr | None = Field(None, description="What stands before the name of every tensor.")
    output: str | int | None = Field(
        None, description="Key or place of the logits among several outputs; null: there is one."
    )
    in_channels: StrictInt = Field(1, ge=1, description="Channels of an image.")
    described_schema: DescribedSchema = Field(alias="schema", description="The structures.")
    structures_overlap: StrictBool = Field(
        False, description="Whether a pixel can lie in several structures; the network gives a logit for each of them."
    )
    preprocessing: PreprocessingSettings = Field(description="How an image becomes the network's input.")
    decoder_prefixes: tuple[StrictStr, ...] = Field((), description="Where names of the decoder's parameters start.")

    @field_validator("output", mode="before")
    @classmethod
    def _key_or_place(cls, given: Any) -> Any:
        if isinstance(given, bool) or not isinstance(given, str | int | None):
            raise ValueError("is the key or the place of one of the network's outputs")
        return given

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if isinstance(self.preprocessing.intensity, IntensitySettings):
            self.preprocessing.intensity.require_channels(self.in_channels)
        try:
            _ = self.label_schema
        except ValueError as error:
            raise ValueError(f"schema: {error}") from error
        return self

    @property
    def label_schema(self) -> LabelSchema:
        """The structures."""
        names, ids = self.described_schema.names, self.described_schema.ids
        if not self.structures_overlap:
            return LabelSchema(names, ids or ())
        by_bits = LabelSchema.of_regions(names[1:])
        if ids is None:
            ids = by_bits.ids
        elif len(set(ids)) != len(ids) or len(ids) != by_bits.num_classes:
            raise ValueError(
                f"ids: {', '.join(by_bits.structures)} overlap, and {by_bits.num_classes} distinct integers are "
                f"needed, one for each of {', '.join(by_bits.class_names)}; leave ids out to have bit masks"
            )
        return LabelSchema(names, ids, tuple(tuple(ids[index] for index in own) for own in by_bits.classes))

    @property
    def weights_file(self) -> str:
        """The file with the weights: that of a script is the script."""
        return self.network.torchscript or self.weights


class PreviousStageSettings(Settings):
    """The stage before, where a model of nnU-Net is the second stage of a cascade."""

    folder: Path | None = Field(
        None,
        description="Its model folder; it segments every case and does not learn. null: the one that lies beside the "
        "folder of the second stage, as nnU-Net puts it there, or the one in an exported model.",
    )
    masks: Path | None = Field(
        None,
        description="Folder of masks that it made, with the names of the images, in place of its model; one for every "
        "image that is shown to the segmenter.",
    )
    folds: Folds = Field(None, min_length=1, description="Its folds, as an ensemble; null: all that are there.")
    checkpoint: str = Field("checkpoint_final.pth", description="File name of the checkpoint in each of its folds.")

    @model_validator(mode="after")
    def _a_model_or_its_masks(self) -> Self:
        model = self.model_copy(update={"masks": None})
        if self.masks is not None and model != PreviousStageSettings():
            raise ValueError("give either masks, or the model that makes them (folder, folds, checkpoint)")
        return self


class NnUNetSettings(SegmenterSettings):
    """The segmenter to adapt: a model folder of nnU-Net v2 (kind nnunet)."""

    kind: Literal["nnunet"] = Field("nnunet", description="nnunet: a model folder of nnU-Net v2.")
    folder: Path = Field(description="The folder with plans.json, dataset.json and fold_X. It is read, never written.")
    folds: Folds = Field(None, min_length=1, description="Folds to adapt, as an ensemble; null: all that are there.")
    checkpoint: str = Field("checkpoint_final.pth", description="File name of the checkpoint in each fold.")
    mirroring: bool = Field(
        True, description="Average over mirrored images when a case is segmented, as nnUNetv2_predict does by default."
    )
    previous_stage: PreviousStageSettings = Field(
        PreviousStageSettings(), description="The stage before, where the folder is a 3d_cascade_fullres."
    )
    trusted: bool = Field(
        False,
        description="Unpickle checkpoints that hold more than tensors and numbers: runs code of whoever made them.",
    )


class TotalSegmentatorSettings(SegmenterSettings):
    """The segmenter to adapt: one model of TotalSegmentator (kind totalsegmentator)."""

    kind: Literal["totalsegmentator"] = Field(
        "totalsegmentator", description="totalsegmentator: weights of TotalSegmentator."
    )
    folder: Path = Field(
        description="Weights folder DatasetNNN_name of one model, as TotalSegmentator downloads it. It is read, never "
        "written. With a task: also a folder of such folders; null: where TotalSegmentator keeps its weights "
        "(TOTALSEG_WEIGHTS_PATH, TOTALSEG_HOME_DIR or ~/.totalsegmentator)."
    )
    task: str | None = Field(
        None,
        description="Task, such as total, total_fast, total_mr or lung_vessels: finds the weights, and names the "
        "structures as TotalSegmentator does; null: as dataset.json in the folder names them.",
    )
    part: str | None = Field(
        None,
        description="Network of a task that has several; of total: organs, vertebrae, cardiac, muscles or ribs.",
    )
    checkpoint: str = Field("checkpoint_final.pth", description="File name of the checkpoint.")
    step_size: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Distance of neighbouring tiles as a share of the patch; null: what TotalSegmentator takes for the "
        "task (0.8 for total, total_v3 and total_mr, 0.5 for the others), 0.5 without a task.",
    )
    trusted: bool = Field(
        False,
        description="Unpickle checkpoints that hold more than tensors and numbers: runs code of whoever made them.",
    )

    @model_validator(mode="before")
    @classmethod
    def _weights_of_the_task(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        task, part, folder = (values.get(name) for name in ("task", "part", "folder"))
        if task is None:
            if part is not None:
                raise ValueError("part goes with a task; give the task that it is a part of")
            return values
        network = find_network(str(task), part)
        root = weights_root() if folder is None else Path(folder)
        within = network.folder_in(root)
        return {**values, "folder": within if folder is None or within.is_dir() else root}

    @property
    def network(self) -> TaskNetwork | None:
        """What TotalSegmentator says of the network; None where no task is named."""
        return None if self.task is None else find_network(self.task, self.part)


class MonaiBundleSettings(SegmenterSettings):
    """The segmenter to adapt: a MONAI bundle (kind monai-bundle). A bundle is trusted code: its configuration runs."""

    kind: Literal["monai-bundle"] = Field(
        "monai-bundle", description="monai-bundle: a bundle of MONAI. Loading one runs the code in its configuration."
    )
    folder: Path = Field(description="Folder of the bundle, with configs/ and models/. It is read, never written.")
    weights: str = Field("model.pt", description="File in models/ with the state dict.")


class PromptedStructures(Settings):
    """The part of `segmenter.json` on the structures of any prompted segmenter, and on its images."""

    structures: dict[str, Annotated[int, Field(ge=1, le=255)]] = Field(
        min_length=1, description="Structures by name, with their integer in label files. Each has a prompt of its own."
    )
    contains: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="Structures that a prompt takes in besides its own: {MYO: [LV]} where the box of the myocardium is "
        "that of all within the epicardium.",
    )
    channels: Literal[1, 3] = Field(1, description="Channels of the images.")

    @model_validator(mode="after")
    def _contained_structures_are_there(self) -> Self:
        for outer, inner in self.contains.items():
            strangers = {outer, *inner} - self.structures.keys()
            if strangers or outer in inner:
                raise ValueError(f"contains {outer}: names {sorted(strangers) or outer}, other structures are needed")
        return self


class PromptableDescription(PromptedStructures):
    """`segmenter.json` of a segmenter that is prompted by boxes."""

    kind: str = Field(description="litemedsam, medsam or medsam2.")
    checkpoint: str | None = Field(
        None,
        description="File with the weights in this folder, or folder of save_pretrained in it; null: the weights that "
        "the package of litemedsam brings.",
    )
    size: int | None = Field(
        None,
        ge=1,
        description="Pixels of each side of the input, for a .pth file of medsam2, which does not say; null: 512.",
    )
    intensity: Literal["tool", "minmax"] = Field(
        "tool",
        description="tool: as the tool does; litemedsam and medsam2 divide by 255 what exceeds 1, medsam takes each "
        "image to [0, 1]. minmax: each image to [0, 1].",
    )
    prompts: PromptSettings = Field(description="Where boxes come from, unless a call says otherwise.")
    memory: bool = Field(
        False,
        description="true: medsam2 segments the frames of a clip together; the boxes of one frame are carried to the "
        "others, forwards and backwards, by SAM 2's memory, whose weights the checkpoint must have. false: each frame "
        "by itself, with boxes of its own.",
    )
    prompted_frame: int | None = Field(
        None,
        ge=0,
        description="With memory, the frame of each clip whose boxes are carried, counted from 0; null: the first with "
        "a box of every structure, or else the first with the most.",
    )

    @model_validator(mode="after")
    def _memory_is_of_medsam2(self) -> Self:
        if self.memory and self.kind != "medsam2":
            raise ValueError(f"memory: a segmenter of kind {self.kind} has none; medsam2 has")
        if self.prompted_frame is not None and not self.memory:
            raise ValueError("prompted_frame: is of no use without memory: true; add that, or leave it out")
        return self

    @model_serializer(mode="wrap")
    def _without_a_memory_that_is_off(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # What each segmenter wrote, and was known by, before there was a memory to turn on.
        content: dict[str, Any] = write(self)
        for name, unused in (("memory", False), ("prompted_frame", None)):
            if content.get(name, unused) == unused:
                content.pop(name, None)
        return content


class BiomedParseDescription(PromptedStructures):
    """`segmenter.json` of BiomedParse v2."""

    kind: Literal["biomedparse"] = Field(description="biomedparse: BiomedParse v2. Prompted by words.")
    checkout: Path = Field(
        description="The user's own checkout of BiomedParse v2. Its code is run: it must be trusted."
    )
    checkpoint: str = Field(description="File with the weights in this folder, such as biomedparse_v2.ckpt.")
    tokenizer: Path | None = Field(
        None,
        description="Folder with the tokenizer of the words (openai/clip-vit-base-patch32); null: from the local cache "
        "of transformers. Nothing is downloaded.",
    )
    prompts: TextPrompts = Field(TextPrompts(), description="Words for each structure.")


class PromptableSettings(SegmenterSettings):
    """The segmenter to adapt: one that is prompted by boxes. The settings of each such kind are a subclass of these."""

    folder: Path = Field(description="Folder with segmenter.json and, where it names one, a checkpoint.")
    prompts: PromptSettings | None = Field(
        None, description="Where boxes come from; null: as segmenter.json in the folder says."
    )
    train: Scope = "decoder"


class LiteMedSAMSettings(PromptableSettings):
    """The segmenter to adapt: LiteMedSAM (kind litemedsam)."""

    kind: Literal["litemedsam"] = Field("litemedsam", description="litemedsam: LiteMedSAM. Prompted by boxes.")


class MedSAMSettings(PromptableSettings):
    """The segmenter to adapt: MedSAM (kind medsam)."""

    kind: Literal["medsam"] = Field("medsam", description="medsam: MedSAM. Prompted by boxes.")


class MedSAM2Settings(PromptableSettings):
    """The segmenter to adapt: MedSAM2 (kind medsam2). It learns image by image."""

    kind: Literal["medsam2"] = Field(
        "medsam2", description="medsam2: MedSAM2, image by image or with its memory over clips. Prompted by boxes."
    )
    memory: bool | None = Field(
        None,
        description="true: the frames of a clip are segmented together; the boxes of one frame are carried to the "
        "others by SAM 2's memory. false: each frame by itself, with boxes of its own, as in adaptation. null: as "
        "segmenter.json in the folder says (false where it says nothing).",
    )
    prompted_frame: int | None = Field(
        None,
        ge=0,
        description="With memory, the frame of each clip whose boxes are carried, counted from 0; null: as "
        "segmenter.json says, or else the first with a box of every structure, or the most.",
    )

    @property
    def described(self) -> dict[str, Any]:
        """What is said here of the memory, by the fields of `segmenter.json` that it takes the place of."""
        said = {"memory": self.memory, "prompted_frame": self.prompted_frame}
        return {name: value for name, value in said.items() if value is not None}


class BiomedParseSettings(SegmenterSettings):
    """The segmenter to adapt: BiomedParse v2, prompted by words (kind biomedparse)."""

    kind: Literal["biomedparse"] = Field("biomedparse", description="biomedparse: BiomedParse v2. Prompted by words.")
    folder: Path = Field(description="Folder with segmenter.json, which names the checkout, and a checkpoint.")
    prompts: TextPrompts | None = Field(None, description="Words; null: as segmenter.json in the folder says.")
    train: Scope = "decoder"
