"""Frames of one clip, corrected together: the worst first, each with its neighbours; the clip comes back whole or not.

Masks of a clip are used together, so a frame that is better by itself and breaks the motion of the clip is no gain:
then every frame keeps the mask that it had. And where the clip as a whole gains what a correction has to, frames of
less gain go along: frames with old masks between frames with new ones jump.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from medfm_rl.correction import CaseCorrector, CorrectionResult
from medfm_rl.correction.corrector import Neighbour
from medfm_rl.correction.verifier import Verification
from medfm_rl.data.clips.motion import neighbours_of
from medfm_rl.reward.consistency import agreement_over_time
from medfm_rl.settings import CorrectionSettings
from medfm_rl.types import Clip, LabelMap, LabelSchema
from medfm_rl.workflows.deploy.clip_evidence import broken_over_time

_LEAST_AGREEMENT = 0.005
"""By how much the mean agreement of neighbours may fall without the clip having become worse."""


@dataclass(frozen=True)
class CorrectedClip:
    """What came of the frames of a clip.

    Attributes:
        results: By place in the clip, of the frames that were taken.
        objection: Why no correction of the clip is used although some were accepted; None where none was objected to.
    """

    results: Mapping[int, CorrectionResult]
    objection: str | None


def correct_clip(
    corrector: CaseCorrector,
    clip: Clip,
    masks: LabelMap,
    places: Sequence[int],
    own: bool,
    names: Mapping[int, str],
) -> CorrectedClip:
    """Corrects frames of a clip.

    Args:
        corrector: The way to correct.
        clip: The clip.
        masks: Of every frame before any correction, class indices `(T, H, W)`.
        places: The frames to be corrected.
        own: Whether the segmenter of the corrector has made the masks.
        names: Case ids of the frames, by place.
    """
    schema = corrector.adapter.schema
    agreement = agreement_over_time(clip.frames[:, 0], masks, schema.classes).mean(axis=1)
    current, results, in_doubt = masks.copy(), {}, set(places)
    for place in sorted(places, key=lambda place: float(agreement[place])):
        case = replace(clip.frame(place), case_id=names[place])
        # A segmenter of whole clips makes no mask of a frame by itself: there every mask has its say.
        doubted = set() if corrector.adapter.segments_clips else in_doubt
        beside = [
            Neighbour(clip.frame(other), None if other in doubted else current[other], weight)
            for other, weight in neighbours_of(place, len(masks))
        ]
        if corrector.adapter.segments_clips:
            # By itself the network would make another mask of the frame than with the clip.
            sample = corrector.adapter.preprocess_frame(case, masks[place])
            result = corrector.correct(case, sample, masks[place], beside)
        else:
            result = corrector.correct(case, None, None if own else masks[place], beside)
        results[place] = result
        if result.accepted:
            current[place] = result.after
            in_doubt.discard(place)
    objection = None
    along = _with_those_that_go_along(results, corrector.settings)
    for taken in (results,) if along is results else (along, results):
        if not any(result.accepted for result in taken.values()):
            break
        found = masks.copy()
        for place, result in taken.items():
            found[place] = result.mask
        objection = _objection(clip, masks, found, float(agreement.mean()), schema)
        if objection is None:
            return CorrectedClip(taken, None)
    if objection is not None:
        results = {
            place: replace(result, accepted=False, reasons=(*result.reasons, objection)) if result.accepted else result
            for place, result in results.items()
        }
    return CorrectedClip(results, objection)


def _with_those_that_go_along(
    results: Mapping[int, CorrectionResult], settings: CorrectionSettings
) -> Mapping[int, CorrectionResult]:
    """The results with frames accepted beside those that were accepted by themselves.

    The verifier's gain of a clip is the mean over the frames that were to be corrected, 0 where nothing was proposed.
    Where it reaches the margin, every frame goes along of which the verifier expects no loss, and of no structure more
    than the tolerance, which is not too far from what it was and breaks no rule that it met.
    """
    seen = [result.verification for result in results.values() if result.verification is not None]
    gain = sum(found.gain for found in seen) / len(results)
    if not seen or gain < settings.margin:
        return results
    why = (
        f"it goes along with its clip, of which the verifier expects a Dice that is {gain:.3f} higher on average, at "
        f"least {settings.margin:g}; no error rate is promised of such a frame"
    )
    return {
        place: replace(result, accepted=True, reasons=(*result.reasons, why))
        if result.verification is not None and not result.accepted and _may_go_along(result.verification, settings)
        else result
        for place, result in results.items()
    }


def _may_go_along(found: Verification, settings: CorrectionSettings) -> bool:
    """Whether a frame may be taken for the sake of its clip, as far as the verifier has looked at all of its views."""
    met_before = {_rule_of(rule) for rule in found.broken_after} <= {_rule_of(rule) for rule in found.broken_before}
    expects_no_loss = found.gain >= 0 and min(found.gains.values()) >= -settings.tolerance
    near = found.change <= settings.max_change
    return met_before and expects_no_loss and near and found.views == settings.views


def _objection(clip: Clip, before: LabelMap, after: LabelMap, agreement: float, schema: LabelSchema) -> str | None:
    """What became worse over time; None where nothing did."""
    known = {_rule_of(rule) for rule in broken_over_time(clip, before, schema)}
    new = [rule for rule in broken_over_time(clip, after, schema) if _rule_of(rule) not in known]
    if new:
        return f"the clip as a whole would break a rule over time that it meets now: {new[0]}"
    found = float(np.mean(agreement_over_time(clip.frames[:, 0], after, schema.classes)))
    if found < agreement - _LEAST_AGREEMENT:
        return (
            f"the frames of the clip would agree less with each other: {found:.3f} instead of {agreement:.3f} "
            "(mean Dice with neighbours that are carried along)"
        )
    return None


def _rule_of(finding: str) -> str:
    """What a finding is about, without its frame and value."""
    return finding.split(" at frame ")[0].split(": ")[0]
