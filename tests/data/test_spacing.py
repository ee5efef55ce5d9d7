"""Tests of the pixel spacing in headers."""

import io

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from hf_medtl.data.images import read_image
from hf_medtl.data.spacing import read_spacing
from tests.support.dicom_files import RAMP, encode_dicom, make_dicom


def nifti(affine: np.ndarray, shape: tuple[int, ...], unit: str = "mm") -> bytes:
    """Return a NIfTI file of zeros."""
    image = nibabel.Nifti1Image(np.zeros(shape, np.int16), affine)
    image.header.set_xyzt_units(unit)
    return image.to_bytes()


def test_dicom_spacing_is_rows_then_columns():
    assert read_spacing(encode_dicom(make_dicom(RAMP, PixelSpacing=[0.7, 0.5]))) == (0.7, 0.5)
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing = [0.3, 0.4]
    shared.PixelMeasuresSequence = [measures]
    enhanced = make_dicom(np.stack([RAMP, RAMP]), frames=2, SharedFunctionalGroupsSequence=[shared])
    assert read_spacing(encode_dicom(enhanced)) == (0.3, 0.4)


def test_spacing_at_the_detector_is_not_that_of_the_patient():
    assert read_spacing(encode_dicom(make_dicom(RAMP, ImagerPixelSpacing=[0.2, 0.2]))) is None
    assert read_spacing(encode_dicom(make_dicom(RAMP, PixelSpacing=[0, 0.5]))) is None


def test_resolution_of_a_print_is_no_spacing():
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "PNG", dpi=(300, 300))
    assert read_spacing(stream.getvalue()) is None


def test_nifti_spacing_is_that_of_the_slice_shown():
    # Voxel axes: from the feet up (5 mm), from the back forwards (0.8 mm), from the left to the right (0.6 mm).
    turned = np.zeros((4, 4))
    turned[2, 0], turned[1, 1], turned[0, 2], turned[3, 3] = 5, 0.8, -0.6, 1
    content = nifti(turned, (3, 20, 30))
    assert read_image(content).size == (30, 20)
    assert read_spacing(content) == pytest.approx((0.8, 0.6))
    assert read_spacing(nifti(np.diag([2.0, 3, 4, 1]), (6, 7, 8))) == pytest.approx((3, 2))
    assert read_spacing(nifti(np.diag([2.0, 3, 4, 1]), (6, 7, 8), "micron")) is None
