"""Reader of PNG and TIFF files with more than 8 bits that Pillow reads with 8, with the wrong sign, or not at all."""

import math
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from hf_medtl.errors import UnreadableImage

PNG = b"\x89PNG\r\n\x1a\n"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Tags of TIFF 6.0
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS = 256, 257, 258, 259, 262, 273
ORIENTATION, SAMPLES, LENGTHS, PLANAR, SAMPLE_FORMAT = 274, 277, 279, 284, 339
TILE_WIDTH, TILE_HEIGHT = 322, 323
MAX_TILE = 1 << 24  # pixels of a tile that is much larger than its image
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2  # photometric interpretations
UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # sample formats
# Grey values (bits, format) that Pillow reads as they are.
EXACT = {(1, UNSIGNED), (2, UNSIGNED), (4, UNSIGNED), (8, UNSIGNED), (12, UNSIGNED), (16, UNSIGNED), (16, SIGNED),
         (32, SIGNED), (32, FLOAT)}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Layout of the pixels of one image of a PNG or TIFF file.

    Attributes:
        width: Columns.
        height: Rows.
        samples: Values of each pixel: grey or RGB, and alpha.
        bits: Bits of each value.
        format: UNSIGNED, SIGNED or FLOAT.
        photometric: WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, or another number of TIFF's.
        page: Page of a TIFF, from 0.
        directory: TIFF's tags.
    """

    width: int
    height: int
    samples: int
    bits: int
    format: int = UNSIGNED
    photometric: int = RGB
    page: int = 0
    directory: ImageFileDirectory_v2 | None = None

    @property
    def deep(self) -> bool:
        """True if Pillow would drop bits, mistake the sign, or can't read the image."""
        if self.samples == 1:
            return (self.bits, self.format) not in EXACT and self.bits >= 8
        return self.bits > 8 and self.photometric in {WHITE_IS_ZERO, BLACK_IS_ZERO, RGB}

    def max_pixels(self, limit: int) -> int:
        """Return the number of these pixels that take the memory of `limit` pixels of eight bytes, at most `limit`."""
        return min(limit, 64 * limit // (self.samples * self.bits))


def read_layout(stream: BinaryIO, page: int = 0) -> Layout | None:
    """Return the layout of a PNG or TIFF file; None for other files and damaged headers.

    Args:
        stream: The file, which stays at its start.
        page: Page of a TIFF, from 0.
    """
    stream.seek(0)
    head = stream.read(33)
    try:
        if head[:8] == PNG and head[12:16] == b"IHDR":
            width, height, bits, colour = struct.unpack(">LLBB", head[16:26])
            return Layout(width, height, {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour], bits)
        return _read_directory(stream, head[:16], page) if head[:4] in TIFF else None
    except Exception:  # Pillow's reader of directories raises whatever a damaged one provokes, OverflowError included
        return None
    finally:
        stream.seek(0)


def _read_directory(stream: BinaryIO, head: bytes, page: int) -> Layout | None:
    """Return the layout of a page of a TIFF file; None if there is no such page."""
    directory = ImageFileDirectory_v2(head if head[2] == 43 else head[:8])  # 43: BigTIFF
    for _ in range(page + 1):
        if not directory.next:
            return None
        stream.seek(directory.next)
        directory.load(stream)
    bits, formats = (
        value if isinstance(value, tuple) else (value,)
        for value in (directory.get(BITS, 1), directory.get(SAMPLE_FORMAT, UNSIGNED))
    )
    return Layout(
        directory[WIDTH],
        directory[HEIGHT],
        directory.get(SAMPLES, 1),
        max(bits),
        formats[0] if formats[0] in {SIGNED, FLOAT} else UNSIGNED,
        directory.get(PHOTOMETRIC, BLACK_IS_ZERO),
        page,
        directory,
    )


def check_tiles(layout: Layout | None, name: str) -> None:
    """Check the tiles of a TIFF, which decoders allocate as a whole however small the image is.

    Args:
        layout: Layout of the image; nothing is checked for None.
        name: Name of the file in errors.

    Raises:
        UnreadableImage: They are huge and much larger than the image.
    """
    if layout is None or layout.directory is None:
        return
    width, height = (layout.directory.get(tag, 1) for tag in (TILE_WIDTH, TILE_HEIGHT))
    if width * height > MAX_TILE and (width > 2 * layout.width or height > 2 * layout.height):
        raise UnreadableImage(
            f"{name}: tiles of {width} × {height} pixels, but the image has {layout.width} × {layout.height}. Save it "
            "again."
        )


def read_pixels(content: bytes, layout: Layout, name: str) -> NDArray[Any]:
    """Return the values of an image, (H, W) grey or (H, W, 3) RGB, without alpha, upright by TIFF's orientation.

    Uncompressed TIFF strips are read as they are; everything else is decoded by OpenCV, whose result must have the
    layout that the header declares.

    Args:
        content: The file.
        layout: Its layout, which is `deep`.
        name: Name of the file in errors.

    Raises:
        UnreadableImage: The file is damaged, no reader knows its layout, or its tiles are huge.
    """
    check_tiles(layout, name)
    grey = layout.photometric in {WHITE_IS_ZERO, BLACK_IS_ZERO} or layout.samples < 3
    if not (grey and layout.samples <= 2) and not (layout.photometric == RGB and layout.samples in {3, 4}):
        raise UnreadableImage(
            f"{name}: {layout.samples} channels of {layout.bits} bits, neither grey nor RGB. Save the image with one "
            "channel, or as RGB."
        )
    directory = layout.directory
    if directory is not None and directory.get(COMPRESSION, 1) == 1 and OFFSETS in directory and layout.bits % 8 == 0:
        pixels = _read_strips(content, layout, name)
    else:
        pixels = _decode(content, layout, name)
    return pixels[..., 0] if grey else pixels[..., :3]


def turn_upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return values (H, W, ...) upright, as EXIF's or TIFF's orientation from 1 to 8 says; others change nothing."""
    if orientation in {5, 6, 7, 8}:
        pixels = pixels.swapaxes(0, 1)
    rows, columns = -1 if orientation in {3, 4, 7, 8} else 1, -1 if orientation in {2, 3, 6, 7} else 1
    return pixels[::rows, ::columns]


def _read_strips(content: bytes, layout: Layout, name: str) -> NDArray[Any]:
    """Return the values (H, W, samples) of uncompressed strips."""
    directory = layout.directory
    assert directory is not None
    kind = {UNSIGNED: "u", SIGNED: "i", FLOAT: "f"}[layout.format]
    dtype = np.dtype(f"{'<' if content[:2] == b'II' else '>'}{kind}{layout.bits // 8}")
    strips = zip(directory[OFFSETS], directory.get(LENGTHS, (len(content),)), strict=True)
    number = layout.height * layout.width * layout.samples
    needed, joined = number * dtype.itemsize, bytearray()
    for offset, length in strips:  # they may overlap, so that all of them are much longer than the file
        joined += content[offset : offset + min(length, needed - len(joined))]
        if len(joined) >= needed:
            break
    if len(joined) < needed:
        raise UnreadableImage(f"{name}: the image is truncated. Download or save it again.")
    values = np.frombuffer(joined, dtype, number)
    if directory.get(PLANAR, 1) == 2:
        pixels = np.moveaxis(values.reshape(layout.samples, layout.height, layout.width), 0, -1)
    else:
        pixels = values.reshape(layout.height, layout.width, layout.samples)
    return turn_upright(pixels, directory.get(ORIENTATION, 1))  # in other files OpenCV has done so


def _decode(content: bytes, layout: Layout, name: str) -> NDArray[Any]:
    """Return the values (H, W, samples), decoded by OpenCV."""
    import cv2

    planar = layout.directory is not None and layout.directory.get(PLANAR, 1) == 2 and layout.samples > 1
    encoded = np.frombuffer(content, np.uint8)
    if planar:  # OpenCV would mix the planes up
        pixels = None
    elif layout.page:
        pages = cv2.imdecodemulti(encoded, cv2.IMREAD_UNCHANGED, range=(layout.page, layout.page + 1))[1]
        pixels = pages[0] if pages else None
    else:
        pixels = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
    if (
        pixels is None
        or 8 * pixels.dtype.itemsize != layout.bits
        or pixels.dtype.kind != {UNSIGNED: "u", SIGNED: "i", FLOAT: "f"}[layout.format]
        or math.prod(pixels.shape[:2]) != layout.width * layout.height
    ):
        raise UnreadableImage(
            f"{name}: {layout.samples} channel(s) of {layout.bits} bits in a form that can't be read, or damaged. "
            "Save it uncompressed, or as a PNG with 16 bits."
        )
    if pixels.ndim == 2:
        return pixels[..., None]
    return pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]  # from BGR
