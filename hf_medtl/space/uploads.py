"""An uploaded file -> a picture in hand, or one sentence that says what is wrong with it.

On the open web anything comes in. A file is read into memory once and leaves the disk; what it is, is told by its
content; sizes are compared with limits tighter than those of `hf_medtl.data`, before anything is decoded. What a person
is told holds no path, no text of a header, and no name of a class. All functions may be called by several threads.
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
from hf_medtl.data.images import FORMATS, QUIET, is_dicom, read_image, unpacked
from hf_medtl.data.pixels import Greys
from hf_medtl.errors import MedtlError, UnreadableImage
from hf_medtl.space.archives import EMPTY, entries, too_long
from hf_medtl.space.frames import count

T = TypeVar("T")
Kind = Literal["dicom", "nifti", "picture"]
MAX_BYTES = 50_000_000
MAX_PIXELS = 40_000_000  # of one frame; a quarter of it with 32 bits, which need four times the memory
MIN_SIDE, MAX_SIDE = 16, 20_000
MAX_FRAMES = 2_000
MAX_ANIMATED = 200_000_000  # pixels of all frames of a GIF, WebP or PNG: the last frame needs all before it
MAX_VOLUME = 500_000_000  # bytes of a NIfTI volume: a gzipped one is unpacked up to the slice
MAX_ARCHIVE = 200_000_000  # bytes of a zip
NAME_LENGTH = 80

DAMAGED = "The picture is damaged or cut off. Save or download it again."
UNKNOWN = "This is no picture that is read here. Send PNG, JPEG, TIFF, WebP, BMP, GIF, DICOM or NIfTI."
CONSTANT = "Every pixel of the picture has the same value: there is nothing to see. Choose another one."
MAGIC = rb"\x89PNG|\xff\xd8\xff|II[*+]\0|MM\0[*+]|GIF8|RIFF....WEBP|BM"
# What else people send, by how it begins; the first that fits counts.
FOREIGN = {
    rb"PK(\x03\x04|\x05\x06|\x07\x08)": "This is a zip archive or an office document, not a picture. Send one picture.",
    rb"Rar!|7z\xbc\xaf|\x1f\x8b|BZh|\xfd7zXZ|.{257}ustar": "This is an archive, not a picture. Send one picture.",
    rb".{0,1000}%PDF-": "This is a PDF document, not a picture. Save the picture in it as PNG or JPEG.",
    rb"MZ|\x7fELF|\xca\xfe\xba\xbe|[\xcf\xce]\xfa\xed\xfe|#!": "This is a program, not a picture. Send a picture.",
    rb"....ftyp(heic|heix|mif1|avif)": "HEIC and AVIF pictures are not read. Save it as PNG or JPEG.",
    rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI ": "This is a film, not a picture. Save one picture of it as PNG.",
    rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51": "JPEG 2000 is read inside DICOM only. Save it as PNG.",
    rb"(?i)\s*<(.{0,4000}<)?svg\b": "This is a drawing (SVG), not a picture. Save it as PNG.",
    rb"(?i)\s*<(.{0,4000}<)?(!doctype html|html|head|body|script)\b": "This is a web page. Send the picture in it.",
    rb"[^\0-\x08\x0e-\x1f]+\Z": "This is text, not a picture. Send a picture.",
}
# Radiopaedia, "Windowing (CT)": level ± width / 2.
CT = {
    "brain": (0.0, 80.0),
    "lung": (-1350.0, 150.0),
    "soft tissue": (-150.0, 250.0),
    "bone": (-500.0, 1300.0),
}


@dataclass(frozen=True)
class Depth:
    """The grey values of a picture of more than 8 bits, for a window's sliders.

    Args:
        low, high: lowest and highest value of the frame that is shown first.
        window: (low, high) that is shown at first. `Upload.picture()` shows the same, but for a DICOM file that has a
            curve instead of a window: then this is near to it.
        unit: "HU" for CT, else "".
        presets: name -> (low, high).
    """

    low: float
    high: float
    window: tuple[float, float]
    unit: str
    presets: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Upload:
    """A file that was read, and is a picture.

    Args:
        name: the file's own, for tables that its user sees. It may name a patient: it is never logged.
        content: its bytes.
        frames: how many frames or slices may be asked for.
        depth: None for a picture of 8 bits, or in colour.
        dicom: whether it is DICOM.
    """

    name: str = field(repr=False)
    content: bytes = field(repr=False)
    frames: int
    depth: Depth | None
    dicom: bool

    def picture(self, window: tuple[float, float] | None = None, frame: int | None = None) -> Image.Image:
        """RGB picture by `hf_medtl.read_image`: by default what the library sees, and a model was trained on.

        Args:
            window: grey values (low, high) that become black and white in a picture with a depth.
            frame: from 0; by default the middle one of a DICOM or NIfTI file, else the first.

        Raises:
            MedtlError: no such window or frame, or the frame is damaged or too large; in plain words.
        """
        if window is not None and not (np.isfinite(window).all() and window[0] < window[1]):
            raise MedtlError("The window's lower end must be below its upper end. Move one of them.")
        if frame is not None and not 0 <= frame < self.frames:
            raise MedtlError(f"There is no frame {frame}. Choose one of 0 to {self.frames - 1}.")
        kind = kind_of(self.content)
        if frame and kind == "picture":
            plainly(kind, lambda: opened(self.content, frame))  # a page of a TIFF has a size of its own
        return plainly(kind, lambda: read_image(self.content, window, frame))


def take(path: str | Path, remove: bool = True, name: str = "") -> Upload:
    """Read an uploaded file once, and look whether it is a picture that can be shown.

    Args:
        path: the file.
        remove: whether it leaves the disk, whatever happens; its folder, too, if that is empty then.
        name: what its user calls it; by default its name on disk.

    Raises:
        MedtlError: what is wrong and what to do, in words for a person.
    """
    return examined(shown(name or Path(path).name), fetched(Path(path), MAX_BYTES, remove))


def fetched(path: Path, limit: int, remove: bool) -> bytes:
    """The content of an uploaded file.

    Raises:
        MedtlError: it is empty, gone, or longer than `limit` bytes.
    """
    content = None
    try:
        with suppress(OSError), path.open("rb") as stream:
            content = stream.read(limit + 1)
    finally:
        if remove:
            with suppress(OSError):  # gone already, or there is another upload in the folder
                path.unlink(missing_ok=True)
                path.parent.rmdir()
    if content is None:
        raise MedtlError("The file is no longer there. Choose it again.")
    if len(content) > limit:
        raise MedtlError(too_long(limit))
    if not content:
        raise MedtlError(EMPTY)
    return content


def shown(name: str) -> str:
    """A name without control characters (nor marks that turn text around), its middle left out if it is long."""
    text = "".join(sign for sign in name if unicodedata.category(sign)[0] != "C").strip() or "picture"
    return text if len(text) <= NAME_LENGTH else f"{text[: NAME_LENGTH - 21]}…{text[-20:]}"


def examined(name: str, content: bytes) -> Upload:
    """The upload of a file's content; see `take`."""
    kind = kind_of(content)
    frames, greys = plainly(kind, lambda: {"dicom": of_dicom, "nifti": of_nifti, "picture": of_picture}[kind](content))
    return Upload(name, content, frames, None if greys is None else depth(greys), kind == "dicom")


