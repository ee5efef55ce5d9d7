"""CONTRIBUTING.md names files, constants and functions that exist."""

import re

from tests.support.commands import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
FOLDERS = ("", "hf_medtl", "hf_medtl/evaluation", "tests")


def test_named_files_exist():
    names = re.findall(r"`([\w./-]+(?:\.(?:py|md|toml|yaml)|/))[` ]", TEXT)
    folders = [folder for folder, _, _ in table_rows()]
    assert len(names) > 40
    missing = [name for name in names if not any((ROOT / f / name).exists() for f in (*FOLDERS, *folders))]
    assert missing == ["utils.py", "recipes/NAME.py"]  # the first is not to be


def test_files_to_start_reading_at_are_in_their_folder():
    rows = table_rows()
    assert len(rows) > 10
    for folder, _, starts in rows:
        assert (ROOT / folder).exists(), folder
        for name in re.findall(r"`([\w./]+\.\w+|\w+/)`", starts):
            assert (ROOT / folder / name).exists(), f"{folder}{name}"


def test_named_constants_exist():
    code = "\n".join(
        path.read_text(encoding="utf-8") for d in ("hf_medtl", "tests") for path in (ROOT / d).rglob("*.py")
    )
    names = {*re.findall(r"`([A-Z][A-Z_]+[A-Z])`", TEXT)} - {"NAME", "HF_MEDTL_SHARED"}
    assert len(names) > 8
    assert {name for name in names if not re.search(rf"^{name}\b", code, re.MULTILINE)} == set()


def table_rows() -> list[tuple[str, str, str]]:
    """Return the rows of the map: folder, what is in it, where to start reading."""
    return re.findall(r"^\| `([\w/.]+)` \|(.*)\|(.*)\|$", TEXT, re.MULTILINE)
