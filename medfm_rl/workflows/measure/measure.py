"""Measures the masks of clips: the beat, volumes, ejection fraction, and what breaks over time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from medfm_rl.anatomy.clips import ClipAnatomy, measure_clip
from medfm_rl.anatomy.ejection import Ejection, EjectionInterval, biplane, interval_of_draws, single_plane
from medfm_rl.anatomy.temporal_rules import TemporalRules, learn_temporal_rules
from medfm_rl.anatomy.uncertainty import ClipDraws, draw_clip
from medfm_rl.data.clips.continuity import interruptions
from medfm_rl.data.each_case import each_case
from medfm_rl.data.files import alone_writing, write_text
from medfm_rl.data.labels import read_labels
from medfm_rl.data.layouts import CaseFile, are_simulated, ventricle_of, whole_clips
from medfm_rl.errors import DataError
from medfm_rl.progress import Progress, silent
from medfm_rl.reports.clips import ClipPicture, picture_clip, write_clip_page
from medfm_rl.seeding import numpy_generator
from medfm_rl.types import Clip, LabelMap, LabelSchema, frame_id
from medfm_rl.workflows.measure.outputs import PAGE_FILE, write_measures
from medfm_rl.workflows.measure.reward_maps import read_reward_maps

_VIEW = re.compile(r"(?<![A-Za-z0-9])(?:A?([24])CH?|A([24]))(?![A-Za-z0-9])", re.IGNORECASE)
"""Names of the apical views of two and of four chambers: 2CH, A4C, 4ch."""


@dataclass(frozen=True)
class MeasureRequest:
    """What is measured besides the masks themselves.

    Attributes:
        rules: Rules over time; those of the literature where None.
        rules_from: The file that they are from, for messages.
        learn: Writes rules whose limits are learned from these masks to this file; they have to be right.
        rewards: Reward maps by frame, from which intervals are drawn; None for no intervals.
        seed: Of the draws.
    """

    rules: TemporalRules | None = None
    rules_from: Path | None = None
    learn: Path | None = None
    rewards: Mapping[str, Path] | None = None
    seed: int = 0


MASKS_ALONE = MeasureRequest()


@dataclass(frozen=True)
class MeasuredClip:
    """What was found in one clip.

    Attributes:
        clip_id: The clip.
        patient_id: Its patient.
        view: "2CH" or "4CH" where tags or name say so.
        times: Seconds of the frames, or None.
        anatomy: What is measured.
        ejection: Volumes and fraction, or None without a beat.
        draws: What masks drawn from reward maps measure; None without these.
        interval: What they leave open of the ejection; None without them or a beat.
        interruptions: What speaks against the clip being one plane without a break.
    """

    clip_id: str
    patient_id: str
    view: str | None
    times: tuple[float, ...] | None
    anatomy: ClipAnatomy
    ejection: Ejection | None
    draws: ClipDraws | None = None
    interval: EjectionInterval | None = None
    interruptions: tuple[str, ...] = ()

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why its figures cannot be relied on, whatever rules its masks meet, in words."""
        return (*self.interruptions, *self.anatomy.doubts)

    @property
    def reliable(self) -> bool:
        """Whether it is one plane without a break, shows a beat, and its masks meet every rule over time."""
        return self.anatomy.valid and not self.doubts


@dataclass(frozen=True)
class Measures:
    """The result of a call of `measure`.

    Attributes:
        clips: By clip.
        biplane: Ejection by patient, of those with both views, from the names of two clips.
        problems: Why a clip could not be measured, by clip.
        biplane_intervals: What reward maps leave open of it, by patient.
    """

    clips: Mapping[str, MeasuredClip]
    biplane: Mapping[str, tuple[Ejection, tuple[str, str]]]
    problems: Mapping[str, str]
    biplane_intervals: Mapping[str, EjectionInterval] = field(default_factory=dict)


