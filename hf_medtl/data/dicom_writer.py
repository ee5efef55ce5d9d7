"""A model's answer to a DICOM file as DICOM: a Segmentation of its mask, and a picture with a map over it.

Viewers show both beside the picture, since they belong to its study: they name the patient as it does. That is the one
output of hf_medtl with data from a header. It is for the user's own archive, and neither pushed nor shown anywhere.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

from hf_medtl.data.dicom import inflated
from hf_medtl.data.images import QUIET, is_dicom, open_source
from hf_medtl.errors import MedtlError
from hf_medtl.version import __version__

Make = Callable[[Dataset], Dataset]
NOTICE = "not for diagnosis"
# Type 1 of every image. What else must be there may be empty, and is where the source lacks it (type 2).
DEMANDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
GEOMETRY = ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
SERIES_NUMBERS = {"SEG": 9001, "SC": 9002}  # far from those of a scanner

ORGANS = {
    "lung": codes.SCT.Lung,
    "left lung": Code("44029006", "SCT", "Left lung"),
    "right lung": Code("3341006", "SCT", "Right lung"),
    "heart": codes.SCT.Heart,
    "mediastinum": codes.SCT.Mediastinum,
    "trachea": codes.SCT.Trachea,
    "clavicle": codes.SCT.Clavicle,
    "diaphragm": codes.SCT.Diaphragm,
    "rib": codes.SCT.Rib,
    "spine": codes.SCT.Spine,
    "brain": codes.SCT.Brain,
    "skull": codes.SCT.Skull,
    "liver": codes.SCT.Liver,
    "spleen": codes.SCT.Spleen,
    "kidney": codes.SCT.Kidney,
}
FINDINGS = {
    "lesion": codes.SCT.Lesion,
    "tumor": codes.SCT.Neoplasm,
    "tumour": codes.SCT.Neoplasm,
    "neoplasm": codes.SCT.Neoplasm,
    "nodule": codes.SCT.Nodule,
    "edema": codes.SCT.Edema,
    "pleural effusion": codes.SCT.PleuralEffusion,
    "pneumothorax": codes.SCT.Pneumothorax,
    "hemorrhage": codes.SCT.Hemorrhage,
}
PRIVATE = "99HFMEDTL"  # PS3.16 8.2: designators of private coding schemes begin with 99


def concept(label: str) -> tuple[Code, Code]:
    """Category and type of what a label names (PS3.16, CID 7150 and 7151).

    Known are ORGANS and FINDINGS, in the plural too, by SNOMED CT. Any other label is a place in the picture, with
    itself as the code, in a private coding scheme.
    """
    name = " ".join(label.lower().replace("_", " ").replace("-", " ").split())
    for known, category in (
        (ORGANS, codes.SCT.AnatomicalStructure),
        (FINDINGS, codes.SCT.MorphologicallyAbnormalStructure),
    ):
        code = known.get(name) or known.get(name.removesuffix("s"))
        if code:
            return category, code
    return codes.SCT.SpatialAndRelationalConcept, Code(short(label), PRIVATE, short(label))


def segmentation_object(
    source: Dataset, mask: NDArray[np.uint8], labels: Sequence[str], model_name: str, revision: str | None = None
) -> Dataset:
    """A DICOM Segmentation (PS3.3 A.51): a binary segment for each class but the first, also for one without a pixel.

    Segments of one series of pictures, by one model, are in one series.

    Args:
        source: the picture's header, see `read_header`, of one frame; its pixels are not needed.
        mask: (H, W) class indices, in the places of its stored pixels: `read_image` turns and crops nothing.
        labels: (K,) of the classes, the background first.
        model_name: what the algorithm is called.
        revision: of the model's weights.

    Raises:
        MedtlError: highdicom is not installed; the source has several frames, another size, or lacks what must be in
            such an object. The message holds no text from the header, and the error no cause.
    """
    hd, algorithm = library(), short(model_name)
    if len(labels) < 2 or int(mask.max(initial=0)) >= len(labels):
        raise MedtlError(
            f"Classes 0 to {len(labels) - 1}, of which 0 is the background, are expected in a mask; found "
            f"{int(mask.max(initial=0))}."
        )

    def make(header: Dataset) -> Dataset:
        frames = frames_of(header)
        if frames > 1:
            raise MedtlError(f"is of {frames} frames, of which one was read. Export that frame as a file of its own.")
        placed = all(header.get(key) not in (None, "") for key in GEOMETRY)
        if not placed:  # a radiograph; TRAP: of a spacing without a thickness highdicom writes what it can't read again
            for key in {"PixelSpacing", "ImagePositionPatient"} & set(header.dir()):
                delattr(header, key)
        identity = hd.AlgorithmIdentificationSequence(
            name=algorithm,
            family=codes.DCM.ArtificialIntelligence,
            version=short(revision or "unknown"),
            source=f"hf_medtl {__version__}",
        )
        segments = [
            hd.seg.SegmentDescription(number, short(label), *concept(label), "AUTOMATIC", identity)
            for number, label in enumerate(labels[1:], 1)
        ]
        made = hd.seg.Segmentation(
            source_images=[header],
            pixel_array=np.asarray(mask, np.uint8),
            segmentation_type="BINARY",
            segment_descriptions=segments,
            omit_empty_frames=False,  # else a class that was looked for and not found would have no frame to say so
            content_label="SEGMENTATION",
            content_description=f"Predicted, {NOTICE}",
            series_description=f"Predicted masks, {NOTICE}",
            device_serial_number=short(revision or "unknown"),
            **_series(header, "SEG", algorithm, revision),
        )
        if not placed:
            made.PatientOrientation = header.get("PatientOrientation")
        return made

    return _made("Segmentation", source, mask.shape, make)


def overlay_object(
    source: Dataset, picture: Image.Image, told: str, model_name: str, revision: str | None = None
) -> Dataset:
    """A DICOM Secondary Capture (PS3.3 A.8.1) of a picture in colour, such as one with a map over it.

    BurnedInAnnotation and what is known of lossy compression are the source's, whose pixels show through. Nothing is
    said where it says nothing.

    Args:
        source: header of the picture beneath, see `read_header`; of several frames it is the middle one, which
            `read_image` reads.
        picture: (W, H) of its size.
        told: what is to be seen, such as "pneumonia 0.93 by gradcam".
        model_name, revision: as for `segmentation_object`.

    Raises:
        MedtlError: highdicom is not installed; another size, or the source lacks what must be in such an object. The
            message holds no text from the header, and the error no cause.
    """
    hd, algorithm = library(), short(model_name)

    def make(header: Dataset) -> Dataset:
        made = hd.sc.SCImage.from_ref_dataset(
            ref_dataset=header,
            pixel_array=np.asarray(picture.convert("RGB")),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),  # highdicom insists on one; the source's, or none, takes its place below
            transfer_syntax_uid=ExplicitVRLittleEndian,
            series_description=f"Map over picture, {NOTICE}",
            **_series(header, "SC", algorithm, revision),
        )
        made.copy_patient_and_study_information(header)
        made.PatientOrientation, made.Laterality = header.get("PatientOrientation"), header.get("Laterality")
        kept = ("BurnedInAnnotation", *(f"LossyImageCompression{part}" for part in ("", "Ratio", "Method")))
        made.update({element.tag: element for element in header if element.keyword in kept})
        by = f"{model_name}{f', revision {revision}' if revision else ''}, hf_medtl {__version__}"
        made.DerivationDescription = f"Map over the picture: {told}. By {by}. For research, {NOTICE}."[:1024]
        made.SourceImageSequence = [Dataset()]
        beneath = made.SourceImageSequence[0]
        beneath.ReferencedSOPClassUID, beneath.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        frames = frames_of(header)
        if frames > 1:
            beneath.ReferencedFrameNumber = frames // 2 + 1
        purpose = hd.sr.CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
        beneath.PurposeOfReferenceCodeSequence = [purpose]
        return made

    return _made("Secondary Capture", source, (picture.height, picture.width), make)


def read_header(source: str | Path | bytes) -> Dataset | None:
    """All of a DICOM file but its pixels: data of a patient. None for any other kind of file.

    Raises:
        MedtlError: it is damaged. The message holds no text from the header, and the error no cause.
    """
    name = "bytes" if isinstance(source, bytes) else str(source)
    with open_source(source) as stream:
        if not is_dicom(stream, "" if isinstance(source, bytes) else Path(source).suffix.lower()):
            return None
        try:
            with QUIET:
                whole = inflated(stream, name)
                whole.seek(0)
                return dcmread(whole, force=True, stop_before_pixels=True)
        except Exception as error:
            reason = type(error).__name__
    raise MedtlError(f"Its header can't be read ({reason}).")


def save_objects(path: str, made: Mapping[Path, Make]) -> str:
    """Write DICOM objects of the answer to one picture, if that is a DICOM file.

    Args:
        path: of the picture.
        made: file to write -> what makes its content of the header.

    Returns:
        Why there is one that can't be; "" if there is none.
    """
    try:
        header = read_header(path)
        if header is not None:
            for target, make in made.items():
                write_object(make(header), target)
    except MedtlError as error:
        return f"{path}: {error} The answer stands; --no_dicom leaves DICOM out."
    return ""


def library() -> Any:
    """highdicom, of the extra `dicom-out`."""
    try:
        import highdicom
    except ImportError as error:
        raise MedtlError("DICOM output needs highdicom: pip install 'hf_medtl[dicom-out]'.") from error
    return highdicom


def short(text: str) -> str:
    """As a Long String (LO) of DICOM: 64 characters, without backslashes and control characters."""
    return "".join("/" if char == "\\" else char for char in text if char.isprintable())[:64].strip() or "unnamed"


def frames_of(header: Dataset) -> int:
    """How many there are."""
    return int(header.get("NumberOfFrames") or 1)


def _series(header: Dataset, kind: str, model_name: str, revision: str | None) -> dict[str, Any]:
    """What both objects are told alike. The series is the same for all pictures of a series, whoever makes them."""
    origin = [str(header.SeriesInstanceUID), kind, model_name, revision or "", __version__]
    return {
        "series_instance_uid": generate_uid(entropy_srcs=origin),
        "series_number": SERIES_NUMBERS[kind],
        "sop_instance_uid": generate_uid(),
        "instance_number": max(1, int(header.get("InstanceNumber") or 1)),
        "manufacturer": "hf_medtl",
        "manufacturer_model_name": model_name,
        "software_versions": (__version__, short(revision or "unknown")),
    }


def _made(kind: str, source: Dataset, shape: tuple[int, ...], make: Make) -> Dataset:
    """What `make` makes of the source. TRAP: pydicom and highdicom quote values in warnings, logs and exceptions."""
    try:
        with QUIET:
            header = _completed(source)
            size = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
            if shape != size:
                raise MedtlError(f"has {size[0]} × {size[1]} pixels, not {' × '.join(map(str, shape))}.")
            lacking = [key for key in DEMANDED if not UID(str(header.get(key) or "")).is_valid]
            if lacking:
                raise MedtlError(f"lacks {', '.join(lacking)}. Export it again, with them.")
            return make(header)
    except MedtlError as error:
        reason = str(error)
    except Exception as error:
        hint = (
            "" if "FrameOfReferenceUID" in source else " It has no FrameOfReferenceUID, which a CT or MR slice needs."
        )
        reason = f"does not hold in its header what is needed ({type(error).__name__}).{hint}"
    raise MedtlError(f"No {kind} is made of the file: it {reason}")


def _completed(source: Dataset) -> Dataset:
    """A copy without pixels and private elements, in UTF-8, which holds any label, and with what may be empty."""
    tags = [tag for tag in source.keys() if tag.group != 0x7FE0 and not tag.is_private]  # noqa: SIM118
    header = Dataset({tag: source[tag] for tag in tags})
    header.decode()
    header.SpecificCharacterSet = "ISO_IR 192"
    for keyword in MAY_BE_EMPTY:
        if keyword not in header:
            setattr(header, keyword, None)
    return header


def write_object(made: Dataset, target: Path | BinaryIO) -> None:
    """To a file or stream.

    Raises:
        MedtlError: its header can't be written. The message holds no text from it.
    """
    try:
        with QUIET:
            made.save_as(target, enforce_file_format=True)
            return
    except OSError:
        raise
    except Exception as error:
        reason = type(error).__name__
    raise MedtlError(f"Its header can't be written again ({reason}).")
