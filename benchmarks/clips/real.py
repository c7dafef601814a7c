"""Real clips, where somebody has fetched them: EchoNet's media, and multi-frame DICOM of public repositories.

None of them is passed on: they are read where they lie, and only figures are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydicom.data import get_testdata_file

from benchmarks.clips.measuring import KnownClip, average, gain_over, measure_model
from benchmarks.clips.simulated import (
    ANATOMY,
    CORRECTION,
    OF_SOURCE,
    SOURCE,
    WITH,
    WITHOUT,
    WITHOUT_TIME,
    Size,
    correct_clips,
    file_name,
    processing_of,
)
from benchmarks.harness.budgets import merge
from benchmarks.harness.laboratory import NETWORK, adapt_config, train_once
from benchmarks.harness.packs import camus_qualities, write_camus
from benchmarks.harness.recording import once, quiet
from benchmarks.harness.shifts import ECHO, split_patients
from medfm_rl.adapters import TorchModuleAdapter
from medfm_rl.anatomy.profiles import load_anatomy
from medfm_rl.data.clips.reading import find_clip
from medfm_rl.data.clips.sequences import write_sequence
from medfm_rl.data.clips.video import decode_video
from medfm_rl.data.images import read_pixels
from medfm_rl.errors import UserError
from medfm_rl.runs.finished import load_run
from medfm_rl.settings import DataSettings, SourceTrainingSettings, TrainSourceConfig
from medfm_rl.types import Clip, FloatArray, Geometry, LabelMap
from medfm_rl.workflows.adapt.loop import adapt

FILES: Final = {
    "examples_ybr_color.dcm": "clip of 30 frames",
    "examples_palette.dcm": "image",
    "DIRW0007": "clip of 65 frames",
    "multiframe.dcm": "refused",
    "US1_UNCR.dcm": "image",
    "US1_UNCI.dcm": "image",
    "US1_J2KR.dcm": "image",
    "US1_J2KI.dcm": "image",
    "gdcm-US-ALOKA-16.dcm": "image",
    "0020.DCM": "refused",
}
"""What each file has to be read as: `multiframe.dcm` does not decode, and `0020.DCM` shows colour Doppler.

