"""Validation of uploaded files: an image in memory, or one plain sentence that says what is wrong with the file.

A file is read into memory once and removed from disk. Its format is detected from its content; its dimensions are
compared with limits tighter than those of `hf_medtl.data` before anything is decoded. Messages contain no path, no text
from a header and no class name. All functions are thread-safe.
"""

import importlib.util
import io
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import Image

from hf_medtl.data import dicom, nifti
from hf_medtl.data.deep_images import check_tiles, read_layout, read_pixels
from hf_medtl.data.file_types import SUPPORTED, image_type, other_file_type
from hf_medtl.data.images import FORMATS, is_dicom, open_nifti, read_image
from hf_medtl.data.pixels import GreyRange
from hf_medtl.data.quiet import QUIET
from hf_medtl.errors import MedtlError, UnreadableImage
from hf_medtl.space.archives import EMPTY, file_too_large, read_entries
from hf_medtl.space.frames import count_frames
from hf_medtl.space.windowing import CONSTANT, Windowing

T = TypeVar("T")
Format = Literal["dicom", "nifti", "image"]
MAX_BYTES = 50_000_000
MAX_PIXELS = 40_000_000  # of one frame; a quarter of it with 32 bits, which need four times the memory
MIN_SIDE, MAX_SIDE = 16, 20_000
MAX_FRAMES = 2_000
MAX_ANIMATED = 200_000_000  # pixels of all frames of a GIF, WebP or PNG: the last frame needs all before it
MAX_VOLUME = 500_000_000  # bytes of a NIfTI volume: a gzipped one is decompressed up to the slice
MAX_ARCHIVE = 200_000_000  # bytes of a zip
NAME_LENGTH = 80

DAMAGED = "The image is damaged or truncated. Save or download it again."
UNKNOWN = f"The file is not a supported image. Send {SUPPORTED}."


@dataclass(frozen=True)
class Upload:
    """An uploaded file that was read and is an image.

    Args:
        name: the user's file name, for tables shown to that user. It may name a patient: it is never logged.
        content: bytes of the file.
        frames: number of frames or slices that can be selected.
        windowing: None for an image with 8 bits, or in color.
        dicom: True for a DICOM file.
    """

    name: str = field(repr=False)
    content: bytes = field(repr=False)
    frames: int
    windowing: Windowing | None
    dicom: bool

    def image(self, window: tuple[float, float] | None = None, frame: int | None = None) -> Image.Image:
        """Return the RGB image read by `hf_medtl.read_image`, by default as models are trained on it.

        Args:
            window: grey values (low, high) that become black and white, for an image with `windowing`.
            frame: from 0. By default the middle one of a DICOM or NIfTI file, otherwise the first.

        Raises:
            MedtlError: invalid window or frame, or the frame is damaged or too large.
        """
        if window is not None and not (np.isfinite(window).all() and window[0] < window[1]):
            raise MedtlError("The window's lower end must be below its upper end. Move one of them.")
        if frame is not None and not 0 <= frame < self.frames:
            raise MedtlError(f"There is no frame {frame}. Choose one of 0 to {self.frames - 1}.")
        format_ = detect_format(self.content)
        if frame and format_ == "image":
            _to_plain_error(format_, lambda: _open_image(self.content, frame))  # each page of a TIFF has its own size
        return _to_plain_error(format_, lambda: read_image(self.content, window, frame))


@dataclass(frozen=True)
class RejectedFile:
    """A file that is not a usable image: its name, to be shown like that of an `Upload`, and the reason."""

    name: str = field(repr=False)
    reason: str


def load_upload(path: str | Path, remove: bool = True, name: str = "") -> Upload:
    """Read an uploaded file once and check that it is an image that can be shown.

    Args:
        path: uploaded file.
        remove: remove the file from disk, whatever happens, and its folder if that is empty then.
        name: the user's name of the file. By default its name on disk.

    Raises:
        MedtlError: what is wrong and what to do, as a plain sentence.
    """
    return parse_upload(display_name(name or Path(path).name), _read_file(Path(path), MAX_BYTES, remove))


