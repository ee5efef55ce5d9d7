"""Version of the code: commit of a clone or of an installation from git, and what is known about its authors."""

import json
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest

from hf_medtl.common import code_version
from hf_medtl.version import __version__


def install(monkeypatch, tmp_path, direct_url, metadata=None):
    """Pretend that the package is installed in tmp_path with this direct_url.json."""
    text = json.dumps(direct_url) if direct_url else None
    monkeypatch.setattr(code_version, "PACKAGE", tmp_path / "hf_medtl")
    distribution = SimpleNamespace(read_text=lambda name: text)
    monkeypatch.setattr("importlib.metadata.distribution", lambda name: distribution)
    if metadata is not None:
        monkeypatch.setattr("importlib.metadata.metadata", lambda name: metadata)


@pytest.fixture(autouse=True)
def forget_commit():
    code_version.commit.cache_clear()
    yield
    code_version.commit.cache_clear()


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_commit_of_a_clone_says_if_files_have_changed(tmp_path, monkeypatch):
    install(monkeypatch, tmp_path, {"dir_info": {"editable": True}, "url": f"file://{tmp_path}"})
    file = tmp_path / "hf_medtl" / "a.py"
    file.parent.mkdir()
    file.touch()
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "."), (*author, "commit", "-qm", "One"), ("tag", "v9")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    commit = code_version.commit()
    assert re.fullmatch("[0-9a-f]{40}", commit)
    file.write_text("changed")
    code_version.commit.cache_clear()
    assert code_version.commit() == f"{commit}-dirty"


def test_commit_of_an_installation_from_git(tmp_path, monkeypatch):
    install(monkeypatch, tmp_path, {"url": "https://host/a.git", "vcs_info": {"vcs": "git", "commit_id": "c" * 40}}, {})
    assert code_version.commit() == "c" * 40
    assert code_version.citation() == {"version": __version__, "commit": "c" * 40, "url": "https://host/a.git"}


@pytest.mark.parametrize("url", ["https://user:secret@host/a.git", "file:///home/somebody/a"])
def test_citation_has_no_token_and_no_folder(url, tmp_path, monkeypatch):
    install(monkeypatch, tmp_path, {"url": url}, {})
    assert code_version.citation() == {"version": __version__}


def test_installation_from_an_index_has_no_commit(tmp_path, monkeypatch):
    install(monkeypatch, tmp_path, None)
    assert code_version.commit() is None
