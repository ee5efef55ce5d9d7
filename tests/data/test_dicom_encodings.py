"""DICOM in either byte order and with tables of any width: the same image, and decoders that are missing are named."""

import io
import struct
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

from hf_medtl import read_image
from hf_medtl.data.dicom_checks import DECODERS
from hf_medtl.errors import UnreadableImage
from tests.support.dicom_files import COLOUR, NAME, RAMP, encode_dicom, make_dicom, make_encapsulated_dicom

LITTLE, BIG = ExplicitVRLittleEndian, ExplicitVRBigEndian
GREY = COLOUR[..., 0]


def swapped(values: np.ndarray) -> bytes:
    """Return 8-bit values as 16-bit big-endian words."""
    return np.frombuffer(values.tobytes(), "<u2").astype(">u2").tobytes()


def dicom(pixels: np.ndarray, syntax: str = LITTLE, representation: str = "", **elements) -> bytes:
    stored = pixels.astype(pixels.dtype.newbyteorder(">")) if syntax == BIG else pixels
    data = make_dicom(stored, syntax=syntax, **elements)
    if representation:
        data["PixelData"].VR = representation
        if representation == "OW" and pixels.dtype.itemsize == 1 and syntax == BIG:
            data.PixelData = swapped(pixels)
    return encode_dicom(data)


@pytest.mark.parametrize("representation", ["OB", "OW"])
@pytest.mark.parametrize("pixels", [GREY, COLOUR, GREY[:, :-1][:-1]], ids=["grey", "colour", "odd"])
def test_8_bit_pixels_in_both_byte_orders(pixels, representation):
    if representation == "OW" and pixels.size % 2:
        pytest.skip("a word has two pixels")
    expected = pixels if pixels.ndim == 3 else np.dstack([pixels] * 3)
    for syntax in (LITTLE, BIG):
        assert np.array_equal(read_image(dicom(pixels, syntax, representation)), expected)


