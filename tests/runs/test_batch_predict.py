"""Tables of predictions: bad inputs, names of every kind, and outputs that are checked before the work."""

import errno
import logging
import os
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest
from PIL import Image

from hf_medtl import MedtlError, Predictor
from hf_medtl.cli.predict import _describe
from hf_medtl.predict import Prediction
from hf_medtl.runs import batch_predict
from hf_medtl.runs.batch_predict import check_outputs, predict_files
from tests.support.image_files import write_noise_image
from tests.support.tiny_models import build_tiny, save_foreign_classifier


@pytest.fixture(scope="module")
def predictor(tmp_path_factory) -> Predictor:
    return Predictor.from_pretrained(save_foreign_classifier(tmp_path_factory.mktemp("model"), ("normal", "ill")))


def write(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_noise_image(path, seed)
    return path


def test_missing_file_and_empty_folder_are_rows(predictor, tmp_path):
    (tmp_path / "empty").mkdir()
    inputs = [write(tmp_path / "a.png"), tmp_path / "no.png", tmp_path / "empty", write(tmp_path / "more" / "b.png")]
    inputs[-1] = inputs[-1].parent
    assert predict_files(predictor, inputs, tmp_path / "out.csv", "model") == (4, 2)
    table = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert table["path"].tolist() == [*map(str, inputs[:3]), str(inputs[3] / "b.png")]
    assert [bool(error) for error in table["error"]] == [False, True, True, False]
    assert "empty has no images" in table["error"][2]


@pytest.mark.parametrize("kind", ["folders", "files"])
def test_equal_names_have_files_of_their_own(predictor, tmp_path, kind):
    files = [write(tmp_path / "scans" / name / "000.png", seed) for seed, name in enumerate(("one", "two"))]
    inputs = files if kind == "files" else [path.parent for path in files]
    maps = tmp_path / "maps"
    assert predict_files(predictor, inputs, tmp_path / "o.csv", "m", maps=maps, explain="gradcam") == (2, 0)
    written = sorted(path.relative_to(maps).as_posix() for path in maps.rglob("*.png"))
    assert written == ["one/000.png.png", "two/000.png.png"]
    # Names that differ keep the layout below their input.
    other = write(tmp_path / "scans" / "three" / "sub" / "001.png")
    inputs = [files[0].parent, tmp_path / "scans" / "three"]
    predict_files(predictor, inputs, tmp_path / "p.csv", "m", maps=tmp_path / "other", explain="gradcam")
    written = sorted(path.relative_to(tmp_path / "other").as_posix() for path in (tmp_path / "other").rglob("*.png"))
    assert written == ["000.png.png", f"sub/{other.name}.png"]


def test_relative_paths_stay_below_the_folder(predictor, tmp_path, monkeypatch):
    for seed, name in enumerate(("one", "two")):
        write(tmp_path / name / "000.png", seed)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    inputs = [Path("../one/000.png"), Path("../two/000.png")]
    assert predict_files(predictor, inputs, Path("o.csv"), "m", maps=Path("maps"), explain="gradcam") == (2, 0)
    assert sorted(map(str, Path("maps").rglob("*.png"))) == ["maps/one/000.png.png", "maps/two/000.png.png"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".CSV"])
def test_names_of_every_kind_are_in_the_table(predictor, tmp_path, suffix):
    long, names = "n" * 251 + ".png", ["a [1]#%20*.png", "[bold]b.png", "ü, \"quoted\".png"]  # fmt: skip
    paths = [write(tmp_path / "in" / name, i) for i, name in enumerate([*names, long])]
    try:
        paths[0] = paths[0].rename(os.fsdecode(os.fsencode(paths[0].parent) + b"/M\xfcller.png"))
        names[0] = "M\\xfcller.png"
    except OSError:
        pass  # this file system has no such names
    out, maps = tmp_path / f"out[1]{suffix}", tmp_path / "maps"
    assert predict_files(predictor, paths, out, "m", maps=maps, explain="gradcam") == (4, 0)
    read = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".jsonl": lambda path: pd.read_json(path, lines=True)}
    table = read[suffix.lower()](out)
    assert [Path(path).name for path in table["path"]] == [*names, long]
    assert len([*maps.iterdir()]) == 4
    assert max(len(os.fsencode(path.name)) for path in maps.iterdir()) <= 248


