"""Every setting of every stage: one place for names, defaults, ranges and their explanation.

The rooms take these objects, the YAML files are validated against them, and `medfm-rl init` prints them with their
descriptions. Light on purpose: importing this module loads no network code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseModel):
    """Base of all settings: frozen; an unknown field and a number that is not finite are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class DataSettings(Settings):
    """Where images lie and how the folder is laid out."""

    path: Path = Field(description="Folder of the data set.")
    layout: Literal["auto", "nnunet", "camus", "folder"] = Field(
        "auto",
        description="nnunet: imagesTr, labelsTr, imagesTs, dataset.json; or images alone, CASE_0000 and so on, a file "
        "per channel. camus: patientXXXX folders, mhd or NIfTI. "
        "folder: images/ and, where there are any, labels/ with the same names. auto: found out from what is there.",
    )
    split: Literal["all", "train", "test"] = Field(
        "all", description="Which part of an nnU-Net data set: train (imagesTr), test (imagesTs) or all."
    )
    where: dict[str, str] = Field(
        default_factory=dict,
        description="Keep only the cases with these tags, for example {view: 4CH, phase: ED} in CAMUS.",
    )
    patient_pattern: str | None = Field(
        None,
        description="Regular expression whose first group, found in the case name, is the patient. "
        "Without one the layout decides (the part of the name before the first underscore).",
    )

    @field_validator("patient_pattern")
    @classmethod
    def _pattern_has_a_group(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groups
            except re.error as error:
                raise ValueError(f"not a regular expression ({error})") from error
            if groups == 0:
                raise ValueError("needs a group in parentheses: what it finds is the patient")
        return pattern


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
    alpha: float = Field(8.0, gt=0, description="Its scale: the change is multiplied by alpha / rank.")
    part: Literal["all", "decoder"] = Field(
        "all",
        description="Layers that get one: all, or those of the decoder; then a promptable encoder runs once an image.",
    )


LowRank = Annotated[LoRASettings, Field(description="Low-rank parts, where train is lora.")]


class SegmenterSettings(Settings):
    """The segmenter to adapt: a torch module (kind torch)."""

    kind: Literal["torch"] = Field(
        "torch",
        description="torch: a folder with segmenter.json and weights. nnunet: a model folder of nnU-Net v2. "
        "totalsegmentator: weights of TotalSegmentator. monai-bundle: a bundle of MONAI. litemedsam, "
        "medsam, medsam2: prompted by boxes.",
    )
    folder: Path = Field(description="Folder of the segmenter. It is read, never written.")
    train: Scope = "all"
    lora: LowRank = LoRASettings()


class NnUNetSettings(Settings):
    """The segmenter to adapt: a model folder of nnU-Net v2 (kind nnunet)."""

    kind: Literal["nnunet"] = Field(description="nnunet: a model folder of nnU-Net v2.")
    folder: Path = Field(description="The folder with plans.json, dataset.json and fold_X. It is read, never written.")
    folds: tuple[Annotated[int, Field(ge=0)] | Literal["all"], ...] | None = Field(
        None, min_length=1, description="Folds to adapt, as an ensemble; null: all that are there."
    )
    checkpoint: str = Field("checkpoint_final.pth", description="File name of the checkpoint in each fold.")
    mirroring: bool = Field(
        True, description="Average over mirrored images when a case is segmented, as nnUNetv2_predict does by default."
    )
    trusted: bool = Field(
        False,
        description="Unpickle checkpoints that hold more than tensors and numbers: runs code of whoever made them.",
    )
    train: Scope = "all"
    lora: LowRank = LoRASettings()


class TotalSegmentatorSettings(Settings):
    """The segmenter to adapt: one model of TotalSegmentator (kind totalsegmentator)."""

    kind: Literal["totalsegmentator"] = Field(description="totalsegmentator: weights of TotalSegmentator.")
    folder: Path = Field(
        description="Weights folder DatasetNNN_name of one model, as TotalSegmentator downloads it. It is read, never "
        "written."
    )
    checkpoint: str = Field("checkpoint_final.pth", description="File name of the checkpoint.")
    step_size: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Distance of neighbouring tiles as a share of the patch. TotalSegmentator takes 0.8 for its task "
        "total and 0.5 for the others.",
    )
    trusted: bool = Field(
        False,
        description="Unpickle checkpoints that hold more than tensors and numbers: runs code of whoever made them.",
    )
    train: Scope = "all"
    lora: LowRank = LoRASettings()