def measure(
    files: Sequence[CaseFile],
    masks: Mapping[str, Path],
    schema: LabelSchema,
    out: Path,
    request: MeasureRequest = MASKS_ALONE,
    progress: Progress = silent,
) -> Measures:
    """Measures masks and writes `measures.csv`, `frames.csv`, `measures.json` and `report.html`.

    A clip that cannot be read or measured is named, and the others are measured.

    Args:
        files: Frames of clips, as `find_cases` gives them; images that are of no clip are not looked at.
        masks: By frame, as `find_masks` gives them: a file for each, or the sequence of the clip.
        schema: The structures in the masks, and their integers.
        out: Folder for the results.
        request: What is measured besides.
        progress: Told how far it is.

    Raises:
        DataError: There is no clip, not one could be measured, or no structure is the left ventricle.
        ConfigError: The rules over time are of structures that the masks do not have.
    """
    clips = [file for file in whole_clips(files) if file.clip is not None or file.problem is not None]
    if not any(file.clip is not None for file in clips):
        raise DataError("no clip among the images: measures over time need clips (--layout clips for stacks of planes)")
    ventricle = ventricle_of(schema, "the masks")
    if request.rules is not None:
        request.rules.require_known(schema, ventricle, request.rules_from or "given")
    pictures: dict[str, ClipPicture] = {}

    def handle(file: CaseFile) -> MeasuredClip:
        clip = file.read_clip()
        labels = _read_masks(clip, masks, schema)
        spacing = clip.plane_spacing
        anatomy = measure_clip(labels, schema, ventricle, spacing, request.rules)
        pictures[clip.clip_id] = picture_clip(clip, labels, anatomy, schema)
        view = view_of(clip.clip_id, clip.tags)
        found = MeasuredClip(
            clip.clip_id,
            clip.patient_id,
            view,
            clip.times,
            anatomy,
            single_plane(anatomy),
            interruptions=interruptions(clip),
        )
        if request.rewards is None:
            return found
        maps = read_reward_maps(clip, request.rewards)
        rng = numpy_generator(request.seed, "measures", clip.clip_id)
        draws = draw_clip(labels, maps, schema, anatomy, spacing, rng)
        return replace(found, draws=draws, interval=interval_of_draws([anatomy], [draws]))

    with alone_writing(out):
        found, problems = each_case(clips, handle, "measuring", progress)
        if not found:
            raise DataError(f"no clip could be measured; the first: {next(iter(problems.values()))}")
        views = _both_views(list(found.values()))
        measures = Measures(found, views, problems, _open_of_both_views(found, views))
        write_measures(out, measures, schema)
        if request.learn is not None:
            rules = request.rules or TemporalRules.of_literature(schema, ventricle)
            learned = learn_temporal_rules([clip.anatomy.rules for clip in found.values()], rules)
            write_text(request.learn, learned.to_yaml())
        simulated = are_simulated(clips)
        write_clip_page(out / PAGE_FILE, measures, pictures, schema, simulated)
    return measures


def view_of(name: str, tags: Mapping[str, str]) -> str | None:
    """The apical view, "2CH" or "4CH", by the tags of a clip or its name; None where neither says it."""
    text = tags.get("view") or name.replace("_", " ")
    views = {f"{first or second}CH" for first, second in _VIEW.findall(text)}
    return views.pop() if len(views) == 1 else None


def _read_masks(clip: Clip, masks: Mapping[str, Path], schema: LabelSchema) -> LabelMap:
    """Class indices `(T, H, W)`."""
    shape = clip.frames.shape[2:]
    found = []
    for index in range(len(clip.frames)):
        path = masks.get(frame_id(clip.clip_id, index))
        if path is None:
            raise DataError(f"clip {clip.clip_id}: there is no mask of frame {index} (counted from 0)")
        found.append(read_labels(path, schema, shape, clip.geometry, frame=index, frames=len(clip.frames)))
    return np.stack(found)


def _both_views(clips: Sequence[MeasuredClip]) -> dict[str, tuple[Ejection, tuple[str, str]]]:
    """Biplane ejection of each patient who has one clip of either view; of several it is anybody's guess which go."""
    found = {}
    for patient in dict.fromkeys(clip.patient_id for clip in clips):
        own = [clip for clip in clips if clip.patient_id == patient]
        two, four = ([clip for clip in own if clip.view == view] for view in ("2CH", "4CH"))
        if len(two) == 1 and len(four) == 1:
            ejected = biplane(two[0].anatomy, four[0].anatomy)
            if ejected is not None:
                found[patient] = (ejected, (two[0].clip_id, four[0].clip_id))
    return found


def _open_of_both_views(
    clips: Mapping[str, MeasuredClip], views: Mapping[str, tuple[Ejection, tuple[str, str]]]
) -> dict[str, EjectionInterval]:
    """What reward maps leave open of the ejection of each patient with both views."""
    found = {}
    for patient, (_, names) in views.items():
        both = [clips[name] for name in names]
        draws = [clip.draws for clip in both if clip.draws is not None]
        interval = interval_of_draws([clip.anatomy for clip in both], draws) if len(draws) == len(both) else None
        if interval is not None:
            found[patient] = interval
    return found
