"""DICOM reader: one frame as an 8-bit RGB image. No header text leaves this module, not even in errors."""

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

from hf_medtl.data.pixels import MAX_PIXELS, GreyRange, apply_window, map_in_blocks, percentiles
from hf_medtl.errors import UnreadableImage

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

logger = logging.getLogger(__name__)
T = TypeVar("T")

MAX_SAMPLES = 75_000_000  # pixels × channels of a frame: JPEG 2000 decoding needs eight bytes for each
MAX_INFLATED = 256 << 20  # bytes of a deflated data set
MONOCHROME = {"MONOCHROME1", "MONOCHROME2"}
DEFLATED, EXPLICIT = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"
# Only these tags are parsed: a patient's name that was never read can't leak.
PALETTE = [f"{c}PaletteColorLookupTable{part}" for c in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")]
TAGS = [
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("Modality", "RescaleType"),  # codes that are only compared
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *PALETTE,
    *(f"Segmented{keyword}" for keyword in PALETTE if keyword.endswith("Data")),
]


def read(
    stream: BinaryIO, name: str, window: tuple[float, float] | None = None, frame: int | None = None
) -> Image.Image:
    """Read one frame as displayed: modality LUT, VOI window, MONOCHROME1 inverted, colour as RGB.

    A grey frame is windowed by `window`, else by the file's VOI LUT or first window, else, with more than 8 bits, to
    the 0.5th and 99.5th percentile of its pixels without padding; 8 bits without a window are unchanged. Follows DICOM
    PS3.3 C.7.6.3 and C.11; pixels are decoded by pydicom and pylibjpeg.

    Args:
        stream: The file.
        name: Name of the file in errors.
        window: Values (low, high) mapped to 0 and 255, in units after rescaling (Hounsfield for CT).
        frame: Frame number, from 0; by default the middle one.

    Raises:
        UnreadableImage: The file has no pixels, is damaged, too large, or has no such frame. The message contains no
            text from the header, and the error has no cause, because pydicom's exceptions quote values.
    """
    return _without_header_text(name, lambda: _read(stream, name, window, frame))


def read_dimensions(stream: BinaryIO, name: str) -> tuple[int, int, int]:
    """Return the columns, rows and frames that the header declares, for stricter limits than those of `read`.

    Args:
        stream: The file.
        name: Name of the file in errors.

    Raises:
        UnreadableImage: The file has no pixels or a damaged header; without header text, as for `read`.
    """

    def read_header() -> tuple[int, int, int]:
        file = _open(stream, name)
        return int(file.header.Columns), int(file.header.Rows), file.frames

    return _without_header_text(name, read_header)


def read_grey_range(stream: BinaryIO, name: str, frame: int | None = None) -> GreyRange | None:
    """Return the range of grey values, window and unit of one frame; None for colour or 8-bit frames.

    Args:
        stream: The file.
        name: Name of the file in errors.
        frame: As for `read`.

    Raises:
        UnreadableImage: As for `read`.
    """
    return _without_header_text(name, lambda: _grey_range(stream, name, frame))


def _without_header_text(name: str, work: Callable[[], T]) -> T:
    """Call `work`, converting exceptions to UnreadableImage without text from the header."""
    try:
        return work()
    except UnreadableImage as error:
        reason = str(error)
    except Exception as error:
        reason = f"{name}: the DICOM file can't be decoded ({type(error).__name__}). Export the image again."
    raise UnreadableImage(reason)  # outside `except`: no context whose text could be printed


@dataclass(frozen=True)
class _OpenedFile:
    """DICOM file with its header parsed and its stream at the start of the pixels."""

    header: "Dataset"
    stream: BinaryIO
    syntax: "UID"
    options: dict[str, Any]
    frames: int
    available: int  # bytes of pixels and anything after them


def _open(stream: BinaryIO, name: str) -> _OpenedFile:
    """Parse the header."""
    from pydicom import dcmread
    from pydicom.pixels.utils import as_pixel_options
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    stream = inflate(stream, name)
    size = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    header: Dataset = dcmread(stream, force=True, stop_before_pixels=True, specific_tags=TAGS, defer_size=64 << 20)
    implicit, little = (bool(flag) for flag in header.original_encoding)
    guess = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    syntax = UID(header.file_meta.get("TransferSyntaxUID") or guess)

    keyword = _seek_pixels(stream, little)
    if keyword is None:
        raise UnreadableImage(f"{name}: DICOM without pixels, such as a report or a DICOMDIR. Remove it.")
    options: dict[str, Any] = {
        **as_pixel_options(header),
        "transfer_syntax_uid": syntax,
        "pixel_keyword": keyword,
        "pixel_vr": "OW",
    }
    frames = int(options["number_of_frames"])
    return _OpenedFile(header, stream, syntax, options, frames, size - stream.tell())


def _decode(file: _OpenedFile, name: str, frame: int | None) -> tuple[NDArray[Any], str, "Dataset"]:
    """Return the stored values of a frame (default: the middle one), photometric interpretation and frame header."""
    from pydicom.pixels import get_decoder

    frames = file.frames
    _check_size(name, file.header, frames, file.available, file.syntax.is_encapsulated)
    if frame is None:
        frame = frames // 2
        if frames > 1:
            logger.info("%s: reading frame %d of 0 to %d, the middle one.", name, frame, frames - 1)
    if not 0 <= frame < frames:
        raise UnreadableImage(f"{name}: there is no frame {frame}. Choose one from 0 to {frames - 1}.")
    if file.syntax.is_encapsulated:
        _check_compressed_frame(name, file.header, file.stream, frame, file.options)
    pixels, properties = get_decoder(file.syntax).as_array(file.stream, index=frame, **file.options)
    return pixels, str(properties["photometric_interpretation"]), _frame_header(file.header, frame)


def _grey_range(stream: BinaryIO, name: str, frame: int | None) -> GreyRange | None:
    from pydicom.pixels import apply_modality_lut

    pixels, kind, header = _decode(_open(stream, name), name, frame)
    mapped, bits = bool(header.get("ModalityLUTSequence")), int(header.get("BitsStored") or 64)
    if kind not in MONOCHROME or pixels.ndim != 2 or (bits <= 8 and not mapped):
        return None
    slope, intercept = (1.0, 0.0) if mapped else _rescaling(header)
    values = _without_padding(pixels, header)
    return GreyRange.from_pixels(
        apply_modality_lut(values, header) if mapped else values,
        scaled=lambda value: value * slope + intercept,
        window=None if header.get("VOILUTSequence") else _header_window(header),
        # PS3.3 C.8.2.1: the rescaled values of a CT are Hounsfield units unless stated otherwise.
        unit="HU"
        if header.get("RescaleType") == "HU"
        or (header.get("Modality") == "CT" and not header.get("RescaleType") and "RescaleIntercept" in header)
        else "",
    )


def _read(stream: BinaryIO, name: str, window: tuple[float, float] | None, frame: int | None) -> Image.Image:
    from pydicom.pixels import apply_color_lut

    pixels, kind, header = _decode(_open(stream, name), name, frame)
    if kind in MONOCHROME and pixels.ndim == 2:
        return Image.fromarray(_to_shades(pixels, header, window)).convert("RGB")
    bits = int(header.BitsStored)
    if kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, header)[..., :3]
        bits = 8 * pixels.dtype.itemsize
    elif kind != "RGB":
        raise UnreadableImage(f"{name}: unsupported DICOM colour space. Export the image as RGB.")
    return Image.fromarray(np.ascontiguousarray(apply_window(pixels, (0, 2**bits - 1))))


