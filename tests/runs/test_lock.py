"""Locks of run folders."""

import multiprocessing

import pytest
from filelock import FileLock

from hf_medtl import MedtlError, Recipe, run
from hf_medtl.runs import preflight
from hf_medtl.runs.lock import RUN_LOCK, check_unlocked, lock_folder
from tests.support.commands import options


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
    with lock_folder(folder, RUN_LOCK, "busy"):
        assert (folder / RUN_LOCK).exists()
    assert not any(folder.iterdir())


def test_a_lock_left_behind_does_not_make_a_folder_full(phantoms, tiny_checkpoint, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RUN_LOCK).touch()
    preflight.check(Recipe(**options(phantoms, tiny_checkpoint("vit"), tmp_path / "run")))


def test_a_folder_that_cannot_be_locked_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(self, *args: object) -> None:
        raise OSError(37, "No locks available")  # NFS without a lock daemon

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with lock_folder(tmp_path / "run", RUN_LOCK, "busy"):
        assert "cannot be locked" in caplog.text


def test_a_folder_below_a_file_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(MedtlError, match="is no possible folder"),
        lock_folder(tmp_path / "file" / "run", RUN_LOCK, "busy"),
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
