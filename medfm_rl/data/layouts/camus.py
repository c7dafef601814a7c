"""CAMUS: `patient0001/patient0001_4CH_ED.mhd` or `.nii.gz`, masks `_gt`; sequences are left out."""

from __future__ import annotations

import re
from pathlib import Path

from medfm_rl.data.files import cannot_be_read
from medfm_rl.data.images import image_stem, image_suffix
from medfm_rl.data.layouts.cases import CaseFile, Found
from medfm_rl.data.layouts.folder import mask_alone, refuse_other_names, two_of_a_name
from medfm_rl.data.layouts.tree import HIDDEN, UNKNOWN
from medfm_rl.data.names import case_name, text_of

_NAME = re.compile(r"^(?P<patient>patient\d+)_(?P<view>2CH|4CH)_(?P<phase>ED|ES)(?P<mask>_gt)?$")
_QUALITY = re.compile(r"^ImageQuality:\s*(\w+)", re.MULTILINE)
_OF_THE_RELEASE = re.compile(r"(Info_\w+\.cfg|.*_sequence(_gt)?\.(mhd|nii\.gz|nii|mha)|.*\.z?raw)$")
"""What lies beside the frames in either release."""


def looks_like_camus(root: Path) -> bool:
    """Whether there is a frame of that name in a folder of a patient."""
    return any(_NAME.match(image_stem(path)) for path in root.glob("patient*/*"))


def find_camus(root: Path) -> Found:
    """Finds the frames at end-diastole and end-systole, with the quality that the release states.

    Raises:
        DataError: No mask has the name of a frame.
    """
    files: dict[str, list[Path]] = {}
    skipped: dict[str, list[Path]] = {}
    cases: list[CaseFile] = []
    for folder in sorted(root.glob("patient*")):
        try:
            inside = sorted(folder.iterdir()) if folder.is_dir() else [folder]
        except OSError as error:
            name = case_name(text_of(folder.name))
            cases.append(CaseFile(name, name, (), problem=str(cannot_be_read(folder, error))))
            continue
        for path in inside:
            if image_suffix(path) and _NAME.match(image_stem(path)):
                files.setdefault(image_stem(path), []).append(path)
            elif not _OF_THE_RELEASE.match(path.name):
                skipped.setdefault(HIDDEN if path.name.startswith(".") else UNKNOWN, []).append(path)
    masks = {name.removesuffix("_gt"): paths for name, paths in files.items() if name.endswith("_gt")}
    frames = {name: paths for name, paths in files.items() if not name.endswith("_gt")}
    refuse_other_names({name: paths[0] for name, paths in masks.items()}, frames, root)
    for name in dict.fromkeys((*frames, *masks)):
        cases.append(_case(name, frames.get(name, []), masks.get(name, []), root))
    return Found(cases, skipped, "the folder patientXXXX")


def _case(name: str, frames: list[Path], masks: list[Path], root: Path) -> CaseFile:
    match = _NAME.match(name)
    assert match is not None
    problem = None
    for kind, paths in (("images", frames), ("masks", masks)):
        if len(paths) > 1:
            problem = two_of_a_name(kind, name, paths)
    if not frames:
        problem = mask_alone(masks[0], root)
    tags = {"view": match["view"], "phase": match["phase"]}
    info = (frames or masks)[0].with_name(f"Info_{match['view']}.cfg")
    # Names of people in there may be of any encoding; the field is not.
    quality = _QUALITY.search(info.read_text(encoding="utf-8", errors="replace")) if info.is_file() else None
    if quality:
        tags["quality"] = quality[1]
    return CaseFile(name, match["patient"], tuple(frames[:1]), masks[0] if masks else None, tags, problem)
