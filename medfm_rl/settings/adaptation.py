"""Every stage of `medfm-rl adapt`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from medfm_rl.builtin import anatomy_names
from medfm_rl.settings.base import Device, Fraction, Positive, Settings
from medfm_rl.settings.data import DataSettings
from medfm_rl.settings.feedback import FeedbackSettings
from medfm_rl.settings.kinds import Segmenter
from medfm_rl.settings.tracking import TrackingSettings
from medfm_rl.settings.training import NetworkSettings


class FineTuningSettings(Settings):
    """Fine-tuning on labelled source images in the look of the target, and on target images with own masks."""

    steps: int = Field(
        800,
        ge=0,
        description="Training steps; 0 starts PPO from the segmenter as it is. The weights of the last quarter are "
        "averaged.",
    )
    batch_size: Positive = Field(16, description="Images per step.")
    learning_rate: float = Field(5e-4, gt=0, description="Learning rate of AdamW, halved half-way.")
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
    clip_images: int = Field(
        200,
        ge=0,
        description="Frames of target clips per iteration whose reference is the vote of the frames before and after, "
        "carried along by the images' motion. Without clips among the target images there are none; 0 turns it off.",
    )
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
    learning_rate: float = Field(2e-3, gt=0, description="Learning rate of AdamW.")


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
        800, description="Training steps at most, for each network. Too few and they cannot tell good from bad."
    )
    validate_every: Positive = Field(100, description="Steps between validations; the best one's weights are kept.")
    patience: Positive = Field(4, description="Validations without a better loss before training stops.")
    batch_size: Positive = Field(16, description="Actions per step.")
    learning_rate: float = Field(3e-3, gt=0, description="Learning rate of AdamW, decayed to 0 along a cosine.")
    error_weight: float = Field(
        3.0, ge=1, description="Weight of wrong pixels in the loss; they are a few percent of a map."
    )
    contour_weight: float = Field(2.0, ge=1, description="Weight of pixels near a contour of the action.")
    validation_fraction: float = Field(
        0.2, gt=0, lt=0.9, description="Share of patients held out for early stopping and calibration."
    )


class PPOHyperparameters(Settings):
    """Hyper-parameters of `DensePPO`. Names are stable-baselines3's where it has one."""

    learning_rate: float = Field(1e-4, gt=0, description="Learning rate of the actor's Adam.")
    critic_learning_rate: float = Field(1e-3, gt=0, description="Learning rate of the critic's Adam.")
    n_epochs: Positive = Field(5, description="Inner epochs K on each rollout.")
    clip_range: float = Field(0.2, gt=0, lt=1, description="Clip of the per-pixel ratio.")
    ent_coef: float = Field(0.0, ge=0, description="Weight of the entropy bonus.")
    kl_coef: float = Field(0.5, ge=0, description="Weight of the KL divergence to the policy before PPO, frozen.")
    target_kl: float | None = Field(
        None, gt=0, description="Inner epochs stop beyond 1.5 times this KL to the rollout."
    )
    max_grad_norm: float = Field(0.5, gt=0, description="Gradient norms of actor and critic, clipped apart.")
    baseline: Literal["critic", "greedy"] = Field(
        "greedy", description="Advantage against the critic's value, or against the reward of the argmax action."
    )
    exploration: Literal["independent", "correlated"] = Field(
        "correlated", description="Noise of the sampled actions: per pixel, or smooth in space."
    )
    correlation_length: float = Field(
        4.0, gt=0, description="Standard deviation in pixels of the Gaussian that correlates the noise."
    )

    @property
    def noise_length(self) -> float:
        """Correlation length of the noise of sampled actions, in pixels; 0 where pixels are independent."""
        return self.correlation_length if self.exploration == "correlated" else 0.0