class MonaiBundleSettings(Settings):
    """The segmenter to adapt: a MONAI bundle (kind monai-bundle). A bundle is trusted code: its configuration runs."""

    kind: Literal["monai-bundle"] = Field(
        description="monai-bundle: a bundle of MONAI. Loading one runs the code in its configuration."
    )
    folder: Path = Field(description="Folder of the bundle, with configs/ and models/. It is read, never written.")
    weights: str = Field("model.pt", description="File in models/ with the state dict.")
    train: Scope = "all"
    lora: LowRank = LoRASettings()


class FixedPrompts(Settings):
    """The same boxes for every image (kind fixed)."""

    kind: Literal["fixed"] = Field(description="fixed: the same boxes for every image.")
    boxes: dict[str, tuple[Fraction, Fraction, Fraction, Fraction]] = Field(
        description="By structure: x_min, y_min, x_max, y_max as fractions of the image's width and height."
    )

    @field_validator("boxes")
    @classmethod
    def _corners_are_in_order(
        cls, boxes: dict[str, tuple[float, float, float, float]]
    ) -> dict[str, tuple[float, float, float, float]]:
        for name, (x_min, y_min, x_max, y_max) in boxes.items():
            if x_min >= x_max or y_min >= y_max:
                raise ValueError(f"{name}: needs x_min < x_max and y_min < y_max")
        return boxes


class FilePrompts(Settings):
    """Boxes from a file (kind from_file)."""

    kind: Literal["from_file"] = Field(description="from_file: boxes by case and structure.")
    path: Path = Field(
        description="CSV with the columns case, structure, x_min, y_min, x_max, y_max in pixels of the image, or JSON "
        "{case: {structure: [x_min, y_min, x_max, y_max]}}."
    )


class MaskPrompts(Settings):
    """Boxes of the masks that another segmenter made (kind from_masks)."""

    kind: Literal["from_masks"] = Field(description="from_masks: boxes of masks that another segmenter made.")
    path: Path = Field(description="Folder of masks with the names of the images, such as labels/ of predict.")
    margin: float = Field(0.0, ge=0, description="Pixels of the image by which each side is moved outwards.")
    jitter: float = Field(
        0.0, ge=0, description="Each side is moved by up to so many pixels, at random; the same for a case each time."
    )
    seed: int = Field(0, ge=0, description="Of the jitter.")


PromptSettings = Annotated[FixedPrompts | FilePrompts | MaskPrompts, Field(discriminator="kind")]
"""Where the prompts of a promptable segmenter come from."""


class TextPrompts(Settings):
    """Words for each structure (kind text)."""

    kind: Literal["text"] = Field("text", description="text: words for each structure.")
    texts: dict[str, str] = Field(
        default_factory=dict,
        description="By structure, what to look for: {LV: left heart ventricle in cardiac ultrasound}. A structure "
        "that is not here is asked for by its name.",
    )

    @field_validator("texts")
    @classmethod
    def _each_is_one_prompt(cls, texts: dict[str, str]) -> dict[str, str]:
        for name, text in texts.items():
            if not text.strip() or "[SEP]" in text:
                raise ValueError(f"{name}: needs words for one prompt, without [SEP]")
        return texts


PromptableKind = Annotated[
    Literal["litemedsam", "medsam", "medsam2"],
    Field(description="litemedsam: LiteMedSAM. medsam: MedSAM. medsam2: MedSAM2, image by image. Prompted by boxes."),
]


class PromptedStructures(Settings):
    """What `segmenter.json` says of the structures of any prompted segmenter, and of its images."""

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

    kind: PromptableKind
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


