"""Table files: CSV, TSV, JSON Lines, Excel and Parquet files that users hand in, read as text."""

import bz2
import csv
import gzip
import io
import json
import logging
import lzma
import re
import string
import zipfile
import zlib
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hf_medtl.common.csv_cells import original_text
from hf_medtl.common.extras import require
from hf_medtl.common.text import abbreviate
from hf_medtl.errors import MedtlError

logger = logging.getLogger(__name__)

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".parquet", ".xlsx", ".xlsm")
FORMATS = "CSV (with comma, semicolon or tab), TSV, JSON Lines, Parquet or .xlsx"
OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
SIGNATURES = {  # of files that are no text, or text of another kind
    b"PK\x03\x04": ".xlsx",
    b"PAR1": ".parquet",
    b"\xd0\xcf\x11\xe0": ".xls",
}
UNREADABLE = (".xlsb", ".ods", ".numbers", ".zip")
# What readers raise for damaged files
DAMAGED = (OSError, ValueError, KeyError, EOFError, NotImplementedError, RecursionError, MemoryError, csv.Error,
           lzma.LZMAError, zlib.error, pa.ArrowException)  # fmt: skip
# At the ends of cells, as copied from web pages and word processors.
BLANK = f"{string.whitespace}\u00a0\u2007\u202f\u3000\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
MAX_UNPACKED = 512 << 20  # bytes of a compressed table
MAX_CELLS = 20_000_000  # of a sheet, or of Parquet, where a few bytes can stand for billions
MERGED = re.compile(rb'mergeCell ref="([A-Z]+)(\d+):([A-Z]+)(\d+)"')
MAX_CELL = 2**31 - 1  # run-length encoded masks are longer than the 128 KiB that `csv` allows


def read_table_file(file: Path) -> pd.DataFrame:
    """Read a table that a user hands in: every cell as text without spaces around it, "" if empty.

    CSV may be separated by comma, semicolon, tab or |, in UTF-8 or UTF-16 with or without a byte-order mark, or else in
    Windows-1252, and compressed with gzip, bzip2 or xz. Rows without any content and comments (#) above the names of
    columns are left out, lists (in JSON and Parquet) are joined by | with one at the end, and whole numbers have no
    decimal point. Of an Excel file the first sheet is read; each of cells merged in a column has their content.

    Args:
        file: The table.

    Returns:
        One column for each named column of the file.

    Raises:
        MedtlError: The file can't be read or is no table, is empty, or has two columns of the same name.
    """
    if not file.is_file():
        raise MedtlError(f"{file} {'is a folder' if file.is_dir() else 'does not exist'}. Give a table: {FORMATS}.")
    header: list[Any]
    rows: list[list[Any]]
    try:
        content = _read_packed(file) if file.suffix.lower() in OPENERS else file.read_bytes()
        suffix = Path(file.stem).suffix.lower() if file.suffix.lower() in OPENERS else file.suffix.lower()
        if suffix not in UNREADABLE:
            suffix = next((name for start, name in SIGNATURES.items() if content.startswith(start)), suffix)
        if suffix == ".parquet":
            packed = pq.ParquetFile(io.BytesIO(content))
            _check_cells(file, packed.metadata.num_rows, packed.metadata.num_columns)
            columns = packed.read().to_pydict()
            header, rows = list(columns), [list(row) for row in zip(*columns.values(), strict=True)]
        elif suffix in (".xlsx", ".xlsm"):
            header, rows = _read_sheet(file, content)
        elif suffix in (".xls", *UNREADABLE):
            raise MedtlError(f"{file}: {suffix} files can't be read. Save the table as .xlsx or CSV.")
        else:
            text = _decode(file, content).lstrip("\ufeff")
            is_json = suffix in (".jsonl", ".ndjson", ".json") or re.match(r"\s*\[\s*{", text)
            header, rows = _read_json(file, text) if is_json else _read_csv(file, text)
    except DAMAGED as error:
        raise MedtlError(f"{file} can't be read as a table ({type(error).__name__}). Use {FORMATS}.") from error
    names = [" ".join(original_text(_to_text(name)).split()) for name in header]
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise MedtlError(f"{file}: two columns are called {abbreviate(twice)}. Rename or remove one of them.")
    kept = [[original_text(_to_text(cell)) for cell in row] for row in rows]
    kept = [row for row in kept if any(row)]
    if not any(names) or not kept:
        raise MedtlError(f"{file} is empty: expected a line with the names of the columns, and one for each image.")
    named = [name for name in names if name]
    if len(named) == 1 and sum(map(any, zip(*kept, strict=True))) > 2:  # a column of row numbers has no name
        raise MedtlError(
            f"{file}: expected the names of the columns in the first row, found only {named[0]!r}. Remove the rows "
            "above the names."
        )
    frame = pd.DataFrame(kept, columns=pd.Index(names), dtype=object)
    return frame.loc[:, [bool(name) for name in names]]


