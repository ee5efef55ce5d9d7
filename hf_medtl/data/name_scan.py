"""Search of files for names of persons, in whatever encoding, before they are published."""

import base64
import binascii
import html
import io
import itertools
import mmap
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote

import pyarrow.parquet as pq
from PIL import Image

from hf_medtl.data.file_types import image_type
from hf_medtl.data.identifiers import NEUTRAL
from hf_medtl.data.person_names import WORD, image_texts, split_words, squeeze
from hf_medtl.errors import MedtlError

# Text in a binary file. Random bytes have short names by chance, so these count in a long text only.
_TEXT = re.compile(rb"(?:[\x20-\x7e]|[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}){4,}")
_ASCII = re.compile(rb"[\x20-\x7e]{7,}")  # eight times as fast: for weights, exported with paths of this machine
LARGE = 20_000_000  # bytes
_UTF_16 = {"utf-16-le": re.compile(rb"[\x20-\xff][\x00-\x06](?:[\x20-\xff][\x00-\x06]){3,}"),
           "utf-16-be": re.compile(rb"[\x00-\x06][\x20-\xff](?:[\x00-\x06][\x20-\xff]){3,}")}  # fmt: skip
LONG_TEXT, LONG_WORD = 16, 7
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{6,}={0,2}")
_CHECKSUM = re.compile(r"[a-z]?[0-9a-f]+")  # or a number, as of groups and patients
_TOKEN = re.compile(r"[^\s\"'<>|,;:()\[\]{}=/\\&?#]+")

Content = bytes | mmap.mmap


def check_names(files: Mapping[str, Path], names: Mapping[str, str], allowed: frozenset[str] = frozenset()) -> None:
    """Raise MedtlError if a file that would be published holds a name of `person_names`.

    UTF-8, UTF-16, base64, escapes of URLs, HTML and JSON, texts in images and archives are read; upper and lower case
    count as equal. The error tells file, line and kind, not the name.

    Args:
        files: Name in the repository -> file.
        names: Names of `names_in_paths` and `names_in_headers` -> kind.
        allowed: Words that are no names, though they are among these.
    """
    if not names:
        return
    for name, path in files.items():
        for where, text, is_binary in itertools.chain([("The name of a file", name, False)], _read(name, path)):
            _refuse(where, text, names, allowed, is_binary)


def check_text(where: str, text: str, names: Mapping[str, str]) -> None:
    """Raise MedtlError as `check_names` if a text that will be published holds a name.

    Args:
        where: What the text is, for the message.
        text: The text.
        names: As for `check_names`.
    """
    for variant, is_binary in _variants(text):
        _refuse(where, variant, names, frozenset(), is_binary)


def _refuse(where: str, text: str, names: Mapping[str, str], allowed: frozenset[str], is_binary: bool) -> None:
    if (key := _find(text, names, allowed, is_binary)) is not None:
        raise MedtlError(
            f"{where}{_line(text, names, allowed)} holds a word that is also in {names[key]}, so it may name a "
            "patient. Nothing was uploaded: take it out or, if it names nobody, push with --allow_word and the word."
        )


def _line(text: str, names: Mapping[str, str], allowed: frozenset[str]) -> str:
    """Return the line of the first name in a text of several lines; "" if it has one only, or there is none in it."""
    lines = text.split("\n")
    for number, line in enumerate(lines if len(lines) > 1 else [], start=1):
        if any(_find(variant, names, allowed, binary) is not None for variant, binary in _variants(line)):
            return f", line {number},"
    return ""


def _read(name: str, path: Path) -> Iterator[tuple[str, str, bool]]:
    """Yield file, a text in it, and true if it is from a binary file."""
    if path.stat().st_size == 0:
        return
    if path.suffix == ".parquet":
        texts = _parquet_texts(path)
        yield from ((name, *text) for text in texts)
        return
    with path.open("rb") as stream:  # a map is closed with the last iterator over it
        small = path.stat().st_size < LARGE
        content = stream.read() if small else mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    if path.suffix == ".safetensors":  # only the header: weights are random bytes
        length = struct.unpack("<Q", content[:8].ljust(8, b"\0"))[0]
        content = content[8 : 8 + length]
    yield from ((name, *text) for text in _texts(content))


