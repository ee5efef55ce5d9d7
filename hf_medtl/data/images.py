"""Any picture file -> an 8-bit RGB picture without metadata."""

import gzip
import io
import logging
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from hf_medtl.data.pixels import MAX_PIXELS, apply_window
from hf_medtl.errors import UnreadableImage

# The header decides, never the file's name. The list keeps Pillow's rarer readers away from files of unknown origin.
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")
EXTENSIONS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".webp", ".bmp", ".gif",
              ".dcm", ".dicom", ".nii", ".nii.gz")  # fmt: skip


def read_image(
    source: str | Path | bytes, window: tuple[float, float] | None = None, frame: int | None = None
) -> Image.Image:
    """Read a picture as 8-bit RGB, upright, without EXIF, DICOM header or any other metadata.

    An ordinary 8-bit file becomes exactly what stock `transformers` pipelines make of it: EXIF rotation, then
    `convert("RGB")`. A picture of more than 8 bits is windowed first, because `convert` would clip it to white. What a
    file is, is told by its content: DICOM (see `hf_medtl.data.dicom`), NIfTI (see `hf_medtl.data.nifti`), or one of
    FORMATS.

    Args:
        source: path of a file, or its bytes.
        window: grey values (low, high) that become 0 and 255 in a picture of more than 8 bits; by default the 0.5th
            and 99.5th percentile of its pixels, which one stray pixel does not move as a maximum would. In DICOM the
            unit is that after rescaling (Hounsfield for CT), and the file's own window comes before the percentiles.
        frame: which frame or slice, from 0; by default the middle one of a DICOM or NIfTI file, else the first.

    Raises:
        UnreadableImage: the file is empty, truncated, not a picture, too large, or without that frame.
    """
    name = "bytes" if isinstance(source, bytes) else str(source)
    try:
        with QUIET:
            with open_source(source) as stream:
                suffix = "" if isinstance(source, bytes) else Path(source).suffix.lower()
                if is_dicom(stream, suffix):
                    from hf_medtl.data import dicom

                    return dicom.read(stream, name, window, frame)
                volume = unpacked(stream)
                if volume is not None:
                    from hf_medtl.data import nifti

                    return nifti.read(volume, name, window, frame)
            return read_picture(source, name, window, frame)
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's readers raise whatever a damaged file provokes, SyntaxError included
        raise UnreadableImage(f"{name}: not a readable picture ({type(error).__name__}: {error}).") from error


def read_mask(parts: Sequence[str | Path | bytes], values: Mapping[int, int] | None = None) -> Image.Image:
    """Read a mask as 8-bit grey, 255 inside and 0 outside; several files, such as a left and a right lung, united.

    Inside is what is brighter than 127, or, in a file of labels 0 and 1, or 0 to 2, what is not 0.

    Args:
        parts: files, or their bytes.
        values: grey value -> class index, for masks of more classes: the result holds these indices, where parts
            overlap the highest. Grey is luma, also that of a coloured or palette file.

    Raises:
        UnreadableImage: a file gives no picture, or no mask but many greys, or other values than declared; or the
            parts differ in size.
    """
    whole: NDArray[np.uint8] | None = None
    for part in parts:
        name = "bytes" if isinstance(part, bytes) else str(part)
        # With this window a mask of more than 8 bits keeps its values up to 255; percentiles would stretch them.
        grey = np.asarray(read_image(part, window=(0, 255)).convert("L"))
        here = inside(grey, name) if values is None else classes(grey, values, name)
        if whole is not None and here.shape != whole.shape:
            raise UnreadableImage(f"{name}: {here.shape} pixels, but the other part of the mask has {whole.shape}.")
        whole = here if whole is None else np.maximum(whole, here)
    if whole is None:
        raise ValueError("a mask needs at least one file")
    return Image.fromarray(whole)