class PromptableSettings(Settings):
    """The segmenter to adapt: one that is prompted by boxes (kind litemedsam, medsam or medsam2)."""

    kind: PromptableKind
    folder: Path = Field(description="Folder with segmenter.json and, where it names one, a checkpoint.")
    prompts: PromptSettings | None = Field(
        None, description="Where boxes come from; null: as segmenter.json in the folder says."
    )
    train: Scope = "decoder"
    lora: LowRank = LoRASettings()


class BiomedParseSettings(Settings):
    """The segmenter to adapt: BiomedParse v2, prompted by words (kind biomedparse)."""

    kind: Literal["biomedparse"] = Field(description="biomedparse: BiomedParse v2. Prompted by words.")
    folder: Path = Field(description="Folder with segmenter.json, which names the checkout, and a checkpoint.")
    prompts: TextPrompts | None = Field(None, description="Words; null: as segmenter.json in the folder says.")
    train: Scope = "decoder"
    lora: LowRank = LoRASettings()


def _kind_of(segmenter: Any) -> Any:
    return segmenter.get("kind", "torch") if isinstance(segmenter, dict) else getattr(segmenter, "kind", None)


SEGMENTER_KINDS: tuple[str, ...] = (
    "torch",
    "nnunet",
    "totalsegmentator",
    "monai-bundle",
    "litemedsam",
    "medsam",
    "medsam2",
    "biomedparse",
)
Segmenter = Annotated[
    Annotated[SegmenterSettings, Tag("torch")]
    | Annotated[NnUNetSettings, Tag("nnunet")]
    | Annotated[TotalSegmentatorSettings, Tag("totalsegmentator")]
    | Annotated[MonaiBundleSettings, Tag("monai-bundle")]
    | Annotated[PromptableSettings, Tag("litemedsam")]
    | Annotated[PromptableSettings, Tag("medsam")]
    | Annotated[PromptableSettings, Tag("medsam2")]
    | Annotated[BiomedParseSettings, Tag("biomedparse")],
    Discriminator(
        _kind_of,
        custom_error_type="segmenter_kind",
        custom_error_message=f"kind must be one of {', '.join(SEGMENTER_KINDS)}",
    ),
]
"""The settings of a segmenter; `kind` says of which, and is torch where it is not given."""


class NetworkSettings(Settings):
    """A MONAI UNet, the architecture of source segmenters, reward networks and critics."""

    channels: tuple[Positive, ...] = Field((16, 32, 64, 128), min_length=2, description="Feature maps per level.")
    residual_units: int = Field(1, ge=0, description="Residual units per level; 0 for plain convolutions.")
    norm: Literal["instance", "batch", "group"] = Field("instance", description="Normalisation layer.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout rate.")


class PreprocessingSettings(Settings):
    """How an image becomes the network's input."""

    size: tuple[Positive, ...] = Field(
        (112, 112),
        min_length=2,
        max_length=3,
        description="Pixel grid of the network's input (or patch), array order: (H, W) or (D, H, W).",
    )
    grid: Literal["resize", "native"] = Field(
        "resize",
        description="resize: the whole image is resampled to `size`. native: the image keeps its pixels and the "
        "network slides over it in patches of `size`.",
    )
    intensity: Literal["zscore", "minmax", "none"] = Field(
        "zscore", description="Per image and channel: zero mean and unit variance, to [0, 1], or as in the file."
    )


class SourceTrainingSettings(Settings):
    """Supervised training of a source segmenter."""

    epochs: Positive = Field(30, description="Passes over the training cases, at most.")
    batch_size: Positive = Field(8, description="Images per step.")
    learning_rate: float = Field(1e-3, gt=0, description="Of AdamW, decayed to 0 along a cosine.")
    validation_fraction: float = Field(0.1, gt=0, lt=1, description="Share of patients that pick the best epoch.")
    augment: bool = Field(True, description="Small rotations, scalings and changes of brightness and contrast.")


