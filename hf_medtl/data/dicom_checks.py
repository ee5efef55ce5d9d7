"""Checks of DICOM files before decoding: sizes that a damaged or hostile file declares, and limits on them."""

import io
import re
import struct
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO

from hf_medtl.common.extras import install_command
from hf_medtl.data.pixels import MAX_PIXELS
from hf_medtl.errors import UnreadableImage

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

MAX_SAMPLES = 75_000_000  # pixels × channels of a frame: JPEG 2000 decoding needs eight bytes for each
MAX_INFLATED = 256 << 20  # bytes of a deflated data set
# Transfer syntaxes that need a package -> its name, and our extra that installs it.
DECODERS = {
    tuple(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81)): ("pylibjpeg-libjpeg", "jpeg"),
    tuple(f"1.2.840.10008.1.2.4.{number}" for number in (90, 91, 201, 202, 203)): ("pylibjpeg-openjpeg", ""),
}
DEFLATED, EXPLICIT = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"


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


def check_size(name: str, header: "Dataset", frames: int, available: int, encapsulated: bool) -> None:
    """Check the declared size against the limits and the bytes available, before decoding.

    Args:
        name: Name of the file in errors.
        header: Its header.
        frames: Declared number of frames.
        available: Bytes of the pixels and anything after them.
        encapsulated: True if the pixels are compressed.

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


def check_decoder(name: str, syntax: "UID", failed: bool = False) -> None:
    """Check that the pixels' compression can be decoded with what is installed.

    Args:
        name: Name of the file in errors.
        syntax: Its transfer syntax.
        failed: True after an error of decoders; pydicom counts some that decode only a part of what a syntax allows.

    Raises:
        UnreadableImage: There is no decoder; the message names the package to install, if one is known.
    """
    from pydicom.pixels import get_decoder

    if not syntax.is_encapsulated:
        return
    compression = str(syntax.name).split(" (")[0]
    package, extra = next((cure for syntaxes, cure in DECODERS.items() if syntax in syntaxes), ("", ""))
    try:
        decoder = get_decoder(syntax)
        complete = decoder.is_available and not (failed and {"pillow"} == {*decoder.available_plugins})
    except NotImplementedError:
        complete, package = False, ""
    if not complete and package:
        command = install_command(extra) if extra else f"pip install pylibjpeg {package}"
        raise UnreadableImage(f"{name}: DICOM with {compression} needs {package}. Install it with: {command}")
    if not complete:
        raise UnreadableImage(
            f"{name}: DICOM with {compression} can't be read. Save it uncompressed, a video as single images."
        )


def check_compressed_frame(name: str, header: "Dataset", stream: BinaryIO, frame: int, options: dict[str, Any]) -> None:
    """Check the size in a compressed frame's own header, which decoders trust, against that in the DICOM header.

    Args:
        name: Name of the file in errors.
        header: Its header.
        stream: The file at the start of the pixels.
        frame: Frame number, from 0.
        options: Pixel options of pydicom.

    Raises:
        UnreadableImage: They differ, a box of JP2 has no length, or run-length encoded data are longer than the frame.
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
        fits = not _has_endless_box(code) and compressed_size(code) == (rows, columns, samples)
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


def _has_endless_box(code: bytes) -> bool:
    """True if a JP2 file has a box of length 0 before its code: pydicom adds up lengths, and would never end."""
    at = 12
    while code.startswith(b"\0\0\0\x0cjP  ") and at < len(code) and code[at + 4 : at + 8] != b"jp2c":
        length = int.from_bytes(code[at : at + 4], "big")
        if not length:
            return True
        at += length
    return False


def _rle_length(code: bytes, limit: int) -> int:
    """Return the decoded length of run-length encoded data (PackBits), counted until it exceeds `limit`."""
    at, length = 64, 0
    while at < len(code) and length <= limit:
        control = code[at]
        length += control + 1 if control < 128 else 257 - control
        at += control + 2 if control < 128 else 2
    return length
