"""DICOM and NIfTI readers: images as displayed by a viewer, and no data from the header in logs or errors."""

import logging
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from hf_medtl import read_image
from hf_medtl.data.dicom_checks import compressed_size
from hf_medtl.data.images import encode_image
from hf_medtl.errors import UnreadableImage
from tests.support.dicom_files import COLOUR, NAME, RAMP, logged_text, make_dicom, make_encapsulated_dicom, save_dicom


def grey(path: Path, **arguments) -> np.ndarray:
    """Return the grey values of an image; assert that it is grey and has no metadata."""
    image = read_image(path, **arguments)
    assert image.mode == "RGB"
    assert not image.info
    pixels = np.asarray(image).astype(int)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def test_monochrome1_is_inverted(tmp_path):
    two = grey(save_dicom(make_dicom(RAMP, BitsStored=12), tmp_path / "2.dcm"))
    one = grey(save_dicom(make_dicom(RAMP, BitsStored=12, PhotometricInterpretation="MONOCHROME1"), tmp_path / "1.dcm"))
    assert two[0, 0] == 0
    assert two[-1, -1] == 255
    assert np.array_equal(one, 255 - two)


@pytest.mark.parametrize("function", [None, "LINEAR_EXACT", "SIGMOID"])
def test_rescale_and_first_window_of_file_are_applied(function, tmp_path):
    hounsfield = np.linspace(-1024, 1000, 48 * 64).round().reshape(48, 64)
    stored = (hounsfield + 1024).astype(np.uint16)
    elements = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": [40, 300], "WindowWidth": [80, 1500]}
    if function:
        elements["VOILUTFunction"] = function
    actual = grey(save_dicom(make_dicom(stored, **elements), tmp_path / "ct.dcm"))
    expected = {  # PS3.3 C.11.2.1
        None: (hounsfield - 39.5) / 79 + 0.5,
        "LINEAR_EXACT": (hounsfield - 40) / 80 + 0.5,
        "SIGMOID": 1 / (1 + np.exp(-4 * (hounsfield - 40) / 80)),
    }[function]
    assert np.abs(actual - 255 * expected.clip(0, 1)).max() <= 0.51


def test_explicit_window_in_rescaled_units_overrides_file(tmp_path):
    stored = np.arange(0, 200, dtype=np.int16).reshape(10, 20) - 100
    path = save_dicom(
        make_dicom(stored, RescaleSlope=2, RescaleIntercept=-50, WindowCenter=1, WindowWidth=9), tmp_path / "a.dcm"
    )
    expected = 255 * ((2.0 * stored - 50 + 150) / 200).clip(0, 1)
    assert np.abs(grey(path, window=(-150, 50)) - expected).max() <= 0.51
    assert np.array_equal(grey(path, window=(-150, 50)), np.asarray(read_image(path.read_bytes(), (-150, 50)))[..., 0])
    negative = save_dicom(make_dicom(stored, RescaleSlope=-2, RescaleIntercept=-50), tmp_path / "b.dcm")
    expected = 255 * ((-2.0 * stored - 50 + 150) / 200).clip(0, 1)
    assert np.abs(grey(negative, window=(-150, 50)) - expected).max() <= 0.51
    assert grey(negative)[0, 0] == 255  # percentiles, too, follow the sign of the slope


def test_signed_and_padded_pixels_without_window(tmp_path):
    signed = np.linspace(-900, 900, 48 * 64).reshape(48, 64).astype(np.int16)
    signed[:12] = -2000
    actual = grey(save_dicom(make_dicom(signed, PixelPaddingValue=-2000), tmp_path / "padded.dcm"))
    assert (actual[:12] == 0).all()
    low, high = np.percentile(signed[12:], [0.5, 99.5])
    assert np.abs(actual - 255 * ((signed - low) / (high - low)).clip(0, 1)).max() <= 0.51


def test_8_bits_without_window_are_unchanged(tmp_path):
    pixels = COLOUR[..., 0] // 2 + 30
    assert np.array_equal(grey(save_dicom(make_dicom(pixels), tmp_path / "8.dcm")), pixels)


@pytest.mark.parametrize("invalid", [{"WindowCenter": 40, "WindowWidth": 0}, {"WindowCenter": 40}, {"WindowWidth": 9}])
def test_invalid_window_is_ignored(invalid, tmp_path):
    plain = grey(save_dicom(make_dicom(RAMP), tmp_path / "plain.dcm"))
    assert np.array_equal(grey(save_dicom(make_dicom(RAMP, **invalid), tmp_path / "invalid.dcm")), plain)