class TrainSourceConfig(Settings):
    """`medfm-rl train-source`: train a segmenter on labelled source data."""

    data: DataSettings = Field(description="Labelled source data.")
    structures: dict[str, int] = Field(description="Structures by name, with their integer in the label files.")
    in_channels: Positive = Field(1, description="Channels of the images.")
    output: Path = Field(description="Folder of the segmenter to write; it must not exist or be empty.")
    network: NetworkSettings = Field(default_factory=NetworkSettings, description="Architecture.")
    preprocessing: PreprocessingSettings = Field(
        default_factory=PreprocessingSettings, description="Input of the network."
    )
    training: SourceTrainingSettings = Field(default_factory=SourceTrainingSettings, description="Optimisation.")
    seed: int = Field(0, ge=0, description="Of every random choice.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: cuda, then mps, then cpu.")


class WarmUpSettings(Settings):
    """Fine-tuning on labelled source images in the look of the target, and on target images with own masks."""

    steps: int = Field(
        800,
        ge=0,
        description="Training steps; 0 starts PPO from the segmenter as it is. The weights of the last quarter are "
        "averaged.",
    )
    batch_size: Positive = Field(16, description="Images per step.")
    learning_rate: float = Field(5e-4, gt=0, description="Of AdamW; halved half-way.")
    appearance_strength: float = Field(1.0, ge=0, le=3, description="Strength of the random appearance.")
    shape_strength: float = Field(
        2.0, ge=0, le=5, description="Strength of random rotations, scalings, shears and shifts; 1 as in train-source."
    )
    elastic: float = Field(
        0.06, ge=0, le=0.2, description="Largest smooth random displacement, as a share of the image size."
    )
    target_start: Fraction = Field(
        0.5,
        description="Share of the steps after which target images join, with the masks made of them by then. "
        "Without a source they are there from the start, and their masks are made anew then.",
    )
    target_weight: float = Field(1.0, ge=0, description="Weight of the loss on target images; 0 leaves them out.")
    target_batch_size: Positive = Field(8, description="Target images per step, beside those of the source.")
    source_share: float = Field(
        0.4,
        ge=0,
        lt=1,
        description="Share of the source policy's weights in the result. More: a smaller gain, fewer cases made worse. "
        "Less is taken where so much would cost more than .01 of Dice on source images.",
    )


class CollectSettings(Settings):
    """How actions are collected into the reward data set D_R."""

    source_images: Positive = Field(
        800, description="Source images per iteration, each shown in a new appearance (source-assisted mode)."
    )
    target_images: Positive = Field(400, description="Target images per iteration.")
    actions_per_image: int = Field(5, ge=2, description="Actions kept for each image.")
    shard_images: Positive = Field(100, description="Images per file of D_R; collection resumes at the next file.")
    appearance_strength: float = Field(
        1.0, ge=0, le=3, description="Strength of the random appearance of source images; 0 shows them as they are."
    )
    weight_noise: float = Field(
        0.05, ge=0, le=1, description="Relative standard deviation of the noise put on the policy's weights."
    )
    reference_agreement: Fraction = Field(
        0.8,
        description="A target pixel teaches the reward network only where this share of the augmented and perturbed "
        "predictions agree with the reference.",
    )
    reference_trust: float = Field(
        0.25,
        gt=0,
        le=1,
        description="Weight of target references next to ground truth of the source. They come from the policy itself: "
        "trusted fully, they teach the reward network that the policy is right.",
    )


class ShapePriorSettings(Settings):
    """The autoencoder of masks that proposes anatomically plausible references."""

    latent: Positive = Field(32, description="Size of the code of a mask.")
    epochs: Positive = Field(30, description="Passes over the source masks.")
    batch_size: Positive = Field(16, description="Masks per step.")
    learning_rate: float = Field(2e-3, gt=0, description="Of AdamW.")


