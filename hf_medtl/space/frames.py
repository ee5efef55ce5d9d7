"""How many pages a TIFF, or frames a GIF has, counted in bounded time.

Pillow counts by parsing every page, which a file of a few megabytes made for it can draw out for hours.
"""

import struct

MAX_PAGES = 5_000
MAX_TAGS = 100_000  # of all pages of a TIFF: to show the last one, Pillow reads those of all
MAX_BLOCKS = 250_000  # of a GIF; most of an honest file have 255 bytes each, which makes 64 MB


def count(content: bytes) -> int | None:
    """Pages of a TIFF or frames of a GIF, at least 1; None for another format."""
    try:
        if content[:2] in {b"II", b"MM"}:
            return max(1, of_tiff(content))
        return max(1, of_gif(content)) if content[:4] == b"GIF8" else None
    except (struct.error, IndexError):  # cut off
        return 1


def of_tiff(content: bytes) -> int:
    """Length of the chain of directories; 1 for a chain that is too costly to follow."""
    order = "<" if content[:2] == b"II" else ">"
    big = 43 in content[2:4]  # BigTIFF
    count_type, next_type, size = (order + "Q", order + "Q", 20) if big else (order + "H", order + "L", 12)
    at = struct.unpack_from(next_type, content, 8 if big else 4)[0]
    seen: set[int] = set()
    tags = 0
    while at and at not in seen:
        seen.add(at)
        number = struct.unpack_from(count_type, content, at)[0]
        tags += number
        if len(seen) > MAX_PAGES or tags > MAX_TAGS:
            return 1
        behind = at + struct.calcsize(count_type) + size * number
        at = struct.unpack_from(next_type, content, behind)[0] if behind < len(content) else 0
    return len(seen)


def of_gif(content: bytes) -> int:
    """Image descriptors before the end, or before MAX_BLOCKS."""
    at = 13 + colours(content[10])
    frames, blocks = 0, 0
    while content[at] != 0x3B and blocks < MAX_BLOCKS:  # the trailer
        blocks += 1
        if content[at] == 0x2C:  # an image: descriptor, its colours, the code's width, sub-blocks
            frames += 1
            at += 11 + colours(content[at + 9])
        elif content[at] == 0x21:  # an extension: its label, sub-blocks
            at += 2
        else:
            break
        while content[at] and blocks < MAX_BLOCKS:
            at += 1 + content[at]
            blocks += 1
        at += 1
    return frames


def colours(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
