"""Run folders, atomic writes and disk-full detection."""

import errno
import json
import math
import threading

import pandas as pd
import pytest

from hf_medtl.common.files import list_files, read_json, write_atomic
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.common.system import explain_shortage, is_disk_full
from hf_medtl.errors import MedtlError


@pytest.fixture
def run(tmp_path):
    """A finished run without weights."""
    run = RunFolder(tmp_path)
    run.write("results.json", {"task": "image-classification", "n": 2})
    run.write("predictions.csv", "image_id,label,group,p_a\n007,,1,0.25\n008,NA,2,0.5\n")
    return run


def test_reads_results_and_tables_of_a_finished_run(run):
    assert run.is_finished
    assert run.check_finished() is run
    assert run.task == "image-classification"
    assert run.predictions["image_id"].tolist() == ["007", "008"]
    assert run.predictions["label"].tolist() == ["", "NA"]  # no label, and a label of that name
    assert run.predictions["group"].tolist() == ["1", "2"]
    assert run.predictions["p_a"].tolist() == [0.25, 0.5]
    assert repr(run.path) in repr(run) or str(run.path) in repr(run)


def test_missing_files_are_empty(run):
    assert run.recipe == {}
    assert run.config == {}
    assert run.splits is None
    assert run.external is None
    assert run.folds == []
    assert run.models == [run]
    assert run.history() == ([], None)


@pytest.mark.parametrize("missing", ["results.json", "predictions.csv"])
def test_run_without_results_is_not_finished(run, missing):
    (run.path / missing).unlink()
    with pytest.raises(MedtlError, match=r"is not a finished run: .* Give the folder of a finished run"):
        run.check_finished()


def test_run_marked_unfinished_is_not_finished(run):
    run.mark_unfinished()
    assert run.is_marked
    assert not run.is_finished
    with pytest.raises(MedtlError, match="is not a finished run"):
        run.check_finished()
    run.mark_finished()
    assert run.check_finished()


def test_write_replaces_what_was_read(run):
    assert run.results["n"] == 2
    run.write("results.json", {"task": "image-segmentation", "folds": [{"fold": 0}, {"fold": 1}]})
    assert run.task == "image-segmentation"
    assert [fold.path.name for fold in run.folds] == ["fold-0", "fold-1"]
    assert run.models == run.folds


def test_text_columns_of_splits_are_text(run):
    row = dict.fromkeys(("image_id", "path", "label", "patient", "group", "split", "sha256"), "1")
    run.write("splits.csv", pd.DataFrame([row]).to_csv(index=False))
    assert run.splits.to_dict("records") == [row]


def test_history_comes_from_newest_checkpoint(run):
    for step in (9, 10):
        (run.path / f"checkpoint-{step}").mkdir()
        state = {"log_history": [{"step": step, "loss": math.nan}], "best_global_step": 9}
        (run.path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    log, best = run.history()
    assert [row["step"] for row in log] == [10]
    assert best == 9


@pytest.mark.parametrize("content", ["{", '{"value": NaN}', '{"value": Infinity}'])
def test_damaged_json_raises(run, content):
    (run.path / "results.json").write_text(content)
    with pytest.raises(MedtlError, match=r"results\.json is damaged"):
        _ = RunFolder(run.path).results


def test_missing_json_raises(tmp_path):
    with pytest.raises(MedtlError, match="is damaged"):
        read_json(tmp_path / "results.json")


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_atomic(path, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_atomic(path, {"a": math.nan})
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert json.loads(path.read_text()) == {"a": 1}
    assert list_files(tmp_path) == {"results.json": path}


def test_concurrent_writes_do_not_collide(tmp_path):
    """Threads share a process id, as processes of two machines may."""
    path, texts = tmp_path / "a.txt", [str(number) * 100_000 for number in range(8)]
    threads = [threading.Thread(target=write_atomic, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list_files(tmp_path) == {"a.txt": path}


def test_disk_full_is_detected_in_causes_and_messages(tmp_path):
    full = OSError(errno.ENOSPC, "x")
    hidden = RuntimeError("download failed")
    hidden.__cause__ = RuntimeError("No space left on device (os error 28)")
    assert is_disk_full(full)
    assert is_disk_full(hidden)
    assert not is_disk_full(OSError(errno.EACCES, "x"), tmp_path)
    assert not is_disk_full(None)
    explained = MedtlError("No space left, make room.")
    explained.__cause__ = full
    assert not is_disk_full(explained)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full"),
        (OSError(errno.EFBIG, "File too large"), "The disk is full"),
        (RuntimeError("(sqlite3.OperationalError) disk I/O error\n[SQL: CREATE INDEX]"), "The disk is full"),
        (RuntimeError("[inline_container.cc:671] . unexpected pos 175296 vs 175184"), "The disk is full"),
        (RuntimeError("std::bad_alloc"), "too little memory"),
        (OSError(errno.EROFS, "Read-only file system"), "refuses to read or write a file ([Errno 30] Read-only"),
        (PermissionError(errno.EACCES, "Permission denied"), "refuses to read or write a file"),
        (OSError(errno.EIO, "Input/output error"), "that the disk is sound"),
        (RuntimeError("open file failed with strerror: Read-only file system"), "refuses to read or write a file"),
        (RuntimeError("(sqlite3.OperationalError) attempt to write a readonly database"), "refuses to read or write"),
        (MemoryError(), "There is too little memory (MemoryError)"),
        (RuntimeError("can't start new thread"), "There is too little memory (can't start new thread)"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried\nmore"),
            "too little memory",
        ),
    ],
)
def test_shortage_is_one_sentence(error, said):
    assert said in explain_shortage(error)
    assert "\n" not in explain_shortage(error)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("[pair.cc:561] Connection closed by peer [127.0.0.1]:56751. Check the logs.", "has ended; its own error says"),
        ("[pair.cc:545] Read error [127.0.0.1]:4488: Connection reset by peer.", "has ended; its own error says"),
        ("[unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation to complete", "stopped, or is too slow ("),
        ("Timed out after 4 seconds waiting for clients. 1/2 clients joined.", "(--ddp_timeout SECONDS)"),
    ],
)
def test_lost_process_of_a_job_is_one_sentence(message, said, monkeypatch):
    assert explain_shortage(RuntimeError(message)) is None  # such as of a web server
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert said in explain_shortage(RuntimeError(message))


def test_other_errors_are_no_shortage():
    assert explain_shortage(RuntimeError("shapes differ")) is None
    assert explain_shortage(MedtlError("No space left, make room.")) is None


def test_disk_without_free_space_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10})())
    assert is_disk_full(ValueError("x"), tmp_path)
    assert not is_disk_full(ValueError("x"), tmp_path / "missing")
