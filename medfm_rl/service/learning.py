"""What a store holds, what a new adaptation would learn from it, and the commands that make one and compare it."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfm_rl.data.files import write_json, write_text
from medfm_rl.data.images import hash_image, image_suffix, write_labels
from medfm_rl.data.json_text import parse_json
from medfm_rl.data.layouts import SIMULATION_RECORD, find_cases, is_simulated
from medfm_rl.data.names import file_of_case
from medfm_rl.data.text_headers import pixel_files
from medfm_rl.errors import DataError
from medfm_rl.feedback import CorrectedMask, Entry, Feedback, FeedbackStore, Verdict
from medfm_rl.feedback.agreement import consensus, expert_masks
from medfm_rl.feedback.standing import audited, standing
from medfm_rl.metrics.bootstrap import FEW_PATIENTS
from medfm_rl.service.catalogue import Catalogue
from medfm_rl.service.errors import DeskError
from medfm_rl.service.jobs import Job
from medfm_rl.settings import AdaptConfig, FeedbackSettings
from medfm_rl.settings.feedback import has_password
from medfm_rl.settings.files import dump_config, load_config
from medfm_rl.types import LabelSchema

RUN, CONFIG, COMPARISON, KEPT = "run", "adapt.yaml", "comparison", "kept"
_AUDIT = "audit"
_FEWEST_PATIENTS = 2


@dataclass(frozen=True)
class Teaching:
    """What an adaptation would learn from, and what is kept to judge it.

    Attributes:
        cases: Images with a mask that teaches.
        patients: Their patients.
        verdicts: Verdicts, grades and preferences that teach.
        kept_cases: Images with a reviewed mask of patients who never teach.
        kept_patients: These patients.
    """

    cases: int
    patients: int
    verdicts: int
    kept_cases: int
    kept_patients: int


def teaching(history: Sequence[Entry], catalogue: Catalogue) -> Teaching:
    """What of the history of a store would teach with the images of a desk, by the defaults of `adapt`."""
    known = {frame.case for view in catalogue.views.values() for frame in view.frames}
    own = [entry for entry in standing(history).in_force if entry.case in known]
    kept = {entry.patient for entry in audited(history) if entry.case in known}
    reviewed = [entry for entry in own if _gives_a_mask(entry)]
    teach = [entry for entry in reviewed if entry.patient not in kept]
    judged = [entry for entry in own if entry.kind in ("verdict", "grade", "preference") and entry.patient not in kept]
    held = [entry for entry in reviewed if entry.patient in kept]
    return Teaching(
        len({entry.image_sha256 for entry in teach}),
        len({entry.patient for entry in teach}),
        len(judged),
        len({entry.image_sha256 for entry in held}),
        len({entry.patient for entry in held}),
    )


def store_summary(entries: Sequence[Feedback]) -> dict[str, Any]:
    """How much a store holds, by kind."""
    audit = [entry for entry in entries if entry.drawn == _AUDIT]
    return {
        "entries": dict(Counter(entry.kind for entry in entries)),
        "cases": len({entry.image_sha256 for entry in entries if entry.image_sha256}),
        "patients": len({entry.patient for entry in entries}),
        "reviewers": len({entry.reviewer for entry in entries}),
        "audit": {
            "cases": len({entry.image_sha256 for entry in audit if entry.image_sha256}),
            "patients": len({entry.patient for entry in audit}),
        },
    }


def sentences(found: Teaching, run: Path | None) -> list[str]:
    """What a new adaptation would do, for a person."""
    if run is None:
        return []
    told = [
        f"A new adaptation goes on from {run.name} with masks of {found.cases} images of {found.patients} patients, "
        f"and {found.verdicts} verdicts, grades and preferences.",
        f"{found.kept_patients} patients of audit draws are kept: nothing is learned from them, and old and new are "
        "compared on them.",
    ]
    if found.kept_patients < _FEWEST_PATIENTS:
        told.append("Review the audit sample first: without kept patients there is nothing to compare on.")
    return [*told, "Nothing is put to use by itself."]


def arguments_of_adaptation(catalogue: Catalogue, run: Path) -> dict[str, Any]:
    """What the process of an adaptation has to know: the run, and the images of the desk with their names."""
    frames = [frame for view in catalogue.views.values() for frame in view.frames]
    places = [frame.find(path) for frame in frames for path in frame.images]
    images = dict.fromkeys(str(place.absolute()) for place in places if place is not None)
    return {"run": str(run.absolute()), "images": list(images)}


def command_of(job_folder: Path) -> str:
    """The command by which anybody could do the same."""
    return shlex.join(["medfm-rl", "adapt", str(job_folder / CONFIG)])


def commands_of(job: Job, place: Path, store: FeedbackStore, where: str) -> list[list[str]]:
    """The commands of a job, after what they read was written.

    Raises:
        UserError: The run cannot be used, or there is nothing to compare on.
    """
    if job.kind == "adapt":
        _write_adaptation(job, place, where)
        resumed = ["--resume"] if (place / RUN).exists() else []
        return [["adapt", str(place / CONFIG), *resumed]]
    old, new = Path(job.arguments["old"]), Path(job.arguments["new"])
    kept = _write_kept(job, place, store)
    return [["evaluate", str(new), str(kept), "--against", str(old), "--out", str(place / COMPARISON)]]


def comparison_of(place: Path) -> dict[str, Any] | None:
    """What `evaluate` wrote of two runs, for the page; None where it has not."""
    path = place / COMPARISON / "summary.json"
    if not path.exists():
        return None
    content = parse_json(path.read_text(encoding="utf-8"))
    differences = content["dice_difference"]
    before, after = (
        {summary["structure"]: summary["dice"] for summary in summaries} for summaries in content["models"].values()
    )
    rows = [
        {
            "structure": name,
            "before": before[name],
            "after": after[name],
            "difference": difference["mean"],
            "low": difference["low"],
            "high": difference["high"],
        }
        for name, difference in differences.items()
    ]
    mean = rows[-1]
    said = (
        f"Mean Dice {mean['before']:.3f} with the old model and {mean['after']:.3f} with the new one: "
        f"{100 * mean['difference']:+.1f} points, 95 % interval {100 * mean['low']:+.1f} to {100 * mean['high']:+.1f}."
    )
    few = [] if content["patients"] >= FEW_PATIENTS else [f"Few patients ({content['patients']}): others may differ."]
    return {
        "patients": content["patients"],
        "cases": len(list((place / KEPT / "images").glob("*"))),
        "rows": rows,
        "texts": [said, *few, "Nothing was put to use; the new run lies where its job says."],
    }


def _write_adaptation(job: Job, place: Path, where: str) -> None:
    """Settings of a new adaptation: those of the run, its target with the images of the desk, and the store."""
    run = Path(job.arguments["run"])
    started = load_config(run / "config.yaml", AdaptConfig)
    target = place / "target"
    _link_images([*(Path(path) for path in job.arguments["images"]), *_target_of(started)], target)
    if has_password(where):
        raise DataError(
            "the desk was opened with a password in the URL of its store, and the settings of an adaptation are "
            "written down: open the desk without it, and give it by PGPASSWORD or ~/.pgpass"
        )
    store = where if "://" in where else str(Path(where).absolute())
    config = started.model_copy(
        update={
            "target": started.target.model_copy(update={"path": target, "layout": "auto", "where": {}}),
            "evaluation": None,
            "continues": run,
            "output": place / RUN,
            "feedback": started.feedback.model_copy(update={"store": store})
            if started.feedback is not None
            else FeedbackSettings(store=store),
        }
    )
    write_text(place / CONFIG, dump_config(config))


def _target_of(run: AdaptConfig) -> list[Path]:
    """The images that a run was adapted to, where they are still there: a desk may show a few of them."""
    if not run.target.path.exists():
        return []
    return [path for file in find_cases(run.target) for path in file.image_paths]


def _link_images(images: Iterable[Path], target: Path) -> None:
    """A folder of links to images, for they stay where they are."""
    folder = target / "images"
    folder.mkdir(parents=True, exist_ok=True)
    simulated = False
    for image in images:
        for path in (image, *(pixel_files(image) if image.is_file() else ())):
            link = folder / path.name
            if not link.is_symlink():
                link.symlink_to(path.absolute())
            elif not link.samefile(path):
                raise DataError(
                    f"{path}: another image has this name ({link.resolve()}); a new adaptation takes images with names "
                    "of their own"
                )
        simulated = simulated or is_simulated(image.parent)
    if simulated:
        write_json(target / SIMULATION_RECORD, {"simulated": True})


def _write_kept(job: Job, place: Path, store: FeedbackStore) -> Path:
    """The reviewed images of patients who never teach, with the masks of the reviewers, as a labelled data set.

    Raises:
        DataError: There are none.
        FeedbackError: Their masks are of different structures.
    """
    kept = place / KEPT
    entries = store.entries()
    patients = {entry.patient for entry in audited(store.history())}
    masks = expert_masks([entry for entry in entries if entry.patient in patients])
    paths = {hash_image(path): path for path in map(Path, job.arguments["images"]) if path.exists()}
    found = {sha256: by for sha256, by in masks.items() if sha256 in paths}
    if not found:
        raise DataError(
            "no reviewed image of an audit draw is among the images of this desk; review the audit sample first"
        )
    schema: LabelSchema | None = None
    for sha256, by_reviewer in found.items():
        path = paths[sha256]
        _link_images([path], kept)
        mask = consensus([store.mask(expert.sha256) for expert in by_reviewer.values()])
        suffix = image_suffix(path) or ""
        stem = path.name[: len(path.name) - len(suffix)]
        # Masks that came by different ways may have their structures in different orders.
        schema = schema or mask.schema
        write_labels(file_of_case(kept / "labels", stem, ".nii.gz"), mask.labels_for(schema), mask.geometry, schema)
    assert schema is not None
    write_json(kept / "dataset.json", {"labels": schema.integers})
    return kept


def _gives_a_mask(entry: Feedback) -> bool:
    return isinstance(entry, CorrectedMask) or (isinstance(entry, Verdict) and entry.accepts_whole)


def require_run(run: Path | None) -> Path:
    """The run that a new adaptation starts from.

    Raises:
        DeskError: The desk was opened without one.
    """
    if run is None:
        raise DeskError(409, "no_run", "the desk was opened without a run", "open it with the run of `adapt` (--run)")
    return run
