"""DICOM files with a patient name in the header, and all text in which that name could appear."""

import io
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

NAME = "Mustermann^Erika"
RAMP = np.linspace(0, 4095, 64 * 48).reshape(48, 64).astype(np.uint16)  # 12 bits in 16
COLOUR = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def make_dicom(
    pixels: np.ndarray | None, *, frames: int = 0, syntax: str = ExplicitVRLittleEndian, **elements
) -> Dataset:
    """Return a DICOM dataset of pixels ([frames,] H, W[, 3]) with a patient name."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = Dataset()
    data.file_meta, data.preamble = meta, bytes(128)
    data.PatientName = data.PatientID = NAME
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    if pixels is not None:
        shape = pixels.shape[1:] if frames else pixels.shape
        if frames:
            data.NumberOfFrames = frames
        data.Rows, data.Columns = shape[:2]
        data.SamplesPerPixel = 1 if len(shape) == 2 else 3
        data.PhotometricInterpretation = "MONOCHROME2" if len(shape) == 2 else "RGB"
        if len(shape) == 3:
            data.PlanarConfiguration = 0
        data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
        data.PixelRepresentation = int(pixels.dtype.kind == "i")
        data.PixelData = pixels.tobytes()
    for keyword, value in elements.items():
        setattr(data, keyword, value)
    if pixels is not None:
        data.HighBit = data.BitsStored - 1
        data["PixelData"].VR = "OW" if data.BitsAllocated > 8 else "OB"
    return data


def save_dicom(data: Dataset, path: Path, **options) -> Path:
    data.save_as(path, **({"enforce_file_format": True} | options))
    return path


def encode_dicom(data: Dataset) -> bytes:
    """Return the content of a DICOM file."""
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def logged_text(caplog, capfd, recwarn) -> str:
    """Return all that was logged, printed or warned."""
    return " ".join([caplog.text, *capfd.readouterr(), *(str(warning.message) for warning in recwarn)])


def make_encapsulated_dicom(code: bytes, pixels: np.ndarray, syntax: str, **elements) -> Dataset:
    from pydicom.encaps import encapsulate

    data = make_dicom(pixels, syntax=syntax, **elements)
    data.PixelData = encapsulate([code])
    data["PixelData"].is_undefined_length = True
    return data