def load_batch(path: str | Path, name: str = "") -> Iterator[Upload | RejectedFile]:
    """Yield the images of an uploaded zip, or a single uploaded image, one at a time. Nothing is written to disk.

    Unusable files are yielded as RejectedFile. Never raises.

    Args:
        path: uploaded file. It is read and removed at once, before the first image is requested.
        name: as for `load_upload`.
    """
    path = Path(path)
    name = display_name(name or path.name)
    try:
        content = _read_file(path, MAX_ARCHIVE, remove=True)
    except MedtlError as error:
        return iter([RejectedFile(name, str(error))])
    if content[:2] == b"PK" and detect_format(content) == "image":
        return (
            RejectedFile(display_name(entry) if entry else name, problem)
            if problem
            else _parse_or_reject(display_name(entry), file)
            for entry, file, problem in read_entries(content, MAX_BYTES)
        )
    return iter([_parse_or_reject(name, content)])


def _parse_or_reject(name: str, content: bytes) -> Upload | RejectedFile:
    try:
        if len(content) > MAX_BYTES:
            raise MedtlError(file_too_large(MAX_BYTES))
        return parse_upload(name, content)
    except MedtlError as error:
        return RejectedFile(name, str(error))


def _read_file(path: Path, limit: int, remove: bool) -> bytes:
    """Return the content of an uploaded file of at most `limit` bytes."""
    content = None
    try:
        with suppress(OSError), path.open("rb") as stream:
            content = stream.read(limit + 1)
    finally:
        if remove:
            with suppress(OSError):  # removed already, or the folder has another upload
                path.unlink(missing_ok=True)
                path.parent.rmdir()
    if content is None:
        raise MedtlError("The file is no longer there. Choose it again.")
    if len(content) > limit:
        raise MedtlError(file_too_large(limit))
    if not content:
        raise MedtlError(EMPTY)
    return content


def display_name(name: str) -> str:
    """Return a file name without control and bidirectional characters, shortened in the middle if it is long."""
    text = "".join(sign for sign in name if unicodedata.category(sign)[0] != "C").strip() or "image"
    return text if len(text) <= NAME_LENGTH else f"{text[: NAME_LENGTH - 21]}…{text[-20:]}"


def parse_upload(name: str, content: bytes) -> Upload:
    """Return the upload of a file's content; see `load_upload`."""
    format_ = detect_format(content)
    inspect = {"dicom": _inspect_dicom, "nifti": _inspect_nifti, "image": _inspect_image}[format_]
    frames, greys = _to_plain_error(format_, lambda: inspect(content))
    return Upload(name, content, frames, None if greys is None else Windowing.from_greys(greys), format_ == "dicom")


def detect_format(content: bytes) -> Format:
    """Return the format that `read_image` detects; "image" includes unknown ones."""
    stream = io.BytesIO(content)
    if is_dicom(stream, ""):
        return "dicom"
    with suppress(OSError, EOFError, zlib.error):  # damaged gzip
        return "image" if open_nifti(stream) is None else "nifti"
    return "image"


def _to_plain_error(format_: Format, work: Callable[[], T]) -> T:
    """Call `work`, turn any exception into a MedtlError in plain words, and silence readers that quote headers."""
    try:
        with QUIET:
            return work()
    except UnreadableImage as error:
        # Errors of DICOM and NIfTI quote no header, but a class name in parentheses.
        reason = DAMAGED if format_ == "image" else re.sub(r"^(bytes|The file): | \(\w+\)", "", str(error))
    except MedtlError as error:
        reason = str(error)
    except Exception:
        reason = DAMAGED
    raise MedtlError(reason[0].upper() + reason[1:])  # outside `except`: no context that a log could quote


