"""Listings of data folders: training, prediction, audit and demo see the same images."""

import logging
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from hf_medtl import MedtlError
from hf_medtl.common.text import printable
from hf_medtl.data.inputs import image_files, iter_sources
from hf_medtl.data.listing import is_system_file, list_images, list_paths
from hf_medtl.data.loading import survey
from hf_medtl.data.readers import files_below, is_picture
from hf_medtl.data.sources import picture_files
from hf_medtl.data.specs import DATASETS
from hf_medtl.space.archives import read_entries
from tests.support.image_files import write_noise_image

SYSTEM = ["x/._a.png", "x/.a.png", ".hidden/a.png", "__MACOSX/x/._a.png", "x/Thumbs.db", "@eaDir/a.png/thumb.jpg",
          "x/.DS_Store", "x/desktop.ini", "DICOMDIR", "#recycle/a.png", "@Recycle/x/a.png", "#snapshot/d/a.png",
          "x/@Recently-Snapshot/a.png", "x/~$labels.xlsx"]  # fmt: skip


def write(path: Path, content: bytes = bytes(128) + b"DICM") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with images, a DICOM file without extension, system files and texts."""
    for name in ("x/b.png", "x/a [1] #2.PNG", "y/c.jpg", f"y/{'n' * 251}.png", "y/IM0001", *SYSTEM):
        write(tmp_path / "data" / name)
    write(tmp_path / "data" / "notes.txt")
    write(tmp_path / "data" / "README", b"no DICOM")
    return tmp_path / "data"


def test_training_and_prediction_list_the_same_images(root):
    expected = ["x/a [1] #2.PNG", "x/b.png", "y/IM0001", "y/c.jpg", f"y/{'n' * 251}.png"]
    assert list_images(root) == image_files(root) == [root / path for path in expected]
    assert list_paths(root) == sorted([*expected, "README", "notes.txt"])


def test_masks_beside_images_are_not_predicted_but_named_ones_are(tmp_path, caplog):
    for name in ("x.png", "x_mask.png", "masks/y.png", "images/y.png", "only_mask.png"):
        write(tmp_path / name)
    assert image_files(tmp_path) == [tmp_path / name for name in ("images/y.png", "only_mask.png", "x.png")]
    assert caplog.messages == [f"{tmp_path}: 2 masks beside images are left out; name the files to predict them."]
    assert image_files(tmp_path / "masks") == [tmp_path / "masks" / "y.png"]
    named = [tmp_path / "x_mask.png", tmp_path / "x.png"]
    assert list(iter_sources(named)) == named


def test_names_of_earlier_releases_remain(root):
    assert picture_files(root) == image_files(root)
    images = [root / path for path in files_below(DATASETS["imagefolder"], root) if is_picture(root, path)]
    assert images == list_images(root)


def test_demo_skips_the_same_files_in_archives(root, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted(root.rglob("*")):
            archive.write(path, path.relative_to(root))
    names = [name for name, *_ in read_entries((tmp_path / "images.zip").read_bytes(), 1000)]
    assert sorted(names) == list_paths(root)


@pytest.mark.parametrize("name", SYSTEM)
def test_knows_system_files(name):
    assert any(map(is_system_file, name.split("/")))


def test_follows_links_but_no_loops(root):
    elsewhere = root.parent / "elsewhere"
    write(elsewhere / "deep" / "d.png")
    try:
        (root / "linked").symlink_to(elsewhere, target_is_directory=True)
        (elsewhere / "deep" / "back").symlink_to(elsewhere, target_is_directory=True)
        (root / "y" / "loop").symlink_to(root, target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    images = list_images(root)
    assert root / "linked/deep/d.png" in images
    assert len(images) == 6


def test_link_to_nothing_is_one_unreadable_file(root):
    (root / "x" / "gone.png").symlink_to(root / "absent.png")
    assert root / "x/gone.png" in list_images(root)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipe_is_no_file(root):
    os.mkfifo(root / "x" / "pipe.png")
    assert root / "x/pipe.png" not in list_images(root)


def test_folder_that_can_not_be_read_is_reported(root, monkeypatch, caplog):
    def refuse(path, scandir=os.scandir):
        if Path(path).name == "x":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with caplog.at_level(logging.WARNING):
        assert root / "y/c.jpg" in list_images(root)
    assert "x can't be read (Permission denied), so its files are left out" in caplog.text


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("absent", "it does not exist"),
        ("data.zip", "it is an archive. Unpack it"),
        ("data.csv", "it is a table. Read it with --dataset table"),
        ("data.png", "it is a file"),
    ],
)
def test_no_folder_is_an_error(tmp_path, name, hint):
    if name != "absent":
        write(tmp_path / name)
    with pytest.raises(MedtlError, match=f"{name} is not a folder: {hint}"):
        survey("imagefolder", tmp_path / name)


def test_names_that_are_not_utf8_are_excluded_with_their_reason(tmp_path, caplog):
    for i in range(24):
        write_noise_image(tmp_path / "data" / ("a", "b")[i % 2] / f"{i}.png", i)
    name = os.fsdecode(b"M\xfcller.png")
    try:
        shutil.move(tmp_path / "data/a/0.png", tmp_path / "data/a" / name)
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    assert printable(name) == r"M\xfcller.png"
    surveyed = survey("imagefolder", tmp_path / "data")
    assert len(surveyed.table) == 23
    excluded = surveyed.excluded.to_dict("records")
    assert [row["path"] for row in excluded] == [r"a/M\xfcller.png"]
    assert excluded[0]["kind"] == "unreadable"
    assert excluded[0]["reason"].startswith("its name is not UTF-8")
    surveyed.excluded.to_csv(tmp_path / "excluded.csv", encoding="utf-8")
    assert r"a/M\xfcller.png: its name is not UTF-8" in caplog.text
    (tmp_path / "data/b").rename(tmp_path / "data" / os.fsdecode(b"b\xf6sartig"))
    with pytest.raises(MedtlError, match=r"13 of 24 files are unreadable: a/M\\xfcller.png: its name is not UTF-8"):
        survey("imagefolder", tmp_path / "data")
    shutil.move(tmp_path / "data", tmp_path / os.fsdecode(b"\xfc"))
    with pytest.raises(MedtlError, match="the name of the folder is not UTF-8"):
        survey("imagefolder", tmp_path / os.fsdecode(b"\xfc"))
