"""Atomic writes of files and folders, also when a writer fails in the middle."""

import errno
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from hf_medtl.common import files
from hf_medtl.common.files import (
    adding_files,
    list_files,
    remove_partial_files,
    replacing,
    replacing_folder,
    write_atomic,
)
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.evaluation.matplotlib_backend import write_figure
from hf_medtl.evaluation.ood import OutOfDistributionScorer
from hf_medtl.publish import hub
from hf_medtl.publish.card import write_evaluation, write_explanations
from hf_medtl.publish.templates import replace_section
from hf_medtl.report import build
from hf_medtl.space import publish

FULL = OSError(errno.ENOSPC, "No space left on device")
SCORER = OutOfDistributionScorer(*(np.zeros(shape, np.float32) for shape in ((1, 2), (1, 2), (1,))), 1.0)
EVALUATION = {"dataset": "x", "split": "all", "n": 1, "n_groups": 1, "metrics": {}, "slices": {}, "no_drop": ""}
REPORT = {"method": "gradcam", "n": 1, "verdict": {}}
# File in the folder of a run -> function that writes it.
WRITERS = {
    "README.md": lambda run: replace_section(run / "README.md", "waived", "text"),
    "evaluations.json": lambda run: write_evaluation(run, EVALUATION, "X", ()),
    "explanations.json": lambda run: write_explanations(run, REPORT, "test"),
    "results.json": lambda run: RunFolder(run).write("results.json", {"n": 2}),
    "predictions.csv": lambda run: RunFolder(run).write("predictions.csv", pd.DataFrame({"n": [2]}).to_csv()),
    "splits.csv": lambda run: RunFolder(run).write("splits.csv", "b"),
    "config.json": lambda run: RunFolder(run).write("config.json", {"n": 2}),
    "figures/roc.png": lambda run: write_figure(Figure(), run / "figures" / "roc.png"),
    "outliers.safetensors": SCORER.save,
    "handler.py": hub._write_handler,
    "requirements.txt": hub._write_handler,
    "report.html": lambda run: build.write_report([run], run / "report.html"),
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder in which every file has some content."""
    contents = {"evaluations.json": "{}", "config.json": "{}", "README.md": "---\nmodel_name: x\n---\n# x\n"}
    for name in WRITERS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(contents.get(name, "old"), encoding="utf-8")
    monkeypatch.setattr(build, "build_report", lambda *args: None)
    monkeypatch.setattr(build, "render_page", lambda report: "page")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_every_file_whole(name, run, monkeypatch):
    before = contents(run)

    def fail(path: Path) -> None:
        """Fail as a disk does that becomes full while a file is flushed to it."""
        raise FULL

    monkeypatch.setattr(files, "_sync", fail)
    with pytest.raises(OSError, match="No space left"):
        WRITERS[name](run)
    assert contents(run) == before
    monkeypatch.undo()


@pytest.mark.parametrize("name", ["figures/roc.png", "outliers.safetensors"])
def test_a_writer_that_fails_in_the_middle_leaves_the_old_file(name, run, monkeypatch):
    before = contents(run)

    def write_half(*args: object, **options: object) -> None:
        next(Path(part) for part in args if isinstance(part, Path)).write_bytes(b"half")
        raise FULL

    monkeypatch.setattr(Figure, "savefig", write_half)
    monkeypatch.setattr("hf_medtl.evaluation.ood.save_file", write_half)
    with pytest.raises(OSError, match="No space left"):
        WRITERS[name](run)
    assert contents(run) == before


def test_a_failed_space_or_export_leaves_the_folder(tmp_path, monkeypatch):
    def fail() -> None:
        raise FULL

    monkeypatch.setattr(publish, "generate_examples", fail)
    with pytest.raises(OSError, match="No space left"):
        publish.write_space(tmp_path / "space")
    assert not contents(tmp_path)
    write_atomic(tmp_path / "model.onnx", "old")
    for context in (replacing_folder, adding_files):
        with pytest.raises(OSError, match="No space left"), context(tmp_path) as staging:
            write_atomic(staging / "model.onnx", "new")
            raise FULL
        assert contents(tmp_path) == {"model.onnx": b"old"}
        assert [*tmp_path.parent.glob(".*.partial")] == []


def test_a_folder_is_replaced_as_a_whole(tmp_path, monkeypatch):
    folder = tmp_path / "onnx"
    for files_of in ({"a": b"1", "b/c": b"2"}, {"a": b"3"}):
        with replacing_folder(folder) as staging:
            for name, content in files_of.items():
                (staging / name).parent.mkdir(exist_ok=True)
                (staging / name).write_bytes(content)
        assert contents(folder) == files_of
    real, calls = Path.replace, []

    def fail_second(path: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == 2:
            raise FULL
        return real(path, target)

    monkeypatch.setattr(Path, "replace", fail_second)
    with pytest.raises(OSError, match="No space left"), replacing_folder(folder) as staging:
        (staging / "a").write_bytes(b"4")
    assert contents(tmp_path) == {"onnx/a": b"3"}
    with adding_files(folder) as staging:
        (staging / "b").write_bytes(b"5")
    assert contents(tmp_path) == {"onnx/a": b"3", "onnx/b": b"5"}


def test_files_and_their_folder_reach_the_disk(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), real(file)))
    write_atomic(tmp_path / "a", b"1")
    assert synced == [(tmp_path / "a").stat().st_ino, tmp_path.stat().st_ino]


def test_line_ends_are_the_same_everywhere_and_a_link_stays_one(tmp_path):
    (tmp_path / "b").symlink_to(tmp_path / "a")
    write_atomic(tmp_path / "b", "1\n2\n")
    assert (tmp_path / "b").is_symlink()
    assert (tmp_path / "a").read_bytes() == b"1\n2\n"


def test_what_a_killed_process_left_is_not_listed_and_removed(tmp_path):
    write_atomic(tmp_path / "figures.partial", "a file of the user")
    left = []
    for context in (replacing(tmp_path / "a"), adding_files(tmp_path)):
        left.append(context.__enter__())
    left[0].write_bytes(b"half")
    (left[1] / "b").write_bytes(b"half")
    assert [*list_files(tmp_path)] == ["figures.partial"]
    remove_partial_files(tmp_path)
    assert [*contents(tmp_path)] == ["figures.partial"]


def test_the_next_writer_removes_what_ended_processes_left_and_nothing_else(tmp_path):
    with replacing(tmp_path / "a") as own:
        own.write_bytes(b"half")
        running = own.name
        # The same process number, started at another time: of a process that has ended.
        ended = f".{running[1:17]}00000005{running[25:]}"
        elsewhere = f".00000000{running[9:]}"  # another machine's
        older = f".{'f' * 32}.partial"  # of a version whose names said nothing of the process
        (tmp_path / "folder").mkdir()
        for name in (ended, elsewhere, older, ".notes.partial", "folder/a"):
            (tmp_path / name).write_bytes(b"half")
        (tmp_path / ended).replace(tmp_path / "folder" / ended)
        (tmp_path / ended).mkdir()
        (tmp_path / ended / "model.safetensors").write_bytes(b"half")
        files._remove_abandoned.cache_clear()  # this process has written here before
        write_atomic(tmp_path / "b", b"whole")
        kept = {running, elsewhere, older, ".notes.partial", "folder/a", f"folder/{ended}"}
        assert {*contents(tmp_path)} == kept | {"b"}
        assert not (tmp_path / ended).exists()
        write_atomic(tmp_path / "folder" / "b", b"whole")
        assert not (tmp_path / "folder" / ended).exists()
    assert (tmp_path / "a").read_bytes() == b"half"