def _to_shades(pixels: NDArray[Any], header: "Dataset", window: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Map stored values (H, W) to shades 0..255 (H, W); `window` as for `read`."""
    from pydicom.pixels import apply_modality_lut, apply_voi

    slope, intercept = _rescaling(header)
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    if window is None and header.get("VOILUTSequence"):
        full = 2 ** int(header.VOILUTSequence[0].LUTDescriptor[2]) - 1
        shades = map_in_blocks(pixels, lambda block: apply_voi(apply_modality_lut(block, header), header) / full)
        return 255 - shades if inverted else shades

    unpadded = _without_padding(pixels, header)
    mapped = bool(header.get("ModalityLUTSequence"))
    if mapped:
        pixels, unpadded = (apply_modality_lut(values, header) for values in (pixels, unpadded))
        slope, intercept = 1.0, 0.0
    if window is None and header.get("VOILUTFunction") == "SIGMOID":
        centre, width = _first_number(header.get("WindowCenter")), _first_number(header.get("WindowWidth"))
        if centre is not None and width:
            shades = map_in_blocks(pixels, lambda block: expit(4 * (block * slope + intercept - centre) / width))
            return 255 - shades if inverted else shades
    window = window or _header_window(header)
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


def _rescaling(header: "Dataset") -> tuple[float, float]:
    """Return the slope and intercept from stored values to units; (1, 0) if missing."""
    slope, intercept = float(header.get("RescaleSlope") or 1), float(header.get("RescaleIntercept") or 0)
    return (slope, intercept) if np.isfinite([slope, intercept]).all() else (1.0, 0.0)


def _without_padding(pixels: NDArray[Any], header: "Dataset") -> NDArray[Any]:
    """Return the stored values that are not padding, or all values if all are padding."""
    padding = header.get("PixelPaddingValue")
    unpadded = pixels[pixels != padding] if isinstance(padding, int) else pixels
    return unpadded if unpadded.size else pixels


def _header_window(header: "Dataset") -> tuple[float, float] | None:
    """Return (low, high) of the header's first linear window in rescaled units; None without a valid one."""
    centre, width = _first_number(header.get("WindowCenter")), _first_number(header.get("WindowWidth"))
    if centre is None or width is None or width <= 0:
        return None
    # PS3.3 C.11.2.1.2: LINEAR, the default, spans `width - 1` around `centre - 0.5`, and is undefined below 1.
    if header.get("VOILUTFunction") == "LINEAR_EXACT" or width <= 1:
        return centre - width / 2, centre + width / 2
    return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2


def _first_number(value: Any) -> float | None:
    """Return the first number of an element; None if it is missing or not finite."""
    values = np.atleast_1d(np.asarray([] if value is None or value == "" else value, dtype=np.float64))
    return float(values[0]) if values.size and np.isfinite(values[0]) else None


def _frame_header(header: "Dataset", frame: int) -> "Dataset":
    """Return the header with the rescaling and window of one frame, which enhanced objects keep in sequences."""
    each, shared = header.get("PerFrameFunctionalGroupsSequence"), header.get("SharedFunctionalGroupsSequence")
    for groups in (shared[0] if shared else None, each[frame] if each and frame < len(each) else None):
        for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in list(groups.get(macro) or [])[:1] if groups is not None else []:
                header.update(item)
    return header


def inflate(stream: BinaryIO, name: str) -> BinaryIO:
    """Return the stream with a deflated data set inflated up to a limit; pydicom itself has no limit.

    Args:
        stream: The file.
        name: Name of the file in errors.

    Raises:
        UnreadableImage: Damaged header, or more than MAX_INFLATED bytes.
    """
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


def _seek_pixels(stream: BinaryIO, little: bool) -> str | None:
    """Move from the pixel element's tag, where pydicom stops, to its value; return its keyword, or None if missing."""
    tag = stream.read(12)
    if len(tag) < 8:
        return None
    if tag[4:6] not in {b"OB", b"OW", b"OF", b"OD", b"UN"}:  # implicit, whatever the header declares: four bytes less
        stream.seek(8 - len(tag), io.SEEK_CUR)
    keywords = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
    group, element = struct.unpack("<HH" if little else ">HH", tag[:4])
    return keywords.get(group << 16 | element)


def _check_size(name: str, header: "Dataset", frames: int, available: int, encapsulated: bool) -> None:
    """Check the declared size against the limits and the bytes available, before decoding.

    Raises:
        UnreadableImage: Too large, impossible, or more than the file contains.
    """
    rows, columns, samples = int(header.Rows), int(header.Columns), int(header.SamplesPerPixel)
    if rows * columns > MAX_PIXELS or rows * columns * samples > MAX_SAMPLES:
        raise UnreadableImage(
            f"{name}: {columns} × {rows} pixels × {samples} channels, more than the limit of {MAX_SAMPLES:,} "
            "values. Downscale the file, or remove it from the data folder."
        )
    bits = rows * columns * samples * int(header.BitsAllocated)
    if min(rows, columns, samples, frames, bits) < 1 or bits > 32 * MAX_SAMPLES:
        raise UnreadableImage(f"{name}: the DICOM header declares an impossible size.")
    if header.get("PhotometricInterpretation") == "YBR_FULL_422":
        bits = bits * 2 // 3  # two of three chroma samples are left out
    needed = 8 * frames if encapsulated else bits * frames // 8
    if needed > available:
        raise UnreadableImage(
            f"{name}: its header declares {frames} frame(s) of {columns} × {rows} pixels, which need at least "
            f"{needed:,} bytes, but the file has {available:,}. It is damaged: download it again."
        )


def _check_compressed_frame(
    name: str, header: "Dataset", stream: BinaryIO, frame: int, options: dict[str, Any]
) -> None:
    """Check the size in a compressed frame's own header, which decoders trust, against that in the DICOM header.

    Raises:
        UnreadableImage: They differ, or run-length encoded data are longer than the frame.
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
        fits = len(code) * 64 < MAX_SAMPLES or _rle_length(code, 2 * length) <= 2 * length
    else:
        fits = compressed_size(code) == (rows, columns, samples)
    if not fits:
        raise UnreadableImage(f"{name}: the DICOM header and the compressed image differ in size. The file is damaged.")


def compressed_size(code: bytes) -> tuple[int, int, int] | None:
    """Return (rows, columns, channels) from the frame header of JPEG or JPEG-LS, or the SIZ segment of JPEG 2000."""
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


def _rle_length(code: bytes, limit: int) -> int:
    """Return the decoded length of run-length encoded data (PackBits), counted until it exceeds `limit`."""
    at, length = 64, 0
    while at < len(code) and length <= limit:
        control = code[at]
        length += control + 1 if control < 128 else 257 - control
        at += control + 2 if control < 128 else 2
    return length
