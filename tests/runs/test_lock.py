"""Locks of run folders."""

import json
import multiprocessing
import os
import socket
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.common.files import replacing
from hf_medtl.runs import preflight
from hf_medtl.runs.batch_predict import predict_files
from hf_medtl.runs.ensemble import ensemble
from hf_medtl.runs.lock import RUN_LOCK, check_unlocked, lock_folder
from tests.support.commands import ROOT, options

CARD = str(ROOT / "model_cards" / "brain.md")


def hold(folder, ready, stop) -> None:
    """Hold the lock of a folder in another process."""
    with FileLock(folder / RUN_LOCK):
        ready.set()
        stop.wait()


@pytest.fixture
def other_process(tmp_path):
    """Return another process that holds the lock of a folder."""
    (tmp_path / "run").mkdir()
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    process = context.Process(target=hold, args=(tmp_path / "run", ready, stop))
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_second_run_is_refused_before_anything_is_written_until_the_first_is_killed(
    other_process, phantoms, tiny_checkpoint, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    recipe = Recipe(**options(phantoms, tiny_checkpoint("vit"), folder))
    with pytest.raises(MedtlError, match="Another process trains in"):
        run(recipe)
    # Both pass the first check if they start at once.
    monkeypatch.setattr(preflight, "check_unlocked", lambda folder: None)
    with pytest.raises(MedtlError, match="Another process trains in"):
        run(recipe)
    assert [path.name for path in folder.iterdir()] == [RUN_LOCK]
    other_process.kill()
    other_process.join()
    check_unlocked(folder)
    with lock_folder(folder, RUN_LOCK, "trains"):
        assert (folder / RUN_LOCK).exists()
    assert not any(folder.iterdir())


def test_the_second_of_two_runs_is_refused_before_the_hub_is_asked(
    other_process, phantoms, tiny_checkpoint, tmp_path, monkeypatch
):
    asked = []
    monkeypatch.setattr("hf_medtl.runs.train.create_repository", lambda *args: asked.append(args))
    monkeypatch.setattr(preflight, "check_unlocked", lambda folder: None)
    values = options(
        phantoms, tiny_checkpoint("vit"), tmp_path / "run", push_to_hub=True, hub_model_id="me/run", model_card=CARD
    )
    with pytest.raises(MedtlError, match="Another process trains in"):
        run(Recipe(**values))
    assert not asked


def test_a_folder_made_for_a_run_that_the_hub_refuses_is_removed(phantoms, tiny_checkpoint, tmp_path, monkeypatch):
    def refuse(*args: object) -> str:
        raise MedtlError("no such owner")

    monkeypatch.setattr("hf_medtl.runs.train.create_repository", refuse)
    values = options(
        phantoms, tiny_checkpoint("vit"), tmp_path / "new", push_to_hub=True, hub_model_id="me/run", model_card=CARD
    )
    with pytest.raises(MedtlError, match="no such owner"):
        run(Recipe(**values))
    assert not (tmp_path / "new").exists()


@pytest.fixture
def fast_beats(monkeypatch):
    monkeypatch.setattr("hf_medtl.runs.lock.BEAT", 0.02)


def say_owner(folder: Path, **changes: object) -> Path:
    """Write who has the lock of a folder, as a process of this machine would."""
    folder.mkdir(exist_ok=True)
    start = psutil.Process(os.getpid()).create_time()
    owner = {"host": socket.gethostname(), "process": os.getpid(), "started": start, "since": "noon", "beat": 0}
    (folder / f"{RUN_LOCK}.json").write_text(json.dumps(owner | changes), encoding="utf-8")
    return folder


def test_the_refusal_names_host_process_and_time(tmp_path, fast_beats):
    with lock_folder(tmp_path / "run", RUN_LOCK, "trains"):
        owner = json.loads((tmp_path / "run" / f"{RUN_LOCK}.json").read_text(encoding="utf-8"))
        assert owner["host"] == socket.gethostname()
        who = rf"Another process trains in .*run \(process {os.getpid()} on {owner['host']}, since \d{{4}}-.*\)\. Wait"
        with pytest.raises(MedtlError, match=who), lock_folder(tmp_path / "run", RUN_LOCK, "trains"):
            pass
        with pytest.raises(MedtlError, match=who):
            check_unlocked(tmp_path / "run")
        assert (tmp_path / "run" / f"{RUN_LOCK}.json").exists()  # the refused process removes nothing
        assert (tmp_path / "run" / RUN_LOCK).exists()


@pytest.mark.parametrize("system_locks", [True, False])
@pytest.mark.parametrize(
    ("changes", "is_alive"),
    [
        ({}, True),
        ({"process": 2**22 + 1}, False),  # higher than any process id
        ({"started": 5.0}, False),  # the number belongs to another process now
        ({"started": None}, True),
        ({"host": "elsewhere"}, False),  # it does not renew its file
    ],
    ids=["alive", "ended", "reused", "unknown-start", "silent-host"],
)
def test_a_stale_owner_is_recognised(changes, is_alive, system_locks, tmp_path, monkeypatch, fast_beats):
    folder = say_owner(tmp_path / "run", **changes)
    if not system_locks:

        def refuse(self, *args: object) -> None:
            raise OSError(37, "No locks available")

        monkeypatch.setattr(FileLock, "acquire", refuse)
    if is_alive and not system_locks:
        with pytest.raises(MedtlError, match="since noon"), lock_folder(folder, RUN_LOCK, "trains"):
            pass
        assert (folder / f"{RUN_LOCK}.json").exists()
        return
    with lock_folder(folder, RUN_LOCK, "trains"):
        assert "noon" not in (folder / f"{RUN_LOCK}.json").read_text(encoding="utf-8")
    assert not any(folder.iterdir())


def test_a_process_on_another_machine_that_shows_it_is_alive_is_respected(tmp_path, monkeypatch, fast_beats):
    """Its file system may lock on one machine only."""
    with lock_folder(tmp_path / "run", RUN_LOCK, "trains"):
        monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
        monkeypatch.setattr(FileLock, "acquire", lambda self: None)
        with (
            pytest.raises(MedtlError, match="Another process trains"),
            lock_folder(tmp_path / "run", RUN_LOCK, "trains"),
        ):
            pass


def test_a_second_job_with_the_same_table_or_ensemble_is_refused(tmp_path):
    for name, start in (
        (".out.csv.lock", lambda: predict_files(None, [], tmp_path / "out.csv", "model")),
        (RUN_LOCK, lambda: ensemble([], tmp_path)),
    ):
        with lock_folder(tmp_path, name, "works"), pytest.raises(MedtlError, match="Another process") as error:
            start()
        assert ("give another --out." in str(error.value)) == (name != RUN_LOCK)
    assert not any(tmp_path.iterdir())


def test_what_a_killed_run_leaves_does_not_make_a_folder_full(tmp_path):
    folder = say_owner(tmp_path / "run")
    (folder / RUN_LOCK).touch()
    replacing(folder / "recipe.yaml").__enter__().touch()
    preflight.check_output_dir(folder, resuming=False)
    (folder / "notes.txt").touch()
    with pytest.raises(MedtlError, match="is not empty"):
        preflight.check_output_dir(folder, resuming=False)


def test_a_lock_left_behind_does_not_make_a_folder_full(phantoms, tiny_checkpoint, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RUN_LOCK).touch()
    preflight.check(Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run")))


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(self, *args: object) -> None:
        raise OSError(37, "No locks available")  # NFS without a lock daemon

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with lock_folder(tmp_path / "run", RUN_LOCK, "trains"):
        assert "cannot be locked" in caplog.text


def test_a_folder_below_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(MedtlError, match="is no possible folder"),
        lock_folder(tmp_path / "file" / "run", RUN_LOCK, "trains"),
    ):
        pass


def test_a_folder_without_write_access_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(MedtlError, match="can't be written to"):
        preflight.check_output_dir(tmp_path / "run", resuming=False)
    (tmp_path / "file").touch()
    with pytest.raises(MedtlError, match="file is a file"):
        preflight.check_output_dir(tmp_path / "file" / "run", resuming=False)
    with pytest.raises(MedtlError, match="is no possible folder"):
        preflight.check_output_dir(tmp_path / ("x" * 300), resuming=False)
