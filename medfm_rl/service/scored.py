"""What `score`, `correct`, `propose` and `stream` wrote, read for the desk.

The readers of these files in `workflows` and `runs` load PyTorch with the networks that make them, which takes seconds
and hundreds of megabytes; a desk needs neither, and reads the same files by what stands in them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from medfm_rl.data.files import cannot_be_read, read_versioned_json
from medfm_rl.data.json_text import parse_json
from medfm_rl.data.names import file_of_case
from medfm_rl.errors import DataError
from medfm_rl.types import LabelSchema

SCORES: Final = "scores.json"
CORRECTIONS: Final = "corrections.json"
PROPOSALS: Final = "proposals.json"
_SCORES_FORMAT: Final = 5
_MEAN: Final = "mean"
_MAKERS: Final = ("score", "propose")
_AGAIN: Final = "score the images with this version"
_FORMER: Final = {"accept": "use", "correct": "correct", "refer": "refer"}


@dataclass(frozen=True)
class Place:
    """Where a structure is worst, as the reward networks see it."""

    structure: str
    centre: tuple[int, ...]
    reward: float


@dataclass(frozen=True, eq=False)
class ScoredCase:
    """A mask as `score` assessed it, or why it could not be.

    Attributes:
        case: Name of the case.
        patient: Its patient.
        images: Files of the image.
        mask: File of the mask; None where there is none.
        labels_sha256: Hash of the labels that were assessed.
        folder: What `score` wrote.
        action: use, correct or refer: what the policy does with it.
        verdict: accept, correct or refer.
        guarantee: proven, expected or suspended.
        reasons: Why, in words.
        dice: Predicted Dice, low and high by structure, the mean among them.
        places: Where each structure is worst.
        rules: What each rule measured, as `RuleResult` has it.
        risk: Probability that a limit is not kept.
        problem: Why it could not be assessed.
        made_by: `model_hash` of what made the mask.
    """

    case: str
    patient: str
    images: tuple[Path, ...]
    mask: Path | None
    labels_sha256: str | None
    folder: Path
    action: str
    verdict: str
    guarantee: str | None = None
    reasons: tuple[str, ...] = ()
    dice: Mapping[str, tuple[float | None, float | None, float | None]] = field(default_factory=dict)
    places: tuple[Place, ...] = ()
    rules: tuple[Mapping[str, Any], ...] = ()
    risk: float | None = None
    problem: str | None = None
    made_by: str | None = None

    @property
    def structures(self) -> tuple[str, ...]:
        """Names of the structures that were assessed, in the order of their classes."""
        return tuple(name for name in self.dice if name != _MEAN)

    @property
    def mean_dice(self) -> float | None:
        """Predicted mean Dice; None where none could be predicted."""
        return self.dice[_MEAN][0] if _MEAN in self.dice else None

    @property
    def key(self) -> str:
        """By which a stream knows the mask (`runs.stream_state.StudyCase.key`)."""
        return hashlib.sha256(f"{self.case}\0{self.labels_sha256}".encode()).hexdigest()

    def recorded_inputs(self) -> Mapping[str, Any]:
        """Hashes of what was assessed, by the record that is kept of the case; nothing where it is gone."""
        records = (_inputs(file_of_case(self.folder / "cases" / name, self.case, ".json")) for name in _MAKERS)
        return next((inputs for inputs in records if inputs), {})

    def find(self, path: Path) -> Path | None:
        """Where a file lies that the scores name; None where it is gone.

        They name it as the command was given it, perhaps from the folder that it was called in: that is looked for
        among the folders that the scores lie in.
        """
        if path.is_absolute() or path.exists():
            return path if path.exists() else None
        places = (folder / path for folder in self.folder.absolute().parents)
        return next((place for place in places if place.exists()), None)

    def reward_file(self) -> Path:
        """Where the reward map of the mask lies, if it was kept."""
        return file_of_case(self.folder / "rewards", self.case, ".nii.gz")


def read_scores(place: Path) -> list[ScoredCase]:
    """Reads what `score` wrote.

    Args:
        place: Its folder, or the `scores.json` in it.

    Raises:
        DataError: There is none, it is of a newer version, or it lacks masks.
    """
    path = place if place.name == SCORES else place / SCORES
    if not path.exists():
        raise DataError(f"{path}: there is no such file; give the folder that `medfm-rl score` wrote (--out)")
    content = read_versioned_json(path, _SCORES_FORMAT, _AGAIN)
    maker = _maker(path.parent)
    try:
        cases = [_case(each, path.parent, maker) for each in content["cases"]]
        unusable = [_unusable(name, each, path.parent) for name, each in content["problems"].items()]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not a scores.json of `medfm-rl score` ({error!r}); {_AGAIN}") from error
    without = [case.case for case in cases if case.mask is None]
    if without:
        raise DataError(
            f"{path}: does not say where the masks lie ({len(without)} of {len(cases)} cases, {without[0]} for one); "
            f"{_AGAIN}, and give it the masks (--masks), or the model that makes them (--model)"
        )
    return [*cases, *unusable]


def _case(content: Mapping[str, Any], folder: Path, maker: str | None) -> ScoredCase:
    verdict = str(content["verdict"])
    mask = content.get("mask_file")
    return ScoredCase(
        case=str(content["case_id"]),
        patient=str(content["patient_id"]),
        images=tuple(Path(path) for path in content.get("image_files", ())),
        mask=None if mask is None else Path(mask),
        labels_sha256=str(content["mask"]),
        folder=folder,
        action=str(content.get("action") or _FORMER[verdict]),
        verdict=verdict,
        guarantee=content.get("guarantee"),
        reasons=tuple(map(str, content.get("reasons", ()))),
        dice={
            str(score["structure"]): (score["predicted_dice"], score.get("low"), score.get("high"))
            for score in content["scores"]
        },
        places=tuple(
            Place(str(score["structure"]), tuple(score["worst_centre"]), float(score["worst_reward"]))
            for score in content["scores"]
            if score.get("worst_centre") is not None and score["structure"] != _MEAN
        ),
        rules=tuple(content.get("rules", ())),
        risk=content.get("risk"),
        made_by=maker,
    )


def _unusable(name: str, content: Any, folder: Path) -> ScoredCase:
    told = {"problem": content} if isinstance(content, str) else content
    mask = told.get("mask_file")
    return ScoredCase(
        case=name,
        patient=str(told.get("patient_id", name)),
        images=tuple(Path(path) for path in told.get("image_files", ())),
        mask=None if mask is None else Path(mask),
        labels_sha256=None,
        folder=folder,
        action="refer",
        verdict="refer",
        problem=str(told["problem"]),
    )


def _inputs(record: Path) -> Mapping[str, Any]:
    try:
        content = parse_json(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    inputs = content.get("inputs") if isinstance(content, dict) else None
    return inputs if isinstance(inputs, dict) else {}


def _maker(folder: Path) -> str | None:
    """`model_hash` of what made the masks, by the last line of the audit log; None where nothing says it."""
    try:
        lines = (folder / "audit.jsonl").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    for line in reversed(lines):
        try:
            found = parse_json(line)
        except ValueError:
            continue
        if isinstance(found, dict) and found.get("command") == "score":
            maker = found.get("made_by")
            return maker if isinstance(maker, str) else None
    return None


@dataclass(frozen=True)
class Correction:
    """What `correct` made of a case.

    Attributes:
        case: Name of the case.
        decision: corrected, proposed or referred.
        reasons: Why.
        mask: File of the mask that it made; None where it made none.
        images: SHA-256 of the images that it was made for; empty where no record says it.
    """

    case: str
    decision: str
    reasons: tuple[str, ...]
    mask: Path | None
    images: tuple[str, ...]


def read_corrections(place: Path) -> dict[str, Correction]:
    """Reads what `correct` wrote, by case.

    Raises:
        DataError: There is nothing of it, or it is of a newer version.
    """
    path = place / CORRECTIONS
    if not path.exists():
        raise DataError(f"{path}: there is no such file; give the folder that `medfm-rl correct` wrote (--out)")
    content = read_versioned_json(path, 1, "correct the masks with this version")
    found = {}
    try:
        for each in content["cases"]:
            name, decision = str(each["case"]), str(each["decision"])
            folder = {"corrected": "labels", "proposed": "proposals"}.get(decision)
            mask = None if folder is None else file_of_case(place / folder, name, ".nii.gz")
            inputs = _inputs(file_of_case(place / "cases" / "correct", name, ".json"))
            images = tuple(map(str, inputs.get("images", ())))
            found[name] = Correction(name, decision, tuple(map(str, each["reasons"])), mask, images)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a corrections.json of `medfm-rl correct` ({error!r}); correct again") from error
    return found


@dataclass(frozen=True)
class Proposal:
    """A case that `propose` wants reviewed.

    Attributes:
        case: Name of the case.
        patient: Its patient.
        images: Files of the image.
        mask: File of the mask.
        kind: audit or informative.
        why: In words.
        folder: What `propose` wrote.
        made_by: `model_hash` of the run.
    """

    case: str
    patient: str
    images: tuple[Path, ...]
    mask: Path
    kind: str
    why: str
    folder: Path
    made_by: str | None


def read_proposals(place: Path) -> list[Proposal]:
    """Reads what `propose` wrote, the audit list first, in its order.

    Raises:
        DataError: There is nothing of it, or it is of a newer version.
    """
    path = place / PROPOSALS
    if not path.exists():
        raise DataError(f"{path}: there is no such file; give the folder that `medfm-rl propose` wrote (--out)")
    content = read_versioned_json(path, 1, "propose again with this version")
    try:
        return [
            Proposal(
                str(case["case"]),
                str(patient["patient"]),
                tuple(Path(image) for image in case["image_files"]),
                Path(case["mask_file"]),
                kind,
                str(patient["why"]),
                place,
                content["run"].get("model_hash"),
            )
            for kind in ("audit", "informative")
            for patient in content[kind]["patients"]
            for case in patient["cases"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a proposals.json of `medfm-rl propose` ({error!r}); propose again") from error


def read_proposed_structures(place: Path) -> LabelSchema | None:
    """The structures in the masks that `propose` wrote, with their integers; None where an older version did not say.

    Raises:
        DataError: As in `read_proposals`, or what it says of them is damaged.
    """
    content = read_versioned_json(place / PROPOSALS, 1, "propose again with this version")
    said = content.get("structures")
    if said is None:
        return None
    try:
        return LabelSchema.from_integers(said)
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"{place / PROPOSALS}: does not say which structures there are ({error!r}); propose again"
        ) from error


def read_open_audits(path: Path) -> set[str]:
    """Keys (`ScoredCase.key`) of the masks of a stream that were drawn for audit and not yet reviewed.

    Raises:
        DataError: There is no such stream, or it is damaged.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no stream; `medfm-rl stream add` makes one") from error
    except OSError as error:
        raise cannot_be_read(path, error) from error
    drawn: set[str] = set()
    reviewed: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            event = parse_json(line.decode("utf-8"))
            if event["kind"] == "study":
                drawn |= {_key(case["case"], case["mask"]) for case in event["cases"] if case["audit"]}
            elif event["kind"] == "review":
                reviewed.add(str(event["key"]))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                # The last line of a stream that is being added to.
                break
            raise DataError(f"{path}: line {number} is damaged ({error!r}); put the file back from a copy") from error
    return drawn - reviewed


def _key(case: str, mask: str) -> str:
    return hashlib.sha256(f"{case}\0{mask}".encode()).hexdigest()
