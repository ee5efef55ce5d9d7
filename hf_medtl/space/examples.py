"""Example images of the Space: synthetic, of no patient."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hf_medtl.data.images import encode_image, read_image
from hf_medtl.data.inputs import image_files
from hf_medtl.data.phantoms import draw_brain, draw_chest
from hf_medtl.space.uploads import Upload, parse_upload

SEED = 7  # of no image that a demonstration model is trained on


@dataclass(frozen=True)
class Example:
    """An example image.

    Attributes:
        caption: short description.
        name: file name.
        content: bytes of the file.
        pixels: (H, W) or (H, W, 3), for the thumbnail.
    """

    caption: str
    name: str
    content: bytes
    pixels: NDArray[np.uint8]

    def upload(self) -> Upload:
        """Return the example as an uploaded file."""
        return parse_upload(self.name, self.content)


def generate_examples() -> list[Example]:
    """Draw brain slices and chest radiographs with and without a finding, and a DICOM file of 12 bits."""
    phantoms = {
        "brain_lesion.png": ("brain, lesion", draw_brain(1, 0, True, seed=SEED, size=256)),
        "brain.png": ("brain", draw_brain(2, 0, False, seed=SEED, size=256)),
        "chest_opacity.png": ("chest, opacity", draw_chest(1, 0, True, seed=SEED, size=256)),
        "chest.png": ("chest", draw_chest(2, 0, False, seed=SEED, size=256)),
    }
    pngs = [
        Example(caption, name, encode_image(Image.fromarray(phantom.image)), phantom.image)
        for name, (caption, phantom) in phantoms.items()
    ]
    pixels = draw_brain(3, 0, True, seed=SEED, size=256).image
    return [*pngs, Example("DICOM, 12 bits", "brain_12_bits.dcm", to_dicom(pixels), pixels)]


def to_dicom(pixels: NDArray[np.uint8]) -> bytes:
    """Return a 12-bit DICOM file, of no patient, with 8-bit pixels (H, W) or (H, W, 3) in the middle of its range."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = MRImageStorage
    uids = [generate_uid(entropy_srcs=["hf_medtl", "example", str(number)]) for number in range(4)]
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uids[0]
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = uids[1:]
    dataset.Modality, dataset.PatientName, dataset.PatientID = "MR", "Phantom", "phantom"
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [0.9, 0.9], 5
    dataset.Rows, dataset.Columns = grey.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = 1420, 1640
    # uint32, since 16 bits overflow in the product
    dataset.PixelData = (600 + grey.astype(np.uint32) * 1640 // 255).astype(np.uint16).tobytes()
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def load_examples(folder: Path) -> list[Example]:
    """Return the images of a folder, by name.

    Raises:
        MedtlError: there is none, or one cannot be read.
    """
    return [
        Example(path.stem.replace("_", " "), path.name, path.read_bytes(), np.asarray(read_image(path)))
        for path in image_files(folder)
    ]