class RewardSettings(Settings):
    """Reward networks: architecture, training, calibration and fusion."""

    network: NetworkSettings = Field(
        default_factory=lambda: NetworkSettings(channels=(16, 32, 64, 128)), description="Architecture of each."
    )
    ensemble: int = Field(2, ge=1, le=10, description="Reward networks that the policy follows.")
    fusion: Literal["mean", "min", "mean_minus_std"] = Field(
        "mean_minus_std", description="How the maps of the ensemble become one. min and mean_minus_std are pessimistic."
    )
    pessimism: float = Field(0.5, ge=0, description="k in mean - k * standard deviation.")
    steps: Positive = Field(
        800, description="Training steps at most, for each network. Too few and the judge cannot tell good from bad."
    )
    validate_every: Positive = Field(100, description="Steps between validations; the best one's weights are kept.")
    patience: Positive = Field(4, description="Validations without a better loss before training stops.")
    batch_size: Positive = Field(16, description="Actions per step.")
    learning_rate: float = Field(3e-3, gt=0, description="Of AdamW, decayed to 0 along a cosine.")
    error_weight: float = Field(
        3.0, ge=1, description="Weight of wrong pixels in the loss; they are a few percent of a map."
    )
    contour_weight: float = Field(2.0, ge=1, description="Weight of pixels near a contour of the action.")
    validation_fraction: float = Field(
        0.2, gt=0, lt=0.9, description="Share of patients held out for early stopping and calibration."
    )


class PPOSettings(Settings):
    """Fine-tuning of the policy. Names are stable-baselines3's where it has one."""

    updates: Positive = Field(40, description="PPO updates (rollout and optimisation) per iteration.")
    n_envs: Positive = Field(16, description="Images per rollout.")
    n_epochs: Positive = Field(5, description="Inner epochs K on each rollout.")
    learning_rate: float = Field(1e-4, gt=0, description="Of Adam, actor.")
    critic_learning_rate: float = Field(1e-3, gt=0, description="Of Adam, critic.")
    clip_range: float = Field(0.2, gt=0, lt=1, description="Clip of the per-pixel ratio.")
    ent_coef: float = Field(0.0, ge=0, description="Weight of the entropy bonus.")
    kl_coef: float = Field(0.5, ge=0, description="Weight of the KL divergence to the policy before PPO, frozen.")
    target_kl: float | None = Field(
        None, gt=0, description="Inner epochs stop beyond 1.5 times this KL to the rollout."
    )
    max_grad_norm: float = Field(0.5, gt=0, description="Gradient norms of actor and critic, clipped apart.")
    appearance_strength: float = Field(
        1.0,
        ge=0,
        le=3,
        description="Strength of the random appearance in which the policy sees target images; the reward networks see "
        "them as they are.",
    )
    baseline: Literal["critic", "greedy"] = Field(
        "greedy", description="Advantage against the critic's value, or against the reward of the argmax action."
    )
    exploration: Literal["independent", "correlated"] = Field(
        "correlated", description="Noise of the sampled actions: per pixel, or smooth in space."
    )
    correlation_length: float = Field(
        4.0, gt=0, description="Standard deviation in pixels of the Gaussian that correlates the noise."
    )
    eval_every: Positive = Field(10, description="Updates between checkpoints that compete in the selection.")


class SelectionSettings(Settings):
    """Choice of the best average of checkpoints without labels, by a judge that the policy was not trained on."""

    target_fraction: float = Field(
        0.3, gt=0, lt=1, description="Share of target patients on whose images the judge compares candidates."
    )
    confidence: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="Share of bootstrap draws over patients in which a candidate must beat the incumbent: the average "
        "of the warm-up and PPO's first checkpoint, or the source policy where there is no warm-up. The source policy "
        "may win it back in the same way.",
    )
    margin: float = Field(
        0.005,
        ge=0,
        lt=1,
        description="By how much of the judge's score a candidate must beat it. What PPO makes pleases the judge by "
        "a few thousandths whether or not it is better.",
    )


