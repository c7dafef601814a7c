"""`correction.json`: the margin that an accepted correction needs so that few of them do harm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from medfm_rl.data.files import write_text
from medfm_rl.data.json_models import read_model
from medfm_rl.quality.conformal import accept_threshold, fewest_for_threshold
from medfm_rl.seeding import numpy_generator
from medfm_rl.settings import CorrectionSettings
from medfm_rl.version import __version__

HARM = 0.01
"""A correction does harm where the mean Dice falls by more than this."""
# As many as `fewest_for_threshold` counts on. Fixed beforehand: no case has to be spent on finding them.
_MARGINS = (0.0, 0.005, 0.01, 0.02, 0.04)
# `seconds` only says when a case ends: corrections whose time budget ended early neither count here nor are promised
# anything.
_UNRELATED = {"margin", "margin_given", "seconds"}


class HarmTarget(BaseModel):
    """The demands on accepted corrections.

    Attributes:
        alpha: Largest share of them that may do harm.
        confidence: Confidence of that statement.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    alpha: float = Field(0.1, gt=0, lt=0.5)
    confidence: float = Field(0.9, gt=0.5, lt=1)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a labelled case whose correction met every condition but the margin.

    Attributes:
        patient_id: Cases of one patient count once.
        gain: Verifier's gain, at least 0.
        harmed: Whether the true mean Dice fell by more than `HARM`.
    """

    patient_id: str
    gain: float
    harmed: bool


class Acceptance(BaseModel):
    """The content of `correction.json`.

    Attributes:
        format: Format of this file.
        version: Version of medfm-rl that wrote it.
        created: UTC, ISO 8601.
        cases: Labelled cases that were looked at, each appearance counted.
        patients: Their patients.
        proposals: Patients with a correction that met every condition but the margin.
        target: What was asked.
        margin: What the verifier's gain must reach; None where no margin can be shown to keep the limit.
        reason: What is promised, or why nothing is.
        segmenter: SHA-256 of the segmenter's folder.
        reward: SHA-256 of the folder of the reward networks and the verifier.
        rules: SHA-256 of the anatomy rules.
        settings: How corrections were made and verified.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    format: Literal[1] = 1
    version: str
    created: str
    cases: int
    patients: int
    proposals: int
    target: HarmTarget
    margin: float | None
    reason: str
    segmenter: str
    reward: str
    rules: str
    settings: dict[str, Any]

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        write_text(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Acceptance:
        """Reads and validates the file.

        Raises:
            ModelError: It is missing, damaged, or of a newer version.
        """
        advice = f"make it again by `medfm-rl calibrate-correction {path.parent} --labelled DIR`"
        return read_model(path, cls, 1, "the acceptance of corrections", advice)

    def apply(self, settings: CorrectionSettings, hashes: dict[str, str]) -> tuple[CorrectionSettings, str]:
        """The settings with the calibrated margin, and what is promised; as they were where it does not fit them.

        Args:
            settings: Settings of this correction.
            hashes: `segmenter`, `reward` and `rules`, SHA-256 of what makes and verifies it.
        """
        ours = {"segmenter": self.segmenter, "reward": self.reward, "rules": self.rules}
        if hashes != ours or _relevant(settings) != self.settings:
            return settings, "no error rate is promised: correction.json is of other networks, rules or settings"
        if self.margin is None:
            return settings, f"no error rate is promised: {self.reason}"
        return settings.model_copy(update={"margin": self.margin}), f"promised for cases like these: {self.reason}"


def fit_acceptance(
    outcomes: Sequence[Outcome],
    cases: int,
    patients: int,
    target: HarmTarget,
    settings: CorrectionSettings,
    hashes: dict[str, str],
    cut: int = 0,
    seed: int = 0,
) -> Acceptance:
    """The lowest of a few margins of which it can be shown that at most `alpha` of the accepted corrections do harm.

    By learn-then-test, as `medfm_rl.quality.conformal.accept_threshold` does it: what is to be limited is a share of
    the accepted, which does not fall steadily with the margin, so that plain conformal risk control does not apply.

    Args:
        outcomes: Outcomes of corrections that met every condition but the margin.
        cases: Labelled cases that were looked at.
        patients: Their patients.
        target: What is asked.
        settings: How they were corrected and verified.
        hashes: `segmenter`, `reward` and `rules`, SHA-256.
        cut: Cases whose time budget ended early, which are not among the outcomes.
        seed: Seed of the draw of one outcome for each patient, which the test needs.
    """
    order = numpy_generator(seed, "one correction a patient").permutation(len(outcomes))
    drawn = list({outcomes[row].patient_id: outcomes[row] for row in order}.values())
    margin = accept_threshold(
        np.array([outcome.gain for outcome in drawn]),
        np.array([not outcome.harmed for outcome in drawn], dtype=bool),
        np.array(_MARGINS),
        target.alpha,
        target.confidence,
    )
    promise = (
        f"at most {target.alpha:.0%} of the accepted corrections lose more than {100 * HARM:g} Dice point, with a "
        f"confidence of {target.confidence:.0%}"
    )
    if margin is not None:
        reason = f"{promise} ({len(drawn)} patients with a correction)"
    elif len(drawn) < (needed := fewest_for_threshold(target.alpha, target.confidence)):
        reason = f"{promise}: needs a correction of at least {needed} patients, there are {len(drawn)}"
    else:
        harmed = sum(outcome.harmed for outcome in drawn)
        reason = f"{promise}: no margin does, {harmed} of {len(drawn)} corrections did harm"
    if cut > 0:
        reason += f"; {cut} of {cases} cases do not count, for their time budget ended early"
    return Acceptance(
        version=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        cases=cases,
        patients=patients,
        proposals=len(drawn),
        target=target,
        margin=margin,
        reason=reason,
        settings=_relevant(settings),
        **hashes,
    )


def _relevant(settings: CorrectionSettings) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude=_UNRELATED)
