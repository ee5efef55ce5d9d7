"""Table files: every format and encoding that a spreadsheet or a script writes gives the same text."""

import gzip
import sys

import pandas as pd
import pytest

from hf_medtl import MedtlError
from hf_medtl.data.table_files import read_table_file

ROWS = [["a, 1.png", "ü", "2"], ["b.png", "x|y", ""]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_reads_csv_of_any_encoding_and_separator(tmp_path, caplog, encoding, separator, end):
    lines = ['file_name ; label; "Größe"', '"a, 1.png";ü ;2', "", ";;", "b.png; x|y", ""]
    (tmp_path / "t.csv").write_bytes(end.join(lines).replace(";", separator).encode(encoding))
    table = read_table_file(tmp_path / "t.csv")
    assert list(table) == ["file_name", "label", "Größe"]
    assert table.to_numpy().tolist() == ROWS
    assert ("read as Windows-1252" in caplog.text) == (encoding == "cp1252")


def test_other_formats_give_the_same_text(tmp_path):
    table = pd.DataFrame({"file_name": ["a.png", "b.png"], "label": [1.0, None], "age": [3, 4], "id": ["007", "1.0"]})
    table.to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    table.to_csv(tmp_path / "t.csv.gz", index=False)
    table.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    table.to_parquet(tmp_path / "t.parquet")
    table.to_excel(tmp_path / "t.xlsx", index=False)
    (tmp_path / "excel.csv").write_bytes((tmp_path / "t.xlsx").read_bytes())  # of another name
    (tmp_path / "sep.csv").write_text("sep=|\r\nfile_name|label|age|id\r\na.png|1|3|007\r\nb.png||4|1.0\r\n")
    expected = [["a.png", "1", "3", "007"], ["b.png", "", "4", "1.0"]]
    for name in ("t.jsonl", "t.parquet", "t.xlsx", "excel.csv", "sep.csv"):
        assert read_table_file(tmp_path / name).to_numpy().tolist() == expected, name
    for name in ("t.tsv", "t.csv.gz"):  # pandas wrote 1.0
        assert read_table_file(tmp_path / name).to_numpy().tolist()[1] == expected[1], name


def test_lists_are_joined(tmp_path):
    lists = pd.DataFrame({"label": [["a", "b"], ["c"], []], "file_name": ["1", "2", "3"]})
    lists.to_json(tmp_path / "t.jsonl", orient="records", lines=True)
    lists.to_parquet(tmp_path / "t.parquet")
    for name in ("t.jsonl", "t.parquet"):
        assert read_table_file(tmp_path / name)["label"].tolist() == ["a|b|", "c|", "|"]


@pytest.mark.parametrize(
    "text",
    ["# made by a script, on Monday\n# 2 images\n\na,b\n1,2\n", "# a,b\n1,2\n",
     "a\u00a0,\u200bb\u200b\n1,\u20602\u00a0\n",
     '[\n {"a": 1,\n  "b": 2}]', '[{"a": "1", "b": "2"}]', '{"a": 1, "b": 2}\n'],
)  # fmt: skip
def test_comments_invisible_characters_and_lists_of_objects_are_read(tmp_path, text):
    file = tmp_path / ("t.json" if text[0] in "[{" else "t.csv")
    file.write_text(text, encoding="utf-8")
    table = read_table_file(file)
    assert (list(table), table.to_numpy().tolist()) == (["a", "b"], [["1", "2"]])


def test_separator_is_the_one_that_rows_have_too(tmp_path):
    (tmp_path / "t.csv").write_text("file_name;label (a, b, c or d);age\n1.png;a;0,5\n2.png;b;1\n", encoding="utf-8")
    assert list(read_table_file(tmp_path / "t.csv")) == ["file_name", "label (a, b, c or d)", "age"]


def test_quote_without_an_end_is_refused_but_line_breaks_in_cells_are_read(tmp_path):
    rows = ["file_name,label,note", "1.png,a,x", '2.png,b,"5 disc', "3.png,a,x", "4.png,b,x"]
    for last in ("5.png,a,x", '5.png,a,"7 disc', '5.png,a,"two\nlines"'):
        (tmp_path / "t.csv").write_text("\n".join([*rows, last]), encoding="utf-8")
        with pytest.raises(MedtlError, match="a quote in line 3 has no end"):
            read_table_file(tmp_path / "t.csv")
    rows[2] = '2.png,b,"one, ""two""\n\nand, three, lines"'
    (tmp_path / "t.csv").write_text("\n".join(rows), encoding="utf-8")
    assert read_table_file(tmp_path / "t.csv")["file_name"].tolist() == ["1.png", "2.png", "3.png", "4.png"]


def test_merged_cells_of_a_column_all_have_their_content(tmp_path):
    import openpyxl

    book = openpyxl.Workbook()
    for row in (["file", "patient"], ["1.png", "p"], ["2.png", None], ["3.png", "q"], ["4.png", None]):
        book.active.append(row)
    book.active.merge_cells("B2:B3")
    book.save(tmp_path / "t.xlsx")
    assert read_table_file(tmp_path / "t.xlsx")["patient"].tolist() == ["p", "p", "q", ""]


def test_long_cells_and_quotes_inside_cells_are_kept(tmp_path):
    (tmp_path / "t.csv").write_text(f'file_name,note,mask\na.png,5" disc,{"1 2 " * 50_000}\n"say ""b"".png",,\n')
    table = read_table_file(tmp_path / "t.csv")
    assert table["note"].tolist() == ['5" disc', ""]
    assert table["file_name"].tolist() == ["a.png", 'say "b".png']


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "is empty"),
        ("t.csv", b"file_name,label\n\n", "is empty"),
        ("t.csv", b"file_name,label, label\na,b,c", "two columns are called label"),
        ("t.csv", b"file_name,label\na.png,b\nb.png,COVID-19, ARDS", r"row 3 has 3 cells, but there are 2 .*quotes"),
        ("t.csv", b"<!DOCTYPE html><html>404</html>", "is a web page"),
        ("t.csv", b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        ("t.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is not a table but a binary file"),
        ("t.csv", b"\xd0\xcf\x11\xe0\xa1\xb1", r"\.xls files can't be read. Save the table as .xlsx or CSV"),
        ("t.ods", b"PK\x03\x04", r"\.ods files can't be read. Save the table as .xlsx or CSV"),
        ("t.xlsx", b"PK\x03\x04 half a file", "can't be read as an Excel file"),
        ("t.parquet", b"PAR1 half a file", "can't be read as a table"),
        ("t.jsonl", b'{"file_name": "a"}\n["b"]', "expected an object in each line"),
        ("t.jsonl", b"{'file_name': 'a'}", "can't be read as a table"),
        ("t.csv.gz", gzip.compress(b"a,b\n1,2\n", mtime=0)[:12], "can't be read as a table"),
    ],
)
def test_files_that_are_no_table_are_said_to_be_so(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MedtlError, match=message):
        read_table_file(tmp_path / name)


def test_title_above_the_names_of_columns_is_refused(tmp_path):
    rows = [["Study 2026", None, None], ["file", "label", "patient"], ["1.png", "a", "p"]]
    pd.DataFrame(rows).to_excel(tmp_path / "t.xlsx", index=False, header=False)
    with pytest.raises(MedtlError, match=r"names of the columns in the first row, found only 'Study 2026'"):
        read_table_file(tmp_path / "t.xlsx")


def test_missing_files_and_missing_openpyxl_are_said(tmp_path, monkeypatch):
    with pytest.raises(MedtlError, match="does not exist"):
        read_table_file(tmp_path / "t.csv")
    with pytest.raises(MedtlError, match="is a folder"):
        read_table_file(tmp_path)
    pd.DataFrame({"a": [1]}).to_excel(tmp_path / "t.xlsx")
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(MedtlError, match=r"Reading t.xlsx needs openpyxl.*hf_medtl\[excel\]"):
        read_table_file(tmp_path / "t.xlsx")