class CorrectionSettings(Settings):
    """Correction of one case, and when its result is accepted."""

    method: Literal["views", "optimise", "none", "tta", "tent", "intent", "memo", "components", "shape-prior"] = Field(
        "views",
        description="How a better mask is sought: views averages over random views, those with the better masks by the "
        "reward networks more; optimise follows the reward; none refers every case; tta averages "
        "over random appearances; tent, intent and memo adapt a copy of the segmenter by its entropy (intent needs "
        "batch normalisation); components keeps the largest parts and fills holes, as the anatomy rules say; "
        "shape-prior projects on shapes of the source.",
    )
    views: Positive = Field(
        16, description="Random views of a case that a vote is taken of; the judge looks at as many others."
    )
    objective: Literal["reward", "ppo"] = Field(
        "reward",
        description="How the optimiser follows the reward: by its gradient, or by PPO on random appearances.",
    )
    optimise: Literal["logits", "norm", "decoder", "all"] = Field(
        "logits",
        description="What changes for one case: its logits (one network pass, the cheapest), or a copy of the "
        "normalisation layers, the decoder or all weights.",
    )
    steps: Positive = Field(30, description="Gradient steps, at most.")
    patience: Positive = Field(8, description="Steps without a better reward before it stops.")
    learning_rate: float = Field(0.5, gt=0, description="Of Adam on logits.")
    weight_learning_rate: float = Field(1e-3, gt=0, description="Of Adam on weights.")
    smoothness: Positive = Field(
        4, description="Logits change on a grid that is this many times coarser than the image, not pixel by pixel."
    )
    kl_coef: float = Field(
        0.3,
        ge=0,
        description="Weight of the KL divergence to the deployed segmenter. On perturbed lung images of held-out "
        "source patients .01 did harm in a tenth of the cases, .3 in 0 and 3 %.",
    )
    seconds: float = Field(
        10.0,
        gt=0,
        description="Time for one case: when it is over no step and no view is begun, and what there is counts.",
    )
    margin: float = Field(0.005, ge=0, lt=1, description="Gain in the Dice that the judge expects which is needed.")
    margin_given: float = Field(
        0.04,
        ge=0,
        lt=1,
        description="The same for masks that another segmenter made: the judge looks at views of the run's segmenter, "
        "and leans to what that would do.",
    )
    tolerance: float = Field(
        0.05, ge=0, lt=1, description="By how much the Dice of a single structure may fall, as the judge expects it."
    )
    max_change: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Largest accepted distance from the original mask, 1 - mean Dice between the two. What is right is "
        "far from a mask that is bad.",
    )


class TrackingSettings(Settings):
    """MLflow."""

    uri: str | None = Field(
        "auto", description="MLflow tracking URI; auto: an SQLite store beside the run folder; null: no tracking."
    )
    experiment: str = Field("medfm-rl", description="MLflow experiment.")


class AdaptConfig(Settings):
    """`medfm-rl adapt`: adapt a segmenter to a new domain without target labels."""

    segmenter: Segmenter = Field(description="The segmenter to adapt.")
    target: DataSettings = Field(description="Images of the new domain. Labels, where there are any, are not read.")
    source: DataSettings | None = Field(
        None, description="Labelled source data, or null for the source-free mode (weaker: see the docs)."
    )
    evaluation: DataSettings | None = Field(
        None, description="Labelled target data for the final table. Only the evaluation reads it."
    )
    output: Path = Field(description="Folder of the run.")
    anatomy: str = Field(
        "generic",
        description="Validity rules: a built-in profile (echo_apical, cardiac_short_axis, lungs, generic) or a YAML "
        "file.",
    )
    iterations: Positive = Field(1, description="Rounds of collect -> reward -> PPO.")
    warm_up: WarmUpSettings = Field(default_factory=WarmUpSettings, description="Start before the first iteration.")
    collect: CollectSettings = Field(default_factory=CollectSettings, description="Collection of actions.")
    shape_prior: ShapePriorSettings = Field(default_factory=ShapePriorSettings, description="Autoencoder of masks.")
    reward: RewardSettings = Field(default_factory=RewardSettings, description="Reward networks.")
    ppo: PPOSettings = Field(default_factory=PPOSettings, description="Fine-tuning.")
    selection: SelectionSettings = Field(default_factory=SelectionSettings, description="Choice of the checkpoint.")
    tracking: TrackingSettings = Field(default_factory=TrackingSettings, description="MLflow.")
    seed: int = Field(0, ge=0, description="Of every random choice.")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: cuda, then mps, then cpu.")

    @model_validator(mode="after")
    def _output_is_not_an_input(self) -> AdaptConfig:
        inputs = {self.segmenter.folder, self.target.path}
        if self.output in inputs:
            raise ValueError(f"output {self.output} is also an input; choose a folder of its own")
        return self