def test_lookup_tables_are_applied(tmp_path):
    def table(entries: list[int], bits: int) -> Dataset:
        item = Dataset()
        item.LUTDescriptor = [len(entries), 0, bits]
        item.LUTData = entries
        item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
        return item

    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8)
    voi = make_dicom(pixels, VOILUTSequence=[table([k * k for k in range(64)], 12)])
    assert np.abs(grey(save_dicom(voi, tmp_path / "voi.dcm")) - 255 * pixels.astype(float) ** 2 / 4095).max() <= 0.51
    modality = make_dicom(pixels, ModalityLUTSequence=[table([3 * k for k in range(64)], 16)])
    assert np.abs(grey(save_dicom(modality, tmp_path / "m.dcm"), window=(0, 189)) - 255 * pixels / 63).max() <= 0.51


def test_reads_middle_or_selected_frame(tmp_path, caplog):
    frames = np.stack([np.full((8, 8), 50 * k, np.uint8) for k in range(5)])
    path = save_dicom(make_dicom(frames, frames=5), tmp_path / "series.dcm")
    with caplog.at_level(logging.INFO):
        assert grey(path).max() == 100
    assert "middle" in caplog.text
    assert NAME not in caplog.text
    assert [grey(path, frame=k).max() for k in range(5)] == [0, 50, 100, 150, 200]
    for frame in (5, -1):
        with pytest.raises(UnreadableImage, match=r"series\.dcm: there is no frame"):
            read_image(path, frame=frame)


def test_enhanced_frames_have_own_rescale_and_window(tmp_path):
    def groups(centre: float) -> Dataset:
        item, voi, value = Dataset(), Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth, voi.VOILUTFunction = centre, 100, "LINEAR_EXACT"
        value.RescaleSlope, value.RescaleIntercept = 1, -1000
        item.FrameVOILUTSequence, item.PixelValueTransformationSequence = [voi], [value]
        return item

    frames = np.full((2, 8, 8), 1000, np.uint16)
    data = make_dicom(frames, frames=2, PerFrameFunctionalGroupsSequence=[groups(0), groups(25)])
    path = save_dicom(data, tmp_path / "enhanced.dcm")
    assert [grey(path, frame=k)[0, 0] for k in (0, 1)] == [128, 64]


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_is_unchanged(planar, tmp_path):
    data = make_dicom(COLOUR, PlanarConfiguration=planar)
    if planar:
        data.PixelData = COLOUR.transpose(2, 0, 1).tobytes()
    assert np.array_equal(read_image(save_dicom(data, tmp_path / "rgb.dcm")), COLOUR)


def test_reads_ybr_and_16_bit_rgb(tmp_path):
    ybr = np.asarray(Image.fromarray(COLOUR).convert("YCbCr"))
    path = save_dicom(make_dicom(ybr, PhotometricInterpretation="YBR_FULL"), tmp_path / "ybr.dcm")
    assert np.abs(np.asarray(read_image(path)).astype(int) - COLOUR).max() <= 3
    assert np.array_equal(
        read_image(save_dicom(make_dicom(COLOUR.astype(np.uint16) * 257), tmp_path / "deep.dcm")), COLOUR
    )