class PPOSettings(PPOHyperparameters):
    """Fine-tuning of the policy by PPO."""

    updates: Positive = Field(40, description="PPO updates (rollout and optimisation) per iteration.")
    n_envs: Positive = Field(16, description="Images per rollout.")
    appearance_strength: float = Field(
        1.0,
        ge=0,
        le=3,
        description="Strength of the random appearance in which the policy sees target images; the reward networks see "
        "them as they are.",
    )
    eval_every: Positive = Field(10, description="Updates between checkpoints that compete in the selection.")
    neighbour_share: Fraction = Field(
        0.5,
        description="Share that the frames before and after, carried along by the images' motion, have in the reward "
        "of a frame of a clip, beside the reward networks; 0 leaves the reward to these.",
    )
    rule_share: Fraction = Field(
        0.0,
        description="Share that the anatomy rules have in the reward of a target image whose mask breaks one when PPO "
        "starts: how many of them an action meets. 0 leaves the reward to the networks.",
    )


class SelectionSettings(Settings):
    """Choice of the best average of checkpoints without labels, by a reward network that no policy learned from."""

    target_fraction: float = Field(
        0.3, gt=0, lt=1, description="Share of target patients on whose images candidates are compared."
    )
    confidence: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="Share of bootstrap draws over patients in which a candidate must beat the incumbent: the average "
        "of the fine-tuning and PPO's first checkpoint, or the source policy where there is none. The source policy "
        "may win it back in the same way.",
    )
    margin: float = Field(
        0.005,
        ge=0,
        lt=1,
        description="By how much of the held-out reward a candidate must beat it. What PPO makes pleases the network "
        "by a few thousandths whether or not it is better.",
    )


class AdaptConfig(Settings):
    """`medfm-rl adapt`: adapt a segmenter to a new domain without target labels."""

    former_names: ClassVar[Mapping[str, str]] = {"warm_up": "fine_tuning"}

    segmenter: Segmenter = Field(
        description="The segmenter to adapt. `medfm-rl init --kinds` lists the kinds that there are."
    )
    target: DataSettings = Field(description="Images of the new domain. Labels, where there are any, are not read.")
    source: DataSettings | None = Field(
        None, description="Labelled source data, or null for the source-free mode (weaker: see the docs)."
    )
    feedback: FeedbackSettings | None = Field(
        None, description="What reviewers and reports said of target cases, or null where nobody has."
    )
    continues: Path | None = Field(
        None,
        description="An adapted run of the same segmenter to go on from, with its D_R, reward networks and result; or "
        "null. The output is a folder of its own.",
    )
    evaluation: DataSettings | None = Field(
        None, description="Labelled target data for the final table. Only the evaluation reads it."
    )
    output: Path = Field(description="Folder of the run.")
    anatomy: str = Field(
        "generic",
        description=f"Validity rules: a built-in profile ({anatomy_names()}) or a YAML file.",
    )
    recompute: bool = Field(
        False,
        description="Compute activations of the segmenter again for each gradient in place of keeping them: a third "
        "more time in training for a fraction of the memory, and the same result. A run that does not fit into the "
        "memory sets it by itself, and says so.",
    )
    iterations: Positive = Field(1, description="Rounds of collect -> reward -> PPO.")
    fine_tuning: FineTuningSettings = Field(
        default_factory=FineTuningSettings, description="Start before the first iteration."
    )
    collect: CollectSettings = Field(default_factory=CollectSettings, description="Collection of actions.")
    shape_prior: ShapePriorSettings = Field(default_factory=ShapePriorSettings, description="Autoencoder of masks.")
    reward: RewardSettings = Field(default_factory=RewardSettings, description="Reward networks.")
    ppo: PPOSettings = Field(default_factory=PPOSettings, description="Fine-tuning.")
    selection: SelectionSettings = Field(default_factory=SelectionSettings, description="Choice of the checkpoint.")
    tracking: TrackingSettings = Field(default_factory=TrackingSettings, description="MLflow.")
    seed: int = Field(0, ge=0, description="Seed of every random choice.")
    device: Device = "auto"

    @model_validator(mode="after")
    def _output_is_not_an_input(self) -> AdaptConfig:
        data = (self.target, self.source, self.evaluation)
        inputs = {self.segmenter.folder, *(each.path for each in data if each is not None)}
        if self.output in inputs:
            raise ValueError(f"output {self.output} is also an input; choose a folder of its own")
        return self
