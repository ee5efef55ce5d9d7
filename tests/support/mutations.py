"""Mutations of files for fuzzing: of bytes, of what is packed in them, and of the values of JSON, CSV and YAML."""

import csv
import gzip
import io
import json
import random
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from tests.support.fuzz_seeds import member_files, zip_files

# Replaced by the path of a file outside of the folder that is read.
OUTSIDE = "@OUTSIDE@"
TEXTS = (
    # Missing values, numbers, truth values and dates
    *("", " ", "nan", "NaN", "None", "null", "-", "?", "-1", "0", "1", "1.5", "1e999", "-0.0", "9" * 400, "0x10"),
    *("1_000", "true", "no", "~", "2024-01-01", "2024-13-45"),
    # Signs with a meaning somewhere
    *("a|b", "|", "||", "{", "{0}", "{x}", "%s", "%", "\\", '"', "'", ",", "__class__", "[/bold]", "=HYPERLINK(A1)"),
    *("@SUM(1)", "+1+1", "<script>alert(1)</script>", '"><img src=//example.com/x onerror=alert(1)>'),
    *("[a](javascript:alert(1))", "!!python/object/apply:os.system [id]", "&a [*a, *a]", "*x", "<<: {}", "- a"),
    *("? a", "\t", "---", "#"),
    # What terminals obey, what forges lines, and what is long
    *("\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "a\r\nError: forged", "a\nb", "\0", "\x7f", "\x9b31m", "\u202egnp"),
    *("\u2028", "\ud800", "🩻", "ä" * 300, "x" * 70_000, "[" * 3000, "[" * 200 + "]" * 200),
    # Paths
    *("../outside/secret.png", "..", ".", "/", "/etc/passwd", "C:\\Windows\\win.ini", "file:///etc/passwd", OUTSIDE),
    *("a/../../outside/secret.png", "~/x", "x" * 300 + ".png", "con", "0.png", "./0.png", "0.PNG", "//0.png", "**"),
    "[a].png",
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, 1e308, float("nan"), float("inf"), 2**31, 2**63, 10**400),
    *([], {}, [[]], {"": {}}, [None], ["a"], {"a": "b"}, [0] * 1000, {"0": 0}),
)  # fmt: skip
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 20, 1 << 28)
TOKENS = (
    *(b"II*\0", b"MM\0*", b"IHDR", b"IDAT", b"acTL", b"eXIf", b"iCCP", b"\xff\xd8", b"\xff\xc2", b"\xff\xda"),
    *(b"\xff\xd9", b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0", b"\xe0\x7f\x10\0", b"(\0\x10\0", b"(\0\x11\0", b"SQ"),
    *(b"OW", b"UN", b"n+1\0", b"PK\x03\x04", b"PK\x01\x02", b"\x1f\x8b\x08", b"\xc1\x01", b"\x28\x03", b"descr"),
    *(b"|O", b"<f8", b"PAR1"),
)


def mutate(rng: random.Random, name: str, seeds: Mapping[str, bytes], text: bool = False) -> bytes:
    """Return a mutated seed; one in thirty is not changed.

    Args:
        rng: Source of all randomness.
        name: The seed.
        seeds: Name -> content of all seeds, to be spliced.
        text: True for a file whose values are text, with other mutations.
    """
    content = seeds[name]
    if rng.random() < 1 / 30:
        return content
    other = seeds[rng.choice(sorted(seeds))]
    packed = rng.random() < 0.6
    if packed and content[:2] == b"\x1f\x8b":
        return gzip.compress(_mutate_bytes_or_text(rng, gzip.decompress(content), other, text), mtime=0)
    if packed and content[:2] == b"PK":
        members = member_files(content)
        member = rng.choice(sorted(members))
        members[member] = _mutate_bytes_or_text(rng, members[member], other, False)
        if rng.random() < 0.1:
            members[rng.choice(TEXTS)[:300].replace("\ud800", "").replace("\0", "") or "x"] = members[member]
        return zip_files(members)
    content = _mutate_bytes_or_text(rng, content, other, text, name)
    return _with_right_sums(content) if content[:4] == b"\x89PNG" and packed else content


def _mutate_bytes_or_text(rng: random.Random, content: bytes, other: bytes, text: bool, name: str = "") -> bytes:
    if text and rng.random() < 0.75:
        try:
            if name.endswith("json"):
                return json.dumps(mutate_value(rng, json.loads(content))).encode()
            decoded = content.decode("utf-16" if content[:2] == b"\xff\xfe" else "utf-8-sig")
            kind = _mutate_lines if name.endswith((".yaml", ".md", ".jsonl")) else _mutate_cells
            return kind(rng, decoded).encode("utf-8", "surrogatepass")
        except (ValueError, csv.Error):
            pass
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        content = mutate_bytes(rng, content, other)
    return content


def mutate_bytes(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Return bytes after one mutation: a bit, a byte, a number, a token, a cut, a copy, or an end of other bytes."""
    data = bytearray(content)
    # The first bytes are headers, of which there is more to break.
    at = rng.randrange(min(len(data), rng.choice((64, 400, 1 << 30))) or 1) if data else 0
    kind = rng.randrange(9)
    if kind == 0 and data:
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1 and data:
        data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    elif kind == 2:
        data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 100)))
    elif kind == 3:
        del data[at : at + rng.choice((1, 2, 4, 100))]
    elif kind == 4:
        del data[at:]
    elif kind == 5:
        form = rng.choice("<>") + rng.choice("HLQ")
        number = struct.pack(form, rng.choice(NUMBERS) & (0xFFFF if form[1] == "H" else 0xFFFFFFFF))
        data[at : at + len(number)] = number
    elif kind == 6:
        token = rng.choice(TOKENS) if rng.random() < 0.7 else rng.choice(TEXTS).encode("utf-8", "surrogatepass")
        data[at : at + len(token) * rng.randrange(2)] = token
    elif kind == 7:
        start = rng.randrange(len(data) + 1)
        data[at:at] = data[start : start + rng.choice((4, 40, 1000))]
    else:
        data[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(data)


def mutate_value(rng: random.Random, value: Any) -> Any:
    """Return a JSON value in which one to three values are replaced, removed, added or renamed."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = _mutate_one(rng, value)
    return value


def _mutate_one(rng: random.Random, value: Any) -> Any:
    if rng.random() < 0.2 or not isinstance(value, dict | list) or not value:
        return rng.choice(TEXTS) if rng.random() < 0.4 else rng.choice(VALUES)
    if isinstance(value, list):
        items = list(value)
        at = rng.randrange(len(items))
        items[at : at + 1] = rng.choice(
            ([], [_mutate_one(rng, items[at])], [_mutate_one(rng, items[at])], [items[at]] * 2)
        )
        return items
    key = rng.choice(sorted(value, key=str))
    kind = rng.random()
    if kind < 0.15:
        return {name: item for name, item in value.items() if name != key}
    if kind < 0.25:
        return {(rng.choice(TEXTS) if name == key else name): item for name, item in value.items()}
    return value | {key: _mutate_one(rng, value[key])}


def _mutate_cells(rng: random.Random, text: str) -> str:
    """Return a CSV text after one to three changes of cells, rows or columns."""
    sign = ";" if ";" in text else "\t" if "\t" in text else ","
    rows = [list(row) for row in csv.reader(io.StringIO(text), delimiter=sign)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        row = rng.randrange(len(rows)) if rng.random() < 0.8 else 0
        column = rng.randrange(len(rows[0]))
        kind = rng.randrange(8)
        if kind < 4:
            rows[row][column % len(rows[row])] = rng.choice(TEXTS)
        elif kind == 4:
            rows = [[*r[:column], *r[column + 1 :]] if len(rows[0]) > 1 else r for r in rows]
        elif kind == 5:
            rows = [*rows[:row], *([rows[row]] * rng.choice((0, 2, 50))), *rows[row + 1 :]] or rows
        elif kind == 6:
            rows[1:] = [[*r[:column], rng.choice(TEXTS[:20]), *r[column + 1 :]] for r in rows[1:]]
        else:
            rows[row] = rows[row][:column] if column else [*rows[row], rng.choice(TEXTS)]
        rows = [r or [""] for r in rows] or [[""]]
    stream = io.StringIO()
    quoting = csv.QUOTE_ALL if rng.random() < 0.2 else csv.QUOTE_MINIMAL
    csv.writer(stream, delimiter=sign, quoting=quoting).writerows(rows)
    return stream.getvalue()


def _mutate_lines(rng: random.Random, text: str) -> str:
    """Return YAML, Markdown or JSON Lines after one to three changes of keys, values or lines."""
    lines = text.splitlines()
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        key, colon, value = lines[at].partition(":")
        token = rng.choice(TEXTS)
        kind = rng.randrange(7)
        if kind < 3:
            lines[at] = f"{key}{colon} {token}"
        elif kind == 3:
            lines[at] = f"{token}{colon}{value}"
        elif kind == 4:
            lines[at] = f"{key}{colon} {json.dumps(rng.choice(VALUES))}"
        elif kind == 5:
            lines[at : at + 1] = [lines[at]] * rng.choice((0, 2)) or ["x"]
        else:
            lines.insert(at, token)
    return "\n".join(lines) + "\n"


def _with_right_sums(content: bytes) -> bytes:
    """Return a PNG with the checksums of its chunks put right, so that readers look into them."""
    data, at = bytearray(content), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">L", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(data)
