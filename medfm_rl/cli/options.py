"""Options that several commands share, and the settings that they make."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args

import typer

from medfm_rl import choices
from medfm_rl.builtin import anatomy_names
from medfm_rl.cli.console import show_progress

if TYPE_CHECKING:
    from pydantic import BaseModel

    from medfm_rl.data.layouts import CaseFile
    from medfm_rl.progress import Progress
    from medfm_rl.runs.judging import Judge
    from medfm_rl.runs.models import Model
    from medfm_rl.settings import CorrectionSettings, SitePolicy
    from medfm_rl.workflows.deploy.stream_scoring import StreamRequest
    from medfm_rl.workflows.deploy.workers import Workers

Values = TypeVar("Values", bound="BaseModel")

_OPTIONS = {"seconds": "budget"}
"""Options whose name is not that of the setting."""

ConfigFile = Annotated[Path, typer.Argument(help="YAML file; `medfm-rl init` writes one to start from.")]
Anatomy = Annotated[
    str | None,
    typer.Option(
        help=f"Validity rules: {anatomy_names()}, or a YAML file. Without one those of the run, and generic for a "
        "segmenter folder."
    ),
]

Prompts = Annotated[
    Path | None,
    typer.Option(
        help="For a promptable segmenter: boxes by case and structure (CSV or JSON), or a folder of masks whose boxes "
        "are taken. Of a clip that is segmented as a whole, one frame needs them."
    ),
]
OverTime = Annotated[
    bool,
    typer.Option(
        "--over-time",
        help="Average each frame of a clip with the two before and after it, carried along by the images' motion: "
        "smoother masks over time, for 80 ms of CPU time a frame.",
    ),
]
CleanUp = Annotated[
    bool,
    typer.Option(
        "--clean-up",
        help="Keep of each structure as many parts as the anatomy's rules allow, the largest, and fill the holes that "
        "they are about. With --over-time smooth the contours of clips that break a rule over time, too.",
    ),
]
CleanedBy = Annotated[
    str | None,
    typer.Option(
        "--anatomy",
        help=f"With --clean-up: the rules, {anatomy_names()}, or a YAML file. Without it those of the run, and generic "
        "for a segmenter folder.",
    ),
]
Device = Annotated[choices.Device, typer.Option(help="Where the networks run; auto: cuda, then mps, then cpu.")]
BiomedCLIPWeights = Annotated[
    Path | None,
    typer.Option(
        "--biomedclip",
        help="BiomedCLIP's open_clip_pytorch_model.bin: images unlike those of the calibration to it are referred. "
        "Needed both to calibrate and to score.",
    ),
]
MaskLabels = Annotated[
    str | None,
    typer.Option(
        help="The integers in the masks by structure, such as LV=255,MYO=100, where they are not those of the run; "
        "structures that are not named are in none of them."
    ),
]
Probabilities = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="With --masks: the probabilities that their segmenter wrote beside them, as nnU-Net's "
        "--save_probabilities does: CASE.npz, or NIfTI with the class as last axis. Needed both to calibrate and to "
        "score.",
    ),
]
Track = Annotated[
    bool, typer.Option("--track", help="Record the call in MLflow, within the record of the run that it uses.")
]
AllowOverlap = Annotated[
    bool,
    typer.Option(
        "--allow-overlap",
        help="Also take images of the run's target, where they themselves are what will be scored, and patients of the "
        "same name who are other people. Images that the run saw with labels are refused all the same.",
    ),
]
ModelFolder = Annotated[Path, typer.Argument(help="Run folder of `adapt`, or segmenter folder.")]
AdaptedRun = Annotated[Path, typer.Argument(metavar="ADAPTED_RUN", help="Finished run folder of `adapt`.")]
Labelled = Annotated[Path, typer.Option(help="Labelled cases that the run has not learned from.")]
Policy = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|clinic|research",
        help="What is done with verdicts, and the limits that masks have to keep. research (the default): every accept "
        "is used, and the guarantee says what it is worth. clinic: an accept that is not proven is referred. Or a YAML "
        "file.",
    ),
]
Stream = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The stream that these studies are of, a file such as ge-apical.jsonl, made where there is none: they are "
        "added to it, its state says what verdicts are worth, also that of a single study, and a share of the accepted "
        "masks (audit_share of the policy) is drawn for review.",
    ),
]
Scanner = Annotated[str | None, typer.Option(help="With --stream: the scanner; a stream is of one.")]
Protocol = Annotated[str | None, typer.Option(help="With --stream: the protocol; a stream is of one.")]
Site = Annotated[str | None, typer.Option(help="With --stream: hospital or department.")]
Budget = Annotated[float | None, typer.Option(help="Seconds for one case; 10 where not given.")]
CorrectionObjective = Annotated[
    choices.CorrectionObjective | None,
    typer.Option(help="With --method optimise, how the reward is followed: by its gradient, or by PPO."),
]
CorrectionScope = Annotated[
    choices.CorrectionScope | None, typer.Option(help="With --method optimise, what changes for a case.")
]
CorrectionMethod = Annotated[
    choices.CorrectionMethod,
    typer.Option(
        # Ten of them are more than the narrow column of choices holds.
        metavar="METHOD",
        help=f"How a better mask is sought: {', '.join(get_args(choices.CorrectionMethod))}. neighbours is for frames "
        "of a clip.",
    ),
]


WorkersOption = Annotated[
    str | None,
    typer.Option(
        "--workers",
        metavar="N|ray://HOST:PORT",
        help="Handle cases side by side, by Ray (extra ray): in so many processes on this machine, which share its "
        "cores and GPUs, or on a cluster that sees the same files in the same places, with a worker for each of its "
        "GPUs, or for four of its cores where it has none. Masks, tables and audit log are those of one process. A "
        "worker that dies costs the time of its case: another one does it.",
    ),
]


def correction_settings(budget: float | None, **values: str | None) -> CorrectionSettings:
    """How cases are corrected, from the options that are given; the rest as by default.

    Raises:
        ConfigError: An option cannot be used, or goes with another method.
    """
    from medfm_rl.errors import ConfigError
    from medfm_rl.settings import CorrectionSettings

    given = {name: value for name, value in {**values, "seconds": budget}.items() if value is not None}
    if values["method"] != "optimise" and {"objective", "optimise"} & given.keys():
        raise ConfigError("--objective and --optimise are for --method optimise, and go with it")
    return from_options(CorrectionSettings, **given)


def site_policy(named: str | None) -> SitePolicy:
    """The policy of --policy.

    Raises:
        ConfigError: There is no such policy, or it is not valid.
    """
    from medfm_rl.settings import RESEARCH
    from medfm_rl.settings.files import load_policy

    return RESEARCH if named is None else load_policy(named)


def stream_request(
    stream: Path | None, scanner: str | None, protocol: str | None, site: str | None
) -> StreamRequest | None:
    """The stream of --stream; None where studies are taken for a batch.

    Raises:
        ConfigError: It is said of which scanner, protocol or site, and there is no stream.
    """
    from medfm_rl.errors import ConfigError
    from medfm_rl.runs.stream_history import UNKNOWN
    from medfm_rl.seeding import unforeseen_seed
    from medfm_rl.workflows.deploy.stream_scoring import StreamRequest

    said = [name for name, value in (("scanner", scanner), ("protocol", protocol), ("site", site)) if value]
    if stream is None and said:
        raise ConfigError(f"--{said[0]} says what a stream is of: it goes with --stream")
    if stream is None:
        return None
    return StreamRequest(stream, scanner or UNKNOWN, protocol or UNKNOWN, site or UNKNOWN, unforeseen_seed())


@contextmanager
def at_work(
    command: str,
    model: Model | Judge,
    files: Sequence[CaseFile],
    out: Path,
    track: bool,
    where: str | None,
    device: str,
) -> Iterator[tuple[Progress, Workers | None]]:
    """Shows how far a command is with its cases, has the workers of --workers at hand, and does what --track says.

    Args:
        command: Its name.
        model: What it uses.
        files: The cases.
        out: Output folder.
        track: Of --track.
        where: Of --workers; without it there are none. They end with the block.
        device: Of --device.

    Raises:
        UserError: --workers cannot be used, Ray cannot, or MLflow cannot be reached.
    """
    from medfm_rl.runs.tracked_call import tracked_call
    from medfm_rl.workflows.deploy.workers import Workers

    hands: AbstractContextManager[Workers | None] = nullcontext() if where is None else Workers(where, device)
    with show_progress() as progress, hands as workers, tracked_call(track, model, command, files, out, progress):
        yield progress, workers


def device_here(where: str | None, device: str) -> str:
    """Where the networks of the command itself run: beside workers it hashes them, and leaves the GPUs to those."""
    return device if where is None else "cpu"


def require_masks(labels: str | None, masks: Path | None) -> None:
    """Refuses --labels without --masks.

    Raises:
        ConfigError: It is so.
    """
    from medfm_rl.errors import ConfigError

    if labels is not None and masks is None:
        raise ConfigError("--labels are the integers in masks that are given: they go with --masks")


def from_options(model: type[Values], **values: Any) -> Values:
    """Settings made of options of the command line; an error names the option."""
    from pydantic import ValidationError

    from medfm_rl.errors import ConfigError
    from medfm_rl.settings.problems import in_our_words

    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        setting = str(first["loc"][0])
        name = _OPTIONS.get(setting, setting.replace("_", "-"))
        raise ConfigError(f"--{name} {first['input']}: {in_our_words(first)}") from error
