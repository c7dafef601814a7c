"""On what terms corrections are accepted: what they have to gain, whether masks may change, and what is promised."""

from __future__ import annotations

from dataclasses import dataclass, replace

from medfm_rl.correction.acceptance import Acceptance
from medfm_rl.quality.reports import State
from medfm_rl.runs.folder import RunFolder
from medfm_rl.settings import CorrectionSettings


def for_given_masks(settings: CorrectionSettings) -> CorrectionSettings:
    """The settings for masks that another segmenter made: a correction of them has to gain more to be accepted."""
    return settings.model_copy(update={"margin": settings.margin_given})


@dataclass(frozen=True)
class Terms:
    """The terms that hold for all cases of a call.

    Attributes:
        settings: Of correction, with the margin that a correction has to gain.
        propose_only: Whether every mask stays and corrections are written beside them.
        promise: How many of the accepted corrections may do harm, or that nothing is promised.
    """

    settings: CorrectionSettings
    propose_only: bool
    promise: str

    @classmethod
    def of_run(
        cls,
        run: RunFolder,
        settings: CorrectionSettings,
        hashes: dict[str, str],
        propose_only: bool,
        masks_are_given: bool,
    ) -> Terms:
        """The promise of a run about its corrections.

        Args:
            run: The run; what its corrections have to gain may have been calibrated.
            settings: As they were asked for.
            hashes: What corrects and verifies, as `FinishedRun.hash_correction` gives it.
            propose_only: Whether corrections are wanted beside the masks.
            masks_are_given: Whether something else than the run's segmenter made the masks.

        Raises:
            ConfigError: It was calibrated with other settings or networks.
        """
        if masks_are_given:
            promise = "no error rate is promised: the masks are not those of the run's own segmenter"
            return cls(for_given_masks(settings), propose_only, promise)
        if run.correction.exists():
            calibrated, promise = Acceptance.read(run.correction).apply(settings, hashes)
            return cls(calibrated, propose_only, promise)
        promise = f"no error rate is promised: the run has no {run.correction.name} (medfm-rl calibrate-correction)"
        return cls(settings, propose_only, promise)

    def for_clips(self) -> Terms:
        """The terms for cases among which there are frames of clips.

        Error rates are calibrated on single images, and frames of a clip are accepted together.
        """
        return replace(self, promise=f"{self.promise}; nothing is promised of the frames of clips")

    def for_batch(self, state: State | None) -> Terms:
        """The terms for cases of which scoring said this; None where they were not scored."""
        if state != "suspended" or self.propose_only:
            return self
        return replace(
            self,
            propose_only=True,
            promise="every mask stays: the batch differs from the calibration cases, and what scoring and verifier say "
            "of such images has not been tested; what the verifier accepts is in proposals/ for a person to take or "
            "leave",
        )
