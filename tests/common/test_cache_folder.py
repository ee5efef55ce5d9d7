"""Cache folder: where there is no home, where it can't be written to, and where the disk is full."""

import errno
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_medtl import read_image, survey
from hf_medtl.common import system
from hf_medtl.common.system import cache_dir, writing_cache
from hf_medtl.data.cache import prepare_images
from hf_medtl.data.fingerprints import compute_fingerprints
from hf_medtl.data.images import encode_image
from hf_medtl.errors import MedtlError
from tests.support.image_files import write_noise_image


@pytest.fixture
def no_cache_set(monkeypatch, tmp_path):
    """Unset the variables, and let temporary folders be below `tmp_path`."""
    for name in ("HF_MEDTL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(system.tempfile, "tempdir", str(tmp_path))
    system._temporary_cache.cache_clear()
    system._why_unwritable.cache_clear()
    yield
    system._temporary_cache.cache_clear()


def without_home(monkeypatch):
    def fail(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)


def test_is_what_the_user_set_even_without_a_home(monkeypatch, tmp_path):
    without_home(monkeypatch)
    monkeypatch.setenv("HF_MEDTL_CACHE", str(tmp_path / "mine"))
    assert cache_dir() == tmp_path / "mine"


def test_is_in_the_users_cache_folder(monkeypatch, tmp_path, no_cache_set):
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert cache_dir() == tmp_path / "home" / ".cache" / "hf_medtl"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "hf_medtl"


@pytest.mark.parametrize("home", ["none", "a file"])
def test_falls_back_to_a_private_temporary_folder_with_one_warning(home, monkeypatch, tmp_path, no_cache_set, caplog):
    (tmp_path / "file").touch()
    if home == "none":
        without_home(monkeypatch)
    else:
        monkeypatch.setattr(Path, "home", lambda: tmp_path / "file")  # nothing can be made below a file
    with caplog.at_level(logging.WARNING):
        folder = cache_dir()
        assert cache_dir() == folder
    assert folder.parent == tmp_path and folder.is_dir()
    assert sys.platform == "win32" or folder.stat().st_mode & 0o777 == 0o700
    assert caplog.text.count("Set HF_MEDTL_CACHE") == 1
    folder.rmdir()
    folder.symlink_to(tmp_path)  # somebody else's doing
    system._temporary_cache.cache_clear()
    assert cache_dir() not in (folder, tmp_path)


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.ENOSPC, "No space left on device"),
              OSError(errno.EROFS, "Read-only file system")],
)  # fmt: skip
def test_errors_of_writing_name_the_variable(error, tmp_path):
    with pytest.raises(MedtlError, match=rf"{error.strerror}\). Set HF_MEDTL_CACHE to a folder that"):  # noqa: SIM117
        with writing_cache(tmp_path / "cache"):
            raise error


def test_set_folder_that_can_not_be_written_to(monkeypatch, tmp_path, caplog):
    """Fingerprints only have to be computed again; prepared images need the space."""
    (tmp_path / "file").touch()
    paths = [write_noise_image(tmp_path / "data" / label / f"{i}.png", i) for i, label in enumerate("aabb")]
    monkeypatch.setenv("HF_MEDTL_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        assert len(survey("imagefolder", tmp_path / "data").table) == 4
    assert "can't be written to (Not a directory). Set HF_MEDTL_CACHE" in caplog.text
    with pytest.raises(MedtlError, match=r"Not a directory\). Set HF_MEDTL_CACHE"):
        prepare_images(paths, ["0" * 64] * 4, np.stack, "key")


def test_prepared_images_of_a_read_only_cache_are_used(monkeypatch, tmp_path):
    import hashlib

    path = write_noise_image(tmp_path / "a.png", 1)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setenv("HF_MEDTL_CACHE", str(tmp_path / "cache"))
    arguments = [path], [digest], lambda images: np.stack([np.asarray(image) for image in images]), "key"
    first = prepare_images(*arguments)["pixels"]

    def fail(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", fail)
    monkeypatch.setattr("hf_medtl.data.cache.FileLock", fail)
    assert prepare_images(*arguments)["pixels"][:] == first[:]


def test_errors_are_not_kept_and_damaged_caches_are_replaced(monkeypatch, tmp_path):
    path = tmp_path / "brain.nii.gz"
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(
        nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 900, (20, 20, 3)).astype(np.int16), np.eye(4)), path
    )
    monkeypatch.setenv("HF_MEDTL_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "nibabel", None)
        (item,) = compute_fingerprints([path], "brains")
        assert "pip install" in item.error
    (item,) = compute_fingerprints([path], "brains")
    assert not item.error
    (cache,) = (tmp_path / "cache").rglob("*.parquet")
    cache.write_bytes(b"damaged")
    assert compute_fingerprints([path], "brains") == [item]
    assert cache.stat().st_size > 1000
    monkeypatch.setattr("hf_medtl.data.fingerprints.read_image", lambda *_, **__: pytest.fail("not from the cache"))
    assert compute_fingerprints([path], "brains") == [item]


def test_a_file_that_memory_does_not_suffice_for_is_one_error(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("hf_medtl.data.images._read_ordinary", fail)
    with pytest.raises(MedtlError, match="not enough memory"):
        read_image(encode_image(Image.new("L", (9, 9))))
