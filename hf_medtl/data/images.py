"""Image reader: any image, DICOM or NIfTI file as 8-bit RGB without metadata."""

import gzip
import io
import logging
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from hf_medtl.common.text import printable
from hf_medtl.data.deep_images import (
    PHOTOMETRIC,
    WHITE_IS_ZERO,
    Layout,
    check_tiles,
    read_layout,
    read_pixels,
    turn_upright,
)
from hf_medtl.data.file_types import SUPPORTED, image_type, other_file_type
from hf_medtl.data.pixels import MAX_PIXELS, apply_window
from hf_medtl.data.quiet import QUIET
from hf_medtl.errors import UnreadableImage

logger = logging.getLogger(__name__)

# The content decides, never the file name. The list keeps Pillow's rarer readers away from untrusted files.
IGNORE_INDEX = 255  # of evaluation.masks, among class indices: no annotation, or outside of the image
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".webp", ".bmp", ".gif",
              ".dcm", ".dicom", ".nii", ".nii.gz")  # fmt: skip


def read_image(
    source: str | Path | bytes,
    window: tuple[float, float] | None = None,
    frame: int | None = None,
    name: str | None = None,
) -> Image.Image:
    """Read an image as 8-bit RGB, upright, without EXIF, DICOM header or any other metadata.

    The result for an ordinary 8-bit file is identical to that of stock `transformers` pipelines: EXIF rotation, then
    `convert("RGB")`. An image with more than 8 bits is windowed first, because `convert` would clip it to white. The
    file type is detected from the content: DICOM (`hf_medtl.data.dicom`), NIfTI (`hf_medtl.data.nifti`) or FORMATS.

    Args:
        source: Path of a file, or its bytes.
        window: Grey values (low, high) mapped to 0 and 255 in an image with more than 8 bits; by default the 0.5th and
            99.5th percentile of its pixels, which are robust to single stray pixels. For DICOM the unit is that after
            rescaling (Hounsfield for CT), and the file's own window takes precedence over the percentiles.
        frame: Frame, slice or page number, from 0; by default the middle one of a DICOM or NIfTI file, else the first.
            A log line says when a file has several.
        name: Name of the file in errors and logs; by default its path, or "bytes".

    Returns:
        RGB image.

    Raises:
        UnreadableImage: The file is empty, truncated, not an image, too large, or has no such frame.

    Example:
        >>> from hf_medtl import read_image
        >>> read_image("ct.dcm", window=(-1000, 400)).mode
        'RGB'
    """
    name = name or _file_name(source)
    try:
        with QUIET, open_binary(source) as stream:
            suffix = "" if isinstance(source, bytes) else Path(source).suffix.lower()
            if is_dicom(stream, suffix):
                from hf_medtl.data import dicom

                return dicom.read(stream, name, window, frame)
            volume = open_nifti(stream)
            if volume is not None:
                from hf_medtl.data import nifti

                return nifti.read(volume, name, window, frame)
            try:
                return _read_ordinary(stream, name, window, frame)
            except (UnreadableImage, MemoryError):
                raise
            except Exception as error:  # Pillow's readers raise whatever a damaged file provokes, SyntaxError included
                raise UnreadableImage(f"{name}: {_reason(stream, error)}") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UnreadableImage(f"{name}: the compressed file is damaged or truncated. Download it again.") from error
    except MemoryError as error:
        raise UnreadableImage(f"{name}: there is not enough memory for it. Downscale the file.") from error
    except OSError as error:
        raise UnreadableImage(f"{name}: can't be read ({error.strerror or type(error).__name__}).") from error
    except ValueError as error:  # a path with a zero byte
        raise UnreadableImage(f"{name}: can't be read ({error}).") from error


def to_rgb(image: Image.Image, window: tuple[float, float] | None = None, name: str = "image") -> Image.Image:
    """Convert an image of any mode to 8-bit RGB, upright, without metadata, as `read_image` does with a file.

    More than 8 bits are windowed, also those of a PNG or TIFF in colour that was opened but not yet loaded; Pillow
    drops their lower bits on loading.

    Args:
        image: The image, which is not changed.
        window: As for `read_image`.
        name: Name of the image in errors.

    Returns:
        RGB image.

    Raises:
        UnreadableImage: The image is damaged or too large.
    """
    stream = getattr(image, "fp", None) if getattr(image, "tile", None) else None  # no tiles: loaded
    if stream is not None and image.format in {"PNG", "TIFF"}:
        position = stream.tell()
        layout = read_layout(stream, image.tell())
        check_tiles(layout, name)
        if layout is not None and layout.deep:
            rgb = _read_deep(stream, layout, window, name)
            stream.seek(position)
            return rgb
        stream.seek(position)
    _check_pixels(image.width, image.height, MAX_PIXELS // 4 if image.mode in {"I", "F"} else MAX_PIXELS, name)
    image.load()
    white_is_zero = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
    if image.getexif().get(0x0112, 1) != 1:  # orientation
        image = ImageOps.exif_transpose(image) or image  # None only in place
    if image.mode.startswith("I") or image.mode == "F":
        shades = pixels_to_rgb(np.asarray(image), window)
        return ImageOps.invert(shades) if white_is_zero else shades  # Pillow inverts 8 bits and fewer itself
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "LAB", "RGB"))
    else:
        converted = image.convert("RGB")
    assert converted is not None  # only with `inPlace` there is none
    rgb = converted.copy() if converted is image else converted
    rgb.info = {}  # EXIF, text chunks and the like
    return rgb


