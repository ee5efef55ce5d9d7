"""Image reader: 8-bit RGB equal to stock pipelines, windowing, masks, and errors that name the file."""

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from transformers.image_utils import load_image

from hf_medtl import read_image
from hf_medtl.data.images import encode_image, read_mask
from hf_medtl.errors import UnreadableImage

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (37, 53), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)


def ordinary(mode: str) -> Image.Image:
    if mode == "L":
        return Image.fromarray(GREY)
    if mode == "RGBA":
        return Image.fromarray(np.dstack([COLOUR, GREY]))
    return Image.fromarray(COLOUR).convert(mode)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "RGB", "LA", "1"])
@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_ordinary_files_equal_stock_pipelines(mode, extension, tmp_path):
    path = tmp_path / f"image.{extension}"
    ordinary(mode).save(path, format="PNG")  # also with a wrong extension: the header decides
    image = read_image(path)
    assert image.mode == "RGB"
    assert np.array_equal(image, load_image(str(path)))


def test_palette_with_transparency_equals_load_image(tmp_path):
    path = tmp_path / "p.png"
    ordinary("P").save(path, transparency=bytes(range(256)))
    assert np.array_equal(read_image(path), load_image(str(path)))


def test_exif_rotation_is_applied_and_metadata_are_dropped(tmp_path):
    exif = Image.Exif()
    exif[274], exif[315] = 6, "Jane Doe"  # orientation, artist
    path = tmp_path / "rotated.jpg"
    Image.fromarray(COLOUR).save(path, exif=exif)
    rotated = read_image(path)
    assert rotated.size == (37, 53)
    assert np.array_equal(rotated, load_image(str(path)))
    text = PngInfo()
    text.add_text("PatientName", "Jane Doe")
    Image.fromarray(GREY).save(tmp_path / "text.png", pnginfo=text)
    for image in (rotated, read_image(tmp_path / "text.png")):
        assert not image.info
        assert not image.getexif()


@pytest.mark.parametrize("kind", ["I;16 PNG", "I;16 TIFF", "I TIFF", "F TIFF"])
def test_more_than_8_bits_are_windowed_not_clipped(kind, tmp_path):
    mode, container = kind.split()
    ramp = np.linspace(300, 3900, 64 * 64).reshape(64, 64).astype(np.uint16)  # 12 bits in 16: stock code shows white
    array = ramp if mode == "I;16" else ramp.astype(np.int32 if mode == "I" else np.float32)
    path = tmp_path / f"deep.{container.lower()}"
    Image.fromarray(array).save(path)
    grey = np.asarray(read_image(path))[..., 0].astype(int)
    assert (grey == 255).mean() < 0.02
    assert grey.min() == 0
    assert 120 < np.median(grey) < 135
    assert np.array_equal(np.argsort(grey.ravel(), kind="stable"), np.arange(64 * 64))  # order of greys is kept
    assert np.asarray(read_image(path, window=(300, 8000))).max() < 130


