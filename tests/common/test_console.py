"""Console output that holds users' strings."""

import pytest
from rich.table import Table

from hf_medtl.common.console import make_console, with_bold


@pytest.mark.parametrize(
    "text", ["contrast [low]", "contrast [/]", "runs/exp [bold]x", "a:heart:b", "[link=x]y", r"\[a]"]
)
def test_labels_and_paths_are_printed_as_they_are(text, capsys):
    console = make_console()
    table = Table(text, title=text)
    table.add_row(text)
    console.print(table)
    console.print(f"See {text}.", soft_wrap=True)
    console.print(with_bold("See ", text, "."), soft_wrap=True)
    printed = capsys.readouterr().out
    assert printed.count(text) == 5


def test_lines_in_files_are_wider_than_a_small_terminal(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    make_console().print("word " * 22)
    assert capsys.readouterr().out.rstrip().count("\n") == 0