def pixels_to_rgb(pixels: NDArray[Any], window: tuple[float, float] | None = None) -> Image.Image:
    """Map pixels to an 8-bit RGB image; all but 8-bit ones are windowed.

    Args:
        pixels: (H, W) or (H, W, 1) grey, (H, W, 2) grey and alpha, (H, W, 3) RGB or (H, W, 4) RGB and alpha. Alpha is
            dropped.
        window: As for `read_image`; in colour one window for all channels, so that hues are kept.

    Raises:
        ValueError: Another shape.
    """
    if pixels.ndim not in {2, 3} or (pixels.ndim == 3 and pixels.shape[2] not in {1, 2, 3, 4}):
        raise ValueError(f"expected pixels (H, W) or (H, W, 1 to 4), found {pixels.shape}")
    if pixels.ndim == 3:
        colour = pixels[..., :3]
        # Three equal channels are windowed like one.
        grey = pixels.shape[2] < 3 or bool((colour[..., :1] == colour).all())
        pixels = pixels[..., 0] if grey else colour
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * 255
    shades = pixels if pixels.dtype == np.uint8 else apply_window(pixels, window)
    return Image.fromarray(np.ascontiguousarray(shades)).convert("RGB")


def read_mask(parts: Sequence[str | Path | bytes], values: Mapping[int, int] | None = None) -> Image.Image:
    """Read a mask as an 8-bit grey image, 255 inside and 0 outside, uniting its parts such as left and right lung.

    Pixels above 127 are inside; in a file with labels 0 and 1, or 0 to 2, nonzero pixels.

    Args:
        parts: Files, or their bytes.
        values: Grey value -> class index, for masks with more classes: the result contains these indices, the highest
            one where parts overlap. Grey is luma, also for colour and palette files.

    Raises:
        UnreadableImage: A file is unreadable, has too many grey values for a mask, or undeclared values; or the parts
            differ in size.
        ValueError: There are no parts.
    """
    combined: NDArray[np.uint8] | None = None
    for part in parts:
        name = _file_name(part)
        # With this window a mask with more than 8 bits keeps its values up to 255; percentiles would stretch them.
        grey = np.asarray(read_image(part, window=(0, 255)).convert("L"))
        current = _binarize_mask(grey, name) if values is None else _index_mask(grey, values, name)
        if combined is not None and current.shape != combined.shape:
            raise UnreadableImage(
                f"{name}: {current.shape} pixels, but the other part of the mask has {combined.shape}."
            )
        combined = current if combined is None else np.maximum(combined, current)
    if combined is None:
        raise ValueError("a mask needs at least one file")
    return Image.fromarray(combined)


def read_class_indices(parts: Sequence[str | Path | bytes], values: Mapping[int, int] | None = None) -> Image.Image:
    """Read a mask as `read_mask` does, as class indices: with `values` those, without 0 outside and 1 inside."""
    mask = read_mask(parts, values)
    return mask if values else mask.point(lambda grey: int(grey > 0))