def test_outlier_pixel_does_not_darken_16_bit_image(tmp_path):
    ramp = np.linspace(0, 4000, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    ramp[0, 0] = 65535
    Image.fromarray(ramp).save(tmp_path / "b.png")
    a, b = (np.asarray(read_image(tmp_path / name)).astype(int) for name in ("a.png", "b.png"))
    assert np.abs(a - b)[1:].max() <= 1


def test_reads_constant_and_non_finite_16_bit_images(tmp_path):
    Image.fromarray(np.full((8, 8), 900, np.uint16)).save(tmp_path / "flat.png")
    assert np.asarray(read_image(tmp_path / "flat.png")).max() == 0
    array = np.full((8, 8), np.nan, np.float32)
    Image.fromarray(array).save(tmp_path / "nan.tiff")
    assert read_image(tmp_path / "nan.tiff").size == (8, 8)


JPEG = encode_image(Image.fromarray(COLOUR), "JPEG")


@pytest.mark.parametrize(
    "content", [b"", b"this is text", JPEG[:400], JPEG[: len(JPEG) // 2], b"\x89PNG\r\n\x1a\n" + b"\0" * 50]
)
def test_damaged_file_error_names_the_file(content, tmp_path):
    path = tmp_path / "damaged.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=r"damaged\.jpg"):
        read_image(path)


@pytest.mark.slow
def test_rejects_decompression_bomb(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)
    with pytest.raises(UnreadableImage, match="bomb"):
        read_image(path)
    Image.new("1", (11_000, 11_000)).save(path)  # Pillow itself would only warn
    with pytest.raises(UnreadableImage, match="100,000,000"):
        read_image(path)


def as_file(pixels: np.ndarray, mode: str | None = None, kind: str = "PNG") -> bytes:
    image = Image.fromarray(pixels)
    return encode_image(image.convert(mode) if mode else image, kind)


DISC = (np.hypot(*np.meshgrid(np.arange(40) - 15, np.arange(30) - 12)) < 9).astype(np.uint8)


def test_masks_of_any_encoding_are_equal():
    palette = Image.fromarray(DISC, "P")
    palette.putpalette([0, 0, 0, 128, 0, 0])  # as VOC's masks: dark red
    files = {
        "black and white": as_file(DISC * 255),
        "one bit": as_file(DISC * 255, "1"),
        "colour channels": as_file(DISC * 255, "RGB"),
        "labels": as_file(DISC),
        "labels 1 and 2": as_file(DISC * (1 + (np.arange(40) > 15)).astype(np.uint8)),
        "grey": as_file(DISC * 200 + 20),
        "dark palette": encode_image(palette),
        "16 bits": as_file(DISC.astype(np.uint16) * 65535),
        "labels in 16 bits": as_file(DISC.astype(np.uint16)),
        "JPEG": as_file(DISC * 255, kind="JPEG"),
    }
    for name, file in files.items():
        assert np.array_equal(read_mask([file]), DISC * 255), name
    left, right = DISC * (np.arange(40) < 15), DISC * (np.arange(40) >= 15)
    assert np.array_equal(read_mask([as_file(part.astype(np.uint8)) for part in (left, right)]), DISC * 255)
    assert np.asarray(read_mask([as_file(DISC * 0)])).max() == 0
    assert np.asarray(read_mask([as_file(DISC * 0 + 255)])).min() == 255


def test_reads_masks_of_declared_values():
    grey = DISC * 85
    grey[20:, 30:] = 170
    values = {0: 0, 85: 1, 170: 2, 255: 255}
    expected = DISC + 2 * (grey == 170).astype(np.uint8)
    for file in (as_file(grey), as_file(grey, "RGB"), as_file(grey.astype(np.uint16))):
        assert np.array_equal(read_mask([file], values), expected)
    assert np.array_equal(read_mask([as_file(DISC * 85), as_file(grey * (grey == 170))], values), expected)
    with pytest.raises(UnreadableImage, match=r"^bytes: expected a mask with the values 0, 85, also found 170"):
        read_mask([as_file(grey)], {0: 0, 85: 1})


def test_rejects_files_that_are_no_mask(tmp_path):
    path = tmp_path / "radiograph.png"
    path.write_bytes(as_file(GREY))
    with pytest.raises(UnreadableImage, match=r"radiograph.png: expected a mask .* found \d\d% grey pixels"):
        read_mask([path])
    path.write_bytes(as_file(np.minimum(GREY, 5)))
    with pytest.raises(UnreadableImage, match=r"radiograph.png: expected a mask .* found 6 dark values"):
        read_mask([path])
    with pytest.raises(UnreadableImage, match=r"bytes: \(37, 53\) pixels, but the other part of the mask has \(30, 40"):
        read_mask([as_file(DISC), as_file(GREY // 128)])
    path.write_bytes(b"")
    with pytest.raises(UnreadableImage, match=r"radiograph.png"):
        read_mask([path])
