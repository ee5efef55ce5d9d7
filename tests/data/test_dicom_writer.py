"""DICOM output: correct pixels and references, and patient data nowhere else."""

import logging
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from hf_medtl import MedtlError
from hf_medtl.data.dicom_writer import make_overlay, make_segmentation, read_header, save_dicom_outputs, segment_concept
from tests.support.commands import COMMAND, run_cli
from tests.support.dicom_files import COLOUR, NAME, RAMP, logged_text, make_dicom, save_dicom
from tests.support.tiny_models import build_tiny

highdicom = pytest.importorskip("highdicom")
RADIOGRAPH = "1.2.840.10008.5.1.4.1.1.1"  # Computed Radiography Image Storage
LABELS = ("background", "lungs", "Łuk żebra", "heart")
MASK = np.zeros(RAMP.shape, np.uint8)
MASK[5:20, 3:30], MASK[25:40, 50:] = 1, 2  # no heart


def radiograph(pixels=RAMP, **elements):
    """Return a chest radiograph with the attributes that the standard requires."""
    study, series = generate_uid(), generate_uid()
    named = {"SOPClassUID": RADIOGRAPH, "StudyInstanceUID": study, "SeriesInstanceUID": series, "Modality": "CR"}
    return make_dicom(
        pixels, BitsStored=12, **(named | {"PatientSex": "F", "PatientOrientation": ["L", "F"]} | elements)
    )


def slice_(**elements):
    """Return a CT slice with its position in the patient."""
    position = {"FrameOfReferenceUID": generate_uid(), "ImagePositionPatient": [-10, -20, 30.5], "SliceThickness": 2,
             "ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "PixelSpacing": [0.7, 0.7]}  # fmt: skip
    return radiograph(**({"SOPClassUID": CTImageStorage, "Modality": "CT", "InstanceNumber": 7} | position | elements))


def save(made: Dataset, path):
    made.save_as(path, enforce_file_format=True)
    return path


@pytest.mark.parametrize("kind", [radiograph, slice_])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_segmentation_matches_mask_of_stored_pixels(kind, photometric, tmp_path):
    source = read_header(save_dicom(kind(PhotometricInterpretation=photometric), tmp_path / "scan.dcm"))
    path = save(make_segmentation(source, MASK, LABELS, "owner/unet", "abc123"), tmp_path / "scan.seg.dcm")
    saved = highdicom.seg.segread(path)
    frames = saved.get_pixels_by_source_instance([source.SOPInstanceUID], ignore_spatial_locations=True)[0]
    assert np.array_equal(frames, np.stack([i == MASK for i in (1, 2, 3)], axis=-1))
    assert saved.NumberOfFrames == 3  # the heart, which is absent, has an empty frame
    assert (saved.StudyInstanceUID, saved.PatientName) == (source.StudyInstanceUID, NAME)
    assert saved.SeriesInstanceUID != source.SeriesInstanceUID
    assert saved.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    referenced = saved.SourceImageSequence[0]
    assert referenced.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert referenced.ReferencedSOPClassUID == source.SOPClassUID
    assert [segment.SegmentLabel for segment in saved.SegmentSequence] == list(LABELS[1:])
    lungs = saved.SegmentSequence[0]
    assert lungs.SegmentedPropertyTypeCodeSequence[0].CodeValue == "39607008"
    algorithm = lungs.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("owner/unet", "abc123")
    assert "hf_medtl" in algorithm.AlgorithmSource
    assert "not for diagnosis" in saved.SeriesDescription
    if kind is slice_:
        plane = saved.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
        assert list(plane.ImagePositionPatient) == [-10, -20, 30.5]
        assert saved.FrameOfReferenceUID == source.FrameOfReferenceUID
        assert saved.InstanceNumber == 7
    else:
        assert list(saved.PatientOrientation) == ["L", "F"]


def test_slices_of_one_series_become_one_mask_series():
    first = slice_()
    second = slice_(SeriesInstanceUID=first.SeriesInstanceUID)
    one, other, newer = (
        make_segmentation(source, MASK, LABELS, "unet", revision)
        for source, revision in ((first, "a"), (second, "a"), (second, "b"))
    )
    assert one.SeriesInstanceUID == other.SeriesInstanceUID != newer.SeriesInstanceUID
    assert one.SOPInstanceUID != other.SOPInstanceUID


def test_labels_become_dicom_codes():
    organ, finding = codes.SCT.AnatomicalStructure, codes.SCT.MorphologicallyAbnormalStructure
    assert segment_concept("lungs") == segment_concept("Lung") == (organ, codes.SCT.Lung)
    assert segment_concept("left_lung")[1].value == "44029006"
    assert segment_concept("tumor") == (finding, codes.SCT.Neoplasm)
    category, code = segment_concept("Hilus \\ links")
    assert category == codes.SCT.SpatialAndRelationalConcept
    assert (code.value, code.scheme_designator, code.meaning) == ("Hilus / links", "99HFMEDTL", "Hilus / links")
    long = make_segmentation(radiograph(), MASK, ("none", "a" * 90, "b", "c"), "m" * 99, None)
    assert long.SegmentSequence[0].SegmentedPropertyTypeCodeSequence[0].LongCodeValue == "a" * 64
    assert long.ManufacturerModelName == "m" * 64


def test_overlay_belongs_to_study(tmp_path):
    source = radiograph(
        PatientName="Müßtermann^Jürgen", SpecificCharacterSet="ISO_IR 100", BurnedInAnnotation="NO",
        LossyImageCompression="01", LossyImageCompressionRatio="9.5", LossyImageCompressionMethod="ISO_10918_1",
    )  # fmt: skip
    source = read_header(save_dicom(source, tmp_path / "scan.dcm"))
    made = make_overlay(source, Image.fromarray(COLOUR), "pneumonia 0.930 by gradcam", "owner/vit", "abc123")
    saved = dcmread(save(made, tmp_path / "over.dcm"))
    assert np.array_equal(saved.pixel_array, COLOUR)
    assert saved.PhotometricInterpretation == "RGB"
    assert saved.SOPClassUID.name == "Secondary Capture Image Storage"
    assert str(saved.PatientName) == "Müßtermann^Jürgen"
    assert (saved.StudyInstanceUID, saved.PatientID) == (source.StudyInstanceUID, source.PatientID)
    assert saved.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert "pneumonia 0.930 by gradcam" in saved.DerivationDescription
    assert all("not for diagnosis" in text for text in (saved.DerivationDescription, saved.SeriesDescription))
    assert (saved.BurnedInAnnotation, saved.LossyImageCompression) == ("NO", "01")
    assert list(saved.PatientOrientation) == ["L", "F"]


def test_missing_header_values_stay_empty():
    source = radiograph()
    for key in ("PatientName", "PatientID", "PatientSex", "PatientOrientation"):
        delattr(source, key)
    outputs = make_segmentation(source, MASK, LABELS, "m"), make_overlay(source, Image.fromarray(COLOUR), "", "m")
    for made in outputs:
        empty = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "AccessionNumber")
        assert not any(made[key].value for key in (*empty, "PatientOrientation"))
        assert "BurnedInAnnotation" not in made
        assert "PatientName" not in source