def _binarize_mask(grey: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Map a mask (H, W) with two values to 255 inside and 0 outside; `name` is for the error."""
    bright = grey.max() > 127
    between = ((grey >= 64) & (grey < 192)).mean() if bright else 0.0
    # Smooth edges and JPEG artifacts are grey, but make up less than a tenth of a mask.
    if between > 0.1 or (not bright and np.unique(grey).size > 3):
        values = f"{between:.0%} grey pixels" if bright else f"{np.unique(grey).size} dark values"
        raise UnreadableImage(
            f"{name}: expected a mask in black and white, or with labels 0 to 2, found {values}. Is it the image "
            "itself, or a mask with more classes?"
        )
    return (grey > (127 if bright else 0)).astype(np.uint8) * 255


def _index_mask(grey: NDArray[np.uint8], values: Mapping[int, int], name: str) -> NDArray[np.uint8]:
    """Map a mask (H, W) with declared grey values to class indices; `name` is for the error."""
    others = sorted(set(np.unique(grey).tolist()) - set(values))
    if others:
        raise UnreadableImage(
            f"{name}: expected a mask with the values {', '.join(map(str, sorted(values)))}, also found "
            f"{', '.join(map(str, others[:9]))}{' ...' * (len(others) > 9)}. Declare them, or save the mask without "
            "lossy compression."
        )
    index = np.zeros(256, np.uint8)
    index[list(values)] = list(values.values())
    return index[grey]


def _read_ordinary(stream: BinaryIO, name: str, window: tuple[float, float] | None, frame: int | None) -> Image.Image:
    """Read one of FORMATS; see `read_image`."""
    layout = read_layout(stream, frame or 0)
    if layout is not None and layout.deep:
        if frame is None and layout.directory is not None and layout.directory.next:
            _log_first_page(name)
        return _read_deep(stream, layout, window, name)
    with Image.open(stream, formats=FORMATS) as image:
        if frame is None and image.format != "MPO" and getattr(image, "is_animated", False):
            _log_first_page(name)
        _seek(image, frame or 0, name)
        return to_rgb(image, window, name)


def _read_deep(stream: BinaryIO, layout: Layout, window: tuple[float, float] | None, name: str) -> Image.Image:
    """Read a PNG or TIFF with more than 8 bits in a layout that Pillow would damage."""
    _check_pixels(layout.width, layout.height, layout.max_pixels(MAX_PIXELS // 4), name)
    stream.seek(0)
    content = stream.read()
    pixels = read_pixels(content, layout, name)
    if layout.directory is None and b"eXIf" in content:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            pixels = turn_upright(pixels, image.getexif().get(0x0112, 1))
    shades = pixels_to_rgb(pixels, window)
    return ImageOps.invert(shades) if layout.photometric == WHITE_IS_ZERO else shades


def _log_first_page(name: str) -> None:
    logger.info("%s has several pages or frames: reading the first one.", name)


def _seek(image: Image.Image, frame: int, name: str) -> None:
    """Go to a frame."""
    try:
        image.seek(frame)
    except EOFError as error:
        last = getattr(image, "n_frames", 1) - 1
        raise UnreadableImage(f"{name}: there is no frame {frame}. Choose one from 0 to {last}.") from error


def _check_pixels(width: int, height: int, limit: int, name: str) -> None:
    """Raise UnreadableImage if an image has too many pixels for the memory."""
    if width * height > limit:
        raise UnreadableImage(
            f"{name}: {width} × {height} pixels, more than the limit of {limit:,}. "
            "Downscale the file, or remove it from the data folder."
        )


def _reason(stream: BinaryIO, error: Exception) -> str:
    """Return why a file can't be read, and what to do."""
    layout = read_layout(stream)
    head = stream.read(8192)
    if layout is not None and isinstance(error, UnidentifiedImageError):
        return (
            f"a TIFF of {layout.samples} channel(s) of {layout.bits} bits in a form that can't be read. Save it as "
            "grey or RGB, or as PNG."
        )
    if kind := image_type(head):
        return f"the {kind} is damaged or truncated. Download or save it again."
    other = other_file_type(head) or f"Not an image that can be read. Expected {SUPPORTED}."
    return other[0].lower() + other[1:]


def encode_image(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    """Return an image as the content of a file; `options` are those of Pillow."""
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def _file_name(source: str | Path | bytes) -> str:
    """Return the name of a file in messages."""
    return "bytes" if isinstance(source, bytes) else printable(source)


def open_binary(source: str | Path | bytes) -> BinaryIO:
    """Open a file or bytes as a binary stream."""
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")


def is_dicom(stream: BinaryIO, suffix: str) -> bool:
    """True if the stream has DICOM's magic, or, if `suffix` allows DICOM without it, starts with group 2 or 8."""
    head = stream.read(132)
    stream.seek(0)
    bare = suffix in {".dcm", ".dicom", ""} and head[:2] in {b"\x02\0", b"\x08\0", b"\0\x08"}
    return head[128:] == b"DICM" or bare


def open_nifti(stream: BinaryIO) -> BinaryIO | None:
    """Return the decompressed stream of a NIfTI-1 or -2 file, detected by its magic; None for other files."""
    head = stream.read(348)
    stream.seek(0)
    if head[:2] == b"\x1f\x8b":
        stream = gzip.GzipFile(fileobj=stream)  # type: ignore[assignment]  # behaves like a BinaryIO
        head = stream.read(348)
        stream.seek(0)
    return stream if head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0" else None
