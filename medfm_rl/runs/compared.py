"""Two models that are to be compared: loaded alike, or with a word about what differs."""

from __future__ import annotations

import logging
from pathlib import Path

from medfm_rl.adapters.kinds import kind_of
from medfm_rl.adapters.loading import recognise
from medfm_rl.errors import ConfigError
from medfm_rl.runs.finished import FinishedRun, load_model
from medfm_rl.runs.models import SegmenterFolder, StoredModel
from medfm_rl.types import LabelSchema

_LOG = logging.getLogger(__name__)


def load_compared(path: Path, against: Path, device: str, prompts: Path | None) -> tuple[StoredModel, StoredModel]:
    """Loads two models that are to be compared.

    A segmenter folder that is compared with a run of the same kind of segmenter is loaded with the settings that the
    run recorded (folds, checkpoint, mirroring, ...): else the two would differ by these and not by the adaptation.

    Args:
        path: As in `load_model`.
        against: The other one.
        device: As in `load_model`.
        prompts: Boxes as in `load_model`, for whichever of the two takes boxes; None: each has those that it was set
            up with.

    Raises:
        UserError: As in `load_model`.
        ConfigError: The same masks would give the two the boxes of other structures.
    """
    models = (load_model(path, device), load_model(against, device))
    first, second = (_alike(model, other) for model, other in (models, reversed(models)))
    if prompts is not None:
        takes = [kind_of(model.settings).with_boxes is not None for model in (first, second)]
        for model, asked in zip((first, second), takes, strict=True):
            # Where neither takes prompts, loading says so.
            model.prompts = prompts if asked or not any(takes) else None
        if all(takes) and prompts.is_dir():
            _refuse_other_integers(prompts, first.preprocessing.schema, second.preprocessing.schema)
    _warn_of_differences(first, second)
    return first, second


def _alike(model: StoredModel, other: StoredModel) -> StoredModel:
    """A segmenter folder with the settings of the run that it is compared with, where both are of one kind."""
    if not isinstance(model, SegmenterFolder) or not isinstance(other, FinishedRun) or other.config is None:
        return model
    if recognise(model.path).kind != recognise(other.folder.model).kind:
        return model
    settings = other.config.segmenter.model_copy(update={"folder": model.path})
    return SegmenterFolder(model.path, model.device.type, settings=settings)


def _warn_of_differences(first: StoredModel, second: StoredModel) -> None:
    """Names the settings of inference in which two models differ: a difference of scores may come from those."""
    ours, theirs = (model.segmenter.inference_settings() for model in (first, second))
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if differing:
        _LOG.warning(
            "%s and %s segment with other settings (%s), and what is measured is the difference of these too",
            first.name,
            second.name,
            "; ".join(f"{name}: {_shown(ours.get(name))} and {_shown(theirs.get(name))}" for name in differing),
        )


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _refuse_other_integers(prompts: Path, first: LabelSchema, second: LabelSchema) -> None:
    known, others = first.integers, second.integers
    for name in known.keys() & others.keys():
        if known[name] != others[name]:
            raise ConfigError(
                f"{prompts}: cannot be shared by both models: {name} is {known[name]} in the masks of one and "
                f"{others[name]} in those of the other; give the boxes as a CSV or JSON file"
            )
