"""Folders that a command fills: killed at any moment, the same command goes on; nobody else's files are touched."""

import itertools
import json
import shutil
from pathlib import Path

import pytest

from hf_medtl import MedtlError
from hf_medtl.common import files
from hf_medtl.common.files import write_atomic
from hf_medtl.common.run_folder import UNFINISHED, RunFolder
from hf_medtl.runs.lock import RUN_LOCK, lock_folder
from hf_medtl.runs.output_folder import check_new, filling
from tests.support.killed import leave_killed


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def fill(folder: Path, **made: str) -> None:
    with filling(folder, "works") as staging:
        for name, text in made.items():
            path = staging / name.replace("__", "/")
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, text)


def test_killed_at_any_moment_the_same_command_makes_the_same_folder(tmp_path, monkeypatch):
    """A copy of the folder is what a process leaves that is killed at that moment."""
    real, replace, number = files._sync, Path.replace, itertools.count()

    def copy_folder() -> None:
        if (tmp_path / "out").exists():
            shutil.copytree(tmp_path / "out", tmp_path / f"killed-{next(number)}")

    def sync(path: Path) -> None:
        copy_folder()
        real(path)

    def replace_and_copy(path: Path, target: Path) -> Path:
        copy_folder()
        moved = replace(path, target)
        copy_folder()
        return moved

    monkeypatch.setattr(files, "_sync", sync)
    monkeypatch.setattr(Path, "replace", replace_and_copy)
    fill(tmp_path / "out", a="old", b="old", figures__c="old")
    monkeypatch.undo()
    killed = sorted(tmp_path.glob("killed-*"))
    assert len(killed) > 15
    assert any({"a", "b"} <= {*contents(folder)} for folder in killed)  # also while files get their places
    assert not any(RunFolder(folder).is_finished for folder in killed)
    for folder in killed:
        fill(folder, a="new", figures__c="new")
        assert contents(folder) == {"a": "new", "figures/c": "new"}
    with pytest.raises(MedtlError, match=r"--out .* is not empty"):
        fill(tmp_path / "out", a="new")


def test_files_of_others_are_refused_and_stay(tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("mine")
    for number, (name, content) in enumerate(
        (
            ("notes.txt", "mine"),
            (".notes.partial", "mine"),
            ("figures/notes.txt", "mine"),
            (UNFINISHED, "This run is not finished."),
            (UNFINISHED, json.dumps({"files": "notes.txt"})),
        )
    ):
        folder = leave_killed(tmp_path / str(number))
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
        before = contents(folder)
        with pytest.raises(MedtlError, match="is not empty"):
            fill(folder, a="new")
        assert contents(folder) == before
    folder = leave_killed(tmp_path / "list")
    (folder / UNFINISHED).write_text(json.dumps({"files": ["", "README.md", "older.csv", "../outside.txt"]}))
    fill(folder, a="new")
    assert outside.read_text() == "mine"
    leave_killed(tmp_path / "link")
    (tmp_path / "link" / "figures").symlink_to(tmp_path)
    with pytest.raises(MedtlError, match="is not empty"):
        check_new(tmp_path / "link")


def test_after_an_error_the_folder_is_as_it_was(tmp_path):
    for folder in (tmp_path / "new" / "folder", tmp_path / "empty", leave_killed(tmp_path / "killed")):
        if folder.name == "empty":
            folder.mkdir()
        with pytest.raises(ZeroDivisionError), filling(folder, "works") as staging:
            write_atomic(staging / "a", "half")
            raise ZeroDivisionError
    assert not (tmp_path / "new").exists()
    assert not any((tmp_path / "empty").iterdir())
    fill(tmp_path / "killed", a="new")
    assert contents(tmp_path / "killed") == {"a": "new"}


def test_an_earlier_result_is_replaced_where_that_is_allowed(tmp_path):
    fill(tmp_path, **{"comparison.json": "old", "parts.png": "old"})
    check_new(tmp_path, earlier="comparison.json")
    with filling(tmp_path, "works", earlier="comparison.json") as staging:
        write_atomic(staging / "comparison.json", "new")
    assert contents(tmp_path) == {"comparison.json": "new", "parts.png": "old"}
    with pytest.raises(MedtlError, match="is not empty and holds no study"):
        check_new(tmp_path, earlier="study.json")


def test_a_second_process_is_refused(tmp_path):
    with lock_folder(tmp_path, RUN_LOCK, "evaluates a model"):
        with pytest.raises(MedtlError, match=r"Another process works in .*give another --out\."):
            fill(tmp_path, a="new")
        assert {*contents(tmp_path)} == {RUN_LOCK, f"{RUN_LOCK}.json"}