def test_overlay_references_frame_that_was_read():
    source = radiograph(np.stack([RAMP] * 5), frames=5)
    made = make_overlay(source, Image.fromarray(COLOUR), "", "m")
    assert made.SourceImageSequence[0].ReferencedFrameNumber == 3
    with pytest.raises(MedtlError, match="has 5 frames"):
        make_segmentation(source, MASK, LABELS, "m")


BAD = {
    "lacks StudyInstanceUID": lambda: radiograph(StudyInstanceUID=""),
    "lacks SOPInstanceUID, SeriesInstanceUID": lambda: radiograph(SOPInstanceUID=NAME, SeriesInstanceUID=NAME),
    "lacks required header attributes": lambda: radiograph(PatientSex="MUSTERMANN"),
    r"ValueError.* no FrameOfReferenceUID": lambda: radiograph(SOPClassUID=CTImageStorage),
    "has 64 × 48 pixels, not 48 × 64": lambda: radiograph(RAMP.T),
}


@pytest.mark.parametrize("reason", list(BAD))
@pytest.mark.parametrize("overlay", [False, True])
def test_errors_contain_no_header_data(reason, overlay, tmp_path, caplog, capfd, recwarn):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = save_dicom(BAD[reason](), tmp_path / "bad.dcm", enforce_file_format=False)
    if overlay and "FrameOfReference" in reason:
        pytest.skip("a colour image has no position in the patient")
    caplog.clear()
    recwarn.clear()
    with caplog.at_level(logging.DEBUG), pytest.raises(MedtlError, match=reason) as caught:
        if overlay:
            make_overlay(read_header(path), Image.fromarray(MASK), "", "m")
        else:
            make_segmentation(read_header(path), MASK, LABELS, "m")
    assert caught.value.__cause__ is caught.value.__context__ is None  # nothing for a traceback to print
    assert "mustermann" not in (str(caught.value) + logged_text(caplog, capfd, recwarn)).lower()


def test_highdicom_warning_about_name_is_not_logged(caplog, recwarn):
    source = radiograph(PatientName="Mustermann")  # without ^
    caplog.clear()
    with caplog.at_level(logging.DEBUG):
        made = make_segmentation(source, MASK, LABELS, "m")
        make_overlay(source, Image.fromarray(COLOUR), "", "m")
    assert made.PatientName == "Mustermann"
    assert "Mustermann" not in caplog.text + " ".join(str(warning.message) for warning in recwarn)


