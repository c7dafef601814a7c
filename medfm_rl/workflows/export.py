"""`medfm-rl export` and `apply-delta`: the adapted segmenter in its own format, or its changes alone."""

from __future__ import annotations

import shutil
from pathlib import Path

from safetensors.torch import load_file

from medfm_rl.adapters.delta import apply_delta, read_delta, write_delta
from medfm_rl.adapters.loading import (
    exported_settings,
    load_segmenter,
    portable_settings,
    settings_at,
)
from medfm_rl.data.files import replace_folder_on_success
from medfm_rl.errors import ConfigError
from medfm_rl.policies import ACTOR
from medfm_rl.runs.finished import load_run
from medfm_rl.runs.folder import SOURCE
from medfm_rl.settings import (
    Segmenter,
)
from medfm_rl.workflows.adapt.choosing.selection import Selection


def export_model(path: Path, to: Path) -> Segmenter:
    """Copies the adapted segmenter of a finished run into a new folder.

    Returns:
        Settings of the segmenter that was written.

    Raises:
        ModelError: It is no finished run.
        DataError: The folder exists and is not empty, or cannot be written.
    """
    run = load_run(path, "cpu")
    with replace_folder_on_success(to) as temporary:
        shutil.copytree(run.folder.model, temporary, dirs_exist_ok=True)
    return run.settings.model_copy(update={"folder": to})


def export_candidate(path: Path, name: str, to: Path) -> Segmenter:
    """Writes one of the policies that competed in a finished run, whether or not it was returned.

    Args:
        path: The run. The segmenter that it adapted has to be where its settings say.
        name: Of the candidate, as in `selection.json` and in the report.
        to: New folder.

    Returns:
        Settings of the segmenter that was written.

    Raises:
        ModelError: It is no finished run, or its segmenter is not what it was.
        ConfigError: There is no such candidate.
        DataError: The folder exists and is not empty, or cannot be written.
    """
    run = load_run(path, "cpu")
    config = run.require_config()
    names = [each.name for each in Selection.read(run.folder.last_selection).candidates]
    if name not in names:
        raise ConfigError(f"--candidate {name}: the candidates of {path} are {', '.join(names)}")
    policy = load_segmenter(config.segmenter)
    if name != SOURCE:
        policy.load_state_dict(load_file(run.folder.candidate_weights(name) / ACTOR))
    policy.export(to)
    return exported_settings(config.segmenter, to)


def export_delta(path: Path, to: Path) -> None:
    """Writes the changes of the weights alone that a finished run made.

    Args:
        path: The run. The segmenter that it adapted has to be where its settings say.
        to: A .safetensors file.

    Raises:
        ModelError: It is no finished run, or its segmenter is not what it was.
        DataError: The file cannot be written.
    """
    run = load_run(path, "cpu")
    source = run.require_config().segmenter
    write_delta(to, load_segmenter(source), run.segmenter, portable_settings(source))


def apply_delta_file(folder: Path, path: Path, to: Path) -> Segmenter:
    """Writes the adapted segmenter that a segmenter folder and a file of changes make together.

    Args:
        folder: The segmenter that was adapted.
        path: What `export_delta` wrote.
        to: New folder.

    Returns:
        Settings of the segmenter that was written.

    Raises:
        ModelError: The file is none, or is of another segmenter.
        DataError: The folder exists and is not empty, or cannot be written.
    """
    delta = read_delta(path)
    settings = settings_at(delta.settings, folder, path)
    segmenter = load_segmenter(settings)
    apply_delta(segmenter, delta, path)
    segmenter.export(to)
    return exported_settings(settings, to)
