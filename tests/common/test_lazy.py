"""Names and modules that are imported when they are first used."""

import importlib
import subprocess
import sys

import pytest

from hf_medtl.common.lazy import after_import


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module `late_module` that can be imported once its file is whole."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "late_module.py"
    sys.modules.pop("late_module", None)


def test_after_import_acts_once_when_the_module_is_imported(module):
    module.write_text("VALUE = 1\n", encoding="utf-8")
    calls = []
    after_import("late_module", lambda: calls.append(sys.modules["late_module"].VALUE))
    assert calls == []
    importlib.import_module("late_module")
    importlib.import_module("late_module")
    assert calls == [1]
    after_import("late_module", lambda: calls.append("at once"))
    assert calls == [1, "at once"]


def test_after_import_waits_for_an_import_that_succeeds(module):
    module.write_text("raise ImportError('half of it is missing')\n", encoding="utf-8")
    calls = []
    after_import("late_module", lambda: calls.append(1))
    with pytest.raises(ImportError, match="half of it is missing"):
        importlib.import_module("late_module")
    assert calls == []
    module.write_text("VALUE = 2  # another length, so that no cached bytecode is used\n", encoding="utf-8")
    importlib.invalidate_caches()
    importlib.import_module("late_module")
    assert calls == [1]


def test_commands_are_assembled_without_modules_that_help_does_not_need():
    code = "import hf_medtl.cli.app, sys; print(*{'asyncio', 'numpy', 'torch', 'yaml'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
