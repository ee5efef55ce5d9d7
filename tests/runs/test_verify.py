"""Integrity of finished runs, and `hf-medtl verify`."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from hf_medtl import MedtlError
from hf_medtl.cli.app import app
from hf_medtl.common.checksums import CHECKSUMS
from hf_medtl.export.export import export_run
from hf_medtl.publish.hub import plan_upload
from hf_medtl.runs.ensemble import ensemble
from hf_medtl.runs.verify import verify
from tests.support.commands import ROOT


@pytest.fixture
def whole_run(finished_run, tmp_path):
    """A copy of the finished run with its checksums."""
    return shutil.copytree(finished_run, tmp_path / "whole")


def flip_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def test_a_finished_run_is_whole(finished_run):
    found = verify(finished_run)
    assert (found.problems, found.notes) == ([], [])
    assert found.files > 25  # those of both checkpoints, too
    files = json.loads((finished_run / CHECKSUMS).read_text(encoding="utf-8"))["files"]
    assert {"README.md", "model.safetensors", "config.json", "results.json", "splits.csv", "predictions.csv"} <= {
        *files
    }


def test_a_flipped_bit_is_found_in_every_file(whole_run):
    names = [*json.loads((whole_run / CHECKSUMS).read_text(encoding="utf-8"))["files"]]
    checkpoint = next(whole_run.glob("checkpoint-*"))
    states = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "model.safetensors")
    paths = [whole_run / name for name in names] + [checkpoint / name for name in states]
    for path in paths:
        flip_bit(path)
    problems = verify(whole_run).problems
    assert len(problems) == len(names) + 1  # of a checkpoint the first file
    assert all(any(str(path) in problem for problem in problems) for path in paths[: len(names)])
    for path in paths:
        flip_bit(path)
    for name in states:
        flip_bit(checkpoint / name)
        (problem,) = verify(whole_run).problems
        assert str(checkpoint) in problem
        flip_bit(checkpoint / name)
    assert not verify(whole_run).problems


def test_changed_weights_are_neither_exported_nor_joined_nor_published(whole_run, tmp_path):
    flip_bit(whole_run / "model.safetensors")
    with pytest.raises(MedtlError, match=r"model\.safetensors has changed .* Nothing was exported"):
        export_run(whole_run, "onnx")
    with pytest.raises(MedtlError, match=r"model\.safetensors has changed .* No ensemble was made"):
        ensemble([whole_run, whole_run], tmp_path / "both")
    with pytest.raises(MedtlError, match=r"model\.safetensors has changed .* Nothing was uploaded"):
        plan_upload(whole_run)
    verify(whole_run, accept=True)
    assert "model.safetensors" in plan_upload(whole_run)


def test_a_run_of_an_older_version_is_read(whole_run):
    (whole_run / CHECKSUMS).unlink()
    for checkpoint in whole_run.glob("checkpoint-*"):
        (checkpoint / "SHA256SUMS").unlink()
    found = verify(whole_run)
    assert not found.problems
    assert [note.partition(" has no ")[2].split()[0] for note in found.notes] == [CHECKSUMS, *["SHA256SUMS:"] * 2]
    weights = whole_run / "model.safetensors"
    tensors = load_file(weights)
    next(iter(tensors.values())).fill_(torch.nan)
    save_file(tensors, weights, {"format": "pt"})
    (whole_run / "results.json").write_text('{"n":', encoding="utf-8")
    (whole_run / "predictions.csv").unlink()
    (whole_run / "figures" / "history.png").write_bytes(b"")
    found = verify(whole_run)
    said = "\n".join(found.problems)
    assert len(found.problems) == 4, said
    for text in (
        "has NaN or infinity in",
        "results.json is damaged",
        "predictions.csv is missing",
        "history.png is damaged",
    ):
        assert text in said
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors is damaged" in "\n".join(verify(whole_run).problems)
    (whole_run / "UNFINISHED").touch()
    assert "is not finished" in verify(whole_run).notes[0]


def test_a_published_folder_of_the_first_version_lacks_only_its_card():
    folder = ROOT / "tests" / "publish" / "published" / "0.1.0" / "vit"
    result = verify(folder)
    assert result.problems == [f"{folder / 'README.md'} is missing"]
    assert result.notes[0].startswith(f"{folder} has no checksums.json")


def test_a_search_needs_no_weights(finished_run, tmp_path):
    for name in ("splits.csv", "recipe.yaml"):
        shutil.copy(finished_run / name, tmp_path / name)
    assert any("config.json is missing" in problem for problem in verify(tmp_path).problems)
    (tmp_path / "search.db").touch()
    assert verify(tmp_path).problems == []


def test_the_command_names_each_file(whole_run, tmp_path):
    command = CliRunner()
    result = command.invoke(app, ["verify", str(whole_run)])
    assert (result.exit_code, result.output.count("\n")) == (0, 1)
    assert "no problems" in result.output
    (whole_run / "card.json").unlink()
    flip_bit(whole_run / "splits.csv")
    result = command.invoke(app, ["verify", str(whole_run)])
    assert result.exit_code == 1
    assert f"{whole_run / 'card.json'} is missing\n" in result.output
    assert f"{whole_run / 'splits.csv'} has changed" in result.output
    assert "2 problems." in result.output
    with pytest.raises(MedtlError, match="holds no run"):
        command.invoke(app, ["verify", str(tmp_path)], catch_exceptions=False, standalone_mode=False)
