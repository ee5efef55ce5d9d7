"""Public names: few, importable, documented, with their arguments described."""

import importlib
import inspect
import re

import pytest

from tests.support.commands import ROOT

PACKAGES = ("hf_medtl", *(f"hf_medtl.{name}" for name in (
    "common", "data", "evaluation", "explain", "export", "publish", "report", "runs", "space", "tasks", "training"
)))  # fmt: skip
PUBLIC = [(package, name) for package in PACKAGES for name in importlib.import_module(package).__all__]


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_public_name_is_importable_and_documented(package: str, name: str):
    value = getattr(importlib.import_module(package), name)
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    section = re.search(rf"^## `{package}`\n(.*?)(?=^## |\Z)", reference, re.MULTILINE | re.DOTALL)
    assert section and f"`{name}`" in section[1], f"docs/reference.md lacks {package}.{name}"
    if callable(value):
        assert inspect.getdoc(value)


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_public_function_describes_its_arguments(package: str, name: str):
    value = getattr(importlib.import_module(package), name)
    if not inspect.isfunction(value):
        return
    parameters = [p for p in inspect.signature(value).parameters if p not in ("args", "kwargs")]
    doc = inspect.getdoc(value) or ""
    if len(parameters) < 2:
        return
    assert "\nArgs:\n" in doc, f"{package}.{name} has no Args section"
    missing = [
        p for p in parameters if not re.search(rf"^\s+\*{{0,2}}{p}\b.*:", doc.split("\nArgs:\n")[1], re.MULTILINE)
    ]
    assert not missing, f"{package}.{name} does not describe {missing}"


def test_public_surface_is_a_few_dozen_names():
    assert 30 <= len(PUBLIC) <= 90


def test_reference_lists_no_name_that_is_gone():
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    for package, section in re.findall(r"^## `([\w.]+)`\n(.*?)(?=^## |\Z)", reference, re.MULTILINE | re.DOTALL):
        exported = set(importlib.import_module(package).__all__)
        assert set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) == exported, package
