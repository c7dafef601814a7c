"""A site's policy, bound to a quality model: the limits that hold, the promise that counts, and what is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from medfm_rl.errors import ConfigError
from medfm_rl.metrics.scores import MEAN
from medfm_rl.quality.model import QualityModel, Targets
from medfm_rl.quality.promises import PromiseTarget
from medfm_rl.quality.reports import Action, Guarantee, Verdict
from medfm_rl.settings import SitePolicy


@dataclass(frozen=True)
class Terms:
    """What a policy asks of the masks that a quality model assesses.

    Attributes:
        policy: The policy.
        model: The quality model.
        limits: Dice below which a mask is bad: by structure, and of the mean.
        alpha: Largest probability of a bad mask with which one is accepted.
        confidence: Confidence that a promise must have.
        threshold: Predicted mean Dice from which masks are accepted under the promise of the calibration; None where
            there is no such promise, or none that answers what the policy asks.
        no_threshold: Why there is none; empty where there is one.
        reviewed: Patients whose reviews tell how far predictions miss (`quality.reviewed_errors`); 0 where the
            calibration alone does.
    """

    policy: SitePolicy
    model: QualityModel
    limits: Mapping[str, float]
    alpha: float
    confidence: float
    threshold: float | None
    no_threshold: str
    reviewed: int = 0

    @classmethod
    def bind(cls, policy: SitePolicy, model: QualityModel, reviewed: int = 0) -> Terms:
        """The terms of a policy for the masks of a quality model.

        Args:
            policy: The policy.
            model: The quality model.
            reviewed: As in the attributes.

        Raises:
            ConfigError: The policy names a structure that the model does not know, or a limit of the mean that the
                limits of the structures contradict.
        """
        known = (*model.names[1:], MEAN)
        for name in policy.limits:
            if name not in known:
                raise ConfigError(
                    f"policy {policy.name}: limits names {name}; this run has {', '.join(known)}: write one of these"
                )
        limits = {MEAN: model.targets.dice, **policy.limits}
        of_structures = [limits[name] for name in model.names[1:] if name in limits]
        if MEAN in policy.limits and len(of_structures) == len(model.names) - 1:
            least = sum(of_structures) / len(of_structures)
            if limits[MEAN] < least - 1e-9:
                raise ConfigError(
                    f"policy {policy.name}: the limits contradict each other: a mask that keeps those of "
                    f"{', '.join(model.names[1:])} has a mean Dice of {least:.3g} at least, so that mean: "
                    f"{limits[MEAN]:g} would never decide; raise it, or leave out one of them"
                )
        alpha = model.targets.alpha if policy.alpha is None else policy.alpha
        confidence = model.targets.confidence if policy.confidence is None else policy.confidence
        terms = cls(policy, model, limits, alpha, confidence, None, model.accept_reason, reviewed)
        if model.accept_threshold is None:
            return terms
        if reviewed:
            why = "the threshold is of predictions as the calibration left them, and reviewed patients have moved them"
            return replace(terms, no_threshold=why)
        why = terms.why_not_answered(model.targets)
        return replace(terms, threshold=None if why else model.accept_threshold, no_threshold=why)

    @property
    def known_patients(self) -> str:
        """The patients by whose errors verdicts and intervals go, in words."""
        if self.reviewed:
            return f"{self.reviewed} reviewed patients, who were drawn at random"
        return f"{self.model.conformal_patients} calibration patients"

    @property
    def failure(self) -> str:
        """A bad mask in words."""
        named = sorted(self.limits.items(), key=lambda item: item[0] != MEAN)
        return " or ".join(
            f"a {'mean Dice' if name == MEAN else f'Dice of {name}'} below {limit:g}" for name, limit in named
        )

    def act(self, verdict: Verdict, guarantee: Guarantee) -> tuple[Action, str]:
        """What the policy does with a mask, and why."""
        name = self.policy.name
        if verdict != "accept":
            return verdict, f"policy {name}: the verdict is acted on"
        if guarantee == "proven":
            return "use", f"policy {name}: accepted under a promise that was proven"
        outcome = self.policy.unproven if guarantee == "expected" else self.policy.suspended
        what = "unproven" if guarantee == "expected" else "suspended"
        action: Action = "use" if outcome == "accept" else "refer"
        return action, f"policy {name}: {what}: {outcome}"

    def why_not_answered(self, promised: Targets | PromiseTarget) -> str:
        """Why a promise does not answer what the policy asks; empty where it does.

        A promise of a higher limit, a smaller share or more confidence than what is asked answers it too.
        """
        others = [name for name in self.limits if name != MEAN]
        if others:
            return f"the promise is of the mean Dice, and the policy has limits of {', '.join(others)} too"
        for what, asked, given, option in (
            ("a mean Dice of", self.limits[MEAN], promised.dice, "dice"),
            ("a confidence of", self.confidence, promised.confidence, "confidence"),
        ):
            if asked > given:
                return (
                    f"the promise is for {what} {given:g}, and the policy asks for {asked:g}: calibrate with "
                    f"--{option} {asked:g}"
                )
        if self.alpha < promised.alpha:
            return (
                f"the promise is for a share of {promised.alpha:g}, and the policy asks for {self.alpha:g}: calibrate "
                f"with --alpha {self.alpha:g}"
            )
        return ""
