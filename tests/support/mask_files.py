"""The same mask in every way that tools store one: integers 0 to 3 for the background, LV, MYO and LA."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentDescription
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medfm_rl.types import Geometry

SPACING, ORIGIN = (0.5, 0.7, 2.5), (1.0, 2.0, 3.0)
VOLUME: Final = Geometry(SPACING, ORIGIN, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
NAMES: Final = ("LV", "MYO", "LA")
COLOURS: Final = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]
Mask = np.ndarray
Writer = Callable[[Path, Mask], Path]


def itk(array: Mask, vector: bool = False) -> sitk.Image:
    image = sitk.GetImageFromArray(array, isVector=vector)
    ndim = image.GetDimension()
    image.SetSpacing(SPACING[:ndim])
    image.SetOrigin(ORIGIN[:ndim])
    return image


def by_itk(suffix: str, dtype: type = np.uint8) -> Writer:
    def write(folder: Path, mask: Mask) -> Path:
        path = folder / f"mask{suffix}"
        sitk.WriteImage(itk(mask.astype(dtype)), str(path))
        return path

    return write


def by_nibabel(dtype: type) -> Writer:
    """As `get_fdata` and `save` leave a mask: integers in the header, so that what was real is scaled."""

    def write(folder: Path, mask: Mask) -> Path:
        path = folder / "mask.nii.gz"
        sitk.WriteImage(itk(mask), str(path))
        read = nib.load(path)
        header = read.header.copy()
        header.set_data_dtype(dtype)
        nib.save(nib.Nifti1Image(read.get_fdata(), read.affine, header), folder / "scaled.nii.gz")
        return folder / "scaled.nii.gz"

    return write


def a_hair_off(folder: Path, mask: Mask) -> Path:
    """Reals after arithmetic in single precision: 2 is 2.0000002."""
    path = folder / "mask.nii.gz"
    sitk.WriteImage(itk(np.nextafter(mask.astype(np.float32), np.float32(9))), str(path))
    return path


def picture(suffix: str, change: Callable[[Mask], Image.Image]) -> Writer:
    def write(folder: Path, mask: Mask) -> Path:
        path = folder / f"mask{suffix}"
        change(mask).save(path)
        return path

    return write


def of_palette(mask: Mask, palette: list[int] = COLOURS) -> Image.Image:
    image = Image.fromarray(mask, "P")
    image.putpalette(palette)
    return image


def of_grey_palette(mask: Mask) -> Image.Image:
    """As programs that optimise pictures store greys: colours by how often they are met, whatever their order."""
    order = np.argsort(-np.bincount(mask.ravel(), minlength=4), kind="stable")
    return of_palette(np.argsort(order).astype(np.uint8)[mask], np.repeat(order, 3).tolist())


def few_bits(depth: int) -> Writer:
    """A grey PNG of 2 or 4 bits, which viewers show from black to white."""

    def write(folder: Path, mask: Mask) -> Path:
        rows = b""
        for row in mask:
            bits = np.unpackbits(row[:, None], axis=1)[:, -depth:]
            rows += b"\0" + np.packbits(bits.ravel()).tobytes()

        def chunk(name: bytes, content: bytes) -> bytes:
            return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

        header = struct.pack(">IIBBBBB", mask.shape[1], mask.shape[0], depth, 0, 0, 0, 0)
        path = folder / "mask.png"
        content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
        return path

    return write


def source_slices(shape: tuple[int, ...], in_space: bool = True) -> list[FileDataset]:
    """Slices of MR at `VOLUME`, or a frame of ultrasound, which lies nowhere."""
    series, slices = generate_uid(), []
    kind = "1.2.840.10008.5.1.4.1.1.4" if in_space else "1.2.840.10008.5.1.4.1.1.6.1"
    for index in range(shape[0]):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = kind, generate_uid()
        data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
        data.PatientName, data.PatientID, data.Modality = "Test^T", "T1", "MR" if in_space else "US"
        data.PatientBirthDate = data.PatientSex = data.AccessionNumber = data.StudyID = ""
        data.StudyDate = data.StudyTime = data.ReferringPhysicianName = ""
        data.StudyInstanceUID, data.SeriesInstanceUID, data.SeriesNumber = "1.2.3.4", series, 1
        data.InstanceNumber = index + 1
        if in_space:
            data.FrameOfReferenceUID = "1.2.3.5"
            data.ImagePositionPatient = [ORIGIN[0], ORIGIN[1], ORIGIN[2] + index * SPACING[2]]
            data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
            data.PixelSpacing, data.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
        data.Rows, data.Columns = shape[1:]
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit = 15
        data.PixelData = np.arange(np.prod(shape[1:]), dtype=np.uint16).tobytes()
        slices.append(data)
    return slices


def dicom_seg(kind: str = "BINARY", names: tuple[str, ...] = NAMES, in_space: bool = True) -> Writer:
    """As highdicom writes it: frames without a pixel are left out."""

    def write(folder: Path, mask: Mask) -> Path:
        volume = mask if mask.ndim == 3 else mask[None]
        descriptions = [
            SegmentDescription(number, name, codes.SCT.Tissue, codes.SCT.Tissue, SegmentAlgorithmTypeValues.MANUAL)
            for number, name in enumerate(names, 1)
        ]
        pixels = volume if kind != "FRACTIONAL" else np.stack([volume == 1, volume == 2, volume == 3], -1) * 0.5
        made = Segmentation(
            source_slices(volume.shape, in_space),
            pixels,
            kind,
            descriptions,
            generate_uid(),
            1,
            generate_uid(),
            1,
            "maker",
            "model",
            "1",
            "1",
        )
        path = folder / "mask.dcm"
        made.save_as(path)
        return path

    return write


def slicer(layered: bool = False, cropped: bool = False, names: tuple[str, ...] = NAMES, old: bool = False) -> Writer:
    """As 3D Slicer writes it: `.seg.nrrd`, three axes, cut to the segments where `cropped`."""

    def write(folder: Path, mask: Mask) -> Path:
        volume = mask if mask.ndim == 3 else mask[None]
        values = [1, 1, 1] if layered else [1, 2, 3]
        stored = np.stack([volume == 1, volume == 2, volume == 3], -1).astype(np.uint8) if layered else volume
        image = itk(stored, vector=layered)
        for index, name in enumerate(names):
            image.SetMetaData(f"Segment{index}_ID", f"Segment_{index + 1}")
            image.SetMetaData(f"Segment{index}_Name", name)
            if not old:
                image.SetMetaData(f"Segment{index}_LabelValue", str(values[index]))
                image.SetMetaData(f"Segment{index}_Layer", str(index if layered else 0))
        if cropped and volume.any():
            low, high = (edge(np.argwhere(volume), axis=0)[::-1].tolist() for edge in (np.min, np.max))
            keys = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
            image = image[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))]
            for key, value in keys.items():
                image.SetMetaData(key, value)
        path = folder / "mask.seg.nrrd"
        sitk.WriteImage(image, str(path))
        return path

    return write


def detached_nrrd(folder: Path, mask: Mask) -> Path:
    """A header, and the pixels in a file of their own."""
    path = folder / "mask.nhdr"
    sitk.WriteImage(itk(mask), str(path))
    assert len(list(folder.glob("mask.*"))) >= 2
    return path


def dicom_image(folder: Path, mask: Mask) -> Path:
    data = source_slices((1, *mask.shape[-2:]))[0]
    data.PixelData = mask.reshape(mask.shape[-2:]).astype(np.uint16).tobytes()
    path = folder / "mask.dcm"
    pydicom.dcmwrite(path, data)
    return path


FLAT: Final[dict[str, Writer]] = {
    "png": picture(".png", Image.fromarray),
    "16-bit png": picture(".png", lambda mask: Image.fromarray(mask.astype(np.uint16))),
    "2-bit png": few_bits(2),
    "4-bit png": few_bits(4),
    "palette": picture(".png", of_palette),
    "palette in bmp": picture(".bmp", of_palette),
    "palette in tiff": picture(".tif", of_palette),
    "palette of greys": picture(".png", of_grey_palette),
    "palette of ordered greys": picture(
        ".png", lambda mask: of_palette(mask, np.repeat([0, 85, 170, 255], 3).tolist())
    ),
    "equal colours": picture(".png", lambda mask: Image.fromarray(np.stack([mask] * 3, -1))),
    "equal colours, opaque": picture(".png", lambda mask: Image.fromarray(np.stack([mask] * 3, -1)).convert("RGBA")),
    "grey, opaque": picture(".png", lambda mask: Image.fromarray(mask).convert("LA")),
    "bmp": picture(".bmp", Image.fromarray),
    "tiff": picture(".tiff", Image.fromarray),
    "seg of ultrasound": dicom_seg(in_space=False),
}
"""Ways to store a flat mask without a place in space."""
PLACED: Final[dict[str, Writer]] = {
    "nifti": by_itk(".nii.gz"),
    "nifti, 16 bit": by_itk(".nii", np.int16),
    "nifti of reals": by_itk(".nii.gz", np.float64),
    "nifti, a hair off": a_hair_off,
    "nifti, scaled bytes": by_nibabel(np.uint8),
    "nifti, scaled 16 bit": by_nibabel(np.int16),
    "mha": by_itk(".mha"),
    "mhd": by_itk(".mhd"),
    "nrrd": by_itk(".nrrd"),
    "seg.nrrd without segments": by_itk(".seg.nrrd"),
    "detached nrrd": detached_nrrd,
    "seg": dicom_seg(),
    "label map seg": dicom_seg("LABELMAP"),
    "slicer": slicer(),
    "slicer, layers": slicer(layered=True),
    "slicer, cropped": slicer(cropped=True),
    "slicer, layers, cropped": slicer(layered=True, cropped=True),
    "slicer before 4.11": slicer(layered=True, old=True),
}
"""Ways to store a volume."""
