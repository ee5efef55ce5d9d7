"""Image reader: any image, DICOM or NIfTI file as 8-bit RGB without metadata."""

import gzip
import io
import logging
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hf_medtl.data.pixels import MAX_PIXELS, apply_window
from hf_medtl.errors import UnreadableImage

# The content decides, never the file name. The list keeps Pillow's rarer readers away from untrusted files.
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".webp", ".bmp", ".gif",
              ".dcm", ".dicom", ".nii", ".nii.gz")  # fmt: skip


def read_image(
    source: str | Path | bytes, window: tuple[float, float] | None = None, frame: int | None = None
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
        frame: Frame or slice number, from 0; by default the middle one of a DICOM or NIfTI file, else the first.

    Returns:
        RGB image.

    Raises:
        UnreadableImage: The file is empty, truncated, not an image, too large, or has no such frame.

    Example:
        >>> from hf_medtl import read_image
        >>> read_image("ct.dcm", window=(-1000, 400)).mode
        'RGB'
    """
    name = "bytes" if isinstance(source, bytes) else str(source)
    try:
        with QUIET:
            with open_binary(source) as stream:
                suffix = "" if isinstance(source, bytes) else Path(source).suffix.lower()
                if is_dicom(stream, suffix):
                    from hf_medtl.data import dicom

                    return dicom.read(stream, name, window, frame)
                volume = open_nifti(stream)
                if volume is not None:
                    from hf_medtl.data import nifti

                    return nifti.read(volume, name, window, frame)
            return _read_with_pillow(source, name, window, frame)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file provokes, SyntaxError included
        raise UnreadableImage(f"{name}: not a readable image ({type(error).__name__}: {error}).") from error


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
        name = "bytes" if isinstance(part, bytes) else str(part)
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


def _read_with_pillow(
    source: str | Path | bytes, name: str, window: tuple[float, float] | None, frame: int | None
) -> Image.Image:
    """Read one of FORMATS; see `read_image`."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
        image.seek(frame or 0)
        width, height = image.size
        limit = MAX_PIXELS // 4 if image.mode in {"I", "F"} else MAX_PIXELS  # 32 bits need four times the memory
        if width * height > limit:
            raise UnreadableImage(
                f"{name}: {width} × {height} pixels, more than the limit of {limit:,}. "
                "Downscale the file, or remove it from the data folder."
            )
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I") or image.mode == "F":
            return Image.fromarray(apply_window(np.asarray(image), window)).convert("RGB")
        rgb = image.convert("RGB")
        rgb.info = {}  # EXIF, text chunks and the like
        return rgb


def encode_image(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    """Return an image as the content of a file; `options` are those of Pillow."""
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


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


class QuietReaders:
    """Context manager that silences warnings and logs of image libraries, which quote headers and patient names.

    `warnings.catch_warnings` alone is not enough if multiple threads read at once: the first thread to leave would
    restore the warnings for all. Here the last one does.
    """

    LOGGERS = ("PIL", "pydicom", "highdicom", "pylibjpeg", "libjpeg", "openjpeg", "nibabel")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.depth = 0

    def __enter__(self) -> None:
        with self.lock:
            self.depth += 1
            if self.depth == 1:
                self.warnings = warnings.catch_warnings()
                self.warnings.__enter__()
                warnings.simplefilter("ignore")
                self.levels = {name: logging.getLogger(name).level for name in self.LOGGERS}
                for name in self.LOGGERS:
                    logging.getLogger(name).setLevel(logging.CRITICAL + 1)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.depth -= 1
            if self.depth == 0:
                self.warnings.__exit__(None, None, None)
                for name, level in self.levels.items():
                    logging.getLogger(name).setLevel(level)


QUIET = QuietReaders()