def _read_packed(file: Path) -> bytes:
    """Return the content of a compressed table."""
    with OPENERS[file.suffix.lower()](file) as stream:
        content: bytes = stream.read(MAX_UNPACKED + 1)
    if len(content) > MAX_UNPACKED:
        raise MedtlError(f"{file} has more than {MAX_UNPACKED >> 20} MiB when unpacked. Unpack it, if it is a table.")
    return content


def _check_cells(file: Path, rows: int, columns: int) -> None:
    """Raise MedtlError if a table has more cells than any that describes images."""
    if rows * columns > MAX_CELLS:
        raise MedtlError(
            f"{file} has {rows:,} rows and {columns:,} columns, more than {MAX_CELLS:,} cells. Save a table with one "
            "row for each image and the columns that are needed."
        )


def _decode(file: Path, content: bytes) -> str:
    """Decode text, guessing its encoding; log a guess that may be wrong.

    Raises:
        MedtlError: The file is not a table: a web page, a Git LFS pointer, or not text.
    """
    start = content[:200].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise MedtlError(f"{file} is a web page instead of a table, as after a failed download. Download it again.")
    if start.startswith(b"version https://git-lfs"):
        raise MedtlError(f"{file} is a pointer of Git LFS instead of the table. Run git lfs pull.")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16")
    sample = content[:2000]
    for encoding, zeros in (("utf-16-le", sample[1::2]), ("utf-16-be", sample[::2])):
        if zeros.count(0) > len(zeros) / 2:
            return content.decode(encoding)
    if b"\0" in sample:
        raise MedtlError(f"{file} is not a table but a binary file. Use {FORMATS}.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        logger.warning(
            "%s is not UTF-8 and is read as Windows-1252. If letters beyond a to z look wrong, save it as UTF-8.", file
        )
        return content.decode("cp1252", errors="replace")


def _read_csv(file: Path, text: str) -> tuple[list[Any], list[list[Any]]]:
    """Return header and rows of a CSV text; the separator is the one that the header has most of."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
    separator = None
    if declared := re.match(r"sep=(.)\r?\n", text, re.IGNORECASE):  # Excel's own
        separator, text = declared[1], text[declared.end() :]
    text = _without_comments(text.lstrip("\r\n"))
    first, second = map(_count_separators, [*re.split(r"[\r\n]+", text, maxsplit=2), ""][:2])
    if separator is None:
        separator = max(first, key=lambda sign: (0 < first[sign] == second[sign], first[sign]))
        if not first[separator]:
            separator = "|" if "|" in text.partition("\n")[0] else ","
    lines = _split_rows(file, text, separator)
    if not lines:
        return [], []
    header, rows = lines[0], lines[1:]
    for number, row in enumerate(rows, start=2):
        if any(cell.strip() for cell in row[len(header) :]):
            raise MedtlError(
                f"{file}: row {number} has {len(row)} cells, but there are {len(header)} columns. Put a cell that "
                f'contains {separator!r} into quotes, such as "a{separator} b".'
            )
    return header, [row[: len(header)] + [""] * (len(header) - len(row)) for row in rows]


def _without_comments(text: str) -> str:
    """Return a CSV text without the lines above the names of the columns that begin with #, or these without the #."""
    comments = re.match(r"(#[^\r\n]*[\r\n]+)+", text)
    if not comments:
        return text
    rest, last = text[comments.end() :], re.split(r"[\r\n]+", comments[0].strip())[-1]
    counts = _count_separators(last)
    if any(counts.values()) and counts == _count_separators(re.split(r"[\r\n]", rest, maxsplit=1)[0]):
        return f"{last.lstrip('# ')}\n{rest}"
    return rest


