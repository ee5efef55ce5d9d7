"""Checksums of a run's files."""

import json
import shutil

import pytest

from hf_medtl.common.checksums import (
    CHECKSUMS,
    SHOWN,
    check_unchanged,
    find_changed_files,
    read_checksums,
    recording_folder,
    sha256_of_file,
)
from hf_medtl.common.files import replacing_folder
from hf_medtl.common.run_folder import RunFolder
from hf_medtl.errors import MedtlError
from hf_medtl.publish.templates import replace_section


@pytest.fixture
def run(tmp_path):
    """A finished run without weights."""
    run = RunFolder(tmp_path)
    run.write("README.md", "# x\n")
    run.write("results.json", {"n": 2})
    for name in ("figures/roc.png", "export/onnx/model.onnx", "checkpoint-8/model.safetensors", "handler.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"content")
    run.mark_finished()
    return run


def test_every_file_of_a_finished_run_is_covered_and_checked(run):
    covered = read_checksums(run.path)
    assert [*covered] == ["README.md", "export/onnx/model.onnx", "figures/roc.png", "results.json"]
    assert covered["README.md"] == sha256_of_file(run.path / "README.md")
    assert find_changed_files(run.path) == []
    for name in covered:
        before = (run.path / name).read_bytes()
        (run.path / name).write_bytes(bytes([before[0] ^ 1]) + before[1:])  # one bit
        assert find_changed_files(run.path) == [
            f"{run.path / name} has changed since it was written (its SHA-256 differs)"
        ]
        (run.path / name).unlink()
        assert find_changed_files(run.path) == [f"{run.path / name} is missing"]
        (run.path / name).write_bytes(before)


def test_writing_a_file_updates_its_checksum_alone(run):
    (run.path / "figures" / "roc.png").write_bytes(b"damaged")
    replace_section(run.path / "README.md", "waived", "text")
    run.write("evaluations.json", {"n": 3})
    assert read_checksums(run.path)["evaluations.json"] == sha256_of_file(run.path / "evaluations.json")
    assert find_changed_files(run.path) == [
        f"{run.path / 'figures' / 'roc.png'} has changed since it was written (its SHA-256 differs)"
    ]


@pytest.mark.parametrize("killed_at", [1, 2, 3])
def test_a_killed_write_leaves_a_run_that_is_right(run, killed_at, monkeypatch):
    """Of the checksums with both contents, of the file, of the checksums with the new one."""
    from hf_medtl.common import files

    real, calls = files._sync, []

    def kill(path) -> None:
        if not path.is_dir() and len(calls) == killed_at - 1:
            raise KeyboardInterrupt
        calls.extend([path] if not path.is_dir() else [])
        real(path)

    monkeypatch.setattr(files, "_sync", kill)
    with pytest.raises(KeyboardInterrupt):
        run.write("results.json", {"n": 3})
    monkeypatch.undo()
    assert find_changed_files(run.path) == []
    assert run.results["n"] == (3 if killed_at == 3 else 2)


def test_an_export_that_is_replaced_is_recorded_and_one_that_fails_is_not(run):
    folder = run.path / "export" / "onnx"
    with recording_folder(run.path, "export/onnx"), replacing_folder(folder) as staging:
        (staging / "model.xml").write_bytes(b"new")
    assert "export/onnx/model.xml" in read_checksums(run.path)
    assert find_changed_files(run.path) == []
    with pytest.raises(OSError, match="full"), recording_folder(run.path, "export/onnx"):
        raise OSError("full")
    assert "export/onnx/model.xml" in read_checksums(run.path)


def test_an_export_may_be_deleted_or_made_again(run):
    (run.path / "export" / "onnx" / "model.onnx").write_bytes(b"damaged")
    check_unchanged(run.path, "", SHOWN)
    with pytest.raises(MedtlError, match=r"model\.onnx has changed"):
        check_unchanged(run.path, "Nothing was uploaded.")
    shutil.rmtree(run.path / "export" / "onnx")
    check_unchanged(run.path, "")


def test_the_card_may_be_edited_by_hand_and_other_files_may_not(run):
    (run.path / "README.md").write_text("# mine\n", encoding="utf-8")
    check_unchanged(run.path, "Nothing was uploaded.")
    (run.path / "results.json").write_text('{"n": 9}', encoding="utf-8")
    with pytest.raises(MedtlError, match=r"results\.json has changed .* Nothing was uploaded\. Restore it"):
        check_unchanged(run.path, "Nothing was uploaded.")


@pytest.mark.parametrize("name", ["../outside.json", "/etc/passwd", "link.json"])
def test_a_list_of_files_elsewhere_is_not_followed(run, name, tmp_path_factory):
    outside = tmp_path_factory.mktemp("other") / "outside.json"
    outside.write_text("{}", encoding="utf-8")
    (run.path / "link.json").symlink_to(outside)
    (run.path / CHECKSUMS).write_text(json.dumps({"files": {name: sha256_of_file(outside)}}), encoding="utf-8")
    assert find_changed_files(run.path) == [f"{run.path / CHECKSUMS} is damaged: {name!r} is not in the folder"]


def test_a_run_without_checksums_and_damaged_ones(run):
    (run.path / CHECKSUMS).write_text(json.dumps({"files": [1]}), encoding="utf-8")
    with pytest.raises(MedtlError, match=r"checksums\.json is damaged"):
        check_unchanged(run.path, "")
    run.mark_unfinished()  # its files will change
    assert not (run.path / CHECKSUMS).exists()
    check_unchanged(run.path, "")
    run.write("results.json", {"n": 4})
    assert not (run.path / CHECKSUMS).exists()
