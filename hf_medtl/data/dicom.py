"""DICOM -> an 8-bit RGB picture. Nothing else of the header leaves this file, not even in an error."""

import io
import logging
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.special import expit

from hf_medtl.data.pixels import MAX_PIXELS, Greys, apply_window, in_blocks, percentiles
from hf_medtl.errors import UnreadableImage

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_SAMPLES = 75_000_000  # pixels × channels of a frame: JPEG 2000 is decoded with eight bytes for each
MAX_INFLATED = 256 << 20  # bytes of a deflated data set
MONOCHROME = {"MONOCHROME1", "MONOCHROME2"}
DEFLATED, EXPLICIT = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"
# Only these are parsed: a patient's name that was never read can't leak.
PALETTE = [f"{c}PaletteColorLookupTable{part}" for c in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")]
TAGS = [
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("Modality", "RescaleType"),  # codes, and only compared
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *PALETTE,
    *(f"Segmented{keyword}" for keyword in PALETTE if keyword.endswith("Data")),
]


def read(
    stream: BinaryIO, name: str, window: tuple[float, float] | None = None, frame: int | None = None
) -> Image.Image:
    """Read one frame as it would be shown: modality LUT, VOI window, MONOCHROME1 inverted, colour as RGB.

    A grey frame is shown in `window`, else with the file's VOI LUT or first window, else, with more than 8 bits,
    between the 0.5th and 99.5th percentile of its pixels, padding left out; 8 bits without a window stay as they are.
    Follows DICOM PS3.3 C.7.6.3 and C.11; pixels are decoded by pydicom and pylibjpeg.

    Args:
        stream: the file.
        name: what errors call it.
        window: values (low, high) that become 0 and 255, in units after rescaling (Hounsfield for CT).
        frame: from 0; by default the middle one.

    Raises:
        UnreadableImage: the file has no pixels, is damaged, too large, or has no such frame. The message holds no text
            from the header, and the error no cause, because pydicom's exceptions quote values.
    """
    return careful(name, lambda: _read(stream, name, window, frame))


def sizes(stream: BinaryIO, name: str) -> tuple[int, int, int]:
    """Columns, rows and frames that the header announces, for a limit tighter than that of `read`.

    Raises:
        UnreadableImage: the file has no pixels, or a damaged header; no text from it, as in `read`.
    """

    def announced() -> tuple[int, int, int]:
        file = opened(stream, name)
        return int(file.header.Columns), int(file.header.Rows), file.frames

    return careful(name, announced)


def greys(stream: BinaryIO, name: str, frame: int | None = None) -> Greys | None:
    """Lowest and highest grey value, window and unit of one frame; None for a frame in colour or of 8 bits.

    Raises:
        UnreadableImage: as `read` does.
    """
    return careful(name, lambda: _greys(stream, name, frame))


def careful(name: str, work: Callable[[], T]) -> T:
    """Call `work`; what it raises becomes an UnreadableImage without text of the header."""
    try:
        return work()
    except UnreadableImage as error:
        reason = str(error)
    except Exception as error:
        reason = f"{name}: DICOM that can't be decoded ({type(error).__name__}). Export the picture again."
    raise UnreadableImage(reason)  # outside `except`: no context whose text could be printed


@dataclass(frozen=True)
class Opened:
    """A file whose header is read, and whose stream is where its pixels begin."""

    header: "Dataset"
    stream: BinaryIO
    syntax: "UID"
    options: dict[str, Any]
    frames: int
    there: int  # bytes of pixels and what is behind them


def opened(stream: BinaryIO, name: str) -> Opened:
    """Read the header."""
    from pydicom import dcmread
    from pydicom.pixels.utils import as_pixel_options
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    stream = inflated(stream, name)
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    header: Dataset = dcmread(stream, force=True, stop_before_pixels=True, specific_tags=TAGS, defer_size=64 << 20)
    implicit, little = (bool(flag) for flag in header.original_encoding)
    guess = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    syntax = UID(header.file_meta.get("TransferSyntaxUID") or guess)

    keyword = at_pixels(stream, little)
    if keyword is None:
        raise UnreadableImage(f"{name}: DICOM without pixels, such as a report or a folder's index. Leave it out.")
    options: dict[str, Any] = {
        **as_pixel_options(header),
        "transfer_syntax_uid": syntax,
        "pixel_keyword": keyword,
        "pixel_vr": "OW",
    }
    frames = int(options["number_of_frames"])
    return Opened(header, stream, syntax, options, frames, size - stream.tell())


def decoded(file: Opened, name: str, frame: int | None) -> tuple[NDArray[Any], str, "Dataset"]:
    """Stored values of a frame, by default the middle one, their photometric interpretation, and its header."""
    from pydicom.pixels import get_decoder

    frames = file.frames
    check_size(name, file.header, frames, file.there, file.syntax.is_encapsulated)
    if frame is None:
        frame = frames // 2
        if frames > 1:
            logger.info("%s: frame %d of 0 to %d is read, the middle one.", name, frame, frames - 1)
    if not 0 <= frame < frames:
        raise UnreadableImage(f"{name}: there is no frame {frame}. Choose one of 0 to {frames - 1}.")
    if file.syntax.is_encapsulated:
        check_code(name, file.header, file.stream, frame, file.options)
    pixels, found = get_decoder(file.syntax).as_array(file.stream, index=frame, **file.options)
    return pixels, str(found["photometric_interpretation"]), of_frame(file.header, frame)


def _greys(stream: BinaryIO, name: str, frame: int | None) -> Greys | None:
    from pydicom.pixels import apply_modality_lut

    pixels, kind, header = decoded(opened(stream, name), name, frame)
    mapped, bits = bool(header.get("ModalityLUTSequence")), int(header.get("BitsStored") or 64)
    if kind not in MONOCHROME or pixels.ndim != 2 or (bits <= 8 and not mapped):
        return None
    slope, intercept = (1.0, 0.0) if mapped else rescaling(header)
    values = without_padding(pixels, header)
    return Greys.of(
        apply_modality_lut(values, header) if mapped else values,
        scaled=lambda value: value * slope + intercept,
        window=None if header.get("VOILUTSequence") else own_window(header),
        # PS3.3 C.8.2.1: the rescaled values of a CT are Hounsfield units unless it says otherwise.
        unit="HU"
        if header.get("RescaleType") == "HU"
        or (header.get("Modality") == "CT" and not header.get("RescaleType") and "RescaleIntercept" in header)
        else "",
    )


def _read(stream: BinaryIO, name: str, window: tuple[float, float] | None, frame: int | None) -> Image.Image:
    from pydicom.pixels import apply_color_lut

    pixels, kind, header = decoded(opened(stream, name), name, frame)
    if kind in MONOCHROME and pixels.ndim == 2:
        return Image.fromarray(grey(pixels, header, window)).convert("RGB")
    bits = int(header.BitsStored)
    if kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, header)[..., :3]
        bits = 8 * pixels.dtype.itemsize
    elif kind != "RGB":
        raise UnreadableImage(f"{name}: DICOM in a colour space that is not read. Export it as RGB.")
    return Image.fromarray(np.ascontiguousarray(apply_window(pixels, (0, 2**bits - 1))))


