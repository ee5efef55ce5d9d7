"""Optional dependencies: one sentence when one is missing."""

import re
import tomllib

import pytest

from hf_medtl.common.extras import require
from hf_medtl.errors import MedtlError
from tests.support.commands import ROOT

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def test_returns_an_installed_module():
    assert require("json", "search", "--search").loads("1") == 1


def test_missing_module_is_one_sentence_with_the_install_command():
    with pytest.raises(
        MedtlError, match=r'^--search needs no_such_module\. Install it with: pip install "hf_medtl\[search\]"$'
    ):
        require("no_such_module.part", "search", "--search")


def test_error_names_the_module_that_is_missing_behind_another(tmp_path, monkeypatch):
    (tmp_path / "outer_module.py").write_text("import no_such_inner.part\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MedtlError, match="needs no_such_inner"):
        require("outer_module", "report", "A report")


def test_extras_named_in_the_code_exist():
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "hf_medtl").rglob("*.py"))
    named = {name for names in re.findall(r"hf_medtl\[([a-z,-]+)\]", text) for name in names.split(",")}
    named |= set(re.findall(r'require\(\s*"[\w.]+", "([a-z-]+)"', text))
    assert named and named <= EXTRAS.keys()


def test_all_has_every_extra_but_those_under_another_licence_and_for_development():
    inside = re.fullmatch(r"hf_medtl\[(.*)\]", EXTRAS["all"][0])[1].split(",")
    assert set(inside) == EXTRAS.keys() - {"all", "dev", "test", "jpeg"}
