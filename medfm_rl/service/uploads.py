"""Masks that come back: raw labels of the page, or a file of any tool, checked before anything large is read."""

from __future__ import annotations

import zlib
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from medfm_rl.data.each_case import case_alone
from medfm_rl.data.images import image_suffix
from medfm_rl.data.labels import read_labels
from medfm_rl.data.text_headers import pixel_files
from medfm_rl.errors import DataError
from medfm_rl.service.errors import DeskError
from medfm_rl.service.pixels import Picture
from medfm_rl.types import LabelMap, LabelSchema

_BLOCK: Final = 1 << 16
_MOST_BYTES_A_PIXEL: Final = 32
"""Of a mask: eight bytes of the widest integer, four segments that overlap, and some for its header."""
_HEADER: Final = 1 << 20
_IN_TWO_FILES: Final = (".mhd", ".nhdr")
_KINDS: Final = "send NIfTI, MetaImage (.mha), NRRD, PNG or DICOM, one file"


def labels_of_bytes(
    body: bytes, compressed: bool, picture: Picture, schema: LabelSchema, shape: str | None = None
) -> LabelMap:
    """Class indices `(N, H, W)` as the page sends them: one byte for each pixel of the whole grid.

    Args:
        body: The bytes.
        compressed: Whether they are packed by gzip.
        picture: The image.
        schema: The structures.
        shape: Size that the sender says they have, such as `10,48,64`; None where he says none.

    Raises:
        DeskError: They are not as many as the grid has pixels, or not those of the structures.
    """
    wanted = int(np.prod(picture.shape))
    own = ",".join(map(str, picture.shape))
    if shape is not None and shape.replace(" ", "").removeprefix("1,") != own.removeprefix("1,"):
        raise _unfit(
            f"the labels are said to be of size {shape[:40]}, and the image is of {own}", "open the case again"
        )
    if compressed:
        body = _unpacked(body, wanted)
    if len(body) != wanted:
        raise _unfit(
            f"{'more than ' if len(body) > wanted else ''}{min(len(body), wanted)} bytes came and the image has "
            f"{wanted} pixels",
            "send one byte for each pixel of the whole grid",
        )
    labels: LabelMap = np.frombuffer(body, np.uint8).reshape(picture.shape)
    if labels.max(initial=0) >= schema.num_classes:
        raise _unfit(
            f"label {labels.max()} is none of 0 to {schema.num_classes - 1}", "send class indices, 0 the background"
        )
    return labels


def labels_of_file(name: str, content: bytes, picture: Picture, schema: LabelSchema, case: str) -> LabelMap:
    """Class indices `(N, H, W)` of a mask file, checked as any mask: its size, its grid, and its labels.

    Args:
        name: What the file is called; its suffix says what it is.
        content: Its bytes.
        picture: The image.
        schema: Names of the structures, and their integers in the file.
        case: Name of the case, for messages.

    Raises:
        DeskError: It is of a kind that cannot be sent, or holds more than the image has room for.
        DataError: It cannot be read, or does not fit the image.
    """
    suffix = suffix_to_send(name, "the mask")
    with TemporaryDirectory(prefix="medfm-rl-desk-") as folder:
        path = Path(folder, f"mask{suffix}")
        path.write_bytes(content)
        with case_alone(case):
            require_own_pixels(path, "the mask")
            _require_room(path, suffix, content, picture)
            try:
                return _read(path, picture, schema)
            except DataError as error:
                raise DataError(str(error).replace(str(path), "the mask that was sent")) from error


def suffix_to_send(name: str, what: str) -> str:
    """The ending of a file that is sent.

    Args:
        name: What the file is called.
        what: What it is, for messages.

    Raises:
        DeskError: It is of no known kind, or of one that lies in two files.
    """
    suffix = image_suffix(Path(PurePosixPath(name.replace("\\", "/")).name))
    if suffix is None or suffix in _IN_TWO_FILES:
        raise DeskError(422, "kind", f"{what} is of no kind that can be sent", _KINDS)
    return suffix


def require_own_pixels(path: Path, what: str) -> None:
    """Refuses a sent file whose pixels lie in another one: it could name any file of the server.

    Raises:
        DeskError: They do.
    """
    if pixel_files(path):
        raise DeskError(422, "kind", f"the pixels of {what} lie in another file", _KINDS)


def _read(path: Path, picture: Picture, schema: LabelSchema) -> LabelMap:
    if picture.form == "volume":
        return read_labels(path, schema, picture.shape, picture.geometry)
    if picture.form == "image":
        return read_labels(path, schema, picture.shape[1:], picture.geometry)[None]
    frames = [
        read_labels(path, schema, picture.shape[1:], picture.geometry, frame=number, frames=picture.planes)
        for number in range(picture.planes)
    ]
    return np.stack(frames)


def _require_room(path: Path, suffix: str, content: bytes, picture: Picture) -> None:
    """Refuses what says of itself, or turns out when it is unpacked, to be larger than a mask of the image can be."""
    pixels = int(np.prod(picture.shape))
    if suffix.endswith(".gz"):
        _unpacked(content, pixels * _MOST_BYTES_A_PIXEL + _HEADER)
    if suffix == ".dcm":
        try:
            header = dcmread(path, stop_before_pixels=True)
        except (InvalidDicomError, OSError, ValueError, KeyError, AttributeError) as error:
            raise _unfit(f"the file is no DICOM ({error})", "send the SEG as the tool wrote it") from error
        rows, columns = int(header.get("Rows", 0)), int(header.get("Columns", 0))
        found = rows * columns * int(header.get("NumberOfFrames", 1))
        # A SEG has frames of its own for each segment.
        room = pixels * 256
    else:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise _unfit(
                "the file cannot be read; it is damaged, or of another kind than its name says", "save the mask again"
            ) from error
        found = int(np.prod([max(1, size) for size in reader.GetSize()], dtype=np.float64))
        found *= max(1, reader.GetNumberOfComponents())
        # A file of 3D Slicer can hold layers of segments that overlap.
        room = pixels * 8
    if found > room:
        raise _unfit(
            f"the mask says that it has {found} pixels, and the image has {pixels}",
            "save the mask on the grid of the image",
        )


def _unpacked(body: bytes, most: int) -> bytes:
    """What gzip packed; a little more than `most` where it is more.

    Raises:
        DeskError: It is no gzip.
    """
    unpacker = zlib.decompressobj(wbits=31)
    found = bytearray()
    try:
        for start in range(0, len(body), _BLOCK):
            piece = body[start : start + _BLOCK]
            while piece:
                found += unpacker.decompress(piece, _BLOCK)
                if len(found) > most:
                    raise _unfit(
                        f"what was sent unpacks to more than {most} bytes", "save the mask on the grid of the image"
                    )
                piece = unpacker.unconsumed_tail
        found += unpacker.flush()
    except zlib.error as error:
        raise _unfit(f"what was sent is no gzip ({error})", "send it again, or unpacked") from error
    if not unpacker.eof:
        raise _unfit("what was sent ends before its end", "send it again")
    return bytes(found)


def _unfit(message: str, remedy: str) -> DeskError:
    return DeskError(422, "mask", message, remedy)