def grey(pixels: NDArray[Any], header: "Dataset", window: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Stored values (H, W) -> shades 0..255 (H, W); `window` as in `read`."""
    from pydicom.pixels import apply_modality_lut, apply_voi

    slope, intercept = rescaling(header)
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    if window is None and header.get("VOILUTSequence"):
        full = 2 ** int(header.VOILUTSequence[0].LUTDescriptor[2]) - 1
        shades = in_blocks(pixels, lambda block: apply_voi(apply_modality_lut(block, header), header) / full)
        return 255 - shades if inverted else shades

    unpadded = without_padding(pixels, header)
    mapped = bool(header.get("ModalityLUTSequence"))
    if mapped:
        pixels, unpadded = (apply_modality_lut(values, header) for values in (pixels, unpadded))
        slope, intercept = 1.0, 0.0
    if window is None and header.get("VOILUTFunction") == "SIGMOID":
        centre, width = first(header.get("WindowCenter")), first(header.get("WindowWidth"))
        if centre is not None and width:
            shades = in_blocks(pixels, lambda block: expit(4 * (block * slope + intercept - centre) / width))
            return 255 - shades if inverted else shades
    window = window or own_window(header)
    bits = int(header.get("BitsStored") or 64)
    if window is not None:
        low, high = ((value - intercept) / slope for value in window)
    elif bits <= 8 and not mapped:
        low = -(2 ** (bits - 1)) if header.get("PixelRepresentation") else 0
        high = low + 2**bits - 1
    else:
        low, high = percentiles(unpadded)
    if window is None and slope < 0:
        low, high = high, low
    shades = apply_window(pixels, (min(low, high), max(low, high)))
    return 255 - shades if inverted != (low > high) else shades


def rescaling(header: "Dataset") -> tuple[float, float]:
    """Slope and intercept from stored values to units; (1, 0) without."""
    slope, intercept = float(header.get("RescaleSlope") or 1), float(header.get("RescaleIntercept") or 0)
    return (slope, intercept) if np.isfinite([slope, intercept]).all() else (1.0, 0.0)


def without_padding(pixels: NDArray[Any], header: "Dataset") -> NDArray[Any]:
    """Stored values that are no padding; all of them if all are."""
    padding = header.get("PixelPaddingValue")
    unpadded = pixels[pixels != padding] if isinstance(padding, int) else pixels
    return unpadded if unpadded.size else pixels


def own_window(header: "Dataset") -> tuple[float, float] | None:
    """(low, high) of the header's first linear window, in rescaled units; None without a valid one."""
    centre, width = first(header.get("WindowCenter")), first(header.get("WindowWidth"))
    if centre is None or width is None or width <= 0:
        return None
    # PS3.3 C.11.2.1.2: LINEAR, the default, spans `width - 1` around `centre - 0.5`, and is not defined below 1.
    if header.get("VOILUTFunction") == "LINEAR_EXACT" or width <= 1:
        return centre - width / 2, centre + width / 2
    return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2


def first(value: Any) -> float | None:
    """The first of one or several numbers of an element; None if there are none, or it is not finite."""
    values = np.atleast_1d(np.asarray([] if value is None or value == "" else value, dtype=np.float64))
    return float(values[0]) if values.size and np.isfinite(values[0]) else None


def of_frame(header: "Dataset", frame: int) -> "Dataset":
    """The header with rescaling and window of one frame, which enhanced objects keep in sequences."""
    each, shared = header.get("PerFrameFunctionalGroupsSequence"), header.get("SharedFunctionalGroupsSequence")
    for groups in (shared[0] if shared else None, each[frame] if each and frame < len(each) else None):
        for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in list(groups.get(macro) or [])[:1] if groups is not None else []:
                header.update(item)
    return header


def inflated(stream: BinaryIO, name: str) -> BinaryIO:
    """The stream, its data set inflated if it is deflated: pydicom itself would inflate without bound."""
    head = stream.read(1 << 16)
    deflated = re.search(rb"\x02\0\x10\0.{4}" + re.escape(DEFLATED), head, re.DOTALL)  # (0002,0010)
    if not deflated:
        return stream
    start = 144 + struct.unpack("<L", head[140:144])[0] if head[128:136] == b"DICM\x02\0\0\0" else 0
    if not deflated.end() <= start <= len(head):
        raise UnreadableImage(f"{name}: deflated DICOM with a damaged header.")
    stream.seek(start)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    content = inflater.decompress(stream.read(MAX_INFLATED), MAX_INFLATED)
    if inflater.unconsumed_tail:
        raise UnreadableImage(f"{name}: deflated DICOM of more than {MAX_INFLATED >> 20} MiB. Save it uncompressed.")
    return io.BytesIO(head[:start].replace(DEFLATED, EXPLICIT) + content)


def at_pixels(stream: BinaryIO, little: bool) -> str | None:
    """Move from the pixel element's tag, where pydicom stops, to its value; its keyword, or None at the file's end."""
    tag = stream.read(12)
    if len(tag) < 8:
        return None
    if tag[4:6] not in {b"OB", b"OW", b"OF", b"OD", b"UN"}:  # implicit, whatever the header says: four bytes less
        stream.seek(8 - len(tag), io.SEEK_CUR)
    keywords = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
    group, element = struct.unpack("<HH" if little else ">HH", tag[:4])
    return keywords.get(group << 16 | element)


def check_size(name: str, header: "Dataset", frames: int, there: int, encapsulated: bool) -> None:
    """Compare what the header announces with what may be opened and with the bytes there are, before any is decoded.

    Raises:
        UnreadableImage: they don't fit.
    """
    rows, columns, samples = int(header.Rows), int(header.Columns), int(header.SamplesPerPixel)
    if rows * columns > MAX_PIXELS or rows * columns * samples > MAX_SAMPLES:
        raise UnreadableImage(
            f"{name}: {columns} × {rows} pixels × {samples} channels, more than the {MAX_SAMPLES:,} values that are "
            "opened. Shrink the file, or take it out of the data folder."
        )
    bits = rows * columns * samples * int(header.BitsAllocated)
    if min(rows, columns, samples, frames, bits) < 1 or bits > 32 * MAX_SAMPLES:
        raise UnreadableImage(f"{name}: DICOM whose header announces an impossible size.")
    if header.get("PhotometricInterpretation") == "YBR_FULL_422":
        bits = bits * 2 // 3  # two of three chroma samples are left out
    needed = 8 * frames if encapsulated else bits * frames // 8
    if needed > there:
        raise UnreadableImage(
            f"{name}: its header announces {frames} frame(s) of {columns} × {rows} pixels, which need at least "
            f"{needed:,} bytes, but {there:,} are there. The file is damaged: fetch it again."
        )


def check_code(name: str, header: "Dataset", stream: BinaryIO, frame: int, options: dict[str, Any]) -> None:
    """Compare the size in a compressed frame's own header with that of the DICOM header: decoders trust the former.

    Raises:
        UnreadableImage: they differ, or run-length code becomes longer than the frame.
    """
    from pydicom.encaps import get_frame
    from pydicom.uid import RLELossless

    start = stream.tell()
    code = get_frame(
        stream,
        frame,
        number_of_frames=options["number_of_frames"],
        extended_offsets=options.get("extended_offsets"),
    )
    stream.seek(start)
    rows, columns, samples = int(header.Rows), int(header.Columns), int(header.SamplesPerPixel)
    if options["transfer_syntax_uid"] == RLELossless:
        length = rows * columns * samples * int(header.BitsAllocated) // 8
        fits = len(code) * 64 < MAX_SAMPLES or run_length(code, 2 * length) <= 2 * length
    else:
        fits = code_size(code) == (rows, columns, samples)
    if not fits:
        raise UnreadableImage(f"{name}: DICOM whose header and compressed picture differ in size. It is damaged.")


def code_size(code: bytes) -> tuple[int, int, int] | None:
    """(rows, columns, channels) from the frame header of JPEG or JPEG-LS, or the SIZ segment of JPEG 2000."""
    siz = code.find(b"\xff\x4f\xff\x51", 0, 4096)  # not at 0 where a JP2 box wraps the code
    if siz >= 0:
        right, bottom, left, top = struct.unpack(">4L", code[siz + 8 : siz + 24])
        return bottom - top, right - left, struct.unpack(">H", code[siz + 40 : siz + 42])[0]
    at = 2
    while code[:2] == b"\xff\xd8" and at + 10 <= len(code) and code[at] == 0xFF:
        marker = code[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in {0xC4, 0xC8, 0xCC}):
            return struct.unpack(">HHB", code[at + 5 : at + 10])
        else:
            at += 2 + struct.unpack(">H", code[at + 2 : at + 4])[0]
    return None


def run_length(code: bytes, limit: int) -> int:
    """Bytes that run-length code (PackBits) becomes, counted until they exceed `limit`."""
    at, length = 64, 0
    while at < len(code) and length <= limit:
        control = code[at]
        length += control + 1 if control < 128 else 257 - control
        at += control + 2 if control < 128 else 2
    return length