def _count_separators(line: str) -> dict[str, int]:
    """Return separator -> how often it is in a line, outside quotes."""
    unquoted = re.sub(r'"[^"]*"', "", line)
    return {sign: unquoted.count(sign) for sign in "\t,;"}


def _split_rows(file: Path, text: str, separator: str) -> list[list[str]]:
    """Return the cells of each row of a CSV text.

    Raises:
        MedtlError: A quote has no end, so that what follows would be one cell.
    """
    lines, rows, start = list(io.StringIO(text, newline="")), [], 0
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    for row in reader:
        if reader.line_num - start > 1:  # a cell with line breaks
            try:
                list(
                    csv.reader(lines[start : reader.line_num], delimiter=separator, skipinitialspace=True, strict=True)
                )
            except csv.Error:
                raise MedtlError(
                    f"{file}: a quote in line {start + 1} has no end, so it is doubtful where the row ends. Add the "
                    'quote (") that is missing, or write those inside a quoted cell twice.'
                ) from None
        rows.append(row)
        start = reader.line_num
    return rows


def _read_json(file: Path, text: str) -> tuple[list[Any], list[list[Any]]]:
    """Return header and rows of JSON Lines, one object a line, or of a JSON list of objects."""
    if re.match(r"\s*\[\s*{", text):
        records = json.loads(text)
    else:
        records = [json.loads(line) for line in text.split("\n") if line.strip()]
    if not all(isinstance(record, dict) for record in records):
        raise MedtlError(f'{file}: expected an object in each line, such as {{"file_name": "1.png", "label": "a"}}.')
    header = list(dict.fromkeys(name for record in records for name in record))
    return header, [[record.get(name) for name in header] for record in records]


def _read_sheet(file: Path, content: bytes) -> tuple[list[Any], list[list[Any]]]:
    """Return header and rows of the first sheet of an Excel file."""
    openpyxl = require("openpyxl", "excel", f"Reading {file.name}")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_UNPACKED:
                raise MedtlError(f"{file} has more than {MAX_UNPACKED >> 20} MiB when unpacked. Save it as CSV.")
            sheets = [archive.read(member) for member in archive.namelist() if "worksheets/" in member]
        for corners in chain.from_iterable(map(MERGED.findall, sheets)):  # openpyxl makes an object for each cell
            left, right = (openpyxl.utils.column_index_from_string(name.decode()) for name in corners[::2])
            top, bottom = map(int, corners[1::2])
            _check_cells(file, abs(bottom - top) + 1, abs(right - left) + 1)
        book = openpyxl.load_workbook(io.BytesIO(content), data_only=True)
        name, *others = book.sheetnames
        _check_cells(file, book[name].max_row, book[name].max_column)
        rows = [list(row) for row in book[name].iter_rows(min_row=1, min_col=1, values_only=True)]
        for cells in book[name].merged_cells.ranges:  # such as one patient beside several images
            for row in range(cells.min_row, cells.max_row if cells.min_col == cells.max_col else 0):
                rows[row][cells.min_col - 1] = rows[cells.min_row - 1][cells.min_col - 1]
    except MedtlError:
        raise
    except Exception as error:  # openpyxl passes on what zip and XML readers raise
        raise MedtlError(f"{file} can't be read as an Excel file ({type(error).__name__}). Save it again.") from error
    if others:
        logger.warning("%s: only the first sheet, %s, is read, not %s.", file, name, abbreviate(others))
    rows = [row for row in rows if any(cell is not None for cell in row)]
    return (rows[0], rows[1:]) if rows else ([], [])


def _to_text(cell: Any) -> str:
    """Return a cell as text; see `read_table_file`."""
    if isinstance(cell, list | tuple):
        return "|".join([*map(_to_text, cell), ""]) or "|"
    if isinstance(cell, dict):
        return json.dumps(cell, ensure_ascii=False)
    if cell is None or cell != cell:  # None, NaN or NaT
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip(BLANK)