def test_unknown_class_or_missing_highdicom_raises(monkeypatch):
    with pytest.raises(MedtlError, match=r"classes 0 \(background\) to 1"):
        make_segmentation(radiograph(), MASK, LABELS[:2], "m")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(MedtlError, match=r'pip install "hf_medtl\[dicom-out\]"'):
        make_segmentation(radiograph(), MASK, LABELS, "m")


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_headers_are_read_from_dicom_files_only(syntax, tmp_path):
    source = radiograph(syntax=syntax)
    header = read_header(save_dicom(source, tmp_path / "a.dcm"))
    assert header.SOPInstanceUID == source.SOPInstanceUID
    assert "PixelData" not in header
    Image.fromarray(COLOUR).save(tmp_path / "photo.dcm", "PNG")
    assert read_header(tmp_path / "photo.dcm") is None
    assert save_dicom_outputs(str(tmp_path / "photo.dcm"), {tmp_path / "no.dcm": lambda header: header}) == ""
    assert not (tmp_path / "no.dcm").exists()


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("Mustermann") / "unet"
    model, processor = build_tiny(labels=("background", "lungs"))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_command_writes_segmentations_beside_masks(process_pool, segmenter, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name, photometric in (("one", "MONOCHROME1"), ("two", "MONOCHROME2")):
        save_dicom(radiograph(PhotometricInterpretation=photometric), images / f"{name}.dcm")
    save_dicom(radiograph(StudyInstanceUID="", PatientComments=NAME), images / "nostudy.dcm")
    Image.fromarray(COLOUR).save(images / "photo.png")
    paths = (segmenter, images, "--out", tmp_path / "t.csv", "--masks", tmp_path / "masks", "--dicom")
    done = process_pool.run_script(COMMAND, "predict", *paths)
    assert done.returncode == 1
    assert "4 images, 1 of them with an error" in done.stdout
    table = pd.read_csv(tmp_path / "t.csv").set_index(pd.Index(["nostudy", "one", "photo", "two"]))
    assert "lacks StudyInstanceUID" in table.at["nostudy", "error"]
    assert table["error"].notna().sum() == 1
    assert table["area_lungs"].notna().all()
    names = {path.name for path in (tmp_path / "masks").iterdir()}
    assert {name for name in names if "seg" in name} == {"one.dcm.seg.dcm", "two.dcm.seg.dcm"}
    assert {"nostudy.dcm.png", "photo.png.png"} < names
    for name in ("one", "two"):
        mask = np.asarray(Image.open(tmp_path / "masks" / f"{name}.dcm.png"))
        segments = dcmread(tmp_path / "masks" / f"{name}.dcm.seg.dcm")
        assert 0 < mask.mean() < 1
        assert np.array_equal(segments.pixel_array, mask == 1)
        assert segments.PatientName == NAME
        assert segments.ManufacturerModelName.endswith("/unet")
    assert NAME not in done.stdout + done.stderr + (tmp_path / "t.csv").read_text()
    assert all(NAME.encode() not in path.read_bytes() for path in (tmp_path / "masks").glob("*.png"))


def test_command_writes_overlays_beside_heatmaps_if_asked(tiny_checkpoint, tmp_path):
    for name in ("one", "two"):  # files of the same name, of two patients
        (tmp_path / name).mkdir()
        save_dicom(radiograph(PatientID=name), tmp_path / name / "scan.dcm")
    command = "predict", tiny_checkpoint("vit"), tmp_path / "one", tmp_path / "two", "--explain", "gradcam", "--out"
    printed = run_cli(*command, tmp_path / "t.csv", "--maps", tmp_path / "maps", "--dicom")
    assert dcmread(tmp_path / "maps" / "two" / "scan.dcm.sc.dcm").PatientID == "two"
    saved = dcmread(tmp_path / "maps" / "one" / "scan.dcm.sc.dcm")
    assert saved.PatientID == "one"
    assert np.array_equal(saved.pixel_array, np.asarray(Image.open(tmp_path / "maps" / "one" / "scan.dcm.png")))
    label = pd.read_csv(tmp_path / "t.csv")["label"][0]
    assert f"{label} 0." in saved.DerivationDescription
    assert "by gradcam" in saved.DerivationDescription
    assert saved.PatientName == NAME
    assert "Mustermann" not in printed + (tmp_path / "t.csv").read_text()
    run_cli(*command, tmp_path / "bare.csv", "--maps", tmp_path / "bare")
    files = [path for path in (tmp_path / "bare").rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["scan.dcm.png"] * 2
    assert not [path for path in files if b"Mustermann" in path.read_bytes()]


@pytest.mark.real
def test_segmentations_of_real_radiographs_round_trip(shared, tmp_path):
    """Masks are on the grid of the stored pixels, also with JPEG 2000 and MONOCHROME1."""
    for name in ("RG1_J2KI.dcm", "CT_small.dcm", "MR_small.dcm"):
        source = read_header(shared / "data" / "dicom-samples" / name)
        mask = (np.random.default_rng(0).random((source.Rows, source.Columns)) > 0.5).astype(np.uint8)
        saved = highdicom.seg.segread(save(make_segmentation(source, mask, LABELS[:2], "m", "1"), tmp_path / name))
        assert np.array_equal(saved.pixel_array.reshape(mask.shape), mask)
        assert saved.StudyInstanceUID == source.StudyInstanceUID