def test_palette_becomes_rgb(tmp_path):
    table = np.random.default_rng(1).integers(0, 256, (3, 256), dtype=np.uint8)
    elements: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, channel in zip(("Red", "Green", "Blue"), table, strict=True):
        elements[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        elements[f"{name}PaletteColorLookupTableData"] = channel.tobytes()
    data = make_dicom(COLOUR[..., 0], **elements)
    assert np.array_equal(
        read_image(save_dicom(data, tmp_path / "palette.dcm")), table[:, COLOUR[..., 0]].transpose(1, 2, 0)
    )


def test_reads_compressed_pixels(tmp_path):
    plain = grey(save_dicom(make_dicom(RAMP, BitsStored=12), tmp_path / "plain.dcm"))
    rle = make_dicom(RAMP, BitsStored=12)
    rle.compress(RLELossless)
    assert np.array_equal(grey(save_dicom(rle, tmp_path / "rle.dcm")), plain)

    jpeg = encode_image(Image.fromarray(COLOUR[..., 0]), "JPEG", quality=100)
    data = make_encapsulated_dicom(jpeg, COLOUR[..., 0], JPEGBaseline8Bit)
    assert np.abs(grey(save_dicom(data, tmp_path / "jpeg.dcm")) - COLOUR[..., 0]).max() <= 3
    jpeg2000 = encode_image(Image.fromarray(COLOUR), "JPEG2000", no_jp2=True, mct=1)
    data = make_encapsulated_dicom(jpeg2000, COLOUR, JPEG2000Lossless, PhotometricInterpretation="YBR_RCT")
    assert np.array_equal(read_image(save_dicom(data, tmp_path / "jpeg2000.dcm")), COLOUR)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_reads_other_transfer_syntaxes(syntax, tmp_path):
    data = make_dicom(RAMP.astype(">u2") if syntax == ExplicitVRBigEndian else RAMP, syntax=syntax)
    plain = grey(save_dicom(make_dicom(RAMP), tmp_path / "plain.dcm"))
    assert np.array_equal(grey(save_dicom(data, tmp_path / "other.dcm")), plain)


@pytest.mark.parametrize("name", ["bare.dcm", "bare"])
def test_reads_file_without_preamble(name, tmp_path):
    plain = grey(save_dicom(make_dicom(RAMP), tmp_path / "plain.dcm"))
    for implicit in (True, False):
        data = make_dicom(RAMP)
        del data.preamble, data.file_meta
        path = save_dicom(data, tmp_path / name, enforce_file_format=False, implicit_vr=implicit, little_endian=True)
        assert path.read_bytes()[:2] == b"\x08\0"
        assert np.array_equal(grey(path), plain)


def test_content_not_name_decides_format(tmp_path):
    path = save_dicom(make_dicom(RAMP), tmp_path / "ct.png")
    assert grey(path).max() == 255
    Image.fromarray(COLOUR).save(tmp_path / "photo.dcm", format="PNG")
    assert np.array_equal(read_image(tmp_path / "photo.dcm"), COLOUR)


LARGE = Image.new("L", (5000, 5000))


def text_for_a_number() -> Dataset:
    data = make_dicom(RAMP, RescaleSlope=1)
    data["RescaleSlope"]._value = NAME  # pydicom's exception quotes it
    return data


GREY = COLOUR[..., 0]
BROKEN = {
    "no pixels": lambda: make_dicom(None),
    "no rows": lambda: make_dicom(RAMP, Rows=0),
    "too large": lambda: make_dicom(RAMP, Rows=65535, Columns=65535),
    "larger than the file": lambda: make_dicom(RAMP, Rows=5000, Columns=5000),
    "frames without end": lambda: make_dicom(RAMP, NumberOfFrames=2**31 - 1),
    "channels": lambda: make_dicom(RAMP, SamplesPerPixel=60000, PlanarConfiguration=0),
    "bits": lambda: make_dicom(RAMP, BitsAllocated=13),
    "colour space": lambda: make_dicom(RAMP, PhotometricInterpretation=NAME),
    "text for a number": text_for_a_number,
    "another size in the JPEG": lambda: make_encapsulated_dicom(encode_image(LARGE, "JPEG"), GREY, JPEGBaseline8Bit),
    "another size in the JPEG 2000": lambda: make_encapsulated_dicom(
        encode_image(LARGE, "JPEG2000", no_jp2=True), GREY, JPEG2000Lossless
    ),
    "run lengths without end": lambda: make_encapsulated_dicom(
        b"\1\0\0\0\x40" + bytes(59) + b"\x81\0" * 10**6, GREY, RLELossless
    ),
    "no code": lambda: make_encapsulated_dicom(b"\0\0", GREY, JPEGBaseline8Bit),
}


@pytest.mark.parametrize("kind", list(BROKEN))
def test_unreadable_files_raise_error_without_header_data(kind, tmp_path, caplog, capfd, recwarn):
    path = tmp_path / "broken.dcm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_dicom(BROKEN[kind](), path)
    caplog.clear()
    recwarn.clear()
    with caplog.at_level(logging.DEBUG), pytest.raises(UnreadableImage, match=r"broken\.dcm") as caught:
        read_image(path)
    assert caught.value.__cause__ is caught.value.__context__ is None  # nothing for a traceback to print
    assert "Mustermann" not in str(caught.value) + logged_text(caplog, capfd, recwarn)


def test_header_data_does_not_leave_with_image(tmp_path, caplog, capfd, recwarn):
    data = make_dicom(RAMP)
    data.PerFrameFunctionalGroupsSequence = [Dataset()]
    data.PerFrameFunctionalGroupsSequence[0].PatientName = NAME
    path = save_dicom(data, tmp_path / "named.dcm")
    with caplog.at_level(logging.DEBUG):
        images = [read_image(path), *ThreadPoolExecutor(4).map(read_image, [path] * 40)]
    assert not recwarn.list
    for image in images:
        assert not image.info
        assert not image.getexif()
        assert b"Mustermann" not in encode_image(image) + repr(vars(image)).encode()
    assert "Mustermann" not in logged_text(caplog, capfd, recwarn)
    assert logging.getLogger("pydicom").level == logging.NOTSET or logging.getLogger("pydicom").level < logging.CRITICAL


@pytest.mark.slow
def test_rejects_deflated_bomb(tmp_path):
    data = make_dicom(RAMP, syntax=DeflatedExplicitVRLittleEndian)
    data.add_new(0x00091001, "OB", bytes(300 << 20))
    with pytest.raises(UnreadableImage, match="MiB"):
        read_image(save_dicom(data, tmp_path / "bomb.dcm"))


def test_compressed_size_is_read_from_codestream():
    for kind, options in (("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG2000", {})):
        assert compressed_size(encode_image(Image.new("RGB", (70, 50)), kind, **options)) == (50, 70, 3)
    assert compressed_size(b"") is compressed_size(b"\xff\xd8\xff") is compressed_size(b"text" * 99) is None


def test_ordinary_images_are_read_without_pydicom(tmp_path):
    from tests.support.commands import run_command

    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    code = """import sys; from hf_medtl import read_image; read_image(sys.argv[1])
assert not {"pydicom", "nibabel", "scipy"} & set(sys.modules)"""
    done = run_command(sys.executable, "-c", code, tmp_path / "a.png")
    assert done.returncode == 0, done.stderr


VOLUME = np.random.default_rng(2).integers(-1000, 1000, (9, 12, 7)).astype(np.int16)  # right, anterior, superior


def nifti(volume: np.ndarray, path: Path, affine: np.ndarray | None = None, kind: str = "Nifti1Image") -> Path:
    nibabel = pytest.importorskip("nibabel")
    image = getattr(nibabel, kind)(volume, np.diag([1, 1, 2, 1]) if affine is None else affine)
    image.header["descrip"] = NAME
    nibabel.save(image, path)
    return path


def upright(volume: np.ndarray, slice_: int) -> np.ndarray:
    """Return the grey values of a slice: patient's right on the left, anterior at the top, windowed by percentiles."""
    plane = volume[::-1, ::-1, slice_].T.astype(float)
    low, high = np.percentile(plane, [0.5, 99.5])
    return 255 * ((plane - low) / (high - low)).clip(0, 1)


@pytest.mark.parametrize("kind", ["Nifti1Image", "Nifti2Image"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_reads_nifti_slices(kind, suffix, tmp_path):
    path = nifti(VOLUME, tmp_path / f"brain{suffix}", kind=kind)
    assert np.abs(grey(path) - upright(VOLUME, 3)).max() <= 0.51
    assert np.abs(grey(path, frame=0) - upright(VOLUME, 0)).max() <= 0.51
    wide = np.asarray(read_image(path.read_bytes(), window=(-2000, 2000)))
    assert np.array_equal(grey(path, window=(-2000, 2000)), wide[..., 0])
    with pytest.raises(UnreadableImage, match="no slice 7"):
        read_image(path, frame=7)


@pytest.mark.parametrize("code", ["LPS", "SRA", "AIL", "PSR", "IRP", "RAS"])
@pytest.mark.parametrize("volumes", [0, 2])
def test_reads_nifti_in_any_orientation(code, volumes, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.stack([VOLUME, VOLUME + 1], -1) if volumes else VOLUME, np.eye(4))
    turn = nibabel.orientations.axcodes2ornt(code)
    turned = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(np.eye(4)), turn))
    assert "".join(nibabel.aff2axcodes(turned.affine)) == code
    nibabel.save(turned, tmp_path / "turned.nii")
    assert np.abs(grey(tmp_path / "turned.nii", frame=5) - upright(VOLUME, 5)).max() <= 0.51


def test_damaged_nifti_raises(tmp_path, monkeypatch):
    path = nifti(VOLUME, tmp_path / "a.nii")
    whole = path.read_bytes()
    huge = whole[:42] + np.array([30000, 30000, 30000], "<i2").tobytes() + whole[48:]
    for content in (whole[:200], whole[:360], whole[:-500], huge):
        path.write_bytes(content)
        with pytest.raises(UnreadableImage, match=r"a\.nii") as caught:
            read_image(path)
        assert "Mustermann" not in str(caught.value)
    path.write_bytes(whole)
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(UnreadableImage, match=r'pip install "hf_medtl\[nifti\]"$'):
        read_image(path)


@pytest.mark.real
def test_reads_real_files(shared):
    folder = shared / "data" / "dicom-samples"
    files = sorted(folder.glob("*.dcm"))
    assert len(files) == 14
    images = {path.name: read_image(path) for path in files}
    for image in images.values():
        assert image.mode == "RGB"
        assert not image.info
        assert np.ptp(np.asarray(image)) > 40
    air = np.asarray(images["693_UNCI.dcm"])[:20]
    assert (air == 0).all()
    lossy, plain = (np.asarray(images[f"RG1_{kind}.dcm"]).astype(int) for kind in ("J2KI", "UNCI"))
    assert np.abs(lossy - plain).mean() < 2
    names = ("1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm", "Fake_MONOHR1.dcm")
    two, one = (np.asarray(images[name]) for name in names)
    assert np.array_equal(one, 255 - two)