def _inspect_dicom(content: bytes) -> tuple[int, GreyRange | None]:
    """Return the number of frames, and the grey values of the middle one."""
    columns, rows, frames = dicom.read_dimensions(io.BytesIO(content), "The file")
    _check_size(columns, rows, frames)
    greys = dicom.read_grey_range(io.BytesIO(content), "The file")
    if greys is None:
        _check_not_constant(read_image(content))
    return frames, greys


def _inspect_nifti(content: bytes) -> tuple[int, GreyRange | None]:
    """Return the number of slices, and the grey values of the middle one."""
    if importlib.util.find_spec("nibabel") is None:
        raise MedtlError("NIfTI volumes are not supported here. Save a slice as PNG.")
    volume = open_nifti(io.BytesIO(content))
    assert volume is not None  # `detect_format` has opened it
    columns, rows, slices, size = nifti.read_dimensions(volume, "The file")
    _check_size(columns, rows, slices, MAX_PIXELS // 4)  # scaled values have eight bytes
    if size > MAX_VOLUME:
        raise MedtlError(f"The volume is larger than {MAX_VOLUME // 1_000_000} MB uncompressed. Send a part of it.")
    volume.seek(0)
    greys = nifti.read_grey_range(volume, "The file")
    if greys is None:
        _check_not_constant(read_image(content))
    return slices, greys


def _inspect_image(content: bytes) -> tuple[int, GreyRange | None]:
    """Return the number of frames, and the grey values of the first if it has more than 8 bits."""
    if not image_type(content):
        raise MedtlError(other_file_type(content) or UNKNOWN)
    layout = read_layout(io.BytesIO(content))
    check_tiles(layout, "The file")
    if layout is not None and layout.deep:
        _check_size(layout.width, layout.height, 1, layout.max_pixels(MAX_PIXELS // 4))
        pixels = read_pixels(content, layout, "The file")
        if pixels.ndim == 2:
            return 1, GreyRange.from_pixels(pixels)
        _check_not_constant(read_image(content))
        return 1, None
    image = _open_image(content)
    frames = min(count_frames(content) or getattr(image, "n_frames", 1), MAX_FRAMES)
    if image.format != "TIFF" and frames * image.width * image.height > MAX_ANIMATED:
        frames = 1
    if image.mode.startswith("I") or image.mode == "F":  # more than 8 bits, as in `read_image`
        return frames, GreyRange.from_pixels(np.asarray(image))
    _check_not_constant(read_image(content))
    return frames, None


def _open_image(content: bytes, frame: int = 0) -> Image.Image:
    """Open a file of FORMATS at a frame and check its size, without decoding it."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        image.seek(frame)
    except Image.DecompressionBombError as error:  # Pillow's own limit is about 180 million pixels
        raise MedtlError(_too_many_pixels(MAX_PIXELS)) from error
    _check_size(*image.size, 1, MAX_PIXELS // 4 if image.mode in {"I", "F"} else MAX_PIXELS)
    return image


def _too_many_pixels(limit: int) -> str:
    return f"The image has more than {limit // 1_000_000} million pixels. Send a smaller one."


def _check_size(columns: int, rows: int, frames: int, max_pixels: int = MAX_PIXELS) -> None:
    """Raise a MedtlError if the dimensions in a header exceed the limits."""
    if columns * rows > max_pixels:
        raise MedtlError(_too_many_pixels(max_pixels))
    if max(columns, rows) > MAX_SIDE:
        raise MedtlError(f"The image has {columns:,} × {rows:,} pixels; at most {MAX_SIDE:,} per side. Crop it.")
    if min(columns, rows) < MIN_SIDE:
        raise MedtlError(
            f"The image has only {columns:,} × {rows:,} pixels: too few to show anything. Send a larger one."
        )
    if frames > MAX_FRAMES:
        raise MedtlError(f"The file has {frames:,} frames; at most {MAX_FRAMES:,} are supported. Save one of them.")


def _check_not_constant(image: Image.Image) -> None:
    """Raise a MedtlError if all pixels of an RGB image are the same."""
    pixels = np.asarray(image)
    if (pixels == pixels[0, 0]).all():
        raise MedtlError(CONSTANT)
