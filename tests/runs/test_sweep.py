"""Sweeps: which cells run, interruptions, locks and folders."""

import signal

import pytest

from hf_medtl.errors import Interrupted, MedtlError
from hf_medtl.runs.sweep import Sweep, check_sweep_folder, lock_sweep


class Cell:
    """Cell that counts as finished once it has run."""

    def __init__(self, name: str, is_finished: bool = False) -> None:
        self.name, self.is_finished = name, is_finished

    def run(self) -> None:
        self.is_finished = True


@pytest.mark.slow
def test_runs_missing_cells_in_order():
    cells, ran = [Cell("a"), Cell("b", is_finished=True), Cell("c")], []
    Sweep(cells, "cells").run_missing(lambda cell: (ran.append(cell.name), cell.run()))
    assert ran == ["a", "c"]
    assert Sweep(cells, "cells").missing == []


@pytest.mark.parametrize("stop", [Interrupted("x", signal.SIGTERM), KeyboardInterrupt()])
def test_interruption_reports_progress_and_how_to_resume(stop):
    def run(cell: Cell) -> None:
        if cell.name == "b":
            raise stop
        cell.run()

    sweep = Sweep([Cell("a"), Cell("b"), Cell("c")], "folds", "the same command, again.")
    with pytest.raises(type(stop), match=r"^1 of 3 folds are finished\. Go on: the same command, again\.$") as caught:
        sweep.run_missing(run)
    assert getattr(caught.value, "signal", None) == getattr(stop, "signal", None)


def test_errors_of_a_cell_are_passed_on():
    def run(cell: Cell) -> None:
        raise MedtlError("no data")

    with pytest.raises(MedtlError, match="no data"):
        Sweep([Cell("a")], "cells").run_missing(run)


def test_lock_refuses_a_second_process_and_is_released(tmp_path):
    folder = tmp_path / "new"
    with (
        lock_sweep(folder, "study"),
        pytest.raises(MedtlError, match="Another process runs a study in"),
        lock_sweep(folder, "study"),
    ):
        pass
    with pytest.raises(ZeroDivisionError), lock_sweep(folder, "study"):
        _ = 1 / 0
    with lock_sweep(folder, "study"):
        assert (folder / ".study.lock").exists()


def test_folder_check_refuses_other_contents(tmp_path):
    check_sweep_folder(tmp_path / "new", ["fold-*"], "folds")
    for name in ("fold-0", "fold-12", ".lock", "README.md"):
        (tmp_path / name).touch()
    check_sweep_folder(tmp_path, ["fold-*", "README.md"], "folds")
    with pytest.raises(MedtlError, match=r"else than folds \(README.md\)\. Give .* or holds folds; or give --fold\."):
        check_sweep_folder(tmp_path, ["fold-*"], "folds", "; or give --fold")
    with pytest.raises(MedtlError, match="is a file"):
        check_sweep_folder(tmp_path / "README.md", ["fold-*"], "folds")
