"""Page count of TIFF and frame count of GIF files in bounded time.

Pillow counts by parsing every page, which a crafted file of a few megabytes can draw out for hours.
"""

import struct

MAX_PAGES = 5_000
MAX_TAGS = 100_000  # of all pages of a TIFF: to show the last one, Pillow reads those of all
MAX_BLOCKS = 250_000  # of a GIF; most blocks of an honest file have 255 bytes, which makes 64 MB


def count_frames(content: bytes) -> int | None:
    """Return the pages of a TIFF or the frames of a GIF, at least 1, or None for another format."""
    try:
        if content[:2] in {b"II", b"MM"}:
            return max(1, _count_tiff_pages(content))
        return max(1, _count_gif_frames(content)) if content[:4] == b"GIF8" else None
    except (struct.error, IndexError):  # truncated
        return 1


def _count_tiff_pages(content: bytes) -> int:
    """Return the length of the chain of directories, or 1 if it is too costly to follow."""
    order = "<" if content[:2] == b"II" else ">"
    is_big = 43 in content[2:4]  # BigTIFF
    count_type, next_type, entry_size = (order + "Q", order + "Q", 20) if is_big else (order + "H", order + "L", 12)
    offset = struct.unpack_from(next_type, content, 8 if is_big else 4)[0]
    visited: set[int] = set()
    tags = 0
    while offset and offset not in visited:
        visited.add(offset)
        n_entries = struct.unpack_from(count_type, content, offset)[0]
        tags += n_entries
        if len(visited) > MAX_PAGES or tags > MAX_TAGS:
            return 1
        end = offset + struct.calcsize(count_type) + entry_size * n_entries
        offset = struct.unpack_from(next_type, content, end)[0] if end < len(content) else 0
    return len(visited)


def _count_gif_frames(content: bytes) -> int:
    """Return the number of image descriptors before the trailer, or before `MAX_BLOCKS`."""
    offset = 13 + _color_table_size(content[10])
    frames, blocks = 0, 0
    while content[offset] != 0x3B and blocks < MAX_BLOCKS:  # the trailer
        blocks += 1
        if content[offset] == 0x2C:  # image: descriptor, color table, code size, sub-blocks
            frames += 1
            offset += 11 + _color_table_size(content[offset + 9])
        elif content[offset] == 0x21:  # extension: label, sub-blocks
            offset += 2
        else:
            break
        while content[offset] and blocks < MAX_BLOCKS:
            offset += 1 + content[offset]
            blocks += 1
        offset += 1
    return frames


def _color_table_size(flags: int) -> int:
    """Return the bytes of a color table."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
