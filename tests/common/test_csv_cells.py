"""CSV text is safe in a spreadsheet and is read back unchanged."""

import csv
import re

import pandas as pd
import pytest

from hf_medtl.common.csv_cells import harmless_text, original_text, to_csv
from hf_medtl.common.run_folder import read_table
from hf_medtl.data.table_files import read_table_file

FORMULAS = ["=1+1", "-x/1.png", "+a", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1", "'=1", "''-x"]
PLAIN = ["a", "", "1.png", "'", "'a'", "x=1", "p-1", "-1", "-0.5", "+1e-3"]


@pytest.mark.parametrize("text", [*FORMULAS, *PLAIN])
def test_text_is_harmless_and_comes_back(text):
    assert original_text(harmless_text(text)) == text
    assert not re.match(r"\s*[=@＝＋－＠]|\s*[+-](?!\d)|[\t\r]", harmless_text(text))
    assert (harmless_text(text) == text) == (text in PLAIN)


def test_table_with_formulas_and_negative_numbers_is_read_back(tmp_path):
    table = pd.DataFrame({"image_id": FORMULAS, "label": "-", "p_-": -0.5, "=x": range(len(FORMULAS))})
    file = tmp_path / "table.csv"
    file.write_bytes(to_csv(table).encode())
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == ["image_id", "label", "p_-", "'=x"]
    assert {row[0] for row in rows[1:]} == {f"'{text}" for text in FORMULAS}
    assert {row[2] for row in rows[1:]} == {"-0.5"}  # numbers stay numbers
    assert read_table(file).to_dict("list") == table.to_dict("list")
    assert read_table_file(file)["image_id"].tolist() == FORMULAS
