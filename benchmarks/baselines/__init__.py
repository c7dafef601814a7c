"""Baselines: published methods that a user could take instead of medfm-rl, without target labels either.

Every baseline starts from the same source model, gets the same unlabelled target images, and those that need them the
labelled source images. Where its authors leave a setting open, or theirs were made for other data, a few candidates
are tried and the one is kept whose masks of the target images are valid and stay the same when the images change their
appearance a little (`steadiness`): no target label is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.baselines.input_style import fourier_domain_adaptation, histogram_matching
from benchmarks.baselines.normalisation import adabn, intent, tent
from benchmarks.baselines.problem import Problem
from benchmarks.baselines.pseudo_labels import mean_teacher, self_training
from benchmarks.baselines.rl4seg import adapt as adapt_like_rl4seg
from medfm_rl.adapters import SegmenterAdapter
from medfm_rl.progress import Progress

__all__ = ["BASELINES", "Baseline", "Problem"]


@dataclass(frozen=True)
class Baseline:
    """A method, and what was done to it here.

    Attributes:
        adapt: Gives the adapted segmenter; the source model stays as it is.
        source_free: Whether it needs no source images.
        paper: Where it is published.
        settings: The authors' settings, what was changed, and what was tried.
    """

    adapt: Callable[[Problem, Progress], SegmenterAdapter]
    source_free: bool
    paper: str
    settings: str


BASELINES: dict[str, Baseline] = {
    "adabn": Baseline(
        adabn,
        True,
        "Li et al., Revisiting Batch Normalization For Practical Domain Adaptation, arXiv 1603.04779",
        "Batch statistics of all target images. Nothing to tune.",
    ),
    "tent": Baseline(
        tent,
        True,
        "Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization, ICLR 2021, arXiv 2006.10726",
        "Scale and shift of batch normalisation, statistics of the batch, Adam, 1 epoch over the target images, "
        "batches of 16. Learning rate 1e-3 (theirs) or 1e-4, by steadiness. Theirs predicts batch by batch; here "
        "the statistics of the target images are kept, because a case comes alone.",
    ),
    "intent": Baseline(
        intent,
        True,
        "Dong et al., Medical Image Segmentation with InTEnt, CVPR Workshops 2024, arXiv 2402.09604",
        "Six mixtures of the statistics of source and test image, from 0 to 1; probabilities averaged with the "
        "softmax of their normalised balanced entropy. Their two classes became K: the entropy is averaged over "
        "predicted classes. Nothing to tune.",
    ),
    "self-training": Baseline(
        self_training,
        True,
        "Lee, Pseudo-Label, ICML Workshops 2013; threshold as in Sohn et al., FixMatch, arXiv 2001.07685",
        "2 rounds of 150 steps on the segmenter's own masks where its confidence is above the threshold, .95 "
        "(FixMatch) or .8, by steadiness; cross-entropy, AdamW 1e-4, batches of 16, rotations, scalings, contrast.",
    ),
    "mean-teacher": Baseline(
        mean_teacher,
        False,
        "Tarvainen and Valpola, arXiv 1703.01780; for domains Perone et al., arXiv 1811.06042",
        "300 steps of 8 source and 8 target images; Dice and cross-entropy on the source, squared difference of "
        "probabilities to the teacher on the target in other contrast and noise, sigmoid ramp-up over the first 40 "
        "%; average with decay .99; AdamW 1e-4. Consistency weight 1 or 10, by steadiness. The teacher is "
        "returned.",
    ),
    "histogram-matching": Baseline(
        histogram_matching,
        False,
        "Nyul and Udupa, Magnetic Resonance in Medicine 1999",
        "Each test image gets the mean grey-value distribution of the source images. Nothing to tune.",
    ),
    "fda": Baseline(
        fourier_domain_adaptation,
        False,
        "Yang and Soatto, FDA: Fourier Domain Adaptation for Semantic Segmentation, CVPR 2020, arXiv 2004.05498",
        "Source images with the low Fourier amplitudes of target images, cross-entropy, plus the robust entropy of "
        "target images (power 2, weight .005); one model for each band .01, .05, .09 (theirs), 150 steps each, "
        "AdamW 1e-4; their probabilities are averaged. Their rounds of self-training are left out.",
    ),
    "rl4seg": Baseline(
        adapt_like_rl4seg,
        True,
        "Judge et al., Domain Adaptation of Echocardiography Segmentation Via Reinforcement Learning, MICCAI 2024, "
        "arXiv 2406.17902, and its code",
        "Theirs: 4 iterations. D_R: where the mask is valid and agrees with its projection on the shape prior (Dice > "
        ".95), it is the reference of masks of perturbed weights (4), contrast (2), noise (2) and of another image, "
        "empty ones left out; else the projection, where valid, is the reference of the sampled mask. D_R and "
        "references are kept. A new reward network each time: BCE on the error map, Adam 1e-3, falling on a plateau, "
        "best validation loss. PPO: batches of 8 i, K = 5, clip .2, critic with a sigmoid, entropy .3 / 2i, "
        "divergence .1 / 2i from the source policy, images with a reference get it as action with reward 1, gradients "
        "of the actor clipped at .5; the epoch with the highest mean reward of sampled actions is kept. The shape "
        "prior is learnt from source masks, as theirs is. Changed: 300 steps of 16 for a reward network (theirs 50 "
        "epochs of 64) and 3 epochs of PPO (theirs 5, on about 2500 images) in each iteration; the best epoch is that "
        "of the target images, not of others. Tried, by steadiness: Adam 5e-4 with moving batch statistics and "
        "weights halved and perturbed before each PPO (theirs), or Adam 1e-4 with neither, for short runs. Left out: "
        "morphological repair before the projection.",
    ),
}
