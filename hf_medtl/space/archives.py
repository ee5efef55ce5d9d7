"""The files in a zip from the open web, one at a time in memory, nothing written to disk."""

import io
import stat
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath

MAX_FILES = 200
MAX_CONTENTS = 500_000_000  # bytes of all of them
MAX_DIRECTORY = 2_000_000  # bytes: each of some forty thousand entries becomes an object of half a kilobyte
MAX_RATIO = 200  # of entries of more than a megabyte: an almost black 16-bit picture shrinks to a fiftieth
EMPTY = "The file is empty. Save or download it again."


def entries(content: bytes, limit: int) -> Iterator[tuple[str, bytes, str]]:
    """Name, content and "" of each file in a zip, or its name, nothing and what is wrong, in words for a person.

    The name "" stands for the zip itself. Folders, and what systems add, are skipped. Never raises.

    Args:
        content: the zip.
        limit: bytes that one file may have.
    """
    try:
        archive = zipfile.ZipFile(Careful(content))
    except Exception:  # zipfile raises whatever a damaged file provokes
        yield "", b"", "The zip archive is damaged, too long, or of a kind that is not read. Make it again."
        return
    files = [entry for entry in archive.infolist() if wanted(entry)]
    if not files:
        yield "", b"", "There is no file in the zip archive. Choose another."
    left = MAX_CONTENTS
    for entry in files[:MAX_FILES]:
        inside, problem = inflated(archive, entry, limit)
        left -= len(inside)
        if left < 0:
            yield "", b"", f"The files in the zip archive have more than {MAX_CONTENTS // 1_000_000} MB. Split it."
            return
        yield entry.filename, b"" if problem else inside, problem
    if len(files) > MAX_FILES:
        yield "", b"", f"The zip archive has {len(files):,} files; the first {MAX_FILES} were read. Split it."


class Careful(io.BytesIO):
    """A zip that gives no huge directory: zipfile would read one whole, and make an object of each entry."""

    def read(self, size: int | None = -1) -> bytes:
        rest = self.getbuffer().nbytes - self.tell()
        if (rest if size is None or size < 0 else min(size, rest)) > MAX_DIRECTORY:
            raise zipfile.BadZipFile
        return super().read(size)


def wanted(entry: zipfile.ZipInfo) -> bool:
    """Whether an entry is a file of the user, neither a folder nor what systems add."""
    path = PurePosixPath(entry.filename)
    return not (
        entry.is_dir()
        or "__MACOSX" in path.parts
        or path.name.startswith("._")
        or path.name.lower() in {".ds_store", "thumbs.db", "desktop.ini"}
    )


def inflated(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int) -> tuple[bytes, str]:
    """What an entry holds and "", or what was read of it and what is wrong; the size it announces is not believed."""
    path = entry.filename.replace("\\", "/")
    if path.startswith("/") or path[1:2] == ":" or ".." in path.split("/"):
        return b"", "Its name leads out of the archive. Make the zip again from within the folder."
    if stat.S_IFMT(entry.external_attr >> 16) not in {0, stat.S_IFREG}:
        return b"", "It is a link, not a file. Put the picture itself into the zip."
    if entry.flag_bits & 1:
        return b"", "It is protected by a password. Make the zip without one."
    if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        return b"", "It is compressed in a way that is not read. Make an ordinary zip."
    content = bytearray()
    try:
        with archive.open(entry) as stream:
            while block := stream.read(1 << 18):
                content += block
                if len(content) > limit:
                    return bytes(content), too_long(limit)
                if len(content) > max(1_000_000, MAX_RATIO * entry.compress_size):
                    return bytes(
                        content
                    ), "It becomes far larger than it is: a trap, or an empty picture. Leave it out."
    except Exception:  # as above
        return bytes(content), "It is damaged inside the zip. Make the zip again."
    return bytes(content), "" if content else EMPTY


def too_long(limit: int) -> str:
    """What is said of a file of more than `limit` bytes."""
    return f"The file is larger than {limit // 1_000_000} MB. Send a smaller one."
