"""DICOM reader: one frame as an 8-bit RGB image. No header text leaves this module, not even in errors."""

import io
import logging
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.special import expit

from hf_medtl.data.dicom_checks import check_compressed_frame, check_decoder, check_size, inflate
from hf_medtl.data.dicom_tables import apply_palette, apply_table
from hf_medtl.data.header_privacy import without_header_text
from hf_medtl.data.pixels import GreyRange, apply_window, map_in_blocks, percentiles
from hf_medtl.errors import UnreadableImage

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

logger = logging.getLogger(__name__)

MONOCHROME = {"MONOCHROME1", "MONOCHROME2"}
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


@without_header_text("DICOM file", "image")
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
    pixels, kind, header = _decode(_open(stream, name), name, frame)
    if kind in MONOCHROME and pixels.ndim == 2:
        return Image.fromarray(_to_shades(pixels, header, window)).convert("RGB")
    bits = int(header.BitsStored)
    if kind == "PALETTE COLOR":
        pixels, bits = apply_palette(pixels, header)
    elif kind != "RGB":
        raise UnreadableImage(f"{name}: unsupported DICOM colour space. Export the image as RGB.")
    return Image.fromarray(np.ascontiguousarray(apply_window(pixels, (0, 2**bits - 1))))


@without_header_text("DICOM file", "image")
def read_dimensions(stream: BinaryIO, name: str) -> tuple[int, int, int]:
    """Return the columns, rows and frames that the header declares, for stricter limits than those of `read`.

    Args:
        stream: The file.
        name: Name of the file in errors.

    Raises:
        UnreadableImage: The file has no pixels or a damaged header; without header text, as for `read`.
    """
    file = _open(stream, name)
    return int(file.header.Columns), int(file.header.Rows), file.frames


@without_header_text("DICOM file", "image")
def read_grey_range(stream: BinaryIO, name: str) -> GreyRange | None:
    """Return the range of grey values, window and unit of the middle frame; None for colour or 8-bit frames.

    Args:
        stream: The file.
        name: Name of the file in errors.

    Raises:
        UnreadableImage: As for `read`.
    """
    pixels, kind, header = _decode(_open(stream, name), name, None)
    mapped, bits = bool(header.get("ModalityLUTSequence")), int(header.get("BitsStored") or 64)
    if kind not in MONOCHROME or pixels.ndim != 2 or (bits <= 8 and not mapped):
        return None
    slope, intercept = (1.0, 0.0) if mapped else _rescaling(header)
    values = _without_padding(pixels, header)
    return GreyRange.from_pixels(
        _apply_modality(values, header),
        scaled=lambda value: value * slope + intercept,
        window=None if header.get("VOILUTSequence") else _header_window(header),
        # PS3.3 C.8.2.1: the rescaled values of a CT are Hounsfield units unless stated otherwise.
        unit="HU"
        if header.get("RescaleType") == "HU"
        or (header.get("Modality") == "CT" and not header.get("RescaleType") and "RescaleIntercept" in header)
        else "",
    )


@dataclass(frozen=True)
class _OpenedFile:
    """DICOM file with its header parsed and its stream at the start of the pixels."""

    header: "Dataset"
    stream: BinaryIO
    syntax: "UID"
    options: dict[str, Any]
    frames: int
    available: int  # bytes of pixels and anything after them
    shift: int  # unused bits below the stored ones, as in old files; pydicom knows only those above


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

    if not syntax.is_transfer_syntax:
        raise UnreadableImage(f"{name}: DICOM with an unknown compression can't be read. Save it uncompressed.")

    keyword, representation = _seek_pixels(stream, little)
    if keyword is None:
        raise UnreadableImage(f"{name}: DICOM without pixels, such as a report or a DICOMDIR. Remove it.")
    options: dict[str, Any] = {
        **as_pixel_options(header),
        "transfer_syntax_uid": syntax,
        "pixel_keyword": keyword,
        "pixel_vr": representation,  # in a big-endian file, the bytes of OW are swapped and those of OB are not
    }
    shift = int(header.get("HighBit", 0)) + 1 - int(header.get("BitsStored", 0))
    if (
        not 0 < shift <= int(header.get("BitsAllocated", 0)) - int(header.get("BitsStored", 0))
        or syntax.is_encapsulated
    ):
        shift = 0
    else:
        options["bits_stored"] += shift
    frames = int(options["number_of_frames"])
    return _OpenedFile(header, stream, syntax, options, frames, size - stream.tell(), shift)