@pytest.mark.parametrize("kind", ["uint16", "int16", "uint32", "int32"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_deep_pixels_in_both_byte_orders(kind, photometric):
    pixels = (RAMP.astype(int) - (2000 if kind[0] == "i" else 0)).astype(kind)
    little, big = (read_image(dicom(pixels, syntax, PhotometricInterpretation=photometric)) for syntax in (LITTLE, BIG))
    assert np.array_equal(little, big)
    first = np.asarray(little)[0, 0, 0]
    assert first == (255 if photometric == "MONOCHROME1" else 0)


def test_bits_outside_the_stored_ones_are_ignored():
    """Old files keep overlays there."""
    pixels = RAMP | (np.arange(64, dtype=np.uint16) % 16 << 12)
    for syntax in (LITTLE, BIG):
        plain, marked = (read_image(dicom(p, syntax, BitsStored=12)) for p in (RAMP, pixels))
        assert np.array_equal(plain, marked)


@pytest.mark.parametrize("kind", ["uint16", "int16"])
def test_stored_bits_may_be_the_upper_ones(kind):
    pixels = (RAMP.astype(int) - (2048 if kind == "int16" else 0)).astype(kind)
    for syntax in (LITTLE, BIG):
        data = make_dicom(
            (pixels << 4).astype(np.dtype(kind).newbyteorder("<>"[syntax == BIG])), syntax=syntax, BitsStored=12
        )
        data.HighBit = 15
        assert np.array_equal(read_image(encode_dicom(data)), read_image(dicom(pixels, syntax, BitsStored=12)))


@pytest.mark.parametrize("planar", [0, 1])
def test_ybr_in_planes_and_with_halved_chroma(planar):
    smooth = np.asarray(Image.fromarray(COLOUR).resize((8, 8)).resize((64, 48)))
    ybr = np.asarray(Image.fromarray(smooth).convert("YCbCr"))
    stored = np.ascontiguousarray(np.moveaxis(ybr, -1, 0)) if planar else ybr
    data = make_dicom(ybr, PhotometricInterpretation="YBR_FULL", PlanarConfiguration=planar)
    data.PixelData = stored.tobytes()
    assert np.abs(np.asarray(read_image(encode_dicom(data))).astype(int) - smooth).max() <= 3
    if not planar:
        pairs = ybr.reshape(48, 32, 2, 3)
        half = np.concatenate([pairs[..., 0], pairs[:, :, 0, 1:]], axis=-1)  # Y Y Cb Cr
        data = make_dicom(ybr, PhotometricInterpretation="YBR_FULL_422")
        data.PixelData = half.tobytes()
        flat = Image.merge("YCbCr", [Image.fromarray(c) for c in np.moveaxis(np.dstack(
            [ybr[..., :1], np.repeat(ybr[:, ::2, 1:], 2, axis=1)]), -1, 0)]).convert("RGB")  # fmt: skip
        assert np.abs(np.asarray(read_image(encode_dicom(data))).astype(int) - np.asarray(flat)).max() <= 3


def palette(table: np.ndarray, bits: int, syntax: str, first: int = 0, packed: bool = False) -> dict[str, object]:
    """Return the elements of a palette (3, entries): 16-bit words, or two 8-bit entries in each if `packed`."""
    elements: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, channel in zip(("Red", "Green", "Blue"), table, strict=True):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [table.shape[1] % 65536, first, bits]
        order = ">u2" if syntax == BIG else "<u2"
        narrow = np.frombuffer(channel.astype(np.uint8).tobytes(), "<u2") if packed else channel
        elements[f"{colour}PaletteColorLookupTableData"] = narrow.astype(order).tobytes()
    return elements


RANDOM = np.random.default_rng(1).integers(0, 256, (3, 256))


@pytest.mark.parametrize("syntax", [LITTLE, BIG])
@pytest.mark.parametrize("kind", ["16 bits", "8 bits", "8 bits in words"])
def test_palette_entries_of_any_width(kind, syntax):
    table, bits = (RANDOM * 257, 16) if kind == "16 bits" else (RANDOM, 8)
    elements = palette(table, bits, syntax, packed=kind == "8 bits")
    image = read_image(dicom(GREY, syntax, "OW", **elements))
    assert np.array_equal(image, RANDOM[:, GREY].transpose(1, 2, 0))


@pytest.mark.parametrize("syntax", [LITTLE, BIG])
def test_pixels_beyond_an_8_bit_palette_get_its_ends(syntax):
    pixels = np.array([[0, 99, 100, 300, 355, 356, 400, 4000]], np.uint16).repeat(4, axis=0)
    image = read_image(dicom(pixels, syntax, **palette(RANDOM, 8, syntax, first=100, packed=True)))
    index = np.clip(pixels.astype(int) - 100, 0, 255)
    assert np.array_equal(image, RANDOM[:, index].transpose(1, 2, 0))
    large = np.random.default_rng(2).integers(0, 256, (3, 1000))
    image = read_image(dicom(pixels, syntax, **palette(large, 8, syntax, packed=True)))
    assert np.array_equal(image, large[:, np.clip(pixels, 0, 999)].transpose(1, 2, 0))


@pytest.mark.parametrize("syntax", [LITTLE, BIG])
def test_segmented_palette(syntax):
    order = ">" if syntax == BIG else "<"
    segments = struct.pack(f"{order}7H", 0, 2, 0, 257, 1, 254, 65535)  # two entries, and a line to the last
    elements: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        elements[f"Segmented{colour}PaletteColorLookupTableData"] = segments
    image = np.asarray(read_image(dicom(GREY, syntax, "OB", **elements)))
    assert np.abs(image.astype(int) - GREY[..., None]).max() <= 1


def table(entries: list[int], bits: int, syntax: str, words: bool, first: int = 0) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.LUTData = struct.pack(f"{'>' if syntax == BIG else '<'}{len(entries)}H", *entries) if words else entries
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW" if words else "US"
    return item


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("syntax", [LITTLE, BIG])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_modality_and_voi_tables_of_any_width(bits, syntax, words):
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8)
    three = table([3 * k for k in range(64)], bits, syntax, words)
    image = np.asarray(read_image(dicom(pixels, syntax, ModalityLUTSequence=[three]), window=(0, 189)))
    assert np.abs(image[..., 0] - 255 * pixels / 63).max() <= 0.51
    full = 2**bits - 1
    voi = table([full * k // 189 for k in range(190)], bits, syntax, words)
    image = np.asarray(read_image(dicom(pixels, syntax, ModalityLUTSequence=[three], VOILUTSequence=[voi])))
    assert np.abs(image[..., 0].astype(int) - 255 * pixels / 63).max() <= 1.5
    image = np.asarray(read_image(dicom(pixels, syntax, RescaleSlope=3, RescaleIntercept=0, VOILUTSequence=[voi])))
    assert np.abs(image[..., 0].astype(int) - 255 * pixels / 63).max() <= 1.5


def fail(*_, **__):
    raise RuntimeError(NAME)


@pytest.mark.parametrize("plugins", [(), ("pillow",)])
def test_missing_decoders_are_named_with_the_package(plugins, monkeypatch):
    decoder = SimpleNamespace(is_available=bool(plugins), available_plugins=plugins, as_array=fail)
    monkeypatch.setattr("pydicom.pixels.get_decoder", lambda _: decoder)
    stream = io.BytesIO()
    for syntaxes, (package, extra) in DECODERS.items():
        for syntax in syntaxes:
            stream = io.BytesIO()
            Image.fromarray(GREY).save(stream, "JPEG")  # only its size is read
            data = make_encapsulated_dicom(stream.getvalue(), GREY, UID(syntax))
            with pytest.raises(UnreadableImage) as caught:
                read_image(encode_dicom(data))
            command = f'pip install "hf_medtl[{extra}]"' if extra else f"pip install pylibjpeg {package}"
            assert f"needs {package}. Install it with: {command}" in str(caught.value)
            assert NAME not in str(caught.value)


def test_videos_and_unknown_compressions_are_named():
    for syntax, words in (("1.2.840.10008.1.2.4.102", "MPEG-4"), ("1.2.3.4.5", "an unknown compression")):
        stream = io.BytesIO()
        make_encapsulated_dicom(b"\0" * 100, GREY, UID(syntax)).save_as(
            stream, enforce_file_format=True, implicit_vr=False, little_endian=True
        )
        with pytest.raises(UnreadableImage, match=rf"DICOM with {words}.* can't be read\. Save it uncompressed"):
            read_image(stream.getvalue())