def inside(grey: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """255 inside of a mask (H, W) of two values, 0 outside; `name` is for the error."""
    bright = grey.max() > 127
    between = ((grey >= 64) & (grey < 192)).mean() if bright else 0.0
    # Edges that are smooth or compressed by JPEG are grey, but not a tenth of a mask.
    if between > 0.1 or (not bright and np.unique(grey).size > 3):
        found = f"{between:.0%} grey pixels" if bright else f"{np.unique(grey).size} dark values"
        raise UnreadableImage(
            f"{name}: expected a mask in black and white, or of labels 0 to 2, found {found}. Is it the picture "
            "itself, or a mask of more classes?"
        )
    return (grey > (127 if bright else 0)).astype(np.uint8) * 255


def classes(grey: NDArray[np.uint8], values: Mapping[int, int], name: str) -> NDArray[np.uint8]:
    """Class index of each pixel of a mask (H, W) of declared grey values; `name` is for the error."""
    others = sorted(set(np.unique(grey).tolist()) - set(values))
    if others:
        raise UnreadableImage(
            f"{name}: expected a mask of the values {', '.join(map(str, sorted(values)))}, found "
            f"{', '.join(map(str, others[:9]))}{' ...' * (len(others) > 9)}, too. Declare them, or save it without "
            "lossy compression."
        )
    index = np.zeros(256, np.uint8)
    index[list(values)] = list(values.values())
    return index[grey]


def read_picture(
    source: str | Path | bytes, name: str, window: tuple[float, float] | None, frame: int | None
) -> Image.Image:
    """Read one of FORMATS; see `read_image`."""
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
        image.seek(frame or 0)
        width, height = image.size
        limit = MAX_PIXELS // 4 if image.mode in {"I", "F"} else MAX_PIXELS  # 32 bits: four times the memory
        if width * height > limit:
            raise UnreadableImage(
                f"{name}: {width} × {height} pixels, more than the {limit:,} that are opened. "
                "Shrink the file, or take it out of the data folder."
            )
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I") or image.mode == "F":
            return Image.fromarray(apply_window(np.asarray(image), window)).convert("RGB")
        picture = image.convert("RGB")
        picture.info = {}  # EXIF, text chunks and the like
        return picture


def open_source(source: str | Path | bytes) -> BinaryIO:
    """A file or bytes as a stream."""
    return io.BytesIO(source) if isinstance(source, bytes) else Path(source).open("rb")


def is_dicom(stream: BinaryIO, suffix: str) -> bool:
    """Whether there is DICOM's mark, or, in a file that may lack it, the group 2 or 8 that a data set begins with."""
    head = stream.read(132)
    stream.seek(0)
    bare = suffix in {".dcm", ".dicom", ""} and head[:2] in {b"\x02\0", b"\x08\0", b"\0\x08"}
    return head[128:] == b"DICM" or bare


def unpacked(stream: BinaryIO) -> BinaryIO | None:
    """The stream of a NIfTI volume (the magic of NIfTI-1 or -2 is where it should be), gunzipped; else None."""
    head = stream.read(348)
    stream.seek(0)
    if head[:2] == b"\x1f\x8b":
        stream = gzip.GzipFile(fileobj=stream)  # type: ignore[assignment]  # a stream in all but name
        head = stream.read(348)
        stream.seek(0)
    return stream if head[344:348] == b"n+1\0" or head[4:8] == b"n+2\0" else None


class Quiet:
    """Context in which readers neither warn nor log: they quote what is in headers, a patient's name included.

    `warnings.catch_warnings` alone does not do when several threads read at once: the first to leave would bring the
    warnings back for all. Here the last one does.
    """

    LOGGERS = ("PIL", "pydicom", "highdicom", "pylibjpeg", "libjpeg", "openjpeg", "nibabel")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0

    def __enter__(self) -> None:
        with self.lock:
            self.inside += 1
            if self.inside == 1:
                self.warnings = warnings.catch_warnings()
                self.warnings.__enter__()
                warnings.simplefilter("ignore")
                self.levels = {name: logging.getLogger(name).level for name in self.LOGGERS}
                for name in self.LOGGERS:
                    logging.getLogger(name).setLevel(logging.CRITICAL + 1)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                self.warnings.__exit__(None, None, None)
                for name, level in self.levels.items():
                    logging.getLogger(name).setLevel(level)


QUIET = Quiet()