def _texts(content: Content) -> Iterator[tuple[str, bool]]:
    """Yield the texts in the content of a file, each with true if it is from a binary one."""
    head = bytes(content[:512])
    if image_type(head):
        for value in _image_values(content):
            yield value, False
    elif head.startswith(b"PK\x03\x04"):
        yield from _zip_texts(content)
        return
    elif content.find(b"\0") < 0 and (text := _decode(content[:])) is not None:
        yield from _variants(text)
        return
    for match in (_TEXT if len(content) < LARGE else _ASCII).finditer(content):
        text = match.group().decode("utf-8", "ignore")
        if len(text) >= LONG_TEXT:
            yield from _variants(text)
        elif len(text) >= LONG_WORD:
            yield text, True
    for encoding, pattern in _UTF_16.items():
        for match in pattern.finditer(content):
            yield match.group().decode(encoding, "ignore"), False


def _decode(content: bytes) -> str | None:
    """Return text, in UTF-8 or in an older encoding of western languages; None for a binary file."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        controls = len(re.findall(rb"[\x00-\x08\x0e-\x1f]", content))
        return None if controls else content.decode("cp1252", "ignore")


def _variants(text: str) -> Iterator[tuple[str, bool]]:
    """Yield a text, what its escapes mean, and what is in base64 in it."""
    yield text, False
    if "&" in text:
        yield html.unescape(text), False
    if "%" in text:
        yield unquote(text), False
    if "\\u" in text or "\\x" in text:
        yield re.sub(r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})", lambda m: chr(int(m[1] or m[2], 16)), text), False
    joined = re.sub(r"(?<=[\w+/]{60})\r?\n(?=[\w+/])", "", NEUTRAL.sub(" ", text))  # lines of one base64 text
    for encoded in dict.fromkeys(_BASE64.findall(joined)):
        if not _CHECKSUM.fullmatch(encoded):
            yield from _base64_texts(encoded.rstrip("=").replace("-", "+").replace("_", "/"))


def _base64_texts(encoded: str) -> Iterator[tuple[str, bool]]:
    for start in range(4 if len(encoded) >= LONG_TEXT else 1):  # letters before it may belong to something else
        part = encoded[start:]
        part = part[:-1] if len(part) % 4 == 1 else part
        try:
            content = base64.b64decode(part + "=" * (-len(part) % 4))
        except binascii.Error:
            continue
        if image_type(content[:16]):
            for value in _image_values(content):
                yield value, False
            return
        try:
            if content.isascii() or b"\0" not in content:
                yield content.decode("utf-8"), False
                continue
        except UnicodeDecodeError:
            pass
        for match in _TEXT.finditer(content):
            word = match.group().decode("utf-8", "ignore")
            yield word, len(word) < LONG_TEXT
        for encoding, pattern in _UTF_16.items():
            for match in pattern.finditer(content):
                yield match.group().decode(encoding, "ignore"), False


def _image_values(content: Content) -> list[str]:
    try:
        with Image.open(io.BytesIO(content[:])) as image:
            return [*image_texts(image), *(value for value in image.info.values() if isinstance(value, str))]
    except Exception:  # Pillow raises whatever a damaged image makes it
        return []


def _zip_texts(content: Content) -> Iterator[tuple[str, bool]]:
    """Yield the texts in an archive, such as of torch, whose tensors are left out: they are random bytes."""
    try:
        with zipfile.ZipFile(io.BytesIO(content[:])) as archive:
            for entry in archive.infolist():
                yield entry.filename, False
                if not re.search(r"(^|/)data/\d+$", entry.filename):
                    yield from _texts(archive.read(entry))
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError):
        return


def _parquet_texts(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield all text in a Parquet file, also of its metadata and of images in it."""
    with pq.ParquetFile(path) as file:
        for key, value in (file.schema_arrow.metadata or {}).items():
            for text in (key, value):
                yield from _texts(text)
        for batch in file.iter_batches(batch_size=64):
            for value in _values(batch.to_pylist()):
                yield from _texts(value) if isinstance(value, bytes) else _variants(value)


def _values(value: object) -> Iterator[str | bytes]:
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list):
        for item in value:
            yield from _values(item)
    elif isinstance(value, str | bytes):
        yield value


def _find(text: str, names: Mapping[str, str], allowed: frozenset[str], is_binary: bool) -> str | None:
    """Return a name in a text: whole words, and whole names of files, only."""
    shortest = LONG_WORD if is_binary else 0
    hits = (key for key in _keys(text) if key in names and len(key) >= shortest and key not in allowed)
    return next(hits, None)


def _keys(text: str) -> Iterator[str]:
    """Yield the folded words of a text, and the letters and digits of what may be names of files."""
    text = NEUTRAL.sub(" ", text)
    for word in {*WORD.findall(text)}:
        yield from split_words(word)
    for token in {*_TOKEN.findall(text)}:
        yield squeeze(token)
        if not token.isalnum():
            yield squeeze(token.rpartition(".")[0])
            yield from map(squeeze, re.findall(r"[^\W_]+", token))