def test_outputs_are_checked_before_the_work(predictor, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "old.csv").write_text("")
    (tmp_path / "folder.csv").mkdir()
    for arguments, text in (
        ((tmp_path / "table.xlsx",), r"must end in \.csv"),
        ((tmp_path / "old.csv",), "already exists"),
        ((tmp_path / "folder.csv",), "already exists"),
        ((tmp_path / "file" / "out.csv",), "--out: .* written to"),
        ((tmp_path / "out.csv", tmp_path / "file"), "--masks: .* written to"),
        ((tmp_path / "out.csv", None, tmp_path / "file", "gradcam"), "--maps: .* written to"),
        ((tmp_path / "out.csv", None, tmp_path / "maps"), "must be given together"),
        ((tmp_path / "out.csv", tmp_path / "maps", tmp_path / "maps", "gradcam"), "overwrite"),
    ):
        with pytest.raises(MedtlError, match=text):
            check_outputs(*arguments)
    check_outputs(tmp_path / "new" / "folder" / "out.csv")
    with pytest.raises(MedtlError, match="at least 1, found 0"):
        predict_files(predictor, [tmp_path], tmp_path / "out.csv", "m", batch_size=0)


def test_full_disk_is_one_sentence_and_keeps_rows(predictor, tmp_path, monkeypatch):
    paths = [write(tmp_path / f"{i}.png", i) for i in range(3)]

    def fill_disk(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(batch_predict, "overlay", fill_disk)
    more = {"maps": tmp_path / "maps", "explain": "gradcam"}
    with pytest.raises(MedtlError, match=r"disk is full.*repeat the command"):
        predict_files(predictor, paths, tmp_path / "out.csv", "m", **more)
    monkeypatch.undo()
    monkeypatch.setattr(pd.DataFrame, "to_csv", fill_disk)
    with pytest.raises(MedtlError, match=r"disk is full: .*out\.csv could not be written"):
        predict_files(predictor, paths, tmp_path / "out.csv", "m", **more)
    monkeypatch.undo()
    monkeypatch.setattr(Predictor, "_predict_size", lambda *_: pytest.fail("all rows are there"))
    assert predict_files(predictor, paths, tmp_path / "out.csv", "m", **more) == (3, 0)
    assert not [*tmp_path.glob(".out*"), *tmp_path.glob("*part*")]


def test_read_only_folder_ends_the_work_and_keeps_rows(predictor, tmp_path, monkeypatch):
    """As the error of its row, it would leave a finished table without maps."""
    paths = [write(tmp_path / f"{i}.png", i) for i in range(3)]
    monkeypatch.setattr(batch_predict, "overlay", Mock(side_effect=OSError(errno.EROFS, "Read-only file system")))
    more = {"maps": tmp_path / "maps", "explain": "gradcam"}
    with pytest.raises(OSError, match="Read-only"):
        predict_files(predictor, paths, tmp_path / "out.csv", "m", **more)
    monkeypatch.undo()
    assert predict_files(predictor, paths, tmp_path / "out.csv", "m", **more) == (3, 0)
    assert len([*(tmp_path / "maps").iterdir()]) == 3


@pytest.mark.parametrize("processes", [1, 2])
def test_image_that_changed_before_the_work_went_on_is_predicted_again(predictor, tmp_path, monkeypatch, processes):
    paths, out = [write(tmp_path / f"{i}.png", i) for i in range(3)], tmp_path / "out.csv"
    predict_files(predictor, paths, tmp_path / "before.csv", "m")
    monkeypatch.setattr(pd.DataFrame, "to_csv", Mock(side_effect=OSError(errno.ENOSPC, "x")))
    with pytest.raises(MedtlError, match="disk is full"):  # when all rows are there
        predict_files(predictor, paths, out, "m")
    monkeypatch.undo()
    if processes == 2:  # the part of another process, whose rows come last
        (tmp_path / "out.csv.part-0.jsonl").rename(tmp_path / "out.csv.part-1.jsonl")
    write(paths[1], 7)
    predict_files(predictor, paths, tmp_path / "after.csv", "m")
    assert predict_files(predictor, paths, out, "m") == (3, 0)
    before, after, table = (pd.read_csv(tmp_path / name) for name in ("before.csv", "after.csv", "out.csv"))
    assert before["p_ill"][1] != pytest.approx(after["p_ill"][1], abs=1e-4)
    assert table["p_ill"].tolist() == pytest.approx(after["p_ill"].tolist(), abs=2e-6)


def test_command_killed_before_its_parts_were_removed_ends_well(predictor, tmp_path, monkeypatch):
    out = tmp_path / "out.csv"
    paths = [write(tmp_path / f"{i}.png", i) for i in range(2)]
    unlink = Path.unlink

    def unlink_or_die(path, **options):
        if ".part-" in path.name:
            raise KeyboardInterrupt
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", unlink_or_die)
    with pytest.raises(KeyboardInterrupt):
        predict_files(predictor, paths, out, "m")
    monkeypatch.undo()
    table = out.read_bytes()
    with pytest.raises(MedtlError, match="was started with m, this is other"):
        predict_files(predictor, paths, out, "other")
    assert predict_files(predictor, paths, out, "m") == (2, 0)
    assert out.read_bytes() == table
    assert not [*tmp_path.glob("*.part-*")]
    with pytest.raises(MedtlError, match="already exists"):
        predict_files(predictor, paths, out, "m")


def test_map_that_can_not_be_written_is_an_error_of_its_row(predictor, tmp_path):
    paths = [write(tmp_path / f"{i}.png", i) for i in range(2)]
    (tmp_path / "maps" / "0.png.png").mkdir(parents=True)  # a folder where the file should be
    more = {"maps": tmp_path / "maps", "explain": "gradcam"}
    assert predict_files(predictor, paths, tmp_path / "out.csv", "m", **more) == (2, 1)
    table = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert "no image of the result" in table["error"][0]
    assert table["p_ill"].between(0, 1).all()


def test_decisions_that_are_not_the_most_probable_label_are_told(predictor, tmp_path, caplog):
    config, before = predictor.config, dict(vars(predictor.config))
    config.positive_label, config.threshold = "ill", 1e-6
    path = write(tmp_path / "a.png")
    predictor.model.classifier.bias.data.copy_(predictor.model.classifier.bias.new_tensor([3.0, 0.0]))
    try:
        (prediction,) = predictor.predict(path)
        assert (prediction.label, prediction.decision) == ("normal", "ill")
        assert "ill (" in _describe(prediction) and "; most probable: normal" in _describe(prediction)
        with caplog.at_level(logging.INFO, "hf_medtl"):
            predict_files(predictor, [path], tmp_path / "out.csv", "m")
        assert "In 1 row the decision is not the most probable label. The decision is “ill”" in caplog.text
    finally:
        vars(config).clear()
        vars(config).update(before)
    same = Prediction("a.png", {"normal": 0.7, "ill": 0.3}, "normal", "normal")
    assert "most probable" not in _describe(same)


def test_masks_of_equal_names(tmp_path):
    files = [write(tmp_path / name / "000.png", seed) for seed, name in enumerate(("one", "two"))]
    masks = tmp_path / "masks"
    assert predict_files(Predictor(*build_tiny()), files, tmp_path / "o.csv", "m", masks=masks) == (2, 0)
    written = sorted(path.relative_to(masks).as_posix() for path in masks.rglob("*.png"))
    assert written == ["one/000.png.png", "two/000.png.png"]
    assert {Image.open(masks / path).size for path in written} == {Image.open(files[0]).size}