def _decode(file: _OpenedFile, name: str, frame: int | None) -> tuple[NDArray[Any], str, "Dataset"]:
    """Return the stored values of a frame (default: the middle one), photometric interpretation and frame header."""
    from pydicom.pixels import get_decoder

    frames = file.frames
    check_size(name, file.header, frames, file.available, file.syntax.is_encapsulated)
    if frame is None:
        frame = frames // 2
        if frames > 1:
            logger.info("%s: reading frame %d of 0 to %d, the middle one.", name, frame, frames - 1)
    if not 0 <= frame < frames:
        raise UnreadableImage(f"{name}: there is no frame {frame}. Choose one from 0 to {frames - 1}.")
    check_decoder(name, file.syntax)
    if file.syntax.is_encapsulated:
        check_compressed_frame(name, file.header, file.stream, frame, file.options)
    try:
        pixels, properties = get_decoder(file.syntax).as_array(file.stream, index=frame, **file.options)
    except Exception:
        check_decoder(name, file.syntax, failed=True)
        raise
    pixels = pixels >> file.shift if file.shift else pixels
    return pixels, str(properties["photometric_interpretation"]), _frame_header(file.header, frame)


def _to_shades(pixels: NDArray[Any], header: "Dataset", window: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Map stored values (H, W) to shades 0..255 (H, W); `window` as for `read`."""
    slope, intercept = _rescaling(header)
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    if window is None and header.get("VOILUTSequence"):
        item, little = header.VOILUTSequence[0], bool(header.original_encoding[1])
        full = 2 ** int(item.LUTDescriptor[2]) - 1

        def rescale(block: NDArray[Any]) -> NDArray[Any]:
            return _apply_modality(block, header) if header.get("ModalityLUTSequence") else block * slope + intercept

        shades = map_in_blocks(pixels, lambda block: apply_table(rescale(block), item, little) / full)
        return 255 - shades if inverted else shades

    unpadded = _without_padding(pixels, header)
    mapped = bool(header.get("ModalityLUTSequence"))
    if mapped:
        pixels, unpadded = (_apply_modality(values, header) for values in (pixels, unpadded))
        slope, intercept = 1.0, 0.0
    if window is None and header.get("VOILUTFunction") == "SIGMOID":
        centre, width = _centre_and_width(header)
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


def _apply_modality(pixels: NDArray[Any], header: "Dataset") -> NDArray[Any]:
    """Return stored values after the modality LUT, if there is one."""
    sequence = header.get("ModalityLUTSequence")
    return apply_table(pixels, sequence[0], bool(header.original_encoding[1])) if sequence else pixels


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
    centre, width = _centre_and_width(header)
    if centre is None or width is None or width <= 0:
        return None
    # PS3.3 C.11.2.1.2: LINEAR, the default, spans `width - 1` around `centre - 0.5`, and is undefined below 1.
    if header.get("VOILUTFunction") == "LINEAR_EXACT" or width <= 1:
        return centre - width / 2, centre + width / 2
    return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2


def _centre_and_width(header: "Dataset") -> list[float | None]:
    """Return the header's first window centre and width; None for one that is missing or not finite."""
    numbers: list[float | None] = []
    for value in (header.get("WindowCenter"), header.get("WindowWidth")):
        values = np.atleast_1d(np.asarray([] if value is None or value == "" else value, dtype=np.float64))
        numbers.append(float(values[0]) if values.size and np.isfinite(values[0]) else None)
    return numbers


def _frame_header(header: "Dataset", frame: int) -> "Dataset":
    """Return the header with the rescaling and window of one frame, which enhanced objects keep in sequences."""
    each, shared = header.get("PerFrameFunctionalGroupsSequence"), header.get("SharedFunctionalGroupsSequence")
    for groups in (shared[0] if shared else None, each[frame] if each and frame < len(each) else None):
        for macro in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in list(groups.get(macro) or [])[:1] if groups is not None else []:
                header.update(item)
    return header


def _seek_pixels(stream: BinaryIO, little: bool) -> tuple[str | None, str]:
    """Move from the pixel element's tag, where pydicom stops, to its value.

    Returns:
        Its keyword, None if missing, and its value representation.
    """
    tag = stream.read(12)
    if len(tag) < 8:
        return None, "OW"
    representation = tag[4:6].decode("latin-1")
    if representation not in {"OB", "OW", "OF", "OD", "UN"}:  # implicit, whatever the header declares: four bytes less
        representation = "OW"
        stream.seek(8 - len(tag), io.SEEK_CUR)
    keywords = {0x7FE00010: "PixelData", 0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData"}
    group, element = struct.unpack("<HH" if little else ">HH", tag[:4])
    return keywords.get(group << 16 | element), representation
