"""Zip archives from untrusted users: one file at a time in memory, nothing written to disk."""

import io
import re
import stat
import zipfile
from collections.abc import Iterator

from hf_medtl.data.listing import is_system_file

MAX_FILES = 200
MAX_CONTENTS = 500_000_000  # bytes of all files, uncompressed
MAX_DIRECTORY = 2_000_000  # bytes: each of some forty thousand entries becomes an object of half a kilobyte
MAX_RATIO = 200  # of entries of more than a megabyte: an almost black 16-bit image shrinks to a fiftieth
EMPTY = "The file is empty. Save or download it again."


def read_entries(content: bytes, limit: int) -> Iterator[tuple[str, bytes, str]]:
    """Yield (name, content, "") for each file in a zip, or (name, b"", problem) for one that is refused.

    The name "" stands for the zip itself. Folders and system files are skipped. Never raises.

    Args:
        content: bytes of the zip.
        limit: maximum bytes of one file.
    """
    try:
        archive = zipfile.ZipFile(SafeZip(content))
    except Exception:  # zipfile raises arbitrary exceptions for damaged files
        yield "", b"", "The zip archive is damaged, has too many files, or is of an unsupported type. Make it again."
        return
    entries = [entry for entry in archive.infolist() if not _is_ignored(entry)]
    if not entries:
        yield "", b"", "There is no file in the zip archive. Choose another."
    remaining = MAX_CONTENTS
    for entry in entries[:MAX_FILES]:
        file, problem = _read_entry(archive, entry, limit)
        remaining -= len(file)
        if remaining < 0:
            yield "", b"", f"The files in the zip archive have more than {MAX_CONTENTS // 1_000_000} MB. Split it."
            return
        yield entry.filename, b"" if problem else file, problem
    if len(entries) > MAX_FILES:
        yield "", b"", f"The zip archive has {len(entries):,} files; the first {MAX_FILES} were read. Split it."


class SafeZip(io.BytesIO):
    """Bytes of a zip that refuse to deliver a huge directory, from which zipfile would make an object per entry."""

    def read(self, size: int | None = -1) -> bytes:
        """Read as `io.BytesIO` does, or raise BadZipFile."""
        remaining = self.getbuffer().nbytes - self.tell()
        if (remaining if size is None or size < 0 else min(size, remaining)) > MAX_DIRECTORY:
            raise zipfile.BadZipFile
        return super().read(size)


def _is_ignored(entry: zipfile.ZipInfo) -> bool:
    """Return True for folders and for files that operating systems add."""
    return entry.is_dir() or any(map(is_system_file, re.split(r"[/\\]", entry.filename)))


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, limit: int) -> tuple[bytes, str]:
    """Return an entry's content and "", or what was read of it and the problem. Its announced size is not trusted."""
    path = entry.filename.replace("\\", "/")
    if path.startswith("/") or path[1:2] == ":" or ".." in path.split("/"):
        return b"", "Its name points out of the archive. Make the zip again from within the folder."
    if stat.S_IFMT(entry.external_attr >> 16) not in {0, stat.S_IFREG}:
        return b"", "It is a link, not a file. Put the image itself into the zip."
    if entry.flag_bits & 1:
        return b"", "It is protected by a password. Make the zip without one."
    if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        return b"", "Its compression method is not supported. Make an ordinary zip."
    content = bytearray()
    try:
        with archive.open(entry) as stream:
            while block := stream.read(1 << 18):
                content += block
                if len(content) > limit:
                    return bytes(content), file_too_large(limit)
                if len(content) > max(1_000_000, MAX_RATIO * entry.compress_size):
                    return bytes(content), "It expands far too much: a zip bomb, or an empty image. Leave it out."
    except Exception:  # as above
        return bytes(content), "It is damaged inside the zip. Make the zip again."
    return bytes(content), "" if content else EMPTY


def file_too_large(limit: int) -> str:
    """Return the message about a file of more than `limit` bytes."""
    return f"The file is larger than {limit // 1_000_000} MB. Send a smaller one."
