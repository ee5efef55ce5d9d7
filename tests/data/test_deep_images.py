"""Images with more than 8 bits in any number of channels: windowed as one channel is, never cut to their upper byte."""

import io
import logging
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from hf_medtl import read_image
from hf_medtl.data.deep_images import read_layout
from hf_medtl.data.images import encode_image, pixels_to_rgb, to_rgb
from hf_medtl.errors import UnreadableImage
from hf_medtl.space.uploads import parse_upload

RAMP = np.tile((np.arange(256) * 16).astype(np.uint16), (16, 1))  # 12 bits in 16
OPAQUE = np.full_like(RAMP, 65535)
COLOUR = np.dstack([RAMP, RAMP // 2, RAMP // 4])  # RGB


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(pixels: np.ndarray, *more: bytes) -> bytes:
    """Return a 16-bit PNG of (H, W, 2 to 4) values."""
    lines = b"".join(b"\0" + line.tobytes() for line in pixels.astype(">u2"))
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, {2: 4, 3: 2, 4: 6}[pixels.shape[2]], 0, 0, 0)
    parts = chunk(b"IHDR", head), *more, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(pixels: np.ndarray, photometric: int, byteorder: str = "<", planar: bool = False, **tags: int) -> bytes:
    """Return an uncompressed TIFF of (H, W) or (H, W, samples) values; `tags` such as `t274=6`."""
    values = pixels if pixels.ndim == 3 else pixels[..., None]
    height, width, samples = values.shape
    stored = np.moveaxis(values, -1, 0) if planar else values
    data = stored.astype(stored.dtype.newbyteorder(byteorder)).tobytes()
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    directory = ImageFileDirectory_v2(prefix=b"II" if byteorder == "<" else b"MM")
    for tag, value in {
        256: width, 257: height, 258: (8 * pixels.dtype.itemsize,) * samples, 259: 1, 262: photometric, 277: samples,
        273: 8, 278: height, 279: len(data), 284: 2 if planar else 1, 339: (kind,) * samples,
        **{int(name[1:]): value for name, value in tags.items()},
    }.items():  # fmt: skip
        directory.tagtype[tag] = 3 if tag not in {273, 279} else 4
        directory[tag] = value
    # The pixels first, then the directory, as Pillow's own offsets of strips start at 0.
    offset = 8 + len(data)
    magic = (b"II*\0" if byteorder == "<" else b"MM\0*") + struct.pack(f"{byteorder}I", offset)
    directory._offset = offset
    body = directory.tobytes(offset)
    at = body.find(struct.pack(f"{byteorder}HHI", 273, 4, 1)) + 8
    return magic + data + body[:at] + struct.pack(f"{byteorder}I", 8) + body[at + 4 :]


def grey(content: bytes, **arguments) -> np.ndarray:
    pixels = np.asarray(read_image(content, **arguments))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


EXPECTED = grey(encode_image(Image.fromarray(RAMP)))  # one channel, by Pillow

GREY_FILES = {
    "PNG grey and alpha": png(np.dstack([RAMP, OPAQUE])),
    "PNG RGB": png(np.dstack([RAMP] * 3)),
    "PNG RGBA": png(np.dstack([RAMP] * 3 + [OPAQUE])),
    "PNG RGB of OpenCV": cv2.imencode(".png", np.dstack([RAMP] * 3))[1].tobytes(),
    "TIFF RGB with LZW": cv2.imencode(".tiff", np.dstack([RAMP] * 3))[1].tobytes(),
    "TIFF RGB": tiff(np.dstack([RAMP] * 3), 2),
    "TIFF RGB, big-endian": tiff(np.dstack([RAMP] * 3), 2, ">"),
    "TIFF RGB in planes": tiff(np.dstack([RAMP] * 3), 2, planar=True),
    "TIFF RGBA": tiff(np.dstack([RAMP] * 3 + [OPAQUE]), 2, t338=2),
    "TIFF grey and alpha": tiff(np.dstack([RAMP, OPAQUE]), 1, t338=2),
    **{
        f"TIFF {name} {kind}": tiff(pixels.astype(kind), photometric)
        for name, pixels, photometric in (("grey", RAMP, 1), ("RGB", np.dstack([RAMP] * 3), 2))
        for kind in ("uint16", "int16", "uint32", "int32", "float16", "float32", "float64", "uint64")
    },
    "TIFF float RGB with LZW": cv2.imencode(".tiff", np.dstack([RAMP] * 3).astype(np.float32))[1].tobytes(),
}


@pytest.mark.parametrize("name", list(GREY_FILES))
def test_any_number_of_channels_is_windowed_like_one(name):
    assert np.array_equal(grey(GREY_FILES[name]), EXPECTED)
    wide = 255 * np.clip(RAMP.astype(float) / 8160, 0, 1)
    assert np.abs(grey(GREY_FILES[name], window=(0, 8160)) - wide).max() <= 0.51


@pytest.mark.parametrize(
    "content",
    [png(COLOUR), cv2.imencode(".tiff", COLOUR[..., ::-1])[1].tobytes(), tiff(COLOUR, 2), tiff(COLOUR, 2, planar=True)],
    ids=["PNG", "TIFF with LZW", "TIFF", "TIFF in planes"],
)
def test_one_window_for_all_channels_keeps_the_hue(content):
    pixels = np.asarray(read_image(content, window=(0, 4080))).astype(int)
    assert np.abs(pixels - 255.0 * COLOUR / 4080).max() <= 0.51
    default = np.asarray(read_image(content)).astype(int)
    assert np.abs(default[:, 100] - default[:, 100, :1] // [1, 2, 4]).max() <= 1
    assert default.max() == 255


def test_unsigned_32_and_signed_8_bits_keep_their_order():
    large = (RAMP.astype(np.uint32) << 20) + 5  # above 2**31, where Pillow's values become negative
    assert np.array_equal(grey(tiff(large, 1)), EXPECTED)
    assert np.array_equal(grey(tiff((RAMP // 16 - 128.0).astype(np.int8), 1)), EXPECTED)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "uint32", "float32"])
def test_white_is_zero_is_inverted(kind):
    pixels = (RAMP // 16).astype(kind)
    assert np.array_equal(grey(tiff(pixels, 0)), 255 - grey(tiff(pixels, 1)))
    assert grey(tiff(pixels, 0))[0, 0] == 255


@pytest.mark.parametrize("compression", [None, "group4", "packbits"])
def test_white_is_zero_of_one_bit_is_inverted(compression):
    image = Image.fromarray(RAMP > 2000)
    stream = io.BytesIO()
    image.save(stream, "TIFF", tiffinfo={262: 0}, **({"compression": compression} if compression else {}))
    assert np.array_equal(grey(stream.getvalue()), 255 * (RAMP > 2000))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_images_are_upright(orientation):
    pixels = np.dstack([RAMP[:, :40] + np.arange(16, dtype=np.uint16)[:, None] * 99] * 3)
    exif = Image.Exif()
    exif[274] = orientation
    one = encode_image(Image.fromarray(np.ascontiguousarray(pixels[..., 0])), exif=exif)
    expected = grey(one)
    assert np.array_equal(grey(png(pixels, chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))), expected)
    assert np.array_equal(grey(tiff(pixels, 2, t274=orientation)), expected)


def test_layouts_that_no_reader_knows_are_refused_not_mixed_up():
    five = np.dstack([COLOUR, COLOUR[..., :2]])
    with pytest.raises(UnreadableImage, match=r"^bytes: 5 channels of 16 bits, neither grey nor RGB\. Save"):
        read_image(tiff(five, 1))
    with pytest.raises(UnreadableImage, match=r"^bytes: a TIFF of 5 channel\(s\) of 8 bits in a form that"):
        read_image(tiff((five // 16).astype(np.uint8), 1))
    with pytest.raises(UnreadableImage, match="truncated"):
        read_image(tiff(COLOUR, 2)[: 8 + COLOUR.nbytes // 2] + b"")
    huge = bytearray(png(COLOUR))
    huge[16:24] = struct.pack(">LL", 100_000, 100_000)
    with pytest.raises(UnreadableImage, match="more than the limit"):
        read_image(bytes(huge))


def test_opened_image_equals_its_file(tmp_path):
    for name, content in {
        "a.png": png(COLOUR),
        "a.tif": tiff(COLOUR, 2),
        "p.png": encode_image(Image.fromarray(RAMP)),
    }.items():
        (tmp_path / name).write_bytes(content)
        with Image.open(tmp_path / name) as image:
            assert np.array_equal(to_rgb(image), read_image(content))
            assert np.array_equal(to_rgb(image), read_image(content))  # the image is not changed
            assert image.load() is not None
    white = Image.open(io.BytesIO(tiff(RAMP, 0)))
    assert np.array_equal(to_rgb(white), read_image(tiff(RAMP, 0)))


def test_loaded_images_of_any_mode_become_rgb():
    exif = Image.Exif()
    exif[274] = 6
    turned = Image.open(io.BytesIO(encode_image(Image.fromarray((COLOUR // 16).astype(np.uint8)), "PNG", exif=exif)))
    turned.load()
    assert to_rgb(turned).size == (16, 256)
    assert turned.size == (256, 16)
    assert np.array_equal(to_rgb(Image.fromarray(RAMP)), read_image(encode_image(Image.fromarray(RAMP))))
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "F", "I"):
        image = to_rgb(Image.fromarray((RAMP // 16).astype(np.uint8)).convert("RGB").convert(mode))
        assert image.mode == "RGB"
        assert np.ptp(np.asarray(image).astype(int)) > 250
    lab = tiff(np.full((4, 4, 3), (255, 0, 0), np.uint8), 8)  # white in CIELAB
    assert np.asarray(read_image(lab)).min() > 250
    same = Image.new("RGB", (4, 4))
    same.info["comment"] = "Jane Doe"
    assert to_rgb(same) is not same
    assert same.info and not to_rgb(same).info


def test_arrays_become_rgb():
    assert np.array_equal(pixels_to_rgb(RAMP), read_image(encode_image(Image.fromarray(RAMP))))
    for shape in ((16, 256, 1), (16, 256, 2), (16, 256, 3), (16, 256, 4)):
        assert np.array_equal(pixels_to_rgb(np.broadcast_to(RAMP[..., None], shape)), pixels_to_rgb(RAMP))
    assert np.array_equal(np.asarray(pixels_to_rgb(RAMP > 2000))[..., 0], 255 * (RAMP > 2000))
    with pytest.raises(ValueError, match=r"\(16, 256, 5\)"):
        pixels_to_rgb(np.zeros((16, 256, 5)))


def test_first_page_is_read_and_a_log_line_says_so(caplog):
    pages = [Image.fromarray(np.full((8, 8), 40 * k, np.uint8)) for k in range(1, 4)]
    deep = cv2.imencodemulti(".tiff", [np.dstack([RAMP + np.uint16(k)] * 3) for k in (0, 9)])[1].tobytes()
    for content in (
        *(encode_image(pages[0], kind, save_all=True, append_images=pages[1:]) for kind in ("TIFF", "GIF", "PNG")),
        encode_image(pages[0], "WEBP", save_all=True, append_images=pages[1:], lossless=True),
        deep,
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, "hf_medtl"):
            first = read_image(content)
        assert "bytes has several pages or frames: reading the first one." in caplog.text
        caplog.clear()
        with caplog.at_level(logging.INFO, "hf_medtl"):
            assert np.array_equal(read_image(content, frame=0), first)
            last = read_image(content, window=(0, 4095), frame=1)
        assert not caplog.text
        assert not np.array_equal(last, read_image(content, window=(0, 4095), frame=0))
        with pytest.raises(UnreadableImage, match=r"there is no frame 7"):
            read_image(content, frame=7)
    with caplog.at_level(logging.INFO, "hf_medtl"):
        read_image(encode_image(pages[0], "TIFF"))
    assert not caplog.text


def test_header_is_read_without_moving_the_stream():
    stream = io.BytesIO(tiff(COLOUR, 2))
    layout = read_layout(stream)
    assert (layout.width, layout.height, layout.samples, layout.bits, stream.tell()) == (256, 16, 3, 16, 0)
    assert read_layout(io.BytesIO(b"II*\0\xff\xff\xff\x7f")) is None
    assert read_layout(io.BytesIO(encode_image(Image.new("L", (9, 9)), "JPEG"))) is None


def test_the_space_takes_them():
    assert parse_upload("a.tif", tiff(COLOUR.astype(np.float32), 2)).windowing is None
    assert parse_upload("a.tif", tiff(RAMP.astype(np.float64), 1)).windowing is not None