def kind_of(content: bytes) -> Kind:
    """What `read_image` takes the content for."""
    stream = io.BytesIO(content)
    if is_dicom(stream, ""):
        return "dicom"
    with suppress(OSError, EOFError, zlib.error):  # damaged gzip
        return "picture" if unpacked(stream) is None else "nifti"
    return "picture"


def plainly(kind: Kind, work: Callable[[], T]) -> T:
    """Call `work`; whatever it raises becomes a MedtlError in plain words, and readers that quote headers are quiet."""
    try:
        with QUIET:
            return work()
    except UnreadableImage as error:
        # Those of DICOM and NIfTI hold nothing of a header, but the name of a class in brackets.
        reason = DAMAGED if kind == "picture" else re.sub(r"^(bytes|The file): | \(\w+\)", "", str(error))
    except MedtlError as error:
        reason = str(error)
    except Exception:
        reason = DAMAGED
    raise MedtlError(reason[0].upper() + reason[1:])  # outside `except`: no context that a log could quote


def of_dicom(content: bytes) -> tuple[int, Greys | None]:
    """Frames, and the grey values of the middle one."""
    columns, rows, frames = dicom.sizes(io.BytesIO(content), "The file")
    check_size(columns, rows, frames)
    greys = dicom.greys(io.BytesIO(content), "The file")
    if greys is None:
        check_shades(read_image(content))
    return frames, greys


def of_nifti(content: bytes) -> tuple[int, Greys | None]:
    """Slices, and the grey values of the middle one."""
    if importlib.util.find_spec("nibabel") is None:
        raise MedtlError("NIfTI volumes are not read here. Save a slice as PNG.")
    volume = unpacked(io.BytesIO(content))
    assert volume is not None  # `kind_of` has seen it
    columns, rows, slices, size = nifti.sizes(volume, "The file")
    check_size(columns, rows, slices)
    if size > MAX_VOLUME:
        raise MedtlError(f"The volume is larger than {MAX_VOLUME // 1_000_000} MB when unpacked. Send a part of it.")
    volume.seek(0)
    greys = nifti.greys(volume, "The file")
    if greys is None:
        check_shades(read_image(content))
    return slices, greys


