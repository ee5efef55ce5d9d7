"""DICOM output: predicted masks as DICOM Segmentation, and heatmap overlays as Secondary Capture.

Viewers show both next to the image because they belong to its study and carry its patient data. This is the only output
of hf_medtl with data from a header. It is for the user's own archive, and is never uploaded or displayed.
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

from hf_medtl.common.extras import require
from hf_medtl.common.files import replacing
from hf_medtl.data.dicom_checks import inflate
from hf_medtl.data.images import is_dicom, open_binary
from hf_medtl.data.quiet import QUIET
from hf_medtl.errors import MedtlError
from hf_medtl.version import __version__

ObjectBuilder = Callable[[Dataset], Dataset]
NOTICE = "not for diagnosis"
# Type 1 attributes of every image. The other (type 2) attributes are left empty if the source lacks them.
_REQUIRED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("AccessionNumber", "StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
_GEOMETRY = ("FrameOfReferenceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
_SERIES_NUMBERS = {"SEG": 9001, "SC": 9002}  # far from the numbers of scanners

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
_PRIVATE_SCHEME = "99HFMEDTL"  # PS3.16 8.2: designators of private coding schemes begin with 99


def segment_concept(label: str) -> tuple[Code, Code]:
    """Return the category and type of a segment's label (PS3.16, CID 7150 and 7151).

    ORGANS and FINDINGS, singular or plural, have SNOMED CT codes. Any other label is a spatial concept whose code is
    the label itself, in a private coding scheme.
    """
    name = " ".join(label.lower().replace("_", " ").replace("-", " ").split())
    for names, category in (
        (ORGANS, codes.SCT.AnatomicalStructure),
        (FINDINGS, codes.SCT.MorphologicallyAbnormalStructure),
    ):
        code = names.get(name) or names.get(name.removesuffix("s"))
        if code:
            return category, code
    return codes.SCT.SpatialAndRelationalConcept, Code(_long_string(label), _PRIVATE_SCHEME, _long_string(label))


def make_segmentation(
    source: Dataset, mask: NDArray[np.uint8], labels: Sequence[str], model_name: str, revision: str | None = None
) -> Dataset:
    """Build a DICOM Segmentation (PS3.3 A.51): a binary segment for each class but the first, even if it is empty.

    Segmentations of one series of images by one model form one series.

    Args:
        source: Header of the image, see `read_header`, with a single frame; its pixels are not needed.
        mask: (H, W) class indices on the grid of the stored pixels; `read_image` neither rotates nor crops DICOM.
        labels: (K,) class names, the background first.
        model_name: Name of the algorithm.
        revision: Revision of the model's weights.

    Raises:
        MedtlError: highdicom is not installed; the source has multiple frames, another size, or lacks required
            attributes. The message contains no text from the header, and the error has no cause.
    """
    hd, algorithm = _highdicom(), _long_string(model_name)
    if len(labels) < 2 or int(mask.max(initial=0)) >= len(labels):
        raise MedtlError(
            f"Expected a mask with the classes 0 (background) to {len(labels) - 1}, found {int(mask.max(initial=0))}."
        )

    def make(header: Dataset) -> Dataset:
        frames = _frame_count(header)
        if frames > 1:
            raise MedtlError(f"has {frames} frames, of which one was read. Export that frame as a separate file.")
        placed = all(header.get(key) not in (None, "") for key in _GEOMETRY)
        if not placed:  # a radiograph; trap: given a spacing without a thickness, highdicom writes a file it can't read
            for key in {"PixelSpacing", "ImagePositionPatient"} & set(header.dir()):
                delattr(header, key)
        identity = hd.AlgorithmIdentificationSequence(
            name=algorithm,
            family=codes.DCM.ArtificialIntelligence,
            version=_long_string(revision or "unknown"),
            source=f"hf_medtl {__version__}",
        )
        segments = [
            hd.seg.SegmentDescription(number, _long_string(label), *segment_concept(label), "AUTOMATIC", identity)
            for number, label in enumerate(labels[1:], 1)
        ]
        made = hd.seg.Segmentation(
            source_images=[header],
            pixel_array=np.asarray(mask, np.uint8),
            segmentation_type="BINARY",
            segment_descriptions=segments,
            omit_empty_frames=False,  # otherwise a class that was not found would have no frame at all
            content_label="SEGMENTATION",
            content_description=f"Predicted, {NOTICE}",
            series_description=f"Predicted masks, {NOTICE}",
            device_serial_number=_long_string(revision or "unknown"),
            **_series_attributes(header, "SEG", algorithm, revision),
        )
        if not placed:
            made.PatientOrientation = header.get("PatientOrientation")
        return made

    return _build("Segmentation", source, mask.shape, make)


def make_overlay(
    source: Dataset, image: Image.Image, description: str, model_name: str, revision: str | None = None
) -> Dataset:
    """Build a DICOM Secondary Capture (PS3.3 A.8.1) of a colour image, such as one with a heatmap overlay.

    BurnedInAnnotation and the attributes of lossy compression are copied from the source, whose pixels are visible.

    Args:
        source: Header of the underlying image, see `read_header`; of multiple frames, the middle one is meant, which
            `read_image` reads.
        image: Image of the same size.
        description: What the overlay shows, such as "pneumonia 0.93 by gradcam".
        model_name: Name of the algorithm.
        revision: Revision of the model's weights.

    Raises:
        MedtlError: highdicom is not installed; another size, or the source lacks required attributes. The message
            contains no text from the header, and the error has no cause.
    """
    hd, algorithm = _highdicom(), _long_string(model_name)

    def make(header: Dataset) -> Dataset:
        made = hd.sc.SCImage.from_ref_dataset(
            ref_dataset=header,
            pixel_array=np.asarray(image.convert("RGB")),
            photometric_interpretation="RGB",
            bits_allocated=8,
            coordinate_system="PATIENT",
            patient_orientation=("L", "F"),  # required by highdicom; replaced by the source's, or none, below
            transfer_syntax_uid=ExplicitVRLittleEndian,
            series_description=f"Heatmap overlay, {NOTICE}",
            **_series_attributes(header, "SC", algorithm, revision),
        )
        made.copy_patient_and_study_information(header)
        made.PatientOrientation, made.Laterality = header.get("PatientOrientation"), header.get("Laterality")
        kept = ("BurnedInAnnotation", *(f"LossyImageCompression{part}" for part in ("", "Ratio", "Method")))
        made.update({element.tag: element for element in header if element.keyword in kept})
        by = f"{model_name}{f', revision {revision}' if revision else ''}, hf_medtl {__version__}"
        made.DerivationDescription = f"Heatmap overlay: {description}. By {by}. For research, {NOTICE}."[:1024]
        made.SourceImageSequence = [Dataset()]
        reference = made.SourceImageSequence[0]
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
        frames = _frame_count(header)
        if frames > 1:
            reference.ReferencedFrameNumber = frames // 2 + 1
        purpose = hd.sr.CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
        reference.PurposeOfReferenceCodeSequence = [purpose]
        return made

    return _build("Secondary Capture", source, (image.height, image.width), make)


def read_header(source: str | Path | bytes) -> Dataset | None:
    """Return the complete header of a DICOM file, which contains patient data; None for any other file.

    Raises:
        MedtlError: The file is damaged. The message contains no text from the header, and the error has no cause.
    """
    name = "bytes" if isinstance(source, bytes) else str(source)
    with open_binary(source) as stream:
        if not is_dicom(stream, "" if isinstance(source, bytes) else Path(source).suffix.lower()):
            return None
        try:
            with QUIET:
                inflated = inflate(stream, name)
                inflated.seek(0)
                return dcmread(inflated, force=True, stop_before_pixels=True)
        except Exception as error:
            reason = type(error).__name__
    raise MedtlError(f"Its header can't be read ({reason}).")


def save_dicom_outputs(path: str, made: Mapping[Path, ObjectBuilder]) -> str:
    """Write DICOM outputs for the predictions of one image, if it is a DICOM file.

    Args:
        path: Image file.
        made: File to write -> function that builds its content from the header.

    Returns:
        Error message, or "".
    """
    try:
        header = read_header(path)
        if header is not None:
            for target, make in made.items():
                with replacing(target) as partial:
                    write_dicom(make(header), partial)
    except MedtlError as error:
        return f"{path}: {error} The prediction is unaffected; without --dicom nothing is written as DICOM."
    return ""


def _highdicom() -> Any:
    """Import highdicom, from the extra `dicom-out`."""
    return require("highdicom", "dicom-out", "DICOM output")


def _long_string(text: str) -> str:
    """Return text as a DICOM Long String (LO): 64 characters without backslashes and control characters."""
    return "".join("/" if char == "\\" else char for char in text if char.isprintable())[:64].strip() or "unnamed"


def _frame_count(header: Dataset) -> int:
    return int(header.get("NumberOfFrames") or 1)


def _series_attributes(header: Dataset, kind: str, model_name: str, revision: str | None) -> dict[str, Any]:
    """Return the attributes of both objects. All images of a series get the same output series."""
    origin = [str(header.SeriesInstanceUID), kind, model_name, revision or "", __version__]
    return {
        "series_instance_uid": generate_uid(entropy_srcs=origin),
        "series_number": _SERIES_NUMBERS[kind],
        "sop_instance_uid": generate_uid(),
        "instance_number": max(1, int(header.get("InstanceNumber") or 1)),
        "manufacturer": "hf_medtl",
        "manufacturer_model_name": model_name,
        "software_versions": (__version__, _long_string(revision or "unknown")),
    }


def _build(kind: str, source: Dataset, shape: tuple[int, ...], make: ObjectBuilder) -> Dataset:
    """Build an object from the source. Trap: pydicom and highdicom quote values in warnings, logs and exceptions."""
    try:
        with QUIET:
            header = _complete_header(source)
            size = int(header.get("Rows") or 0), int(header.get("Columns") or 0)
            if shape != size:
                raise MedtlError(f"has {size[0]} × {size[1]} pixels, not {' × '.join(map(str, shape))}.")
            lacking = [key for key in _REQUIRED if not UID(str(header.get(key) or "")).is_valid]
            if lacking:
                raise MedtlError(f"lacks {', '.join(lacking)}. Export the file again with them.")
            return make(header)
    except MedtlError as error:
        reason = str(error)
    except Exception as error:
        hint = (
            "" if "FrameOfReferenceUID" in source else " It has no FrameOfReferenceUID, which a CT or MR slice needs."
        )
        reason = f"lacks required header attributes ({type(error).__name__}).{hint}"
    raise MedtlError(f"No {kind} was created: the file {reason}")


def _complete_header(source: Dataset) -> Dataset:
    """Return a copy without pixels and private elements, in UTF-8 to allow any label, with empty type 2 attributes."""
    tags = [tag for tag in source.keys() if tag.group != 0x7FE0 and not tag.is_private]  # noqa: SIM118
    header = Dataset({tag: source[tag] for tag in tags})
    header.decode()
    header.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _MAY_BE_EMPTY:
        if keyword not in header:
            setattr(header, keyword, None)
    return header


def write_dicom(made: Dataset, target: Path | BinaryIO) -> None:
    """Write a DICOM object to a file or stream.

    Raises:
        MedtlError: Its header can't be written. The message contains no text from it.
        OSError: The file can't be written.
    """
    try:
        with QUIET:
            made.save_as(target, enforce_file_format=True)
            return
    except OSError:
        raise
    except Exception as error:
        reason = type(error).__name__
    raise MedtlError(f"Its header can't be written ({reason}).")