pydicom ships the first two; `fo-dicom/fo-dicom` (Tests/FO-DICOM.Tests/Test Data), `pydicom/pydicom-data` and
`QIB-Sheffield/dbdicom` (tests/data/UltrasoundPaletteColor-dicom_viewer_0020) hold the others."""
NOT_THERE: Final = "not there"
_SHIPPED = 2
_BLUE = 60
"""By how much blue exceeds red and green where the authors drew the ventricle."""
_EVERY = 2
"""Of 50 frames a second, which are shown twice in those files or more, every second is taken."""


def read_dicom_files(folder: Path | None) -> dict[str, str]:
    """What came of each file: clip or image and its size, why it was refused, or that it is not there."""
    found = {}
    for index, name in enumerate(FILES):
        path = None if folder is None else next(folder.rglob(name), None)
        if path is None and index < _SHIPPED:
            shipped = get_testdata_file(name, download=False)
            path = None if shipped is None else Path(str(shipped))
        found[name] = NOT_THERE if path is None else _read(path)
    return found


def _read(path: Path) -> str:
    try:
        clip = find_clip(path)
        if clip is None:
            pixels, _ = read_pixels(path)
            return f"image of {pixels.shape[2]} x {pixels.shape[1]}"
        shape = clip.read("clip", "patient").frames.shape
    except UserError as error:
        return f"refused: {str(error).replace(str(path), path.name)}"
    return f"clip of {shape[0]} frames of {shape[3]} x {shape[2]}"


def read_rightly(found: dict[str, str]) -> tuple[int, int]:
    """How many files came to what they have to, of how many that are there."""
    there = {name: text for name, text in found.items() if text != NOT_THERE}
    return sum(text.startswith(FILES[name]) for name, text in there.items()), len(there)


class EchoNet:
    """EchoNet's media: a CAMUS-trained model, adapted to these clips without labels and measured on them.

    Args:
        seed: Of training and adaptation.
        size: How much is done.
        folder: Data, models and runs; nothing of it is part of the repository.
        media: Folder with the mp4 files.
    """

    def __init__(self, seed: int, size: Size, folder: Path, media: Path) -> None:
        self.seed = seed
        self.size = size
        self.folder = folder
        self.media = media

    def run(self, adapted: Sequence[str]) -> dict[str, Any]:
        """Figures of the source model and of the methods that adapt."""
        try:
            clips = [read_media(path, self.size.most_frames) for path in sorted(self.media.glob("0X*.mp4"))]
        except UserError as error:
            return {"skipped": str(error)}
        if not clips:
            return {"skipped": f"no 0X*.mp4 in {self.media.name}"}
        source = self._trained()
        found = {}
        for method in OF_SOURCE:
            measure = partial(self._measured, source, clips, method)
            found[method] = once(self.folder / f"{file_name(method)}.json", measure)
        for method in adapted:
            make = partial(self._adapted, source, clips, method)
            found[method] = once(self.folder / f"{file_name(method)}.json", make)
        before = found[SOURCE]["clips"]
        result = {
            method: cell if method == SOURCE else {**cell, "dice_gain": gain_over(before, cell["clips"])}
            for method, cell in found.items()
        }
        if WITHOUT in adapted:
            correct = partial(self._corrected, source, clips)
            result[CORRECTION] = once(self.folder / f"{CORRECTION}.json", correct)
        return result

    def _corrected(self, source: Path, clips: list[KnownClip]) -> dict[str, Any]:
        """The source model's clips, corrected by the adapted one and its neighbours."""
        run = load_run(self._run_folder(temporal=False), "cpu")
        return correct_clips(run, TorchModuleAdapter.load(source), clips)

    def _run_folder(self, temporal: bool) -> Path:
        return self.folder / "runs" / ("temporal" if temporal else "plain")

    def _camus(self) -> Path:
        patients = split_patients(list(camus_qualities()), {"source": min(100, 2 * self.size.source)}, "camus")
        return write_camus(patients["source"], self.folder / "data" / "camus-source")

    def _trained(self) -> Path:
        out = self.folder / "source-model"
        train_once(
            TrainSourceConfig(
                data=DataSettings(path=self._camus()),
                structures=dict(ECHO),
                output=out,
                network=NETWORK,
                training=SourceTrainingSettings(epochs=self.size.epochs),
                seed=self.seed,
            )
        )
        return out

    def _measured(self, source: Path, clips: list[KnownClip], method: str) -> dict[str, Any]:
        segmenter = TorchModuleAdapter.load(source)
        anatomy = load_anatomy(ANATOMY, segmenter.schema)
        rows, _ = measure_model(segmenter, None, clips, anatomy, processing_of(method, anatomy))
        return {"clips": rows, "mean": average(rows)}

    def _adapted(self, source: Path, clips: list[KnownClip], method: str) -> dict[str, Any]:
        data, temporal = self.folder / "data" / "echonet", method == WITH
        for known in clips:
            path = data / "images" / f"{known.clip.clip_id}.nii.gz"
            if not path.exists():
                write_sequence(path, known.clip.frames[:, 0], known.clip.geometry, known.clip.times)
        changes = self.size.adapt if temporal else merge(self.size.adapt, WITHOUT_TIME)
        config = adapt_config(
            {"kind": "torch", "folder": source},
            data,
            self._camus(),
            self._run_folder(temporal),
            ANATOMY,
            {"seed": self.seed, **changes},
        )
        run = load_run(adapt(config, resume=True, progress=quiet).path, "cpu")
        anatomy = load_anatomy(ANATOMY, run.segmenter.schema)
        rows, _ = measure_model(run.segmenter, run.reward, clips, anatomy, processing_of(method, anatomy))
        return {"clips": rows, "mean": average(rows)}


def read_media(path: Path, most_frames: int | None = None) -> KnownClip:
    """A file of EchoNet's media: the cine in grey, and the authors' left ventricle as class 1.

    Args:
        path: The file.
        most_frames: How many are read; None for all.

    Raises:
        DataError: It is damaged.
        MissingExtraError: PyAV is not installed.
    """
    frames: list[FloatArray] = []
    masks: list[LabelMap] = []
    for index, (_, colours) in enumerate(decode_video(path, path)):
        if index % _EVERY:
            continue
        if len(frames) == most_frames:
            break
        half = colours.shape[2] // 2
        red, green, blue = colours[:, :, half:]
        frames.append(colours[:, :, :half].mean(axis=0))
        masks.append((blue - np.maximum(red, green) > _BLUE).astype(np.uint8))
    truth: LabelMap = np.stack(masks)
    times = tuple((np.arange(len(frames)) * _EVERY / 50).tolist())
    clip = Clip(path.stem, path.stem, np.stack(frames)[:, None].astype(np.float32), times, Geometry.unknown(2))
    return KnownClip(clip, truth, ventricle_alone=True)