def of_picture(content: bytes) -> tuple[int, Greys | None]:
    """Frames, and the grey values of the first if it has more than 8 bits."""
    if not re.match(MAGIC, content[:16], re.DOTALL):
        head = content[:8192].removeprefix(b"\xef\xbb\xbf")
        raise MedtlError(next((said for begin, said in FOREIGN.items() if re.match(begin, head, re.DOTALL)), UNKNOWN))
    image = opened(content)
    frames = min(count(content) or getattr(image, "n_frames", 1), MAX_FRAMES)
    if image.format != "TIFF" and frames * image.width * image.height > MAX_ANIMATED:
        frames = 1
    if deep(image):
        return frames, Greys.of(np.asarray(image))
    check_shades(read_image(content))
    return frames, None


def opened(content: bytes, frame: int = 0) -> Image.Image:
    """A file of FORMATS at a frame, its size checked, and not yet decoded."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        image.seek(frame)
    except Image.DecompressionBombError as error:  # Pillow's own limit is about 180 million pixels
        raise MedtlError(too_large(MAX_PIXELS)) from error
    check_size(*image.size, 1, MAX_PIXELS // 4 if image.mode in {"I", "F"} else MAX_PIXELS)
    return image


def deep(image: Image.Image) -> bool:
    """Whether a picture has more than 8 bits, as `read_image` sees it."""
    return image.mode.startswith("I") or image.mode == "F"


def too_large(pixels: int) -> str:
    return f"The picture has more than {pixels // 1_000_000} million pixels. Send a smaller one."


def check_size(columns: int, rows: int, frames: int, pixels: int = MAX_PIXELS) -> None:
    """Compare what a header announces with the limits.

    Raises:
        MedtlError: it is too large or too small.
    """
    if columns * rows > pixels:
        raise MedtlError(too_large(pixels))
    if max(columns, rows) > MAX_SIDE:
        raise MedtlError(f"The picture is {columns:,} × {rows:,} pixels; a side may have {MAX_SIDE:,}. Cut it.")
    if min(columns, rows) < MIN_SIDE:
        raise MedtlError(
            f"The picture is only {columns:,} × {rows:,} pixels: there is nothing to see. Send a larger one."
        )
    if frames > MAX_FRAMES:
        raise MedtlError(f"The file has {frames:,} frames; up to {MAX_FRAMES:,} are read. Save one of them.")


def check_shades(picture: Image.Image) -> None:
    """Raise a MedtlError if all pixels of an RGB picture are the same."""
    pixels = np.asarray(picture)
    if (pixels == pixels[0, 0]).all():
        raise MedtlError(CONSTANT)


def depth(greys: Greys) -> Depth:
    """Window at first and presets; those without a width are left out.

    Raises:
        MedtlError: no pixel has a finite value, or all have the same.
    """
    if not np.isfinite([greys.low, greys.high]).all():
        raise MedtlError("No pixel has a finite value. Export the picture again.")
    if greys.low == greys.high:
        raise MedtlError(CONSTANT)
    own = {"as stored in the file": greys.window} if greys.window else {}
    whole = (greys.low, greys.high)
    others = CT if greys.unit == "HU" else {"percentiles 0.5 to 99.5": greys.percentiles, "full range": whole}
    presets = {name: (low, high) for name, (low, high) in (own | others).items() if low < high}
    first = greys.window or greys.percentiles
    return Depth(*whole, first if first[0] < first[1] else whole, greys.unit, presets)


@dataclass(frozen=True)
class Refusal:
    """A file that gives no picture, and why, in words for a person. The name is shown as that of an `Upload`."""

    name: str = field(repr=False)
    reason: str


def unpack(path: str | Path, remove: bool = True, name: str = "") -> Iterator[Upload | Refusal]:
    """The pictures in an uploaded zip, or the one that a file is, one at a time; nothing is written to disk.

    What can't be read is a Refusal, and the others go on. Never raises.

    Args:
        path: the file; it is read, and removed, at once, before the first picture is asked for.
        remove, name: as in `take`.
    """
    path = Path(path)
    name = shown(name or path.name)
    try:
        content = fetched(path, MAX_ARCHIVE, remove)
    except MedtlError as error:
        return iter([Refusal(name, str(error))])
    if content[:2] == b"PK" and kind_of(content) == "picture":
        return (
            Refusal(shown(entry) if entry else name, problem) if problem else attempt(shown(entry), inside)
            for entry, inside, problem in entries(content, MAX_BYTES)
        )
    return iter([attempt(name, content)])


def attempt(name: str, content: bytes) -> Upload | Refusal:
    """`examined`, its error as a Refusal."""
    try:
        if len(content) > MAX_BYTES:
            raise MedtlError(too_long(MAX_BYTES))
        return examined(name, content)
    except MedtlError as error:
        return Refusal(name, str(error))
