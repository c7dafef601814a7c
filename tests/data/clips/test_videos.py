from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG4HP41
from support.clip_files import COUNT, SIZE, greys, ventricles, write_clip

from medfm_rl.data.clips.reading import find_clip
from medfm_rl.data.clips.tracings import traced_frames, traced_mask
from medfm_rl.data.layouts import CaseFile, find_cases
from medfm_rl.errors import DataError
from medfm_rl.settings import DataSettings
from medfm_rl.types import LabelSchema
from medfm_rl.workflows.check.masks import MaskReader

av = pytest.importorskip("av", reason="PyAV is not installed (extra video)")
LV = LabelSchema(("background", "LV", "MYO"), (0, 1, 2))


def write_video(path: Path, frames: np.ndarray, rate: int = 25) -> Path:
    """Writes frames `(T, H, W)` or `(T, H, W, 3)` with little loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg" if path.suffix == ".avi" else "mpeg4", rate=rate)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuvj420p" if path.suffix == ".avi" else "yuv420p"
        stream.bit_rate = 8_000_000
        for frame in frames if frames.ndim == 4 else np.repeat(frames[..., None], 3, axis=-1):
            for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


@pytest.mark.parametrize("name", ["a.avi", "a.mp4"])
def test_a_video_is_a_clip_of_greys_with_times(tmp_path: Path, name: str) -> None:
    found = find_clip(write_video(tmp_path / name, greys()))
    assert found is not None
    assert found.count == COUNT
    clip = found.read("a", "p")
    assert clip.frames.shape == (COUNT, 1, *SIZE)
    assert clip.times == pytest.approx(np.arange(COUNT) / 25, abs=1e-3)
    inside = ventricles()
    assert clip.frames[:, 0][inside].mean() < 50 < 100 < clip.frames[:, 0][~inside].mean()


def test_a_damaged_and_a_coloured_video_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.avi").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"a\.avi: cannot be read as a video"):
        find_clip(tmp_path / "a.avi")
    frames = np.repeat(greys()[..., None], 3, axis=-1)
    frames[:, 8:24, 8:24] = (220, 20, 20)
    found = find_clip(write_video(tmp_path / "b.mp4", frames))
    assert found is not None
    with pytest.raises(DataError, match="coloured"):
        found.read("a", "p")


def write_echonet(root: Path) -> None:
    """Two videos, one with tracings of its first and its seventh frame, and a third that is listed and missing."""
    for name in ("0XA", "0XB"):
        write_video(root / "Videos" / f"{name}.avi", greys())
    (root / "FileList.csv").write_text(
        "FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split\n"
        f"0XA,60.5,40,100,{SIZE[0]},{SIZE[1]},25,{COUNT},TEST\n0XB,55,45,100,48,64,25,{COUNT},TRAIN\n0XC,1,1,1,1,1,1,1,VAL\n"
    )
    lines = ["FileName,X1,Y1,X2,Y2,Frame"]
    for frame in (0, 6):
        rows, _ = np.nonzero(ventricles()[frame])
        lines.append(f"0XA.avi,32,{rows.min()},32,{rows.max()},{frame}")
        for row in range(rows.min(), rows.max() + 1):
            columns = np.flatnonzero(ventricles()[frame][row])
            lines.append(f"0XA.avi,{columns.min()},{row},{columns.max()},{row},{frame}")
    (root / "VolumeTracings.csv").write_text("\n".join(lines) + "\n")


def test_echonet_is_found_with_its_tags_and_tracings_as_masks_of_two_frames(tmp_path: Path) -> None:
    write_echonet(tmp_path)
    files = {file.case_id: file for file in find_cases(DataSettings(path=tmp_path))}
    assert len(files) == 2 * COUNT + 1
    assert "holds no such video" in str(files["0XC"].problem)
    own = [file for file in files.values() if file.clip_id == "0XA"]
    assert [file.frame for file in own if file.label_path is not None] == [0, 6]
    assert own[0].tags == {"ef": "60.5", "esv": "40", "edv": "100", "split": "test", "fps": "25"}
    assert {file.patient_id for file in own} == {"0XA"}
    for frame in (0, 6):
        read = own[frame].read_labelled(LV, may_lack=True)
        assert np.mean(read.ground_truth == ventricles()[frame]) > 0.99
        assert set(np.unique(read.ground_truth)) == {0, 1}
    kept = find_cases(DataSettings(path=tmp_path, layout="echonet", where={"split": "train"}))
    assert {file.clip_id for file in kept} == {"0XB"}


def test_a_tracing_says_nothing_of_other_structures(tmp_path: Path) -> None:
    write_echonet(tmp_path)
    file = next(file for file in find_cases(DataSettings(path=tmp_path)) if file.label_path is not None)
    both = LabelSchema.from_structures({"MYO": 1, "LV": 2})
    with pytest.raises(DataError, match="traces LV and says nothing of MYO"):
        file.read_labelled(both, may_ignore=True)
    read = file.read_labelled(both, may_lack=True)
    assert read.structures == ("LV",)
    assert set(np.unique(read.ground_truth)) == {0, 2}
    assert file.read_labelled(LabelSchema.from_structures({"LV": 1})).structures is None


def test_check_reads_tracings_as_masks(tmp_path: Path) -> None:
    write_echonet(tmp_path)
    file = next(file for file in find_cases(DataSettings(path=tmp_path)) if file.label_path is not None)
    for schema in (None, LV):
        reader = MaskReader(schema)
        found = reader.read(file, file.read())
        assert found.names[1] == "LV"
        assert np.mean(found.ids == ventricles()[0]) > 0.99


def test_what_is_wrong_with_rows_of_echonet_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_echonet(tmp_path)
    with (tmp_path / "FileList.csv").open("a") as file:
        file.write(",,,,,,,,\n0XB,55,45,100,48,64,25,12,TEST\n,1,1,1,1,1,1,1,VAL\n")
    with (tmp_path / "VolumeTracings.csv").open("a") as file:
        file.write("0XZ.avi,1,1,5,5,0\n0XA.avi,1,1,5,5,40\n0XA.avi,1,1,5,5,-1\n")
    files = {file.case_id: file for file in find_cases(DataSettings(path=tmp_path))}
    assert set(files) == {"0XB", "0XC", *(f"0XA_frame{index:03d}" for index in range(COUNT))}
    assert "names 0XB in lines 3 and 6; remove all but one" in str(files["0XB"].problem)
    assert "a row without a FileName is not looked at (line 7)" in caplog.text
    assert "traces videos that FileList.csv does not name, and that are not used: 0XZ" in caplog.text
    for frame in (-1, 40):
        assert f"frame {frame} of 0XA.avi, which has the frames 0 to {COUNT - 1}" in caplog.text


def test_echonet_without_its_folder_of_videos_names_it(tmp_path: Path) -> None:
    write_echonet(tmp_path)
    (tmp_path / "Videos").rename(tmp_path / "videos of another name")
    with pytest.raises(DataError, match=r"Videos: there is no such folder"):
        find_cases(DataSettings(path=tmp_path, layout="echonet"))


def test_tracings_that_enclose_nothing_or_leave_the_frame_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "VolumeTracings.csv"
    path.write_text(
        "FileName,X1,Y1,X2,Y2,Frame\na,1,1,5,5,0\na,1,1,5,1,0\na,1,1,5,5,1\na,1,1,5,1,1\na,1,2,900,2,1\na,1,3,5,3,1\n"
    )
    assert traced_frames(path, "a") == [0, 1]
    for frame, message in ((0, "has 2 lines"), (1, "leaves the frame"), (2, "has no tracing of frame 2")):
        with pytest.raises(DataError, match=message):
            traced_mask(path, "a", frame, (10, 10))


def test_a_table_that_lacks_a_column_is_refused_by_name(tmp_path: Path) -> None:
    write_echonet(tmp_path)
    (tmp_path / "VolumeTracings.csv").write_text("FileName,X1\n0XA,1\n")
    with pytest.raises(DataError, match=r"VolumeTracings\.csv: lacks the column Y1"):
        find_cases(DataSettings(path=tmp_path))
    (tmp_path / "FileList.csv").write_text("Name\n0XA\n")
    with pytest.raises(DataError, match=r"FileList\.csv: lacks the column FileName"):
        find_cases(DataSettings(path=tmp_path))


def names(files: list[CaseFile]) -> set[str | None]:
    return {file.clip_id for file in files}


def test_videos_of_a_plain_folder_are_clips(tmp_path: Path) -> None:
    write_video(tmp_path / "p1_a.avi", greys())
    write_video(tmp_path / "p2_a.mp4", greys())
    files = find_cases(DataSettings(path=tmp_path))
    assert names(files) == {"p1_a", "p2_a"}
    assert {file.patient_id for file in files} == {"p1", "p2"}


def test_a_damaged_video_says_so_whatever_the_layout(tmp_path: Path) -> None:
    write_video(tmp_path / "p1_a.avi", greys())
    (tmp_path / "p2_a.mp4").write_bytes(b"no video")
    for layout in ("auto", "clips"):
        files = find_cases(DataSettings(path=tmp_path, layout=layout))  # type: ignore[arg-type]
        assert len(files) == COUNT + 1
        with pytest.raises(DataError, match=r"p2_a\.mp4: cannot be read as a video"):
            files[-1].read()


def test_an_avi_that_holds_more_frames_than_its_header_says_is_refused(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.avi", greys())
    content = bytearray(path.read_bytes())
    # The length of the stream is the ninth number of its header (strh), and the fifth of the main header (avih).
    for mark, place in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        begin = content.index(mark) + place
        assert int.from_bytes(content[begin : begin + 4], "little") == COUNT
        content[begin : begin + 4] = (COUNT - 5).to_bytes(4, "little")
    path.write_bytes(content)
    found = find_clip(path)
    assert found is not None
    with pytest.raises(DataError, match=rf"a\.avi: holds {COUNT} frames, and its header says {COUNT - 5}"):
        found.read("a", "p")


@pytest.mark.parametrize("has_table", [False, True])
def test_a_video_within_dicom_is_read_with_and_without_a_table_of_offsets(tmp_path: Path, has_table: bool) -> None:
    video = write_video(tmp_path / "a.mp4", greys()).read_bytes()
    path = write_clip(tmp_path / "a.dcm", np.repeat(greys()[..., None], 3, axis=-1), "RGB")
    made = pydicom.dcmread(path)
    made.file_meta.TransferSyntaxUID = MPEG4HP41
    made.PhotometricInterpretation = "YBR_PARTIAL_420"
    made.PixelData = encapsulate([video], has_bot=has_table)
    made["PixelData"].VR = "OB"
    made["PixelData"].is_undefined_length = True
    made.save_as(path, enforce_file_format=True)
    found = find_clip(path)
    assert found is not None
    assert found.read("a", "p").frames.shape == (COUNT, 1, *SIZE)
