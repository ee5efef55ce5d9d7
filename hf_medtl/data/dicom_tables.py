"""DICOM lookup tables: palettes, modality and VOI LUTs, in either byte order (PS3.3 C.7.6.3.1.5, C.11.1 and C.11.2).

`pydicom.pixels` (3.0.2) reads 16-bit palettes of big-endian files in the wrong byte order, wraps pixels around that
exceed an 8-bit palette, and refuses modality LUTs of 10 to 15 bits.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom import Dataset


def apply_palette(pixels: NDArray[Any], header: "Dataset") -> tuple[NDArray[Any], int]:
    """Return the colours (H, W, 3) of palette indices (H, W), and the bits of a colour: 8 or 16.

    Args:
        pixels: Stored values.
        header: A header with a palette, which may be segmented.
    """
    entries, first, bits = _descriptor(header, "RedPaletteColorLookupTableDescriptor")
    index = np.clip(pixels.astype(np.int64) - first, 0, entries - 1)
    if "RedPaletteColorLookupTableData" not in header:
        from pydicom.pixels import apply_color_lut

        every = np.arange(first, first + entries, dtype=np.int64)
        colours = apply_color_lut(every, header)[..., :3]
        return colours[index], 8 * colours.dtype.itemsize
    little = bool(header.original_encoding[1])
    tables = [
        _parse(bytes(header[f"{colour}PaletteColorLookupTableData"].value), entries, little)
        for colour in ("Red", "Green", "Blue")
    ]
    stacked = np.stack([table[index] for table in tables], axis=-1)
    narrow = all(table.dtype.itemsize == 1 or (bits == 8 and table.max() < 256) for table in tables)
    return stacked, 8 if narrow else 16


def apply_table(values: NDArray[Any], item: "Dataset", little: bool) -> NDArray[Any]:
    """Return the values that a modality or VOI LUT assigns; those outside the table get its first or last entry.

    Args:
        values: Stored or rescaled values, of any shape.
        item: The item of the LUT's sequence.
        little: True if the file is little-endian.
    """
    entries, first, _ = _descriptor(item, "LUTDescriptor")
    data = item.LUTData
    table = _parse(data, entries, little) if isinstance(data, bytes) else np.atleast_1d(np.asarray(data)) & 0xFFFF
    return table[np.clip(np.rint(values).astype(np.int64) - first, 0, min(entries, len(table)) - 1)]


def _descriptor(item: "Dataset", keyword: str) -> tuple[int, int, int]:
    """Return the number of entries, the first value that is mapped, and the bits of an entry."""
    entries, first, bits = (int(value) for value in item[keyword].value)
    return entries % 65536 or 65536, first, bits


def _parse(data: bytes, entries: int, little: bool) -> NDArray[Any]:
    """Return the entries of a table of 16-bit words (OW), each of one entry or of two of 8 bits."""
    words = np.frombuffer(data[: len(data) & ~1], "<u2" if little else ">u2")
    if len(words) >= entries:
        return words[:entries].astype(np.uint16)
    return words.astype("<u2").view(np.uint8)[:entries]  # the first entry is in the lower byte
