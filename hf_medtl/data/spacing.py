"""Pixel spacing: the millimetres between the rows and between the columns of an image, where its header has them."""

import math
from pathlib import Path
from typing import Any

from hf_medtl.data.images import is_dicom, open_binary, open_nifti
from hf_medtl.data.quiet import QUIET


def read_spacing(source: str | Path | bytes) -> tuple[float, float] | None:
    """Return the millimetres between the rows and between the columns of an image as `read_image` shows it.

    Only what the header says of the patient counts: PixelSpacing of DICOM, the affine of NIfTI. ImagerPixelSpacing of a
    radiograph is at the detector, and the resolution of a PNG or JPEG is that of a print.

    Args:
        source: Path of a file, or its bytes.

    Returns:
        (rows, columns), or None if the header does not say.
    """
    with QUIET, open_binary(source) as stream:
        suffix = "" if isinstance(source, bytes) else Path(source).suffix.lower()
        if is_dicom(stream, suffix):
            return _checked(_dicom_spacing(stream))
        volume = open_nifti(stream)
        return None if volume is None else _checked(_nifti_spacing(volume))


def _dicom_spacing(stream: Any) -> Any:
    from pydicom import dcmread

    tags = ["PixelSpacing", "SharedFunctionalGroupsSequence"]
    header: Any = dcmread(stream, force=True, stop_before_pixels=True, specific_tags=tags)
    for group in header.get("SharedFunctionalGroupsSequence") or ():  # of all frames of an enhanced multi-frame file
        for measures in group.get("PixelMeasuresSequence") or ():
            header = measures
    return header.get("PixelSpacing")


def _nifti_spacing(stream: Any) -> Any:
    import nibabel
    from nibabel.fileholders import FileHolder

    image_class = nibabel.Nifti2Image if stream.read(8)[4:] == b"n+2\0" else nibabel.Nifti1Image
    stream.seek(0)
    image = image_class.from_file_map({"header": FileHolder(fileobj=stream), "image": FileHolder(fileobj=stream)})
    if image.header.get_xyzt_units()[0] not in ("mm", "unknown"):
        return None
    orientation = nibabel.io_orientation(image.affine)[:, 0].tolist()
    if not {0, 1} <= {*orientation}:
        return None
    sizes = nibabel.affines.voxel_sizes(image.affine)
    return sizes[orientation.index(1)], sizes[orientation.index(0)]  # rows go from anterior, columns from the right


def _checked(values: Any) -> tuple[float, float] | None:
    try:
        rows, columns = (float(value) for value in values or ())
    except (TypeError, ValueError):
        return None
    return (rows, columns) if min(rows, columns) > 0 and math.isfinite(rows + columns) else None
