"""Pictures to try: drawn by a program, of nobody."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hf_medtl.data import phantoms
from hf_medtl.data.images import read_image
from hf_medtl.data.inputs import picture_files
from hf_medtl.space.uploads import Upload, examined

SEED = 7  # of none that a demonstration model is trained on


@dataclass(frozen=True)
class Example:
    """One of them.

    Attributes:
        caption: what it is.
        name: of the file.
        content: the file.
        picture: (H, W) or (H, W, 3), for the page.
    """

    caption: str
    name: str
    content: bytes
    picture: NDArray[np.uint8]

    def upload(self) -> Upload:
        """As if somebody had given the file."""
        return examined(self.name, self.content)


def drawn() -> list[Example]:
    """Brain slices and chest radiographs with and without a finding, and one of 12 bits as DICOM."""
    brains = [phantoms.brain(patient, 0, lesion, seed=SEED, size=256) for patient, lesion in ((1, True), (2, False))]
    chests = [phantoms.chest(patient, 0, found, seed=SEED, size=256) for patient, found in ((1, True), (2, False))]
    named = [
        ("brain, lesion", "brain_lesion.png", brains[0]),
        ("brain", "brain.png", brains[1]),
        ("chest, opacity", "chest_opacity.png", chests[0]),
        ("chest", "chest.png", chests[1]),
    ]
    found = [Example(caption, name, png(its.image), its.image) for caption, name, its in named]
    deep = phantoms.brain(3, 0, True, seed=SEED, size=256).image
    return [*found, Example("DICOM, 12 bits", "brain_12_bits.dcm", dicom(deep), deep)]


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def dicom(pixels: NDArray[np.uint8]) -> bytes:
    """A DICOM file of 12 bits with the grey of 8-bit pixels (H, W[, 3]) in its middle, of no patient."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = MRImageStorage
    uids = [generate_uid(entropy_srcs=["hf_medtl", "example", str(number)]) for number in range(4)]
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = uids[0]
    made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID = uids[1:]
    made.Modality, made.PatientName, made.PatientID = "MR", "Phantom", "phantom"
    made.ImagePositionPatient, made.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    made.PixelSpacing, made.SliceThickness = [0.9, 0.9], 5
    made.Rows, made.Columns = grey.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 12, 11, 0
    made.WindowCenter, made.WindowWidth = 1420, 1640
    made.PixelData = (600 + grey.astype(np.uint32) * 1640 // 255).astype(np.uint16).tobytes()
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def in_folder(folder: Path) -> list[Example]:
    """The pictures of a folder, by name.

    Raises:
        MedtlError: there is none, or one can't be read.
    """
    return [
        Example(path.stem.replace("_", " "), path.name, path.read_bytes(), np.asarray(read_image(path)))
        for path in picture_files(folder)
    ]
