"""Optional dependencies: one sentence when one is missing."""

import importlib.metadata
import re
import sys
import tomllib
from types import SimpleNamespace

import pytest

from hf_medtl.common.extras import install_command, require
from hf_medtl.errors import MedtlError
from tests.support.commands import ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_returns_installed_module():
    assert require("json", "search", "--search").loads("1") == 1


def test_missing_module_error_gives_install_command():
    with pytest.raises(
        MedtlError, match=r'^--search needs no_such_module\. Install it with: pip install "hf_medtl\[search\]"$'
    ):
        require("no_such_module.part", "search", "--search")


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, 'pip install "hf_medtl[report]"'),
        ('{"dir_info": {"editable": true}, "url": "file:///home/me/hf_medtl"}', 'pip install "hf_medtl[report]"'),
        (
            '{"url": "https://example.org/hf_medtl", "vcs_info": {"vcs": "git", "commit_id": "0123abc"}}',
            'pip install "hf_medtl[report] @ git+https://example.org/hf_medtl"',
        ),
        (
            '{"url": "https://example.org/hf_medtl", "vcs_info": {"vcs": "git", "requested_revision": "v1"}}',
            'pip install "hf_medtl[report] @ git+https://example.org/hf_medtl@v1"',
        ),
    ],
)
def test_install_command_is_for_how_the_package_was_installed(origin, command, monkeypatch):
    installed = SimpleNamespace(read_text=lambda name: origin)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: installed)
    assert install_command("report") == command


def test_error_names_missing_transitive_module(tmp_path, monkeypatch):
    (tmp_path / "outer_module.py").write_text("import no_such_inner.part\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MedtlError, match="needs no_such_inner"):
        require("outer_module", "report", "A report")


def test_extras_named_in_the_code_exist():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "hf_medtl").rglob("*.py"))
    named = {name for names in re.findall(r"hf_medtl\[([a-z,-]+)\]", text) for name in names.split(",")}
    named |= set(re.findall(r"""install_command\(["']([a-z-]+)["']\)""", text))
    named |= set(re.findall(r'require\(\s*"[\w.]+", "([a-z-]+)"', text))
    assert named and named <= EXTRAS.keys()


def test_all_contains_every_extra_except_other_licences_and_dev():
    inside = re.fullmatch(r"hf_medtl\[(.*)\]", EXTRAS["all"][0])[1].split(",")
    assert set(inside) == EXTRAS.keys() - {"all", "dev", "test", "jpeg"}


def test_lora_without_peft_fails_before_training(monkeypatch):
    from transformers import ViTConfig, ViTForImageClassification

    from hf_medtl.models.strategies import Strategy

    monkeypatch.setitem(sys.modules, "peft", None)
    model = ViTForImageClassification(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
    with pytest.raises(
        MedtlError, match=r'--strategy lora needs peft\. Install it with: pip install "hf_medtl\[lora\]"'
    ):
        Strategy("lora", 1).check(model)


def test_kaggle_download_without_kagglehub_names_the_extra(monkeypatch):
    from hf_medtl.data.loading import fetch_dataset
    from hf_medtl.data.specs import DATASETS

    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(MedtlError, match=r"brain-tumor-mri from Kaggle needs kagglehub\. Install it with: "):
        fetch_dataset(DATASETS["brain-tumor-mri"])
