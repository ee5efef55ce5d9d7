"""Checkpoints with hostile pickles."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from hf_medtl.errors import MedtlError
from hf_medtl.training.checkpoints import find_checkpoint, find_damage, write_checksums

STATES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt", "pytorch_model.bin")


class Hostile:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def checkpoint(finished_run, tmp_path):
    """A copy of a whole checkpoint."""
    newest = max(finished_run.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return shutil.copytree(newest, tmp_path / "run" / newest.name)


@pytest.mark.parametrize("name", STATES)
def test_code_in_a_file_of_a_checkpoint_is_not_run(name, checkpoint, tmp_path):
    assert find_damage(checkpoint) is None
    state = torch.load(checkpoint / name, weights_only=True) if name == "scheduler.pt" else {}
    torch.save(state | {"x": Hostile(tmp_path / "made")}, checkpoint / name)
    write_checksums(checkpoint)  # as its author would
    assert find_damage(checkpoint) == (f"{name} holds something else than tensors and numbers, which could run code")
    with pytest.raises(MedtlError, match=rf"is not a complete checkpoint: {name} holds something else"):
        find_checkpoint(str(checkpoint), tmp_path, ("no_lesion", "lesion"))
    assert find_checkpoint("auto", checkpoint.parent, ("no_lesion", "lesion")) is None
    assert not (tmp_path / "made").exists()


def test_a_file_in_a_zip_that_is_no_checkpoint_is_damaged(checkpoint):
    content = (checkpoint / "optimizer.pt").read_bytes()
    (checkpoint / "optimizer.pt").write_bytes(content.replace(b"data.pkl", b"lost.pkl"))
    assert find_damage(checkpoint) == "optimizer.pt is damaged (RuntimeError)"
